"""Mixup on the device (Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization")."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt32


def blend(
    own: Float[Array, 'b *rest'], other: Float[Array, 'b *rest'], lam: Float[Array, '']
) -> Float[Array, 'b *rest']:
    """Returns lam own + (1 - lam) other, computed in float32, in the type of `own`."""
    return (lam * own + (1.0 - lam) * other).astype(own.dtype)


def share(rng: Key[Array, ''] | UInt32[Array, '2'], *, alpha: float) -> Float[Array, '']:
    """Draws lam ~ Beta(alpha, alpha), float32; see `mixup`.

    Raises:
        ValueError: where alpha is not positive.
    """
    if not alpha > 0.0:
        raise ValueError(f'mixup alpha {alpha} must be > 0; leave mixup out to train without')
    return jax.random.beta(rng, alpha, alpha, dtype=jnp.float32)


def mix(
    video: Float[Array, 'b t h w c'], targets: Float[Array, 'b k'], lam: Float[Array, '']
) -> tuple[Float[Array, 'b t h w c'], Float[Array, 'b k']]:
    """Blends a batch with itself in reverse order: lam x_i + (1 - lam) x_{b-1-i}, videos and targets alike.

    The batch was shuffled already, so reversing it pairs examples as randomly as a fresh permutation would;
    with an odd batch the middle example meets itself. This is Scenic's pairing.

    Args:
        video: clips, already scaled to [-1, 1]; blended in float32 and returned in their own type.
        targets: float targets, see `losses.one_hot_targets`.
        lam: share of the example itself, in [0, 1].

    Returns:
        Blended clips and targets.
    """
    return blend(video, jnp.flip(video, axis=0), lam), blend(targets, jnp.flip(targets, axis=0), lam)


def mixup(
    rng: Key[Array, ''] | UInt32[Array, '2'],
    video: Float[Array, 'b t h w c'],
    targets: Float[Array, 'b k'],
    *,
    alpha: float,
) -> tuple[Float[Array, 'b t h w c'], Float[Array, 'b k']]:
    """Mixup with lam ~ Beta(alpha, alpha), drawn once for the whole batch.

    Args:
        rng: a key, the same on every process (a draw of their own would blend clips and targets differently).
        video: clips, already scaled to [-1, 1].
        targets: float targets [b k].
        alpha: parameter of the Beta distribution, > 0, a Python number (paper: 0.1 EPIC, 0.3 SSv2).

    Returns:
        Blended clips and targets, see `mix`.

    Raises:
        ValueError: where alpha is not positive.
    """
    return mix(video, targets, share(rng, alpha=alpha))
