"""Pixels as other models take them: their normalisation becomes part of the embedding."""

from collections.abc import Sequence

import numpy as np
from einops import reduce

from vivit_jax.formats.weights import Conversion


def fold_normalisation(conversion: Conversion, mean: Sequence[float], std: Sequence[float]) -> None:
    """Makes an embedding that was trained on (pixel - mean) / std, pixels in [0, 1], take pixels in [-1, 1].

    The same pixel x in [-1, 1] is (x + 1) / 2 there, and so (x + 1 - 2 mean) / (2 std) normalised: the factor goes
    into the kernel, the rest into the bias. Nothing is padded, so this is exact. A mean and standard deviation of
    0.5 change nothing, since they are ours.

    Args:
        conversion: With `embedding/kernel` `[… c d]` and `embedding/bias` `[d]`, which are changed, and a note
            about it.
        mean: Of each channel of pixels in [0, 1].
        std: Standard deviation of each channel, above 0.

    Raises:
        ValueError: If these are not as many numbers as there are channels, or a standard deviation is not above 0.
    """
    channels = conversion.made('embedding/kernel').shape[-2]
    for name, values in (('mean', mean), ('std', std)):
        if len(values) != channels or not np.isfinite(values).all():
            raise ValueError(
                f'{conversion.path}: its pixels are normalised by {name}={list(values)}: must be {channels} numbers, '
                'one for each channel of its embedding'
            )
    if min(std) <= 0:
        raise ValueError(f'{conversion.path}: its pixels are normalised by std={list(std)}: must be above 0')
    # In double precision, since both changes together are to give what was recorded in single precision.
    centre, spread = np.asarray(mean, np.float64), np.asarray(std, np.float64)
    if (centre == 0.5).all() and (spread == 0.5).all():
        return
    kernel = conversion.made('embedding/kernel').astype(np.float64) / (2 * spread[:, None])
    offset = (1 - 2 * centre) @ reduce(kernel, '... c d -> c d', 'sum')
    words = f'for pixels in [-1, 1] instead of mean {_short(mean)}, std {_short(std)}'
    conversion.adjust('embedding/kernel', lambda _: kernel, words)
    conversion.adjust('embedding/bias', lambda bias: bias + offset, words)
    conversion.notes.append(
        f'pixels were normalised by mean {_short(mean)}, std {_short(std)}: the embedding now takes them in [-1, 1]'
    )


def _short(values: Sequence[float]) -> str:
    return ', '.join(f'{value:.4g}' for value in values)
