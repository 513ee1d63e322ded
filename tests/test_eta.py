"""The time a whole run still takes: on simulated runs, whose end is known."""

import dataclasses
import math

import pytest

from vivit_jax.telling.clock import MOST_LAPS, Clock
from vivit_jax.telling.eta import Lap, Spent, Work, latest, seconds_left

WORK = Work(
    total_steps=1000,
    evaluate_every=250,
    save_every=1000,
    batch_size=32,
    validation_clips=512,
    test_clips=2048,
)


@dataclasses.dataclass
class Speed:
    """What things really cost, in seconds; evaluating a clip costs `forward` of a clip's share in a step."""

    step: float = 0.2
    waits: float = 0.0
    forward: float = 1 / 3
    compiling: float = 12.0
    compiling_forward: float = 4.0
    saving: float = 0.3
    read_ahead: int = 0  # steps whose data is there when the first is done


class Simulated:
    """A run on a clock of its own, step by step as `train` has it."""

    def __init__(self, work, speed, first=0):
        self.time, self.work, self.speed = 0.0, work, speed
        self.clock = Clock(now=lambda: self.time)
        self.estimates = {}
        spent, clip = self.clock.spent, speed.forward * speed.step / work.batch_size
        with self.clock.aside(spent.compiling):
            self.time += speed.compiling
        self.clock.start()
        for step in range(first + 2, work.total_steps + 1):
            ready = step - first <= speed.read_ahead
            self.time += speed.step * (1 - speed.waits) if ready else speed.step
            self.clock.step(0.0 if ready else speed.waits * speed.step)
            if step % 50 == 0:
                self.clock.log()
            self.estimates[step] = self.time, seconds_left(work, spent, step)
            if work.validates(step):
                with self.clock.aside(spent.validating):
                    if not spent.validating:
                        spent.compiling_forward.append(speed.compiling_forward)
                        self.time += speed.compiling_forward
                    self.time += work.validation_clips * clip
            if work.saves(step):
                with self.clock.aside(spent.saving):
                    self.time += speed.saving
        self.time += speed.saving + ((work.test_views > 1) + 1) * speed.compiling_forward
        self.time += work.test_clips * clip

    def errors(self, start=0.05):
        """By how much of the time left each estimate was wrong, from a share of the run on."""
        return {
            step: estimate / (self.time - then) - 1
            for step, (then, estimate) in self.estimates.items()
            if step >= start * self.work.total_steps
        }


def changed(**values):
    return dataclasses.replace(WORK, **values)


@pytest.mark.parametrize(
    ('work', 'speed'),
    [
        (WORK, Speed()),
        # Most of the time goes into validations, or into the evaluation at the end with its 4 x 3 views.
        (changed(evaluate_every=50, validation_clips=4096), Speed(step=0.1)),
        (changed(test_clips=12 * 20_000, test_views=12), Speed()),
        (changed(evaluate_every=100, test_clips=4 * 6144, test_views=4), Speed(forward=0.37)),
        # As long as a step, where both only wait for their data.
        (changed(test_clips=40_000, validation_clips=4096), Speed(waits=0.6, forward=1.0)),
        # What was read ahead goes quickly, the rest does not.
        (WORK, Speed(waits=0.6, forward=1.0, read_ahead=20)),
        # Checkpoints that take their time.
        (changed(save_every=20), Speed(saving=3.0)),
        # Hardly anything but compiling.
        (changed(total_steps=200, test_clips=64, evaluate_every=100), Speed(step=0.05)),
    ],
)
def test_it_is_right_within_a_fifth_after_a_twentieth(work, speed):
    errors = Simulated(work, speed).errors()
    assert len(errors) >= 0.9 * work.total_steps
    assert not {step: error for step, error in errors.items() if abs(error) > 0.2}


def test_it_is_exact_where_nothing_has_to_be_guessed():
    run = Simulated(WORK, Speed(forward=0.8, compiling_forward=7.0))
    for step in (251, 400, 600, 900, 1000):
        assert run.errors()[step] == pytest.approx(0.0, abs=1e-9)


def test_what_validations_cost_is_learnt_from_the_first():
    """Five times as slow as thought: wrong before the first, right after it."""
    run = Simulated(changed(evaluate_every=100, test_clips=20_000), Speed(forward=5 / 3))
    assert run.errors()[90] < -0.2
    assert max(abs(error) for step, error in run.errors().items() if step > 100) < 0.05


def test_a_run_that_goes_on_reckons_with_what_it_has_left():
    run = Simulated(WORK, Speed(), first=500)
    assert max(map(abs, run.errors(start=0.55).values())) < 0.2


def test_a_run_that_becomes_slower_is_noticed():
    fast, slow = Lap(100, 10.0), Lap(100, 40.0)
    work = changed(evaluate_every=1000, test_clips=0, validation_clips=1)
    left = seconds_left(work, Spent(laps=[fast, slow]), 200)
    assert left == pytest.approx(800 * 0.4, rel=0.01)


def test_nothing_is_said_before_the_first_step():
    assert math.isnan(seconds_left(WORK, Spent(), 0))
    assert math.isnan(seconds_left(WORK, Spent(laps=[Lap()]), 1))


@pytest.mark.parametrize(('every', 'save'), [(250, 1000), (30, 20), (7, 100), (1000, 1), (5000, 300)])
def test_what_is_still_to_come_is_counted(every, save):
    work = changed(total_steps=1001, evaluate_every=every, save_every=save)
    for step in (1, 6, 7, 20, 250, 999, 1000, 1001):
        later = range(step, 1002)
        assert work.validations_from(step) == sum(map(work.validates, later))
        assert work.saves_from(step) == sum(map(work.saves, later))


def test_the_later_half_counts():
    laps = [Lap(50, 1.0, 0.5), Lap(50, 2.0, 0.25), Lap(50, 4.0, 0.0), Lap(10, 8.0, 1.0)]
    assert latest(laps) == Lap(110, 14.0, 1.25)
    assert latest([]) == Lap()


def test_the_clock_leaves_out_what_is_no_step():
    time = iter([0.0, 1.0, 3.0, 4.0, 9.0, 11.0, 12.0])
    clock = Clock(now=lambda: next(time))  # 0: made
    clock.start()  # 1
    clock.step(waited=0.5)  # 3
    with clock.aside(clock.spent.validating):  # 4 to 9
        pass
    clock.step(waited=0.0)  # 11
    assert clock.log() == Lap(2, 6.0, 0.5)  # 12
    assert clock.spent.validating == [5.0]
    assert clock.spent.laps == [Lap(1, 2.0, 0.5), Lap(1, 4.0, 0.0)]


def test_laps_stay_few_and_lose_nothing():
    ticks = iter(range(100_000))
    clock = Clock(now=lambda: next(ticks))
    clock.start()
    for _ in range(10 * MOST_LAPS):
        clock.step(waited=0.25)
    laps = clock.spent.laps
    assert len(laps) <= MOST_LAPS
    assert {lap.steps for lap in laps} == {16}
    assert sum(laps, Lap()) == Lap(10 * MOST_LAPS, 10 * MOST_LAPS, 2.5 * MOST_LAPS)
    assert latest(laps).steps == 5 * MOST_LAPS
