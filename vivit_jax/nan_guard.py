"""Steps whose numbers are not finite: what a run does about them (`training.on_nan`).

The compiled step leaves its own update out where loss or gradient are not finite, see `train_step`. What the run
does then is decided here:

- 'stop': it ends, with the step, the last good checkpoint and what to try.
- 'skip': it goes on; these steps are counted, and too many in a row end the run.
- 'rewind': back to the last regular checkpoint before that step, and on from there with other batches: those that
  led to it, from the one after the checkpoint to that of the step itself, are passed over, and every later step takes
  the batch that is so much further on. Nothing else changes: in a step dropout and mixup draw what they drew before.

What a run does is a function of its configuration, however often it is stopped and goes on: which step is the first
that is not finite does not depend on when that is found out, and regular checkpoints are those of the plan, not one
that a signal made. Checkpoints carry the `memory` of it.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from vivit_jax.data.examples import Example

ON_NAN = ('stop', 'skip', 'rewind')
MOST_IN_A_ROW = 10  # steps that are left out
MOST_REWINDS = 10  # of a run


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite."""


class NotFinite(Exception):
    """A step whose numbers are not finite.

    Attributes:
        step: Its number, from 1.
        scalars: Its numbers.
    """

    def __init__(self, step: int, scalars: dict[str, float]):
        numbers = [f'loss {scalars["loss"]:g}', f'gradient norm {scalars["grad_norm"]:g}']
        if math.isfinite(scalars['loss']) and math.isfinite(scalars['grad_norm']):
            numbers.append('its update not finite')
        super().__init__(f'{", ".join(numbers)} at step {step}')
        self.step, self.scalars = step, scalars


@dataclasses.dataclass
class NanGuard:
    """What a run remembers of steps that were not finite.

    Attributes:
        on_nan: One of `ON_NAN`.
        judged: The last step that was looked at.
        skipped: Steps whose update was left out.
        in_a_row: Of these, the ones just before the next step.
        detours: For each rewind the step that it went back to, and how many batches were passed over.
    """

    on_nan: str = 'stop'
    judged: int = 0
    skipped: int = 0
    in_a_row: int = 0
    detours: tuple[tuple[int, int], ...] = ()

    def judge(
        self, window: Sequence[dict[str, float]], step: int
    ) -> tuple[list[dict[str, float]], list[int]]:
        """Looks at the steps that were not looked at yet.

        Args:
            window: Scalars of the steps since the last log, as far as they are finite or were not looked at yet.
            step: The last step of the window.

        Returns:
            The scalars that are finite; and the steps, of those not looked at yet, whose update was left out.

        Raises:
            NotFinite: If the run must not go on so.
        """
        known = len(window) - (step - self.judged)
        kept, left_out = list(window[:known]), []
        for number, scalars in enumerate(window[known:], start=self.judged + 1):
            if all(map(math.isfinite, scalars.values())):
                self.in_a_row = 0
                kept.append(scalars)
                continue
            self.in_a_row += 1
            # An update that is not finite itself, of a gradient that is, has been made.
            made = math.isfinite(scalars['loss']) and math.isfinite(scalars['grad_norm'])
            if self.on_nan != 'skip' or made or self.in_a_row >= MOST_IN_A_ROW:
                raise NotFinite(number, scalars)
            left_out.append(number)
        self.judged, self.skipped = step, self.skipped + len(left_out)
        return kept, left_out

    def memory(self) -> dict[str, Any]:
        """Returns what the next session has to know, for JSON."""
        return {
            'skipped': self.skipped,
            'in_a_row': self.in_a_row,
            'detours': [list(each) for each in self.detours],
        }


def remembered(on_nan: str, step: int, memory: dict[str, Any] | None) -> NanGuard:
    """Returns the guard of a run that goes on after a step, with its `memory`; None where a checkpoint has none."""
    if memory is None:
        return NanGuard(on_nan, judged=step)
    detours = tuple((int(to), int(over)) for to, over in memory['detours'])
    return NanGuard(on_nan, step, int(memory['skipped']), int(memory['in_a_row']), detours)


def leads_on(step: int, guard: NanGuard, detours: tuple[tuple[int, int], ...]) -> bool:
    """Tells whether a checkpoint lies on the way of a run that has taken detours.

    One that a signal made between a regular checkpoint and a step that was not finite does not: its run would come
    to that step, and go back.

    Args:
        step: Of the checkpoint.
        guard: What it remembers.
        detours: Those of the run.
    """
    return guard.detours == tuple(each for each in detours if each[0] < step)


def last_regular(regular: Callable[[int], bool], step: int) -> int:
    """Returns the last step before `step` that a regular checkpoint follows, 0 if there is none."""
    return next((earlier for earlier in range(step - 1, 0, -1) if regular(earlier)), 0)


@dataclasses.dataclass(frozen=True)
class KeepRegular:
    """Keeps the last regular checkpoint, however many signals have made since: one of Orbax's preservation policies.

    Attributes:
        regular: Tells of a step whether a regular checkpoint follows it.
    """

    regular: Callable[[int], bool]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Tells of each checkpoint, in order, whether it is to be kept."""
        last = max((each.step for each in checkpoints if self.regular(each.step)), default=None)
        return [each.step == last for each in checkpoints]


@dataclasses.dataclass(frozen=True)
class Detoured:
    """Maps positions of the training stream to examples, passing over the batches that rewinds passed over.

    Attributes:
        read: `TrainingExamples`.
        batch_size: Examples of a batch, over all processes.
        detours: See `NanGuard`.
    """

    read: Callable[[int], Example]
    batch_size: int
    detours: tuple[tuple[int, int], ...]

    def __call__(self, position: int) -> Example:
        """Returns the example that the position has now."""
        over = sum(over for after, over in self.detours if position >= after * self.batch_size)
        return self.read(position + over * self.batch_size)
