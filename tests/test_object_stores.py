"""Whole runs in object stores: a fake, to which Orbax with TensorStore, gcsfs and s3fs are led."""

import csv
import json
import os

import jax
import numpy as np
import object_store
import pytest

import vivit_jax
from tiny import DIGITS, SETTINGS
from vivit_jax import (
    closing,
    config,
    evaluate,
    experiment,
    formats,
    init_from,
    main,
    paths,
    report,
    sharding,
    train,
)
from vivit_jax.checkpoint import Checkpoints
from vivit_jax.predict import __main__ as predict

KINDS = ('gs', 's3')
TINY = SETTINGS | {
    'training.steps': '6',
    'training.log_every': '1',
    'evaluation.every_steps': '3',
    'checkpoint.every_steps': '3',
    'data.moving_digits.train_size': '24',
    'data.moving_digits.validation_size': '8',
    'data.moving_digits.test_size': '8',
    'data.test_splits': 'test',
}


@pytest.fixture(scope='module', autouse=True)
def store():
    return object_store.serve()


def curve(folder):
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    timed = ('clips_per_second', 'data_wait')
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def parameters(folder, settings):
    with Checkpoints(folder) as checkpoints:
        step = checkpoints.latest_step()
        model = experiment.make_model(settings)
        return step, jax.device_get(
            evaluate.load_params(checkpoints, step, model, settings, sharding.make_mesh())
        )


def assert_same(one, other):
    assert one[0] == other[0]
    jax.tree.map(np.testing.assert_array_equal, one[1], other[1])


# --- Runs ---


class Killed:
    """Keeps what was in the store when the first file of the last checkpoint but its first ones was written."""

    def __init__(self, store, folder):
        self.store, self.folder, self.objects = store, folder, None
        self.put = store.put
        store.put = self

    def __call__(self, name, content, expected=None):
        done = self.put(name, content, expected)
        if self.objects is None and name.startswith(f'{self.folder}/checkpoints/6/') and '/params/' in name:
            self.objects = {n: c for n, c in self.store.objects.items() if n.startswith(f'{self.folder}/')}
        return done


@pytest.fixture(scope='module', params=KINDS)
def runs(request, store):
    """An undisturbed run, and one of which was left what is there when a process is killed while it saves."""
    settings = config.load(DIGITS, TINY)
    whole = paths.path(f'{request.param}://bucket/runs/{request.param}')
    killed = Killed(store, str(whole).partition('://')[2])
    train.train(settings, str(whole))
    store.put = killed.put
    again = whole.with_name(f'killed-{request.param}')
    for name, content in killed.objects.items():
        if name.endswith('/run.lock'):
            content = json.dumps(
                json.loads(content) | {'process': 2**22 + 1}
            ).encode()  # none of this machine
        store.put(name.replace(f'/runs/{whole.name}/', f'/runs/{again.name}/', 1), content)
    return settings, whole, again


def test_a_run_that_was_killed_goes_on_in_a_store(runs, store, capsys):
    """As one on a disk: with the same numbers and the same parameters, bit for bit."""
    settings, whole, again = runs
    left = {name for name in store.objects if f'/{again.name}/checkpoints/6/' in name}
    assert left
    assert not any(name.endswith('6/commit_success.txt') for name in left)
    assert [row['step'] for row in curve(again)] == [1, 2, 3, 3, 4, 5, 6, 6][: len(curve(again))]
    train.train(settings, str(again))
    told = capsys.readouterr().out
    assert 'going on from step 3' in told
    assert 'was left by process' in told
    assert curve(again) == curve(whole)
    assert [(row['split'], row['step']) for row in curve(whole)][-2:] == [('train', 6), ('validation', 6)]
    assert_same(parameters(again, settings), parameters(whole, settings))
    results = [json.loads((folder / 'eval.json').read_text()) for folder in (whole, again)]
    assert results[0] == results[1]
    sessions = json.loads((again / 'run.json').read_text())['sessions']
    assert [session['exit'] for session in sessions] == ['failed', 'done']


@pytest.mark.parametrize('runs', ['gs'], indirect=True)
def test_it_leaves_what_a_run_on_a_disk_leaves(runs, tmp_path):
    settings, whole, _ = runs
    train.train(settings, tmp_path / 'here')
    here = {path.name.split('.tfevents')[0] for path in (tmp_path / 'here').iterdir()}
    assert {path.name.split('.tfevents')[0] for path in whole.iterdir()} == here
    assert curve(tmp_path / 'here') == curve(whole)
    for name in ('predictions.csv', 'confusion_test.csv', 'eval.json', 'config.json'):
        assert (whole / name).read_bytes() == (tmp_path / 'here' / name).read_bytes()
    assert_same(parameters(tmp_path / 'here', settings), parameters(whole, settings))


def test_evaluating_and_reporting_a_run_in_a_store(runs, store):
    settings, whole, _ = runs
    before = json.loads((whole / 'eval.json').read_text())
    paths.unlink(whole / 'eval.json')
    paths.unlink(whole / 'report.html')
    assert evaluate.evaluate(settings, str(whole), afterwards=closing.report_evaluation) == before
    assert json.loads((whole / 'eval.json').read_text()) == before
    assert '<h1' in (whole / 'report.html').read_text()
    told = report.write(str(whole), str(whole.parent / 'other.html'), clips=False)
    assert str(told) == f'{whole.parent}/other.html'
    assert str(whole) in told.read_text()


@pytest.mark.parametrize('runs', ['gs'], indirect=True)
def test_predicting_by_a_run_in_a_store(runs, capsys):
    _, whole, _ = runs
    output, features = whole.parent / 'out.csv', whole.parent / 'features.npz'
    assert predict.main(['test:0-2', f'--checkpoint={whole}', f'--output={output}']) == 0
    rows = list(csv.reader(output.read_text().splitlines()))
    expected = [row for row in csv.DictReader((whole / 'predictions.csv').read_text().splitlines())][:3]
    assert [row[0] for row in rows[1:]] == [row['name'] for row in expected]
    assert [row[4] for row in rows[1:]] == [row['top_5'].split('|')[0] for row in expected]
    assert predict.main(['test:0-1', f'--checkpoint={whole}', f'--features={features}']) == 0
    with paths.local(features) as file, np.load(file) as arrays:
        assert arrays['features'].shape == (2, 16)
    assert str(output) in capsys.readouterr().err


@pytest.mark.parametrize('runs', ['gs'], indirect=True)
def test_starting_from_a_run_in_a_store(runs):
    _settings, whole, _ = runs
    weights = init_from.read(config.load(DIGITS, TINY | {'init_from.path': str(whole)}))
    assert weights.kind == 'vivit_jax'
    assert weights.path.startswith(f'{whole}/checkpoints/')
    assert config.load(f'{whole}/config.json').model.width == 16


def test_a_bucket_that_is_not_there_is_named():
    for kind in KINDS:
        with pytest.raises(ValueError, match=r'^--workdir=') as caught:
            train.train(config.load(DIGITS, TINY), f'{kind}://nobodys/run')
        assert str(caught.value).startswith(f'--workdir={kind}://nobodys/run cannot be made a folder: ')
        assert '\n' not in str(caught.value)


def test_weights_of_others(store):
    """A file with what lies beside it, and a folder."""
    golden = os.path.join(os.path.dirname(__file__), 'golden', 'formats')
    name = next(name for name in sorted(os.listdir(golden)) if os.path.isdir(os.path.join(golden, name)))
    for file in os.listdir(os.path.join(golden, name)):
        with open(os.path.join(golden, name, file), 'rb') as opened:
            store.put(f'bucket/weights/{name}/{file}', opened.read())
    here = formats.load(os.path.join(golden, name))
    for there in (f'gs://bucket/weights/{name}', f's3://bucket/weights/{name}'):
        weights = formats.load(there)
        assert weights.path.startswith(there)
        assert weights.model == here.model
        jax.tree.map(np.testing.assert_array_equal, weights.params, here.params)
    store.put('bucket/weights/no.npz', b'nothing')
    with pytest.raises(ValueError, match=r'^gs://bucket/weights/no\.npz: '):
        formats.load('gs://bucket/weights/no.npz')
    with pytest.raises(ValueError, match=r'^s3://bucket/weights/none: does not exist$'):
        vivit_jax.load('s3://bucket/weights/none')


@pytest.mark.parametrize(
    'options',
    [
        ['--config=gs://bucket/c.py'],
        [f'--config={DIGITS}', '--config.data.cache=gs://bucket/cache'],
        [f'--config={DIGITS}', '--workdir=gs:/bucket/x'],
        [f'--config={DIGITS}', '--config.data.source=array_record', '--config.data.root=s3://bucket/x'],
    ],
)
def test_what_must_be_here_gets_one_line(options, capsys):
    assert main.main(options) == 2
    told = capsys.readouterr().err
    assert told.startswith('error: ')
    assert told.count('\n') == 1
    assert 'gcloud storage cp' in told or 'aws s3 cp' in told or 'gs://BUCKET/' in told
