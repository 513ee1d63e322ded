"""How long one file may keep its reader busy: a hostile or damaged one can claim work without an end."""

import time

KEY = 'data.file_seconds'


class TakesTooLong(ValueError):
    """Reading a file was given up."""


class TimeLimit:
    """Counts from when it is made; whoever reads asks it between packets, frames or blocks.

    What counts is the time of the processor in this thread. Neither a busy machine, nor one that was put to sleep,
    nor a disk that does not answer gives up a file that would be read otherwise: which files are bad does not depend
    on them.
    """

    def __init__(self, seconds: float):
        """Begins to count.

        Args:
            seconds: Of the processor, in this thread; 0: without an end.
        """
        self._seconds, self._began = seconds, time.thread_time()

    def check(self) -> None:
        """Raises `TakesTooLong` when the time is over; asked in the thread that began."""
        if self._seconds and time.thread_time() - self._began > self._seconds:
            raise TakesTooLong(f'{_WORDS}{self._seconds:g}')


_WORDS = f'takes longer to read than {KEY}='


def is_one(outcome: object) -> bool:
    """Tells whether a file could not be used since it took too long: on another machine it may be read."""
    return isinstance(outcome, str) and _WORDS in outcome
