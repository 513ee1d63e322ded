"""Checksums of the files of a folder: written among them, and compared with them before they are used.

`checksums.json` has the size in bytes and the SHA-256 of every file below the folder, and of that list itself:

    {"files": {"params/d/ab12": [8192, "9f86d0…"], …}, "root": true, "sha256": "5e8848…"}

What a name starting with a dot hides (a network's file system, an editor) is no part of the folder.
"""

import errno
import hashlib
import json
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from vivit_jax import paths

NAME = 'checksums.json'
CHUNK = 2**20  # bytes that are read at a time
ATTEMPTS, PAUSE = 3, 1.0  # seconds between them, where a disk says that it cannot read
THREADS = 8  # hashing lets other threads run


class Damaged(ValueError):
    """`checksums.json` is not as it was written."""


def write(folder: paths.Path, *, root: bool = True) -> None:
    """Writes the checksums of a folder; whoever reads meanwhile finds the old ones or the new.

    What is below the folder's own folders is hashed once: a second call adds the files that lie in the folder itself.

    Args:
        folder: The folder.
        root: Whether the files that lie in the folder itself have their final content.

    Raises:
        OSError: If a file cannot be read or written.
    """
    known = read(folder) if (folder / NAME).exists() else {}
    names = [name for name in files(folder) if name not in known and (root or '/' in name)]
    paths.replace_text(folder / NAME, _text(known | _sums(folder, names), root))


def read(folder: paths.Path) -> dict[str, list[Any]]:
    """Returns size and SHA-256 of each file that `checksums.json` lists.

    Raises:
        Damaged: If it is not as it was written.
        OSError: If it cannot be read.
    """
    return _read(folder)[0]


def damage(folder: paths.Path, items: Iterable[str] = ()) -> list[str]:
    """Compares a folder with its checksums.

    Args:
        folder: A folder with a `checksums.json`.
        items: Its folders and files that are looked at; none: all of it.

    Returns:
        What is wrong, a line for each file; [] if nothing is.

    Raises:
        OSError: If that cannot be told now, as the files cannot be reached.
    """
    wanted = tuple(items)

    def looked_at(name: str) -> bool:
        return name.split('/')[0] in wanted if wanted else (root or '/' in name)

    try:
        known, root = _read(folder)
    except Damaged as error:
        return [str(error)]
    except FileNotFoundError:
        return [f'{NAME}: is missing']
    expected = {name: tuple(entry) for name, entry in known.items() if looked_at(name)}
    found = {name for name in files(folder) if looked_at(name)}
    wrong = {name: 'is missing' for name in expected.keys() - found}
    wrong |= {name: 'does not belong there' for name in found - expected.keys()}
    there = sorted(found & expected.keys())
    with ThreadPoolExecutor(THREADS) as pool:
        texts = list(pool.map(lambda name: _differs(folder / name, *expected[name]), there))
    wrong |= {name: text for name, text in zip(there, texts, strict=True) if text}
    return [f'{name}: {wrong[name]}' for name in sorted(wrong)]


def files(folder: paths.Path, above: str = '') -> list[str]:
    """Returns the names of the files below a folder, as `params/d/ab12`, in order; not `checksums.json` itself."""
    found = []
    for path in folder.iterdir():
        name = above + path.name
        if path.name.startswith('.') or name == NAME:
            continue
        found += files(path, f'{name}/') if path.is_dir() else [name]
    return sorted(found)


def _sums(folder: paths.Path, names: list[str]) -> dict[str, list[Any]]:
    with ThreadPoolExecutor(THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: list(_sum(folder / name)), names), strict=True))


def _sum(path: paths.Path) -> tuple[int, str]:
    """Returns the size in bytes and the SHA-256 of a file."""
    size, digest = 0, hashlib.sha256()
    with path.open('rb') as file:
        while chunk := file.read(CHUNK):
            size += len(chunk)
            digest.update(chunk)
    return size, digest.hexdigest()


def _differs(path: paths.Path, size: int, digest: str) -> str:
    """Says how a file differs from what it was; '' if it does not."""
    for attempt in range(ATTEMPTS):
        try:
            if (now := paths.size(path)) != size:
                return f'{now:,} bytes, should be {size:,}'
            return '' if _sum(path)[1] == digest else 'its content has changed'
        except FileNotFoundError:
            break
        except OSError as error:
            # A disk that lost a sector says so each time. Anything else (a server that does not answer, too many open
            # files) is no fault of the file.
            if error.errno != errno.EIO:
                raise
            if attempt + 1 == ATTEMPTS:
                return f'cannot be read ({error.strerror})'
            time.sleep(PAUSE)
    return 'is missing'


def _read(folder: paths.Path) -> tuple[dict[str, list[Any]], bool]:
    return parse((folder / NAME).read_bytes())


def parse(content: bytes) -> tuple[dict[str, list[Any]], bool]:
    """Returns the files that a `checksums.json` lists, and whether those of the folder itself are among them.

    Raises:
        Damaged: If it is not as it was written.
    """
    try:
        parsed = json.loads(content)
        known, root = parsed['files'], parsed['root']
        # To the bit: what was written follows from what was read.
        sound = all(isinstance(size, int) and isinstance(digest, str) for size, digest in known.values())
        if sound and _text(known, root).encode() == content:
            return known, root
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise Damaged(f'{NAME}: its content has changed')


def _text(known: dict[str, list[Any]], root: bool) -> str:
    body = {'files': dict(sorted(known.items())), 'root': root}
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return json.dumps(body | {'sha256': digest}, indent=1) + '\n'
