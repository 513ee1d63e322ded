"""Steps that are not finite: the run stops, leaves their updates out, or goes back; and what that must not change."""

import dataclasses
import functools
import json
import os
import pathlib
import re
import signal
import time

import jax
import numpy as np
import pytest

from tiny import DIGITS, SETTINGS
from vivit_jax import closing, experiment, feeding, sharding, train
from vivit_jax.checkpoint import Checkpoints
from vivit_jax.config import load
from vivit_jax.nan_guard import (
    Detoured,
    KeepRegular,
    NanGuard,
    NonFiniteLoss,
    NotFinite,
    last_regular,
    leads_on,
    remembered,
)

# Steps 5, 10, 15 and 20 have regular checkpoints; the log looks at steps 7, 14 and 20.
TINY = SETTINGS | {
    'model.dropout_rate': '0.1',
    'training.ema_decay': '0.9',
    'optimizer.name': 'momentum',
    'evaluation.every_steps': '10',
    'checkpoint.every_steps': '5',
}
FINE, BAD = {'loss': 1.0, 'grad_norm': 2.0}, {'loss': 1.0, 'grad_norm': float('inf')}


# --- What is remembered ---


def test_steps_are_counted_once_whenever_they_are_looked_at():
    guard = NanGuard('skip')
    assert guard.judge([FINE, BAD], 2) == ([FINE], [2])
    # Looked at again with one more: the window holds what was finite.
    assert guard.judge([FINE, BAD], 3) == ([FINE], [3])
    assert (guard.judged, guard.skipped, guard.in_a_row) == (3, 2, 2)
    assert guard.judge([], 3) == ([], [])
    assert guard.judge([FINE], 4) == ([FINE], [])
    assert (guard.skipped, guard.in_a_row) == (2, 0)


@pytest.mark.parametrize('number', [float('nan'), float('inf'), float('-inf')])
@pytest.mark.parametrize('name', ['loss', 'grad_norm', 'update_norm'])
def test_every_scalar_of_a_step_counts(number, name):
    guard = NanGuard('stop', judged=7)
    with pytest.raises(NotFinite) as found:
        guard.judge([FINE, FINE | {name: number}, FINE], 10)
    assert found.value.step == 9


def test_an_update_that_was_made_and_is_not_finite_ends_the_run():
    """Nothing could leave it out: all of it was known only when the parameters had changed."""
    with pytest.raises(NotFinite, match='loss 1, gradient norm 2, its update not finite at step 1'):
        NanGuard('skip').judge([FINE | {'update_norm': float('inf')}], 1)


def test_ten_in_a_row_are_too_many():
    guard = NanGuard('skip')
    guard.judge([BAD] * 9, 9)
    guard.judge([FINE, *[BAD] * 4], 14)
    with pytest.raises(NotFinite) as found:
        guard.judge([FINE, *[BAD] * 8], 22)
    assert found.value.step == 20  # the tenth since step 10


def test_a_memory_goes_through_json():
    guard = NanGuard('rewind', judged=12, skipped=3, in_a_row=2, detours=((10, 2), (10, 5)))
    assert remembered('rewind', 12, json.loads(json.dumps(guard.memory()))) == guard
    assert remembered('skip', 12, None) == NanGuard('skip', judged=12)


def test_a_regular_checkpoint_is_one_of_the_plan():
    def regular(step):
        return step % 5 == 0

    assert [last_regular(regular, step) for step in (3, 5, 6, 11)] == [0, 0, 5, 10]
    there = [dataclasses.make_dataclass('Info', ['step'])(step) for step in (5, 10, 12, 13)]
    assert KeepRegular(regular).should_preserve(there, context=None) == [False, True, False, False]
    assert KeepRegular(lambda step: False).should_preserve(there, context=None) == [False] * 4


def test_signals_do_not_push_out_the_regular_checkpoint(tmp_path):
    with Checkpoints(tmp_path, keep=2, policies=[KeepRegular(lambda step: step % 5 == 0)]) as checkpoints:
        for step in (5, 10, 11, 12, 13):
            checkpoints.save(step, params={'w': np.zeros(3)}, ema=None, optimizer=None, meta={}, metrics=None)
        checkpoints.wait()
        assert checkpoints.steps() == [10, 12, 13]


def test_a_checkpoint_of_a_course_that_was_left_does_not_lead_on():
    fresh, later = NanGuard('rewind'), NanGuard('rewind', detours=((10, 2),))
    assert leads_on(10, fresh, ((10, 2),))
    assert not leads_on(11, fresh, ((10, 2),))
    assert leads_on(11, later, ((10, 2),))
    assert leads_on(15, later, ((10, 2), (15, 1)))


def test_batches_are_passed_over_from_where_the_run_went_back(unchecked):
    read = Detoured(lambda position: position, 4, ((3, 2), (3, 1), (5, 10)))
    batches = [read(step * 4 + row) // 4 for step in range(7) for row in (0, 3)]
    assert batches == [0, 0, 1, 1, 2, 2, 6, 6, 7, 7, 18, 18, 19, 19]


# --- Runs ---


def tiny(on_nan='stop', **changes):
    changes = {key.replace('__', '.'): str(value) for key, value in changes.items()}
    return load(DIGITS, TINY | {'training.on_nan': on_nan} | changes)


@dataclasses.dataclass(frozen=True)
class Poisoned:
    """Clips as floats, those of some batches of 8 without a number in a corner."""

    read: object
    batches: tuple[int, ...]

    def __call__(self, position):
        example = self.read(position)
        video = example['video'].astype(np.float32) / 127.5 - 1
        if position // 8 in self.batches and position % 8 == 3:
            video[0, 0, 0, 0] = np.nan
        return example | {'video': video}


def only_train(patch):
    """Leaves out of a run what is no step: it would be compiled and computed to no use here."""
    patch.setattr(closing, 'write_report', lambda *arguments, **options: None)
    patch.setattr(train, '_test', lambda *arguments: (None, {}))
    patch.setattr(train.Run, 'validate', lambda *arguments: {'top_1': 0.5})


@pytest.fixture
def poison(monkeypatch):
    """Returns a function that poisons batches, counted from 0; step n trains on batch n - 1."""
    only_train(monkeypatch)
    real = feeding.training_examples

    def poison(*batches, wrapped=lambda read: read):
        monkeypatch.setattr(
            feeding, 'training_examples', lambda *arguments: wrapped(Poisoned(real(*arguments), batches))
        )

    return poison


@pytest.fixture
def at_step(monkeypatch):
    """Does something when a run has made so many steps, all that it makes counted."""
    real = train.Run.step

    def at(number, act):
        made = 0

        def step(self, state, batch):
            nonlocal made
            made += 1
            if made == number:
                act()
            return real(self, state, batch)

        monkeypatch.setattr(train.Run, 'step', step)

    return at


def curve(folder):
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if key not in ('clips_per_second', 'data_wait', 'rewinds')}
        for row in rows
    ]


def column(folder, name):
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return {row['step']: row[name] for row in rows if name in row and row['split'] == 'train'}


@functools.cache
def shapes():
    run = train.Run(tiny(), pathlib.Path(), *[experiment.make_source(tiny(), 'train')] * 2, train.Terminal())
    return {'params': run.shapes.params, 'ema': run.shapes.ema, 'optimizer': run.shapes.opt_state}


@functools.cache
def saved(folder):
    """All arrays of the last checkpoint."""
    with Checkpoints(folder) as checkpoints:
        items = shapes()
        return jax.device_get(checkpoints.restore(20, sharding.make_mesh(), **items))


def same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def differ(one, other):
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a != b).any()), one, other)))


@pytest.fixture(scope='module')
def fine(tmp_path_factory):
    """A run of finite numbers; and one that went past batches 10 and 11 after step 10, to compare with."""
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        only_train(patch)
        real = feeding.training_examples
        for name in ('whole', 'around'):
            folders[name] = tmp_path_factory.mktemp(name)

            def examples(*arguments, name=name):
                read = Poisoned(real(*arguments), ())
                return read if name == 'whole' else lambda position: read(position + 16 * (position >= 80))

            patch.setattr(feeding, 'training_examples', examples)
            train.train(tiny(), folders[name])
    return folders


def test_where_all_is_finite_nothing_depends_on_it(fine, poison, tmp_path):
    poison()
    train.train(tiny('skip'), tmp_path)
    same(saved(tmp_path), saved(fine['whole']))
    assert curve(tmp_path) == curve(fine['whole'])


def test_the_run_stops_at_the_step_with_the_last_good_checkpoint(poison, tmp_path):
    poison(11)
    with pytest.raises(NonFiniteLoss) as error:
        train.train(tiny(), tmp_path)
    message = (
        r'loss nan, gradient norm nan at step 12; last good checkpoint: step 10 in .*training\.on_nan=skip'
    )
    assert re.match(message, str(error.value))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 10
    assert max(column(tmp_path, 'loss')) == 7


def test_an_update_is_left_out(fine, poison, tmp_path, monkeypatch, at_step, capsys):
    """Of step 12; also when the run is stopped there, and goes on."""
    real, states = train.Run.step, {}

    def step(self, state, batch):
        number = int(state.step)
        states[number] = jax.device_get(state)
        return real(self, state, batch)

    monkeypatch.setattr(train.Run, 'step', step)
    poison(11)
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    train.train(tiny('skip'), whole)
    before, after = states[11], states[12]
    assert (before.step, after.step) == (11, 12)
    for part in ('params', 'opt_state', 'ema'):
        same(getattr(before, part), getattr(after, part))
        differ(getattr(states[10], part), getattr(before, part))
        differ(getattr(states[13], part), getattr(after, part))
    assert column(whole, 'skipped_steps') == {14: 1, 20: 1}
    # The means are those of the others: what stands there up to step 7 is the run without it.
    assert curve(whole)[0] == curve(fine['whole'])[0]
    assert all(np.isfinite(list(column(whole, name).values())).all() for name in ('loss', 'update_ratio'))
    assert (
        'not finite: the updates of steps 12 were left out, 1 of 14 so far; 10 in a row'
        in capsys.readouterr().out
    )

    monkeypatch.setattr(train.Run, 'step', real)
    at_step(12, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(train.Stopped, match='saved step 12 of 20'):
        train.train(tiny('skip'), stopped)
    train.train(tiny('skip'), stopped)
    assert curve(stopped) == curve(whole)
    same(saved(stopped), saved(whole))


def test_ten_updates_in_a_row_that_are_left_out_end_the_run(poison, tmp_path):
    poison(*range(3, 20))
    with pytest.raises(
        NonFiniteLoss, match='at step 13, the last of 10 in a row whose updates were left out; last'
    ):
        train.train(tiny('skip', training__log_every=1), tmp_path)
    # Rows of which nothing is finite have no numbers, rather than some that are none in JSON.
    assert list(column(tmp_path, 'loss')) == [1, 2, 3]
    assert column(tmp_path, 'skipped_steps') == {step: step - 3 for step in range(4, 13)}
    assert 'NaN' not in (tmp_path / 'metrics.jsonl').read_text()


def killed():
    raise MemoryError('killed')


@pytest.mark.parametrize(
    'disturbances',
    [
        (),
        # Between the checkpoint and the step; there again; when the run has gone back (14 steps, then 2 more).
        (('stopped', 11), ('stopped', 1), ('killed', 5)),
        (('killed', 16), ('stopped', 3)),
    ],
    ids=['left alone', 'stopped before', 'killed after'],
)
def test_a_run_goes_back_and_passes_over_what_led_there(
    fine, poison, tmp_path, at_step, capsys, disturbances
):
    poison(11)
    for how, step in disturbances:
        at_step(step, killed if how == 'killed' else lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(MemoryError if how == 'killed' else train.Stopped):
            train.train(tiny('rewind'), tmp_path)
    at_step(0, None)
    train.train(tiny('rewind'), tmp_path)
    same(saved(tmp_path), saved(fine['around']))
    differ(saved(tmp_path), saved(fine['whole']))
    assert curve(tmp_path) == curve(fine['around'])
    assert column(tmp_path, 'rewinds') == {14: 1, 20: 1}
    told = capsys.readouterr().out
    line = (
        'loss nan, gradient norm nan at step 12: going back to step 10; the batches of steps 11 to 12 are passed '
        'over (rewind 1 of 10 at most)'
    )
    assert line in told
    assert told.count('going back') == (1 if not disturbances else told.count(line))


def test_a_run_goes_back_further_where_that_checkpoint_is_damaged(fine, poison, tmp_path, at_step, capsys):
    poison(11)

    def damage():
        folder, deadline = tmp_path / 'checkpoints' / '10', time.monotonic() + 60
        while not folder.is_dir():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        files = [path for path in (folder / 'params').rglob('*') if path.is_file()]
        largest = max(files, key=lambda path: path.stat().st_size)
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)

    at_step(12, damage)
    with pytest.warns(
        UserWarning, match=r'10 is damaged \(params/.*: its content has changed\): it is now 10\.da'
    ):
        train.train(tiny('rewind'), tmp_path)
    assert 'going back to step 5; the batches of steps 11 to 12 are passed over' in capsys.readouterr().out
    same(saved(tmp_path), saved(fine['around']))


def test_a_run_goes_back_ten_times_at_most(poison, tmp_path, capsys):
    poison(*range(7, 1000))
    with pytest.raises(NonFiniteLoss, match='at step 6 after 10 rewinds; last good checkpoint: step 5'):
        train.train(tiny('rewind'), tmp_path)
    told = re.findall(
        r'batches of steps (\d+) to (\d+) are passed over \(rewind (\d+)', capsys.readouterr().out
    )
    assert told == [('6', '8', '1'), *[('6', '6', str(number)) for number in range(2, 11)]]


def test_there_must_be_a_checkpoint_to_go_back_to(poison, tmp_path):
    poison(3)
    with pytest.raises(
        NonFiniteLoss, match='at step 4, with no checkpoint before it; last good checkpoint: none'
    ):
        train.train(tiny('rewind'), tmp_path)


def test_another_choice_is_refused_and_it_may_change(fine):
    with pytest.raises(ValueError, match=r"training\.on_nan='ignore': choose one of stop, skip, rewind"):
        experiment.check(tiny('ignore'))
    # A run that has stopped may go on with another one.
    train.evaluate.check_same(tiny().to_dict(), tiny('skip'), fine['whole'])
