"""Data that changes between a run and its continuation or evaluation: what the run began with holds."""

import csv
import re

import pytest

from tiny import DIGITS, SETTINGS, options
from videos import write_video
from vivit_jax import evaluate, train
from vivit_jax.config import load
from vivit_jax.main import main

SMALL = SETTINGS | {
    'data.source': 'video_files',
    'data.channels': '3',
    'data.num_classes': '()',
    'data.frames': '4',
    'data.stride': '2',
    'data.test_splits': 'validation',
    'data.short_side': '32',
    'data.crop': '32,32',
    'data.validation_share': '0.3',
    'training.steps': '4',
    'evaluation.every_steps': '4',
    'evaluation.temporal_views': '2',
    'optimizer.warmup_steps': '1',
}


@pytest.fixture
def root(tmp_path):
    """Ten videos of each of two classes, of two lengths."""
    for number in range(20):
        folder = tmp_path / 'data' / ('wave' if number % 2 else 'jump')
        folder.mkdir(parents=True, exist_ok=True)
        write_video(folder / f'v{number:02d}.mp4', frames=12 + number % 3, size=(32, 40))
    return tmp_path / 'data'


def small(root, **changes):
    return load(
        DIGITS, SMALL | {'data.root': str(root)} | {k.replace('__', '.'): v for k, v in changes.items()}
    )


def predicted(folder):
    rows = csv.DictReader((folder / 'predictions.csv').read_text().splitlines())
    return [row['name'] for row in rows]


def test_an_evaluation_meets_nothing_that_was_trained_on(root, tmp_path):
    train.train(small(root), tmp_path / 'run')
    validated = predicted(tmp_path / 'run')
    assert len(validated) == 6
    # Of what validates one goes; among what trains many come, so that another draw would be another split.
    (root / validated[0]).unlink()
    for number in range(20, 44):
        write_video(root / 'wave' / f'v{number:02d}.mp4', frames=12, size=(32, 40))
    with pytest.warns(UserWarning, match=rf'{re.escape(validated[0])} \(no such file\)'):
        report = evaluate.evaluate(small(root), tmp_path / 'run')
    assert predicted(tmp_path / 'run') == validated[1:]
    assert (report['validation']['count'], report['validation']['left_out']) == (5, 1)


def test_a_run_goes_on_without_what_is_gone_and_what_is_new(root, tmp_path, capsys):
    train.train(small(root), tmp_path / 'whole')
    before = predicted(tmp_path / 'whole')
    names = sorted(f'{file.parent.name}/{file.name}' for file in root.glob('*/*'))
    trained = [name for name in names if name not in before]
    (root / trained[0]).unlink()
    write_video(root / 'wave' / 'v99.mp4', frames=12, size=(32, 40))
    capsys.readouterr()
    report = train.train(small(root), tmp_path / 'whole')
    told = capsys.readouterr().out
    assert 'v99.mp4 came in since the run began, and are left out' in told
    assert report['validation']['count'] == 6
    assert predicted(tmp_path / 'whole') == before


def test_a_file_that_goes_is_replaced_also_after_a_restart(root, tmp_path, monkeypatch):
    """Stopped half way; then files go. Every fourth video that trains is gone, which the settings allow."""
    config = small(root, checkpoint__every_steps='2', data__max_bad='0.5', training__steps='12')

    real = train.Run.save

    def stop(self, checkpoints, state, step, metrics=None):
        real(self, checkpoints, state, step, metrics)
        checkpoints.wait()
        if step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.Run, 'save', stop)
        with pytest.raises(KeyboardInterrupt):
            train.train(config, tmp_path / 'run')
    gone = sorted(root.glob('*/*'))[::4]
    for file in gone:
        file.unlink()
    report = train.train(config, tmp_path / 'run')
    rows = list(csv.DictReader((tmp_path / 'run' / 'bad_files.csv').read_text().splitlines()))
    names = {f'{file.parent.name}/{file.name}' for file in gone}
    assert {row['name'] for row in rows} <= names
    assert {row['found'] for row in rows} <= {'while training', 'while evaluating'}
    assert len(rows) == len({row['name'] for row in rows}) >= 3
    assert report['validation']['count'] + report['validation'].get('unreadable', 0) == 6


def test_other_labels_and_classes_are_refused(root, tmp_path, capsys):
    table = tmp_path / 'all.csv'
    files = sorted(f'{f.parent.name}/{f.name}' for f in root.glob('*/*'))
    rows = [f'{name},{name.partition("/")[0]}' for name in files]
    table.write_text('path,label\n' + '\n'.join(rows) + '\n')
    arguments = [f'--config={DIGITS}', f'--workdir={tmp_path / "run"}']
    settings = SMALL | {'data.root': str(root), 'data.csv': str(table)}
    assert main(arguments + options(settings)) == 0
    table.write_text('path,label\n' + '\n'.join([*rows[:-1], f'{files[-1]},jump']) + '\n')
    assert main(arguments + options(settings)) == 2
    assert f"{files[-1]} of 'train' is labelled 0 now and was 1 when the run began" in capsys.readouterr().err
    table.write_text('path,label\n' + '\n'.join([*rows[:-1], f'{files[-1]},fall']) + '\n')
    assert main(arguments + options(settings)) == 2
    assert "the classes of 'train' are not those that the run began with (new: fall; gone: none)" in (
        capsys.readouterr().err
    )
