"""Several processes that train together equal one."""

import csv
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import cv2
import jax
import numpy as np
import pytest

from tiny import DIGITS, ENVIRONMENT, SETTINGS, options
from vivit_jax.checkpoint import read_arrays

ROOT = pathlib.Path(__file__).parent.parent

TINY = SETTINGS | {
    'model.dropout_rate': '0.1',
    'data.moving_digits.validation_size': '10',
    'data.moving_digits.test_size': '21',
    'training.steps': '8',
    'training.log_every': '1',
    'training.mixup_alpha': '0.2',
    'evaluation.every_steps': '4',
    'checkpoint.every_steps': '4',
}


def curve(folder):
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return {(row['split'], row['step']): row['loss'] for row in rows}


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


class Processes:
    """The command as several processes, each of which can be hurt; two of them use about as many threads as one."""

    def __init__(self, settings, workdir, count=2, own=None):
        """Starts them; `own` has options of some of them alone."""
        port = free_port()
        command = [sys.executable, '-m', 'vivit_jax.main', f'--config={DIGITS}', *options(settings)]
        command.append(f'--workdir={workdir}')
        environment = os.environ | ENVIRONMENT | {'PYTHONUNBUFFERED': '1'}
        self.logs = [workdir.with_name(f'{workdir.name}_{process}.log') for process in range(count)]
        self.all = []
        for process, log in enumerate(self.logs):
            place = [f'--distributed=127.0.0.1:{port},{count},{process}', *(own or {}).get(process, ())]
            with log.open('w') as output:
                self.all.append(
                    subprocess.Popen(
                        [*command, *place], stdout=output, stderr=subprocess.STDOUT, env=environment
                    )
                )

    def reach(self, step):
        """Waits until the run has told of a step."""
        deadline = time.monotonic() + 300
        while not any(int(found) >= step for found in STEP.findall(self.logs[0].read_text())):
            assert time.monotonic() < deadline, self.texts()
            assert all(process.poll() is None for process in self.all), self.texts()
            time.sleep(0.02)

    def texts(self):
        return [log.read_text() for log in self.logs]

    def ends(self, timeout=300.0, without=()):
        """Returns the exit codes, by process."""
        deadline = time.monotonic() + timeout
        return {
            number: process.wait(max(deadline - time.monotonic(), 0.1))
            for number, process in enumerate(self.all)
            if number not in without
        }

    def last_words(self, process):
        """Returns what a process wrote to say why it ended; a stack trace would be among it."""
        lines = self.logs[process].read_text().splitlines()
        return [line for line in lines if not line.startswith(('[Gloo]', 'step ', '  ')) and line]


STEP = re.compile(r'^step +(\d+)/', re.MULTILINE)


def run(settings, workdir, processes):
    """Runs the command as one process or as several, to the end; returns exit codes and outputs."""
    if processes > 1:
        several = Processes(settings, workdir, processes)
        codes = several.ends()
        return [codes[process] for process in range(processes)], several.texts()
    command = [sys.executable, '-m', 'vivit_jax.main', f'--config={DIGITS}', *options(settings)]
    alone = subprocess.run(
        [*command, f'--workdir={workdir}'],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | ENVIRONMENT,
        timeout=300,
    )
    return [alone.returncode], [alone.stdout]


def files(folder):
    """What a run has left, with no number in it that is another one each time."""
    names = {str(path.relative_to(folder)) for path in folder.rglob('*') if 'checkpoints' not in path.parts}
    return {re.sub(r'(events\.out\.tfevents)\..*', r'\1', name) for name in names}


def parameters(folder, step):
    return jax.tree.map(np.asarray, read_arrays(folder / 'checkpoints' / str(step) / 'params'))


@pytest.fixture(scope='module')
def both(tmp_path_factory):
    """A run of one process and the same of two, by the tool that starts these."""
    folder = tmp_path_factory.mktemp('runs')
    codes, outputs = run(TINY, folder / 'alone', 1)
    assert codes == [0], outputs
    tool = [sys.executable, str(ROOT / 'tools' / 'launch_local.py'), '-n', '2', '--', f'--config={DIGITS}']
    two = subprocess.run(
        [*tool, *options(TINY), f'--workdir={folder / "two"}'],
        env=os.environ | ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert two.returncode == 0, two.stderr
    return folder / 'alone', folder / 'two', two.stdout


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_equal_one(both):
    alone, two, _ = both
    assert curve(two) == pytest.approx(curve(alone), abs=1e-5)
    assert len(curve(two)) == len((two / 'metrics.jsonl').read_text().splitlines()) == 10


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize('processes', [1, 2])
def test_a_run_goes_on_with_another_number_of_processes(both, tmp_path, processes):
    shutil.copytree(both[processes % 2], tmp_path / 'run')
    shutil.rmtree(tmp_path / 'run' / 'checkpoints' / '8')
    codes, outputs = run(TINY, tmp_path / 'run', processes)
    assert codes == [0] * processes, outputs
    assert 'going on from step 4' in outputs[0]
    assert curve(tmp_path / 'run') == pytest.approx(curve(both[0]), abs=1e-5)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_count_every_example_once(both):
    """Twenty-one examples in batches of eight, of which each process reads four."""
    alone, two, _ = both
    one, other = (json.loads((folder / 'eval.json').read_text()) for folder in (alone, two))
    assert list(one) == list(other) == ['test', 'test_shuffled', 'test_still']
    for split, metrics in one.items():
        assert other[split]['count'] == metrics['count'] == 21
        assert other[split]['top_1'] == metrics['top_1']
        assert other[split]['loss'] == pytest.approx(metrics['loss'], abs=1e-5)
        assert (two / f'confusion_{split}.csv').read_text() == (alone / f'confusion_{split}.csv').read_text()
    rows = [json.loads(line) for line in (two / 'metrics.jsonl').read_text().splitlines()]
    assert [row['count'] for row in rows if row['split'] == 'validation'] == [10, 10]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_write_everything_once(both):
    alone, two, output = both
    with (two / 'predictions.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert sorted((row['split'], int(row['index'])) for row in rows) == sorted(
        (split, index) for split in ('test', 'test_shuffled', 'test_still') for index in range(21)
    )
    assert files(two) == files(alone)
    assert sorted(path.name for path in (two / 'checkpoints').iterdir()) == sorted(
        path.name for path in (alone / 'checkpoints').iterdir()
    )
    assert len(json.loads((two / 'run.json').read_text())['sessions']) == 1
    # One of them speaks for both.
    assert '[0]   devices   2 x cpu (cpu), data 2 x fsdp 1, 2 processes' in output
    assert '[0] step 8/8' in output
    assert {line[:10] for line in output.splitlines() if line.startswith('[1]')} <= {'[1] [Gloo]'}


@pytest.mark.slow
@pytest.mark.multiprocess
def test_whatever_happens_to_a_process_starting_again_goes_on(tmp_path):
    """The first, on which all depend, is killed; another is told to stop: the end is that of an undisturbed run."""
    settings = TINY | {
        'training.steps': '40',
        'training.log_every': '1',
        'evaluation.every_steps': '40',
        'checkpoint.every_steps': '5',
        'data.test_splits': 'test',
    }
    undisturbed = Processes(settings, tmp_path / 'undisturbed')
    assert undisturbed.ends() == {0: 0, 1: 0}, undisturbed.texts()

    folder = tmp_path / 'disturbed'
    pair = Processes(settings, folder)
    pair.reach(7)
    pair.all[0].kill()
    began = time.monotonic()
    codes = pair.ends(timeout=60, without=[0])
    assert time.monotonic() - began < 60
    assert pair.all[0].wait(60) == -signal.SIGKILL
    assert codes == {1: 75}, pair.texts()
    gone = f'process 0 of 2 (on {socket.gethostname()}) is gone: killed, or its machine is; '
    assert pair.last_words(1)[-1] == f'{gone}the same command, started on all, goes on'
    assert 'Traceback' not in pair.texts()[1]
    assert '*** Check failure' not in pair.texts()[1]

    pair = Processes(settings, folder)
    pair.reach(16)
    pair.all[1].terminate()
    assert pair.ends(timeout=120) == {0: 143, 1: 143}, pair.texts()
    words = [pair.last_words(process)[-1] for process in (0, 1)]
    assert words[0] == words[1]
    stopped = re.fullmatch(
        r'stopped by SIGTERM: saved step (\d+) of 40; the same command goes on .*', words[0]
    )
    assert (folder / 'checkpoints' / stopped[1]).is_dir()

    pair = Processes(settings, folder)
    assert pair.ends() == {0: 0, 1: 0}, pair.texts()
    assert f'going on from step {stopped[1]}' in pair.texts()[0]
    assert curve(folder) == curve(tmp_path / 'undisturbed')
    jax.tree.map(
        np.testing.assert_array_equal, parameters(folder, 40), parameters(tmp_path / 'undisturbed', 40)
    )
    assert (folder / 'predictions.csv').read_text() == (
        tmp_path / 'undisturbed' / 'predictions.csv'
    ).read_text()


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_mistake_on_one_machine_ends_all_and_is_named(tmp_path, damaged_frames):
    settings = damaged_frames | {'data.max_bad': '0.3'}
    pair = Processes(settings, tmp_path / 'two', own={1: [f'--config.data.root={tmp_path / "elsewhere"}']})
    assert pair.ends(timeout=120) == {0: 2, 1: 2}
    (mistake,) = pair.last_words(1)
    assert mistake.startswith(f"error: config.data.root='{tmp_path / 'elsewhere'}'")
    host = socket.gethostname()
    assert pair.last_words(0)[-1].startswith(f'process 1 of 2 (on {host}) ended: ')
    assert str(tmp_path / 'elsewhere') in pair.last_words(0)[-1]
    assert 'Traceback' not in ''.join(pair.texts())


@pytest.fixture
def damaged_frames(tmp_path):
    """Twenty folders of frames to train on, four of which cannot be read though they look sound, and four more."""
    random = np.random.default_rng(0)
    for number in range(24):
        split = 'train' if number < 20 else 'validation'
        folder = tmp_path / 'frames' / split / ('wave' if number % 2 else 'jump') / f'v{number:02d}'
        folder.mkdir(parents=True)
        for place in range(4):
            pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
            assert cv2.imwrite(str(folder / f'{place}.png'), pixels)
        if number in (3, 4, 8, 13):
            (folder / '3.png').write_bytes((folder / '3.png').read_bytes()[:99])
    return TINY | {
        'data.source': 'frame_folders',
        'data.root': str(tmp_path / 'frames'),
        'data.channels': '3',
        'data.num_classes': '()',
        'data.frames': '4',
        'data.stride': '1',
        'data.test_splits': 'validation',
        'evaluation.every_steps': '8',
    }


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_bear_with_bad_files_as_one(tmp_path, damaged_frames):
    settings = damaged_frames | {'data.max_bad': '0.3'}
    for processes, name in ((1, 'alone'), (2, 'two')):
        codes, outputs = run(settings, tmp_path / name, processes)
        assert codes == [0] * processes, outputs
        assert "4 of 20 examples of 'train' are bad" in outputs[0]
    assert curve(tmp_path / 'two') == pytest.approx(curve(tmp_path / 'alone'), abs=1e-5)
    # Between them, the processes have named each of the four.
    lists = [*(tmp_path / 'two').glob('bad_files*.csv')]
    assert len(lists) == 2
    named = {row.split(',')[1] for file in lists for row in file.read_text().splitlines()[1:]}
    assert named == {f'train/{name}' for name in ('wave/v03', 'jump/v04', 'jump/v08', 'wave/v13')}


@pytest.mark.slow
@pytest.mark.multiprocess
def test_two_processes_stop_together_where_too_many_are_bad(tmp_path, damaged_frames):
    codes, outputs = run(damaged_frames, tmp_path / 'two', 2)
    assert codes == [2, 2], outputs
    for output in outputs:
        errors = [line for line in output.splitlines() if line.startswith('error: ')]
        assert len(errors) == 1
        assert "of 20 examples of the split 'train' cannot be used" in errors[0]
        assert 'more than data.max_bad=0.05 allows' in errors[0]
    assert [int(step.name) for step in (tmp_path / 'two' / 'checkpoints').iterdir()]
