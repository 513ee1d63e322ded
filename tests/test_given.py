"""Files named one by one: what a path stands for, windows, grey, and what cannot be used."""

import math
import pickle

import cv2
import numpy as np
import pytest

from videos import write_video
from vivit_jax.data import frame_folders, video_files, volumes
from vivit_jax.data.examine import Examination
from vivit_jax.data.given import open_given
from vivit_jax.data.listed import Kind
from vivit_jax.data.record import Found, Source

RATE = 10.0


def probe(path):
    """A file's text is its number of frames, or why it cannot be used."""
    with open(path) as file:
        text = file.read()
    if not text.isdecimal():
        return text
    return Found(num_frames=int(text), frame_size=(2, 3), seconds=int(text) / RATE, codec='text')


def read(path, found, indices):
    """Frame t is filled with t."""
    return np.broadcast_to(indices[:, None, None, None], (len(indices), 2, 3, 3)).astype(np.uint8)


def times(found):
    return np.arange(found.num_frames) / RATE


FILMS = Kind(name='films', endings=('.film',), probe=probe, read=read, times=times)
KINDS = (FILMS, frame_folders.KIND)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, **films):
    for name, text in films.items():
        path = folder / f'{name.replace("__", "/")}.film'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))


def opened(*paths, kinds=KINDS, **options):
    return open_given(paths, kinds=kinds, examination=Examination(), **options)


def names(source):
    return [source[index].name for index in range(len(source))]


def frames_of(record):
    return record.read(np.arange(record.num_frames))[:, 0, 0, 0].tolist()


def write_images(folder, count=3):
    folder.mkdir(parents=True, exist_ok=True)
    for place in range(count):
        cv2.imwrite(str(folder / f'{place}.png'), np.full((4, 6, 3), 10 * place, np.uint8))


def test_files_are_in_the_order_in_which_they_are_named(here):
    write(here, b=3, a=5)
    source = opened('b.film', str(here / 'a.film'), 'b.film', label=(0, 0), class_names=['x', 'y'])
    assert isinstance(source, Source)
    assert names(source) == ['b.film', str(here / 'a.film'), 'b.film']
    assert source.files == [str(here / name) for name in ('b.film', 'a.film', 'b.film')]
    assert source.spans == [None, None, None]
    assert [source[index].num_frames for index in range(3)] == [3, 5, 3]
    assert source[1].label == (0, 0)
    assert source.class_names == ['x', 'y']
    assert source.bad == []
    with pytest.raises(IndexError, match=r'index 3 must be in \[0, 3\)'):
        source[3]
    assert source.digest != opened('a.film').digest


def test_a_source_travels_to_other_processes(here):
    write_video(here / 'a.mp4', frames=12)
    source = opened('a.mp4', kinds=(video_files.KIND,), channels=1)
    travelled = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(travelled[0].read(np.arange(3)), source[0].read(np.arange(3)))


def test_a_folder_stands_for_everything_below_it(here):
    write(here, set__z=1, set__a__b=2, set__a__a=3)
    (here / 'set' / 'notes.txt').write_text('')
    write_images(here / 'set' / 'm')
    write_images(here / 'set' / 'a')  # pictures beside films are none
    assert names(opened('set')) == ['set/a/a.film', 'set/a/b.film', 'set/m', 'set/z.film']
    assert names(opened('set/')) == names(opened('set'))


def test_a_folder_of_images_is_one_example(here):
    write_images(here / 'frames')
    source = opened('frames/', 'frames')
    assert names(source) == ['frames/', 'frames']
    assert frames_of(source[1]) == [0, 10, 20]
    write(here, frames__cover=4)
    assert names(opened('frames')) == ['frames/cover.film']


def test_a_pattern_is_expanded_in_order_of_names(here):
    write(here, b=3, a=5, deep__er__c=1)
    assert names(opened('*.film')) == ['a.film', 'b.film']
    assert names(opened('**/*.film')) == ['a.film', 'b.film', 'deep/er/c.film']
    write(here, **{'[x]': 2})
    assert names(opened('[x].film')) == ['[x].film']  # what is there is no pattern


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('t.csv', 'path,label,start,end\na.film,x,1,2.5\nb.film,,,\n'),
        ('t.tsv', 'video\tstart\tend\na.film\t1\t2.5\nb.film\t\t\n'),
        ('t.jsonl', '{"path": "a.film", "start": 1, "end": 2.5}\n{"path": "b.film"}\n'),
        ('t.json', '[{"path": "a.film", "start": 1, "end": 2.5, "label": ["u", "v"]}, {"path": "b.film"}]'),
    ],
)
def test_tables(here, name, text):
    write(here, lists__a=50, lists__b=20)
    (here / 'lists' / name).write_text(text)
    source = opened(f'lists/{name}')
    assert names(source) == ['lists/a.film#t=1,2.5', 'lists/b.film']
    assert source.spans == [(1.0, 2.5), None]
    assert frames_of(source[0]) == list(range(10, 25))
    assert source.files[0] == str(here / 'lists' / 'a.film')


@pytest.mark.parametrize(
    'text', ['a.film 3\nb b.film 4\n', 'a.film,1,2\nb b.film,1,2\n', 'a.film\nb b.film\n']
)
def test_lists_without_a_header(here, text):
    write(here, **{'a': 5, 'b b': 6})
    (here / 'list.txt').write_text(text)
    assert names(opened('list.txt')) == ['a.film', 'b b.film']


def test_tables_by_frames_and_of_folders(here):
    write(here, a=50)
    write_images(here / 'frames', 8)
    (here / 't.csv').write_text('path,start_frame,stop_frame\na.film,3,6\nframes,2,5\n')
    source = opened('t.csv')
    assert frames_of(source[0]) == [3, 4, 5]
    assert frames_of(source[1]) == [20, 30, 40]
    assert source.spans == [(0.3, 0.6), None]
    (here / 'tsn.txt').write_text('frames 8 3\n')
    assert names(opened('tsn.txt')) == ['frames']


def test_what_cannot_be_used_is_named_and_the_rest_goes_on(here):
    write(here, a=5, broken='is broken')
    (here / 't.csv').write_text('path,start,end\na.film,3,2\na.film,9,10\nnone.film,,\na.film,0.1\n,,\n')
    (here / 'gone.film').symlink_to('nowhere')
    source = opened('broken.film', 'a.film', 't.csv', 'gone.film')
    assert names(source) == ['a.film']
    assert sorted(source.bad) == sorted(
        [
            ('t.csv, line 2', "start='3', end='2': it must end after it starts"),
            ('t.csv, line 5', "2 values, 'a.film,0.1', instead of 3, path,start,end"),
            ('broken.film', 'is broken'),
            ('a.film#t=9,10', 'begins at 9 s, but the file ends at 0.500 s (t.csv, line 3)'),
            ('none.film', 'no such file (t.csv, line 4)'),
            ('gone.film', 'a link to nowhere, which is not there'),
        ]
    )


def test_nothing_readable_is_an_empty_source(here):
    write(here, broken='is broken')
    source = opened('broken.film')
    assert len(source) == 0
    assert source.bad == [('broken.film', 'is broken')]


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('clip.film', r'there is no clip.film; is it clips.film\?'),
        ('sbu/clips.film', r'there is no sbu/clips.film; is it sub\?'),
        ('sub/clpis.film', r'there is no sub/clpis.film; is it sub/clips.film\?'),
        ('unlike', r'there is no unlike'),
        ('*.mp4', r"nothing matches '\*\.mp4'"),
        (
            'empty',
            r'empty holds none of what the model takes, files \(\.film\) or folders of images \(\.bmp, .*\)',
        ),
    ],
)
def test_mistakes_are_one_line(here, path, message):
    write(here, clips=1, sub__clips=1)
    (here / 'empty').mkdir()
    with pytest.raises(ValueError, match=f'^{message}$'):
        opened(path)


def test_a_file_of_another_ending_is_looked_into(here):
    write(here, a=5)
    (here / 'a.film').rename(here / 'a.data')
    assert names(opened('a.data')) == ['a.data']
    with pytest.raises(
        ValueError, match=r'^a\.data is a file, but the model takes folders of images \(.*\)$'
    ):
        opened('a.data', kinds=(frame_folders.KIND,))


@pytest.mark.parametrize(
    ('frames', 'window', 'every', 'starts'),
    [
        (100, 4, 2, [0, 2, 4, 6]),
        (100, 4, 4, [0, 4, 6]),
        (100, 4, 0, [0, 4, 6]),  # as long as a window
        (100, 10, 3, [0]),
        (30, 10, 3, [0]),
        (101, 10, 5, [0, 0.1]),
        (100, 0.3, 0.1, np.arange(98) / 10),
        (100, 2, 6, [0, 6, 8]),  # with gaps, as asked
    ],
)
def test_windows_cover_all(here, frames, window, every, starts):
    write(here, a=frames)
    source = opened('a.film', window=window, every=every)
    end = frames / RATE
    np.testing.assert_allclose([span[0] for span in source.spans], starts, atol=1e-9)
    np.testing.assert_allclose([span[1] - span[0] for span in source.spans], min(window, end), atol=1e-9)
    assert source.spans[-1][1] == end
    first, last = source[0], source[len(source) - 1]
    assert first.name == f'a.film#t=0,{min(window, end):g}'
    assert frames_of(first) == list(range(round(min(window, end) * RATE)))
    assert frames_of(last)[-1] == frames - 1
    if every <= window:
        seen = {frame for index in range(len(source)) for frame in frames_of(source[index])}
        assert seen == set(range(frames))


def test_windows_of_parts_of_files(here):
    write(here, a=100)
    (here / 't.csv').write_text('path,start,end\na.film,1,3.5\na.film,9,\n')
    assert opened('t.csv', window=1).spans == [(1, 2), (2, 3), (2.5, 3.5), (9, 10)]
    (here / 'f.csv').write_text('path,start_frame,stop_frame\na.film,10,30\n')
    assert opened('f.csv', window=1).spans == [(1, 2), (2, 3)]


def test_windows_need_time(here):
    write_images(here / 'frames')
    with pytest.raises(
        ValueError, match=r'^frames: windows are counted in seconds, but frame folders have no time$'
    ):
        opened('frames', window=1)
    with pytest.raises(
        ValueError, match=r'^frames: the model takes 5 frames a second, but frame folders have no'
    ):
        opened('frames', fps=5)
    timeless = Kind(
        name='films',
        endings=('.film',),
        probe=lambda path: Found(num_frames=3, frame_size=(2, 3), seconds=None, codec=''),
        read=read,
        times=times,
    )
    write(here, a=5)
    source = opened('a.film', kinds=(timeless,), window=1)
    assert (len(source), source.bad) == (0, [('a.film', 'tells no time, in which windows are counted')])
    for options in ({'every': 1}, {'window': -1}, {'window': math.nan}, {'window': 1, 'every': math.inf}):
        with pytest.raises(ValueError, match='must be seconds, and `every` needs a window'):
            opened('a.film', **options)


def test_frames_by_time(here):
    write(here, a=100)
    assert frames_of(opened('a.film', fps=2.0)[0]) == list(range(0, 100, 5))
    assert frames_of(opened('a.film', fps=2.0, window=3)[1]) == list(range(30, 60, 5))


def test_colours_become_grey_by_bt_601(here):
    def coloured(path, found, indices):
        return np.broadcast_to(np.uint8([250, 100, 20]), (len(indices), 2, 3, 3)).copy()

    kind = Kind(name='films', endings=('.film',), probe=probe, read=coloured, times=times)
    write(here, a=5)
    pixels = opened('a.film', kinds=(kind,), channels=1)[0].read(np.arange(4))
    assert pixels.shape == (4, 2, 3, 1)
    assert np.unique(pixels).tolist() == [round(0.299 * 250 + 0.587 * 100 + 0.114 * 20)]


def test_volumes(here):
    np.save(here / 'a.npy', np.random.default_rng(0).normal(size=(8, 9, 10)))
    kind = volumes.kind(clip=(4, 5, 6), size=(0, 0, 0))
    source = opened('a.npy', kinds=(kind,), channels=1)
    assert source[0].read(np.arange(4)).shape == (4, 5, 6, 1)
    with pytest.raises(
        ValueError, match=r'^a.npy: volumes of 4x5x6 voxels have 1 channel, but the model takes 3$'
    ):
        opened('a.npy', kinds=(kind,))
    with pytest.raises(
        ValueError, match=r'^a.npy: windows are counted in seconds, but volumes of .* have no time$'
    ):
        opened('a.npy', kinds=(kind,), channels=1, window=1)
