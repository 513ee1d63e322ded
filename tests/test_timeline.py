"""What a model says of a video over time, drawn: the right classes, where they belong."""

import cv2
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from vivit_jax.predict.timeline import COLOURS, MOST_TRACKS, Track, Tracks, draw, leading

NAMES = ['_a', '$b_$1', 'c' * 50]


def rows_of(picture, colour):
    """Rows of a PNG that have pixels of a colour, left of the legend."""
    pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)[:, :700, ::-1]
    wanted = np.round(np.array(to_rgb(colour)) * 255)
    return np.flatnonzero((np.abs(pixels - wanted).max(2) < 8).any(1))


def columns_of(picture, colour):
    pixels = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)[:, :700, ::-1]
    wanted = np.round(np.array(to_rgb(colour)) * 255)
    return np.flatnonzero((np.abs(pixels - wanted).max(2) < 8).any(0))


def track(probabilities, **options):
    starts = np.arange(len(probabilities), dtype=float)
    settings = {'title': '$x_y', 'class_names': NAMES} | options
    return Track(starts=starts, ends=starts + 1, probabilities=np.array(probabilities, float), **settings)


def test_leading_classes():
    probabilities = np.array([[0.5, 0.04, 0.1], [0.1, 0.04, 0.9]])
    assert leading(probabilities) == [2, 0]  # the other never reaches a twentieth
    assert leading(np.full((2, 100), 0.01)) == [0]
    assert leading(np.tile(np.linspace(0.1, 0.9, 20), (3, 1))) == [19, 18, 17, 16, 15, 14]


def test_lines_are_where_probabilities_are():
    picture = draw([track([[1, 0.5, 0], [1, 0.5, 0], [1, 0.5, 0]])])
    top, middle = rows_of(picture, COLOURS[0]), rows_of(picture, COLOURS[1])
    assert top.max() < middle.min()
    assert not len(rows_of(picture, COLOURS[2]))
    columns = columns_of(picture, COLOURS[0])
    assert (
        columns.max() - columns.min() > 500
    )  # from the beginning of the first window to the end of the last


def test_a_class_has_one_colour_in_all_tracks():
    two = draw([track([[0, 1, 0]]), track([[0, 0.1, 0.9]])])
    # The first class's lines are at the top of one track and at the bottom of the other, the second's between them.
    first, second = rows_of(two, COLOURS[0]), rows_of(two, COLOURS[1])
    assert first.min() < second.min()
    assert second.max() < first.max()


def test_a_picture_of_files(tmp_path):
    tracks = Tracks({'noun': slice(0, 2), 'verb': slice(2, 5)}, [*NAMES, 'd', 'e'])
    path = tmp_path / 'out.png'
    tracks.write(path)
    assert not path.exists()
    shares = np.array([0.7, 0.3, 0.2, 0.3, 0.5])
    tracks.add('a#t=1.mp4#t=1,2', '/a', (1.0, 2.0), shares)
    tracks.add('a#t=1.mp4#t=0,1', '/a', (0.0, 1.0), shares)
    tracks.write(path)
    one = cv2.imread(str(path))
    for place in range(MOST_TRACKS + 2):
        tracks.add(f'{place}.mp4#t=0,1', f'/{place}', (0.0, 1.0), shares)
    with pytest.warns(UserWarning, match=rf'out\.png shows the first {MOST_TRACKS} files, not 3 more$'):
        tracks.write(path)
    many = cv2.imread(str(path))
    assert one.shape == (420, 1000, 3)  # of two heads
    assert many.shape == (40 + 190 * MOST_TRACKS, 1000, 3)
