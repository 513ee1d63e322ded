"""Medical metrics against MedMNIST's own evaluator, scikit-learn and values worked out by hand."""

import json

import numpy as np
import pytest
import sklearn.metrics

from vivit_jax import medical_metrics
from vivit_jax.data.medmnist import SETS
from vivit_jax.medical_metrics import (
    area_under_curve,
    balanced_accuracy,
    calibration_error,
    decided,
    majority_accuracy,
    official_accuracy,
    official_auc,
    per_class,
    probabilities,
    write_official,
)


def draw(num_examples, num_classes, ties=False, seed=0):
    """Probabilities that know something of their labels, and the labels, of every class at least one."""
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(num_examples) % num_classes)
    logits = random.normal(size=(num_examples, num_classes)) + np.eye(num_classes)[labels]
    if ties:
        logits = np.round(logits)
    return probabilities(logits, 'softmax'), labels


@pytest.fixture(scope='module')
def evaluator():
    return pytest.importorskip(
        'medmnist.evaluator', reason='compares with the package medmnist (and pandas), not installed'
    )


# --- The official metrics ---


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('name', SETS)
def test_official_metrics_are_medmnists(evaluator, tmp_path, name, ties):
    count = len(SETS[name].class_names)
    scores, labels = draw(83, count, ties)
    np.savez(tmp_path / f'{name}mnist3d.npz', val_labels=labels[:, np.newaxis].astype(np.uint8))
    official = evaluator.Evaluator(f'{name}mnist3d', 'val', root=str(tmp_path)).evaluate(scores)
    np.testing.assert_allclose(official_auc(scores, labels), official.AUC, rtol=0, atol=1e-9)
    np.testing.assert_allclose(official_accuracy(scores, labels), official.ACC, rtol=0, atol=1e-9)


def test_several_labels_are_medmnists(evaluator):
    random = np.random.default_rng(1)
    labels = (random.random((60, 5)) < 0.3).astype(np.float64)
    scores = probabilities(random.normal(size=(60, 5)) + labels, 'sigmoid')
    task = 'multi-label, binary-class'
    np.testing.assert_allclose(
        official_auc(scores, labels), evaluator.getAUC(labels, scores, task), rtol=0, atol=1e-9
    )
    np.testing.assert_allclose(
        official_accuracy(scores, labels), evaluator.getACC(labels, scores, task), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize(('name', 'size'), [('adrenal', 28), ('adrenal', 64), ('fracture', 28)])
def test_the_result_file_is_medmnists(evaluator, tmp_path, monkeypatch, capsys, name, size):
    """Its evaluator reads the file back to the same numbers, and would have given it the same name and content."""
    flag = f'{name}mnist3d' + ('' if size == 28 else f'_{size}')
    scores, labels = draw(40, len(SETS[name].class_names))
    np.savez(tmp_path / f'{flag}.npz', test_labels=labels[:, np.newaxis].astype(np.uint8))
    (tmp_path / 'theirs').mkdir()
    official = evaluator.Evaluator(f'{name}mnist3d', 'test', size=size, root=str(tmp_path))
    official.evaluate(scores, save_folder=str(tmp_path / 'theirs'), run='3')
    written = write_official(tmp_path, scores, labels, flag=flag, split='test', run='3')
    (theirs,) = (tmp_path / 'theirs').iterdir()
    assert written == theirs.name
    ours = np.loadtxt(tmp_path / written, delimiter=',')
    np.testing.assert_array_equal(ours, np.loadtxt(theirs, delimiter=','))
    np.testing.assert_array_equal(ours[:, 0], np.arange(40))
    np.testing.assert_array_equal(ours[:, 1:], scores)
    # Where the labels are is a default of theirs.
    monkeypatch.setattr(evaluator.Evaluator.__init__, '__defaults__', (None, str(tmp_path)))
    found = evaluator.Evaluator.parse_and_evaluate(str(tmp_path / written))
    capsys.readouterr()
    np.testing.assert_allclose(found, [official_auc(scores, labels), official_accuracy(scores, labels)])


def test_a_result_file_replaces_that_of_its_run(tmp_path):
    scores, labels = draw(12, 3)
    keys = {'flag': 'fracturemnist3d', 'split': 'test'}
    for run in ('0', '1', '10'):
        write_official(tmp_path, scores, labels, run=run, **keys)
    other = write_official(tmp_path, scores[::-1], labels, run='0', **keys)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 3
    assert other in names
    assert [name.partition('@')[2] for name in names if name != other] == ['1.csv', '10.csv']
    assert other == (
        f'fracturemnist3d_test_[AUC]{official_auc(scores[::-1], labels):.3f}_'
        f'[ACC]{official_accuracy(scores[::-1], labels):.3f}@0.csv'
    )


def test_two_classes_take_the_second_above_a_half():
    scores = np.array([[0.5, 0.5], [0.4, 0.6], [0.9, 0.1], [0.2, 0.8]])
    labels = np.array([0, 0, 0, 1])
    assert official_accuracy(scores, labels) == 0.75
    assert official_auc(scores, labels) == 1.0
    # By hand: positives 0.5 and 0.1 against 0.6 and 0.8 lose every one of four pairs.
    assert official_auc(scores, np.array([1, 0, 1, 0])) == 0.0


# --- The area under the curve ---


@pytest.mark.parametrize('decimals', [0, 1, 12])
def test_area_is_scikit_learns(decimals):
    random = np.random.default_rng(decimals)
    positive = random.random(200) < 0.2
    scores = np.round(random.normal(size=200) + positive, decimals)
    expected = sklearn.metrics.roc_auc_score(positive, scores)
    np.testing.assert_allclose(area_under_curve(scores, positive), expected, rtol=0, atol=1e-12)


def test_area_by_hand():
    scores = np.array([0.1, 0.4, 0.4, 0.8])
    # Pairs of a positive and a negative: 0.4 > 0.1 counts 1, 0.4 = 0.4 half, 0.8 > 0.1 and 0.8 > 0.4 count 1.
    assert area_under_curve(scores, np.array([False, True, False, True])) == 3.5 / 4
    assert area_under_curve(np.zeros(4), np.array([False, True, False, True])) == 0.5
    assert np.isnan(area_under_curve(scores, np.ones(4, bool)))
    assert np.isnan(area_under_curve(scores, np.zeros(4, bool)))
    infinite = np.array([-np.inf, 0.0, np.inf, np.nan])
    assert area_under_curve(infinite, np.array([False, False, True, False])) == 1.0
    assert area_under_curve(infinite, np.array([False, True, False, True])) == 1.5 / 4


def test_a_class_without_examples_is_left_out_of_means():
    scores, labels = draw(30, 2)
    wider = np.concatenate([scores, np.zeros((30, 1))], axis=1)
    areas = [area_under_curve(scores[:, k], labels == k) for k in range(2)]
    np.testing.assert_allclose(official_auc(wider, labels), np.mean(areas), rtol=0, atol=1e-15)
    assert balanced_accuracy(wider, labels) == balanced_accuracy(scores, labels)
    assert official_auc(scores, np.zeros(30, np.int64)) == 0.0
    assert np.isnan(per_class(wider, labels)['auc'][2])


# --- What the official ones leave out ---


@pytest.mark.parametrize('num_classes', [2, 3, 11])
def test_recall_f1_and_balance_are_scikit_learns(num_classes):
    scores, labels = draw(70, num_classes, ties=True)
    predicted = scores.argmax(1)
    found = per_class(scores, labels)
    settings = {'average': None, 'labels': np.arange(num_classes)}
    recalls = sklearn.metrics.recall_score(labels, predicted, **settings)
    np.testing.assert_allclose(found['recall'], recalls, rtol=1e-12)
    f1 = sklearn.metrics.f1_score(labels, predicted, **settings)
    np.testing.assert_allclose(found['f1'], f1, rtol=1e-12)
    np.testing.assert_allclose(
        balanced_accuracy(scores, labels), sklearn.metrics.balanced_accuracy_score(labels, predicted)
    )


def test_of_several_labels_each_class_is_balanced():
    labels = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    scores = np.array([[0.9, 0.6], [0.4, 0.7], [0.1, 0.2], [0.3, 0.5]])
    # Recalls 1/2 and 1/2, specificities 2/2 and 1/2.
    assert balanced_accuracy(scores, labels) == (0.75 + 0.5) / 2
    found = per_class(scores, labels)
    np.testing.assert_array_equal(found['recall'], [0.5, 0.5])
    np.testing.assert_array_equal(found['f1'], [2 / 3, 0.5])
    assert official_accuracy(scores, labels) == 5 / 8
    # Class 0 is absent from half of the examples, class 1 too: either answer is right half of the time.
    assert majority_accuracy(labels, 2) == 0.5


def test_calibration_by_hand():
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.4, 0.6]])
    labels = np.array([0, 1, 1, 1])
    # Of 15 bins 0.9 is in (13/15, 14/15], 0.7 in (10/15, 11/15] and 0.6 in (8/15, 9/15]: two examples of which half
    # are right, and one right example each.
    expected = (2 * abs(0.5 - 0.9) + abs(1 - 0.7) + abs(1 - 0.6)) / 4
    np.testing.assert_allclose(calibration_error(scores, labels), expected, rtol=1e-12)
    # In a single bin: right 3 of 4, confidence 3.1 / 4.
    np.testing.assert_allclose(calibration_error(scores, labels, bins=1), 0.1 / 4, rtol=1e-12)
    # Decided class by class: 0.9, 0.9 and 0.7 of the first, 0.6 and so on of the second, all above a half.
    hot = np.eye(2)[labels]
    np.testing.assert_allclose(calibration_error(scores, hot), expected, rtol=1e-12)


def test_certain_and_right_is_perfect():
    labels = np.array([0, 1, 2, 1])
    assert calibration_error(np.eye(3)[labels], labels) == 0.0
    assert calibration_error(np.eye(3)[(labels + 1) % 3], labels) == 1.0


def test_majority():
    assert majority_accuracy(np.array([0, 2, 2, 1, 2]), 3) == 0.6
    # The published test splits: 229 of 298 adrenal glands and 104 of 240 fractures.
    assert round(majority_accuracy((np.arange(298) >= 229).astype(np.int64), 2), 3) == 0.768
    assert round(majority_accuracy(np.repeat([0, 1, 2], [90, 104, 46]), 3), 3) == 0.433


def test_all_together():
    scores, labels = draw(50, 4)
    found = medical_metrics.medical_metrics(scores, labels)
    assert list(found) == ['auc', 'accuracy', 'balanced_accuracy', 'calibration_error', 'majority_accuracy']
    json.dumps(found)  # Python's floats
    assert found['auc'] == official_auc(scores, labels)
    assert found['accuracy'] == official_accuracy(scores, labels)


def test_any_form_of_labels():
    """As they come out of an evaluation: indices, a column of them, targets; of a softmax or of sigmoids."""
    logits, indices = np.array([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0]], np.float32), np.array([2, 1], np.int32)
    hot = np.eye(3, dtype=np.float32)[indices]
    for labels in (indices, indices[:, np.newaxis], 0.8 * hot + 0.1):
        scores, found = decided(logits, labels, 'softmax')
        np.testing.assert_array_equal(found, indices)
        np.testing.assert_allclose(scores, np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rtol=1e-6)
    for labels in (indices, hot):
        scores, found = decided(logits, labels, 'sigmoid')
        np.testing.assert_array_equal(found, hot)
        np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits)), rtol=1e-6)


@pytest.mark.parametrize('kind', ['softmax', 'sigmoid'])
def test_probabilities_of_huge_logits(kind):
    found = probabilities(np.array([[1e4, -1e4], [0.0, 0.0]], np.float32), kind)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, [[1.0, 0.0], [0.5, 0.5]])
