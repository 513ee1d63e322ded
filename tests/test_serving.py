"""Evaluation and prediction at full speed: what is read, in which batches, when, and in which numbers."""

import functools
import json
import pathlib
import threading
import time

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest

import vivit_jax
from tiny import DIGITS, SETTINGS
from videos import write_video
from vivit_jax import evaluate, experiment, feeding, sharding, train
from vivit_jax.config import load
from vivit_jax.data.record import Record
from vivit_jax.formats import own
from vivit_jax.inference import DTYPES
from vivit_jax.models.vivit import ViViT, create_model
from vivit_jax.predict import __main__ as predict

ROOT = pathlib.Path(__file__).parent.parent
PATIENCE = 60.0  # seconds that a test waits for what must come
VIDEOS = {key: value for key, value in SETTINGS.items() if not key.startswith('data.moving_digits')} | {
    'model.tubelet': '2,16,16',
    'data.frames': '4',
    'data.stride': '2',
    'data.short_side': '36',
    'data.crop': '32,32',
    'data.flip': '0.5',
    'data.threads': '2',
    'data.test_splits': 'test',
    'evaluation.temporal_views': '2',
    'evaluation.spatial_views': '3',
    'evaluation.batch_size': '24',
}


class Counted:
    """Videos of noise that note every read: which video, which frames."""

    class_names = ('a', 'b')
    digest = 'counted'
    bad = ()

    def __init__(self, length, on_read=lambda index: None):
        self.length, self.on_read, self.reads = length, on_read, []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        def read(chosen):
            self.reads.append((index, chosen.tolist()))
            self.on_read(index)
            noise = np.random.default_rng(index).integers(0, 256, (20, 36, 48, 3), np.uint8)
            return noise[chosen]

        return Record(name=str(index), label=index % 2, num_frames=20, frame_size=(36, 48), read=read)


def settings(**changes):
    return load(
        str(ROOT / 'configs' / 'my_videos.py'),
        VIDEOS | {key.replace('__', '.'): str(value) for key, value in changes.items()},
    )


def one_device():
    return sharding.make_mesh(devices=jax.devices()[:1])


def rows_of(batch):
    return {'mask': batch['mask'], 'index': batch['index']}


def parameters(config, random_params, classes=2):
    model = create_model(classes, **config.model)
    return model, random_params(model, np.zeros((1, *experiment.clip_shape(config)), np.float32))


# --- what is read, and in which batches


@pytest.mark.parametrize('devices', [1, 8])
def test_a_video_is_read_once_for_all_its_views(devices):
    """Temporal, spatial and mirrored views come from one read of the frames they share; padding from none."""
    config = settings(evaluation__mirror_views='True')
    source, shapes, masks = Counted(10), [], []

    def step(params, batch):
        shapes.append(batch['video'].shape)
        masks.append(np.asarray(batch['mask']))
        return rows_of(batch)

    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    found = list(evaluate.batches_of(config, source, None, step, mesh, views=(2, 3)))
    # Clips of four frames, two apart, begin at frames 0 and 13 of 20.
    union = [0, 2, 4, 6, 13, 15, 17, 19]
    assert sorted(source.reads) == [(index, union) for index in range(10)]
    assert np.concatenate([rows['index'] for rows in found]).tolist() == list(range(10))
    # 24 clips are two videos of 2 x 3 x 2 views, but every device has one.
    rows = max(2, devices)
    batches = -(-10 // rows)
    assert shapes == [(rows, 12, 4, 32, 32, 3)] * batches
    assert np.concatenate(masks).tolist() == [True] * 10 + [False] * (batches * rows - 10)


@pytest.mark.parametrize(('length', 'processes'), [(10, 1), (9, 2), (6, 2), (5, 4), (8, 4)])
def test_padding_is_not_read_on_any_process(length, processes, monkeypatch):
    """Every process has whole batches; but for one row, where nothing is left for it, it reads its own alone."""
    from vivit_jax.data import pipeline

    config = settings()
    counted, rows = [], []
    monkeypatch.setattr(jax, 'process_count', lambda: processes)
    monkeypatch.setattr(sharding, 'to_global', lambda batch, mesh: batch)
    for process in range(processes):
        monkeypatch.setattr(jax, 'process_index', lambda process=process: process)
        source = Counted(length)
        examples = feeding.evaluation_examples(config, source, temporal_views=1, spatial_views=1)
        reading = feeding.reading(config, one_device())
        options = {'batch_size': 4, 'first_step': 0, 'last_step': -(-length // 4), 'length': length}
        with pipeline.batches(examples, **options, **reading) as batches:
            every = list(batches)
        assert [len(batch['mask']) for batch in every] == [4 // processes] * -(-length // 4)
        rows += [index for batch in every for index in batch['index'][batch['mask']].tolist()]
        own_rows = sum(int(batch['mask'].sum()) for batch in every)
        lacking = not every[-1]['mask'].any()
        counted.append(len(source.reads) - own_rows - lacking)
    assert sorted(rows) == list(range(length))
    assert counted == [0] * processes


def test_views_fold_into_batches_of_one_size(random_params, monkeypatch):
    """The model sees evaluation.batch_size clips, whatever the views, and compiles once: the last is full."""
    config = settings()
    model, params = parameters(config, random_params)
    seen = []

    def note(call, arguments, keywords, context):
        if isinstance(context.module, ViViT) and context.method_name == '__call__':
            seen.append(arguments[0].shape)
        return call(*arguments, **keywords)

    chex.clear_trace_counter()
    monkeypatch.setattr(evaluate, 'eval_step', chex.assert_max_traces(evaluate.eval_step, n=1))
    mesh = one_device()
    step = evaluate.make_eval_step(config, model, (2,), mesh)
    with nn.intercept_methods(note):
        outcome = evaluate.evaluate_source(config, Counted(10), params, step, mesh, views=(2, 3))
    assert outcome.metrics['count'] == 10
    assert seen == [(24, 4, 32, 32, 3)]
    assert step._cache_size() == 1


# --- when


def test_the_next_batch_is_read_while_one_computes(monkeypatch):
    """No step ends before the read for the next batch has begun, and none waits for the one before to be fetched."""
    count, events = 6, []
    begun = [threading.Event() for _ in range(count + 1)]
    begun[count].set()  # nothing is read after the last

    fetch = jax.device_get

    def fetched(rows):
        events.append(('fetched', int(rows['index'][0])))
        return fetch(rows)

    def step(params, batch):
        number = int(batch['index'][0])
        events.append(('begun', number))
        assert begun[number + 1].wait(PATIENCE), f'batch {number + 1} is not read while {number} computes'
        return rows_of(batch)

    monkeypatch.setattr(jax, 'device_get', fetched)
    source = Counted(count, on_read=lambda index: begun[index].set())
    config = settings(evaluation__batch_size=1, data__threads=1, data__prefetch=1)
    assert len(list(evaluate.batches_of(config, source, None, step, one_device()))) == count
    expected = [('begun', 0)]
    for number in range(1, count):
        expected += [('begun', number), ('fetched', number - 1)]
    assert events == [*expected, ('fetched', count - 1)]


def test_a_long_folder_is_read_no_further_ahead_than_a_short_one():
    config = settings(
        evaluation__batch_size=4, evaluation__temporal_views=1, data__threads=2, data__prefetch=1
    )
    steps, ahead = [0], []
    source = Counted(300, on_read=lambda index: ahead.append(index - 4 * steps[0]))

    def step(params, batch):
        time.sleep(0.01)  # far longer than a read
        steps[0] += 1
        return rows_of(batch)

    done = sum(1 for _ in evaluate.batches_of(config, source, None, step, one_device()))
    assert done == 75
    assert len(source.reads) == 300
    # Being read 2 x 2 threads or a batch; one put together, one on its way, one on the device, one in the step.
    assert 4 < max(ahead) <= 4 * 5


# --- the same path for both commands


@pytest.fixture(scope='module')
def folder(tmp_path_factory, random_params):
    """Seven videos, and a run with random parameters."""
    here = tmp_path_factory.mktemp('serving')
    for split in ('train', 'test'):
        for number in range(7):
            path = here / 'videos' / split / ('sit', 'stand')[number % 2] / f'{number}.mp4'
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, frames=20 + number)
    config = settings(data__root=here / 'videos', data__cache=here / 'cache')
    _, params = parameters(config, random_params)
    own.save(here / 'run', params, config.to_dict(), ['sit', 'stand'])
    return here


def config_of(folder, **changes):
    return settings(data__root=folder / 'videos', data__cache=folder / 'cache', **changes)


def test_a_folder_takes_the_evaluations_path(folder, monkeypatch, capsys):
    """Of `predict` the compiled step has the shapes of evaluation's, and is compiled as often: once."""
    steps = []
    make = evaluate.make_eval_step

    def made(*arguments):
        compiled, shapes = make(*arguments), []
        steps.append((compiled, shapes))

        @functools.wraps(compiled)
        def step(params, batch):
            shapes.append({name: (rows.shape, str(rows.dtype)) for name, rows in batch.items()})
            return compiled(params, batch)

        return step

    monkeypatch.setattr(evaluate, 'make_eval_step', made)
    evaluate.evaluate(config_of(folder), folder / 'run')
    capsys.readouterr()
    arguments = [str(folder / 'videos' / 'test'), f'--checkpoint={folder / "run"}', '--csv']
    assert predict.main(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8
    (evaluation, shapes), (prediction, others) = steps
    assert shapes == others
    assert shapes[0]['video'] == ((8, 6, 4, 32, 32, 3), 'uint8')
    assert evaluation._cache_size() == prediction._cache_size() == 1


# --- in which numbers


@pytest.fixture(scope='module')
def digits(tmp_path_factory):
    """A finished run of moving digits, its evaluation's report, and predictions in float32."""
    folder = tmp_path_factory.mktemp('runs') / 'digits'
    report = train.train(load(DIGITS, SETTINGS), folder)
    model = vivit_jax.load(folder)
    return folder, report, list(model.predictions(model.open(['test'])))


def assert_close(found, expected):
    """Top-1 names are equal, scores within 1 % of the largest logit, but not the same."""
    assert [one.top(1)[0][0] for one in found] == [one.top(1)[0][0] for one in expected]
    scores, exact = (np.stack([one.scores for one in every]) for every in (found, expected))
    largest = np.abs(exact).max()
    assert 0 < np.abs(scores - exact).max() <= 1e-2 * largest


def test_a_run_predicts_in_bfloat16(digits):
    folder, _, expected = digits
    model = vivit_jax.load(folder, dtype='bfloat16')
    assert model.model.dtype == 'bfloat16'
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {np.dtype(np.float32)}
    found = list(model.predictions(model.open(['test'])))
    assert_close(found, expected)
    other = vivit_jax.load(folder, {'model.dtype': 'bfloat16'})
    again = list(other.predictions(other.open(['test'])))
    np.testing.assert_array_equal([one.scores for one in again], [one.scores for one in found])
    # The run's is the default, and float32 is given where that is asked of a run in bfloat16.
    back = vivit_jax.load(folder, {'model.dtype': 'bfloat16'}, dtype='float32')
    exact = list(back.predictions(back.open(['test'])))
    np.testing.assert_array_equal([one.scores for one in exact], [one.scores for one in expected])


def test_a_dtype_that_is_none(digits):
    with pytest.raises(ValueError, match=r"^dtype='float16': choose one of float32, bfloat16$"):
        vivit_jax.load(digits[0], dtype='float16')
    assert predict.DTYPES == DTYPES


def test_the_command_predicts_in_bfloat16(digits, capsys):
    folder, _, expected = digits

    def rows(*options):
        assert predict.main(['test', f'--checkpoint={folder}', '--json', '--top=1', *options]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [json.loads(line)['top']['label'][0] for line in lines]

    plain, half = rows(), rows('--dtype=bfloat16')
    assert [row['class'] for row in plain] == [one.top(1)[0][0] for one in expected]
    assert [row['class'] for row in half] == [row['class'] for row in plain]
    assert [row['probability'] for row in half] != [row['probability'] for row in plain]
    assert rows('--dtype=bfloat16', '--config.model.dtype=bfloat16') == half
    assert rows('--dtype=float32') == plain
    for options, message in (
        (['--dtype=half'], '--dtype=half: choose one of float32, bfloat16'),
        (
            ['--dtype=bfloat16', '--config.model.dtype=float32'],
            '--dtype=bfloat16 and --config.model.dtype=float32: choose one',
        ),
    ):
        assert predict.main(['test', f'--checkpoint={folder}', *options]) == 2
        assert capsys.readouterr().err == f'error: {message}\n'


def test_a_run_is_evaluated_in_bfloat16(digits, capsys):
    folder, report, _ = digits
    config = load(DIGITS, SETTINGS | {'model.dtype': 'bfloat16'})
    before = (folder / 'config.json').read_text()
    half = evaluate.evaluate(config, folder)
    assert 'evaluating in bfloat16, trained in float32\n' in capsys.readouterr().out
    for split in ('test', 'test_still'):
        assert (report[split]['dtype'], half[split]['dtype']) == ('float32', 'bfloat16')
        assert half[split]['top_1'] == report[split]['top_1']
        assert half[split]['loss'] == pytest.approx(report[split]['loss'], rel=1e-2)
        assert half[split]['loss'] != report[split]['loss']
    assert json.loads((folder / 'eval.json').read_text()) == half
    assert (folder / 'config.json').read_text() == before
    # Training on is another matter.
    with pytest.raises(ValueError, match=r"model\.dtype is 'float32' there and 'bfloat16' here"):
        train.train(config, folder)
    with pytest.raises(ValueError, match=r"^model\.dtype='float16': choose one of float32, bfloat16$"):
        evaluate.evaluate(load(DIGITS, SETTINGS | {'model.dtype': 'float16'}), folder)
    capsys.readouterr()
    assert evaluate.evaluate(load(DIGITS, SETTINGS), folder) == report
    assert 'trained in' not in capsys.readouterr().out
