"""RandAugment for clips: random operations of one strength, drawn once a clip and alike for all its frames.

Source: Cubuk et al., "RandAugment", CVPR workshops 2020. ViViT trains with it on EPIC-Kitchens (2 operations
of magnitude 15) and Something-Something v2 (2 of magnitude 20): Arnab et al. 2021, appendix.

Every operation is a function of (clip `[t h w 3]` uint8 in [0, 255], value) and does to each frame what
Pillow does to an image; how a magnitude becomes a value follows the TensorFlow code that Scenic calls.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Int64, Shaped, UInt8

Clip = UInt8[np.ndarray, 't h w 3']

# Neutral grey for what a shift, a turn or a cut-out leaves empty: close to 0 once scaled to [-1, 1].
FILL = 128


def check_colour(clip: Shaped[np.ndarray, 't h w c']) -> None:
    """Raises a ValueError unless `clip` is uint8 with 3 channels, which colour operations need."""
    if clip.dtype != np.uint8 or clip.shape[-1] != 3:
        raise ValueError(
            f'colour augmentation needs uint8 frames of 3 channels, got {clip.dtype} of {clip.shape[-1]}: '
            'set colour_jitter, colour_drop and randaugment_layers to 0 for this data'
        )


def identity(clip: Clip, value: None) -> Clip:
    """Leaves the clip as it is."""
    return clip


def auto_contrast(clip: Clip, value: None) -> Clip:
    """Stretches each channel of each frame so that its darkest pixel is 0 and its brightest 255."""
    used = _histograms(clip) > 0
    low = np.argmax(used, axis=-1, keepdims=True)
    high = 255 - np.argmax(used[..., ::-1], axis=-1, keepdims=True)
    scale = 255 / np.maximum(high - low, 1)
    stretched = np.clip(np.arange(256) * scale - low * scale, 0, 255)
    return _apply_tables(clip, np.where(high > low, stretched, np.arange(256)).astype(np.uint8))


def equalize(clip: Clip, value: None) -> Clip:
    """Makes the values of each channel of each frame equally frequent, as far as whole numbers allow."""
    counts = _histograms(clip)
    brightest = 255 - np.argmax(counts[..., ::-1] > 0, axis=-1, keepdims=True)
    darker = counts.sum(axis=-1, keepdims=True) - np.take_along_axis(counts, brightest, axis=-1)
    step = darker // 255
    below = np.cumsum(counts, axis=-1) - counts
    table = np.minimum((below + step // 2) // np.maximum(step, 1), 255)
    return _apply_tables(clip, np.where(step > 0, table, np.arange(256)).astype(np.uint8))


def invert(clip: Clip, value: None) -> Clip:
    """Turns every value v into 255 - v."""
    return 255 - clip


def posterize(clip: Clip, value: int) -> Clip:
    """Keeps the highest `value` bits, 1 to 8, of every pixel."""
    return clip & np.uint8(256 - 2 ** (8 - value))


def solarize(clip: Clip, value: int) -> Clip:
    """Inverts the pixels from `value`, 0 to 256, upwards."""
    levels = np.arange(256)
    return _apply_table(clip, np.where(levels < value, levels, 255 - levels))


def solarize_add(clip: Clip, value: int) -> Clip:
    """Adds `value`, 0 to 255, to the pixels darker than 128."""
    levels = np.arange(256)
    return _apply_table(clip, np.where(levels < 128, np.minimum(levels + value, 255), levels))


def colour(clip: Clip, value: float) -> Clip:
    """Blends with the grey version: 0 is grey, 1 the clip itself, above 1 more colourful."""
    return _blend(repeat(_grey(clip), 't h w -> t h w c', c=3), clip, value)


def contrast(clip: Clip, value: float) -> Clip:
    """Blends each frame with its mean grey: 0 is flat, 1 the clip itself, above 1 more contrast."""
    means = np.floor(_grey(clip).mean(axis=(1, 2)) + 0.5)
    tables = _blend(means[:, np.newaxis], np.arange(256, dtype=np.float32), value)
    return _apply_tables(clip, repeat(tables, 't level -> t c level', c=3))


def brightness(clip: Clip, value: float) -> Clip:
    """Blends with black: 0 is black, 1 the clip itself, above 1 brighter."""
    return _apply_table(clip, _blend(np.zeros(256), np.arange(256, dtype=np.float32), value))


def sharpness(clip: Clip, value: float) -> Clip:
    """Blends with a smoothed version: 0 is smooth, 1 the clip itself, above 1 sharper. The border stays."""
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32)
    # Sums of whole numbers are exact in float32; (sum + 6) / 13, rounded down, is the nearest whole number.
    sums = cv2.filter2D(rearrange(clip, 't h w c -> (t h) w c'), cv2.CV_32F, kernel).reshape(clip.shape)
    smooth = clip.copy()
    smooth[:, 1:-1, 1:-1] = (sums[:, 1:-1, 1:-1] + 6) / 13
    return _blend(smooth, clip, value)


def rotate(clip: Clip, value: float) -> Clip:
    """Turns the frames about their centre by `value` degrees, anticlockwise if positive."""
    (height, width), radians = clip.shape[1:3], np.deg2rad(value)
    cos, sin = np.cos(radians), np.sin(radians)
    x, y = width / 2, height / 2
    return _affine(clip, (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y))


def shear_x(clip: Clip, value: float) -> Clip:
    """Pulls each row to the left by `value` pixels more than the row above."""
    return _affine(clip, (1.0, value, 0.0, 0.0, 1.0, 0.0))


def shear_y(clip: Clip, value: float) -> Clip:
    """Pulls each column up by `value` pixels more than the column on its left."""
    return _affine(clip, (1.0, 0.0, 0.0, value, 1.0, 0.0))


def translate_x(clip: Clip, value: float) -> Clip:
    """Shifts the frames to the left by `value` pixels."""
    return _affine(clip, (1.0, 0.0, value, 0.0, 1.0, 0.0))


def translate_y(clip: Clip, value: float) -> Clip:
    """Shifts the frames up by `value` pixels."""
    return _affine(clip, (1.0, 0.0, 0.0, 0.0, 1.0, value))


def cutout(clip: Clip, value: tuple[int, float, float]) -> Clip:
    """Greys out the same square in all frames.

    Args:
        clip: The clip.
        value: (half the side of the square in pixels, its centre's y and x as fractions of height and width).
            What lies outside of the frame is cut off.

    Returns:
        The clip with the square filled.
    """
    half, (y, x) = value[0], (int(u * size) for u, size in zip(value[1:], clip.shape[1:3], strict=True))
    clip = clip.copy()
    clip[:, max(0, y - half) : y + half, max(0, x - half) : x + half] = FILL
    return clip


def _draw_nothing(level: float, rng: np.random.Generator) -> None:
    return


def _draw_blend(level: float, rng: np.random.Generator) -> float:
    return 0.1 + 1.8 * level


def _draw_int(scale: int, low: int, high: int) -> Callable[[float, np.random.Generator], int]:
    return lambda level, rng: min(max(int(level * scale), low), high)


def _draw_signed(scale: float) -> Callable[[float, np.random.Generator], float]:
    return lambda level, rng: float(level * scale * rng.choice((-1, 1)))


def _draw_square(level: float, rng: np.random.Generator) -> tuple[int, float, float]:
    return int(level * 40), rng.random(), rng.random()


# name: (operation, how (level, rng) become its value); the level is magnitude / 10 and may exceed 1.
OPERATIONS: dict[str, tuple[Callable[[Any, Any], Any], Callable[[float, np.random.Generator], Any]]] = {
    'identity': (identity, _draw_nothing),
    'auto_contrast': (auto_contrast, _draw_nothing),
    'equalize': (equalize, _draw_nothing),
    'invert': (invert, _draw_nothing),
    'posterize': (posterize, _draw_int(4, 1, 8)),  # 0 bits would be a black clip
    'solarize': (solarize, _draw_int(256, 0, 256)),
    'solarize_add': (solarize_add, _draw_int(110, 0, 255)),
    'colour': (colour, _draw_blend),
    'contrast': (contrast, _draw_blend),
    'brightness': (brightness, _draw_blend),
    'sharpness': (sharpness, _draw_blend),
    'cutout': (cutout, _draw_square),
    'rotate': (rotate, _draw_signed(30.0)),
    'shear_x': (shear_x, _draw_signed(0.3)),
    'shear_y': (shear_y, _draw_signed(0.3)),
    'translate_x': (translate_x, _draw_signed(100.0)),
    'translate_y': (translate_y, _draw_signed(100.0)),
}
# What Scenic draws from for videos, so what the paper's magnitudes are meant for: no geometry. At magnitude
# 20 a translation would move a frame of 224 pixels by 200.
VIDEO_OPERATIONS = tuple(OPERATIONS)[:12]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment:
    """Applies `layers` operations, each drawn uniformly, with replacement, from `operations`.

    Attributes:
        layers: How many operations a clip goes through, at least 0.
        magnitude: Their common strength, 0 or more; 10 ends the original scale. From there on `solarize`
            changes nothing; `posterize` keeps 6 bits at 15 and all 8 at 20, as in the published runs.
        operations: Names from `OPERATIONS`. The default is Scenic's list for videos, without geometry;
            `tuple(OPERATIONS)` is the whole list that images are trained with.

    Raises:
        ValueError: If a value is negative or an operation unknown.
    """

    layers: int
    magnitude: float
    operations: tuple[str, ...] = VIDEO_OPERATIONS

    def __post_init__(self):
        for name in ('layers', 'magnitude'):
            if getattr(self, name) < 0:
                raise ValueError(f'RandAugment {name}={getattr(self, name)} must be at least 0')
        for name in self.operations:
            if name not in OPERATIONS:
                raise ValueError(f'RandAugment operation {name!r} must be one of: {", ".join(OPERATIONS)}')

    def __call__(
        self, clip: Shaped[np.ndarray, 't h w c'], rng: np.random.Generator
    ) -> UInt8[np.ndarray, 't h w 3']:
        """Returns the clip, uint8 in [0, 255], augmented with what is drawn from `rng`.

        Raises:
            ValueError: If the clip is not uint8 with 3 channels.
        """
        check_colour(clip)
        clip = np.ascontiguousarray(clip)  # OpenCV reads no mirrored view
        for index in rng.integers(len(self.operations), size=self.layers):
            operation, draw = OPERATIONS[self.operations[index]]
            clip = operation(clip, draw(self.magnitude / 10, rng))
        return clip


def _apply_table(clip: Clip, table: Shaped[np.ndarray, '256']) -> Clip:
    """Replaces every value of the clip by its entry in one table."""
    return cv2.LUT(rearrange(clip, 't h w c -> (t h) (w c)'), table.astype(np.uint8)).reshape(clip.shape)


def _apply_tables(clip: Clip, tables: UInt8[np.ndarray, 't 3 256']) -> Clip:
    """Replaces every value of the clip by its entry in the table of its frame and channel."""
    tables = np.ascontiguousarray(rearrange(tables, 't c level -> t 1 level c'))
    return np.stack([cv2.LUT(frame, table) for frame, table in zip(clip, tables, strict=True)])


def _histograms(clip: Clip) -> Int64[np.ndarray, 't 3 256']:
    """Counts how often each value occurs in each channel of each frame."""
    counts = [cv2.calcHist([frame], [c], None, [256], [0, 256]).ravel() for frame in clip for c in range(3)]
    return rearrange(np.array(counts, np.int64), '(t c) level -> t c level', c=3)


def _grey(clip: Clip) -> UInt8[np.ndarray, 't h w']:
    """Returns the luma (ITU-R 601-2) in Pillow's fixed-point arithmetic."""
    # In 65536ths, with a half to round: every sum stays below 2 ** 24 and is exact in float32.
    weights = np.array([[19595, 38470, 7471, 0x8000]], np.float32)
    weighted = cv2.transform(rearrange(clip, 't h w c -> (t h) w c').astype(np.float32), weights)
    return (weighted / 65536).astype(np.uint8).reshape(clip.shape[:-1])


def _blend(start: np.ndarray, end: np.ndarray, factor: float) -> np.ndarray:
    """Returns start + factor · (end - start) as uint8, rounded down as in Pillow; above 1 it extrapolates."""
    start = start.astype(np.float32)
    blended = end - start
    blended *= np.float32(factor)
    blended += start
    return np.clip(blended, 0, 255, out=blended).astype(np.uint8)


def _affine(clip: Clip, matrix: tuple[float, ...]) -> Clip:
    """Resamples bilinearly: what is at (x, y) comes from (a·x + b·y + c, d·x + e·y + f), `FILL` from outside.

    As in Pillow, a pixel is a unit square and its centre decides whether it lies inside.
    """
    a, b, c, d, e, f = matrix
    height, width = clip.shape[1:3]
    x, y = np.arange(width) + 0.5, np.arange(height)[:, np.newaxis] + 0.5
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    outside = (from_x < 0) | (from_x >= width) | (from_y < 0) | (from_y >= height)
    maps = (from_x - 0.5).astype(np.float32), (from_y - 0.5).astype(np.float32)
    moved = np.stack(
        [cv2.remap(frame, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) for frame in clip]
    )
    moved[:, outside] = FILL
    return moved
