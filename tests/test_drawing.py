"""Pictures of clips: which pixel is which, and that files hold what was drawn."""

import itertools

import av
import cv2
import numpy as np
import pytest

from vivit_jax import drawing


def frames_of(count=5, height=6, width=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), np.uint8)


def decoded(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def test_as_rgb():
    colour, grey = frames_of(), frames_of(channels=1)
    np.testing.assert_array_equal(drawing.as_rgb(colour), colour)
    np.testing.assert_array_equal(drawing.as_rgb(grey), np.concatenate([grey] * 3, axis=-1))
    four = frames_of(channels=4)
    np.testing.assert_array_equal(drawing.as_rgb(four), np.concatenate([four[..., :1]] * 3, axis=-1))
    scaled = grey.astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(drawing.as_rgb(scaled), np.concatenate([grey] * 3, axis=-1))
    outside = np.array([-3, -1, 0, 1, 3], np.float32).reshape(1, 1, 5, 1)
    np.testing.assert_array_equal(drawing.as_rgb(outside)[0, 0, :, 0], [0, 0, 128, 255, 255])
    with pytest.raises(ValueError, match='frames of int64 cannot be drawn'):
        drawing.as_rgb(grey.astype(np.int64))


def test_filmstrip_has_the_frames_in_order():
    frames = frames_of(6)
    strip = drawing.filmstrip(frames, columns=3, height=6, rows=2)
    assert strip.shape == (6 + 3 + 6, 8 + 3 + 8 + 3 + 8, 3)
    for number, (row, column) in enumerate(itertools.product(range(2), range(3))):
        np.testing.assert_array_equal(strip[9 * row :, 11 * column :][:6, :8], frames[number])
    gaps = strip.copy()
    for row, column in itertools.product(range(2), range(3)):
        gaps[9 * row : 9 * row + 6, 11 * column : 11 * column + 8] = 255
    assert (gaps == 255).all()


def test_filmstrip_takes_frames_evenly():
    frames = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    strip = drawing.filmstrip(frames, columns=3, height=4)
    np.testing.assert_array_equal(strip[0, [0, 7, 14], 0], [0, 4, 8])
    assert drawing.filmstrip(frames[:2], columns=8, height=4, rows=2).shape == (4, 11, 3)


def test_pixels_stay_visible_where_small_frames_grow():
    frame = frames_of(1)
    strip = drawing.filmstrip(frame, columns=1, height=18)
    np.testing.assert_array_equal(strip, frame[0].repeat(3, 0).repeat(3, 1))


def test_no_heat_leaves_the_frame():
    frames = frames_of()
    none = np.zeros(frames.shape[:3], np.float32)
    np.testing.assert_array_equal(drawing.overlay(frames, none), frames)
    full = np.ones_like(none)
    np.testing.assert_array_equal(drawing.overlay(frames, full, strength=0.0), frames)
    np.testing.assert_array_equal(drawing.overlay(frames, full, strength=1.0), drawing.colours(full))


def test_heat_is_where_it_is_given():
    frames = np.full((2, 4, 4, 1), 100, np.uint8)
    heat = np.zeros((2, 4, 4), np.float32)
    heat[1, 2, 3] = 0.25
    changed = (drawing.overlay(frames, heat, strength=0.8) != 100).any(-1)
    np.testing.assert_array_equal(changed, heat > 0)
    # A quarter of heat has half of the strength.
    expected = (100 * 0.6 + 0.4 * drawing.colours(heat)[1, 2, 3]).round()
    np.testing.assert_array_equal(drawing.overlay(frames, heat, strength=0.8)[1, 2, 3], expected)


def test_more_heat_is_lighter():
    colours = drawing.colours(np.linspace(0, 1, 50, dtype=np.float32)).astype(np.float64)
    lightness = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) > 0).all()
    assert lightness[0] > 40


@pytest.mark.parametrize('smooth', [False, True])
def test_spread_puts_tokens_at_their_pixels(smooth):
    tokens = np.random.default_rng(0).random((2, 3, 4)).astype(np.float32)
    pixels = drawing.spread(tokens, (2, 3, 5), (5, 10, 22), smooth)
    assert pixels.shape == (5, 10, 22)
    inside = pixels[:4, :9, :20]
    assert not pixels[4:].any()
    assert not pixels[:, 9:].any()
    assert not pixels[:, :, 20:].any()
    # The middle of a token has its number.
    np.testing.assert_allclose(inside[::2, 1::3, 2::5], tokens, rtol=1e-6)
    np.testing.assert_array_equal(inside[::2], inside[1::2])
    if not smooth:
        np.testing.assert_array_equal(inside, tokens.repeat(2, 0).repeat(3, 1).repeat(5, 2))
    assert inside.min() >= tokens.min() - 1e-6
    assert inside.max() <= tokens.max() + 1e-6


def test_image_files():
    image = frames_of(1, 32, 48)[0]
    np.testing.assert_array_equal(decoded(drawing.png(image)), image)
    smooth = cv2.resize(image[:4, :6], (48, 32), interpolation=cv2.INTER_LINEAR)
    fine, coarse = drawing.jpeg(smooth, 95), drawing.jpeg(smooth, 20)
    assert len(coarse) < len(fine)
    assert fine[:2] == b'\xff\xd8'
    assert np.abs(decoded(fine).astype(int) - smooth).mean() < 4


@pytest.mark.parametrize('ending', ['gif', 'mp4'])
def test_animations(tmp_path, ending):
    """Every frame is there, in order, at its time; the odd last row and column of a video are not."""
    frames = np.full((7, 31, 45, 3), 20, np.uint8)
    for number, frame in enumerate(frames):
        frame[:, 6 * number : 6 * number + 6] = (240, 120, 30)
    path = tmp_path / f'animation.{ending}'
    write = {'gif': drawing.write_gif, 'mp4': drawing.write_mp4}[ending]
    write(path, frames, 5)
    with av.open(path) as container:
        played = [(frame.time, frame.to_ndarray(format='rgb24')) for frame in container.decode(video=0)]
    np.testing.assert_allclose([time for time, _ in played], np.arange(7) / 5, atol=1e-6)
    height, width = (31, 45) if ending == 'gif' else (30, 44)
    for (_, shown), frame in zip(played, frames, strict=True):
        assert shown.shape == (height, width, 3)
        assert np.abs(shown.astype(int) - frame[:height, :width]).mean() < 6
    if ending == 'gif':
        assert b'NETSCAPE2.0\x03\x01\x00\x00' in path.read_bytes()  # plays without end


def test_a_sheet_has_frames_and_words_where_they_are_put(tmp_path):
    sheet = drawing.Sheet(100, 60)
    frame = frames_of(1, 5, 5)[0]
    sheet.picture(10, 20, frame, (10, 10))
    sheet.box(40, 20, 20, 10, '#ff0000')
    assert sheet.text(5, 2, 'a name that has no room at all', 60, size=8) <= 60
    path = tmp_path / 'sheet.png'
    sheet.write(path)
    image = decoded(path.read_bytes())
    assert image.shape == (120, 200, 3)
    np.testing.assert_array_equal(image[40:60, 20:40], frame.repeat(4, 0).repeat(4, 1))
    assert (image[42:58, 82:118] == (255, 0, 0)).all()
    assert (image[4:24, 10:130] < 128).any()
    assert (image[:, 135:] == 255)[:30].all()
    assert (image[70:] == 255).all()


@pytest.mark.parametrize(
    ('sides', 'room', 'expected'),
    [((32, 32), (50, 50), (48, 48)), ((480, 640), (110, 100), (75, 100)), ((28, 28), (20, 99), (20, 20))],
)
def test_fit(sides, room, expected):
    assert drawing.fit(sides, room) == expected
