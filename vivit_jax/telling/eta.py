"""How long a whole run still takes: the steps to come, and all that is done between and after them."""

import dataclasses
import math

# A step is one pass forward and one backward of twice its cost, see `models.cost`.
FORWARD_SHARE = 1 / 3
# Of the steps' time. Where a step waits longer for its data, reading takes all the time that there is, and evaluation
# reads as slowly.
DATA_BOUND = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a run has to do.

    Attributes:
        total_steps: Steps from beginning to end.
        evaluate_every: Steps from one validation, and its checkpoint, to the next; the last step has both.
        save_every: Steps from one checkpoint to the next, besides those.
        batch_size: Clips of a step.
        validation_clips: Clips of a validation.
        test_clips: Clips of the evaluation at the end: examples of all test splits, times views.
        test_views: Views of each; validation has one.
    """

    total_steps: int
    evaluate_every: int
    save_every: int
    batch_size: int
    validation_clips: int
    test_clips: int
    test_views: int = 1

    def validates(self, step: int) -> bool:
        """Tells whether a validation follows a step."""
        return step % self.evaluate_every == 0 or step == self.total_steps

    def saves(self, step: int) -> bool:
        """Tells whether a checkpoint follows a step."""
        return self.validates(step) or step % self.save_every == 0

    def validations_from(self, step: int) -> int:
        """Returns how many validations are still to come, that of `step` among them."""
        return self._multiples(step, self.evaluate_every) + 1

    def saves_from(self, step: int) -> int:
        """Returns how many checkpoints are still to come, that of `step` among them."""
        both = math.lcm(self.evaluate_every, self.save_every)
        besides = self._multiples(step, self.save_every) - self._multiples(step, both)
        return self.validations_from(step) + besides

    def _multiples(self, step: int, every: int) -> int:
        """Counts the multiples of `every` from `step` to the last step but one."""
        return max((self.total_steps - 1) // every - (step - 1) // every, 0)


@dataclasses.dataclass(frozen=True)
class Lap:
    """Steps in a row: how many, the seconds they took, and for how many of these they waited for data."""

    steps: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    def __add__(self, other: 'Lap') -> 'Lap':
        return Lap(self.steps + other.steps, self.seconds + other.seconds, self.waited + other.waited)


@dataclasses.dataclass
class Spent:
    """Where the time of a run went so far, in seconds.

    Attributes:
        compiling: The training step's compilation.
        laps: The steps, in order.
        compiling_forward: The compilation of what evaluates, which is part of the first validation.
        validating: Each validation.
        saving: What each checkpoint held up training.
        testing: The evaluation at the end, with what is written of it.
    """

    compiling: list[float] = dataclasses.field(default_factory=list)
    laps: list[Lap] = dataclasses.field(default_factory=list)
    compiling_forward: list[float] = dataclasses.field(default_factory=list)
    validating: list[float] = dataclasses.field(default_factory=list)
    saving: list[float] = dataclasses.field(default_factory=list)
    testing: list[float] = dataclasses.field(default_factory=list)


def seconds_left(work: Work, spent: Spent, step: int) -> float:
    """Estimates how long a run still takes, to its very end.

    Steps are taken to be as fast as they were lately. What an evaluation costs is measured as soon as there was one;
    before, a clip of it is taken for a third of a clip's share in a step, which is its pass forward, or for all of it
    where steps wait for their data.

    Args:
        work: What the run has to do.
        spent: Where its time went so far.
        step: Steps done, those of earlier sessions too; what follows on this one is still to be done.

    Returns:
        Seconds; NaN while nothing was measured.
    """
    lately = latest(spent.laps)
    if not lately.steps:
        return math.nan
    seconds_per_step = lately.seconds / lately.steps
    # Compiling a pass forward takes about as much less as running it does.
    compiling = sum(spent.compiling_forward) or FORWARD_SHARE * sum(spent.compiling)
    clip = _seconds_per_clip(work, spent, lately, compiling)
    validations = work.validations_from(step)
    saving = sum(spent.saving) / max(len(spent.saving), 1)
    return (
        (work.total_steps - step) * seconds_per_step
        + (validations * work.validation_clips + work.test_clips) * clip
        # Once for the first validation, once more for other views, and once for the attention in the report.
        + ((not spent.validating) + (work.test_views > 1) + 1) * compiling
        # One more to wait for what is being written, and to read the best.
        + (work.saves_from(step) + 1) * saving
    )


def latest(laps: list[Lap]) -> Lap:
    """Sums up the later half of the steps: the first ones find data that was read ahead while compiling."""
    wanted = sum(lap.steps for lap in laps) / 2
    total = Lap()
    for lap in reversed(laps):
        if total.steps and total.steps >= wanted:
            break
        total += lap
    return total


def _seconds_per_clip(work: Work, spent: Spent, lately: Lap, compiling: float) -> float:
    """Returns what it takes to evaluate one clip."""
    later = spent.validating[1:]
    if later:
        return sum(later) / len(later) / work.validation_clips
    if spent.validating:
        return max(spent.validating[0] - compiling, 0.0) / work.validation_clips
    share = 1.0 if lately.waited > DATA_BOUND * lately.seconds else FORWARD_SHARE
    return share * lately.seconds / lately.steps / work.batch_size
