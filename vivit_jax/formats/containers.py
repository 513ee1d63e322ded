"""Files that hold arrays by name: of which sort one is, by its content, and its arrays. No pickle is executed."""

import io
import json
import pathlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from vivit_jax import archives, json_files, paths
from vivit_jax.formats.weights import flat

Arrays = Mapping[str, Any]  # NumPy arrays

LONGEST_NAME = 500  # of an array
SUFFIXES = ('.safetensors', '.npz', '.pth', '.pyth', '.pt', '.bin', '.msgpack')


def read(path: pathlib.Path) -> tuple[str, Arrays]:
    """Reads a file of arrays.

    Args:
        path: A file.

    Returns:
        The sort of file ('npz', 'safetensors', 'torch' or 'msgpack'), and its arrays by name; names of nested
        ones have slashes (dots, where PyTorch's are nested).

    Raises:
        ValueError: One line that says what the file seems to be, if it is none of these or is damaged.
    """
    if not path.is_file():
        raise ValueError(f'{path}: does not exist')
    with path.open('rb') as file:
        start = file.read(512)
    sort = _sort(path, start)
    readers = {'npz': archives.Npz, 'safetensors': _safetensors, 'torch': _torch, 'msgpack': _msgpack}
    try:
        arrays = readers[sort](path)
        _check(path, sort, arrays)
    except ImportError:
        raise
    except MemoryError as error:
        raise ValueError(f'{path}: does not fit into memory') from error
    except Exception as error:
        if str(error).startswith(f'{path}: '):
            raise
        words = ' '.join(str(error).split())[:160]
        raise ValueError(f'{path}: seems to be {NAMES[sort]}, but truncated or damaged ({words})') from error
    return sort, arrays


def _check(path: pathlib.Path, sort: str, arrays: Arrays) -> None:
    """Refuses names that could not be told, and arrays that are one number said to be a billion."""
    for name in arrays:
        if not name.isprintable() or len(name) > LONGEST_NAME:
            raise ValueError(f'the name of an array is {name[:40]!r}')
    if sort != 'npz':  # whose arrays are not read yet
        archives.check_size(sum(array.nbytes for array in arrays.values()), path.stat().st_size)


def read_parts(index: pathlib.Path) -> tuple[str, Arrays]:
    """Reads arrays that Hugging Face split over several files, as `model.safetensors.index.json` tells.

    Raises:
        ValueError: If the index or a part is missing or damaged.
    """
    parts = read_json(index).get('weight_map')
    if not isinstance(parts, dict) or not parts:
        raise ValueError(f'{index}: tells no parts (weight_map)')
    for part in parts.values():
        if not isinstance(part, str) or part in ('', '.', '..') or not re.fullmatch(r'[^/\\\0]+', part):
            raise ValueError(f'{index}: a part must be the name of a file beside it, not {str(part)[:80]!r}')
    sort, arrays = '', dict[str, Any]()
    for part in sorted(set(parts.values())):
        sort, read_now = read(index.parent / part)
        arrays |= dict(read_now)
    if lost := [name for name in parts if name not in arrays]:
        raise ValueError(f'{index}: {len(lost)} of its arrays are in no part, as {lost[0][:80]!r}')
    return sort, arrays


NAMES = {
    'npz': 'an npz file of NumPy',
    'safetensors': 'a safetensors file',
    'torch': 'a file of PyTorch',
    'msgpack': 'a msgpack checkpoint of Flax',
}


def _sort(path: pathlib.Path, start: bytes) -> str:
    """Tells the sort of a file by its content."""
    if not start:
        raise ValueError(f'{path}: is empty')
    if start[:2] == b'PK':
        return _sort_of_archive(path)
    if len(start) > 9 and int.from_bytes(start[:8], 'little') < 2**32 and start[8:9] == b'{':
        return 'safetensors'
    if start[:1] == b'\x80' and start[1:2] in b'\x02\x03\x04\x05':
        return 'torch'  # a bare pickle, as PyTorch wrote before 1.6
    msgpack = start[0] & 0xF0 == 0x80 or start[0] in (0xDE, 0xDF)
    if msgpack and not start.startswith(b'\x89HDF'):
        return 'msgpack'
    raise ValueError(f'{path}: is no file of weights: it seems to be {_foreign(start)}')


def _sort_of_archive(path: pathlib.Path) -> str:
    try:
        names = archives.members(path)
    except ValueError as error:
        raise ValueError(f'{path}: seems to be an npz or PyTorch file, but {error}') from error
    if any(name.endswith('data.pkl') for name in names):
        return 'torch'
    if names and all(name.endswith('.npy') for name in names):
        return 'npz'
    raise ValueError(f'{path}: is no file of weights: it seems to be a zip archive of other files')


def _foreign(start: bytes) -> str:
    """Says what a file is that holds no weights."""
    known = {
        b'\x89HDF': 'an HDF5 file, as of Keras',
        b'\x1f\x8b': 'a gzip archive: unpack it first',
        b'\x93NUMPY': 'a single array (npy)',
        b'version https://git-lfs': 'a Git LFS pointer: fetch the file itself with git lfs pull',
        b'ustar': 'a tar archive: unpack it first',
    }
    for beginning, words in known.items():
        if start.startswith(beginning) or (beginning == b'ustar' and start[257:262] == beginning):
            return words
    text = start.lstrip().lower()
    if text.startswith((b'<!doctype', b'<html', b'<?xml')):
        return 'a web page, as a failed download leaves'
    if text.startswith((b'{', b'[')):
        return 'JSON'
    printable = sum(byte in b'\t\n\r' or 32 <= byte < 127 for byte in start)
    return (
        'text' if printable > 0.95 * len(start) else f'of an unknown sort (first bytes {start[:8].hex(" ")})'
    )


def _safetensors(path: pathlib.Path) -> Arrays:
    from safetensors.numpy import load_file

    return load_file(path)


def _torch(path: pathlib.Path) -> Arrays:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path}: is a file of PyTorch, which is not installed: pip install 'vivit_jax[torch]'"
        ) from error
    # In a bare pickle a length says how much is to be read, and room would be made for all of it.
    source = path if zipfile.is_zipfile(path) else io.BytesIO(path.read_bytes())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            # Arrays and plain containers only: anything else in the pickle is refused, not executed.
            loaded = torch.load(source, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        told = re.search(r'GLOBAL (\S+)|(?:class|type) (\S+)', str(error))
        what = f' ({told[1] or told[2]})' if told else ''
        raise ValueError(
            f'{path}: holds Python objects besides arrays{what}, which are not executed: save its state dict alone, '
            'or as safetensors'
        ) from error
    if not isinstance(loaded, Mapping):
        raise ValueError(f'{path}: holds a {type(loaded).__name__} instead of named arrays')
    named = {name.replace('/', '.'): value for name, value in flat(loaded).items()}
    return {name: _array(value) for name, value in named.items() if isinstance(value, torch.Tensor)}


def _array(tensor: Any) -> np.ndarray:
    """Turns a tensor into an array; NumPy has no bfloat16 of its own."""
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        # With a stride of 0 one number stands for any number of them.
        raise ValueError(
            f'a tensor {tuple(tensor.shape)} is said to be made of {tensor.untyped_storage().nbytes()} bytes'
        )
    return (tensor.detach().float() if tensor.is_floating_point() else tensor).numpy()


def _msgpack(path: pathlib.Path) -> Arrays:
    from flax.serialization import msgpack_restore

    tree = msgpack_restore(path.read_bytes())
    if not isinstance(tree, Mapping):
        raise ValueError(f'holds a {type(tree).__name__} instead of named arrays')
    return {name: value for name, value in flat(tree).items() if isinstance(value, np.ndarray)}


def read_json(path: paths.Path) -> dict[str, Any]:
    """Reads a JSON object; an empty one where there is no such file.

    Raises:
        ValueError: If it is not a JSON object.
    """
    return json_files.read_object(path) if path.is_file() else {}


def write_json(path: pathlib.Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object for people to read."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + '\n', encoding='utf-8')


def write_safetensors(path: pathlib.Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays as PyTorch's tensors."""
    from safetensors.numpy import save_file

    # As other new files are: safetensors makes its own readable to their owner only.
    path.touch()
    mode = path.stat().st_mode
    # Without the format, transformers refuses the file.
    save_file(arrays, path, metadata={'format': 'pt'})
    path.chmod(mode)
