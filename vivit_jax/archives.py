"""Zip archives of arrays, NumPy's `.npz` and PyTorch's, read without trusting what they say of themselves.

What a file claims is compared with what it holds before room is made for it: an archive of a few kilobytes may say
that it unpacks to terabytes, and the header of an array that it has 10^9 times 10^9 numbers. Objects, which are
pickled, are refused; nothing is unpacked to a file.
"""

import math
import pathlib
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

# Of what is packed well: zeros shrink a thousandfold, but no trained model is of zeros alone.
MOST_TIMES = 20
MOST_BYTES = 100 * 2**20  # that any file may hold, however small it is
LONGEST_HEADER = 1_000  # of an array; NumPy's own have 128 bytes
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what NumPy and PyTorch write


def check_size(size: int, on_disk: int) -> None:
    """Refuses what claims to hold much more than its file.

    Args:
        size: Bytes that its arrays have, or are said to have.
        on_disk: Bytes of the file.

    Raises:
        ValueError: If it is a small file that would fill the memory.
    """
    if size > MOST_BYTES + MOST_TIMES * on_disk:
        raise ValueError(f'claims to hold {size:,} bytes in a file of {on_disk:,}, which no weights do')


def members(path: pathlib.Path) -> dict[str, zipfile.ZipInfo]:
    """Returns the members of an archive by name, once their names, sizes and ways of packing make sense.

    Raises:
        ValueError: One line, without the path: what is wrong.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except Exception as error:  # whatever zipfile stumbles over in a table of contents that makes no sense
        raise ValueError(
            'truncated or damaged: the table of contents at its end is missing or wrong'
        ) from error
    found: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = f'{info.filename[:80]!r}'
        if info.filename in found:
            raise ValueError(f'damaged: it has two members {name}')
        if info.flag_bits & 0x1:
            raise ValueError(f'{name} in it is encrypted')
        if info.compress_type not in METHODS:
            raise ValueError(
                f'{name} in it is packed by method {info.compress_type}: known are 0 and 8 (deflate)'
            )
        found[info.filename] = info
    on_disk = path.stat().st_size
    check_size(sum(info.file_size for info in infos), on_disk)
    # Members that lie upon one another: each may be modest, and all are the same bytes.
    if sum(info.compress_size for info in infos) > on_disk:
        raise ValueError('damaged: its members are longer than the file')
    return found


class Npz(Mapping[str, np.ndarray]):
    """The arrays of an `.npz` by name, each read when it is asked for: checkpoints may be large.

    Args:
        path: The file.

    Raises:
        ValueError: Here and when an array is asked for; one line, without the path: what is wrong.
    """

    def __init__(self, path: pathlib.Path):
        self._members = {name.removesuffix('.npy'): info for name, info in members(path).items()}
        self._archive = zipfile.ZipFile(path)

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __getitem__(self, name: str) -> np.ndarray:
        info = self._members[name]
        try:
            with self._archive.open(info) as member:
                return read_npy(member, info.file_size)
        except ValueError:
            raise
        except Exception as error:  # of zipfile, zlib, struct
            raise ValueError(f'damaged: {" ".join(str(error).split())}') from error

    def close(self) -> None:
        """Closes the file."""
        self._archive.close()

    def __enter__(self) -> 'Npz':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_npy(file: IO[bytes], size: int) -> np.ndarray:
    """Reads an array in NumPy's format.

    Args:
        file: Seekable, at the beginning of the array.
        size: Bytes that there are from there on.

    Raises:
        ValueError: One line, without the file's name: what is wrong.
    """
    start = file.tell()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of arrays that Python 2 wrote, which are read all the same
            shape, _, dtype = _header(file)
    except Exception as error:  # a header is an expression of Python: nested ones end in errors of many kinds
        words = ' '.join(str(error).split())[:80]
        raise ValueError(f'is no array in the format of NumPy ({words})') from error
    if dtype.hasobject:
        raise ValueError('Object arrays cannot be loaded: they are pickled, and nothing is executed here')
    if any(isinstance(length, bool) or length < 0 for length in shape):
        raise ValueError(f'its header claims the shape {_short(shape)}')
    held, claimed = size - (file.tell() - start), math.prod(shape) * dtype.itemsize
    if held != claimed:
        raise ValueError(
            f'cut off: its header claims {_short(shape)} of {dtype.name}, but it holds {held:,} bytes'
        )
    file.seek(start)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return np.lib.format.read_array(file, allow_pickle=False)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    place, size = file.tell(), 2 if version == (1, 0) else 4
    if int.from_bytes(file.read(size), 'little') > LONGEST_HEADER:
        raise ValueError('its header is too long')
    file.seek(place)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file, LONGEST_HEADER)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file, LONGEST_HEADER)
    raise ValueError(f'version {version}')


def _short(shape: tuple[int, ...]) -> str:
    """Writes a shape, of however many and large axes."""
    sides = [f'{length:,}' if abs(length) < 10**18 else 'astronomically many' for length in shape[:6]]
    return f'({", ".join([*sides, *(["…"] if len(shape) > 6 else [])])})'
