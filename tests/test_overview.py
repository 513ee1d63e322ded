"""What is said of a data set: counted by hand."""

import dataclasses

import numpy as np
import pytest

from vivit_jax.data.moving_digits import MovingDigits
from vivit_jax.data.overview import class_counts, headed, most_common, overview, shortened, spread, survey
from vivit_jax.data.record import Record


def no_pixels(indices):
    raise AssertionError('an overview reads no pixels')


@dataclasses.dataclass
class Listed:
    """A source of (label, frames, seconds, size, codec)."""

    rows: list
    class_names: tuple = ('run', 'jump', 'wave')
    bad: tuple = ()
    note: str = ''
    digest: str = ''

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        label, frames, seconds, size, codec = self.rows[index]
        return Record(
            name=f'{index}.mp4',
            label=label,
            num_frames=frames,
            frame_size=size,
            read=no_pixels,
            seconds=seconds,
            codec=codec,
        )


LARGE, SMALL = (720, 1280), (240, 320)
TRAIN = Listed(
    [
        (0, 50, 2.0, SMALL, 'h264'),
        (0, 75, 3.0, SMALL, 'h264'),
        (1, 500, 20.0, LARGE, 'h264'),
        (0, 100, 4.0, SMALL, 'vp9'),
    ],
    bad=(('a.mp4', 'is empty'), ('b.mp4', 'no video in it')),
    note='no split is given',
)
VALIDATION = Listed([(1, 250, 10.0, SMALL, 'h264')], note='no split is given')


def test_a_line_a_split_and_what_is_amiss():
    assert overview({'train': TRAIN, 'validation': VALIDATION}) == [
        'train: 4 examples, 3 classes of 0 to 3 (median 1) each, 2 to 20 s (median 3.5) long, '
        '320x240 (75%) and 1280x720 (25%), h264 (75%) and vp9 (25%)',
        'validation: 1 examples, 3 classes of 0 to 1 (median 0) each, 10 s long, 320x240, h264',
        'no split is given',
        'train has no example of wave',
        'validation has no example of run, wave',
        '2 of 6 examples of train left out: a.mp4 (is empty), b.mp4 (no video in it)',
    ]


def test_examples_without_time_and_without_files():
    assert overview({'train': MovingDigits('train', size=16)}) == [
        'train: 16 examples, 8 classes of 2 each, 16 frames, 32x32'
    ]


def test_of_many_examples_some_are_looked_at():
    source = MovingDigits('train', size=1001)
    seen = survey(source, most=11)
    assert (len(seen.labels), seen.total) == (11, 1001)
    assert seen.labels == [source[100 * place].label for place in range(11)]
    # Nothing is said of classes, which may hide among the others.
    assert overview({'train': source}, most=3) == [
        'train: 1,001 examples, 8 classes, 16 frames, 32x32, by 3 of them'
    ]


def test_an_empty_split_is_no_error():
    assert (
        overview({'train': TRAIN, 'test': Listed([])})[1] == 'test: 0 examples, 3 classes of 0 each, 0 frames'
    )


@pytest.mark.parametrize(
    ('labels', 'head_sizes', 'expected'),
    [
        ([2, 0, 2], (), [1, 0, 2, 0, 0]),
        ([(0, 1), (2, 0), (2, 1)], (3, 2), [1, 0, 2, 1, 2]),
        ([(1.0, 0.0, 0.0, 0.0, 1.0), (1.0, 0.0, 1.0, 0.0, 0.0)], (), [2, 0, 1, 0, 1]),
        ([], (), [0, 0, 0, 0, 0]),
    ],
)
def test_class_counts(labels, head_sizes, expected):
    np.testing.assert_array_equal(class_counts(labels, 5, head_sizes), expected)


def test_classes_tell_their_head_where_there_are_several():
    source = Listed([((0, 1), 50, 2.0, SMALL, 'h264')], class_names=('0', '1', '0', '1'))
    told = overview({'train': source}, head_sizes=(2, 2), heads=('noun', 'verb'))
    assert told[1:] == ['train has no example of noun: 1, verb: 0']
    assert overview({'train': source}, head_sizes=(2, 2))[1:] == ['train has no example of 1, 0']
    assert headed(['run', 'walk'], (2,), ('label',)) == ['run', 'walk']


def test_a_shard_that_is_lost_counts_its_examples():
    source = dataclasses.replace(TRAIN, bad=(('train-00000-of-00002', 'no such file'),))
    source.lost = 12
    assert overview({'train': source})[-1] == (
        '12 of 16 examples of train left out: train-00000-of-00002 (no such file)'
    )


def test_words():
    assert spread(np.array([3, 1234.4, 10])) == '3 to 1,234 (median 10)'
    assert spread(np.array([7, 7]), ' s') == '7 s'
    assert shortened(['a', 'b', 'c']) == 'a, b, c'
    assert shortened(['a', 'b', 'c', 'd', 'e'], 2) == 'a, b and 3 more'
    assert most_common(['h264', 'vp9', 'h264', 'av1', 'h264', '']) == 'h264 (60%) and vp9 (20%) and 1 more'
    assert most_common(['', '']) == ''
