"""MedMNIST v2 in three dimensions: small medical volumes whose depth stands for time (Yang et al. 2023).

Six sets, each a file of 28 or 64 voxels along an axis, from https://zenodo.org/records/10519652 (CC BY 4.0;
https://doi.org/10.1038/s41597-022-01721-8). A file that is missing is downloaded where the package medmnist is
installed, which tells from where; of that package, which needs PyTorch, no more than this table is read.
"""

import dataclasses
import functools
import hashlib
import http.client
import importlib.util
import os
import pathlib
import runpy
import sys
import threading
import urllib.request
import zipfile
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

from vivit_jax import paths
from vivit_jax.data.record import Record

SPLITS = {'train': 'train', 'validation': 'val', 'test': 'test'}  # and what the files call them
RECORD = 'https://zenodo.org/records/10519652'
HOME = '~/.medmnist'  # where the package medmnist keeps its files


@dataclasses.dataclass(frozen=True)
class Published:
    """What is published about a set.

    Attributes:
        counts: Volumes of each split, in the order of `SPLITS`.
        md5: Of the file of each size, in voxels along an axis.
        class_names: In the order of the labels.
    """

    counts: tuple[int, int, int]
    md5: dict[int, str]
    class_names: tuple[str, ...]


SETS = {
    'organ': Published(
        (971, 161, 610),
        {28: 'a0c5a1ff56af4f155c46d46fbb45a2fe', 64: '58a2205adf14a9d0a189cb06dc78bf10'},
        (
            *('liver', 'kidney-right', 'kidney-left', 'femur-right', 'femur-left', 'bladder', 'heart'),
            *('lung-right', 'lung-left', 'spleen', 'pancreas'),
        ),
    ),
    'nodule': Published(
        (1158, 165, 310),
        {28: '8755a7e9e05a4d9ce80a24c3e7a256f3', 64: 'c47c5b7d457bf6332200d2ea6d64ecd8'},
        ('benign', 'malignant'),
    ),
    'adrenal': Published(
        (1188, 98, 298),
        {28: 'bbd3c5a5576322bc4cdfea780653b1ce', 64: '17721accfe9fb005146a47d33bc54b2f'},
        ('normal', 'hyperplasia'),
    ),
    'fracture': Published(
        (1027, 103, 240),
        {28: '6aa7b0143a6b42da40027a9dda61302f', 64: 'f01d7e6316aedf4210da0da5b7437b42'},
        ('buckle rib fracture', 'nondisplaced rib fracture', 'displaced rib fracture'),
    ),
    'vessel': Published(
        (1335, 191, 382),
        {28: 'b41fd4f7e7e2feedddb201585ecafa1b', 64: '6bb274a8846e1097066dcd64e2c4520f'},
        ('vessel', 'aneurysm'),
    ),
    'synapse': Published(
        (1230, 177, 352),
        {28: '1235b78a3cd6280881dd7850a78eadb6', 64: '43bd14ebf3af9d3dd072446fedc14d5e'},
        ('inhibitory synapse', 'excitatory synapse'),
    ),
}


class MedMNIST:
    """A source of volumes; they are loaded when the first of them is read, once in each process.

    Attributes:
        class_names: As published.
        digest: Tells file and split.
        bad: Empty: the file is the published one, or none.
    """

    bad: tuple[tuple[str, str], ...] = ()

    def __init__(self, split: str, *, root: str | None, name: str, size: int):
        """Opens a split, after a look at the whole file.

        Args:
            split: `train`, `validation` or `test`.
            root: Folder that holds the file, `{name}mnist3d.npz`, or `{name}mnist3d_64.npz` of size 64, or is to
                hold it; None: the package's, `~/.medmnist`.
            name: Which set: `organ`, `nodule`, `adrenal`, `fracture`, `vessel` or `synapse`.
            size: Voxels along each axis, 28 or 64.

        Raises:
            ValueError: If there is no such set, size, split or file, or the file is not the published one.
        """
        if split not in SPLITS:
            raise ValueError(f'MedMNIST has no split {split!r}: choose one of {", ".join(SPLITS)}')
        if name not in SETS:
            raise ValueError(f'config.data.medmnist.name={name!r}: choose one of {", ".join(SETS)}')
        published = SETS[name]
        if size not in published.md5:
            raise ValueError(f'config.data.medmnist.size={size!r}: choose 28 or 64 voxels')
        file = f'{name}mnist3d.npz' if size == 28 else f'{name}mnist3d_{size}.npz'
        self._path = paths.expanded(HOME if root is None else root) / file
        md5 = published.md5[size]
        if not self._path.is_file():
            if paths.is_remote(self._path):
                raise ValueError(f'{self._path} is not there: {_command(file)} gets it, to be copied there')
            _download(pathlib.Path(self._path), md5, chosen=root is not None)
        with paths.local(self._path) as copy, copy.open('rb') as content:
            found = hashlib.file_digest(content, _md5).hexdigest()
        if found != md5:
            raise ValueError(
                f'{self._path}: its MD5 is {found}, but that of MedMNIST v2 is {md5}: delete it and get it '
                f'again, {_command(file)}'
            )
        self._split, self._key = split, SPLITS[split]
        self._shape = (published.counts[list(SPLITS).index(split)], size, size, size)
        self._labels = _labels(self._path, self._key, self._shape)
        self.class_names = list(published.class_names)
        self.digest = f'{file} {md5}, {split}'

    def __len__(self) -> int:
        """Returns the number of volumes."""
        return len(self._labels)

    def __getitem__(self, index: int) -> Record:
        """Returns the record at `index`, with slices uint8 `[t size size 1]`."""
        if not 0 <= index < len(self._labels):
            raise IndexError(f'{self._path.name}: index {index} must be in [0, {len(self._labels)})')
        return Record(
            name=f'{self._split}/{index:06d}',
            label=self._labels[index],
            num_frames=self._shape[1],
            frame_size=self._shape[2:],
            read=functools.partial(_read, self._path, self._key, index),
        )


def _download(path: pathlib.Path, md5: str, *, chosen: bool) -> None:
    """Fetches a published file, which gets its name once its MD5 is right.

    Args:
        path: Where it belongs.
        md5: What it must have.
        chosen: The folder is the user's choice, not the package's.

    Raises:
        ValueError: If there is no such folder, the package medmnist is not installed or the file cannot be had;
            one line that tells how to get it by hand.
    """
    where = f'config.data.root={str(path.parent)!r}' if chosen else f'config.data.root is not set, and {HOME}'
    wanted = f'{path.name} of MedMNIST v2 ({RECORD}/files/{path.name}, MD5 {md5})'
    if chosen and not path.parent.is_dir():
        raise ValueError(f'{where} is not a folder: it must hold {wanted}; {_command(path.name)}')
    table = _package_table()
    if table is None:
        raise ValueError(
            f'{where} does not hold {wanted}: {_command(path.name)} there, or give its folder with '
            '--config.data.root=FOLDER, or pip install --no-deps medmnist and it is downloaded'
        )
    name, _, size = path.stem.partition('_')
    url = table.get(name, {}).get(f'url_{size}' if size else 'url', f'{RECORD}/files/{path.name}')
    print(f'downloading {url} to {path}', file=sys.stderr)
    part = path.with_name(f'{path.name}.{os.getpid()}.part')
    found = _md5()
    try:
        path.parent.mkdir(exist_ok=True)
        with urllib.request.urlopen(url, timeout=60) as answer, part.open('wb') as file:
            while block := answer.read(2**20):
                found.update(block)
                file.write(block)
        if found.hexdigest() != md5:
            raise OSError(f'what came has the MD5 {found.hexdigest()}')
        part.replace(path)
    except (OSError, http.client.HTTPException) as error:
        cause = ' '.join(str(error).split()) or type(error).__name__
        raise ValueError(
            f'{wanted} could not be downloaded to {path.parent}: {cause}; by hand: {_command(path.name)}'
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


def _command(file: str) -> str:
    return f'curl -LO {RECORD}/files/{file}'


def _package_table() -> dict[str, dict[str, Any]] | None:
    """Returns the package's own table, without importing PyTorch as the package does; None: not installed."""
    spec = importlib.util.find_spec('medmnist')
    if spec is None or not spec.submodule_search_locations:
        return None
    return runpy.run_path(str(pathlib.Path(spec.submodule_search_locations[0]) / 'info.py'))['INFO']


def _labels(path: paths.Path, key: str, shape: tuple[int, ...]) -> list[int]:
    """Returns a split's labels, once they and the volumes, of which it reads the header, have their shapes."""
    with paths.local(path) as file:
        with zipfile.ZipFile(file) as archive, archive.open(f'{key}_images.npy') as member:
            np.lib.format.read_magic(member)
            found, _, _ = np.lib.format.read_array_header_1_0(member)
        with np.load(file, allow_pickle=False) as arrays:
            labels = arrays[f'{key}_labels']
    for name, value, must in (('images', found, shape), ('labels', labels.shape, (shape[0], 1))):
        if value != must:
            raise ValueError(f'{path}: {key}_{name} has the shape {value}, but must have {must}')
    return labels[:, 0].tolist()


_LOADING = threading.Lock()  # threads that read the first volumes together load the file once


@functools.lru_cache(maxsize=len(SPLITS))
def _load(path: paths.Path, key: str) -> UInt8[np.ndarray, 'n t h w']:
    with paths.local(path) as file, np.load(file, allow_pickle=False) as arrays:
        return arrays[f'{key}_images']


def _read(
    path: paths.Path, key: str, index: int, indices: Integer[np.ndarray, ' t']
) -> UInt8[np.ndarray, 't h w 1']:
    with _LOADING:
        volumes = _load(path, key)
    return volumes[index, indices][..., np.newaxis]
