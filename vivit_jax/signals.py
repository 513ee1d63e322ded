"""Ending a run in good order when it is told to: by Ctrl-C, a scheduler, or a terminal that closes."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

AGAIN = 0.1  # seconds until an interruption that went astray comes again
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # to end


class Interrupted(KeyboardInterrupt):
    """A signal other than Ctrl-C's ends the program wherever it is, as Ctrl-C does.

    Attributes:
        signum: Which.
    """

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum


class Stopped(Exception):
    """A signal ended the run after its state was saved.

    Attributes:
        exit_code: 128 + the signal's number, as shells have it: 129 after SIGHUP, 130 SIGINT, 143 SIGTERM.
    """

    def __init__(self, signum: int, message: str):
        super().__init__(f'stopped by {signal.Signals(signum).name}: {message}')
        self.exit_code = 128 + signum


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collects `ASKING` signals instead of dying of them; after the first, a second one acts as before."""
    caught: list[int] = []
    previous: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)
        restore()
        with contextlib.suppress(OSError):  # not by `print`, in the middle of which the signal may have come
            os.write(2, b'stopping as soon as this step is saved; once more to stop at once\n')

    # Only a main thread may set handlers; in others, signals are somebody else's.
    with contextlib.suppress(ValueError):
        for number in filter(_heard, ASKING):
            previous[number] = signal.signal(number, note)
    try:
        yield caught
    finally:
        restore()


def _heard(number: int) -> bool:
    """Tells whether a signal means something: nohup has SIGHUP ignored."""
    return number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP end what is under way as Ctrl-C does, by an exception: `Interrupted`."""
    previous: dict[int, Any] = {}

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    with contextlib.suppress(ValueError):  # as above
        for each in filter(_heard, ASKING[1:]):
            previous[each] = signal.signal(each, interrupt)
    try:
        with lasting_interrupts():
            yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def lasting_interrupts() -> Iterator[None]:
    """Lets an interruption come again if its exception arose where Python ignores exceptions.

    Such a place is jax's callback of the garbage collector, where a program is often while it traces a model.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        # Not at once: it would be ignored as well.
        main = threading.main_thread().ident
        number = getattr(unraisable.exc_value, 'signum', signal.SIGINT)
        threading.Timer(AGAIN, signal.pthread_kill, (main, number)).start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
