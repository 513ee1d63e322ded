"""Which frames of a video make a clip: chosen before anything is decoded.

A clip is `frames` frame indices, `stride` apart. In training one clip is drawn at random; in evaluation
several views are spread evenly over the video and their logits averaged (Arnab et al. 2021, section 4.1).
"""

import numpy as np
from jaxtyping import Int64

SHORT = ('repeat_last', 'loop')


def random_clip(
    num_frames: int, *, frames: int, stride: int, rng: np.random.Generator, short: str = 'repeat_last'
) -> Int64[np.ndarray, ' t']:
    """Draws a clip uniformly from all that fit into the video.

    Args:
        num_frames: Length of the video in frames, at least 1.
        frames: Frames in the clip, at least 1.
        stride: Distance between two frames of the clip, in frames of the video, at least 1.
        rng: Where the start is drawn from.
        short: What a clip longer than the video does: `repeat_last` (its last frame again and again) or
            `loop` (from the beginning again).

    Returns:
        Frame indices in `[0, num_frames)`.

    Raises:
        ValueError: If a length is below 1 or `short` is none of the choices.
    """
    last_start = _last_start(num_frames, frames, stride)
    return _indices(rng.integers(last_start, size=1, endpoint=True), num_frames, frames, stride, short)[0]


def clip_views(
    num_frames: int, *, frames: int, stride: int, views: int, short: str = 'repeat_last'
) -> Int64[np.ndarray, 'v t']:
    """Spreads views evenly from the first to the last clip that fits; a single view is the central one.

    The starts are a linspace rounded down, as in DMVR, which Scenic reads its videos with.

    Args:
        num_frames: Length of the video in frames, at least 1.
        frames: Frames in a clip, at least 1.
        stride: Distance between two frames of a clip, in frames of the video, at least 1.
        views: Number of clips, at least 1.
        short: What a clip longer than the video does: `repeat_last` or `loop`, as for `random_clip`.

    Returns:
        Frame indices in `[0, num_frames)`, one row a view. In a video that only one clip fits into, all rows
        are the same.

    Raises:
        ValueError: If a length is below 1 or `short` is none of the choices.
    """
    last_start = _last_start(num_frames, frames, stride)
    if views < 1:
        raise ValueError(f'views={views} must be at least 1')
    # Whole-number arithmetic: a linspace in floats can fall just short of a whole frame.
    starts = np.array([last_start // 2]) if views == 1 else np.arange(views) * last_start // (views - 1)
    return _indices(starts, num_frames, frames, stride, short)


def _last_start(num_frames: int, frames: int, stride: int) -> int:
    """Returns the last frame a clip can start at: 0 where only one fits, or none."""
    for name, value in (('num_frames', num_frames), ('frames', frames), ('stride', stride)):
        if value < 1:
            raise ValueError(f'{name}={value} must be at least 1')
    return max(0, num_frames - 1 - (frames - 1) * stride)


def _indices(
    starts: Int64[np.ndarray, ' v'], num_frames: int, frames: int, stride: int, short: str
) -> Int64[np.ndarray, 'v t']:
    """Returns the frame indices of the clips that begin at `starts`."""
    indices = starts[:, np.newaxis] + np.arange(frames) * stride
    if short == 'repeat_last':
        return np.minimum(indices, num_frames - 1)
    if short == 'loop':
        return indices % num_frames
    raise ValueError(f'short={short!r} must be one of: {", ".join(SHORT)}')
