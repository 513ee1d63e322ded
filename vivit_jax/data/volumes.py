"""Scans on disk, each brought to one size and range: a volume is a clip whose time is depth.

What happens to the voxels, in this order: the file's own slope and intercept; NaN becomes the lowest value; a window
or percentiles of intensity are brought to [-1, 1], what lies outside is cut off; resampling; cropping or padding.
Slices are worked on one by one, so that a scan takes little more memory than what its file takes unpacked.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np
from jaxtyping import Float32, Integer
from scipy import sparse

from vivit_jax.data.files.scans import ENDINGS, MAX_VOXELS, SLICES, Stored, Volume, in_words, open_scan
from vivit_jax.data.files.time_limit import TimeLimit
from vivit_jax.data.listed import Kind
from vivit_jax.data.record import Found, UnreadableExample
from vivit_jax.data.resample import linear_weights, resample

SAMPLED = 2**20  # voxels that percentiles are taken of

Prepared = Float32[np.ndarray, 'd h w']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preparation:
    """How a scan becomes a volume for the model; keys of `config.data.volumes`.

    Attributes:
        size: Voxels of every volume along depth, height and width, at least 1.
        fit: How it gets there: `resample` (each axis to its size, whatever this does to proportions) or `pad`
            (centred; what is too much is cut off, what is missing is darkest).
        spacing: Millimetres between voxels that NIfTI files are resampled to before they are padded; 0: as stored.
        slices: Of NIfTI files: `axial`, `coronal` or `sagittal` ones follow one another.
        depth_axis: Of NumPy arrays: the axis along which slices follow one another, 0, 1 or 2.
        intensity: What becomes [-1, 1]: `window` or `percentiles`.
        window: (low, high) in the file's units, as Hounsfield's.
        percentiles: (low, high) of each scan's voxels, in [0, 100].
    """

    size: tuple[int, int, int]
    fit: str = 'resample'
    spacing: float = 0.0
    slices: str = 'axial'
    depth_axis: int = 0
    intensity: str = 'percentiles'
    window: tuple[float, float] = (-1000.0, 1000.0)
    percentiles: tuple[float, float] = (0.5, 99.5)

    def __post_init__(self):
        for key, choices in (
            ('fit', ('resample', 'pad')),
            ('slices', tuple(SLICES)),
            ('depth_axis', (0, 1, 2)),
            ('intensity', ('window', 'percentiles')),
        ):
            if getattr(self, key) not in choices:
                raise _wrong(key, getattr(self, key), f'choose one of {", ".join(map(str, choices))}')
        if min(self.size) < 1 or math.prod(self.size) > MAX_VOXELS:
            raise _wrong('size', self.size, f'must be at least 1 voxel each, at most {MAX_VOXELS:,} in all')
        if not self.window[0] < self.window[1] or not np.isfinite(self.window).all():
            raise _wrong('window', self.window, 'must be (low, high) with low < high')
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise _wrong('percentiles', self.percentiles, 'must be (low, high) with 0 <= low < high <= 100')
        if not 0 <= self.spacing < math.inf:
            raise _wrong('spacing', self.spacing, 'must be millimetres above 0, or 0 for voxels as stored')
        if self.spacing and self.fit == 'resample':
            raise _wrong('spacing', self.spacing, "needs fit='pad': fit='resample' stretches what it gave")


def _wrong(key: str, value: object, allowed: str) -> ValueError:
    return ValueError(f'config.data.volumes.{key}={value!r}: {allowed}')


def kind(*, clip: tuple[int, int, int], size: tuple[int, int, int], **options: Any) -> Kind:
    """Returns the kind of files that volumes are, for `ListedFiles`.

    Args:
        clip: (depth, height, width) of what the model sees, in voxels.
        size: See `Preparation`; no smaller than the clip's, for which 0 stands.
        **options: See `Preparation`.

    Raises:
        ValueError: If an option is out of its range; it names the key.
    """
    whole = (size[0] or clip[0], size[1] or clip[1], size[2] or clip[2])
    preparation = Preparation(size=whole, **options)
    if any(own < seen for own, seen in zip(whole, clip, strict=True)):
        raise _wrong('size', size, f'must be at least what the model sees, {clip}, or 0 for as much')
    name = f'volumes of {"x".join(map(str, whole))} voxels'
    return Kind(
        name=f'{name} {preparation.spacing:g} mm apart' if preparation.spacing else name,
        endings=ENDINGS,
        channels=1,
        probe=functools.partial(probe, preparation=preparation),
        read=functools.partial(read, preparation=preparation),
    )


def probe(path: str, *, preparation: Preparation, seconds: float = 0.0) -> Found | str:
    """Returns what a file holds once it is prepared, or why it cannot be used; reads its header only."""
    try:
        codec = _open(path, preparation, seconds).codec
    except UnreadableExample as error:
        return str(error)
    depth, height, width = preparation.size
    return Found(num_frames=depth, frame_size=(height, width), seconds=None, codec=codec)


def read(
    path: str,
    found: Found,
    indices: Integer[np.ndarray, ' t'],
    *,
    preparation: Preparation,
    seconds: float = 0.0,
) -> Float32[np.ndarray, 't h w 1']:
    """Reads slices of a prepared volume, in [-1, 1].

    Args:
        path: A file.
        found: What `probe` found in it.
        indices: Places in depth, in `[0, preparation.size[0])`.
        preparation: How the scan becomes a volume.
        seconds: See `time_limit`; 0: it is never given up.

    Raises:
        UnreadableExample: If the file cannot be read, or there is nothing to see in it.
    """
    return prepare(_open(path, preparation, seconds), preparation)[indices][..., np.newaxis]


def _open(path: str, preparation: Preparation, seconds: float) -> Stored:
    stored = open_scan(
        path,
        slices=preparation.slices,
        depth_axis=preparation.depth_axis,
        limit=TimeLimit(seconds),
    )
    if preparation.spacing and stored.spacing is None:
        raise UnreadableExample(
            'does not tell its spacing (NumPy files never do): set config.data.volumes.spacing=0'
        )
    return stored


def prepare(stored: Stored, preparation: Preparation) -> Prepared:
    """Loads a scan and brings it to its intensities and size.

    Returns:
        Values in [-1, 1] of `preparation.size`.

    Raises:
        UnreadableExample: If the voxels cannot be read, none of them is a number, or all are the same.
    """
    try:
        voxels = stored.load()
        low, high = _intensities(voxels, stored, preparation)
        with np.errstate(over='ignore', divide='ignore'):
            span = 2 / np.float64(high - low)
            factors = np.array([stored.slope, stored.intercept, low, high, span]).astype(np.float32)
        if not np.isfinite(factors).all():  # a damaged slope; nothing but NaN would come of it
            raise UnreadableExample(
                f'its slope {stored.slope:g} and intercept {stored.intercept:g} lead out of the range of numbers'
            )
        along = [
            _along(old, new, step, fit=preparation.fit)
            for old, new, step in zip(
                voxels.shape, preparation.size, _steps(voxels.shape, stored, preparation), strict=True
            )
        ]
        (depth, rows, columns) = along
        used = voxels[depth.source, rows.source, columns.source]
        planes = np.empty((len(used), rows.weights.shape[0], columns.weights.shape[0]), np.float32)
        for place, plane in enumerate(used):
            fewer_rows = resample(_scaled(plane, stored, low, high), rows.weights, 0)
            planes[place] = resample(fewer_rows, columns.weights, 1)
    except UnreadableExample:
        raise
    except Exception as error:  # compressed files can be damaged anywhere
        raise UnreadableExample(in_words(error)) from error
    prepared = np.full(preparation.size, -1, np.float32)
    prepared[tuple(axis.target for axis in along)] = resample(planes, depth.weights, 0)
    return np.clip(prepared, -1, 1, out=prepared)  # weights add up to 1 but for rounding


def _intensities(voxels: Volume, stored: Stored, preparation: Preparation) -> tuple[float, float]:
    """Returns what becomes -1 and 1."""
    every = max(1, voxels.size // SAMPLED)
    while math.gcd(every, voxels.size) > 1:  # no multiple of a side, else whole rows would be left out
        every += 1
    places = np.unravel_index(np.arange(0, voxels.size, every), voxels.shape)
    some = voxels[places].astype(np.float64)
    some = some[np.isfinite(some)]
    if not len(some) or some.min() == some.max():
        some = np.zeros(0)
        for plane in voxels:  # one by one, as all of them again would take as much memory again
            some = np.union1d(some, plane[np.isfinite(plane)].astype(np.float64))
    if not len(some):
        raise UnreadableExample('none of its voxels is a finite number')
    some = some * stored.slope + stored.intercept
    if some.min() == some.max():
        raise UnreadableExample(f'all voxels are {some[0]:g}: there is nothing to see')
    if preparation.intensity == 'window':
        return preparation.window
    low, high = np.percentile(some, preparation.percentiles).tolist()
    # A small thing on an even ground: percentiles can both be the ground's.
    return (low, high) if low < high else (float(some.min()), float(some.max()))


def _scaled(plane: np.ndarray, stored: Stored, low: float, high: float) -> Float32[np.ndarray, 'h w']:
    """Brings stored values to [-1, 1]; NaN becomes -1."""
    values: np.ndarray = plane.astype(np.result_type(plane, np.float32))
    with np.errstate(over='ignore', invalid='ignore'):
        values = (values * stored.slope + (stored.intercept - low)) * (2 / (high - low)) - 1
    np.clip(values, -1, 1, out=values)
    if plane.dtype.kind == 'f':
        values[np.isnan(values)] = -1
    return values.astype(np.float32, copy=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Along:
    """What happens along an axis: `weights` map the voxels in `source` to those in `target`."""

    weights: sparse.csr_array
    source: slice
    target: slice


def _steps(shape: tuple[int, ...], stored: Stored, preparation: Preparation) -> list[float]:
    """Returns, of each axis, how many stored voxels one of the result is long."""
    if preparation.fit == 'resample':
        return [old / new for old, new in zip(shape, preparation.size, strict=True)]
    if not preparation.spacing or stored.spacing is None:
        return [1.0] * 3
    return [preparation.spacing / own for own in stored.spacing]


def _along(old: int, new: int, step: float, *, fit: str) -> _Along:
    """Works out an axis of `old` voxels that becomes one of `new`, each `step` old ones long, about the centre."""
    there = new if fit == 'resample' else max(1, round(old / step))
    step = old / there  # a whole number of voxels, so a hair more or less
    kept = min(there, new)
    first = (there - kept) // 2
    weights = linear_weights(old, kept, start=first * step, length=kept * step)
    source = slice(int(weights.indices.min()), int(weights.indices.max()) + 1)
    begins = (new - kept) // 2
    return _Along(weights=weights[:, source], source=source, target=slice(begins, begins + kept))
