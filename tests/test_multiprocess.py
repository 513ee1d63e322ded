"""Several processes that train together equal one."""

import json
import os
import socket
import subprocess
import sys

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
COMMAND = [sys.executable, '-m', 'vivit_jax.main', f'--config={DIGITS}', *options(TINY)]


def curve(folder):
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return {(row['split'], row['step']): row['loss'] for row in rows}


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_equal_one(tmp_path):
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
    pipes['env'] = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
    runs = {'alone': [[]], 'two': [[f'--distributed=127.0.0.1:{port},2,{process}'] for process in range(2)]}
    outputs = {}
    for name, places in runs.items():
        commands = [[*COMMAND, *place, f'--workdir={tmp_path / name}'] for place in places]
        processes = [subprocess.Popen(command, **pipes) for command in commands]
        outputs[name] = [process.communicate(timeout=300)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes), outputs[name]
    alone, two = curve(tmp_path / 'alone'), curve(tmp_path / 'two')
    assert two == pytest.approx(alone, abs=1e-5)
    assert len(two) == len((tmp_path / 'two' / 'metrics.jsonl').read_text().splitlines()) == 10
    one, other = (json.loads((tmp_path / name / 'eval.json').read_text()) for name in runs)
    for split, metrics in one.items():
        assert other[split]['count'] == metrics['count'] == 21
        assert other[split]['loss'] == pytest.approx(metrics['loss'], abs=1e-5)
    assert len((tmp_path / 'two' / 'predictions.csv').read_text().splitlines()) == 1 + 3 * 21
    # One of them speaks for both.
    assert '2 processes' in outputs['two'][0]
    assert 'step 8/8' not in outputs['two'][1]
