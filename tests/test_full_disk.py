"""A disk that fills up: training goes on, or stops with the last good checkpoint, and nothing half-written is left.

The disk is a small tmpfs where one may be mounted; elsewhere the system's limit on the size of files takes its place,
which fails the same writes.
"""

import contextlib
import errno
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
import warnings

import jax
import numpy as np
import pytest

from tiny import DIGITS, SETTINGS
from vivit_jax import checkpoint, closing, main, steps, train
from vivit_jax.checkpoint import Checkpoints, NotSaved
from vivit_jax.config import load
from vivit_jax.formats.weights import flat
from vivit_jax.telling.growing import Growing

MIB = 2**20


class Mounted:
    """A small disk, which can be filled to the last byte."""

    def __init__(self, folder):
        self.folder, self.ballast = folder, folder / 'ballast'

    def fill(self):
        with self.ballast.open('ab', buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    def clear(self):
        self.ballast.unlink()


class Limited:
    """A folder in which, while it is 'full', no file of this process may become larger than a page."""

    def __init__(self, folder):
        self.folder = folder

    def fill(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

    def clear(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextlib.contextmanager
def small_disk(folder, size=4 * MIB):
    """A disk of a few MiB; where nothing may be mounted, what comes closest to one."""
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(folder)]
    if shutil.which('mount') and subprocess.run(command, capture_output=True, check=False).returncode == 0:
        try:
            yield Mounted(folder)
        finally:
            subprocess.run(['umount', '--lazy', str(folder)], check=True)
    else:
        with limited(folder) as limit:
            yield limit


@contextlib.contextmanager
def limited(folder):
    """A folder with a limit on the size of files."""
    limit = Limited(folder)
    try:
        yield limit
    finally:
        limit.clear()


@pytest.fixture(params=['disk', 'unforeseen', 'limit'])
def disk(request, tmp_path, monkeypatch):
    """A full disk that is seen to be full, one that turns out to be while a file is written, and a limit on files."""
    if request.param == 'unforeseen':
        monkeypatch.setattr('vivit_jax.disk.free', lambda folder: 2**40)
    with small_disk(tmp_path / 'disk') if request.param != 'limit' else limited(tmp_path) as full:
        yield full


@contextlib.contextmanager
def warned():
    """Collects the texts of all warnings."""
    texts = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        yield texts
        texts += [str(warning.message) for warning in caught if warning.category is UserWarning]


def save(checkpoints, step):
    """Half a MiB that nothing could compress."""
    kernel = np.random.default_rng(step).standard_normal((1024, 128)).astype(np.float32)
    checkpoints.save(
        step, params={'kernel': kernel}, ema=None, optimizer=None, meta={'step': step}, metrics=None
    )


def names(folder):
    found = (path.name for path in (folder / 'checkpoints').iterdir())
    return sorted((name for name in found if not name.startswith('.')), key=lambda name: (len(name), name))


REASON = r'could not be written: (no space is left on the disk|files may not become that large)'


def test_saving_is_tried_again_and_what_was_saved_stays(disk):
    going_on = 'the last good one is step 2; training goes on, and the next one is tried again'
    with Checkpoints(disk.folder, keep=2) as checkpoints:
        for step in (1, 2):
            save(checkpoints, step)
        checkpoints.wait()
        disk.fill()
        with (
            warned() as texts
        ):  # of the one before, where that was being written when the disk was found full
            for step in (3, 4, 5):
                save(checkpoints, step)
        for step, text in zip((3, 4), texts, strict=False):
            assert re.fullmatch(
                rf'\S+/checkpoints: the checkpoint of step {step}, 0\.5 MiB with .* free, {REASON}; {going_on}',
                text,
            )
        with pytest.raises(
            NotSaved, match=f'the checkpoint of step 5, .*{REASON}; the last good one is step 2$'
        ):
            checkpoints.wait()
        assert names(disk.folder) == ['1', '2']
        disk.clear()
        save(checkpoints, 6)
        checkpoints.wait()
        assert names(disk.folder) == ['2', '6']
        assert [steps.damage(checkpoints.folder / name) for name in ('2', '6')] == ['', '']
    assert checkpoint.read(disk.folder).meta == {'step': 6}


def test_without_an_earlier_one_the_run_ends(disk):
    disk.fill()

    def save_and_wait():
        with Checkpoints(disk.folder) as checkpoints:
            save(checkpoints, 1)
            checkpoints.wait()

    with pytest.raises(NotSaved, match=f'step 1, .*{REASON}; there is no other$'):
        save_and_wait()
    assert not (disk.folder / 'checkpoints').exists()


def test_what_ends_a_run_is_told_and_what_was_not_saved(disk):
    def fail():
        with Checkpoints(disk.folder) as checkpoints:
            save(checkpoints, 1)
            checkpoints.wait()
            disk.fill()
            save(checkpoints, 2)
            raise KeyError('cause')

    with warned() as texts, pytest.raises(KeyError, match='cause'):
        fail()
    assert re.search(f'the checkpoint of step 2, .*{REASON}; the last good one is step 1$', texts[-1])


def test_records_wait_for_room(disk):
    """Whole, in order, each once: a curve has no holes where the disk was full for a while."""
    path = disk.folder / 'metrics.jsonl'
    file = Growing(path)
    for number in range(50):
        file.add(b'%04d\n' % number)
    disk.fill()
    large = b'x' * 8000 + b'\n'
    with pytest.warns(UserWarning, match=r'metrics\.jsonl cannot be written now: .*; held back until it can'):
        file.add(large)
    file.add(large)  # is told once
    file.add(large)
    assert path.read_bytes().splitlines()[-1] == b'0049'  # no half record
    disk.clear()
    file.add(b'last\n')
    file.close()
    assert path.read_bytes() == b''.join(b'%04d\n' % number for number in range(50)) + 3 * large + b'last\n'


def test_what_finds_no_room_in_the_end_is_told(disk):
    file = Growing(disk.folder / 'metrics.jsonl')
    disk.fill()
    with pytest.warns(UserWarning, match='cannot be written now'):
        file.add(b'x' * 8000)
    with pytest.warns(UserWarning, match=r'metrics\.jsonl: its last 1 records could not be written'):
        file.close()
    disk.clear()
    assert (disk.folder / 'metrics.jsonl').read_bytes() == b''


CONFIG = SETTINGS | {
    'training.log_every': '2',
    'training.ema_decay': '0.9',
    'evaluation.every_steps': '4',
    'evaluation.temporal_views': '1',
    'checkpoint.keep': '9',  # none that is removed makes room
    'data.test_splits': 'test',
}


def results(folder):
    """The curve without the clock's numbers, the evaluation, and the last parameters."""
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    curve = [{key: row[key] for key in row if key not in ('clips_per_second', 'data_wait')} for row in rows]
    params = flat(checkpoint.read(folder / 'checkpoints' / '20').params)
    return curve, json.loads((folder / 'eval.json').read_text()), params


def assert_same(one, other):
    assert one[:2] == other[:2]
    jax.tree.map(np.testing.assert_array_equal, one[2], other[2])


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp('undisturbed')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closing, 'write_report', lambda *_, **__: None)
        train.train(load(DIGITS, CONFIG), folder)
    return results(folder)


@pytest.fixture
def between_steps(monkeypatch):
    """Calls functions before the steps of their number."""
    due, real, count = {}, train.Run.__init__, 0

    def counting(self, *arguments):
        real(self, *arguments)
        inner = self.step

        def step(*inputs):
            nonlocal count
            count += 1
            due.get(count, lambda: None)()
            return inner(*inputs)

        self.step = step

    monkeypatch.setattr(train.Run, '__init__', counting)
    monkeypatch.setattr(
        closing, 'write_report', lambda *_, **__: None
    )  # which takes longer than all the rest
    return due


def when_there(path, then):
    def wait():
        deadline = time.time() + 60
        while not path.is_dir():
            assert time.time() < deadline
            time.sleep(0.01)
        then()

    return wait


def of_checkpoints(texts):
    """The warnings of checkpoints; all others are of small files that find no room either."""
    others = [text for text in texts if 'the checkpoint of step' not in text]
    assert all('could not be written' in text or 'cannot be written' in text for text in others), others
    assert not [text for text in texts if '\n' in text]
    return [text for text in texts if text not in others]


def test_a_run_goes_on_while_the_disk_is_full(undisturbed, between_steps, tmp_path, capfd):
    """Full from step 10 to 14, while the checkpoint of step 12 is due: the end is that of an undisturbed run."""
    with small_disk(tmp_path / 'disk', 16 * MIB) as disk:
        run = disk.folder / 'run'
        between_steps[10] = when_there(run / 'checkpoints' / '8', disk.fill)
        between_steps[14] = disk.clear
        with warned() as texts:
            train.train(load(DIGITS, CONFIG), run)
        (text,) = of_checkpoints(texts)
        assert re.search(
            f'the checkpoint of step 12, .*{REASON}; the last good one is step 8; training goes on', text
        )
        assert capfd.readouterr().err == ''
        assert_same(results(run), undisturbed)
        assert names(run) == ['4', '8', '16', '20']


def test_a_run_ends_where_its_last_state_cannot_be_saved(undisturbed, between_steps, tmp_path, capfd):
    """With one line and the exit code that says: the same command goes on once there is room."""
    with small_disk(tmp_path / 'disk', 16 * MIB) as disk:
        run = disk.folder / 'run'
        between_steps[18] = when_there(run / 'checkpoints' / '16', disk.fill)
        command = [f'--config={DIGITS}', *(f'--config.{key}={value}' for key, value in CONFIG.items())]
        command.append(f'--workdir={run}')
        with warned() as texts:
            assert main.main(command) == 75
        assert all('the checkpoint of step 20, ' in text for text in of_checkpoints(texts))
        (line,) = capfd.readouterr().err.splitlines()
        assert re.search(f'the checkpoint of step 20, .*{REASON}; the last good one is step 16$', line)
        assert names(run) == ['4', '8', '12', '16']
        assert not (run / 'eval.json').exists()
        disk.clear()
        code, (output, errors) = main.main(command), capfd.readouterr()
        assert (code, errors) == (0, '')
        assert 'going on from step 16' in output
        assert_same(results(run), undisturbed)
        assert names(run) == ['4', '8', '12', '16', '20']


# Two processes save; from step 2 on, until step 4, the files of the second may not grow, or the first finds no room
# for the list of checksums.
TOGETHER = """
import errno, os, resource, sys, warnings
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from vivit_jax import checksums, sharding, steps
from vivit_jax.checkpoint import Checkpoints, NotSaved

address, process, folder, fails = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
write = checksums.write

def written(folder, *, root=True):
    if fails == 0 and folder.name[0] in '23':
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write(folder, root=root)

checksums.write = written
warnings.formatwarning = lambda message, *_, **__: f'warning: {message}\\n'
jax.config.update('jax_num_cpu_devices', 1)
jax.distributed.initialize(address, 2, process)
mesh = sharding.make_mesh(2)

def save(checkpoints, step):
    whole = np.random.default_rng(step).standard_normal((256, 1024)).astype(np.float32)
    where = NamedSharding(mesh, PartitionSpec('fsdp', None))
    params = {'kernel': jax.make_array_from_callback(whole.shape, where, lambda part: whole[part])}
    checkpoints.save(step, params=params, ema=None, optimizer=None, meta={'step': step}, metrics=None)

with Checkpoints(folder) as checkpoints:
    for step in (1, 2, 3, 4):
        if step == 4:  # not before step 3 has been tried to its end
            try:
                checkpoints.wait()
            except NotSaved as failure:
                warnings.warn(str(failure))
        if process == fails == 1 and step in (2, 4):
            limit = 4096 if step == 2 else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        save(checkpoints, step)
        if step == 1:
            checkpoints.wait()
    checkpoints.wait()
    print(checkpoints.steps(), [steps.damage(checkpoints.folder / str(step)) for step in (1, 4)])
jax.distributed.shutdown()
"""


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ('fails', 'why'), [(0, 'no space is left on the disk'), (1, 'another process could not write its part')]
)
def test_where_one_process_cannot_write_all_go_on(tmp_path, fails, why):
    """No process waits for one that has failed; all leave the step out, one says so, and the next is saved by all."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        address = f'127.0.0.1:{probe.getsockname()[1]}'
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    pipes['env'] = os.environ | {'JAX_PLATFORMS': 'cpu'}
    begun = time.time()
    command = [sys.executable, '-c', TOGETHER, address]
    processes = [
        subprocess.Popen([*command, str(process), str(tmp_path), str(fails)], **pipes) for process in (0, 1)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert time.time() - begun < 240  # Orbax alone would have waited for 20 minutes
    for output, _ in outputs:
        assert output.splitlines()[-1] == "[1, 4] ['', '']"
    told = [line for line in outputs[0][1].splitlines() if line.startswith('warning: ')]
    assert len(told) == 2
    for step, line in zip((2, 3), told, strict=True):
        assert f'the checkpoint of step {step}, ' in line
        assert f'{why}; the last good one is step 1' in line
    assert 'Traceback' not in outputs[0][1] + outputs[1][1]
    assert names(tmp_path) == ['1', '4']


def test_any_other_file_that_finds_no_room_is_no_mistake_of_the_user(tmp_path, monkeypatch, capsys):
    """Results, say: one line, and the exit code that says that the same command goes on."""

    def full(*arguments, **settings):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'eval.json')

    monkeypatch.setattr(train, 'train', full)
    assert main.main([f'--config={DIGITS}', f'--workdir={tmp_path}']) == 75
    told = capsys.readouterr().err.splitlines()
    assert told == [
        "[Errno 28] No space left on device: 'eval.json'; the same command goes on when that is mended"
    ]
