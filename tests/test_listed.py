"""Listed files as a source: segments, sampling by time, what is left out, what travels."""

import functools
import math
import pickle

import numpy as np
import pytest

from vivit_jax.data.examine import Examination
from vivit_jax.data.listed import Kind, ListedFiles, at_rate
from vivit_jax.data.listing import Entry, Layout
from vivit_jax.data.record import Found, UnreadableExample

RATE = 25.0


def probe(path):
    """A file's text is its number of frames, or why it cannot be used."""
    with open(path) as file:
        text = file.read()
    if not text.isdecimal():
        return text
    return Found(num_frames=int(text), frame_size=(4, 6), seconds=int(text) / RATE, codec='text', index=text)


def read(path, found, indices):
    """Frame t is filled with t."""
    if np.any(indices >= found.num_frames):
        raise UnreadableExample(f'{path} has no frame {max(indices)}')
    return np.broadcast_to(indices[:, None, None, None], (len(indices), 4, 6, 3)).astype(np.uint8)


def times(found, rate=RATE):
    return np.arange(found.num_frames) / rate


def every_other_late(found):
    """Frames 0, 2, 4, … come when they should, those between them 15 ms late."""
    return np.arange(found.num_frames) / RATE + 0.015 * (np.arange(found.num_frames) % 2)


KIND = Kind(name='texts', endings=('.txt',), probe=probe, read=read, times=times)
TIMELESS = Kind(name='pages', endings=('.txt',), probe=probe, read=read)


@pytest.fixture
def opened(tmp_path):
    """Opens rows of a table whose files have the given texts."""

    def open_rows(header, rows, texts, kind=KIND, **options):
        for name, text in texts.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        table = [','.join(header), *(','.join(map(str, row)) for row in rows)]
        for split in ('train', 'validation'):
            (tmp_path / f'{split}.csv').write_text('\n'.join(table) + '\n')
        layout = Layout(root=str(tmp_path))
        return ListedFiles('train', kind=kind, layout=layout, examination=Examination(), **options)

    return open_rows


def frames_of(record):
    return record.read(np.arange(record.num_frames))[:, 0, 0, 0].tolist()


def test_a_whole_file(opened):
    source = opened(('path', 'label'), [('a.txt', 'x'), ('b.txt', 'y')], {'a.txt': '5', 'b.txt': '100'})
    assert source.class_names == ['x', 'y']
    assert len(source) == 2
    record = source[0]
    assert (record.name, record.label, record.num_frames, record.frame_size) == ('a.txt', 0, 5, (4, 6))
    assert (record.seconds, record.codec) == (0.2, 'text')
    assert frames_of(record) == [0, 1, 2, 3, 4]
    with pytest.raises(IndexError, match=r'texts: index 2 must be in \[0, 2\)'):
        source[2]


@pytest.mark.parametrize(
    ('start', 'end', 'first', 'last'),
    [
        (0, 4, 0, 99),
        (1, 2, 25, 49),
        (0.99, 2.01, 25, 50),
        (1.04, 1.08, 26, 26),  # exactly one frame's time
        (1.041, 1.05, 27, 27),  # between two frames: the one that follows
        (3.97, 9, 99, 99),  # after the last frame began
        (2, 100, 50, 99),
    ],
)
def test_a_segment_in_seconds(opened, start, end, first, last):
    source = opened(('path', 'label', 'start', 'end'), [('a.txt', 'x', start, end)], {'a.txt': '100'})
    record = source[0]
    assert frames_of(record) == list(range(first, last + 1))
    assert record.seconds == pytest.approx((last - first + 1) / RATE)
    if start:
        assert record.name == f'a.txt#t={start:g},{end:g}'


def test_segments_of_one_file_are_looked_into_once(opened):
    asked = []
    noting = Kind(
        name='texts',
        endings=('.txt',),
        probe=lambda path: asked.append(path) or probe(path),
        read=read,
        times=times,
    )
    rows = [('a.txt', 'x', 0, 1), ('a.txt', 'y', 1, 2), ('a.txt', 'x', 2, 3)]
    source = opened(('path', 'label', 'start', 'end'), rows, {'a.txt': '100'}, kind=noting)
    assert [frames_of(source[index])[0] for index in range(3)] == [0, 25, 50]
    assert len({source[index].name for index in range(3)}) == 3
    assert len(asked) == 1


def test_what_is_past_the_end_is_left_out_and_said(opened):
    rows = [('a.txt', 'x', 3.9, 5), ('a.txt', 'x', 4.0, 5), ('a.txt', 'x', 3.9, '')]
    source = opened(('path', 'label', 'start', 'end'), rows, {'a.txt': '100'})
    assert len(source) == 2
    ((name, cause),) = source.bad
    assert name == 'a.txt#t=4,5'
    assert cause == 'begins at 4 s, but the file ends at 4.000 s (train.csv, line 3)'


def test_files_that_cannot_be_used_are_left_out_and_said(opened):
    rows = [('a.txt', 'x'), ('b.txt', 'x'), ('none.txt', 'y')]
    source = opened(('path', 'label'), rows, {'a.txt': '3', 'b.txt': 'is torn'})
    assert [source[0].name, len(source)] == ['a.txt', 1]
    assert source.bad == [
        ('b.txt', 'is torn (train.csv, line 3)'),
        ('none.txt', 'no such file (train.csv, line 4)'),
    ]
    assert source.class_names == ['x', 'y']


def test_nothing_usable_is_an_empty_source(opened):
    source = opened(('path', 'label'), [('b.txt', 'x')], {'b.txt': 'is torn'})
    assert len(source) == 0
    assert len(source.bad) == 1


def test_time_needs_a_clock(opened):
    rows, texts = [('a.txt', 'x', 1, 2)], {'a.txt': '100'}
    source = opened(('path', 'label', 'start', 'end'), rows, texts, kind=TIMELESS)
    assert source.bad[0][1] == 'begins at 1 s, but pages have no time (train.csv, line 2)'
    with pytest.raises(ValueError, match=r'^config.data.fps=10: pages have no time; set it to 0$'):
        opened(('path', 'label'), [('a.txt', 'x')], texts, kind=TIMELESS, fps=10.0)


def test_a_clock_past_belief_is_said(opened):
    slow = Kind(name='texts', endings=('.txt',), probe=forever, read=read, times=times)
    source = opened(('path', 'label'), [('a.txt', 'x')], {'a.txt': '10'}, kind=slow, fps=10.0)
    assert (
        source.bad[0][1]
        == 'claims to last 1e+09 s, which are more than 10,000,000 frames at data.fps=10 (train.csv, line 2)'
    )
    assert len(opened(('path', 'label'), [('a.txt', 'x')], {'a.txt': '10'}, kind=slow)) == 1


def forever(path):
    return Found(num_frames=10, frame_size=(4, 6), seconds=1e9, codec='text')


@pytest.mark.parametrize(
    ('fps', 'frames'),
    [
        (25.0, list(range(10))),
        (5.0, [0, 5]),
        (12.5, [0, 2, 4, 6, 8]),
        (50.0, [frame // 2 for frame in range(20)]),
        (10.0, [0, 2, 5, 7]),  # at 0, 0.1, 0.2, 0.3 s, each frame 0.04 s
        (1.0, [0]),
    ],
)
def test_frames_by_time(opened, fps, frames):
    source = opened(('path', 'label'), [('a.txt', 'x')], {'a.txt': '10'}, fps=fps)
    record = source[0]
    assert frames_of(record) == frames
    assert record.seconds == pytest.approx(len(frames) / fps)


def test_frames_by_time_of_a_segment(opened):
    header = ('path', 'label', 'start', 'end')
    source = opened(header, [('a.txt', 'x', 1, 2)], {'a.txt': '100'}, fps=5.0)
    assert frames_of(source[0]) == [25, 30, 35, 40, 45]


def test_frames_by_time_of_a_variable_rate(opened):
    late = Kind(name='texts', endings=('.txt',), probe=probe, read=read, times=every_other_late)
    # Shown at 0, 55, 80, 135, 160 ms…: at 40 ms still frame 0, at 120 ms still frame 2.
    source = opened(('path', 'label'), [('a.txt', 'x')], {'a.txt': '6'}, kind=late, fps=25.0)
    assert frames_of(source[0])[:5] == [0, 0, 2, 2, 4]


def test_a_rate_covers_a_duration_once():
    """However frames and times fall, the count is the duration's and frames never go back."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        shown = np.sort(rng.uniform(0, 9, size=rng.integers(1, 60)))
        fps = rng.uniform(0.5, 60)
        frames = at_rate(shown, 0, len(shown), fps)
        last = (shown[-1] - shown[0]) / (len(shown) - 1) if len(shown) > 1 else 1 / fps
        assert len(frames) == max(math.ceil((shown[-1] - shown[0] + last) * fps - 1e-9), 1)
        assert frames[0] == 0
        assert np.all(np.diff(frames) >= 0)
        assert frames[-1] < len(shown)


def test_a_part_by_frames(opened, monkeypatch):
    source = opened(('path', 'label'), [('a.txt', 'x')], {'a.txt': '100'})
    found = probe_of(100)
    for entry, frames in (
        (Entry(path='a.txt', label=0, first=10, stop=13), [10, 11, 12]),
        (Entry(path='a.txt', label=0, first=98), [98, 99]),
        (Entry(path='a.txt', label=0, first=98, stop=200), [98, 99]),
    ):
        source._examples = [(entry, found)]
        assert frames_of(source[0]) == frames
    assert source[0].name == 'a.txt#frames=98,200'


def probe_of(count):
    return Found(num_frames=count, frame_size=(4, 6), seconds=count / RATE, codec='text')


def test_sources_and_records_travel(opened):
    source = opened(('path', 'label'), [('a.txt', 'x')], {'a.txt': '30'}, fps=5.0)
    again = pickle.loads(pickle.dumps(source))
    assert frames_of(pickle.loads(pickle.dumps(again[0]))) == frames_of(source[0])


def test_the_digest_tells_examples_apart(opened):
    header, texts = ('path', 'label'), {'a.txt': '30', 'b.txt': '40', 'c.txt': '30'}
    open_rows = functools.partial(opened, header)
    rows = [('a.txt', 'x'), ('b.txt', 'y')]
    same = open_rows(rows, texts).digest
    assert open_rows(rows, texts).digest == same
    for other in ([rows[0]], rows[::-1], [('a.txt', 'y'), ('b.txt', 'x')], [('c.txt', 'x'), ('b.txt', 'y')]):
        assert open_rows(other, texts).digest != same
    assert open_rows(rows, texts | {'b.txt': '41'}).digest != same
    assert open_rows(rows, texts | {'b.txt': 'torn'}).digest != same
