"""From images to videos: patch kernels over time, positions on another grid (paper, section 3.4)."""

import numpy as np


def inflate(kernel: np.ndarray, time: int, method: str) -> np.ndarray:
    """Turns a patch kernel into a tubelet kernel.

    Args:
        kernel: `[h w c d]`.
        time: Frames t of a tubelet.
        method: 'central_frame' (all at the time index t // 2, zeros elsewhere; equation 9), 'average' (at every
            index, divided by t: filter inflation, equation 8), or 'rank_pooling' (see `rank_pooling`, divided by t).

    Returns:
        `[t h w c d]`, in the dtype of `kernel`.
    """
    if method == 'central_frame':
        factors = (np.arange(time) == time // 2).astype(np.float64)
    elif method == 'average':
        factors = np.full(time, 1.0 / time)
    else:
        factors = rank_pooling(time) / time
    return (factors[:, None, None, None, None] * kernel).astype(kernel.dtype)


def rank_pooling(time: int) -> np.ndarray:
    """Returns the weights `[t]` of approximate rank pooling (Bilen et al. 2016, equation 4).

    With harmonic numbers H: 2 (T - t + 1) - (T + 1) (H_T - H_{t-1}) for t = 1 to T.
    """
    harmonic = np.concatenate([[0.0], np.cumsum(1.0 / np.arange(1, time + 1))])
    t = np.arange(1, time + 1)
    return 2.0 * (time - t + 1) - (time + 1) * (harmonic[time] - harmonic[t - 1])


def resize(values: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Interpolates linearly along the leading axes, their ends staying where they are (aligned corners).

    Args:
        values: `[*axes d]`.
        size: New length of each axis but the last; an axis of one keeps the middle.

    Returns:
        `[*size d]`, in the dtype of `values`.
    """
    resized = values.astype(np.float64)
    for axis, length in enumerate(size):
        old = resized.shape[axis]
        places = np.linspace(0, old - 1, length) if length > 1 else np.array([(old - 1) / 2])
        low = np.clip(np.floor(places).astype(int), 0, max(old - 2, 0))
        high = np.minimum(low + 1, old - 1)
        share = (places - low).reshape(-1, *[1] * (resized.ndim - axis - 1))
        resized = resized.take(low, axis) * (1 - share) + resized.take(high, axis) * share
    return resized.astype(values.dtype)
