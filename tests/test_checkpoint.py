"""Checkpoints: what damage does to them, which are kept, and that reading changes nothing."""

import json
import re
import shutil

import numpy as np
import pytest

from vivit_jax import checkpoint, checksums, sharding, steps
from vivit_jax.checkpoint import Checkpoints

SEED = 7


def save(checkpoints, step, *, size=64, score=None, ema=True, optimizer=True):
    """Saves arrays that nothing could compress."""
    random = np.random.default_rng(step)
    tree = {
        'kernel': random.standard_normal((size, 128)).astype(np.float32),
        'bias': np.full(3, step, np.float32),
    }
    checkpoints.save(
        step,
        params=tree,
        ema=tree if ema else None,
        optimizer={'momentum': tree} if optimizer else None,
        meta={'step': step},
        metrics=None if score is None else {'top_1': score},
    )


@pytest.fixture(scope='module')
def pristine(tmp_path_factory):
    """A workdir with the steps 1 and 2, of which the first is the better one."""
    folder = tmp_path_factory.mktemp('pristine')
    with Checkpoints(folder, best_metric='top_1') as checkpoints:
        save(checkpoints, 1, score=0.75)
        save(checkpoints, 2, score=0.5)
    return folder


@pytest.fixture
def workdir(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / 'run')
    return tmp_path / 'run'


def told(caught):
    return [str(warning.message) for warning in caught]


def test_every_file_of_a_step_has_its_checksum(pristine):
    for step in (1, 2):
        folder = pristine / 'checkpoints' / str(step)
        listed = checksums.read(folder)
        there = {str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file()}
        assert listed.keys() == there - {checksums.NAME}
        assert {name.split('/')[0] for name in listed} > {'params', 'ema', 'optimizer', 'meta', 'metrics'}
        assert steps.damage(folder) == ''


def damages(folder, random):
    """Names the damage that each file can take, with what is said of it: bits at random places, lengths, absence."""
    for name in [*checksums.files(folder), checksums.NAME]:
        content = (folder / name).read_bytes()
        changed = 'its content has changed'
        for _ in range(2):
            place = random.integers(8 * len(content))
            flipped = bytearray(content)
            flipped[place // 8] ^= 1 << place % 8
            yield name, bytes(flipped), changed
        for other in (b'', content[: random.integers(len(content))], content + b'\0'):
            of_another_size = f'{len(other):,} bytes, should be {len(content):,}'
            yield name, other, changed if name == checksums.NAME else of_another_size
        yield name, None, 'is missing'


def test_every_damage_is_found_and_the_step_before_is_used(pristine, workdir):
    """Each file of the last step, one after the other; the run goes on from the step before it."""
    random, found = np.random.default_rng(SEED), 0
    folder = workdir / 'checkpoints' / '2'
    aside = folder.with_name('2.damaged')
    for name, content, text in damages(folder, random):
        whole = (folder / name).read_bytes()
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        with pytest.warns(UserWarning, match='is damaged') as caught:
            assert Checkpoints(workdir).recover() == 1
        message = (
            f'{folder} is damaged ({name}: {text}): going on from step 1; it is now 2.damaged, to be deleted'
        )
        assert told(caught) == [message]
        assert {path.name for path in folder.parent.iterdir()} == {'1', '2.damaged'}
        (aside / name).write_bytes(whole)
        aside.rename(folder)
        found += 1
    files = len(checksums.files(folder)) + 1
    assert found == 6 * files >= 6 * 25
    assert Checkpoints(workdir).recover() == 2  # it was whole again each time
    print(f'{found} damages in {files} files found')


def test_a_file_that_does_not_belong_there(workdir):
    (workdir / 'checkpoints' / '2' / 'params' / 'd' / '0123abcd').write_bytes(b'x')
    with pytest.warns(UserWarning, match=r'2 is damaged \(params/d/0123abcd: does not belong there\)'):
        assert Checkpoints(workdir).recover() == 1


@pytest.mark.parametrize('item', ['params', 'ema', 'optimizer', 'meta', 'metrics'])
def test_a_part_that_is_gone(workdir, item):
    shutil.rmtree(workdir / 'checkpoints' / '2' / item)
    with pytest.warns(
        UserWarning, match=rf'2 is damaged \({item}/.*: is missing(, and \d+ more)?\): going on from'
    ):
        assert Checkpoints(workdir).recover() == 1


def test_reading_leaves_out_the_best_where_it_is_damaged(workdir):
    assert checkpoint.read(workdir).folder.name == '1'
    file = next((workdir / 'checkpoints' / '1' / 'ema' / 'd').iterdir())
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(
        UserWarning, match=r'1 is damaged \(ema/d/.* bytes, should be .*\): using step 2 instead'
    ):
        saved = checkpoint.read(workdir)
    assert (saved.folder.name, saved.meta) == ('2', {'step': 2})
    with pytest.warns(UserWarning, match='using step 2 instead'):
        assert Checkpoints(workdir).best_whole_step() == 2
    # What prediction does not read does not matter to it; and it has changed nothing.
    shutil.rmtree(workdir / 'checkpoints' / '2' / 'optimizer')
    with pytest.warns(UserWarning, match='using step 2 instead'):
        checkpoint.read(workdir)
    with pytest.raises(
        ValueError, match=r'checkpoints/1: the checkpoint is damaged \(ema/d/.*\): name another one'
    ):
        checkpoint.read(workdir / 'checkpoints' / '1')
    assert {path.name for path in (workdir / 'checkpoints').iterdir()} == {'1', '2'}


def test_lost_averages_are_damage_not_other_parameters(workdir):
    """With the folder of the moving average gone, the parameters themselves are not taken for it."""
    for step in ('1', '2'):
        shutil.rmtree(workdir / 'checkpoints' / step / 'ema')
    with pytest.raises(
        ValueError, match=r'every checkpoint is damaged: 1 \(ema/.*: is missing.*\), 2 \(ema/'
    ):
        checkpoint.read(workdir)


def test_where_all_are_damaged_each_is_named(workdir):
    for step in ('1', '2'):
        (workdir / 'checkpoints' / step / 'meta' / 'metadata').write_text('{}')
    message = (
        f'{workdir}/checkpoints: every checkpoint is damaged: 2 (meta/metadata: 2 bytes, should be 11), '
        '1 (meta/metadata: 2 bytes, should be 11): choose another --workdir, or delete that folder to start anew'
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Checkpoints(workdir).recover()
    with pytest.raises(ValueError, match='every checkpoint is damaged'):
        Checkpoints(workdir).best_whole_step()
    with pytest.raises(ValueError, match='every checkpoint is damaged'):
        checkpoint.read(workdir)
    assert {path.name for path in (workdir / 'checkpoints').iterdir()} == {'1', '2'}


def test_a_damaged_number_is_saved_again(workdir):
    (workdir / 'checkpoints' / '2' / 'meta' / 'metadata').unlink()
    with Checkpoints(workdir, best_metric='top_1') as checkpoints:
        with pytest.warns(UserWarning, match='going on from step 1'):
            checkpoints.recover()
        save(checkpoints, 2, score=0.5)
        checkpoints.wait()
        assert checkpoints.steps() == [1, 2]
        assert steps.damage(checkpoints.folder / '2') == ''
    # And again: the one that was put aside makes room.
    (workdir / 'checkpoints' / '2' / 'meta' / 'metadata').unlink()
    with pytest.warns(UserWarning, match='going on from step 1'):
        assert Checkpoints(workdir).recover() == 1
    assert {path.name for path in (workdir / 'checkpoints').iterdir()} == {'1', '2.damaged'}


def test_checkpoints_of_earlier_versions_are_read_and_it_is_said(workdir):
    """They have no checksums, and Orbax's own file does not tell of any."""
    for step in ('1', '2'):
        folder = workdir / 'checkpoints' / step
        (folder / checksums.NAME).unlink()
        own = json.loads((folder / '_CHECKPOINT_METADATA').read_text())
        assert own.pop('custom_metadata') == {'checksums': 'checksums.json'}
        (folder / '_CHECKPOINT_METADATA').write_text(json.dumps(own | {'custom_metadata': {}}))
    with pytest.warns(
        UserWarning, match=r'2 has no checksums.json, as an earlier version wrote it: used unchecked'
    ):
        assert Checkpoints(workdir).recover() == 2
    with pytest.warns(UserWarning, match='1 has no checksums.json'):
        assert checkpoint.read(workdir).folder.name == '1'
    (workdir / 'checkpoints' / '2' / 'metrics' / 'metrics').write_text('{"score"')
    with pytest.warns(UserWarning, match='checksums.json|damaged') as caught:
        assert Checkpoints(workdir).recover() == 1
    assert '1 has no checksums.json' in told(caught)[0]
    assert '2 is damaged (metrics/metrics: Expecting' in told(caught)[1]


def test_scores_that_are_none_come_last(workdir):
    file = workdir / 'checkpoints' / '1' / 'metrics' / 'metrics'
    for text in (
        '',
        '{}',
        '[]',
        'null',
        '{"score": "high"}',
        '{"score": NaN}',
        '{"score": 1e999}',
        '{"score": [',
    ):
        file.write_text(text)
        assert Checkpoints(workdir).best_step() == (1 if '1e999' in text else 2)


def test_nothing_is_touched_before_the_first_save(tmp_path):
    with Checkpoints(tmp_path / 'run') as checkpoints:
        assert checkpoints.recover() is None
        assert checkpoints.steps() == []
        assert checkpoints.latest_step() is checkpoints.best_step() is checkpoints.best_whole_step() is None
        checkpoints.check_space({'kernel': np.zeros(3, np.float32)}, keep=2)
    assert list(tmp_path.iterdir()) == []


def test_reading_beside_a_run_changes_nothing(workdir):
    """A run is writing step 3, another one was killed while it wrote: readers see 1 and 2, and leave all as it is."""
    held = workdir / 'checkpoints' / '3.orbax-checkpoint-tmp' / 'params'
    held.mkdir(parents=True)
    (held / 'half').write_bytes(b'x')
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
    with Checkpoints(workdir, best_metric='top_1') as checkpoints:
        assert (checkpoints.steps(), checkpoints.latest_step(), checkpoints.best_step()) == ([1, 2], 2, 1)
        assert checkpoints.best_whole_step() == 1
        assert checkpoints.meta(2) == {'step': 2}
        like = {'kernel': np.zeros((64, 128), np.float32), 'bias': np.zeros(3, np.float32)}
        restored = checkpoints.restore(2, sharding.make_mesh(), params=like)
        np.testing.assert_array_equal(restored['params']['bias'], np.full(3, 2, np.float32))
    assert checkpoint.find(workdir).name == '1'
    checkpoint.read(workdir)
    checkpoint.read(workdir / 'checkpoints' / '2')
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob('*')} == before
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.recover() == 2
    assert not held.exists()


def test_the_latest_and_the_best_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2, best_metric='top_1') as checkpoints:
        for step, score in enumerate((0.25, 0.75, 0.5, 0.25, None, 0.25), start=1):
            save(checkpoints, step, score=score)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6]
        assert checkpoints.best_step() == 2
        with pytest.raises(
            ValueError, match=r"checkpoint.best_metric='top_1' is no validation metric: choose one of"
        ):
            checkpoints.save(7, params={}, ema=None, optimizer=None, meta={}, metrics={'loss': 1.0})
