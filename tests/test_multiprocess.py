"""Several processes that train together equal one."""

import json
import os
import socket
import subprocess
import sys

import cv2
import numpy as np
import pytest

from tiny import DIGITS, SETTINGS, options

TINY = SETTINGS | {
    'model.dropout_rate': '0.1',
    'data.moving_digits.validation_size': '10',
    'data.moving_digits.test_size': '21',
    'training.steps': '8',
    'training.log_every': '1',
    'training.mixup_alpha': '0.2',
    'evaluation.every_steps': '4',
}


def curve(folder):
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return {(row['split'], row['step']): row['loss'] for row in rows}


def run(settings, workdir, processes):
    """Runs the command as one process or as several; returns exit codes and outputs."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    command = [sys.executable, '-m', 'vivit_jax.main', f'--config={DIGITS}', *options(settings)]
    command.append(f'--workdir={workdir}')
    places = [[f'--distributed=127.0.0.1:{port},{processes},{process}'] for process in range(processes)]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    pipes['env'] = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    started = [subprocess.Popen([*command, *place], **pipes) for place in (places if processes > 1 else [[]])]
    outputs = [process.communicate(timeout=300)[0] for process in started]
    return [process.returncode for process in started], outputs


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_equal_one(tmp_path):
    outputs = {}
    for processes, name in ((1, 'alone'), (2, 'two')):
        codes, outputs[name] = run(TINY, tmp_path / name, processes)
        assert codes == [0] * processes, outputs[name]
    alone, two = curve(tmp_path / 'alone'), curve(tmp_path / 'two')
    assert two == pytest.approx(alone, abs=1e-5)
    assert len(two) == len((tmp_path / 'two' / 'metrics.jsonl').read_text().splitlines()) == 10
    one, other = (json.loads((tmp_path / name / 'eval.json').read_text()) for name in ('alone', 'two'))
    for split, metrics in one.items():
        assert other[split]['count'] == metrics['count'] == 21
        assert other[split]['loss'] == pytest.approx(metrics['loss'], abs=1e-5)
    assert len((tmp_path / 'two' / 'predictions.csv').read_text().splitlines()) == 1 + 3 * 21
    # One of them speaks for both.
    assert '2 processes' in outputs['two'][0]
    assert 'step 8/8' not in outputs['two'][1]


@pytest.fixture
def damaged_frames(tmp_path):
    """Twenty folders of frames to train on, four of which cannot be read though they look sound, and four more."""
    random = np.random.default_rng(0)
    for number in range(24):
        split = 'train' if number < 20 else 'validation'
        folder = tmp_path / 'frames' / split / ('wave' if number % 2 else 'jump') / f'v{number:02d}'
        folder.mkdir(parents=True)
        for place in range(4):
            pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
            assert cv2.imwrite(str(folder / f'{place}.png'), pixels)
        if number in (3, 4, 8, 13):
            (folder / '3.png').write_bytes((folder / '3.png').read_bytes()[:99])
    return TINY | {
        'data.source': 'frame_folders',
        'data.root': str(tmp_path / 'frames'),
        'data.channels': '3',
        'data.num_classes': '()',
        'data.frames': '4',
        'data.stride': '1',
        'data.test_splits': 'validation',
        'evaluation.every_steps': '8',
    }


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_bear_with_bad_files_as_one(tmp_path, damaged_frames):
    settings = damaged_frames | {'data.max_bad': '0.3'}
    for processes, name in ((1, 'alone'), (2, 'two')):
        codes, outputs = run(settings, tmp_path / name, processes)
        assert codes == [0] * processes, outputs
        assert "4 of 20 examples of 'train' are bad" in outputs[0]
    assert curve(tmp_path / 'two') == pytest.approx(curve(tmp_path / 'alone'), abs=1e-5)
    # Between them, the processes have named each of the four.
    lists = [*(tmp_path / 'two').glob('bad_files*.csv')]
    assert len(lists) == 2
    named = {row.split(',')[1] for file in lists for row in file.read_text().splitlines()[1:]}
    assert named == {f'train/{name}' for name in ('wave/v03', 'jump/v04', 'jump/v08', 'wave/v13')}


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_stop_together_where_too_many_are_bad(tmp_path, damaged_frames):
    codes, outputs = run(damaged_frames, tmp_path / 'two', 2)
    assert codes == [2, 2], outputs
    for output in outputs:
        errors = [line for line in output.splitlines() if line.startswith('error: ')]
        assert len(errors) == 1
        assert "of 20 examples of the split 'train' cannot be used" in errors[0]
        assert 'more than data.max_bad=0.05 allows' in errors[0]
    assert [int(step.name) for step in (tmp_path / 'two' / 'checkpoints').iterdir()]
