"""Processes that watch over one another: what each does when another is killed, hangs, fails, or is only slow."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from vivit_jax import meeting
from vivit_jax.watchdog import AHEAD, Watchdog

# A process of a run without jax: NUMBER, COUNT, PORT, SILENCE, then what its main thread does.
PROCESS = """
import sys, threading, time
from vivit_jax import meeting, watchdog

number, count, port, silence = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
hosts = [f'host{place}' for place in range(count)]
if number == 0:
    with meeting.listen('127.0.0.1', port) as door:
        links = meeting.Reception(door, count, {}, print).gather(60)
    for link in links.values():
        link.send(welcome=1, hosts=hosts)
else:
    word = {'process': number, 'count': count, 'host': hosts[number], 'settings': {}}
    links = {0: meeting.report_to('127.0.0.1', port, word, seconds=60, tell=print)[0]}
dog = watchdog.Watchdog(number, hosts, links, silence=silence)
dog.start()
print('ready', flush=True)

def end(code, why=''):
    code = dog.conclude(code, why)
    if why:
        print(why, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    import os
    os._exit(code)

def wait_in_a_collective():
    threading.Event().wait(100)

exec(sys.argv[5])
"""


class Processes:
    """Several of them, each with its own program."""

    def __init__(self, *programs, silence=30.0):
        with socket.socket() as probe:
            probe.bind(('127.0.0.1', 0))
            port = probe.getsockname()[1]
        self.all = [
            subprocess.Popen(
                [sys.executable, '-c', PROCESS, *map(str, (number, len(programs), port, silence)), program],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number, program in enumerate(programs)
        ]
        for process in self.all:
            assert process.stdout.readline() == 'ready\n'

    def ends(self, without=()):
        """Returns exit codes, what was written to stderr, and how long it took."""
        began = time.monotonic()
        ends = {
            number: (process.communicate(timeout=60)[1], process.returncode)
            for number, process in enumerate(self.all)
            if number not in without
        }
        return {number: (code, text) for number, (text, code) in ends.items()}, time.monotonic() - began

    def kill(self, number):
        self.all[number].kill()
        self.all[number].communicate()


WAIT = 'wait_in_a_collective()'


@pytest.mark.parametrize('victim', [0, 2])
def test_the_others_end_when_one_is_killed(victim):
    processes = Processes(WAIT, WAIT, WAIT)
    processes.kill(victim)
    ends, seconds = processes.ends(without=[victim])
    line = (
        f'process {victim} of 3 (on host{victim}) is gone: killed, or its machine is; the same command, '
        'started on all, goes on\n'
    )
    assert ends == {number: (75, line) for number in {0, 1, 2} - {victim}}
    assert seconds < 20


@pytest.mark.parametrize('victim', [0, 1])
def test_the_others_end_when_one_hangs(victim):
    processes = Processes(WAIT, WAIT, WAIT, silence=4.0)
    os.kill(processes.all[victim].pid, signal.SIGSTOP)
    ends, seconds = processes.ends(without=[victim])
    line = (
        f'process {victim} of 3 (on host{victim}) has given no sign of life for 4 s; the same command, '
        'started on all, goes on\n'
    )
    assert ends == {number: (75, line) for number in {0, 1, 2} - {victim}}
    assert 2 < seconds < 30
    # It finds out itself when it goes on.
    os.kill(processes.all[victim].pid, signal.SIGCONT)
    text = processes.all[victim].communicate(timeout=30)[1]
    assert processes.all[victim].returncode == 75
    assert text.count('\n') == 1


def test_the_time_until_a_process_is_given_up_is_less_than_promised():
    from vivit_jax import watchdog

    # The last sign may be that old when it hangs; then all must hear of it and end.
    assert watchdog.SILENCE + watchdog.BEAT + watchdog.TICK + watchdog.LINGER < 60


def test_slow_processes_are_waited_for():
    """One that computes in Python, one that sleeps, one that is suspended for a while: each less than the silence."""
    busy = 'until = time.monotonic() + 6\nwhile time.monotonic() < until: pass\nend(0)'
    processes = Processes('end(0)', busy, 'time.sleep(4); end(0)', 'time.sleep(1); end(0)', silence=4.0)
    os.kill(processes.all[3].pid, signal.SIGSTOP)
    time.sleep(2)
    os.kill(processes.all[3].pid, signal.SIGCONT)
    ends, _ = processes.ends()
    assert ends == dict.fromkeys(range(4), (0, ''))


def test_processes_that_are_done_wait_for_the_last_one():
    """The report at the end is written by process 0, while the others have nothing more to do."""
    processes = Processes('time.sleep(6); end(0)', 'end(0)', 'end(0)')
    time.sleep(2)  # until they have said so
    assert processes.all[1].poll() is None
    processes.kill(2)  # nobody needs it any more
    ends, _ = processes.ends(without=[2])
    assert ends == {0: (0, ''), 1: (0, '')}


@pytest.mark.parametrize('culprit', [0, 1])
def test_an_error_of_one_ends_all_with_its_code(culprit):
    programs = [WAIT] * 3
    programs[culprit] = 'end(2, "error: no such file")'
    ends, seconds = Processes(*programs).ends()
    line = f'process {culprit} of 3 (on host{culprit}) ended: error: no such file\n'
    assert ends == {
        number: (2, 'error: no such file\n' if number == culprit else line) for number in range(3)
    }
    assert seconds < 30


def test_an_error_of_all_is_told_by_each_for_itself():
    ends, _ = Processes(
        *(f'time.sleep({0.5 * number}); end(2, "too many are bad")' for number in range(3))
    ).ends()
    assert ends == dict.fromkeys(range(3), (2, 'too many are bad\n'))


GLOO = 'UNKNOWN: Gloo all-reduce failed: Read error [127.0.0.1]:20363: Connection reset by peer'


def test_an_error_that_comes_of_anothers_end_is_not_told():
    fails = f'threading.Event().wait(1); end(2, "{GLOO}")'
    processes = Processes(fails, fails, WAIT, silence=6.0)
    os.kill(processes.all[2].pid, signal.SIGSTOP)
    ends, _ = processes.ends(without=[2])
    line = 'process 2 of 3 (on host2) has given no sign of life for 6 s; the same command, started on all, goes on\n'
    assert ends == {0: (75, line), 1: (75, line)}
    processes.kill(2)


def test_a_second_signal_while_all_stop_is_an_end_of_its_own():
    processes = Processes(*['end(130, "stopped by SIGINT")'] * 2)
    ends, _ = processes.ends()
    assert ends == {0: (130, 'stopped by SIGINT\n'), 1: (130, 'stopped by SIGINT\n')}


# --- Stopping together ---


class Run:
    """Processes in threads that step together as a collective lets them.

    A process begins step n, then waits until step n - 1 is done, which is so when all have begun it.
    """

    def __init__(self, count, steps, signals, seed, ends=()):
        self.random, self.signals = random.Random(seed), signals
        self.ends = ends or (steps,)
        self.begun = [0] * count
        self.changed = threading.Condition()
        pairs = [socket.socketpair() for _ in range(count - 1)]
        hosts = [str(number) for number in range(count)]
        links = {number: meeting.Link(pair[0]) for number, pair in enumerate(pairs, start=1)}
        dogs = [Watchdog(0, hosts, links)]
        dogs += [
            Watchdog(number, hosts, {0: meeting.Link(pair[1])}) for number, pair in enumerate(pairs, start=1)
        ]
        self.stopped = [None] * count
        threads = [threading.Thread(target=self.go, args=(number, dog)) for number, dog in enumerate(dogs)]
        for dog in dogs:
            dog.start()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()

    def go(self, number, dog):
        caught = None
        for step in range(1, self.ends[-1] + 1):
            time.sleep(self.random.random() * 0.004)
            with self.changed:
                self.begun[number] = step
                self.changed.notify_all()
                self.changed.wait_for(lambda step=step: min(self.begun) >= step - 1)
            caught = caught or self.signals.get((number, step))
            stop = dog.agreed(caught, last=step in self.ends)
            if stop is not None:
                self.stopped[number] = (step, stop)
                break
        assert dog.conclude(128 + stop if stop else 0) == (128 + stop if stop else 0)


@pytest.mark.parametrize('seed', range(12))
def test_all_stop_after_the_same_step(seed):
    random_ = random.Random(seed)
    count, steps = random_.randint(2, 5), 30
    # Some processes are told to stop, at any step; the last ones too.
    signals = {
        (number, random_.randint(1, steps)): random_.choice([signal.SIGTERM, signal.SIGINT])
        for number in random_.sample(range(count), random_.randint(1, count))
    }
    run = Run(count, steps, signals, seed)
    first = min(step for _, step in signals)
    assert len(set(run.stopped)) == 1
    step, stop = run.stopped[0]
    assert stop in signals.values()
    # A step or two until process 0 hears of it, and those that a process may be ahead.
    assert first <= step <= min(first + 2 * AHEAD + 2, steps)


def test_nobody_stops_unasked():
    run = Run(3, 10, {}, 0)
    assert run.stopped == [None] * 3


@pytest.mark.parametrize('told', [0, 2])
def test_the_end_may_be_reached_twice(told):
    """As by a run that goes back to an earlier checkpoint from its last step."""
    run = Run(3, 4, {(told, 6): signal.SIGINT}, 0, ends=(4, 6))
    assert run.stopped == [(6, signal.SIGINT)] * 3


def test_agreeing_costs_next_to_nothing():
    """Less than 20 microseconds a step, where a step takes milliseconds; in the quietest of many short moments."""
    here, there = socket.socketpair()
    dog = Watchdog(1, ['a', 'b'], {0: meeting.Link(here)})
    dog.start()
    best = min(_seconds(lambda: dog.agreed(None, last=False), times=50) for _ in range(200))
    meeting.Link(there).send(over=True)
    time.sleep(1)
    there.close()
    assert best < 20e-6


def _seconds(call, times):
    began = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - began) / times
