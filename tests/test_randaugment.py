import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from vivit_jax.data.randaugment import OPERATIONS, VIDEO_OPERATIONS, RandAugment

GREY = (128, 128, 128)
HEIGHT, WIDTH = 40, 56


def frames():
    """Frames that differ in what matters to the operations: noise, a narrow range, one value, smooth colours."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    smooth = np.stack([x * 4, y * 6, 127 + 100 * np.sin(x / 6 + y / 9)], axis=-1).astype(np.uint8)
    return np.stack(
        [
            rng.integers(0, 256, smooth.shape, dtype=np.uint8),
            rng.integers(90, 140, smooth.shape, dtype=np.uint8),
            np.full_like(smooth, 77),
            smooth,
            rng.choice(np.array([0, 3, 250], np.uint8), smooth.shape, p=[0.1, 0.1, 0.8]),
        ]
    )


def solarize_add(image, value):
    return image.point([min(v + value, 255) if v < 128 else v for v in range(256)] * 3)


def cutout(image, value):
    half, y, x = value[0], int(value[1] * HEIGHT), int(value[2] * WIDTH)
    image = image.copy()
    image.paste(GREY, (max(0, x - half), max(0, y - half), min(WIDTH, x + half), min(HEIGHT, y + half)))
    return image


def affine(*matrix):
    return lambda image: image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY
    )


EXACT = {
    'identity': (lambda image, value: image, [None]),
    'auto_contrast': (lambda image, value: ImageOps.autocontrast(image), [None]),
    'equalize': (lambda image, value: ImageOps.equalize(image), [None]),
    'invert': (lambda image, value: ImageOps.invert(image), [None]),
    'posterize': (ImageOps.posterize, range(1, 9)),
    'solarize': (ImageOps.solarize, [0, 1, 100, 128, 255, 256]),
    'solarize_add': (solarize_add, [0, 55, 110, 165, 220]),
    'colour': (
        lambda image, value: ImageEnhance.Color(image).enhance(value),
        [0.0, 0.1, 0.64, 1.0, 1.9, 3.7],
    ),
    'contrast': (lambda image, value: ImageEnhance.Contrast(image).enhance(value), [0.1, 1.0, 1.9, 2.8, 3.7]),
    'brightness': (lambda image, value: ImageEnhance.Brightness(image).enhance(value), [0.1, 1.0, 1.9, 3.7]),
    'sharpness': (lambda image, value: ImageEnhance.Sharpness(image).enhance(value), [0.1, 1.0, 1.9, 3.7]),
    'cutout': (cutout, [(0, 0.5, 0.5), (8, 0.5, 0.25), (20, 0.0, 0.99), (80, 0.7, 0.3)]),
}
GEOMETRIC = {
    'rotate': (
        lambda image, value: image.rotate(value, Image.Resampling.BILINEAR, fillcolor=GREY),
        [-60.0, -30.0, -3.0, 0.0, 12.5, 45.0],
    ),
    'shear_x': (lambda image, value: affine(1, value, 0, 0, 1, 0)(image), [-0.6, -0.1, 0.0, 0.3]),
    'shear_y': (lambda image, value: affine(1, 0, 0, value, 1, 0)(image), [-0.6, -0.1, 0.0, 0.3]),
    'translate_x': (lambda image, value: affine(1, 0, value, 0, 1, 0)(image), [-50.0, -2.5, 0.0, 7.0, 60.0]),
    'translate_y': (lambda image, value: affine(1, 0, 0, 0, 1, value)(image), [-39.0, -2.5, 0.0, 7.0, 60.0]),
}


def by_pillow(operation, value):
    return np.stack([np.asarray(operation(Image.fromarray(frame), value)) for frame in frames()])


def test_every_operation_is_compared():
    assert EXACT.keys() | GEOMETRIC.keys() == OPERATIONS.keys()
    # Scenic's list for videos leaves out geometry, and so do we unless asked.
    assert set(VIDEO_OPERATIONS) == set(EXACT)


@pytest.mark.parametrize('name', EXACT)
def test_equals_pillow(name):
    pillow, values = EXACT[name]
    for value in values:
        np.testing.assert_array_equal(OPERATIONS[name][0](frames(), value), by_pillow(pillow, value))


@pytest.mark.parametrize('name', GEOMETRIC)
def test_equals_pillow_but_for_interpolation(name):
    # Both interpolate in floats; Pillow rounds differently at the end. OpenCV 4 first rounds coordinates to 1/32 of
    # a pixel, so along each axis it can be off by 1/64 of the largest difference between neighbours.
    tolerance = 1 if int(cv2.__version__.split('.')[0]) >= 5 else 1 + 2 * 255 // 64
    pillow, values = GEOMETRIC[name]
    for value in values:
        moved, expected = OPERATIONS[name][0](frames(), value), by_pillow(pillow, value)
        np.testing.assert_allclose(moved, expected.astype(int), rtol=0, atol=tolerance)
        np.testing.assert_array_equal(
            moved[2] == 128, expected[2] == 128
        )  # what is filled, in the plain frame


@pytest.mark.parametrize('name', OPERATIONS)
def test_an_operation_keeps_its_input_and_treats_frames_alike(name):
    operation, draw = OPERATIONS[name]
    clip = frames()[[3, 3, 0, 3]]
    before, value = clip.copy(), draw(0.9, np.random.default_rng(2))
    result = operation(clip, value)
    np.testing.assert_array_equal(clip, before)
    assert result.shape == clip.shape
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result[0], result[1])
    # Its neighbours do not matter to a frame.
    np.testing.assert_array_equal(result, np.concatenate([operation(f[np.newaxis], value) for f in clip]))


@pytest.mark.parametrize(
    ('name', 'at_0', 'at_10', 'at_15', 'at_20'),
    [
        ('posterize', 1, 4, 6, 8),
        ('solarize', 0, 256, 256, 256),
        ('solarize_add', 0, 110, 165, 220),
        ('colour', 0.1, 1.9, 2.8, 3.7),
        ('contrast', 0.1, 1.9, 2.8, 3.7),
        ('brightness', 0.1, 1.9, 2.8, 3.7),
        ('sharpness', 0.1, 1.9, 2.8, 3.7),
        ('rotate', 0, 30, 45, 60),
        ('shear_x', 0, 0.3, 0.45, 0.6),
        ('shear_y', 0, 0.3, 0.45, 0.6),
        ('translate_x', 0, 100, 150, 200),
        ('translate_y', 0, 100, 150, 200),
    ],
)
def test_magnitudes(name, at_0, at_10, at_15, at_20):
    rng, draw = np.random.default_rng(0), OPERATIONS[name][1]
    for magnitude, expected in ((0, at_0), (10, at_10), (15, at_15), (20, at_20)):
        drawn = {draw(magnitude / 10, rng) for _ in range(20)}
        signed = name in GEOMETRIC
        assert sorted(drawn) == pytest.approx(sorted({expected, -expected}) if signed else [expected])


def test_cutout_lands_anywhere():
    rng, draw = np.random.default_rng(0), OPERATIONS['cutout'][1]
    drawn = [draw(1.5, rng) for _ in range(200)]
    assert {half for half, _, _ in drawn} == {60}
    centres = np.array(drawn)[:, 1:]
    assert centres.min() < 0.02
    assert 0.98 < centres.max() < 1
    assert abs(np.corrcoef(centres.T)[0, 1]) < 0.2


def test_layers_follow_one_another():
    clip = frames()
    for layers, expected in ((0, clip), (1, 255 - clip), (2, clip), (3, 255 - clip)):
        invert = RandAugment(layers=layers, magnitude=9.0, operations=('invert',))
        np.testing.assert_array_equal(invert(clip, np.random.default_rng(0)), expected)


def test_operations_are_drawn_uniformly():
    rng, clip = np.random.default_rng(0), frames()[:1, :4, :4]
    augment = RandAugment(layers=1, magnitude=9.0, operations=('identity', 'invert', 'posterize'))
    results = [augment(clip, rng).tobytes() for _ in range(900)]
    assert len(set(results)) == 3
    assert min(map(results.count, set(results))) > 240


@pytest.mark.parametrize('operations', [VIDEO_OPERATIONS, tuple(OPERATIONS)])
def test_one_draw_a_clip(operations):
    still = np.repeat(frames()[3:4], 3, axis=0)
    augment = RandAugment(layers=2, magnitude=15.0, operations=operations)
    seen = set()
    for seed in range(40):
        result = augment(still, np.random.default_rng(seed))
        assert (result == result[:1]).all()
        np.testing.assert_array_equal(result, augment(still, np.random.default_rng(seed)))
        seen.add(result.tobytes())
    assert len(seen) > 20


def test_mirrored_views_are_read_rightly():
    clip = frames()
    for seed in range(10):
        results = [
            RandAugment(layers=3, magnitude=9.0)(c, np.random.default_rng(seed))
            for c in (clip[:, :, ::-1], np.ascontiguousarray(clip[:, :, ::-1]))
        ]
        np.testing.assert_array_equal(*results)


def test_errors_name_values_and_choices():
    with pytest.raises(
        ValueError, match=r"^RandAugment operation 'Rotate' must be one of: identity, auto_contrast"
    ):
        RandAugment(layers=2, magnitude=9.0, operations=('invert', 'Rotate'))
    with pytest.raises(ValueError, match=r'^RandAugment layers=-1 must be at least 0$'):
        RandAugment(layers=-1, magnitude=9.0)
    with pytest.raises(ValueError, match=r'^RandAugment magnitude=-0\.5 must be at least 0$'):
        RandAugment(layers=2, magnitude=-0.5)
