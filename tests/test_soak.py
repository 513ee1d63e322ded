"""The tool that watches a long run: it sees what grows and what is left behind; and a minute of the real thing."""

import json
import multiprocessing.shared_memory
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
from conftest import load_tool
from ordeals import sampling, started

# Pretends to train, and opens a file for each step. On SIGTERM it goes; a process of its own does not.
LEAKY = """
import os, signal, subprocess, sys, time

print('  settings  x', flush=True)
if not os.path.exists(sys.argv[1]):
    os.mkdir(sys.argv[1])
else:
    print('going on from step 7', flush=True)
print('compiled in 1 s', flush=True)
signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
held = [subprocess.Popen(['sleep', '15'])]
for step in range(10, 10**6, 10):
    print(f'step {step}/1000000  ', flush=True)
    held.append(open(os.devnull))
    time.sleep(0.05)
"""


@pytest.fixture(scope='module')
def tool():
    return load_tool('soak')


def test_what_is_level_and_what_grows():
    random = np.random.default_rng(0)
    steps = np.arange(0, 6000, 100.0)
    noise = random.normal(0, 5, len(steps))
    noise[::7] += 200  # as evaluations do, with processes of their own
    level = sampling.growth(steps, 500 + noise, allowed=1.0)
    assert level.level
    assert abs(level.per_1000_steps) < 1
    grows = sampling.growth(steps, 500 + noise + 3 * steps / 1000, allowed=1.0)
    assert not grows.level
    assert 1 < grows.lowest < 3 < grows.highest
    assert sampling.growth(steps, 500 + noise + 3 * steps / 1000, allowed=4.0).level
    # One file at each validation, among many that are open for a moment.
    files = 20 + random.integers(0, 9, len(steps)) + steps // 500
    assert not sampling.growth(steps, files, allowed=0.5).level
    assert sampling.growth(steps, 20.0 + 0 * steps, allowed=0.0) == sampling.Growth(0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize('steps', [range(7), [5] * 20])
def test_too_little_tells_nothing(steps):
    with pytest.raises(ValueError, match=r'samples, of steps .* tell no growth: let it run for longer'):
        sampling.growth(list(steps), list(steps), allowed=1.0)


def test_a_sample_counts_what_there_is(tmp_path):
    def take(*others):
        return sampling.take([os.getpid(), *others], os.getpid(), tmp_path)

    one = take()
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    files = [open(os.devnull) for _ in range(5)]  # noqa: SIM115
    (tmp_path / 'file').write_bytes(os.urandom(3 * 2**20))
    with subprocess.Popen(['true']) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        two = take(process.pid, 2**22 + 1)  # the second is none
    done.set()
    for opened in files:
        opened.close()
    # Popen holds a pipe or two while it starts, no longer.
    assert (two.files - one.files, two.threads - one.threads) == (5, 3)
    assert (one.zombies, two.zombies, two.children) == (0, 1, 2)
    assert two.disk - one.disk == pytest.approx(3, abs=0.1)
    assert one.main_memory == one.memory > 10
    assert two.main_memory == two.memory


def test_memory_that_nobody_uses_is_leaked():
    before = sampling.shared()
    block = multiprocessing.shared_memory.SharedMemory(create=True, size=100)
    assert sampling.shared() - before >= {block.name}
    assert sampling.used_by(os.getpid()) >= {block.name}
    assert not sampling.ownerless({block.name})
    block.close()
    assert block.name not in sampling.used_by(os.getpid())
    assert sampling.ownerless({block.name}) == {block.name}
    block.unlink()
    assert not sampling.ownerless({block.name})


def test_a_run_that_leaks_fails(tool, tmp_path, monkeypatch):
    def command(config, workdir, settings):
        return [sys.executable, '-c', LEAKY, str(workdir)]

    monkeypatch.setattr(started, 'command', command)
    monkeypatch.setattr(started, 'PEACE', 0.2)
    monkeypatch.setattr(tool, 'write_videos', lambda folder: [tmp_path / 'x'])
    (tmp_path / 'x').touch()
    report = tool.carry_out(tmp_path, {}, 0.1, tool.ALLOWED)
    assert [failure.split(':')[0] for failure in report['failures']] == [
        'SIGKILL left processes behind',
        'after the kill it went on from step 7, not from None',
        'SIGTERM left processes behind',
        'files grows',
    ]
    assert report['growth']['files']['lowest'] > 50
    assert report['growth']['threads']['level']


def test_mistakes_are_told(tool, capsys, tmp_path):
    (tmp_path / 'full').touch()
    for options, told in (
        (['--minutes=0'], '--minutes=0.0 --workers=2: some minutes, workers from 0'),
        (['--allow=colour=3'], "--allow: 'colour' is none of memory, "),
        (['--allow=files'], "--allow: 'files' should be NAME=NUMBER"),
        (['--plot=/nowhere/x.png'], '--plot=/nowhere/x.png: /nowhere is not a folder'),
        ([f'--folder={tmp_path}'], f'--folder={tmp_path} is not empty'),
        (['--config.model.widht=3'], 'config.model.widht is not a key; did you mean config.model.width?'),
    ):
        assert tool.main(options) == 2
        assert told in capsys.readouterr().err


@pytest.mark.slow
def test_a_minute_is_level(tool, tmp_path, capsys):
    picture, output = tmp_path / 'soak.png', tmp_path / 'soak.json'
    options = [f'--folder={tmp_path / "soak"}', f'--plot={picture}', f'--output={output}']
    # In a minute allocators do not come to rest, and few of the checkpoints that are kept are there when it begins.
    # Batches that were kept would be 94 MiB per 1000 steps.
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # a core is enough for it, and leaves the others to other tests
    try:
        code = tool.main(['--minutes=1', '--allow=memory=60,main_memory=40,disk=10', *options])
    finally:
        os.sched_setaffinity(0, cores)
    assert code == 0, capsys.readouterr().out
    report = json.loads(output.read_text())
    assert report['failures'] == []
    assert set(report['growth']) == set(tool.ALLOWED)
    # Two workers, and two more while it evaluates.
    assert {sample['children'] for sample in report['samples']} >= {2, 4}
    assert max(sample['shared'] for sample in report['samples']) == 0
    # The bad videos are named: those from the start, and the one that went bad.
    bad = pathlib.Path(tmp_path / 'soak/run/bad_files.csv').read_text()
    assert all(f'/{name}.mp4' in bad for name in ('empty', 'cut', 'text', 'noise', '0'))
    assert picture.read_bytes().startswith(b'\x89PNG')
