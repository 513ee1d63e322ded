"""Pictures of clips: filmstrips, heat over frames, sheets with words, image files and animations."""

import io
import math
import os
import warnings
from fractions import Fraction
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Shaped, UInt8

from vivit_jax import paths

Frames = UInt8[np.ndarray, 't h w 3']
Image = UInt8[np.ndarray, 'h w 3']

# Lightness rises all along it, in print and to the colour-blind as well.
COLOURS = cv2.COLORMAP_INFERNO
# Its part that shows on a dark frame; what is below is nearly black.
LOWEST = 0.35
GAP = 3  # pixels between the frames of a filmstrip

INK, PALE, LINE, PAPER = '#212529', '#6c757d', '#dee2e6', '#ffffff'
SCALE = (
    2  # pixels a point: lengths on a sheet are points, as the screens that pictures are looked at have them
)


def as_rgb(frames: Shaped[np.ndarray, 't h w c']) -> Frames:
    """Returns frames as they can be looked at.

    Args:
        frames: uint8, or float in [-1, 1] as the model gets them (what is outside is clipped). Of other than 3
            channels the first is shown, in grey.

    Raises:
        ValueError: If the frames are of another type.
    """
    if frames.dtype != np.uint8:
        if not np.issubdtype(frames.dtype, np.floating):
            raise ValueError(f'frames of {frames.dtype} cannot be drawn: give uint8, or float in [-1, 1]')
        frames = np.clip((frames.astype(np.float32) + 1) * 127.5, 0, 255).round().astype(np.uint8)
    return np.ascontiguousarray(frames if frames.shape[-1] == 3 else frames[..., :1].repeat(3, -1))


def resize(image: Image, height: int, width: int) -> UInt8[np.ndarray, 'H W 3']:
    """Returns an image of another size: pixels stay visible where it grows to twice the size or more."""
    grows = height >= 2 * image.shape[0] and width >= 2 * image.shape[1]
    shrinks = height < image.shape[0]
    how = cv2.INTER_NEAREST if grows else cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=how).astype(np.uint8)


def filmstrip(
    frames: Shaped[np.ndarray, 't h w c'], columns: int = 8, height: int = 96, rows: int = 1
) -> UInt8[np.ndarray, 'H W 3']:
    """Returns frames side by side, on white.

    Args:
        frames: As `as_rgb` takes them, at least one.
        columns: Frames in a row, at least 1. Of more than `columns * rows` frames so many are shown, evenly
            spaced, the first and the last among them.
        height: Of a frame, in pixels; its width follows.
        rows: At most so many; no more than there are frames for.
    """
    count = min(len(frames), columns * rows)
    shown = as_rgb(frames[np.linspace(0, len(frames) - 1, count).round().astype(int)])
    columns, rows = min(columns, count), math.ceil(count / columns)
    width = max(round(height * frames.shape[2] / frames.shape[1]), 1)
    size = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, 3)
    strip = np.full(size, 255, np.uint8)
    for place, frame in enumerate(shown):
        top, left = (height + GAP) * (place // columns), (width + GAP) * (place % columns)
        strip[top : top + height, left : left + width] = resize(frame, height, width)
    return strip


def colours(heat: Float[np.ndarray, '*size']) -> UInt8[np.ndarray, '*size 3']:
    """Returns the colours that heat in [0, 1] is drawn in."""
    level = np.clip(LOWEST + (1 - LOWEST) * heat, 0, 1)
    levels = (level * 255).round().astype(np.uint8).reshape(-1, 1)
    return cv2.applyColorMap(levels, COLOURS)[:, 0, ::-1].reshape(*heat.shape, 3).astype(np.uint8)


def overlay(
    frames: Shaped[np.ndarray, 't h w c'], heat: Float[np.ndarray, 't h w'], strength: float = 0.75
) -> Frames:
    """Returns frames with heat laid over them: the more of it, the more of its colour and the less of the frame.

    Args:
        frames: As `as_rgb` takes them.
        heat: In [0, 1]; where it is 0 the frame stays as it is.
        strength: Of the colour where heat is 1, in [0, 1].
    """
    # The root lets little heat be seen as well.
    opacity = strength * np.sqrt(np.clip(heat, 0, 1))[..., None]
    mixed = as_rgb(frames) * (1 - opacity) + colours(heat) * opacity
    return mixed.round().astype(np.uint8)


def spread(
    tokens: Float[np.ndarray, 'nt nh nw'],
    tubelet: tuple[int, int, int],
    size: tuple[int, int, int],
    smooth: bool = True,
) -> Float[np.ndarray, 't h w']:
    """Returns what belongs to tokens as pixels of the clip.

    Args:
        tokens: A number for each.
        tubelet: `(t, h, w)` of a token in frames and pixels.
        size: `(t, h, w)` of the clip; what lies behind the last tubelet gets 0, as no token sees it.
        smooth: Whether numbers blend from the middle of a token to the middle of the next within a frame. In time
            every frame of a tubelet has the same.
    """
    _, high, wide = (count * side for count, side in zip(tokens.shape, tubelet, strict=True))
    how = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
    enlarged = [cv2.resize(frame, (wide, high), interpolation=how) for frame in tokens.astype(np.float32)]
    pixels = np.repeat(np.stack(enlarged), tubelet[0], axis=0)
    left = [(0, whole - part) for whole, part in zip(size, pixels.shape, strict=True)]
    return np.pad(pixels, left)


def png(image: Image) -> bytes:
    """Returns an image as a PNG file."""
    return _encoded('.png', image, [cv2.IMWRITE_PNG_COMPRESSION, 9])


def jpeg(image: Image, quality: int = 80) -> bytes:
    """Returns an image as a JPEG file, of a quality in 1 to 100."""
    return _encoded('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def _encoded(ending: str, image: np.ndarray, options: list[int]) -> bytes:
    done, data = cv2.imencode(ending, image[..., ::-1], options)
    assert done
    return data.tobytes()


def write_gif(path: str | os.PathLike[str], frames: Frames, fps: float = 8) -> None:
    """Writes an animation that begins anew when it ends.

    Each frame has its own 256 colours; frames that are alike become one that lasts as long.
    """
    from PIL import Image as Pillow  # matplotlib brings it

    pictures = [Pillow.fromarray(frame).quantize(256) for frame in frames]
    file = io.BytesIO()
    duration = max(round(1000 / fps), 20)
    pictures[0].save(
        file, 'GIF', save_all=True, append_images=pictures[1:], duration=duration, loop=0, optimize=False
    )
    paths.path(path).write_bytes(file.getvalue())


def write_mp4(path: str | os.PathLike[str], frames: Frames, fps: float = 8) -> None:
    """Writes a video (H.264) that any player shows; sides of odd length lose a pixel, as the format asks."""
    import av

    frames = frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]
    with (
        paths.written(paths.path(path)) as file,
        av.open(str(file), 'w', format='mp4', options={'movflags': 'faststart'}) as container,
    ):
        stream: Any = container.add_stream('libx264', Fraction(fps).limit_denominator(1000), {'crf': '18'})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], 'yuv420p'
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame))))
        container.mux(stream.encode())


class Sheet:
    """A white picture to place words and frames on, by points from its upper left corner."""

    def __init__(self, width: int, height: int):
        """Makes it, of so many points."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.width, self.height = width, height
        self.figure = Figure(figsize=(width / 72, height / 72), dpi=72 * SCALE, facecolor=PAPER)
        self._renderer: Any = FigureCanvasAgg(self.figure).get_renderer()

    def text(self, x: float, y: float, text: str, room: float, align: str = 'left', **style: Any) -> float:
        """Writes a line no wider than `room`, shortened in its middle where need be; returns its width.

        Args:
            x: Its left end, or with `align='right'` its right one.
            y: Its upper edge.
            text: What cannot be printed is replaced.
            room: In points.
            align: 'left', 'right' or 'center', of `x`.
            **style: As matplotlib's `Text` has it: `size`, `color`, `weight`.
        """
        text = ''.join(letter if letter.isprintable() else '\N{REPLACEMENT CHARACTER}' for letter in text)
        artist = self.figure.text(
            x * SCALE,
            (self.height - y) * SCALE,
            text,
            transform=None,
            va='top',
            ha=align,
            color=style.pop('color', INK),
            parse_math=False,
            **style,
        )
        kept = len(text)
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', 'Glyph .* missing')  # letters that no font here has
            while (width := artist.get_window_extent(self._renderer).width / SCALE) > room and kept > 2:
                kept = max(min(kept - 1, int(kept * room / width)), 2)
                artist.set_text(text[: kept // 2] + '…' + text[-(kept - kept // 2) :])
        return width

    def line(self, x: float, y: float, width: float, **style: Any) -> None:
        """Draws a hairline to the right."""
        from matplotlib.lines import Line2D

        ends = [x * SCALE, (x + width) * SCALE], [(self.height - y) * SCALE] * 2
        looks: Any = {'color': LINE, 'linewidth': 0.8, **style}
        self.figure.add_artist(Line2D(*ends, transform=None, **looks))

    def box(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """Fills a rectangle."""
        from matplotlib.patches import Rectangle

        corner = (x * SCALE, (self.height - y - height) * SCALE)
        size = (width * SCALE, height * SCALE)
        self.figure.add_artist(Rectangle(corner, *size, transform=None, color=color, linewidth=0))

    def picture(self, x: float, y: float, frame: Shaped[np.ndarray, 'h w c'], size: tuple[int, int]) -> None:
        """Places a frame, as `as_rgb` takes it, of (height, width) as `size` says."""
        pixels = as_rgb(frame[None])[0]
        height, width = (side * SCALE for side in size)
        times = min(height // pixels.shape[0], width // pixels.shape[1])
        # Small ones grow by whole multiples of a pixel.
        sides = (times * pixels.shape[0], times * pixels.shape[1]) if times >= 2 else (height, width)
        # Places count from below.
        corner = round(x * SCALE), round((self.height - y) * SCALE) - sides[0]
        self.figure.figimage(resize(pixels, *sides), *corner)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes a PNG."""
        with warnings.catch_warnings(), paths.written(paths.path(path)) as file:
            warnings.filterwarnings('ignore', 'Glyph .* missing')
            self.figure.savefig(file, format='png', dpi=72 * SCALE)


def fit(sides: tuple[int, int], room: tuple[float, float]) -> tuple[int, int]:
    """Returns (height, width) in points, inside `room`, of a frame of so many pixels, enlarged by whole multiples."""
    scale = min(room[0] / sides[0], room[1] / sides[1]) * SCALE
    scale = int(scale) if scale > 2 else scale
    height, width = (max(round(side * scale), 1) for side in sides)
    return -(-height // SCALE), -(-width // SCALE)
