"""Examples that lie in folders: a walk that follows links, ends, and skips nothing silently."""

import os
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from vivit_jax import paths
from vivit_jax.data.files import stores
from vivit_jax.data.listing.splits import SPLITS, split_name

LEFT_BEHIND = '__MACOSX'  # what unpacking a Mac's archive leaves


def subfolders(folder: paths.Path) -> list[str]:
    """Returns the sorted names of the folders in a folder, without hidden ones; a ValueError where none can look."""
    return sorted(entry.name for entry in _entries(folder) if _is_folder(entry))


def files_in(folder: paths.Path) -> list[Any]:
    """Returns what else there is in a folder, sorted, without what is hidden; a ValueError where none can look."""
    return [
        folder / name for name in sorted(entry.name for entry in _entries(folder) if not _is_folder(entry))
    ]


def loose_files(folder: paths.Path, endings: tuple[str, ...]) -> list[Any]:
    """Returns the files of such endings that lie in a folder itself, sorted."""
    return [file for file in files_in(folder) if file.name.lower().endswith(endings)]


def _entries(folder: paths.Path) -> list[Any]:
    try:
        if paths.is_remote(folder):
            return [entry for entry in stores.entries(str(folder)) if not _hidden(entry.name)]
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not _hidden(entry.name)]
    except OSError as error:
        raise ValueError(f'{folder} cannot be looked into: {error.strerror or error}') from error


def split_folders(root: paths.Path, split: str = '') -> dict[str, str]:
    """Returns the folder of each split in a folder; nothing where its folders are no splits but classes.

    They are splits where one is called `train`, or none is called otherwise than a split.

    Args:
        root: The folder.
        split: A split of one's own that may be there too.

    Raises:
        ValueError: If two folders are of the same split, as `val` and `valid`.
    """
    there = subfolders(root)
    named = [(split_name(name), name) for name in there if split_name(name) in {*SPLITS, split}]
    given = dict(named)
    if 'train' not in given and any(split_name(name) not in SPLITS for name in there):
        return {}
    if len(given) < len(named):
        twice = ', '.join(f'{name}/' for _, name in named)
        raise ValueError(f'{root} has two folders of a split among {twice}: keep one of each')
    return given


def examples_by_class(
    root: paths.Path, folder: str, train: str, endings: tuple[str, ...], folders: bool = False
) -> tuple[list[str], list[tuple[str, int]], list[tuple[str, str]]]:
    """Looks for examples in class folders.

    Args:
        root: What paths are relative to.
        folder: Holds the class folders of the split, relative to the root; '' is the root itself.
        train: Holds those that name the classes.
        endings: See `examples_below`.
        folders: See `examples_below`.

    Returns:
        The class names, the (path, class) of each example, those of a class together, and the (path, cause) of what
        is none.

    Raises:
        ValueError: If there is a class that train does not have.
    """
    names = list(dict.fromkeys(_plain(name) for name in subfolders(root / train)))
    if unreadable := next((name for name in names if any(map(_is_no_letter, name))), None):
        raise ValueError(
            f'{root / train}: the name of the class folder {unreadable!r} is not UTF-8: rename it'
        )
    numbers = {name: number for number, name in enumerate(names)}
    examples, bad = [], []
    if not folders:
        loose, _ = _look(str(root / folder), endings, folders, first_only=False)
        bad = [(f'{folder}/{name}' if folder else name, 'lies in no class folder') for name in sorted(loose)]
    for name in subfolders(root / folder):
        if _plain(name) not in numbers:
            raise ValueError(f'class folder {root / folder / name} is not among the {len(numbers)} of train')
        place = f'{folder}/{name}' if folder else name
        found, faults = examples_below(root, place, endings, folders)
        examples += [(path, numbers[_plain(name)]) for path in found]
        bad += faults
    return names, examples, bad


def _is_no_letter(letter: str) -> bool:
    return '\ud800' <= letter <= '\udfff'


def _plain(name: str) -> str:
    """Returns a class's name with its accents written in one way: a Mac's differs from the others'."""
    return unicodedata.normalize('NFC', name)


def examples_below(
    root: paths.Path, folder: str, endings: tuple[str, ...], folders: bool = False
) -> tuple[list[str], list[tuple[str, str]]]:
    """Looks for examples in a folder and all that is below it; links are followed, and each folder is seen once.

    Args:
        root: What paths are relative to.
        folder: Where to look, relative to the root; '' is the root itself.
        endings: Of files, lower case; those of files are compared without their case.
        folders: An example is a folder below `folder` that holds such files, instead of a file.

    Returns:
        Sorted paths relative to the root, and (path, cause) of what could not be looked into, has a name that
        is not UTF-8, or, where examples are folders, holds nothing or holds files where folders should be.
    """
    found: list[str] = []
    bad: list[tuple[str, str]] = []
    seen: set[tuple[int, int]] = set()
    tree = stores.tree(os.path.join(root, folder)) if paths.is_remote(root) else None
    pending = [folder]
    while pending:
        here = pending.pop()
        place = os.path.join(root, here)
        try:
            if tree is None:
                status = os.stat(place)
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                files, below = _look(place, endings, folders, first_only=folders and here != folder)
            else:
                files, below = _sorted_out(
                    tree.get(place.rstrip('/'), []), endings, folders, first_only=False
                )
        except OSError as error:
            bad.append((here, f'cannot be looked into: {error.strerror}'))
            continue
        prefix = f'{here}/' if here else ''
        if not folders:
            found += [prefix + name for name in files]
            if not files and not below and here.lower().endswith(endings):
                found.append(here)  # called like an example: whoever looks into it says what it is
        elif files and here != folder:
            found.append(here)
            continue
        elif files:
            bad.append(
                (prefix + min(files), f'1 of {len(files)} files that must lie in folders of their own')
            )
        elif not below and here != folder:
            bad.append((here, f'holds none of {", ".join(endings)}'))
        pending += [prefix + name for name in sorted(below, reverse=True)]
    for path in _not_text(found):
        found.remove(path)
        bad.append((os.fsencode(path).decode('utf-8', 'backslashreplace'), 'its name is not UTF-8'))
    return sorted(found), sorted(bad)


def examples_by_name(root: paths.Path, endings: tuple[str, ...], folders: bool = False) -> dict[str, str]:
    """Returns the path, relative to the root, of every example below it by its name without folder and ending.

    Of several of a name the first in sorted order counts.
    """
    paths, _ = examples_below(root, '', endings, folders)
    if folders:
        return {path.rpartition('/')[2]: path for path in reversed(paths)}
    by_length = sorted(endings, key=len, reverse=True)
    named = {}
    for path in reversed(paths):
        name = path.rpartition('/')[2]
        ending = next(ending for ending in by_length if name.lower().endswith(ending))
        named[name[: len(name) - len(ending)]] = path
    return named


def _look(
    place: str, endings: tuple[str, ...], folders: bool, first_only: bool
) -> tuple[list[str], list[str]]:
    """Returns the names of files and of folders; only one file where that suffices."""
    if paths.is_remote(place):
        return _sorted_out(stores.entries(place), endings, folders, first_only)
    with os.scandir(place) as entries:
        return _sorted_out(entries, endings, folders, first_only)


def _sorted_out(
    entries: Iterable[Any], endings: tuple[str, ...], folders: bool, first_only: bool
) -> tuple[list[str], list[str]]:
    files, below = [], []
    for entry in entries:
        if _hidden(entry.name):
            continue
        # A folder named like a video is listed, so that it will be named as none.
        if entry.name.lower().endswith(endings) and not (folders and _is_folder(entry)):
            files.append(entry.name)
            if first_only:
                break
        elif _is_folder(entry):
            below.append(entry.name)
    return files, below


def _hidden(name: str) -> bool:
    return name.startswith('.') or name == LEFT_BEHIND


def _is_folder(entry: Any) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _not_text(paths: list[str]) -> Iterator[str]:
    try:
        '\n'.join(paths).encode()
    except UnicodeEncodeError:
        yield from [path for path in paths if any('\udc80' <= letter <= '\udcff' for letter in path)]
