"""Promises of docs/reliability.md that no other test keeps."""

import os
import signal
import subprocess
import sys
import time

import numpy as np

from vivit_jax.checkpoint import Checkpoints

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
    with Checkpoints(tmp_path) as checkpoints:
        last = checkpoints.latest_step()
        assert last is not None
        assert checkpoints.meta(last) == {'step': last}
        params = {'kernel': np.zeros(3, np.float32)}
        checkpoints.save(last + 1, params=params, ema=None, optimizer=None, meta={}, metrics=None)
        checkpoints.wait()
        assert checkpoints.steps() == [last + 1]
