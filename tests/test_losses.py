"""Losses against the values Scenic recorded."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vivit_jax import losses

GOLDEN = np.load(Path(__file__).parent / 'golden' / 'scenic' / 'D01_metrics_losses.npz')
HEADS = (7, 6)


def golden(key):
    return jnp.asarray(GOLDEN[key])


def softmax_loss(labels, label_smoothing=0.0):
    return losses.per_example_loss(
        golden('cls/logits'), labels, loss='softmax', head_sizes=(9,), label_smoothing=label_smoothing
    )


@pytest.mark.parametrize('smoothing', [None, 0.1, 0.3])
@pytest.mark.parametrize('weights', ['none', 'mask'])
def test_softmax_loss_is_scenics(smoothing, weights):
    values = softmax_loss(golden('cls/onehot'), smoothing or 0.0)
    mask = jnp.ones(10) if weights == 'none' else golden('cls/weights')
    key = f'ls_{smoothing}/w_{weights}'
    np.testing.assert_allclose(values * mask, GOLDEN[f'cls/ce_per_example/{key}'], rtol=1e-6, atol=2e-7)
    np.testing.assert_allclose(
        losses.masked_mean(values, mask), GOLDEN[f'cls/ce_mean/{key}'], rtol=1e-6, atol=0
    )


def test_all_masked_is_zero_with_zero_gradient():
    logits, mask = golden('cls/logits'), jnp.zeros(10, bool)

    def loss(logits):
        values = losses.per_example_loss(
            logits, golden('cls/onehot'), loss='softmax', head_sizes=(9,), label_smoothing=0.1
        )
        return losses.masked_mean(values, mask)

    value, gradient = jax.value_and_grad(loss)(logits)
    assert value == GOLDEN['cls/ce_mean/all_masked'] == 0.0
    np.testing.assert_array_equal(gradient, np.zeros((10, 9)))


def test_smoothed_targets():
    smoothed = losses.smooth_labels(golden('cls/onehot'), 0.1)
    np.testing.assert_allclose(smoothed, GOLDEN['cls/smoothed_targets_0.1'], rtol=1e-7, atol=0)


def test_sigmoid_loss_is_summed_over_classes():
    def values(label_smoothing):
        return losses.per_example_loss(
            golden('cls/logits'),
            golden('multilabel/targets'),
            loss='sigmoid',
            head_sizes=(9,),
            label_smoothing=label_smoothing,
        )

    # Recorded with the mask without smoothing, and without the mask with it.
    masked = losses.masked_mean(values(0.0), golden('cls/weights'))
    smoothed = losses.masked_mean(values(0.1), jnp.ones(10))
    np.testing.assert_allclose(masked, GOLDEN['multilabel/sigmoid_ce_mean'], rtol=1e-6, atol=0)
    np.testing.assert_allclose(smoothed, GOLDEN['multilabel/sigmoid_ce_mean_ls_0.1'], rtol=1e-6, atol=0)


@pytest.mark.parametrize('form', ['one_hot', 'indices'])
def test_heads_are_averaged(form):
    labels = golden('multihead/onehot')
    if form == 'indices':
        labels = jnp.stack([labels[:, :7].argmax(1), labels[:, 7:].argmax(1)], axis=1)

    def values(label_smoothing):
        return losses.per_example_loss(
            golden('multihead/logits'),
            labels,
            loss='softmax',
            head_sizes=HEADS,
            label_smoothing=label_smoothing,
        )

    mask = golden('multihead/weights').astype(bool)
    everyone = losses.masked_mean(values(0.2), jnp.ones(10, bool))
    masked = losses.masked_mean(values(0.2), mask)
    np.testing.assert_allclose(everyone, GOLDEN['multihead/loss_ls_0.2'], rtol=1e-6, atol=0)
    np.testing.assert_allclose(masked, GOLDEN['multihead/loss_ls_0.2_mask'], rtol=1e-6, atol=0)
    # Scenic's total sums both heads over twice the examples: the same mean of the two heads' losses.
    total, count = GOLDEN['multihead/metrics_fn/total_loss']
    np.testing.assert_allclose(losses.masked_mean(values(0.0), mask), total / count, rtol=1e-6, atol=0)


@pytest.mark.parametrize(('name', 'columns'), [('noun', slice(0, 7)), ('verb', slice(7, 13))])
def test_each_head_is_a_loss_of_its_own(name, columns):
    logits, targets = (golden(f'multihead/{key}')[:, columns] for key in ('logits', 'onehot'))
    values = losses.softmax_cross_entropy(logits, targets)
    total, count = GOLDEN[f'multihead/metrics_fn/{name}_loss']
    mean = losses.masked_mean(values, golden('multihead/weights'))
    np.testing.assert_allclose(mean, total / count, rtol=1e-6, atol=0)


def test_metrics_loss_has_no_smoothing():
    total, count = GOLDEN['metrics_fn/loss']
    mean = losses.masked_mean(softmax_loss(golden('cls/onehot')), golden('cls/weights'))
    np.testing.assert_allclose(mean, total / count, rtol=1e-6, atol=0)


def test_three_label_forms_give_the_same_targets():
    one_hot = golden('cls/onehot')
    indices = one_hot.argmax(1).astype(jnp.int32)
    for labels in (one_hot, indices, indices[:, None]):
        targets = losses.one_hot_targets(labels, (9,))
        assert targets.dtype == jnp.float32
        np.testing.assert_array_equal(targets, one_hot)
    heads = jnp.array([[2, 0], [0, 1]], jnp.int32)
    np.testing.assert_array_equal(losses.one_hot_targets(heads, (3, 2)), [[0, 0, 1, 1, 0], [1, 0, 0, 0, 1]])


def test_an_index_outside_its_head_is_no_class():
    targets = losses.one_hot_targets(jnp.array([[-1, 2], [1, 1]], jnp.int32), (3, 2))
    np.testing.assert_array_equal(targets, [[0, 0, 0, 0, 0], [0, 1, 0, 0, 1]])


def test_padding_may_hold_nan():
    values = jnp.array([1.0, jnp.nan, 3.0])
    assert losses.masked_mean(values, jnp.array([True, False, True])) == 2.0
    assert losses.masked_mean(jnp.array([1.0, 2.0, 4.0]), jnp.array([0.25, 0.5, 0.0])) == 1.25 / 0.75


def test_bfloat16_logits_are_summed_in_float32():
    logits = golden('cls/logits').astype(jnp.bfloat16)
    settings = {'loss': 'softmax', 'head_sizes': (9,), 'label_smoothing': 0.1}
    values = losses.per_example_loss(logits, golden('cls/onehot'), **settings)
    rounded = losses.per_example_loss(logits.astype(jnp.float32), golden('cls/onehot'), **settings)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(values, rounded)


def softmax_twice(logits, targets, label_smoothing=0.0):
    return losses.per_example_loss(
        logits,
        targets,
        loss='softmax_twice',
        head_sizes=(logits.shape[1],),
        label_smoothing=label_smoothing,
    )


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_softmax_twice_is_the_textbooks(smoothing):
    """In float64 by the definition, of one-hot targets and of mixed ones."""

    def softmax(x):
        return np.exp(x) / np.exp(x).sum(axis=1, keepdims=True)

    logits = np.asarray(golden('cls/logits'), np.float64)
    one_hot = np.asarray(golden('cls/onehot'), np.float64)
    for targets in (one_hot, 0.7 * one_hot + 0.3 * one_hot[::-1]):
        smoothed = targets * (1 - smoothing) + smoothing / 9
        expected = -(smoothed * np.log(softmax(softmax(logits)))).sum(axis=1)
        found = softmax_twice(jnp.asarray(logits, jnp.float32), jnp.asarray(targets, jnp.float32), smoothing)
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_softmax_twice_is_pytorchs_of_probabilities():
    torch = pytest.importorskip('torch', reason='compares with PyTorch, which is not installed')
    logits, labels = np.array(golden('cls/logits')), np.array(golden('cls/onehot')).argmax(1)
    x = torch.from_numpy(logits).requires_grad_()
    probabilities = torch.nn.functional.softmax(x, dim=-1)
    expected = torch.nn.functional.cross_entropy(probabilities, torch.from_numpy(labels), reduction='none')
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    labels = jnp.asarray(labels, jnp.int32)
    np.testing.assert_allclose(softmax_twice(jnp.asarray(logits), labels), expected.detach(), rtol=1e-6)
    found = jax.grad(lambda x: softmax_twice(x, labels).sum())(jnp.asarray(logits))
    np.testing.assert_allclose(found, gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(('classes', 'floor'), [(2, 0.3132617), (3, 0.5514447), (11, 1.5430405)])
def test_softmax_twice_has_a_floor(classes, floor):
    """ln(e + k - 1) - 1, where the model is certain and right; certain and wrong costs exactly 1 more."""
    logits, labels = 100.0 * jnp.eye(classes), jnp.arange(classes)
    np.testing.assert_allclose(np.log(np.e + classes - 1) - 1, floor, rtol=1e-6)
    np.testing.assert_allclose(softmax_twice(logits, labels), np.full(classes, floor), rtol=1e-6)
    np.testing.assert_allclose(softmax_twice(logits, (labels + 1) % classes), floor + 1, rtol=1e-6)
    # Knowing nothing costs the same as with a single softmax.
    np.testing.assert_allclose(
        softmax_twice(0 * logits, labels), np.full(classes, np.log(classes)), rtol=1e-6
    )


def test_what_makes_probabilities():
    assert {name: losses.loss_kind(name) for name in losses.LOSSES} == {
        'softmax': 'softmax',
        'softmax_twice': 'softmax',
        'sigmoid': 'sigmoid',
    }


@pytest.mark.parametrize('loss', sorted(losses.LOSSES))
def test_huge_logits_stay_finite(loss):
    logits = jnp.array([[1e4, -1e4, 0.0]])
    value, gradient = jax.value_and_grad(
        lambda x: losses.per_example_loss(
            x, jnp.array([1]), loss=loss, head_sizes=(3,), label_smoothing=0.1
        ).sum()
    )(logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'loss': 'hinge'}, "loss 'hinge' is none of softmax, softmax_twice, sigmoid"),
        ({'label_smoothing': 1.0}, r'label_smoothing 1.0 must be in \[0, 1\)'),
        ({'label_smoothing': -0.1}, r'label_smoothing -0.1 must be in \[0, 1\)'),
        ({'loss': 'sigmoid', 'head_sizes': (4, 5)}, r"'sigmoid' takes one head, not \(4, 5\)"),
        ({'head_sizes': (4, 4)}, r'float labels of shape \(10, 9\) must be \[b 8\]'),
        ({'head_sizes': (4, 4), 'labels': jnp.zeros((10, 2), jnp.int32)}, r'\(4, 4\) must add up to 9'),
        ({'head_sizes': (4, 5), 'labels': jnp.zeros(10, jnp.int32)}, r'do not go with the heads \(4, 5\)'),
    ],
)
def test_bad_arguments(change, message):
    arguments = {
        'labels': golden('cls/onehot'),
        'loss': 'softmax',
        'head_sizes': (9,),
        'label_smoothing': 0.0,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        losses.per_example_loss(golden('cls/logits'), **arguments)
