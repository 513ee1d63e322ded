"""Ending a run in good order when it is told to: Ctrl-C, or a terminate signal from a scheduler."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

AGAIN = 0.1  # seconds until an interruption that went astray comes again


class Stopped(Exception):
    """A signal ended the run after its state was saved.

    Attributes:
        exit_code: 128 + the signal's number: 130 after SIGINT, 143 after SIGTERM, as shells have it.
    """

    def __init__(self, signum: int, message: str):
        super().__init__(f'stopped by {signal.Signals(signum).name}: {message}')
        self.exit_code = 128 + signum


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; after the first, a second one acts as usual."""
    caught: list[int] = []
    previous: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def note(signum: int, frame: FrameType | None) -> None:
        caught.append(signum)
        restore()
        print('stopping as soon as this step is saved; once more to stop at once', file=sys.stderr)

    # Only a main thread may set handlers; in others, signals are somebody else's.
    with contextlib.suppress(ValueError):
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    try:
        yield caught
    finally:
        restore()


@contextlib.contextmanager
def lasting_interrupts() -> Iterator[None]:
    """Lets Ctrl-C come again if its KeyboardInterrupt arose where Python ignores exceptions.

    Such a place is jax's callback of the garbage collector, where a program is often while it traces a model.
    """
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        # Not at once: it would be ignored as well.
        main = threading.main_thread().ident
        threading.Timer(AGAIN, signal.pthread_kill, (main, signal.SIGINT)).start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
