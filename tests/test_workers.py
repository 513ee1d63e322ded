"""Worker processes that read: what they send, that a lost one is replaced, and that none outlives its run."""

import functools
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from vivit_jax.data.examples import TrainingExamples
from vivit_jax.data.moving_digits import MovingDigits
from vivit_jax.data.sampling import Order
from vivit_jax.data.workers import WorkerLost, Workers

# Reads in two workers until it is killed: it says which processes they are, and then that something was read.
RUN = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a command in the background ignores
from vivit_jax.data.workers import Workers

def read(row):
    time.sleep(1000 if row > 5 else 0)
    return row

with Workers(read, range(10), number=2, threads=2, ahead=4) as workers:
    print(*(worker._process.pid for worker in workers._workers), flush=True)
    print(workers(0), flush=True)
    for row in range(1, 10):
        workers(row)
"""


def children():
    """Ids of the processes that this one has started and not yet taken leave of: zombies count."""
    lists = pathlib.Path('/proc/self/task').glob('*/children')
    return {child for children in lists for child in children.read_text().split()}


def is_alive(process):
    try:
        status = pathlib.Path(f'/proc/{process}/stat').read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(')')[2].split()[0] not in 'ZX'  # nobody may be there to take leave of it


def mapped(process):
    """What files a process has in its memory: shared memory and semaphores are files of /dev/shm."""
    return pathlib.Path(f'/proc/{process}/maps').read_text()


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def started(read, rows, **changes):
    return Workers(read, rows, **({'number': 2, 'threads': 2, 'ahead': 3} | changes))


def example(row):
    random = np.random.default_rng(row)
    return {
        'video': random.integers(0, 256, (row % 3, 64, 1000), np.uint8),
        'label': np.asarray(row, np.int32),
        'drawn': random.normal(size=4)[::2],
    }


def process_of(row):
    return os.getpid(), 'jax' in sys.modules


def slow(row):
    time.sleep(1000)


def failing(row, error, words):
    if row == 4:
        raise error(*words)
    return row


class Odd(Exception):
    """Cannot be made from its message, as pickle does it."""

    def __init__(self, one, two):
        super().__init__(f'{one} and {two}')


def large(row):
    return np.full(300_000, row, np.uint8)


def deadly(row, folder, times):
    """Kills the process that reads row 3, the first `times` times."""
    path = folder / 'deaths'
    if row == 3 and (deaths := path.read_text() if path.exists() else '') != 'x' * times:
        path.write_text(deaths + 'x')
        os.kill(os.getpid(), signal.SIGKILL)
    return row


@pytest.fixture(autouse=True)
def no_process_is_left():
    before = children()
    yield
    assert children() == before


@pytest.mark.parametrize(('number', 'rows'), [(1, range(3)), (2, range(5, 12)), (3, range(2)), (2, range(0))])
def test_rows_arrive_whole_and_in_order(number, rows):
    with started(example, rows, number=number) as workers:
        for row in rows:
            got = workers(row)
            np.testing.assert_equal(got, example(row))
            got['video'][...] = 0  # is nobody else's
    if rows:
        assert {name: array.dtype for name, array in got.items()} == {
            'video': np.uint8,
            'label': np.int32,
            'drawn': np.float64,
        }


def test_each_process_reads_its_share_without_jax():
    source = MovingDigits('train', size=10, frames=4, canvas=12)
    settings = {'split': 'train', 'seed': 3, 'frames': 4, 'stride': 1, 'short': 'repeat_last'}
    read = TrainingExamples(source=source, order=Order(10, 3), augmentation=(), **settings)
    with started(read, range(4)) as workers:
        np.testing.assert_equal([workers(row) for row in range(4)], [read(row) for row in range(4)])
    with started(process_of, range(4)) as workers:
        (one, _), (two, _), *again = told = [workers(row) for row in range(4)]
    assert told[:2] == again
    assert len({one, two, os.getpid()}) == 3
    assert not any(has_jax for _, has_jax in told)


def test_what_a_worker_raises_is_raised_here():
    with started(
        functools.partial(failing, error=ValueError, words=['v.mp4: no frames']), range(9)
    ) as workers:
        assert [workers(row) for row in range(4)] == [0, 1, 2, 3]
        with pytest.raises(ValueError, match='no frames') as raised:
            workers(4)
    assert str(raised.value) == 'v.mp4: no frames'
    assert 'in failing' in raised.value.__notes__[0]


def test_what_cannot_travel_is_told_all_the_same():
    with (
        started(functools.partial(failing, error=Odd, words=[1, 2]), range(4, 6)) as workers,
        pytest.raises(RuntimeError, match=r'^Odd: 1 and 2'),
    ):
        workers(4)


def test_a_killed_worker_is_replaced(tmp_path):
    with (
        started(functools.partial(deadly, folder=tmp_path, times=1), range(40)) as workers,
        pytest.warns(UserWarning, match='a worker process died of SIGKILL; another one goes on'),
    ):
        assert [workers(row) for row in range(40)] == list(range(40))


def test_a_worker_may_be_killed_in_the_middle_of_an_example():
    """As all are while nobody reads what they send: their pipes are full."""
    with started(large, range(40)) as workers:
        np.testing.assert_array_equal(workers(0), large(0))
        time.sleep(0.5)
        os.kill(workers._workers[1]._process.pid, signal.SIGKILL)
        with pytest.warns(UserWarning, match='died of SIGKILL'):
            got = [workers(row) for row in range(1, 40)]
    np.testing.assert_array_equal(got, [large(row) for row in range(1, 40)])


def test_a_worker_that_is_always_killed_ends_the_reading(tmp_path):
    message = (
        r'died of SIGKILL, as did the one before it, .* data\.workers \(now 2\) or data\.threads \(now 2\)'
    )
    with started(functools.partial(deadly, folder=tmp_path, times=99), range(9)) as workers:  # noqa: SIM117
        with (
            pytest.warns(UserWarning, match='died of SIGKILL'),
            pytest.raises(WorkerLost, match=message),
        ):
            list(map(workers, range(9)))


def test_a_worker_ends_at_once_whatever_it_is_at():
    with started(slow, range(9)) as workers:
        wait_until(lambda: len(children()) >= 2)
        began = time.monotonic()
        assert [worker._process.poll() for worker in workers._workers] == [None, None]
    assert time.monotonic() - began < 5


@pytest.mark.parametrize('number', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_its_run(number):
    with subprocess.Popen(
        [sys.executable, '-c', RUN],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as run:
        try:
            workers = run.stdout.readline().split()
            assert run.stdout.readline() == '0\n'
            assert [is_alive(worker) for worker in workers] == [True, True]
            assert not any('/dev/shm' in mapped(process) for process in (run.pid, *workers))
        finally:
            os.killpg(run.pid, number)  # as a terminal does it
        _, errors = run.communicate(timeout=30)
    assert run.returncode == -number
    wait_until(lambda: not any(map(is_alive, workers)))
    assert 'leaked' not in errors
    # Python's own of the run, and nothing of its workers.
    assert errors.count('Traceback') == (number == signal.SIGINT)
