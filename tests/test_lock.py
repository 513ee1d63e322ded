"""The lock on a workdir: who is refused, who is taken over from, and what a run does that was taken over from."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from vivit_jax import lock
from vivit_jax.lock import Lost, held

ELSEWHERE = {'boot': 'another', 'host': 'host-a'}


@pytest.fixture
def quick(monkeypatch):
    """Beats and patience of tenths of a second."""
    for name, seconds in {
        'FIRST_BEAT': 0.05,
        'BEAT': 0.05,
        'PATIENCE': 0.6,
        'GRACE': 0.2,
        'POLL': 0.02,
    }.items():
        monkeypatch.setattr(lock, name, seconds)


def nobody(line):
    """Fails where something is said."""
    raise AssertionError(line)


def holder(**changes):
    return dataclasses.replace(lock.ourselves(), run='another', **changes)


def write(folder, one):
    with lock._alone(folder / lock.NAME) as file:
        file.write(one)


def read(folder):
    return json.loads((folder / lock.NAME).read_text())


def gone():
    """The number of a process that was there."""
    process = subprocess.Popen(['true'])
    process.wait()
    return process.pid


def test_it_is_there_while_it_is_held_and_beats(tmp_path, quick):
    with held(tmp_path, nobody) as mine:
        first = read(tmp_path)
        assert first['process'] == os.getpid()
        deadline = time.time() + 20
        while read(tmp_path)['beat'] < 3:
            assert time.time() < deadline
            time.sleep(0.01)
        last = read(tmp_path)
        assert last['signed'] > first['signed']
        assert {key: last[key] for key in ('run', 'host', 'started', 'born')} == {
            key: first[key] for key in ('run', 'host', 'started', 'born')
        }
        mine.confirm()
    assert list(tmp_path.iterdir()) == []
    assert 'lock' not in [thread.name for thread in threading.enumerate()]


@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, SystemExit])
def test_it_is_released_however_it_ends(tmp_path, error):
    with pytest.raises(error), held(tmp_path, nobody):
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_is_refused_with_the_first_ones_process_host_and_age(tmp_path, quick):
    write(tmp_path, holder(started=time.time() - 720, signed=time.time() - 4))
    before = (tmp_path / lock.NAME).read_bytes()
    with pytest.raises(ValueError, match='is in use') as error, held(tmp_path, nobody):
        pass
    host = lock.ourselves().host
    assert str(error.value) == (
        f'{tmp_path} is in use by process {os.getpid()} on {host} (train, started 12 min ago, last sign 4 s ago): '
        'wait, stop it, or choose another --workdir'
    )
    assert (tmp_path / lock.NAME).read_bytes() == before


@pytest.mark.parametrize('change', [{}, {'host': 'an earlier name'}])
def test_on_the_same_machine_a_process_that_is_gone_holds_nothing(tmp_path, change):
    """At once, whatever the machine was called then."""
    left = holder(process=gone(), started=time.time() - 7200, signed=time.time() - 1, **change)
    write(tmp_path, left)
    said, began = [], time.monotonic()
    with held(tmp_path, said.append):
        assert time.monotonic() - began < lock.GRACE
        assert read(tmp_path)['process'] == os.getpid()
    assert said == [
        f'{tmp_path} was left by process {left.process} on {left.host} (train, started 2 h ago, last sign 1 s ago), '
        'which is gone: taking it over'
    ]


def test_a_process_with_its_number_is_not_the_one_that_held_it(tmp_path):
    write(tmp_path, holder(born=lock.ourselves().born - 1))
    said = []
    with held(tmp_path, said.append):
        assert len(said) == 1


def test_a_process_that_has_ended_but_is_still_listed_holds_nothing(tmp_path):
    process = subprocess.Popen(['sleep', '100'])
    born = lock._born(process.pid)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert lock._state(process.pid) == 'Z'
    write(tmp_path, holder(process=process.pid, born=born))
    with held(tmp_path, lambda line: None):
        pass
    process.wait()


def test_another_container_on_the_same_machine_is_elsewhere(tmp_path, quick):
    """Its processes have numbers of their own."""
    write(tmp_path, holder(namespace='pid:[1]', process=gone()))
    said, began = [], time.monotonic()
    with held(tmp_path, said.append):
        assert time.monotonic() - began >= lock.PATIENCE
    assert len(said) == 2


@pytest.mark.parametrize('age', [0.0, 1e6, -1e6])
def test_elsewhere_the_beat_decides_whatever_the_clocks_say(tmp_path, quick, age):
    other = holder(**ELSEWHERE, process=12, signed=time.time() - age, started=time.time() - age)
    write(tmp_path, other)
    said = []
    with held(tmp_path, said.append):
        pass
    watching = (
        r'.* may be in use by process 12 on host-a \(.*\): watching for 0\.6 s whether there is another sign'
    )
    assert re.fullmatch(watching, said[0])
    assert 'which is gone: taking it over' in said[1]

    write(tmp_path, other)
    beat = threading.Timer(0.2, write, (tmp_path, dataclasses.replace(other, beat=1)))
    beat.start()
    with pytest.raises(ValueError, match='is in use by process 12 on host-a'), held(tmp_path, said.append):
        pass
    beat.join()
    assert read(tmp_path)['beat'] == 1


def test_who_is_released_while_watched_is_followed_at_once(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(lock, 'PATIENCE', 60.0)
    write(tmp_path, holder(**ELSEWHERE))
    release = threading.Timer(0.2, (tmp_path / lock.NAME).unlink)
    release.start()
    said = []
    with held(tmp_path, said.append):
        pass
    assert len(said) == 1


@pytest.mark.parametrize(
    'text',
    [
        b'',
        b'\0' * 1024,
        b'[' * 100_000,
        b'{"run": 1}',
        b'{"process": 1e999}',
        json.dumps(dataclasses.asdict(holder()) | {'process': -1}).encode(),
        json.dumps(dataclasses.asdict(holder()) | {'started': float('nan')}).encode(),
        json.dumps(dataclasses.asdict(holder()) | {'host': 7}).encode(),
    ],
)
def test_what_is_no_lock_locks_nothing(tmp_path, text):
    (tmp_path / lock.NAME).write_bytes(text)
    with held(tmp_path, nobody):
        assert read(tmp_path)['process'] == os.getpid()


def test_a_host_cannot_write_to_the_terminal(tmp_path, quick):
    write(tmp_path, holder(host='\x1b[2J\nerror'))
    with pytest.raises(ValueError, match=r'on \?\[2J\?error \(') as error, held(tmp_path, nobody):
        pass
    assert '\n' not in str(error.value)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    message = r'none/run\.lock cannot be written: No such file'
    with pytest.raises(ValueError, match=message), held(tmp_path / 'none', nobody):
        pass


def test_a_store_has_the_last_word(tmp_path, quick, monkeypatch):
    """It locks no files: what was written is read back, and then it beats as elsewhere."""
    monkeypatch.setattr(lock.paths, 'is_remote', lambda path: True)
    monkeypatch.setattr(lock, 'SETTLE', 0.1)
    with held(tmp_path, nobody) as mine:
        first = read(tmp_path)
        assert first['process'] == os.getpid()
        mine.confirm()
    assert list(tmp_path.iterdir()) == []
    # Another one writes at the same moment, after us.
    other = threading.Timer(0.05, write, (tmp_path, holder()))
    other.start()
    with pytest.raises(ValueError, match='is in use by process'), held(tmp_path, nobody):
        pass
    other.join()
    assert read(tmp_path)['run'] == 'another'


@pytest.mark.parametrize('number', [0, 1])
def test_of_several_processes_the_first_takes_it_and_all_learn_the_refusal(
    tmp_path, quick, monkeypatch, number
):
    write(tmp_path, holder())
    told = []

    def gather_rows(rows):
        told.append(rows.astype(np.uint8).tobytes().decode())
        return np.frombuffer(b' refused \xc3\xa9', np.uint8).astype(np.uint32)[:, None]

    monkeypatch.setattr(lock.jax, 'process_count', lambda: 2)
    monkeypatch.setattr(lock.jax, 'process_index', lambda: number)
    monkeypatch.setattr(lock.sharding, 'gather_rows', gather_rows)
    with pytest.raises(ValueError, match=r'^refused é$'), held(tmp_path, nobody):
        pass
    assert [text.strip().endswith('choose another --workdir') for text in told] == [number == 0]
    assert read(tmp_path)['run'] == 'another'


# --- Two starts at the same moment ---


def test_of_many_starts_at_once_one_wins(tmp_path, monkeypatch):
    """In threads, whose locks on the file are as apart as those of processes."""
    monkeypatch.setattr(lock, 'GRACE', 0.0)
    for number in range(40):
        folder = tmp_path / str(number)
        folder.mkdir()
        if number % 2:  # left behind: all of them would take it over
            write(folder, holder(process=2**22 + 1))
        starters = threading.Barrier(8)
        refused, inside, most = [], 0, 0
        done = threading.Barrier(8)

        def start(folder=folder, starters=starters, refused=refused, done=done):
            nonlocal inside, most
            starters.wait()
            try:
                with held(folder, lambda line: None) as mine:
                    inside += 1
                    most = max(most, inside)
                    done.wait()
                    mine.confirm()
                    inside -= 1
            except ValueError as error:
                refused.append(str(error))
                done.wait()

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(refused) == 7
        assert most == 1
        assert inside == 0
        assert all('is in use by process' in line for line in refused)


HOLD = """
import sys, time
from vivit_jax import lock
lock.GRACE = 0.0
for name in sys.argv[2:]:
    lock.{speed}
    print('ready', flush=True)
    sys.stdin.readline()
    try:
        with lock.held(lock.pathlib.Path(sys.argv[1]) / name, lambda line: None) as mine:
            print('won', flush=True)
            sys.stdin.readline()
            mine.confirm()
        print('released', flush=True)
    except ValueError:
        print('refused', flush=True)
        sys.stdin.readline()
    except lock.Lost as error:
        print(error, flush=True)
        sys.exit(75)
"""


def start(folder, *names, speed='GRACE = 0.0'):
    return subprocess.Popen(
        [sys.executable, '-c', HOLD.replace('{speed}', speed), str(folder), *names],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def tell(process):
    process.stdin.write('\n')
    process.stdin.flush()


def heard(process):
    return process.stdout.readline().strip()


def test_of_two_processes_one_wins_and_a_killed_one_holds_nothing(tmp_path):
    names = [str(number) for number in range(30)]
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        if number % 2:
            write(tmp_path / name, holder(process=2**22 + 1))
    both = [start(tmp_path, *names) for _ in range(2)]
    for name in names:
        assert [heard(process) for process in both] == ['ready', 'ready']
        for process in both:
            tell(process)
        told = [heard(process) for process in both]
        assert sorted(told) == ['refused', 'won']
        winner = both[told.index('won')]
        assert read(tmp_path / name)['process'] == winner.pid
        if name == names[-1]:
            winner.kill()
            winner.wait()
        for process in both:
            if process.poll() is None:
                tell(process)
        if name != names[-1]:
            assert heard(winner) == 'released'
    for process in both:
        process.communicate()
    assert os.listdir(tmp_path / names[0]) == []
    said = []
    with held(tmp_path / names[-1], said.append):
        pass
    assert f'was left by process {winner.pid} on' in said[0]


# --- Taken over ---


def test_who_was_taken_over_from_finds_out_by_the_next_beat(tmp_path, quick):
    def go_on_for(seconds):
        with held(tmp_path, nobody) as mine:
            write(tmp_path, holder(**ELSEWHERE, process=12))
            deadline = time.time() + seconds
            while time.time() < deadline:
                mine.check()
                time.sleep(0.01)

    message = r'was taken over by process 12 on host-a \(.*: it ends and writes nothing more$'
    with pytest.raises(Lost, match=message):
        go_on_for(20)
    assert read(tmp_path)['process'] == 12  # not released: it is another's


def test_who_was_taken_over_from_finds_out_before_writing(tmp_path):
    def write_something():
        with held(tmp_path, nobody) as mine:
            write(tmp_path, holder(**ELSEWHERE))
            mine.check()  # costs nothing, and knows nothing yet
            mine.confirm()
            raise AssertionError('it was told to go on')

    with pytest.raises(Lost):
        write_something()


def test_what_comes_of_it_is_not_told_instead(tmp_path):
    """As files that the other run has cleared away."""

    def miss_something():
        with held(tmp_path, nobody):
            write(tmp_path, holder(**ELSEWHERE))
            raise FileNotFoundError('checkpoints/12')

    with pytest.raises(Lost) as error:
        miss_something()
    assert isinstance(error.value.__cause__, FileNotFoundError)


def test_a_file_that_was_deleted_comes_back(tmp_path, quick):
    with held(tmp_path, nobody) as mine:
        (tmp_path / lock.NAME).unlink()
        deadline = time.time() + 20
        while not (tmp_path / lock.NAME).exists() or read(tmp_path)['beat'] < 2:
            assert time.time() < deadline
            time.sleep(0.01)
        mine.confirm()


def test_a_run_that_was_suspended_is_named_here_and_taken_over_from_elsewhere(tmp_path, quick, monkeypatch):
    (tmp_path / 'run').mkdir()
    process = start(tmp_path, 'run', speed='BEAT = lock.FIRST_BEAT = 0.05')
    try:
        assert heard(process) == 'ready'
        tell(process)
        assert heard(process) == 'won'
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        # On its machine it is there as long as it may come back.
        message = rf'process {process.pid} on .* \(train, suspended, started'
        with pytest.raises(ValueError, match=message), held(tmp_path / 'run', nobody):
            pass
        ours = dataclasses.replace(lock.ourselves(), **ELSEWHERE)
        monkeypatch.setattr(lock, 'ourselves', lambda: ours)
        said = []
        with held(tmp_path / 'run', said.append):
            assert len(said) == 2
            os.kill(process.pid, signal.SIGCONT)
            tell(process)
            assert 'was taken over by process' in heard(process)
            assert process.wait(60) == 75
            assert read(tmp_path / 'run')['run'] == ours.run
    finally:
        process.kill()
        process.communicate()
