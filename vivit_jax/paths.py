"""Paths as a user writes them: of this machine, or of an object store (`gs://BUCKET/…`, `s3://BUCKET/…`).

Of this machine `path` gives a `pathlib.Path`, of a store an `etils.epath.Path`, which reads and writes by fsspec.
What both have, and may be used on a workdir, a checkpoint or a data root, is

    / parent name suffix stem with_name parts exists is_dir is_file iterdir mkdir(parents=, exist_ok=)
    unlink(missing_ok=) read_text write_text read_bytes write_bytes open('rb') open('wb')
    glob('*.csv')        one level: a store has no '**'

and for the rest there is a function here. A store has no folders: one without a file in it `exists` no more than
before its `mkdir`. A file of it is there once it is closed, and cannot grow (`mirror` helps out).
"""

import contextlib
import errno
import functools
import io
import os
import pathlib
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from etils import epath

    Path: TypeAlias = pathlib.Path | epath.Path
else:
    Path = pathlib.PurePath  # the base of both: whoever has no store's path need not load epath

EXTRAS = {'gs': 'gcs', 's3': 's3'}  # what to install for each kind of store
COMMANDS = {'gs': 'gcloud storage cp -r', 's3': 'aws s3 cp --recursive'}
PREFIXES = tuple(f'{kind}://' for kind in EXTRAS)
BLOCK = 2**20  # bytes that are copied at a time


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Tells whether a path is an object store's."""
    return os.fspath(path).startswith(PREFIXES)


def path(text: str | os.PathLike[str]) -> Path:
    """Returns the path that a user wrote.

    Args:
        text: `runs/digits`, `gs://bucket/runs/digits`, `s3://…`; what is a path already stays what it is.

    Raises:
        ValueError: If it is of another kind of store, has no bucket, or needs a package that is not there; one line.
    """
    written = os.fspath(text)
    store = re.match(r'([A-Za-z]\w*):(//?)(?!/*$)', written) or re.match(r'(gs|s3):(//?)', written)
    if store is None or (store[2] == '/' and store[1] not in EXTRAS):
        return text if isinstance(text, pathlib.Path) else pathlib.Path(written)
    kind, after = store[1], written[store.end() :]
    if kind not in EXTRAS:
        known = ' or '.join(f'{prefix}BUCKET/…' for prefix in PREFIXES)
        raise ValueError(f'{written}: a path is of this machine, or {known}')
    if store[2] == '/' or not after or after.startswith('/'):
        raise ValueError(
            f"{written}: a path of an object store is {kind}://BUCKET/…, as '{kind}://my-bucket/runs'"
        )
    try:
        _connect(kind)
    except ImportError as error:
        raise ValueError(
            f"{written}: {kind}:// needs a package that is not installed: pip install 'vivit_jax[{EXTRAS[kind]}]'"
        ) from error
    from etils import epath

    return epath.Path(written)


@functools.cache
def _connect(kind: str) -> None:
    """Makes epath read a kind of store by fsspec, whatever else is installed; once."""
    import fsspec
    from etils.epath import gpath

    # Where TensorFlow is installed epath would load it (12 s), and TensorFlow's wheels know no s3://.
    if 'EPATH_USE_TF' not in os.environ:
        os.environ['EPATH_USE_TF'] = 'false'
        gpath._is_tf_installed.cache_clear()
    # fsspec remembers listings for ever: what another process has written since would not be seen.
    protocols = fsspec.get_filesystem_class(kind).protocol
    for name in (protocols,) if isinstance(protocols, str) else protocols:
        fsspec.config.conf.setdefault(name, {}).setdefault('use_listings_cache', False)


def here(text: str | os.PathLike[str], what: str) -> pathlib.Path:
    """Returns a path that must be of this machine, with `~` expanded.

    Args:
        text: As a user wrote it.
        what: Which option or key it is of, as `--output`.

    Raises:
        ValueError: If it is an object store's; one line that says what to do.
    """
    if is_remote(text):
        command = COMMANDS[os.fspath(text)[:2]]
        raise ValueError(f'{what}={text}: must be of this machine; {command} copies to it and from it')
    return pathlib.Path(os.path.expanduser(text))  # what is nobody's stays as it is


def expanded(text: str | os.PathLike[str]) -> Path:
    """Returns the path that a user wrote, see `path`, with `~` expanded."""
    written = path(text)
    return written if is_remote(written) else pathlib.Path(os.path.expanduser(written))


def absolute(path: Path) -> Path:
    """Returns a path that holds wherever one stands."""
    return path if is_remote(path) else pathlib.Path(path).absolute()


def join(folder: str | os.PathLike[str], name: str) -> str:
    """Returns the path of what a text, as a row of a table, names: relative to a folder, absolute, or a store's."""
    return name if is_remote(name) else os.path.join(os.fspath(folder), name)


def size(path: Path) -> int:
    """Returns the bytes of a file.

    Raises:
        FileNotFoundError: If it is not there.
    """
    found: Any = path.stat()
    return found.length if is_remote(path) else found.st_size


def unlink(path: Path) -> None:
    """Removes a file, where there is one, whatever its name: to stores' `unlink` `[` and `*` are patterns."""
    if is_remote(path):
        with contextlib.suppress(FileNotFoundError), said_as_one(path):
            file_system(path).rm_file(os.fspath(path))
    else:
        pathlib.Path(path).unlink(missing_ok=True)


def rmtree(path: Path, patience: float = 5, quiet: float = 0) -> None:
    """Removes a folder with what is in it; of this machine also where threads write into it for some seconds yet.

    Args:
        path: The folder.
        patience: Seconds for which it is tried again.
        quiet: Seconds for which it has to stay away, where threads may make it anew.

    Raises:
        OSError: If it cannot be removed.
    """
    if is_remote(path):
        path.rmtree()  # type: ignore[union-attr]
        return
    seen = time.monotonic()
    until = seen + patience
    while True:
        failure = None
        try:
            shutil.rmtree(path)
            seen = time.monotonic()
        except OSError as error:
            failure = error
        if not os.path.lexists(path):
            if time.monotonic() >= min(seen + quiet, until):
                return
        elif failure and failure.errno not in (errno.ENOTEMPTY, errno.ENOENT):
            raise failure
        elif time.monotonic() > until:
            raise failure or OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), os.fspath(path))
        else:  # a file came, or went, after the folder was listed
            seen = time.monotonic()
        time.sleep(0.05)


def entries(folder: Path) -> list[tuple[str, bool]]:
    """Returns the name of everything in a store's folder, and whether that is a folder, by a single question.

    Raises:
        OSError: If the store does not answer.
    """
    with said_as_one(folder):
        found = file_system(folder).ls(os.fspath(folder), detail=True)
    names = ((entry['name'].rstrip('/').rpartition('/')[2], entry['type'] == 'directory') for entry in found)
    itself = os.fspath(folder).rstrip('/').rpartition('://')[2]
    # Some tools make an empty file of the folder's name, lest it is gone when it is empty.
    named = zip(found, names, strict=True)
    return [pair for entry, pair in named if entry['name'].rstrip('/') != itself]


def file_system(path: str | os.PathLike[str]) -> Any:
    """Returns the file system of fsspec by which epath reads a store."""
    from etils.epath import backend

    return backend.fsspec_backend.fs(os.fspath(path))


@contextlib.contextmanager
def said_as_one(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns whatever a store's library raises into an OSError of one line; one that is already stays as it is."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and '\n' not in str(error):
            raise
        words = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
        raise OSError(f'{os.fspath(path)}: {words}') from error


# --- Text ---


@contextlib.contextmanager
def open_text(
    path: Path, mode: str = 'r', *, newline: str | None = None, errors: str | None = None
) -> Iterator[IO[str]]:
    """Opens a UTF-8 text, 'r' or 'w', as `open` does; epath knows neither `newline` nor `errors`."""
    if not is_remote(path):
        with open(path, mode, newline=newline, encoding='utf-8', errors=errors) as file:
            yield file
        return
    with said_as_one(path):
        binary: Any = path.open(f'{mode}b')
    file = io.TextIOWrapper(binary, encoding='utf-8', newline=newline, errors=errors)
    try:
        yield file
    finally:
        with said_as_one(path):
            file.close()


def read_text(path: Path, errors: str = 'strict') -> str:
    """Returns a UTF-8 text, its line ends as they are read from a file here."""
    with open_text(path, errors=errors) as file:
        return file.read()


def replace_text(path: Path, text: str) -> None:
    """Writes a file such that whoever reads it meanwhile finds the old one or the new one, whole."""
    with written(path) as file:
        file.write_bytes(text.encode('utf-8'))


# --- Files of this machine that stand for those of a store ---


@contextlib.contextmanager
def written(path: Path) -> Iterator[pathlib.Path]:
    """Gives a file of this machine to write, which takes the place of `path` at the end, whole, or not at all."""
    if is_remote(path):
        with tempfile.TemporaryDirectory(prefix='vivit_jax_') as folder:
            file = pathlib.Path(folder) / path.name
            yield file
            upload(file, path)
        return
    file = pathlib.Path(path).with_name(f'.{path.stem}.{uuid.uuid4().hex}{path.suffix}')
    try:
        yield file
        file.replace(path)
    finally:
        file.unlink(missing_ok=True)


@contextlib.contextmanager
def local(path: Path) -> Iterator[pathlib.Path]:
    """Gives a file, or a folder with all below it, of this machine: `path` itself, or a copy that is then removed."""
    if not is_remote(path):
        yield pathlib.Path(path)
        return
    with tempfile.TemporaryDirectory(prefix='vivit_jax_') as folder:
        copy = pathlib.Path(folder) / path.name
        download(path, copy)
        yield copy


@contextlib.contextmanager
def local_files(folder: Path, wanted: Callable[[str], bool]) -> Iterator[pathlib.Path]:
    """Gives a folder of this machine with copies of the files in a store's folder whose names are wanted."""
    with tempfile.TemporaryDirectory(prefix='vivit_jax_') as place:
        copies = pathlib.Path(place) / folder.name
        copies.mkdir()
        for name, is_folder in entries(folder):
            if not is_folder and wanted(name):
                download(folder / name, copies / name)
        yield copies


def download(path: Path, copy: pathlib.Path) -> None:
    """Copies a file or a folder of a store here.

    Raises:
        OSError: If it is not there, or cannot be read.
    """
    with said_as_one(path):
        if path.is_dir():
            copy.mkdir()
            for name, _ in entries(path):
                download(path / name, copy / name)
            return
        with path.open('rb') as source, copy.open('wb') as target:
            shutil.copyfileobj(source, target, BLOCK)


def upload(file: pathlib.Path, path: Path) -> None:
    """Copies a file of this machine to a store, where it is whole or not there.

    Raises:
        OSError: If it cannot be written.
    """
    with said_as_one(path), file.open('rb') as source, path.open('wb') as target:
        shutil.copyfileobj(source, target, BLOCK)
