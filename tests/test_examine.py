"""Looking into files: once each, remembered until they change, whatever happens to the manifest."""

import gzip
import json
import os
import threading

import pytest

from vivit_jax.data.examine import Examination, default_cache, examine, read_known, write_known
from vivit_jax.data.record import Found

FOUND = Found(num_frames=7, frame_size=(8, 12), seconds=0.25, codec='h264', index='7 0 1')


@pytest.fixture
def folder(tmp_path):
    for name in ('a', 'b', 'c'):
        (tmp_path / 'data' / name).parent.mkdir(exist_ok=True)
        (tmp_path / 'data' / name).write_text(name)
    return tmp_path / 'data'


class Probe:
    """Finds seven frames in every file but `b`, and notes what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, path):
        self.asked.append(os.path.basename(path))
        return 'is b' if path.endswith('b') else FOUND


def look(folder, cache, names=('a', 'b', 'c'), **options):
    probe = Probe()
    examination = Examination(cache=cache, **options)
    outcomes = examine('videos', folder, names, probe, examination)
    return outcomes, sorted(probe.asked), examination


def test_each_file_is_looked_into_once(folder, tmp_path):
    expected = {'a': FOUND, 'b': 'is b', 'c': FOUND}
    assert look(folder, None, 'abcabca')[:2] == (expected, ['a', 'b', 'c'])
    assert look(folder, tmp_path / 'cache')[:2] == (expected, ['a', 'b', 'c'])
    assert look(folder, tmp_path / 'cache')[:2] == (expected, [])
    # Without a cache nothing is remembered.
    assert look(folder, None)[1] == ['a', 'b', 'c']


def test_a_file_that_changed_is_looked_into_again(folder, tmp_path):
    look(folder, tmp_path)
    (folder / 'b').write_text('longer')
    assert look(folder, tmp_path)[1] == ['b']
    os.utime(folder / 'c', ns=(1, 1))
    assert look(folder, tmp_path)[1] == ['c']
    (folder / 'a').unlink()
    outcomes, asked, _ = look(folder, tmp_path)
    assert (outcomes['a'], asked) == ('no such file', [])
    (folder / 'a').write_text('a')
    assert look(folder, tmp_path)[1] == ['a']


def test_more_files_join_those_known(folder, tmp_path):
    look(folder, tmp_path, ('a',))
    assert look(folder, tmp_path, ('a', 'c'))[1] == ['c']
    assert look(folder, tmp_path)[1] == ['b']
    assert look(folder, tmp_path)[1] == []


def test_kinds_and_folders_do_not_mix(folder, tmp_path):
    look(folder, tmp_path)
    probe = Probe()
    examine('volumes', folder, ('a',), probe, Examination(cache=tmp_path))
    examine('videos', folder / '..', ('data/a',), probe, Examination(cache=tmp_path))
    assert probe.asked == ['a', 'a']


@pytest.mark.parametrize(
    'content',
    [
        b'',
        b'no gzip',
        gzip.compress(b'{"version": 0}\n["a", [1, 2, 3], "bad"]\n', mtime=0),
        gzip.compress(b'{"version": 1}\n["a", [1, 2', mtime=0),
        gzip.compress(b'{"version": 1}\n[1]\n', mtime=0),
        gzip.compress(b'{"version": 1}\n', mtime=0)[:-6],
    ],
)
def test_a_damaged_manifest_is_done_without(folder, tmp_path, content):
    look(folder, tmp_path / 'cache')
    (manifest,) = (tmp_path / 'cache').iterdir()
    manifest.write_bytes(content)
    assert look(folder, tmp_path / 'cache')[1] == ['a', 'b', 'c']
    assert look(folder, tmp_path / 'cache')[1] == []


def test_a_cache_that_cannot_be_written_is_done_without(folder, tmp_path):
    (tmp_path / 'cache').write_text('a file where a folder should be')
    assert look(folder, tmp_path / 'cache')[0]['a'] == FOUND


def test_an_interrupted_look_is_kept(folder, tmp_path):
    def probe(path):
        if path.endswith('c'):
            raise KeyboardInterrupt
        return FOUND

    with pytest.raises(KeyboardInterrupt):
        examine('videos', folder, ('a', 'b', 'c'), probe, Examination(cache=tmp_path, threads=1))
    assert look(folder, tmp_path)[1] == ['c']


def test_what_is_no_file_is_said(folder, tmp_path):
    os.mkfifo(folder / 'pipe.mp4')
    (folder / 'link').symlink_to(folder / 'nowhere')
    (folder / 'loop').symlink_to(folder / 'loop')
    outcomes, asked, _ = look(folder, None, ('pipe.mp4', 'link', 'loop', 'none', 'a/b', 'nul\0'))
    assert asked == []
    assert outcomes['pipe.mp4'] == 'neither a file nor a folder'
    assert outcomes['link'] == f'a link to {folder / "nowhere"}, which is not there'
    assert outcomes['none'] == 'no such file'
    assert outcomes['a/b'] == 'Not a directory'
    assert 'null' in outcomes['nul\0']


def test_progress_is_told_of_what_is_looked_into(folder, tmp_path):
    told = []
    look(folder, tmp_path, on_progress=lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]
    told.clear()
    look(folder, tmp_path, on_progress=lambda *done: told.append(done))
    assert told == []


def test_files_are_looked_into_side_by_side(folder):
    both = threading.Barrier(2, timeout=20)

    def probe(path):
        both.wait()
        return FOUND

    assert examine('videos', folder, ('a', 'b'), probe, Examination(threads=2)) == {'a': FOUND, 'b': FOUND}


def test_a_run_takes_files_as_they_were(folder, tmp_path):
    _, _, examination = look(folder, None)
    listing = {'entries': [['a', 0]], 'note': 'drawn'}
    examination.listed['videos'] = {'train': listing}
    write_known(tmp_path / 'manifest', examination)
    later = Examination()
    read_known(tmp_path / 'manifest', later)
    assert later.begun == {'videos': {'train': listing}}
    known = later.known
    assert known == {'videos': {'a': FOUND, 'b': 'is b', 'c': FOUND}}
    (folder / 'a').write_text('changed')
    (folder / 'c').unlink()
    assert look(folder, tmp_path / 'cache', known=known)[:2] == ({'a': FOUND, 'b': 'is b', 'c': FOUND}, [])
    (folder / 'd').write_text('new')
    assert look(folder, tmp_path / 'cache', 'abcd', known=known)[1] == ['d']


def test_a_run_without_a_manifest_looks_again(tmp_path):
    (tmp_path / 'damaged').write_bytes(gzip.compress(b'{"version": 1}\n["videos"'))
    (tmp_path / 'other').write_bytes(gzip.compress(json.dumps({'version': 0}).encode()))
    for name in ('none', 'damaged', 'other'):
        examination = Examination()
        read_known(tmp_path / name, examination)
        assert examination == Examination(on_progress=examination.on_progress)


def test_names_that_are_not_utf8(folder, tmp_path):
    name = os.fsdecode(b'caf\xe9')
    (folder / name).write_text('a')
    assert look(folder, tmp_path, (name,))[1] == [name]
    assert look(folder, tmp_path, (name,))[1] == []


def test_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert default_cache() == tmp_path / 'vivit_jax'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path / 'home'))
    assert default_cache() == tmp_path / 'home' / '.cache' / 'vivit_jax'
