"""Data in an object store: listed by few questions, and each file fetched whole when it is read.

A clip is a part of a file of some megabytes, read from several places: the file comes here, is read as any other, and
goes again. Nothing is kept, so that no disk fills up; what is read again and again is better copied here first.
"""

import os
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from vivit_jax import paths
from vivit_jax.data.record import UnreadableExample

Stamp = tuple[int, int, int]


class Entry(NamedTuple):
    """What lies in a store's folder: as an `os.DirEntry`, as far as that is needed."""

    name: str
    folder: bool

    def is_dir(self) -> bool:
        """Tells whether it is a folder."""
        return self.folder

    def is_file(self) -> bool:
        """Tells whether it is none."""
        return not self.folder


def entries(folder: str) -> list[Entry]:
    """Returns what lies in a folder; nothing where there is none."""
    try:
        return [Entry(*entry) for entry in paths.entries(paths.path(folder))]
    except FileNotFoundError:
        return []


def tree(folder: str) -> dict[str, list[Entry]]:
    """Returns what lies in a folder and in each below it, by the folders' paths."""
    below: dict[str, dict[str, Entry]] = {'': {}}
    for name in _find(folder):
        place, _, file = name.rpartition('/')
        below.setdefault(place, {})[file] = Entry(file, False)
        while place:  # folders on the way
            above, _, last = place.rpartition('/')
            if last in below.setdefault(above, {}):
                break
            below[above][last] = Entry(last, True)
            place = above
    base = folder.rstrip('/')
    return {f'{base}/{place}'.rstrip('/'): list(inside.values()) for place, inside in below.items()}


def stamps(folder: str, names: list[str]) -> dict[str, Stamp | str]:
    """Returns what changes when a file of a store does, or why there is nothing to look into.

    Args:
        folder: What names are relative to; the store is asked once for all that is below it.
        names: Files, or folders of files; those that are paths of a store themselves are left out.
    """
    there = _find(folder)
    folders: dict[str, tuple[int, int]] = {}
    for name, (size, mark, _) in there.items():
        place = name.rpartition('/')[0]
        total, crc = folders.get(place, (0, 0))
        folders[place] = (total + size, zlib.crc32(f'{name} {mark}'.encode(), crc))
    found: dict[str, Stamp | str] = {}
    for name in names:
        if paths.is_remote(name):
            continue  # of another place
        if name in there:
            found[name] = there[name]
        elif name in folders:
            found[name] = (*folders[name], 0)
        else:
            found[name] = 'no such file'
    return found


def stamp(file: str) -> Stamp | str:
    """Returns what changes when a file, or a folder of files, does, or why there is nothing to look into."""
    folder, _, name = file.rstrip('/').rpartition('/')
    try:
        with paths.said_as_one(file):
            info = paths.file_system(file).info(file)
            return stamps(folder, [name])[name] if info['type'] == 'directory' else _stamp(info)
    except FileNotFoundError:
        return 'no such file'
    except OSError as error:
        return error.strerror or str(error)


def _find(folder: str) -> dict[str, Stamp]:
    """Returns the stamp of every file below a folder, by its path relative to it."""
    with paths.said_as_one(folder):
        system = paths.file_system(folder)
        found = system.find(folder, detail=True)
        base = system._strip_protocol(folder).rstrip('/') + '/'
    return {
        name.removeprefix(base): _stamp(info)
        for name, info in found.items()
        if name.startswith(base) and not name.endswith('/')
    }


def _stamp(info: dict[str, Any]) -> Stamp:
    """Returns the bytes of a file, and a number that is another one where it was written anew."""
    told = [str(info.get(key)) for key in ('etag', 'ETag', 'generation', 'mtime', 'LastModified')]
    return int(info['size'] or 0), zlib.crc32(' '.join(told).encode()), 0


def probe(look: Callable[[str], Any], file: str) -> Any:
    """Looks into a file with what wants it here; a text says why it cannot be used."""
    if not paths.is_remote(file):
        return look(file)
    try:
        with paths.local(paths.path(file)) as copy:
            outcome = look(str(copy))
            return outcome.replace(str(copy), file) if isinstance(outcome, str) else outcome
    except OSError as error:
        return error.strerror or str(error)


def read(read_here: Callable[..., Any], file: str, *arguments: Any) -> Any:
    """Reads a file with what wants it here.

    Raises:
        UnreadableExample: If it cannot be read.
    """
    if not paths.is_remote(file):
        return read_here(file, *arguments)
    try:
        with paths.local(paths.path(file)) as copy:
            try:
                return read_here(str(copy), *arguments)
            except UnreadableExample as error:
                raise UnreadableExample(str(error).replace(str(copy), file)) from error
    except OSError as error:
        raise UnreadableExample(f'{file} cannot be read: {error.strerror or error}') from error


def size(file: str) -> int:
    """Returns the bytes of a file, here or there; of a store's folder those of its files.

    Raises:
        OSError: If it is not there.
    """
    if not paths.is_remote(file):
        return os.path.getsize(file)
    found = stamp(file)
    if isinstance(found, str):
        raise OSError(f'{file}: {found}')
    return found[0]


def part(file: str, start: int, length: int) -> bytes:
    """Returns some bytes of a file, fewer where it ends.

    Raises:
        OSError: If it cannot be read.
    """
    if paths.is_remote(file):
        with paths.said_as_one(file):
            return paths.file_system(file).cat_file(file, start=start, end=start + length)
    with open(file, 'rb') as opened:
        opened.seek(start)
        return opened.read(length)


def content(file: str) -> bytes:
    """Returns all of a store's file.

    Raises:
        OSError: If it cannot be read.
    """
    with paths.said_as_one(file):
        return paths.path(file).read_bytes()


def name(path: str) -> str:
    """Returns a path by which one file has one name."""
    return path if paths.is_remote(path) else os.path.normpath(path)
