"""Mixup against the values Scenic recorded, and the distribution of its share."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vivit_jax.mixup import mix, mixup

GOLDEN = np.load(Path(__file__).parent / 'golden' / 'scenic' / 'D01_metrics_losses.npz')


def golden(key):
    return jnp.asarray(GOLDEN[key])


@pytest.mark.parametrize('case', [0, 1])
def test_mix_is_scenics(case):
    video, targets = mix(
        golden(f'mixup/{case}/video'), golden(f'mixup/{case}/label'), golden(f'mixup/{case}/lam')
    )
    np.testing.assert_allclose(video, GOLDEN[f'mixup/{case}/out_video'], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(targets, GOLDEN[f'mixup/{case}/out_label'], rtol=1e-6, atol=0)


def numbered(batch):
    """A batch whose videos and targets both tell the example's number, so that its share can be read back."""
    index = jnp.arange(batch, dtype=jnp.float32)
    return jnp.broadcast_to(index[:, None, None, None, None], (batch, 2, 3, 3, 3)), jnp.eye(batch)


def test_one_share_for_the_whole_batch_and_for_videos_and_targets():
    video, targets = mixup(jax.random.key(3), *numbered(6), alpha=0.7)
    share = targets[0, 0]
    assert 0.0 < share < 1.0
    np.testing.assert_allclose(targets, share * np.eye(6) + (1 - share) * np.eye(6)[::-1], rtol=1e-6, atol=0)
    expected = share * np.arange(6.0) + (1 - share) * np.arange(6.0)[::-1]
    np.testing.assert_allclose(
        video, np.broadcast_to(expected[:, None, None, None, None], video.shape), rtol=1e-6
    )


def test_only_the_key_decides_and_jit_changes_nothing():
    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(mixup, n=1), static_argnames='alpha')
    first = jitted(jax.random.key(0), *numbered(4), alpha=0.3)
    second = jitted(jax.random.key(1), *numbered(4), alpha=0.3)
    chex.assert_trees_all_close(first, mixup(jax.random.key(0), *numbered(4), alpha=0.3), rtol=1e-6)
    assert first[1][0, 0] != second[1][0, 0]


@pytest.mark.parametrize('alpha', [0.1, 1.0])
def test_share_follows_the_beta_distribution(alpha):
    def draw(key):
        return mixup(key, jnp.zeros((2, 1, 1, 1, 1)), jnp.eye(2), alpha=alpha)[1][0, 0]

    shares = np.asarray(jax.vmap(draw)(jax.random.split(jax.random.key(7), 4000)))
    assert shares.min() >= 0.0
    assert shares.max() <= 1.0
    variance = 1 / (4 * (2 * alpha + 1))
    # Four standard errors; the fourth central moment of Beta(a, a) is 3 / (16 (2a + 1)(2a + 3)).
    spread = np.sqrt(3 / (16 * (2 * alpha + 1) * (2 * alpha + 3)) - variance**2)
    assert abs(shares.mean() - 0.5) < 4 * np.sqrt(variance / 4000)
    assert abs(((shares - 0.5) ** 2).mean() - variance) < 4 * spread / np.sqrt(4000)


def test_each_keeps_its_own_type():
    video, targets = numbered(4)
    mixed, mixed_targets = mix(video.astype(jnp.bfloat16), targets, jnp.float32(0.3))
    assert mixed.dtype == jnp.bfloat16
    assert mixed_targets.dtype == jnp.float32
    exact, _ = mix(video, targets, jnp.float32(0.3))
    np.testing.assert_array_equal(mixed, exact.astype(jnp.bfloat16))


@pytest.mark.parametrize('alpha', [0.0, -1.0, float('nan')])
def test_alpha_must_be_positive(alpha):
    with pytest.raises(ValueError, match='must be > 0; leave mixup out'):
        mixup(jax.random.key(0), *numbered(2), alpha=alpha)
