"""Scans as their files store them: NIfTI, and NumPy's own formats.

    .nii, .nii.gz    NIfTI-1 and -2, turned so that slices lie as in a DICOM series, whatever the file's own axes are
    .npy, .npz       [depth height width]; of an .npz the array `volume`, else `image`, else the first volume in it

Opening a file reads its header; voxels of files that are not compressed are read as they are used.
"""

import dataclasses
import gzip
import math
import os
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Shaped

from vivit_jax.data.files.time_limit import TimeLimit
from vivit_jax.data.record import UnreadableExample

ENDINGS = ('.nii', '.nii.gz', '.npy', '.npz')
MAX_VOXELS = 2**29  # of a file; 1 GiB of 16 bits: a header that claims more is taken for damaged
MAX_SIDE = 2**15  # voxels along an axis
MAX_HEADER = 2**24  # bytes before the voxels
# Scans are stored in a half or a tenth of their bytes, masks in far less: what is larger and shrinks more is a bomb.
MAX_RATIO, FREE_BYTES = 200, 2**28
MAX_NUMPY_HEADER = 2**16  # bytes

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


def open_scan(path: str, *, slices: str, depth_axis: int, limit: TimeLimit | None = None) -> Stored:
    """Reads a file's header.

    Args:
        path: A file of one of the `ENDINGS`.
        slices: Of NIfTI files: `axial`, `coronal` or `sagittal` ones follow one another.
        depth_axis: Of NumPy arrays: the axis along which slices follow one another, 0, 1 or 2.
        limit: For both the header and, later, the voxels; None: there is none.

    Raises:
        UnreadableExample: With the cause, if the file cannot be used.
        NotInstalled: If the package that reads it is missing.
    """
    limit = limit or TimeLimit(0)
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe would be waited on for ever
            raise UnreadableExample('is no regular file')
        if path.lower().endswith('.npy'):
            return _open_npy(path, depth_axis)
        if path.lower().endswith('.npz'):
            return _open_npz(path, depth_axis)
        if path.lower().endswith(ENDINGS):
            return _open_nifti(path, slices, limit)
        raise UnreadableExample('not a NIfTI file')  # by its name, which is what tells nibabel
    except (UnreadableExample, NotInstalled):
        raise
    except Exception as error:  # damaged headers end in errors of every kind
        raise UnreadableExample(in_words(error)) from error


def _open_nifti(path: str, slices: str, limit: TimeLimit) -> Stored:
    try:
        import nibabel
    except ImportError as error:
        raise NotInstalled(
            f"{path}: NIfTI files need the package nibabel: pip install 'vivit_jax[volumes]'"
        ) from error
    _check_beginning(path)
    # What it mends in a header it would tell at every reading, and not of which file.
    nibabel.imageglobals.logger.setLevel('CRITICAL')
    warnings.filterwarnings('ignore', module='nibabel')
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
        raise _begins_wrong(begins, earliest)
    _check_length(path, begins + math.prod(shape) * dtype.itemsize, limit)
    known = bool(np.isfinite(image.affine).all())
    with np.errstate(all='ignore'):
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
            voxels = _unpacked(path, begins, math.prod(axes), dtype, limit).reshape(axes, order='F')
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


def _check_beginning(path: str) -> None:
    """Raises where a file claims that its voxels begin too late, before nibabel reads all that is before them."""
    try:
        with gzip.open(path) if path.lower().endswith('.gz') else open(path, 'rb') as file:
            head = file.read(540)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return  # nibabel tells
    # NIfTI-1 and -2: the length of their headers, and where in them the beginning stands.
    for size, place, kind in ((348, 108, 'f'), (540, 168, 'q')):
        for order in '<>':
            if len(head) >= size and struct.unpack_from(f'{order}i', head)[0] == size:
                (begins,) = struct.unpack_from(f'{order}{kind}', head, place)
                if not begins <= MAX_HEADER:
                    raise _begins_wrong(begins, size + 4)


def _begins_wrong(begins: float, earliest: int) -> UnreadableExample:
    return UnreadableExample(
        f'claims that voxels begin at byte {begins:,.0f}, not in [{earliest}, {MAX_HEADER:,}]'
    )


def _check_bomb(needed: int, packed: int) -> None:
    """Raises where little claims to become much."""
    if needed > FREE_BYTES and needed > MAX_RATIO * packed:
        raise UnreadableExample(
            f'claims {needed:,} bytes in {packed:,}: no scan shrinks to a {MAX_RATIO}th; store it uncompressed'
        )


def _check_length(path: str, needed: int, limit: TimeLimit) -> None:
    """Raises where a file holds less than its header claims; compressed ones are as long as their end says."""
    if not path.lower().endswith('.gz'):
        length = os.path.getsize(path)
    else:
        with open(path, 'rb') as file:
            _check_bomb(needed, file.seek(-4, os.SEEK_END) + 4)
            length = int.from_bytes(file.read(), 'little')
        if length == needed % 2**32:
            return
        # Not written in one go, with something behind the voxels, or cut off: only reading it all can tell.
        with gzip.open(path) as unpacked:
            length = 0
            while length < needed and (block := unpacked.read(2**20)):
                length += len(block)
                limit.check()
    if length < needed:
        raise UnreadableExample(f'cut off: {length:,} of {needed:,} bytes are there')


def _unpacked(path: str, begins: int, count: int, dtype: np.dtype, limit: TimeLimit) -> np.ndarray:
    """Reads numbers from a compressed file, and on to its end, where its checksum is."""
    values = np.empty(count, dtype)
    left = values.view(np.uint8).data
    with gzip.open(path) as file:
        file.read(begins)
        while left:
            limit.check()
            read = file.readinto(left[: 2**24])
            if not read:
                raise UnreadableExample(f'cut off: {len(left):,} bytes are missing')
            left = left[read:]
        file.read(MAX_HEADER)  # what may lie behind the voxels
    return values


def _open_npy(path: str, depth_axis: int) -> Stored:
    with open(path, 'rb') as file:
        axes, dtype = _header(file)
        _check_length(path, file.tell() + math.prod(axes) * dtype.itemsize, TimeLimit(0))

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
                _check_bomb(needed, info.compress_size)
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
        # Of version 1 at most 64 kB, of version 2 up to 4 GB, which would be read before they are looked at.
        place = file.tell()
        if version != (1, 0) and int.from_bytes(file.read(4), 'little') > MAX_NUMPY_HEADER:
            raise UnreadableExample(f'claims a header of more than {MAX_NUMPY_HEADER:,} bytes')
        file.seek(place)
        shape, _, dtype = headers[version](file)
    except UnreadableExample:
        raise
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
