"""Scans as their files store them: NIfTI, and NumPy's own formats.

    .nii, .nii.gz    NIfTI-1 and -2, turned so that slices lie as in a DICOM series, whatever the file's own axes are
    .npy, .npz       [depth height width]; of an .npz the array `volume`, else `image`, else the first volume in it

Opening a file reads its header; voxels of files that are not compressed are read as they are used.
"""

import dataclasses
import gzip
import math
import os
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Shaped

from vivit_jax.data.record import UnreadableExample

ENDINGS = ('.nii', '.nii.gz', '.npy', '.npz')
MAX_VOXELS = 2**29  # of a file; 1 GiB of 16 bits: a header that claims more is taken for damaged
MAX_SIDE = 2**15  # voxels along an axis
MAX_HEADER = 2**24  # bytes before the voxels

# Where depth, height and width of each kind of slice go to, in letters of the patient's left, right, anterior,
# posterior, superior and inferior: axial slices lie as in DICOM and on radiologists' screens.
SLICES = {'axial': 'SPL', 'coronal': 'PIL', 'sagittal': 'LIP'}
MILLIMETRES = {'meter': 1000.0, 'mm': 1.0, 'micron': 0.001}

Volume = Shaped[np.ndarray, 'd h w']


class NotInstalled(ValueError):
    """A package is missing, whatever the file is like."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stored:
    """A scan as its file stores it, slices first.

    Attributes:
        load: Returns the voxels `[d h w]`; those of an uncompressed file are read as they are used.
        spacing: Millimetres between voxels along depth, height and width; None: the file does not tell.
        slope: Factor from what is stored to intensities.
        intercept: Added to them.
        codec: Format and type.
    """

    load: Callable[[], Volume]
    spacing: tuple[float, ...] | None
    slope: float = 1.0
    intercept: float = 0.0
    codec: str


def open_scan(path: str, *, slices: str, depth_axis: int) -> Stored:
    """Reads a file's header.

    Args:
        path: A file of one of the `ENDINGS`.
        slices: Of NIfTI files: `axial`, `coronal` or `sagittal` ones follow one another.
        depth_axis: Of NumPy arrays: the axis along which slices follow one another, 0, 1 or 2.

    Raises:
        UnreadableExample: With the cause, if the file cannot be used.
        NotInstalled: If the package that reads it is missing.
    """
    try:
        if path.lower().endswith('.npy'):
            return _open_npy(path, depth_axis)
        if path.lower().endswith('.npz'):
            return _open_npz(path, depth_axis)
        return _open_nifti(path, slices)
    except (UnreadableExample, NotInstalled):
        raise
    except Exception as error:  # damaged headers end in errors of every kind
        raise UnreadableExample(in_words(error)) from error


def _open_nifti(path: str, slices: str) -> Stored:
    try:
        import nibabel
    except ImportError as error:
        raise NotInstalled(
            f"{path}: NIfTI files need the package nibabel: pip install 'vivit_jax[volumes]'"
        ) from error
    # What it mends in a header it would tell at every reading, and not of which file.
    nibabel.imageglobals.logger.setLevel('CRITICAL')
    try:
        image: Any = nibabel.load(path)
    except nibabel.filebasedimages.ImageFileError as error:
        raise UnreadableExample('not a NIfTI file') from error
    if not isinstance(image, nibabel.Nifti1Pair):
        raise UnreadableExample(f'not a NIfTI file but {type(image).__name__}')
    proxy: Any = image.dataobj
    shape, dtype = image.shape, image.get_data_dtype()
    axes = _check(shape, dtype)
    begins, earliest = int(proxy.offset), image.header.single_vox_offset
    if not earliest <= begins <= MAX_HEADER:
        raise UnreadableExample(
            f'claims that voxels begin at byte {begins:,}, not in [{earliest}, {MAX_HEADER:,}]'
        )
    _check_length(path, begins + math.prod(shape) * dtype.itemsize)
    known = bool(np.isfinite(image.affine).all())
    own = nibabel.io_orientation(image.affine if known else np.zeros((4, 4)))
    if not np.isfinite(own).all():
        raise UnreadableExample('its affine matrix does not tell which axis is which')
    turn = nibabel.orientations.ornt_transform(own, nibabel.orientations.axcodes2ornt(SLICES[slices]))
    spacing = None
    if _tells_spacing(image):
        unit = MILLIMETRES.get(image.header.get_xyzt_units()[0], 1.0)
        sizes = nibabel.affines.voxel_sizes(image.affine) * unit
        spacing = tuple(float(size) for _, size in sorted(zip(turn[:, 0], sizes, strict=True)))

    def load() -> Volume:
        if path.lower().endswith('.gz'):
            voxels = _unpacked(path, begins, math.prod(axes), dtype).reshape(axes, order='F')
        else:
            voxels = np.asarray(proxy.get_unscaled()).reshape(axes)
        return nibabel.apply_orientation(voxels, turn)

    return Stored(
        load=load,
        spacing=spacing,
        slope=float(proxy.slope),
        intercept=float(proxy.inter),
        codec=f'nifti {dtype.name}',
    )


def _tells_spacing(image: Any) -> bool:
    """Tells whether the spacing is the file's own: what is 0 in a header without a matrix, nibabel takes for 1."""
    if image.header['sform_code'] > 0:
        return True
    with image.file_map['image'].get_prepare_fileobj() as file:
        raw = type(image.header).from_fileobj(file, check=False)
    return bool((raw['pixdim'][1:4] != 0).all())


def _check_length(path: str, needed: int) -> None:
    """Raises where a file holds less than its header claims; compressed ones are as long as their end says."""
    if not path.lower().endswith('.gz'):
        length = os.path.getsize(path)
    else:
        with open(path, 'rb') as file:
            file.seek(-4, os.SEEK_END)
            length = int.from_bytes(file.read(), 'little')
        if length == needed % 2**32:
            return
        # Not written in one go, with something behind the voxels, or cut off: only reading it all can tell.
        with gzip.open(path) as unpacked:
            length = 0
            while length < needed and (block := unpacked.read(2**20)):
                length += len(block)
    if length < needed:
        raise UnreadableExample(f'cut off: {length:,} of {needed:,} bytes are there')


def _unpacked(path: str, begins: int, count: int, dtype: np.dtype) -> np.ndarray:
    """Reads numbers from a compressed file, and on to its end, where its checksum is."""
    values = np.empty(count, dtype)
    left = values.view(np.uint8).data
    with gzip.open(path) as file:
        file.read(begins)
        while left:
            read = file.readinto(left)
            if not read:
                raise UnreadableExample(f'cut off: {len(left):,} bytes are missing')
            left = left[read:]
        file.read(MAX_HEADER)  # what may lie behind the voxels
    return values


def _open_npy(path: str, depth_axis: int) -> Stored:
    with open(path, 'rb') as file:
        axes, dtype = _header(file)
        _check_length(path, file.tell() + math.prod(axes) * dtype.itemsize)

    def load() -> Volume:
        voxels = np.load(path, mmap_mode='r', allow_pickle=False).reshape(axes)
        return np.moveaxis(voxels, depth_axis, 0)

    return Stored(load=load, spacing=None, codec=f'npy {dtype.name}')


def _open_npz(path: str, depth_axis: int) -> Stored:
    with zipfile.ZipFile(path) as archive:
        arrays = {}
        causes = []
        for info in archive.infolist():
            try:
                with archive.open(info) as file:
                    axes, dtype = _header(file)
                    needed = file.tell() + math.prod(axes) * dtype.itemsize
                if info.file_size < needed:
                    raise UnreadableExample(f'cut off: {info.file_size:,} of {needed:,} bytes are there')
                arrays[info.filename] = (axes, dtype)
            except UnreadableExample as error:
                causes.append(f'{info.filename}: {error}')
    if not arrays:
        raise UnreadableExample(f'holds no volume: {"; ".join(causes[:3]) or "it is empty"}')
    name = next((name for name in ('volume.npy', 'image.npy') if name in arrays), next(iter(arrays)))
    axes, dtype = arrays[name]

    def load() -> Volume:
        with zipfile.ZipFile(path) as archive, archive.open(name) as file:
            voxels = np.lib.format.read_array(file, allow_pickle=False)
        return np.moveaxis(voxels.reshape(axes), depth_axis, 0)

    return Stored(load=load, spacing=None, codec=f'npz {dtype.name}')


def _header(file: BinaryIO | Any) -> tuple[tuple[int, ...], np.dtype]:
    """Reads axes and type of a volume in NumPy's format, and leaves the file where the voxels begin."""
    try:
        version = np.lib.format.read_magic(file)
        headers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        shape, _, dtype = headers[version](file)
    except (ValueError, KeyError) as error:
        raise UnreadableExample('not an array in the format of NumPy') from error
    return _check(shape, dtype, channels_first=True), dtype


def _check(shape: tuple[int, ...], dtype: np.dtype, *, channels_first: bool = False) -> tuple[int, ...]:
    """Returns the three axes of a volume, without others of length 1; raises where it is no volume of numbers."""
    written = 'x'.join(map(str, shape))
    if dtype.kind not in 'buif':
        what = 'colours or records' if dtype.names else f'the type {dtype}'
        raise UnreadableExample(f'stores {what}: voxels must be whole or real numbers')
    axes = shape
    while len(axes) > 3 and axes[-1] == 1:
        axes = axes[:-1]
    if channels_first and len(axes) == 4 and axes[0] == 1:
        axes = axes[1:]
    if len(axes) != 3:
        raise UnreadableExample(f'has {len(axes)} axes ({written}): one volume has 3')
    if min(axes) < 1:
        raise UnreadableExample(f'has no voxels ({written})')
    if math.prod(axes) > MAX_VOXELS:
        raise UnreadableExample(f'claims {math.prod(axes):,} voxels ({written}), more than {MAX_VOXELS:,}')
    if max(axes) > MAX_SIDE:
        raise UnreadableExample(f'has {max(axes):,} voxels along an axis ({written}), more than {MAX_SIDE:,}')
    return axes


def in_words(error: Exception) -> str:
    """Returns what an error says, in one line."""
    return ' '.join((getattr(error, 'strerror', None) or str(error) or type(error).__name__).split())
