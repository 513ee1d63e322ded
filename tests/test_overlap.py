"""Reading goes on while the device computes: each waits here for what the other is to do meanwhile."""

import contextlib
import threading

import jax
import numpy as np

from tiny import DIGITS, SETTINGS
from vivit_jax import sharding, train
from vivit_jax.config import load
from vivit_jax.data import pipeline

PATIENCE = 30.0  # seconds after which what should have happened is given up


def test_batches_come_onto_the_device_while_one_is_used(monkeypatch):
    """Nothing is asked for after the first batch, and still the next two arrive, and no more than were asked for."""
    arrived = threading.Semaphore(0)
    to_global = sharding.to_global

    def place(batch, mesh):
        placed = jax.block_until_ready(to_global(batch, mesh))
        arrived.release()
        return placed

    def read(position):
        return {'video': np.full((2, 3), position, np.uint8), 'mask': np.asarray(True)}

    monkeypatch.setattr(sharding, 'to_global', place)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with pipeline.batches(
        read, batch_size=2, first_step=0, last_step=20, mesh=mesh, threads=1, workers=0, prefetch=2
    ) as batches:
        first = next(batches)
        for _ in range(3):
            assert arrived.acquire(timeout=PATIENCE), 'the next batch waits until it is asked for'
        assert first['video'].tolist() == [[[0] * 3] * 2, [[1] * 3] * 2]
        assert next(batches)['video'].is_ready()


class Pending:
    """A loss that is there once something has happened, as that of a step which runs until then."""

    def __init__(self, happened, late):
        self.happened, self.late = happened, late

    def is_ready(self):
        return self.happened.is_set()

    def block_until_ready(self):
        if not self.happened.wait(PATIENCE):
            self.late.append(self)
        return self

    def __array__(self, dtype=None, copy=None):
        return np.float32(1)


def test_the_next_batch_is_asked_for_while_a_step_runs(tmp_path, monkeypatch):
    """Every step but the first, which is compiled, and the last ends only once the batch after it is asked for."""
    asked = [threading.Event() for _ in range(6)]
    late, losses = [], []
    step, batches = train.Run.step, pipeline.batches

    def pending_step(self, state, batch):
        state, scalars = step(self, state, batch)
        if 0 < len(losses) < 5:
            scalars['loss'] = Pending(asked[len(losses) + 1], late)
        losses.append(scalars['loss'])
        return state, scalars

    @contextlib.contextmanager
    def watched(*arguments, **options):
        with batches(*arguments, **options) as iterator:
            yield (event.set() or next(iterator) for event in asked)

    monkeypatch.setattr(train.Run, 'step', pending_step)
    monkeypatch.setattr(pipeline, 'batches', watched)
    # Whatever else reads batches is left out.
    monkeypatch.setattr(train, '_test', lambda *arguments: (None, {}))
    monkeypatch.setattr(train.Run, 'validate', lambda *arguments: {'top_1': 1.0})
    monkeypatch.setattr(train.closing, 'write_report', lambda *arguments, **options: None)
    changes = {'training.steps': '6', 'training.log_every': '6', 'evaluation.every_steps': '6'}
    train.train(load(DIGITS, SETTINGS | changes), tmp_path)
    assert len(losses) == 6
    assert all(event.is_set() for event in asked)
    assert not late, f'{len(late)} steps were waited for before the next batch was asked for'
