"""What `run.json` tells of a run: at its start, its end, and over several sessions."""

import json
import os
import subprocess
import sys

import jax
import pytest

import vivit_jax
from vivit_jax.signals import Stopped
from vivit_jax.telling import facts
from vivit_jax.telling.eta import Lap, Spent
from vivit_jax.telling.facts import RunFacts
from vivit_jax.telling.peak_flops import Peak

MODEL = {'parameters': 1000, 'multiply_adds_per_clip': 2_000_000}
# What every reader counts on.
KEYS = {
    'version',
    'commit',
    'dirty',
    'command',
    'xla_flags',
    'deterministic',
    'memory_kept',
    'started',
    'ended',
    'exit',
    'host',
    'platform',
    'python',
    'packages',
    'devices',
    'processes',
    'parameters',
    'multiply_adds_per_clip',
    'train_seconds',
    'compile_seconds',
    'evaluate_seconds',
    'clips_per_second',
    'data_wait',
    'peak_flops',
    'peak_flops_source',
    'model_flops_per_second',
    'mfu',
    'peak_memory_bytes',
    'peak_memory_kind',
    'predicted_memory_bytes',
    'sessions',
}


def session(folder, spent, *, first_step=0, peak=None):
    return RunFacts(folder, first_step=first_step, model=MODEL, batch_size=8, peak=peak, spent=spent)


def read(folder):
    return json.loads((folder / 'run.json').read_text())


def test_a_run_from_beginning_to_end(tmp_path):
    spent = Spent()
    with session(tmp_path, spent, peak=Peak(1.2e12, 'measured matmul')) as facts:
        begun = read(tmp_path)
        assert (begun['exit'], begun['ended'], begun['train_seconds']) == ('running', None, 0.0)
        assert (begun['clips_per_second'], begun['data_wait'], begun['mfu']) == (0.0, 0.0, 0.0)
        spent.compiling.append(3.0)
        spent.laps += [Lap(10, 1.0, 0.0), Lap(30, 1.0, 0.5)]
        spent.validating += [2.0, 1.0]
        spent.testing.append(4.0)
        facts.reach(41)
        facts.write()
        assert read(tmp_path)['sessions'][0]['last_step'] == 41
        assert read(tmp_path)['exit'] == 'running'
    found = read(tmp_path)
    assert found.keys() == KEYS
    assert (found['exit'], found['ended'] >= found['started']) == ('done', True)
    assert found['train_seconds'] == 2.0
    assert found['compile_seconds'] == 3.0
    assert found['evaluate_seconds'] == 7.0
    assert found['clips_per_second'] == 40 * 8 / 2.0
    assert found['data_wait'] == 0.25
    assert found['model_flops_per_second'] == 160 * 3 * 2 * 2_000_000
    assert found['mfu'] == pytest.approx(160 * 12e6 / 1.2e12)
    assert found['peak_flops_source'] == 'measured matmul'
    assert found['devices'] == [{'kind': 'cpu', 'platform': 'cpu', 'count': 8}]
    assert found['packages']['jax'] == jax.__version__
    assert found['version'] == vivit_jax.__version__
    (only,) = found['sessions']
    assert (only['first_step'], only['last_step'], only['exit']) == (0, 41, 'done')
    assert only['command'] == found['command']
    assert [path.name for path in tmp_path.iterdir()] == ['run.json']
    # At least what numpy and jax take; and in bytes.
    assert 50 * 2**20 < found['peak_memory_bytes'] < 2**40
    assert found['peak_memory_kind'] == 'resident set'


@pytest.mark.parametrize(
    ('error', 'exit'),
    [(Stopped(15, 'saved'), 'stopped'), (KeyboardInterrupt(), 'stopped'), (ValueError('x'), 'failed')],
)
def test_how_a_run_ended(tmp_path, error, exit):
    with pytest.raises(type(error)), session(tmp_path, Spent()):
        raise error
    assert read(tmp_path)['exit'] == read(tmp_path)['sessions'][0]['exit'] == exit
    assert read(tmp_path)['ended'] is not None


def test_sessions_add_up(tmp_path):
    first = Spent(compiling=[3.0], laps=[Lap(10, 4.0, 1.0)], validating=[1.0])
    facts = session(tmp_path, first, peak=Peak(1e12, 'measured matmul'))
    facts.reach(11)
    with pytest.raises(Stopped), facts:
        raise Stopped(2, 'saved')
    second = Spent(compiling=[5.0], laps=[Lap(30, 4.0, 0.0)], testing=[2.0])
    with session(tmp_path, second, first_step=11, peak=Peak(2e12, 'measured matmul')) as facts:
        facts.reach(42)
    found = read(tmp_path)
    steps = [(each['first_step'], each['last_step'], each['exit']) for each in found['sessions']]
    assert steps == [(0, 11, 'stopped'), (11, 42, 'done')]
    assert found['started'] == found['sessions'][0]['started']
    assert (found['train_seconds'], found['compile_seconds'], found['evaluate_seconds']) == (8.0, 8.0, 3.0)
    assert found['clips_per_second'] == pytest.approx(40 * 8 / 8.0)
    assert found['data_wait'] == pytest.approx(1 / 8)
    assert found['mfu'] == pytest.approx(40 * 12e6 / 2e12)


def test_a_killed_session_is_no_longer_running(tmp_path):
    session(tmp_path, Spent(laps=[Lap(10, 4.0)])).write()
    with session(tmp_path, Spent(), first_step=10):
        pass
    found = read(tmp_path)
    assert [each['exit'] for each in found['sessions']] == ['failed', 'done']
    assert found['sessions'][0]['ended'] is None
    assert found['train_seconds'] == 4.0


def test_a_new_run_begins_a_new_account(tmp_path):
    for _ in range(2):
        with session(tmp_path, Spent(laps=[Lap(10, 4.0)])):
            pass
    assert len(read(tmp_path)['sessions']) == 1
    assert read(tmp_path)['train_seconds'] == 4.0


@pytest.mark.parametrize('text', ['', '{"sess', '[]', '{"sessions": 3}', '{"train_seconds": "long"}'])
def test_a_damaged_account_is_begun_anew(tmp_path, text):
    (tmp_path / 'run.json').write_text(text)
    with session(tmp_path, Spent(), first_step=10):
        pass
    assert len(read(tmp_path)['sessions']) == 1


def test_a_file_that_cannot_be_written_fails_no_run(tmp_path, monkeypatch):
    def full(*paths):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'replace', full)
    with pytest.warns(UserWarning, match=r'run.json cannot be written: No space left on device'):
        session(tmp_path, Spent()).write()
    assert not (tmp_path / 'run.json').exists()


def test_the_summary_is_one_line(tmp_path):
    spent = Spent(laps=[Lap(40, 2.0, 0.5)])
    facts = session(tmp_path, spent, peak=Peak(1.2e12, 'published: X bfloat16'))
    words = facts.summary().split('  ')
    assert words[0].startswith('took 0:00:0')
    assert words[1:4] == ['160 clips/s', 'data wait 25%', '1.92 GFLOP/s (MFU 0.16%, published: X bfloat16)']
    assert words[4].startswith('peak memory ')
    assert 'MFU' not in session(tmp_path, spent).summary()


def test_a_peak_that_was_surpassed_is_none(tmp_path):
    spent = Spent(laps=[Lap(40, 2.0, 0.5)])
    facts = session(tmp_path, spent, peak=Peak(1.9e9, 'measured matmul'))
    found = facts.facts()
    assert found['model_flops_per_second'] == 1.92e9
    assert (found['mfu'], found['peak_flops'], found['peak_flops_source']) == (None, None, None)
    assert 'MFU' not in facts.summary()


def test_the_commit_is_that_of_the_packages_repository(tmp_path, monkeypatch):
    package = tmp_path / 'clone' / 'vivit_jax'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text('')
    monkeypatch.setattr(vivit_jax, '__file__', str(package / '__init__.py'))
    outer = ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', '-C', str(tmp_path)]
    subprocess.run([*outer, 'init', '-q'], check=True)
    assert facts.revision() == (None, None), 'a repository further up is somebody else’s'
    git = [*outer[:-1], str(tmp_path / 'clone')]
    for command in (['init', '-q'], ['add', '.'], ['commit', '-q', '-m', 'x']):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, 'rev-parse', 'HEAD'], check=True, capture_output=True, text=True)
    assert facts.revision() == (head.stdout.strip(), False)
    (package / '__init__.py').write_text('changed = True')
    assert facts.revision() == (head.stdout.strip(), True)
    monkeypatch.setenv('PATH', str(tmp_path))
    assert facts.revision() == (None, None), 'without git'


def test_the_command_can_be_given_again(monkeypatch):
    monkeypatch.setattr(sys, 'orig_argv', ['/usr/bin/python3', '-m', 'vivit_jax.main', '--config=a b.py'])
    assert facts.about()['command'] == "python -m vivit_jax.main '--config=a b.py'"
