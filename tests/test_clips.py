import pathlib
import subprocess
import sys

import numpy as np
import pytest

import vivit_jax
from vivit_jax.data.clips import clip_views, random_clip


def starts(num_frames, frames, stride, draws):
    rng = np.random.default_rng(0)
    return [random_clip(num_frames, frames=frames, stride=stride, rng=rng)[0] for _ in range(draws)]


def test_four_views_by_hand():
    # The last start is 19 - 3 * 2 = 13, so the views start at 0, 13/3 = 4.33, 26/3 = 8.67 and 13.
    views = clip_views(20, frames=4, stride=2, views=4)
    assert views.tolist() == [[0, 2, 4, 6], [4, 6, 8, 10], [8, 10, 12, 14], [13, 15, 17, 19]]
    assert views.dtype == np.int64


def test_one_view_is_the_centre():
    assert clip_views(20, frames=4, stride=2, views=1).tolist() == [[6, 8, 10, 12]]
    assert clip_views(21, frames=5, stride=1, views=1).tolist() == [[8, 9, 10, 11, 12]]


@pytest.mark.parametrize('views', [2, 3, 4, 7, 10])
def test_views_reach_both_ends_evenly(views):
    for num_frames in range(32, 232):
        indices = clip_views(num_frames, frames=32, stride=1, views=views)
        gaps = np.diff(indices[:, 0])
        assert indices[0, 0] == 0
        assert indices[-1, -1] == num_frames - 1
        assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    ('short', 'expected'), [('repeat_last', [0, 2, 4, 4, 4, 4]), ('loop', [0, 2, 4, 1, 3, 0])]
)
def test_clips_longer_than_the_video(short, expected):
    rng = np.random.default_rng(0)
    assert random_clip(5, frames=6, stride=2, rng=rng, short=short).tolist() == expected
    assert clip_views(5, frames=6, stride=2, views=3, short=short).tolist() == [expected] * 3


def test_a_clip_as_long_as_the_video_has_one_start():
    assert set(starts(7, frames=4, stride=2, draws=20)) == {0}
    assert clip_views(7, frames=4, stride=2, views=2).tolist() == [[0, 2, 4, 6]] * 2


def test_every_start_is_equally_likely():
    counts = np.bincount(starts(20, frames=4, stride=2, draws=7000))
    assert len(counts) == 14  # 0 to 13, the last that fits
    assert counts.min() > 400  # 500 expected, standard deviation 21.5
    assert counts.max() < 600


def test_random_clip_is_a_function_of_the_generator():
    first, second = (random_clip(300, frames=32, stride=2, rng=np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(np.diff(first), 2)


def test_errors_name_value_and_choices():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"^short='mirror' must be one of: repeat_last, loop$"):
        random_clip(5, frames=2, stride=1, rng=rng, short='mirror')
    with pytest.raises(ValueError, match=r'^num_frames=0 must be at least 1$'):
        random_clip(0, frames=2, stride=1, rng=rng)
    with pytest.raises(ValueError, match=r'^frames=0 '):
        clip_views(5, frames=0, stride=1, views=1)
    with pytest.raises(ValueError, match=r'^stride=-1 '):
        clip_views(5, frames=2, stride=-1, views=1)
    with pytest.raises(ValueError, match=r'^views=0 '):
        clip_views(5, frames=2, stride=1, views=0)


@pytest.mark.parametrize('module', ['clips', 'transforms', 'randaugment', 'moving_digits'])
def test_worker_modules_do_not_import_jax(module):
    root = pathlib.Path(vivit_jax.__file__).parents[1]
    code = (
        f'import sys, vivit_jax.data.{module}; print(sorted({{"jax", "jaxlib", "flax"}} & set(sys.modules)))'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[]'
