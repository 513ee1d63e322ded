"""Runs: what stopping and resuming must not change, what is refused, what is noticed."""

import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import types

import av
import jax
import numpy as np
import pytest

import vivit_jax
from tiny import DIGITS, ENVIRONMENT, SETTINGS, options
from vivit_jax import closing, evaluate, lock, sharding, train
from vivit_jax.checkpoint import Checkpoints
from vivit_jax.config import load
from vivit_jax.telling.terminal import Terminal

TINY = SETTINGS | {
    'model.dropout_rate': '0.1',
    'model.drop_path_rate': '0.1',
    'training.mixup_alpha': '0.2',
    'training.ema_decay': '0.9',
}


def tiny(**changes):
    return load(DIGITS, TINY | {key.replace('__', '.'): str(value) for key, value in changes.items()})


def curve(folder):
    """What `metrics.jsonl` has, without the clock's numbers."""
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if key not in ('clips_per_second', 'data_wait')}
        for row in rows
    ]


def parameters(folder, config):
    with Checkpoints(folder) as checkpoints:
        step = checkpoints.latest_step()
        model = evaluate.experiment.make_model(config)
        mesh = sharding.make_mesh()
        return step, jax.device_get(evaluate.load_params(checkpoints, step, model, config, mesh))


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    """A run of twenty steps from beginning to end."""
    folder = tmp_path_factory.mktemp('runs') / 'uninterrupted'
    report = train.train(tiny(), folder)
    return folder, report


def test_what_a_run_leaves(uninterrupted):
    folder, report = uninterrupted
    assert json.loads((folder / 'eval.json').read_text()) == report
    assert json.loads((folder / 'config.json').read_text())['model']['width'] == 16
    steps = [(row['split'], row['step']) for row in curve(folder)]
    assert steps == [('train', 7), ('validation', 10), ('train', 14), ('train', 20), ('validation', 20)]
    last = curve(folder)[-2]
    assert {'loss', 'grad_norm', 'update_norm', 'update_ratio', 'learning_rate', 'epoch'} <= last.keys()
    assert last['epoch'] == pytest.approx(20 * 8 / 60)
    assert list(folder.glob('events.out.tfevents.*'))
    with Checkpoints(folder) as checkpoints:
        meta = checkpoints.meta(20)
    assert meta['class_names'] == [
        'right',
        'down-right',
        'down',
        'down-left',
        'left',
        'up-left',
        'up',
        'up-right',
    ]
    assert meta['config']['data']['crop'] == [32, 32]
    assert '60 clips' in meta['data_digest']


@pytest.mark.parametrize('stop_at', [7, 9])
def test_a_stopped_run_goes_on_bit_for_bit(uninterrupted, stop_at, tmp_path, monkeypatch, capsys):
    """Stopped by a signal after a step, at a log and between two, and started again."""
    real, count = train.Run.__init__, 0

    def counting(self, *arguments):
        real(self, *arguments)
        inner = self.step

        def step(*inputs):
            nonlocal count
            count += 1
            if count == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            return inner(*inputs)

        self.step = step

    monkeypatch.setattr(train.Run, '__init__', counting)
    with pytest.raises(
        train.Stopped, match=f'SIGTERM: saved step {stop_at} of 20; the same command'
    ) as stopped:
        train.train(tiny(), tmp_path)
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    train.train(tiny(), tmp_path)
    assert f'going on from step {stop_at}' in capsys.readouterr().out
    folder, report = uninterrupted
    sessions = [
        (each['first_step'], each['last_step'], each['exit']) for each in facts_of(tmp_path)['sessions']
    ]
    assert sessions == [(0, stop_at, 'stopped'), (stop_at, 20, 'done')]
    assert curve(tmp_path) == curve(folder)
    assert json.loads((tmp_path / 'eval.json').read_text()) == report
    (_, ours), (_, theirs) = parameters(tmp_path, tiny()), parameters(folder, tiny())
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


COMMAND = [
    sys.executable,
    '-m',
    'vivit_jax.main',
    f'--config={DIGITS}',
    *options(TINY),
    '--config.training.steps=200',
    '--config.evaluation.every_steps=25',
]


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    """Killed without warning while it trains, then told to stop, then left alone."""

    def start(name):
        return subprocess.Popen(
            [*COMMAND, f'--workdir={tmp_path / name}'],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | ENVIRONMENT,
        )

    def wait_for(name, step, process):
        path, deadline = tmp_path / name / 'metrics.jsonl', time.time() + 120
        while not path.exists() or f'{{"step": {step},' not in path.read_text():
            assert process.poll() is None, process.communicate()
            assert time.time() < deadline
            time.sleep(0.01)

    whole = start('whole')
    killed = start('killed')
    wait_for('killed', 56, killed)
    killed.kill()
    killed.communicate()
    stopped = start('killed')
    wait_for('killed', 98, stopped)
    stopped.send_signal(signal.SIGINT)
    _, errors = stopped.communicate(timeout=120)
    assert stopped.returncode == 130, errors
    assert 'stopped by SIGINT: saved step' in errors
    assert 'Traceback' not in errors
    for process in (start('killed'), whole):
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, output + errors
    assert curve(tmp_path / 'killed') == curve(tmp_path / 'whole')
    config = load(DIGITS, TINY | {'training.steps': '200', 'evaluation.every_steps': '25'})
    (one, ours), (other, theirs) = (parameters(tmp_path / name, config) for name in ('killed', 'whole'))
    assert one == other == 200
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_the_best_checkpoint_is_kept_and_used(tmp_path, monkeypatch, capsys):
    scores = iter([0.5, 0.9, 0.7, 0.9, 0.3])

    def validate(self, state, bad_files):
        return {'top_1': next(scores), 'loss': 1.0}

    monkeypatch.setattr(train.Run, 'validate', validate)
    train.train(tiny(evaluation__every_steps=4), tmp_path)
    with Checkpoints(tmp_path, best_metric='top_1') as checkpoints:
        assert checkpoints.steps() == [16, 20]
        assert checkpoints.best_step() == 16
    assert 'evaluating step 16, the best by top_1' in capsys.readouterr().out


def test_evaluating_again_gives_the_same(uninterrupted):
    folder, report = uninterrupted
    assert evaluate.evaluate(tiny(), folder) == report


def test_there_is_a_split_to_evaluate(uninterrupted):
    with pytest.raises(ValueError, match=r'data\.test_splits=\(\): name a split to evaluate'):
        evaluate.evaluate(tiny(data__test_splits='()'), uninterrupted[0])


def test_how_it_was_trained_is_the_checkpoints_to_tell(uninterrupted):
    """The moving average is evaluated although the command does not mention it, as are the best metric and loss."""
    folder, report = uninterrupted
    plain = tiny(training__ema_decay=0.0, training__loss='sigmoid', checkpoint__best_metric='')
    assert evaluate.evaluate(plain, folder) == report


def test_a_damaged_checkpoint_is_named(uninterrupted, tmp_path):
    """It is left out: the run goes on from the one before it, to the same end."""
    folder = tmp_path / 'copy'
    shutil.copytree(uninterrupted[0], folder)
    shutil.rmtree(folder / 'checkpoints' / '20' / 'meta')
    left_out = r'/20 is damaged \(meta/\w+.*: is missing, .*: going on from step 10; it is now 20\.damaged'
    with pytest.warns(UserWarning, match=left_out):
        assert train.train(tiny(), folder) == uninterrupted[1]
    assert curve(folder) == curve(uninterrupted[0])
    (_, ours), (_, theirs) = parameters(folder, tiny()), parameters(uninterrupted[0], tiny())
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    names = {path.name for path in (folder / 'checkpoints').iterdir()}
    assert names == {'10', '20', '20.damaged'}


def test_where_every_checkpoint_is_damaged_the_run_says_so(uninterrupted, tmp_path):
    folder = tmp_path / 'copy'
    shutil.copytree(uninterrupted[0], folder)
    for step, name in ((10, 'params/_METADATA'), (20, 'optimizer/_METADATA')):
        (folder / 'checkpoints' / str(step) / name).unlink()
    before = curve(folder)
    told = r'every checkpoint is damaged: 20 \(optimizer/_METADATA: is missing\), 10 \(params/_METADATA: is'
    with pytest.raises(ValueError, match=told):
        train.train(tiny(), folder)
    assert {path.name for path in (folder / 'checkpoints').iterdir()} == {'10', '20'}
    assert curve(folder) == before


def test_several_labels_an_example(tmp_path):
    """The sigmoid loss, with mean average precision, from beginning to end."""
    config = tiny(training__loss='sigmoid', checkpoint__best_metric='mean_average_precision')
    report = train.train(config, tmp_path)
    assert 0.0 < report['test']['mean_average_precision'] <= 1.0
    assert set(report['test']['average_precision']) <= {
        'right',
        'down-right',
        'down',
        'down-left',
        'left',
    } | {
        'up-left',
        'up',
        'up-right',
    }
    assert not list(tmp_path.glob('confusion_*'))


def test_nouns_and_verbs(tmp_path):
    """Two heads from a table of videos: metrics of each and of both, in whatever order they are asked for."""
    root = tmp_path / 'data'
    root.mkdir()
    rows = []
    for number in range(8):
        name = f'{number}.avi'
        with av.open(str(root / name), 'w') as container:
            stream = container.add_stream('mpeg4', rate=8)
            stream.width = stream.height = 32
            stream.pix_fmt = 'yuv420p'
            for _ in range(4):
                frame = av.VideoFrame.from_ndarray(
                    np.full((32, 32, 3), 30 * number, np.uint8), format='rgb24'
                )
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        rows.append(f'{name},{number % 3},{number % 2}\n')
    for split in ('train', 'validation'):
        (root / f'{split}.csv').write_text('path,noun,verb\n' + ''.join(rows))
    settings = TINY | {'data.source': 'video_files', 'data.root': str(root), 'data.channels': '3'}
    settings |= {
        'data.frames': '4',
        'data.test_splits': 'validation',
        'checkpoint.best_metric': 'action_top_1',
    }
    settings |= {'evaluation.temporal_views': '2', 'data.heads': 'verb,noun', 'data.num_classes': '2,3'}
    report = train.train(load(DIGITS, settings), tmp_path / 'run')['validation']
    assert {
        'noun_top_1',
        'verb_top_1',
        'action_top_1',
        'verb_per_class',
        'noun_mean_precision',
    } <= report.keys()
    assert report['count'] == 8
    assert list(report['verb_per_class']) == ['0', '1']
    assert list(report['noun_per_class']) == ['0', '1', '2']
    matrix = (tmp_path / 'run' / 'confusion_validation_noun.csv').read_text().splitlines()
    assert matrix[0] == 'label \\ predicted,0,1,2'
    assert [sum(map(int, row.split(',')[1:])) for row in matrix[1:]] == [3, 3, 2]
    with pytest.raises(ValueError, match=r'train.csv has no column action: it has path, noun, verb'):
        train.train(load(DIGITS, settings | {'data.heads': 'noun,action'}), tmp_path / 'other')


def test_the_batch_size_does_not_change_an_evaluation(uninterrupted, tmp_path):
    """Every example counts once: 20 of them in batches of 8, 16 and 64."""
    folder, report = uninterrupted
    for size in (16, 64):
        again = evaluate.evaluate(tiny(evaluation__batch_size=size), folder)
        for split, metrics in report.items():
            assert again[split]['count'] == 20
            assert again[split]['top_1'] == metrics['top_1']
            assert again[split]['loss'] == pytest.approx(metrics['loss'], abs=1e-6)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'model__mlp_dim': 32}, r'model.mlp_dim is 16 there and 32 here'),
        ({'optimizer__learning_rate': 0.5}, r'optimizer.learning_rate is 0.003 there and 0.5 here'),
    ],
)
def test_another_configuration_is_refused(uninterrupted, changes, message):
    folder, _ = uninterrupted
    with pytest.raises(ValueError, match=message):
        train.train(tiny(**changes), folder)


def test_other_data_is_refused(uninterrupted, monkeypatch):
    folder, _ = uninterrupted
    from vivit_jax.data.moving_digits import MovingDigits

    real = MovingDigits.__init__

    def other(self, *arguments, **settings):
        real(self, *arguments, **settings)
        self.digest = 'other clips'

    monkeypatch.setattr(MovingDigits, '__init__', other)
    with pytest.raises(ValueError, match="trained on other data than the 'train' split now holds"):
        train.train(tiny(), folder)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    config = tiny(optimizer__learning_rate=9e17, optimizer__max_grad_norm=0, optimizer__name='momentum')
    with pytest.raises(train.NonFiniteLoss, match=r'at step \d+; last good checkpoint: none') as error:
        train.train(config, tmp_path)
    assert 'lower optimizer.learning_rate' in str(error.value)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == []


def test_a_second_run_in_the_folder_is_refused(tmp_path):
    """Before anything is written or cleared away there."""
    unfinished = tmp_path / 'checkpoints' / '7.orbax-checkpoint-tmp'
    unfinished.mkdir(parents=True)
    with lock.held(tmp_path):
        with pytest.raises(ValueError, match=rf'is in use by process {os.getpid()} on .*another --workdir'):
            train.train(tiny(), tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ['checkpoints', 'run.lock']
        assert unfinished.is_dir()


def test_a_run_that_another_one_took_over_from_writes_nothing_more(tmp_path, monkeypatch):
    """It was suspended for long in step 12, say, and finds the other's lock when it goes on."""
    real, taken = train.Run.step, {}

    def step(self, state, batch):
        if state.step == 11:
            with lock._alone(tmp_path / lock.NAME) as file:
                file.write(dataclasses.replace(lock.ourselves(), host='host-b'))
            taken.update(contents(tmp_path))
        return real(self, state, batch)

    def contents(folder):
        files = (path for path in folder.rglob('*') if path.is_file())
        return {path.relative_to(folder): path.read_bytes() for path in files}

    monkeypatch.setattr(train.Run, 'step', step)
    with pytest.raises(lock.Lost, match=r'was taken over by process \d+ on host-b \(train, started 0 s ago'):
        train.train(tiny(), tmp_path)
    after = contents(tmp_path)
    # The checkpoint of step 10 was being written before.
    assert {name: after[name] for name in taken if '10.orbax' not in str(name)} == {
        name: text for name, text in taken.items() if '10.orbax' not in str(name)
    }
    assert max(row['step'] for row in curve(tmp_path)) == 10
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [10]


def facts_of(folder):
    return json.loads((folder / 'run.json').read_text())


def test_a_run_leaves_an_account_of_itself(uninterrupted):
    folder, _ = uninterrupted
    facts = facts_of(folder)
    model = evaluate.experiment.make_model(tiny())
    assert facts['exit'] == 'done'
    assert facts['parameters'] == sum(leaf.size for leaf in jax.tree.leaves(parameters(folder, tiny())[1]))
    assert facts['multiply_adds_per_clip'] == vivit_jax.multiply_adds(
        model, (16, 32, 32, 1), logits_alone=True
    )
    (session,) = facts['sessions']
    assert (session['first_step'], session['last_step']) == (0, 20)
    # All but the first of its 20 steps of 8 clips are timed.
    assert facts['clips_per_second'] * facts['train_seconds'] == pytest.approx(19 * 8)
    assert min(facts['compile_seconds'], facts['evaluate_seconds'], facts['mfu']) > 0
    assert 0 <= facts['data_wait'] <= 1


def test_a_run_ends_with_its_report_and_says_what_is_next(uninterrupted, tmp_path, capsys):
    folder = tmp_path / 'again'
    shutil.copytree(uninterrupted[0], folder)
    (folder / 'report.html').unlink()
    train.train(tiny(), folder)
    assert '<html' in (folder / 'report.html').read_text()
    lines = capsys.readouterr().out.splitlines()
    assert f'report: {folder / "report.html"}' in lines
    assert f'next: python -m vivit_jax.predict test:0-4 --checkpoint={folder}' in lines
    assert any(line.startswith('took 0:00:') and 'clips/s' in line and 'MFU' in line for line in lines)
    assert [each['exit'] for each in facts_of(folder)['sessions']] == ['done', 'done']


def test_what_is_next_can_be_pasted(tmp_path, capsys):
    folder = tmp_path / "it's mine"
    with Terminal() as terminal:
        closing.say_next(folder, terminal, 'validation', 1)
    lines = capsys.readouterr().out.splitlines()
    words = [shlex.split(line.removeprefix('next:')) for line in lines[:2]]
    options = ['validation:0', f'--checkpoint={folder}']
    assert words == [
        ['python', '-m', 'vivit_jax.predict', *options],
        ['python', 'tools/attention.py', *options],
    ]


def test_a_report_that_fails_fails_no_run(uninterrupted, tmp_path, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise KeyError('two\nlines')

    folder = tmp_path / 'again'
    shutil.copytree(uninterrupted[0], folder)
    monkeypatch.setattr(closing.report, 'write', fail)
    assert train.train(tiny(), folder) == uninterrupted[1]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith('warning: ')]
    assert line == (
        f"warning: the report was not written (KeyError: 'two\\nlines'); python -m vivit_jax.report {folder} "
        'tries again'
    )


def test_a_full_disk_is_noticed_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: types.SimpleNamespace(free=2**20 // 10))
    with pytest.raises(
        ValueError, match=r'checkpoints: 0.1 MiB are free on this disk, 0.\d MiB are needed for'
    ):
        train.train(tiny(), tmp_path)


def test_of_many_keys_that_differ_some_are_named(uninterrupted):
    folder, _ = uninterrupted
    changes = {f'data__{name}': 0.25 for name in ('flip', 'colour_jitter', 'colour_drop')}
    changes |= {f'optimizer__{name}': 0.25 for name in ('learning_rate', 'weight_decay', 'b1', 'b2')}
    with pytest.raises(ValueError, match='another configuration') as error:
        train.train(tiny(**changes), folder)
    line = str(error.value)
    assert '(7 keys differ: ' in line
    assert line.count(' there and 0.25 here') == 6
    assert f', …; all of it is in {folder / "config.json"}): choose another --workdir' in line
