"""Experiments on volumes from end to end: MedMNIST 3D, on small stand-ins for the published files, and own scans."""

import csv
import hashlib
import json
import math

import numpy as np
import pytest
from conftest import load_tool
from test_medmnist import publish

from vivit_jax import experiment, medical_metrics, train
from vivit_jax.config import load
from vivit_jax.evaluate import evaluate
from vivit_jax.models.embed import token_grid

CLASSES = {'organ': 11, 'adrenal': 2, 'fracture': 3}
COUNTS = (24, 22, 22)
QUICK = {
    'training.steps': '4',
    'training.batch_size': '8',
    'training.log_every': '2',
    'evaluation.every_steps': '2',
    'evaluation.batch_size': '8',
}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Writes a file of a set's layout, whose volumes are brighter from class to class, as the published one."""

    def write(name):
        random = np.random.default_rng(0)
        arrays = {}
        for split, count in zip(('train', 'val', 'test'), COUNTS, strict=True):
            labels = np.arange(count) % CLASSES[name]
            noise = random.integers(0, 40, (count, 28, 28, 28))
            arrays[f'{split}_images'] = (noise + 18 * labels[:, None, None, None]).astype(np.uint8)
            arrays[f'{split}_labels'] = labels.astype(np.uint8)[:, None]
        path = tmp_path / f'{name}mnist3d.npz'
        np.savez(path, **arrays)
        publish(
            monkeypatch, name, 28, hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest(), COUNTS
        )
        return str(tmp_path)

    return write


def run(spec, root, workdir, **settings):
    """Trains; returns the report, the training losses and the metrics of each validation."""
    config = load(f'configs/{spec}', QUICK | {'data.root': root} | settings)
    report = train.train(config, workdir)
    rows = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
    losses = [row['loss'] for row in rows if row['split'] == 'train']
    return report, losses, [row for row in rows if row['split'] == 'validation']


def test_the_published_setting(stand_in, tmp_path, capsys):
    report, losses, _ = run('organmnist3d.py:published', stand_in('organ'), tmp_path / 'run')
    said = ' '.join(capsys.readouterr().out.split())
    assert '1.654 M parameters' in said
    assert 'the last 4 frames of 28, the last 4 rows of 28, the last 4 columns of 28 fill no tubelet' in said
    # With a softmax twice a loss is ln(k) at the start as well, but within its narrow bounds.
    assert math.log(math.e + 10) - 1 < min(losses) <= max(losses) < math.log(math.e + 10)
    assert abs(losses[0] - math.log(11)) < 0.1
    test = report['test']
    assert test['count'] == 22
    assert test['majority_accuracy'] == 2 / 22
    assert len(test['per_class']) == 11
    assert set(test['per_class']['liver']) >= {'recall', 'f1', 'auc', 'precision'}
    # The last step is what is evaluated, as published.
    assert 'evaluating step 4' in said
    assert ', the best by' not in said


def test_the_published_values():
    config = load('configs/organmnist3d.py:published')
    clip = experiment.clip_shape(config)
    assert clip == (28, 28, 28, 1)
    assert token_grid(clip[:3], config.model.tubelet, config.model.remainder) == (3, 3, 3)
    model, optimizer, training = config.model, config.optimizer, config.training
    assert model.attention == 'spatio_temporal'
    assert (model.num_layers, model.num_heads, model.width, model.classifier) == (8, 8, 128, 'gap')
    assert (optimizer.name, optimizer.learning_rate, optimizer.schedule) == ('adam', 1e-4, 'constant')
    assert (optimizer.weight_decay, optimizer.weight_decay_mode) == (1e-5, 'l2')
    assert optimizer.weight_decay_mask == 'all'
    assert (training.batch_size, training.epochs, training.loss) == (32, 60.0, 'softmax_twice')
    assert sum(config.data.num_classes) == 11
    # What the slip is compared with differs in nothing but the loss.
    plain = load('configs/organmnist3d.py:published_plain')
    assert plain.training.loss == 'softmax'
    plain.training.loss, plain.name = training.loss, config.name
    assert plain.to_dict() == config.to_dict()


def test_the_published_setting_on_another_set(stand_in, tmp_path):
    settings = {'data.medmnist.name': 'fracture', 'data.num_classes': '3', 'model.num_layers': '1'}
    report, _, _ = run('organmnist3d.py:published', stand_in('fracture'), tmp_path / 'run', **settings)
    assert len(report['test']['per_class']) == 3
    assert report['test']['majority_accuracy'] == 8 / 22


def test_our_recipe_is_selected_by_validation_auc(stand_in, tmp_path, capsys):
    root, workdir = stand_in('adrenal'), tmp_path / 'run'
    settings = {
        'model.num_layers': '1',
        'model.width': '8',
        'model.mlp_dim': '8',
        'optimizer.warmup_steps': '1',
    }
    settings |= {'training.steps': '6', 'seed': '5'}
    report, _, validations = run('medmnist3d.py:adrenal', root, workdir, **settings)
    best = max(validations, key=lambda row: (row['auc'], row['step']))
    assert len(validations) == 3
    assert f'evaluating step {best["step"]}, the best by auc' in capsys.readouterr().out
    test = report['test']
    assert json.loads((workdir / 'eval.json').read_text()) == report
    assert test['accuracy'] == test['top_1']
    assert test['balanced_accuracy'] == pytest.approx(test['mean_per_class'], abs=1e-12)
    for one in test['per_class'].values():
        assert one['recall'] == pytest.approx(one['accuracy'], abs=1e-12)
    # The result file holds what the numbers were made from, in the order of the split.
    (result,) = workdir.glob('adrenalmnist3d_test_*')
    assert result.name == f'adrenalmnist3d_test_[AUC]{test["auc"]:.3f}_[ACC]{test["accuracy"]:.3f}@5.csv'
    with result.open() as file:
        rows = np.array(list(csv.reader(file)), float)
    np.testing.assert_array_equal(rows[:, 0], np.arange(22))
    np.testing.assert_allclose(rows[:, 1:].sum(axis=1), 1.0, rtol=1e-12)
    labels = np.arange(22) % 2
    assert medical_metrics.official_auc(rows[:, 1:], labels) == test['auc']
    # Evaluated again, it is replaced; and the tool that compares reads the run.
    again = evaluate(load(str(workdir / 'config.json')), workdir)
    assert again['test']['auc'] == test['auc']
    assert [path.name for path in workdir.glob('adrenalmnist3d_test_*')] == [result.name]
    row = load_tool('medmnist_table').read_run(workdir)
    assert (row.experiment, row.name, row.size, row.values[0]) == ('medmnist3d', 'adrenal', 28, test['auc'])


def test_own_scans_from_files_to_predictions(tmp_path, capsys):
    random = np.random.default_rng(0)
    scans = tmp_path / 'scans'
    for number in range(20):
        label = 'ill' if number % 4 == 0 else 'well'
        (scans / label).mkdir(parents=True, exist_ok=True)
        np.save(scans / label / f'{number:02d}.npy', random.normal(number % 4 == 0, 1.0, (9, 10, 11)))
    (scans / 'ill' / 'torn.npy').write_bytes((scans / 'ill' / '00.npy').read_bytes()[:-1])
    small = {'data.frames': '8', 'data.crop': '8,8', 'model.tubelet': '4,4,4', 'model.num_layers': '1'}
    small |= {'model.width': '12', 'model.mlp_dim': '8', 'data.sampling': 'balanced', 'data.max_bad': '0.5'}
    small |= {'optimizer.warmup_steps': '1', 'data.cache': str(tmp_path / 'cache')}
    workdir = tmp_path / 'run'
    with pytest.warns(UserWarning, match=r'ill/torn\.npy \(cut off: 8,047 of 8,048 bytes are there\)'):
        report, _, validations = run('my_volumes.py', str(scans), workdir, **small)
    said = ' '.join(capsys.readouterr().out.split())
    assert 'balanced sampling: every class equally often' in said
    best = max(validations, key=lambda row: (row['auc'], row['step']))
    assert f'evaluating step {best["step"]}, the best by auc' in said
    with (workdir / 'predictions.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert [row['name'].partition('/')[0] for row in rows] == [row['label'] for row in rows]
    # The official AUC of these very predictions, and the confusion table that goes with them.
    scores = [dict(zip(row['top_5'].split('|'), row['scores'].split('|'), strict=True)) for row in rows]
    scores = np.array([[float(each[name]) for name in ('ill', 'well')] for each in scores])
    labels = np.array([('ill', 'well').index(row['label']) for row in rows])
    found = report['validation']
    assert found['count'] == len(rows) >= 3
    assert found['auc'] == medical_metrics.official_auc(scores, labels)
    assert found['majority_accuracy'] == max(np.mean(labels), 1 - np.mean(labels))
    assert set(found['per_class']['ill']) >= {'recall', 'f1', 'auc'}
    assert not list(workdir.glob('*mnist3d*'))


def test_several_heads_have_no_medical_report():
    config = load('configs/epic_kitchens_fe.py')
    config.evaluation.report = 'medical'
    with pytest.raises(
        ValueError, match=r"evaluation\.report='medical' takes one head, not data\.heads=\('noun"
    ):
        experiment.check(config)
    config.evaluation.report = 'clinical'
    with pytest.raises(ValueError, match=r"evaluation\.report='clinical': choose one of standard, medical"):
        experiment.check(config)
