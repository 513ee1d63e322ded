"""Ctrl-C where Python would lose it."""

import signal
import sys
import time

import pytest

from vivit_jax.signals import Interrupted, caught_signals, interruptible, lasting_interrupts


class Deaf:
    """What is raised while it goes away is ignored, as in a callback of the garbage collector."""

    def __init__(self, error):
        self.error = error

    def __del__(self):
        raise self.error


def test_an_interruption_that_is_ignored_comes_again():
    before = sys.unraisablehook
    # In a shell's background Python leaves Ctrl-C ignored.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), lasting_interrupts():  # noqa: PT012
        Deaf(KeyboardInterrupt())
        time.sleep(30)
    signal.signal(signal.SIGINT, handler)
    assert time.monotonic() - began < 20
    assert sys.unraisablehook is before


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_what_is_under_way_and_are_collected_between(number):
    before = signal.signal(number, signal.SIG_DFL)
    with pytest.raises(Interrupted) as found, interruptible():  # noqa: PT012
        with caught_signals() as caught:
            signal.raise_signal(number)
        assert caught == [number]
        signal.raise_signal(number)
    assert found.value.signum == number
    assert signal.signal(number, before) is signal.SIG_DFL


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with interruptible(), caught_signals() as caught:
        signal.raise_signal(signal.SIGHUP)
    assert caught == []
    assert signal.signal(signal.SIGHUP, before) is signal.SIG_IGN


def test_other_errors_are_told_as_before(monkeypatch):
    told = []
    monkeypatch.setattr(sys, 'unraisablehook', lambda unraisable: told.append(unraisable.exc_type))
    with lasting_interrupts():
        Deaf(ValueError())
    assert told == [ValueError]
