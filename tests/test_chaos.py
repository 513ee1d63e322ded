"""The tool that kills runs: that it finds what is wrong, and twenty kills of the real thing."""

import json
import pathlib
import random
import shutil
import sys
import time

import numpy as np
import pytest
from conftest import load_tool
from ordeals import comparing, killing, started

from vivit_jax.checkpoint import Checkpoints

# Pretends to train: says what a run says, and goes on from where its second argument tells.
PRETENDED = """
import os, subprocess, sys, time
workdir, says, leaves = sys.argv[1:]
print('name: x\\n  settings  x')
if says:
    print(f'going on from step {says}')
print('compiled in 1 s', flush=True)
if leaves:
    subprocess.Popen(['sleep', '15'])
for step in range(20, 100, 10):
    print(f'step {step}/100  loss 1', flush=True)
    time.sleep(0.05)
"""


@pytest.fixture(scope='module')
def tool():
    return load_tool('chaos')


def pretend(tmp_path, monkeypatch, *, says='', leaves=''):
    def command(config, workdir, settings):
        return [sys.executable, '-c', PRETENDED, str(workdir), says, leaves]

    monkeypatch.setattr(started, 'command', command)
    monkeypatch.setattr(started, 'PEACE', 0.2)
    run = killing.Killing('config', {}, tmp_path, seed=0)
    run.total = 100
    return run


def save(workdir, step, value=1.0):
    """A finished run: a checkpoint and the files that are compared."""
    params = {'a': {'kernel': np.arange(6, dtype=np.float32).reshape(2, 3), 'bias': np.full(3, value)}}
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(
            step, params=params, ema=None, optimizer=[{'mu': np.zeros(2)}, {}], meta={}, metrics=None
        )
    rows = [{'step': 1, 'loss': value, 'clips_per_second': random.random()}]
    (workdir / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (workdir / 'eval.json').write_text('{}')
    (workdir / 'predictions.csv').write_text('index\n0\n')


def test_every_phase_gets_its_share():
    run = killing.Killing('config', {}, pathlib.Path('nowhere'), seed=3)
    aims = run.aims(20)
    assert {name: aims.count(name) for name in killing.SHARES} == killing.SHARES
    assert set(aims[-4:]) == set(killing.WITHOUT_STEPS)
    assert aims == killing.Killing('config', {}, pathlib.Path('nowhere'), seed=3).aims(20)
    assert aims != killing.Killing('config', {}, pathlib.Path('nowhere'), seed=4).aims(20)
    # Few of them are not all of one kind.
    assert len(set(run.aims(5))) == 3


def test_the_first_difference_is_named(tmp_path):
    one, other = tmp_path / 'one', tmp_path / 'other'
    save(one, 5)
    shutil.copytree(one, other)
    assert comparing.difference(one, other, 5) == ('', 9)
    (other / 'predictions.csv').write_text('index\n1\n')
    assert comparing.difference(one, other, 5) == ('predictions.csv differs', 9)
    row = json.loads((one / 'metrics.jsonl').read_text())
    (other / 'metrics.jsonl').write_text(
        json.dumps(row | {'clips_per_second': 0, 'loss': 1.0000000001}) + '\n'
    )
    assert comparing.difference(one, other, 5)[0].startswith('metrics.jsonl, line 1: ')
    shutil.rmtree(other)
    save(other, 5, value=1 + 2**-52)
    message = 'checkpoints/5: params/a/bias differs in 3 of 3 numbers, the first '
    assert comparing.difference(one, other, 5)[0].startswith(message)


def test_a_run_is_followed(tmp_path, monkeypatch):
    run = pretend(tmp_path, monkeypatch, says='10')
    (tmp_path / 'killed/checkpoints/10').mkdir(parents=True)
    (tmp_path / 'killed/checkpoints/20.orbax-checkpoint-tmp').mkdir()
    (kill,) = filter(None, [run.kill('saving', stepping=4)])
    assert (kill.phase, kill.by, kill.whole, kill.unfinished) == ('saving', 'SIGKILL', (10,), 1)
    assert kill.step >= 20
    assert kill.lost == kill.step - 10


def test_a_run_that_goes_on_from_elsewhere_is_found_out(tmp_path, monkeypatch):
    run = pretend(tmp_path, monkeypatch, says='10')
    for step in ('10', '20'):
        (tmp_path / 'killed/checkpoints' / step).mkdir(parents=True)
    with pytest.raises(started.RunFailed, match='went on from step 10, though 20 was the newest whole'):
        run.kill('training', stepping=4)


def test_what_is_left_behind_is_found(tmp_path, monkeypatch):
    run = pretend(tmp_path, monkeypatch, leaves='yes')
    with pytest.raises(started.RunFailed, match=r'left processes behind: \[\d+\]'):
        run.kill('training', stepping=4)


def test_damage_that_is_not_told_is_found_out(tmp_path, monkeypatch):
    run = pretend(tmp_path, monkeypatch, says='20')
    for step in ('10', '20'):
        (tmp_path / 'killed/checkpoints' / step / 'params').mkdir(parents=True)
        (tmp_path / 'killed/checkpoints' / step / 'params/array').write_bytes(bytes(4))
    kill = run.kill('training', stepping=4, damage=True)
    assert kill.damaged == 20
    content = (tmp_path / 'killed/checkpoints/20/params/array').read_bytes()
    assert bin(int.from_bytes(content)).count('1') == 1
    assert (tmp_path / 'killed/checkpoints/10/params/array').read_bytes() == bytes(4)
    with pytest.raises(started.RunFailed, match='went on from step 20, though 10 was the newest whole'):
        run.kill('training', stepping=4)


def test_a_run_that_is_done_cannot_be_killed(tmp_path, monkeypatch):
    run = pretend(tmp_path, monkeypatch)
    assert run.kill('testing', stepping=4) is None


def test_mistakes_are_told(tool, capsys, tmp_path):
    (tmp_path / 'full').touch()
    for options, told in (
        (['--kills=0'], '--kills=0 --gentle=0.0 --damage=0: at least one kill'),
        (['--kills=2', '--damage=3'], 'not more damage than kills'),
        (['--damage=1', '--config.checkpoint.keep=1'], 'checkpoint.keep=1: --damage needs one before'),
        (['--output=/nowhere/x.json'], '--output=/nowhere/x.json: /nowhere is not a folder'),
        ([f'--folder={tmp_path}'], f'--folder={tmp_path} is not empty'),
        (['--config=nothing.py'], "config file 'nothing.py' does not exist"),
    ):
        assert tool.main(options) == 2
        assert told in capsys.readouterr().err


@pytest.mark.slow
def test_twenty_kills_change_nothing(tool, tmp_path, monkeypatch, capsys, request):
    # Programs are kept as they are for users: those of a killed run must not harm the next.
    monkeypatch.setenv('XDG_CACHE_HOME', str(request.config.cache.mkdir('chaos')))
    began, output = time.monotonic(), tmp_path / 'chaos.json'
    code = tool.main(['--kills=20', '--damage=1', f'--folder={tmp_path / "runs"}', f'--output={output}'])
    printed = capsys.readouterr().out
    assert code == 0, printed
    report = json.loads(output.read_text())
    assert report['identical']
    assert f'identical: {report["parameters"]:,} parameters after 200 steps and 20 kills' in printed
    assert report['parameters'] == 8024
    assert len(report['kills']) == 20
    assert report['starts'] >= 21
    assert report['seconds'] <= time.monotonic() - began
    phases = [kill['phase'] for kill in report['kills']]
    # Where each of them falls depends on the machine; none may be left out for want of steps.
    assert sum(phase in killing.NEEDS_STEPS for phase in phases) >= 10
    assert len(set(phases)) >= 5
    assert report['unfinished'] >= 2
    assert report['damaged'] == 1
    assert {kill['by'] for kill in report['kills']} == {'SIGKILL'}
