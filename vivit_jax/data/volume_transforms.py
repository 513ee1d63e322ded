"""What happens to the voxels of a volume in training: mirroring, turning, small affine maps, crops, intensities.

A volume is a clip `[t h w c]` whose time is depth; axes are named depth, height and width, in this order. As in
`transforms`, a transform is called with (clip, numpy Generator) and returns a clip of the same shape and dtype:
uint8 in [0, 255] stays uint8, rounded where it is computed with; float32 in [-1, 1] stays float32.
"""

import dataclasses

import numpy as np
from jaxtyping import Float32, Float64, Shaped
from scipy import ndimage

from vivit_jax.data.resample import linear_weights, resample
from vivit_jax.data.transforms import Transform

Volume = Shaped[np.ndarray, 't h w c']
PerAxis = tuple[float, float, float]  # of depth, height and width
AXES = ('depth', 'height', 'width')


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomFlips:
    """Mirrors each axis with a probability of its own, in [0, 1].

    An odd number of mirrored axes makes a right organ a left one.
    """

    probabilities: PerAxis

    def __post_init__(self):
        _check_probabilities('flip', self.probabilities)

    def __call__(self, clip: Volume, rng: np.random.Generator) -> Volume:
        """Returns a view of the clip."""
        flipped = rng.random(3) < self.probabilities
        return clip[tuple(slice(None, None, -1 if flip else 1) for flip in flipped)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomTurns:
    """Turns by 90, 180 or 270 degrees about each axis, one after another, with a probability of its own.

    With (0.75, 0.75, 0.75), all multiples of 90 degrees about an axis are equally likely.
    """

    probabilities: PerAxis

    def __post_init__(self):
        _check_probabilities('rotate90', self.probabilities)

    def __call__(self, clip: Volume, rng: np.random.Generator) -> Volume:
        """Returns a view of the clip; the two axes of a plane that turns must be equally long."""
        turned = rng.random(3) < self.probabilities
        quarters = rng.integers(1, 4, size=3)
        for axis in np.flatnonzero(turned):
            clip = np.rot90(clip, quarters[axis], axes=_plane(int(axis)))
        return clip


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomAffine:
    """Rotates, scales and shifts a little about the centre, interpolating linearly; borders are repeated.

    Attributes:
        probability: How often it happens, in [0, 1].
        rotation: Largest angles about depth, height and width, in degrees; between voxels, whatever they measure.
        scale: Range of the factor by which everything becomes larger, the same along all axes.
        translation: Largest shift along each axis, as a share of its length.
    """

    probability: float
    rotation: PerAxis
    scale: tuple[float, float]
    translation: float

    def __post_init__(self):
        _check_probabilities('affine', (self.probability,))
        if min(self.rotation) < 0:
            raise ValueError(f'{KEYS}.rotation={self.rotation}: must be degrees of at least 0')
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f'{KEYS}.scale={self.scale}: must be (low, high) with 0 < low <= high')
        if not 0 <= self.translation < 1:
            raise ValueError(f'{KEYS}.translation={self.translation}: must be a share, in [0, 1)')

    def __call__(self, clip: Volume, rng: np.random.Generator) -> Volume:
        """Returns another clip, or the same."""
        if rng.random() >= self.probability:
            return clip
        angles = np.radians(rng.uniform(-1, 1, size=3) * self.rotation)
        factor = rng.uniform(*self.scale)
        sides = np.array(clip.shape[:3])
        shift = rng.uniform(-1, 1, size=3) * self.translation * sides
        # From places in the result to places in the clip.
        matrix = np.eye(3) / factor
        for axis, angle in enumerate(angles):
            matrix = _rotation(axis, angle) @ matrix
        centre = (sides - 1) / 2
        offset = centre - matrix @ (centre + shift)
        moved = np.empty_like(clip, order='C')
        for channel in range(clip.shape[3]):
            ndimage.affine_transform(
                clip[..., channel], matrix, offset, output=moved[..., channel], order=1, mode='nearest'
            )
        return moved


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomResizedCrop:
    """Cuts out a box and brings it back to the size of the whole, interpolating linearly.

    Attributes:
        shares: Range of the box's length along each axis, as a share of the axis; drawn for each axis.
    """

    shares: tuple[float, float]

    def __post_init__(self):
        if not 0 < self.shares[0] <= self.shares[1] <= 1:
            raise ValueError(
                f'{KEYS}.resized_crop={self.shares}: must be (low, high) with 0 < low <= high <= 1'
            )

    def __call__(self, clip: Volume, rng: np.random.Generator) -> Volume:
        """Returns another clip."""
        sides = np.array(clip.shape[:3])
        lengths = rng.uniform(*self.shares, size=3) * sides
        starts = rng.uniform(size=3) * (sides - lengths)
        values: np.ndarray = clip.astype(np.float32)
        for axis, (side, start, length) in enumerate(zip(sides, starts, lengths, strict=True)):
            weights = linear_weights(int(side), int(side), start=start, length=length)
            values = resample(values, weights, axis)
        return _as(values, clip.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomIntensity:
    """Scales and shifts all intensities and adds noise; what leaves the range of intensities is cut off.

    Amounts count the range from the darkest (0; stored as 0 or -1) to the brightest (1; stored as 255 or 1).

    Attributes:
        scale: Largest change of the factor of the intensities, in [0, 1): it is drawn from 1 - scale to 1 + scale.
        shift: Largest amount that is added or taken, in [0, 1].
        noise: Largest standard deviation of the normal noise in every voxel, in [0, 1]; drawn from 0 up.
    """

    scale: float = 0.0
    shift: float = 0.0
    noise: float = 0.0

    def __post_init__(self):
        for name, value in (('scale', self.scale), ('shift', self.shift)):
            if not 0 <= value < 1:
                raise ValueError(f'{KEYS}.intensity_{name}={value}: must be in [0, 1)')
        if not 0 <= self.noise < 1:
            raise ValueError(f'{KEYS}.noise={self.noise}: must be in [0, 1)')

    def __call__(self, clip: Volume, rng: np.random.Generator) -> Volume:
        """Returns another clip."""
        low, high = (0, 255) if clip.dtype == np.uint8 else (-1, 1)
        factor, shift = 1 + rng.uniform(-self.scale, self.scale), rng.uniform(-self.shift, self.shift)
        noise = rng.uniform(0, self.noise)
        values = clip.astype(np.float32)
        values *= np.float32(factor)
        values += np.float32(low * (1 - factor) + shift * (high - low))
        if self.noise:
            values += rng.standard_normal(values.shape, np.float32) * np.float32(noise * (high - low))
        return _as(np.clip(values, low, high, out=values), clip.dtype)


KEYS = 'config.data.volume_augment'


def volume_transforms(
    *,
    size: tuple[int, int, int],
    videos: bool,
    flip: PerAxis,
    rotate90: PerAxis,
    affine: float,
    rotation: PerAxis,
    scale: tuple[float, float],
    translation: float,
    resized_crop: tuple[float, float],
    intensity_scale: float,
    intensity_shift: float,
    noise: float,
) -> tuple[Transform, ...]:
    """Puts together the transforms of a training volume, in this order, leaving out what is switched off.

    Args:
        size: (depth, height, width) of a volume in voxels.
        videos: Frames are of time: what mixes it with space is refused. Mirroring depth runs a video backwards.
        flip: Probabilities of mirroring; 0 is off.
        rotate90: Probabilities of turning about each axis; 0 is off.
        affine: Probability of an affine map; 0 is off.
        rotation: See `RandomAffine`, as the next two.
        scale: Of the affine map.
        translation: Of the affine map.
        resized_crop: See `RandomResizedCrop`; (1, 1) is off.
        intensity_scale: See `RandomIntensity`, as the next two; all 0 is off.
        intensity_shift: As above.
        noise: As above.

    Returns:
        Transforms for `transforms.apply`, after those of `transforms.training_transforms`.

    Raises:
        ValueError: If a value is out of its range or does not go with the data; it names the key.
    """
    chain: list[Transform] = [
        RandomFlips(probabilities=flip),
        RandomTurns(probabilities=rotate90),
        RandomAffine(probability=affine, rotation=rotation, scale=scale, translation=translation),
        RandomResizedCrop(shares=resized_crop),
        RandomIntensity(scale=intensity_scale, shift=intensity_shift, noise=noise),
    ]
    wanted = (any(flip), any(rotate90), affine > 0, resized_crop != (1, 1))
    for key, value, on in zip(
        ('rotate90', 'affine', 'resized_crop'), (rotate90, affine, resized_crop), wanted[1:], strict=True
    ):
        if videos and on:
            raise ValueError(
                f'{KEYS}.{key}={value} would mix time with space: it is for volumes (data.source medmnist or '
                'volumes); flip, intensity_scale, intensity_shift and noise go with videos, too'
            )
    for axis, probability in enumerate(rotate90):
        one, other = _plane(axis)
        if probability and size[one] != size[other]:
            raise ValueError(
                f'{KEYS}.rotate90={rotate90}: about {AXES[axis]} only where {AXES[one]} and {AXES[other]} are '
                f'equally long, but they are {size[one]} and {size[other]}'
            )
    return tuple(
        transform
        for transform, on in zip(
            chain, (*wanted, any((intensity_scale, intensity_shift, noise))), strict=True
        )
        if on
    )


def _plane(axis: int) -> tuple[int, int]:
    """Returns the two axes that turn when something turns about an axis."""
    one, other = (other for other in range(3) if other != axis)
    return one, other


def _rotation(axis: int, angle: float) -> Float64[np.ndarray, '3 3']:
    one, other = _plane(axis)
    matrix = np.eye(3)
    matrix[[one, other], [one, other]] = np.cos(angle)
    matrix[one, other], matrix[other, one] = -np.sin(angle), np.sin(angle)
    return matrix


def _as(values: Float32[np.ndarray, 't h w c'], dtype: np.dtype) -> Volume:
    """Returns values that are in range as what they were, uint8 rounded."""
    return np.rint(values).astype(np.uint8) if dtype == np.uint8 else values


def _check_probabilities(name: str, values: tuple[float, ...]) -> None:
    if not all(0 <= value <= 1 for value in values):
        raise ValueError(
            f'{KEYS}.{name}={values if len(values) > 1 else values[0]}: must be probabilities, in [0, 1]'
        )
