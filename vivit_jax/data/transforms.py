"""What happens to the pixels of a clip: resizing, cropping, flipping and colours, in numpy and OpenCV.

A transform is called with (clip `[t h w c]`, numpy Generator) and draws once: all frames of a clip are
treated alike, so that augmentation looks like another camera, not like motion. Geometric transforms take
uint8 in [0, 255] or float32 in [-1, 1], with 1 to 4 channels; colour needs uint8 RGB.

A flip and colours can be left to the training step: `leave_to_device` splits them off, their `draw` is called here
where they would have been, and `vivit_jax.augment` changes the pixels there.

Source: Arnab et al. 2021, section 4.1 and appendix, with the ranges of DMVR (`processors.py`), which Scenic
reads its videos with.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import ClassVar

import cv2
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Bool, Float32, Shaped, UInt8

from vivit_jax.data import randaugment

# Many clips are read at once, by threads or processes: threads of OpenCV's own would only compete with them.
cv2.setNumThreads(1)

Clip = Shaped[np.ndarray, 't h w c']
Resized = Shaped[np.ndarray, 't y x c']  # the same clip at another height and width
# A clip's frames on top of one another, in [0, 1]: OpenCV converts them in one call.
RGB = Float32[np.ndarray, 'th w 3']
Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]
# Brightness that is added, factors of saturation and contrast, turns of the hue: those of a clip left as it is.
UNCHANGED = (0.0, 1.0, 1.0, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResizeShortSide:
    """Resizes frames until their short side is `size`, with scale jitter, touching the pixels only once.

    Attributes:
        size: Short side of the frames in pixels, at least 1.
        jitter: Range that two factors, for the height and for the width, are drawn from uniformly and
            independently, as DMVR does (so the aspect ratio changes a little). (1, 1) keeps it.
        minimum: (height, width) in pixels that the frames are never smaller than: the crop that follows. A
            frame too small for it is enlarged further, keeping its aspect ratio, before the jitter.
    """

    size: int
    jitter: tuple[float, float] = (1.0, 1.0)
    minimum: tuple[int, int] = (1, 1)

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f'short side {self.size} must be at least 1 pixel')
        if not 0 < self.jitter[0] <= self.jitter[1]:
            raise ValueError(f'scale jitter {self.jitter} must be (low, high) with 0 < low <= high')

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Resized:
        """Returns the resized clip of the same dtype, or the clip itself where no size changes."""
        sides = clip.shape[1:3]
        scale = max(self.size / min(sides), *(m / s for m, s in zip(self.minimum, sides, strict=True)))
        factors = (1.0, 1.0) if self.jitter == (1.0, 1.0) else rng.uniform(*self.jitter, size=2)
        # A hair more than the product, so that a whole number is not rounded down to the one below.
        resized = (int(s * scale * f + 1e-6) for s, f in zip(sides, factors, strict=True))
        height, width = map(max, resized, self.minimum)
        return _resize(clip, height, width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """Cuts out a window of `size` (height, width) pixels, each position being equally likely."""

    size: tuple[int, int]

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Resized:
        """Returns the window; a ValueError if the frames are smaller."""
        free_y, free_x = _free(clip, self.size)
        return _window(clip, int(rng.integers(free_y + 1)), int(rng.integers(free_x + 1)), self.size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CentreCrop:
    """Cuts out the central window of `size` (height, width) pixels; half pixels are rounded towards 0."""

    size: tuple[int, int]

    def __call__(self, clip: Clip, rng: np.random.Generator | None = None) -> Resized:
        """Returns the window; a ValueError if the frames are smaller."""
        free_y, free_x = _free(clip, self.size)
        return _window(clip, free_y // 2, free_x // 2, self.size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomFlip:
    """Mirrors left and right with a probability in [0, 1]."""

    entry: ClassVar[str] = 'flip'  # of an example, with what was drawn, where the device does it
    probability: float

    def __post_init__(self):
        _check_probability('flip', self.probability)

    def draw(self, clip: Clip, rng: np.random.Generator) -> Bool[np.ndarray, '']:
        """Draws whether the clip is to be mirrored."""
        return np.asarray(rng.random() < self.probability)

    def __call__(self, clip: Clip, rng: np.random.Generator) -> Clip:
        """Returns the clip, mirrored or not."""
        if not self.draw(clip, rng):
            return clip
        # Copied row by row, then mirrored by OpenCV: eight times as fast as a view that numpy copies by the pixel.
        return cv2.flip(rearrange(clip, 't h w c -> (t h) w c'), 1).reshape(clip.shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColourJitter:
    """Changes brightness, saturation, contrast and hue, in DMVR's order, with a probability in [0, 1].

    Attributes:
        probability: How often it happens.
        brightness: Largest amount added to or taken from values in [0, 1].
        saturation: Range of the factor on HSV's saturation.
        contrast: Range of the factor on the distance to the mean of each frame and channel.
        hue: Largest turn of HSV's hue, in turns of the colour circle.
    """

    entry: ClassVar[str] = 'colour'
    probability: float
    brightness: float = 32 / 255
    saturation: tuple[float, float] = (0.6, 1.4)
    contrast: tuple[float, float] = (0.6, 1.4)
    hue: float = 0.2

    def __post_init__(self):
        _check_probability('colour_jitter', self.probability)

    def draw(self, clip: Clip, rng: np.random.Generator) -> Float32[np.ndarray, '4']:
        """Draws brightness, saturation, contrast and hue, see `UNCHANGED`; a ValueError as of a call."""
        return np.array(self._draw(clip, rng), np.float32)

    def __call__(self, clip: Clip, rng: np.random.Generator) -> UInt8[np.ndarray, 't h w 3']:
        """Returns the clip, changed or not; a ValueError if it is not uint8 with 3 channels."""
        drawn = self._draw(clip, rng)
        if drawn == UNCHANGED:
            return clip
        brightness, saturation, contrast, hue = drawn
        image = rearrange(clip, 't h w c -> (t h) w c') * np.float32(1 / 255)
        image += np.float32(brightness)
        image = _scale_saturation(np.clip(image, 0, 1, out=image), saturation)
        image = _scale_contrast(image, len(clip), contrast)
        image = _turn_hue(np.clip(image, 0, 1, out=image), hue)
        return cv2.convertScaleAbs(image, alpha=255).reshape(clip.shape)

    def _draw(self, clip: Clip, rng: np.random.Generator) -> tuple[float, ...]:
        randaugment.check_colour(clip)
        if rng.random() >= self.probability:
            return UNCHANGED
        ranges = ((-self.brightness, self.brightness), self.saturation, self.contrast, (-self.hue, self.hue))
        return tuple(rng.uniform(low, high) for low, high in ranges)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColourDrop:
    """Turns the clip grey, keeping its 3 channels, with a probability in [0, 1]."""

    entry: ClassVar[str] = 'grey'
    probability: float

    def __post_init__(self):
        _check_probability('colour_drop', self.probability)

    def draw(self, clip: Clip, rng: np.random.Generator) -> Bool[np.ndarray, '']:
        """Draws whether the clip is to be grey; a ValueError as of a call."""
        randaugment.check_colour(clip)
        return np.asarray(rng.random() < self.probability)

    def __call__(self, clip: Clip, rng: np.random.Generator) -> UInt8[np.ndarray, 't h w 3']:
        """Returns the clip, grey or not; a ValueError if it is not uint8 with 3 channels."""
        if not self.draw(clip, rng):
            return clip
        grey = cv2.cvtColor(rearrange(clip, 't h w c -> (t h) w c'), cv2.COLOR_RGB2GRAY)
        return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB).reshape(clip.shape)


# What the training step can do in the place of the host.
OnDevice = RandomFlip | ColourJitter | ColourDrop


def spatial_views(clip: Clip, size: tuple[int, int], views: int) -> Shaped[np.ndarray, 'v t y x c']:
    """Cuts out the windows that an evaluation averages over.

    Args:
        clip: Frames, their short side resized already.
        size: (height, width) of a window in pixels.
        views: 1 for the centre; 3 for start, centre and end along the longer side (left to right if square),
            in the middle of the other: Arnab et al. 2021, section 4.1, after SlowFast.

    Returns:
        The windows, in that order.

    Raises:
        ValueError: If the frames are smaller than the window or `views` is neither 1 nor 3.
    """
    if views == 1:
        return CentreCrop(size=size)(clip)[np.newaxis]
    if views != 3:
        raise ValueError(f'spatial views={views} must be one of: 1, 3')
    free_y, free_x = _free(clip, size)
    along_y = clip.shape[1] > clip.shape[2]
    windows = []
    for halves in (0, 1, 2):
        y, x = (free_y * halves // 2, free_x // 2) if along_y else (free_y // 2, free_x * halves // 2)
        windows.append(_window(clip, y, x, size))
    return np.stack(windows)


def training_transforms(
    *,
    short_side: int,
    crop: tuple[int, int],
    scale_jitter: tuple[float, float],
    flip: float,
    colour_jitter: float,
    colour_drop: float,
    randaugment_layers: int,
    randaugment_magnitude: float,
) -> tuple[Transform, ...]:
    """Puts together a training clip's transforms, in order, leaving out what is switched off.

    Args:
        short_side: Pixels that the short side is resized to before the jitter; 0 leaves frames as they are.
        crop: (height, width) of the random crop in pixels.
        scale_jitter: Range of the scale factors; (1, 1) is off. Paper: (0.9, 1.33).
        flip: Probability of mirroring; 0 is off. Paper: 0.5.
        colour_jitter: Probability of changing colours; 0 is off. Paper: 0.8 on Kinetics and Moments in Time.
        colour_drop: Probability of turning grey; 0 is off. Paper: 0.1 on the same.
        randaugment_layers: Operations a clip goes through; 0 is off. Paper: 2 on EPIC-Kitchens and SSv2.
        randaugment_magnitude: Their strength. Paper: 15 and 20.

    Returns:
        Transforms for `apply`.

    Raises:
        ValueError: If a value is out of its range, or jitter is asked for without a resize.
    """
    chain: list[Transform] = []
    if short_side:
        chain.append(ResizeShortSide(size=short_side, jitter=scale_jitter, minimum=crop))
    elif scale_jitter != (1.0, 1.0):
        raise ValueError(
            f'scale_jitter={scale_jitter} needs short_side above 0: set it, or scale_jitter=(1, 1)'
        )
    chain.append(RandomCrop(size=crop))
    if flip:
        chain.append(RandomFlip(probability=flip))
    if randaugment_layers:
        chain.append(randaugment.RandAugment(layers=randaugment_layers, magnitude=randaugment_magnitude))
    if colour_jitter:
        chain.append(ColourJitter(probability=colour_jitter))
    if colour_drop:
        chain.append(ColourDrop(probability=colour_drop))
    return tuple(chain)


def leave_to_device(chain: Sequence[Transform]) -> tuple[tuple[Transform, ...], tuple[OnDevice, ...]]:
    """Splits a clip's transforms into what the host does and what the device does afterwards.

    The device comes last, so only the end of the chain can be left to it: a flip before RandAugment, say, stays
    with the host, since a square that RandAugment cuts out is not to be mirrored.

    Args:
        chain: All transforms, in order: of `training_transforms`, maybe with others after them.

    Returns:
        The host's transforms; and the flip and colours that nothing of the host's follows, one at least.

    Raises:
        ValueError: If there are none.
    """
    ends = len(chain)
    while ends and isinstance(chain[ends - 1], OnDevice):
        ends -= 1
    last = tuple(transform for transform in chain[ends:] if isinstance(transform, OnDevice))
    if not last:
        raise ValueError(
            "data.augment_on='device' leaves the device nothing to do: data.flip, data.colour_jitter and "
            'data.colour_drop are 0, or what only the host does comes after them (data.randaugment_layers, '
            "data.volume_augment): choose 'host'"
        )
    return tuple(chain[:ends]), last


def apply(transforms: Sequence[Transform], clip: Clip, rng: np.random.Generator) -> Resized:
    """Returns `clip` after all transforms, in order, contiguous in memory; all draw from the one `rng`."""
    for transform in transforms:
        clip = transform(clip, rng)
    return np.ascontiguousarray(clip)


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f'{name}={value} must be a probability, in [0, 1]')


def _scale_saturation(image: RGB, factor: float) -> RGB:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hsv[..., 1] = np.minimum(hsv[..., 1] * np.float32(factor), 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _scale_contrast(image: RGB, frames: int, factor: float) -> RGB:
    """Scales the distance to the mean of each frame and channel."""
    video = rearrange(image, '(t h) w c -> t h w c', t=frames)
    means = np.array([cv2.mean(frame)[:3] for frame in video], np.float32)
    # Rows of (w c) values: numpy is slow where the innermost axis is only 3 long.
    offsets = repeat(means * np.float32(1 - factor), 't c -> t 1 (w c)', w=image.shape[1])
    scaled = rearrange(video, 't h w c -> t h (w c)') * np.float32(factor) + offsets
    return scaled.reshape(image.shape)


def _turn_hue(image: RGB, turns: float) -> RGB:
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    hue = hsv[..., 0]
    np.add(hue, np.float32(360 * (turns % 1)), out=hue)
    np.subtract(hue, 360, out=hue, where=hue >= 360)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _free(clip: Clip, size: tuple[int, int]) -> tuple[int, int]:
    """Returns how far a window of `size` can move down and to the right."""
    height, width = clip.shape[1:3]
    if height < size[0] or width < size[1]:
        raise ValueError(
            f'a crop of {size[0]}x{size[1]} does not fit into frames of {height}x{width} (height x width): '
            'make it smaller, or set short_side to resize them first'
        )
    return height - size[0], width - size[1]


def _window(clip: Clip, y: int, x: int, size: tuple[int, int]) -> Resized:
    return clip[:, y : y + size[0], x : x + size[1]]


def _resize(clip: Clip, height: int, width: int) -> Resized:
    """Averages over areas where both sides shrink, interpolates bilinearly where one grows."""
    frames, old_height, old_width, channels = clip.shape
    if (height, width) == (old_height, old_width):
        return clip
    shrinks = height <= old_height and width <= old_width
    filter_ = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized = np.empty((frames, height, width, channels), clip.dtype)
    for old, new in zip(clip, resized, strict=True):
        cv2.resize(old, (width, height), dst=new, interpolation=filter_)
    return resized
