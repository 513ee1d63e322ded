"""Linear interpolation of evenly spaced samples, one axis after another, by matrices that are almost all zeros.

Sparse products run in the thread that calls them; dense ones would start threads of their own for every volume, in
each of the threads that read volumes.
"""

import numpy as np
from jaxtyping import Float32
from scipy import sparse


def linear_weights(
    old: int, new: int, *, start: float = 0.0, length: float | None = None
) -> sparse.csr_array:
    """Returns the matrix `[new old]` that resamples an axis.

    Sample j of the old ones covers [j, j + 1); the new ones divide [start, start + length) evenly. Each is a mean
    of the old ones weighted by a triangle about its centre: linear interpolation where samples become more or
    stay as many, and where they become fewer a triangle that is wider by as much, so that nothing is skipped.
    What lies outside the axis has no weight. It is what Pillow's `BILINEAR` does with images.

    Args:
        old: Samples of the axis, at least 1.
        new: Samples wanted, at least 1.
        start: Where the part of the axis begins that is resampled, in [0, old).
        length: How long it is, in old samples; None: to the end.

    Returns:
        Weights, float32; each row adds up to 1.
    """
    step = (old - start if length is None else length) / new
    centres = start + (np.arange(new) + 0.5) * step
    distances = np.abs(np.arange(old) + 0.5 - centres[:, np.newaxis]) / max(step, 1.0)
    weights = np.maximum(1 - distances, 0)
    return sparse.csr_array((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


def resample(
    values: Float32[np.ndarray, '...'], weights: sparse.csr_array, axis: int
) -> Float32[np.ndarray, '...']:
    """Returns `values` with the axis resampled by the weights of `linear_weights`."""
    moved = np.moveaxis(values, axis, 0)
    flat = weights @ moved.reshape(len(moved), -1)
    return np.moveaxis(flat.reshape(-1, *moved.shape[1:]), 0, axis)
