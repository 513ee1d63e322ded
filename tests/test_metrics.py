"""Metrics against the values Scenic recorded, scikit-learn, and whole-matrix arithmetic."""

import json
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from sklearn.metrics import average_precision_score

from vivit_jax import losses, metrics

FOLDER = Path(__file__).parent / 'golden' / 'scenic'
GOLDEN = np.load(FOLDER / 'D01_metrics_losses.npz')
RECORD = json.loads((FOLDER / 'D01_metrics_losses.json').read_text())
HEADS = (7, 6)


def single_head(scores, labels, **arguments):
    sizes = (scores.shape[1],)
    return metrics.classification_metrics(
        scores, labels, loss_kind='softmax', head_sizes=sizes, head_names=(), **arguments
    )


def noun_verb_labels():
    one_hot = GOLDEN['multihead/onehot']
    return np.stack([one_hot[:, :7].argmax(1), one_hot[:, 7:].argmax(1)], axis=1).astype(np.int32)


@pytest.mark.parametrize('top', [1, 3, 5])
def test_top_k_is_scenics(top):
    found = metrics.in_top_k(GOLDEN['cls/logits'], GOLDEN['cls/onehot'].argmax(1), top)
    np.testing.assert_array_equal(found, GOLDEN[f'cls/top{top}/w_none'].ravel().astype(bool))
    kept = GOLDEN['cls/weights'] > 0
    np.testing.assert_array_equal(found & kept, GOLDEN[f'cls/top{top}/w_mask'].ravel().astype(bool))


@pytest.mark.parametrize('top', [1, 5])
def test_ties_go_to_the_lower_class(top):
    found = metrics.in_top_k(GOLDEN['ties/logits'], GOLDEN['ties/onehot'].argmax(1), top)
    np.testing.assert_array_equal(found, GOLDEN[f'ties/top{top}'].ravel().astype(bool))


def test_ties_are_broken_as_by_lax_top_k():
    scores = np.random.default_rng(0).integers(0, 4, (200, 9)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 9, 200)
    _, best = jax.lax.top_k(scores, 4)
    np.testing.assert_array_equal(metrics.in_top_k(scores, labels, 4), (best == labels[:, None]).any(1))


def test_nan_is_never_right():
    scores = np.full((3, 7), np.nan, np.float32)
    scores[1:] = 0.0
    scores[1, 0] = np.inf
    scores[2, 6] = np.nan
    found = single_head(scores, np.array([0, 0, 0]))
    assert found == {'top_1': 1 / 3, 'top_5': 2 / 3, 'mean_per_class': 1 / 3}


@pytest.mark.parametrize('form', ['indices', 'one_hot'])
def test_single_head_equals_scenics_metrics(form):
    kept = GOLDEN['cls/weights'] > 0
    labels = GOLDEN['cls/onehot'][kept]
    found = single_head(GOLDEN['cls/logits'][kept], labels.argmax(1) if form == 'indices' else labels)
    for ours, theirs in (('top_1', 'accuracy'), ('top_5', 'accuracy_top_5')):
        total, count = GOLDEN[f'metrics_fn/{theirs}']
        assert found[ours] == float(total) / float(count)
    assert found['mean_per_class'] == RECORD['confusion_metrics']['recall/mean']


@pytest.mark.parametrize(('num_classes', 'names'), [(5, {'top_1'}), (6, {'top_1', 'top_5'})])
def test_top_5_needs_more_than_five_classes(num_classes, names):
    found = single_head(np.eye(num_classes, dtype=np.float32), np.arange(num_classes))
    assert found == dict.fromkeys({*names, 'mean_per_class'}, 1.0)


def test_mean_per_class_weighs_classes_not_examples():
    scores = np.eye(4, dtype=np.float32)[[0, 0, 0, 1, 0]]
    found = single_head(scores, np.array([0, 0, 0, 2, 2]))
    assert found == {'top_1': 0.6, 'mean_per_class': 0.5}


def test_confusion_matrix_and_its_ratios_are_scenics():
    kept = GOLDEN['cls/weights'] > 0
    predictions, labels = (GOLDEN[f'cls/{key}'][kept].argmax(1) for key in ('logits', 'onehot'))
    confusion = metrics.confusion_matrix(predictions, labels, 9)
    np.testing.assert_array_equal(confusion, GOLDEN['confusion/matrix'][0])
    values, means = metrics.per_class(confusion), metrics.mean_over_classes(confusion)
    for name in ('precision', 'recall', 'jaccard'):
        np.testing.assert_array_equal(
            values[name], [RECORD['confusion_metrics'][f'{name}/{i}'] for i in range(9)]
        )
        np.testing.assert_allclose(means[name], RECORD['confusion_metrics'][f'{name}/mean'], rtol=1e-7)
    np.testing.assert_array_equal(values['examples'], np.bincount(labels, minlength=9))
    np.testing.assert_array_equal(values['predicted'], np.bincount(predictions, minlength=9))


def test_confusion_ratios_of_a_small_case():
    confusion = np.array([[3, 1, 0], [2, 4, 0], [0, 0, 0]])
    values = metrics.per_class(confusion)
    np.testing.assert_allclose(values['precision'], [3 / 5, 4 / 5, 0], rtol=1e-15)
    np.testing.assert_allclose(values['recall'], [3 / 4, 4 / 6, 0], rtol=1e-15)
    np.testing.assert_allclose(values['jaccard'], [3 / 6, 4 / 7, 0], rtol=1e-15)
    assert metrics.mean_over_classes(confusion)['recall'] == pytest.approx((3 / 4 + 4 / 6) / 2, rel=1e-15)
    assert metrics.mean_over_classes(np.zeros((2, 2), int)) == {'precision': 0, 'recall': 0, 'jaccard': 0}


def test_joint_is_the_product_of_the_softmaxes():
    joint = metrics.joint_scores(GOLDEN['multihead/logits'], HEADS)
    probabilities = np.exp(joint) / np.exp(joint).sum(1, keepdims=True)
    # The recording is a float32 product of float32 softmaxes.
    np.testing.assert_allclose(probabilities, GOLDEN['multihead/joint_probs'], rtol=1e-6, atol=0)
    pairs = np.ravel_multi_index(tuple(noun_verb_labels().T), HEADS)
    np.testing.assert_array_equal(np.eye(42)[pairs], GOLDEN['multihead/joint_labels'])


def test_joint_top_k_is_scenics():
    found = metrics.joint_in_top_k(GOLDEN['multihead/logits'], noun_verb_labels(), HEADS, (1, 5))
    np.testing.assert_array_equal(found[0], GOLDEN['multihead/joint_top1'].astype(bool))
    np.testing.assert_array_equal(found[1], GOLDEN['multihead/joint_top5'].ravel().astype(bool))
    kept = GOLDEN['multihead/weights'] > 0
    np.testing.assert_array_equal(found[0] & kept, GOLDEN['multihead/joint_top1_mask'].astype(bool))


@pytest.mark.parametrize('form', ['indices', 'one_hot'])
@pytest.mark.parametrize('averaged', ['logits', 'softmax'])
def test_heads_equal_scenics_metrics(form, averaged):
    kept = GOLDEN['multihead/weights'] > 0
    scores = GOLDEN['multihead/logits'][kept]
    if averaged == 'softmax':
        scores = np.log(metrics.average_views(jnp.asarray(scores)[:, None], 'softmax', HEADS))
    found = metrics.classification_metrics(
        scores,
        noun_verb_labels()[kept] if form == 'indices' else GOLDEN['multihead/onehot'][kept],
        loss_kind='softmax',
        head_sizes=HEADS,
        head_names=('noun', 'verb'),
    )
    for ours, theirs in (('noun', 'noun'), ('verb', 'verb'), ('action', 'noun-verb')):
        for top, suffix in ((1, ''), (5, '_top_5')):
            total, count = GOLDEN[f'multihead/metrics_fn/{theirs}_accuracy{suffix}']
            assert found.pop(f'{ours}_top_{top}') == float(total) / float(count)
    assert set(found) == {'noun_mean_per_class', 'verb_mean_per_class'}


def test_joint_of_three_heads_equals_the_whole_table():
    random = np.random.default_rng(5)
    sizes = (3, 2, 4)
    scores = random.normal(size=(50, 9)).astype(np.float32)
    labels = np.stack([random.integers(0, size, 50) for size in sizes], axis=1)
    a, b, c = np.split(scores.astype(np.float64), [3, 5], axis=1)
    table = rearrange(a, 'n i -> n i 1 1') + rearrange(b, 'n j -> n 1 j 1') + rearrange(c, 'n k -> n 1 1 k')
    own = table[np.arange(50), labels[:, 0], labels[:, 1], labels[:, 2]]
    better = (table > own[:, None, None, None]).sum((1, 2, 3))
    found = metrics.joint_in_top_k(scores, labels, sizes, (1, 5))
    np.testing.assert_array_equal(found, np.stack([better < 1, better < 5]))
    assert 0 < found[1].sum() < 50


def test_joint_of_epic_kitchens_stays_small_in_memory():
    random = np.random.default_rng(6)
    sizes, count = (97, 300), 400
    scores = random.normal(size=(count, 397)).astype(np.float32)
    labels = np.stack([random.integers(0, size, count) for size in sizes], axis=1)
    scores[np.arange(0, count, 2), labels[::2, 0]] += 20
    scores[np.arange(0, count, 2), 97 + labels[::2, 1]] += 20
    tracemalloc.start()
    found = metrics.joint_in_top_k(scores, labels, sizes, (1, 5))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found[:, ::2].all()
    assert found[:, 1::2].mean() < 0.1
    assert peak < 40e6 < count * 97 * 300 * 8


def test_average_precision_equals_scikit_learns():
    random = np.random.default_rng(2)
    targets = (random.random((60, 9)) < 0.2).astype(np.float32)
    targets[:, 3] = 0.0
    scores = random.integers(0, 12, (60, 9)).astype(np.float32)  # with ties
    present = targets.any(axis=0)
    values = metrics.average_precision(scores, targets)
    np.testing.assert_array_equal(np.isnan(values), ~present)
    expected = [average_precision_score(targets[:, i], scores[:, i]) for i in np.flatnonzero(present)]
    np.testing.assert_allclose(values[present], expected, rtol=1e-12)
    found = metrics.classification_metrics(
        scores, targets, loss_kind='sigmoid', head_sizes=(9,), head_names=()
    )
    macro = average_precision_score(targets[:, present], scores[:, present], average='macro')
    assert found == {'mean_average_precision': pytest.approx(macro, rel=1e-12)}


def test_average_precision_of_scenics_multi_label_case():
    targets, scores = GOLDEN['multilabel/targets'], GOLDEN['cls/logits']
    expected = average_precision_score(targets[:, targets.any(0)], scores[:, targets.any(0)], average='macro')
    found = metrics.classification_metrics(
        scores, targets, loss_kind='sigmoid', head_sizes=(9,), head_names=()
    )
    assert found['mean_average_precision'] == pytest.approx(expected, rel=1e-12)


def test_sigmoid_metrics_of_class_indices_and_of_no_positive():
    def precision(labels, scores):
        return metrics.classification_metrics(
            scores, labels, loss_kind='sigmoid', head_sizes=(3,), head_names=()
        )

    scores = np.array([[3.0, 1, 2], [0, 2, 1], [1, 1, 0]], np.float32)
    assert precision(np.array([0, 1, 0]), scores) == {'mean_average_precision': 1.0}
    assert precision(np.zeros((3, 3), np.float32), scores) == {'mean_average_precision': 0.0}
    diverged = np.full((4, 1), np.nan, np.float32)
    np.testing.assert_array_equal(metrics.average_precision(diverged, np.eye(4)[:, :1]), [0.25])


@pytest.mark.parametrize('how', ['logits', 'softmax'])
def test_views_are_averaged_as_recorded(how):
    views = rearrange(jnp.asarray(GOLDEN['multiview/view_logits']), 'v k -> 1 v k')
    averaged = jax.jit(metrics.average_views, static_argnames='how')(views, how=how)
    np.testing.assert_allclose(averaged, GOLDEN[f'multiview/averaged_{how}'], rtol=1e-6, atol=2e-8)
    label = GOLDEN['multiview/label_onehot'][None]
    found = single_head(np.asarray(averaged), label)
    assert found['top_1'] == GOLDEN[f'multiview/metrics_{how}/accuracy'][0]
    assert found['top_5'] == GOLDEN[f'multiview/metrics_{how}/accuracy_top_5'][0]
    loss = losses.softmax_cross_entropy(averaged, jnp.asarray(label))
    np.testing.assert_allclose(loss, GOLDEN[f'multiview/metrics_{how}/loss'][:1], rtol=1e-6, atol=0)


def test_true_loss_of_averaged_probabilities_takes_their_logarithm():
    views = rearrange(jnp.asarray(GOLDEN['multiview/view_logits']), 'v k -> 1 v k')
    label = jnp.asarray(GOLDEN['multiview/label_onehot'])[None]
    loss = losses.softmax_cross_entropy(jnp.log(metrics.average_views(views, 'softmax')), label)
    own = GOLDEN['multiview/averaged_softmax'][0, label[0].argmax()]
    np.testing.assert_allclose(loss, [-np.log(own)], rtol=1e-6, atol=0)


def test_softmax_views_of_heads_have_a_softmax_each():
    views = jnp.asarray(GOLDEN['multihead/logits'])[None]
    averaged = metrics.average_views(views, 'softmax', HEADS)
    expected = jnp.concatenate(
        [jax.nn.softmax(views[..., :7]).mean(1), jax.nn.softmax(views[..., 7:]).mean(1)], axis=-1
    )
    np.testing.assert_allclose(averaged, expected, rtol=1e-6)
    np.testing.assert_array_equal(
        metrics.average_views(views, 'logits', HEADS), metrics.average_views(views, 'logits')
    )


SCORES = np.zeros((4, 9), np.float32)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'loss_kind': 'hinge'}, "loss 'hinge' is none of softmax, sigmoid"),
        ({'head_sizes': (4, 4)}, r'\(4, 4\) must add up to 9 classes'),
        ({'labels': np.array([0, 1, 9, 2])}, 'label 9 is outside the classes 0 to 8'),
        ({'labels': np.array([0, 1, -1, 2])}, 'label -1 is outside the classes 0 to 8'),
        ({'labels': np.zeros((4, 2), int)}, r'labels of shape \(4, 2\) do not go with the heads \(9,\)'),
        ({'loss_kind': 'sigmoid', 'head_sizes': (4, 5)}, "'sigmoid' takes one head"),
        (
            {'head_sizes': (4, 5), 'labels': np.zeros((4, 2), int)},
            "must be 2 different ones, none of them 'a",
        ),
        ({'scores': SCORES[:0], 'labels': np.zeros(0, int)}, 'at least one example'),
    ],
)
def test_bad_arguments(change, message):
    arguments = {
        'scores': SCORES,
        'labels': np.zeros(4, int),
        'loss_kind': 'softmax',
        'head_sizes': (9,),
        'head_names': ('noun', 'action'),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        metrics.classification_metrics(**arguments)


def test_bad_views_and_predictions():
    with pytest.raises(ValueError, match="view averaging 'max' is none of logits, softmax"):
        metrics.average_views(jnp.zeros((1, 2, 3)), 'max')
    with pytest.raises(ValueError, match=r'head sizes \(2,\) must add up to 3'):
        metrics.average_views(jnp.zeros((1, 2, 3)), 'softmax', (2,))
    with pytest.raises(ValueError, match='prediction 3 is outside the classes 0 to 2'):
        metrics.confusion_matrix(np.array([3]), np.array([0]), 3)
