"""Promises of docs/reliability.md that no other test keeps."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tiny import DIGITS, ENVIRONMENT, SETTINGS, options
from vivit_jax import train
from vivit_jax.checkpoint import Checkpoints
from vivit_jax.config import load

# Saves step 1 whole, then keeps on saving larger and larger ones until it is killed.
SAVE = """
import sys
import numpy as np
from vivit_jax.checkpoint import Checkpoints

with Checkpoints(sys.argv[1]) as checkpoints:
    for step in range(1, 1000):
        params = {'kernel': np.full((step * 1000, 1000), step, np.float32)}
        checkpoints.save(step, params=params, ema=None, optimizer=None, meta={'step': step}, metrics=None)
        print(step, flush=True)
        if step == 1:
            checkpoints.wait()
"""


def unfinished(folder):
    return [path for path in folder.glob('checkpoints/*') if not path.name.isdecimal()]


def test_a_checkpoint_that_was_not_finished_is_not_taken_for_one(tmp_path):
    process = subprocess.Popen([sys.executable, '-c', SAVE, str(tmp_path)], stdout=subprocess.PIPE)
    deadline = time.time() + 240
    # Killed while there is one that is being written.
    while True:
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.01)
        if (tmp_path / 'checkpoints' / '1').is_dir() and unfinished(tmp_path):
            break
        assert process.poll() is None
        assert time.time() < deadline
        os.kill(process.pid, signal.SIGCONT)
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert unfinished(tmp_path)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        last = checkpoints.latest_step()
        assert last is not None
        assert checkpoints.meta(last) == {'step': last}
        assert unfinished(tmp_path)  # reading has changed nothing
        assert checkpoints.recover() == last
        assert not unfinished(tmp_path)
        params = {'kernel': np.zeros(3, np.float32)}
        checkpoints.save(last + 1, params=params, ema=None, optimizer=None, meta={}, metrics=None)
        checkpoints.wait()
        assert checkpoints.steps() == [last + 1]


def curve(folder):
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return {(row['split'], row['step']): row['loss'] for row in rows}


@pytest.mark.slow
def test_the_command_goes_on_with_another_number_of_devices(tmp_path):
    """Eight devices with a copy each, from step 8 one device, from step 16 two with a half each: one curve."""
    settings = SETTINGS | {
        'training.log_every': '1',
        'training.ema_decay': '0.9',
        'evaluation.every_steps': '4',
        'evaluation.temporal_views': '1',
        'data.test_splits': 'test',
        'checkpoint.keep': '9',
    }
    train.train(load(DIGITS, settings), tmp_path)
    expected = curve(tmp_path)
    assert len(expected) == 25
    for devices, begin in ((1, 8), (2, 16)):
        for step in (tmp_path / 'checkpoints').iterdir():
            if int(step.name) > begin:
                shutil.rmtree(step)
        here = options(settings | {'sharding.fsdp': str(devices)})
        command = [
            sys.executable,
            '-m',
            'vivit_jax.main',
            f'--config={DIGITS}',
            *here,
            f'--workdir={tmp_path}',
        ]
        environment = os.environ | ENVIRONMENT | {'JAX_NUM_CPU_DEVICES': str(devices)}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        assert f'going on from step {begin}' in done.stdout
        assert curve(tmp_path) == pytest.approx(expected, abs=1e-5)
    sessions = json.loads((tmp_path / 'run.json').read_text())['sessions']
    assert [session['first_step'] for session in sessions] == [0, 8, 16]
