"""The clock of a training loop: how long its steps take, and what is done between them."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from vivit_jax.telling.eta import Lap, Spent

Result = TypeVar('Result')
MOST_LAPS = 64  # that are kept; of more, neighbours are joined, so that looking at them stays cheap


class Clock:
    """Measures where a run's time goes.

    Attributes:
        spent: What was measured so far.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter):
        self.spent = Spent()
        self._now = now
        self._began = now()
        self._since_log = Lap()
        self._steps_a_lap = 1

    def start(self) -> None:
        """Begins: what was before is no part of the steps."""
        self._began = self._now()

    def step(self, waited: float) -> None:
        """Notes that a step was made, and for how many seconds the device waited for its data."""
        began, self._began = self._began, self._now()
        lap, laps = Lap(1, self._began - began, waited), self.spent.laps
        self._since_log += lap
        if laps and laps[-1].steps < self._steps_a_lap:
            laps[-1] += lap
            return
        if len(laps) == MOST_LAPS:
            laps[:] = [one + other for one, other in zip(laps[::2], laps[1::2], strict=True)]
            self._steps_a_lap *= 2
        laps.append(lap)

    def log(self) -> Lap:
        """Returns the steps since the last time that it was called, up to now: they may have ended since."""
        began, self._began = self._began, self._now()
        more = Lap(0, self._began - began)
        if self.spent.laps:
            self.spent.laps[-1] += more
        since, self._since_log = self._since_log + more, Lap()
        return since

    def first_call(self, function: Callable[..., Result], seconds: list[float]) -> Callable[..., Result]:
        """Returns a function that adds to a list of `spent` how long its first call took, which compiles it."""

        def timed(*arguments: Any) -> Result:
            began = self._now()
            result = function(*arguments)
            if not seconds:
                seconds.append(self._now() - began)
            return result

        return timed

    @contextlib.contextmanager
    def aside(self, seconds: list[float]) -> Iterator[None]:
        """Adds to a list of `spent` how long something took that is no part of the steps."""
        began = self._now()
        try:
            yield
        finally:
            seconds.append(self._now() - began)
            self._began += seconds[-1]
