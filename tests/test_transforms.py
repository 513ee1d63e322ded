import colorsys

import cv2
import numpy as np
import pytest

from vivit_jax.data import transforms
from vivit_jax.data.clips import clip_views
from vivit_jax.data.randaugment import RandAugment
from vivit_jax.data.transforms import (
    CentreCrop,
    ColourDrop,
    ColourJitter,
    RandomCrop,
    RandomFlip,
    ResizeShortSide,
    apply,
    spatial_views,
    training_transforms,
)

OFF = {
    'short_side': 0, 'crop': (6, 10), 'scale_jitter': (1.0, 1.0), 'flip': 0.0, 'colour_jitter': 0.0,
    'colour_drop': 0.0, 'randaugment_layers': 0, 'randaugment_magnitude': 0.0,
}  # fmt: skip
PAPER = OFF | {
    'short_side': 40, 'crop': (30, 36), 'scale_jitter': (0.9, 1.33), 'flip': 0.5, 'colour_jitter': 0.8,
    'colour_drop': 0.1,
}  # fmt: skip


def places(t, h, w):
    """A clip whose pixels say where they are: (t, y, x)."""
    return np.stack(np.meshgrid(*map(np.arange, (t, h, w)), indexing='ij'), axis=-1).astype(np.uint8)


def noise(t, h, w, c=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (t, h, w, c), dtype=np.uint8)


def still(t, h, w):
    return noise(1, h, w).repeat(t, axis=0)


def rng(seed=0):
    return np.random.default_rng(seed)


# Views and crops.


def test_four_temporal_views_by_three_crops_by_hand():
    video = places(20, 8, 12)
    first_and_last = [
        [
            (crop[0, 0, 0].tolist(), crop[-1, -1, -1].tolist())
            for crop in spatial_views(video[clip], (4, 6), 3)
        ]
        for clip in clip_views(20, frames=4, stride=2, views=4)
    ]
    assert first_and_last == [
        [([0, 2, 0], [6, 5, 5]), ([0, 2, 3], [6, 5, 8]), ([0, 2, 6], [6, 5, 11])],
        [([4, 2, 0], [10, 5, 5]), ([4, 2, 3], [10, 5, 8]), ([4, 2, 6], [10, 5, 11])],
        [([8, 2, 0], [14, 5, 5]), ([8, 2, 3], [14, 5, 8]), ([8, 2, 6], [14, 5, 11])],
        [([13, 2, 0], [19, 5, 5]), ([13, 2, 3], [19, 5, 8]), ([13, 2, 6], [19, 5, 11])],
    ]


@pytest.mark.parametrize(
    ('frame', 'size', 'corners'),
    [
        ((12, 8), (6, 4), [(0, 2), (3, 2), (6, 2)]),  # upright: top, centre, bottom
        ((8, 8), (4, 4), [(2, 0), (2, 2), (2, 4)]),  # square: left to right
        ((7, 9), (4, 4), [(1, 0), (1, 2), (1, 5)]),  # half pixels towards 0
        ((6, 9), (6, 9), [(0, 0), (0, 0), (0, 0)]),
    ],
)
def test_spatial_views(frame, size, corners):
    clip = places(2, *frame)
    views = spatial_views(clip, size, 3)
    assert views.shape == (3, 2, *size, 3)
    for view, (y, x) in zip(views, corners, strict=True):
        np.testing.assert_array_equal(view, clip[:, y : y + size[0], x : x + size[1]])
    centre = spatial_views(clip, size, 1)
    np.testing.assert_array_equal(centre, views[1:2])
    np.testing.assert_array_equal(centre[0], CentreCrop(size=size)(clip, rng()))


def test_random_crop_reaches_every_position_equally():
    clip, crop = places(3, 6, 9), RandomCrop(size=(4, 7))
    generator, counts = rng(), np.zeros((3, 3), int)
    for _ in range(1800):
        window = crop(clip, generator)
        y, x = window[0, 0, 0, 1:]
        np.testing.assert_array_equal(window, clip[:, y : y + 4, x : x + 7])
        counts[y, x] += 1
    assert counts.min() > 140  # 200 expected, standard deviation 13
    assert counts.max() < 260


def test_flip():
    clip = noise(2, 3, 5)
    np.testing.assert_array_equal(RandomFlip(probability=1.0)(clip, rng()), clip[:, :, ::-1])
    np.testing.assert_array_equal(RandomFlip(probability=0.0)(clip, rng()), clip)
    generator, flip = rng(), RandomFlip(probability=0.3)
    flipped = sum((flip(clip, generator) != clip).any() for _ in range(1000))
    assert 240 < flipped < 360


# Resizing.


@pytest.mark.parametrize(
    ('frame', 'size', 'minimum', 'expected'),
    [
        ((240, 320), 256, (224, 224), (256, 341)),  # 320 * 256 / 240 = 341.33
        ((320, 240), 256, (224, 224), (341, 256)),
        ((480, 640), 240, (1, 1), (240, 320)),
        ((100, 100), 64, (64, 96), (96, 96)),  # enlarged, keeping the aspect ratio, for a wide crop
        ((8, 20), 4, (16, 16), (16, 40)),
    ],
)
def test_resize_short_side(frame, size, minimum, expected):
    for clip in (noise(2, *frame), noise(2, *frame, c=1).astype(np.float32) / 127.5 - 1):
        resized = ResizeShortSide(size=size, minimum=minimum)(clip, rng())
        assert resized.shape == (2, *expected, clip.shape[-1])
        assert resized.dtype == clip.dtype
        assert resized.min() >= clip.min()
        assert resized.max() <= clip.max()


def test_resize_leaves_the_right_size_alone():
    clip = noise(2, 20, 30)
    assert ResizeShortSide(size=20)(clip, rng()) is clip


def test_resize_averages_when_shrinking_and_interpolates_when_growing():
    clip = np.array([[0, 4, 10, 20], [8, 4, 30, 40]], np.uint8).reshape(1, 2, 4, 1)
    assert ResizeShortSide(size=1)(clip, rng()).ravel().tolist() == [4, 25]
    ramp = np.array([0, 100], np.float32).reshape(1, 1, 2, 1)
    doubled = ResizeShortSide(size=2)(ramp, rng())
    np.testing.assert_allclose(doubled[0, :, :, 0], [[0, 25, 75, 100]] * 2)


def test_scale_jitter_covers_its_range_in_both_directions():
    clip, generator = noise(1, 20, 20, c=1), rng()
    jitter = ResizeShortSide(size=100, jitter=(0.9, 1.33), minimum=(10, 10))
    sizes = np.array([jitter(clip, generator).shape[1:3] for _ in range(1000)])
    assert sizes.min(axis=0).tolist() == [90, 90]
    assert (sizes.max(axis=0) >= 132).all()
    assert (np.abs(sizes.mean(axis=0) - 111) < 2).all()
    assert abs(np.corrcoef(sizes.T)[0, 1]) < 0.1  # height and width are drawn apart
    least = ResizeShortSide(size=100, jitter=(0.5, 0.5), minimum=(70, 80))
    assert least(clip, generator).shape[1:3] == (70, 80)


def test_pixels_are_resized_once(monkeypatch):
    calls, resize = [], cv2.resize
    monkeypatch.setattr(transforms.cv2, 'resize', lambda *a, **k: calls.append(1) or resize(*a, **k))
    apply(training_transforms(**PAPER), noise(5, 50, 60), rng())
    assert len(calls) == 5  # once a frame


# Colours.


def colour_jitter_by_hand(frames, seed):
    """DMVR's steps with the standard library's HSV, pixel by pixel; the draws are the transform's."""
    draws = rng(seed)
    draws.random()
    image = np.clip(frames / 255 + draws.uniform(-32 / 255, 32 / 255), 0, 1)

    def hsv(image, change):
        pixels = (colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*p))) for p in image.reshape(-1, 3))
        return np.array(list(pixels)).reshape(image.shape)

    saturation, contrast = draws.uniform(0.6, 1.4), draws.uniform(0.6, 1.4)
    image = hsv(image, lambda h, s, v: (h, min(s * saturation, 1), v))
    mean = image.mean(axis=(1, 2), keepdims=True)
    image = np.clip((image - mean) * contrast + mean, 0, 1)
    turn = draws.uniform(-0.2, 0.2)
    return hsv(image, lambda h, s, v: ((h + turn) % 1, s, v)) * 255


@pytest.mark.parametrize('seed', range(8))
def test_colour_jitter_by_hand(seed):
    clip = noise(3, 6, 7)
    jittered = ColourJitter(probability=1.0)(clip, rng(seed))
    # Half a level from rounding to uint8, and float32's error in the hue of nearly grey pixels.
    np.testing.assert_allclose(jittered, colour_jitter_by_hand(clip, seed), atol=0.51)
    assert (jittered != clip).any()


def test_colour_jitter_draws_as_often_as_asked_and_over_its_range():
    grey = np.full((1, 2, 2, 3), 128, np.uint8)  # only the brightness can change it
    generator, jitter = rng(), ColourJitter(probability=0.8)
    values = np.array([jitter(grey, generator)[0, 0, 0, 0] for _ in range(2000)], int)
    assert 0.17 < np.mean(values == 128) < 0.25  # 0.2 untouched, and brightness changes below half a level
    assert values.min() in (96, 97)
    assert values.max() in (159, 160)


def test_colour_drop():
    clip = noise(3, 6, 7)
    grey = ColourDrop(probability=1.0)(clip, rng())
    expected = clip @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(grey, expected[..., np.newaxis].repeat(3, axis=-1), atol=0.51)
    generator, drop = rng(), ColourDrop(probability=0.1)
    assert 70 < sum((drop(clip, generator) != clip).any() for _ in range(1000)) < 130


# All together.


@pytest.mark.parametrize('options', [PAPER, PAPER | {'randaugment_layers': 2, 'randaugment_magnitude': 15.0}])
def test_all_frames_share_the_draw_and_the_generator_decides(options):
    chain, clip = training_transforms(**options), still(4, 50, 60)
    seen = []
    for seed in range(12):
        augmented = apply(chain, clip, rng(seed))
        assert augmented.shape == (4, 30, 36, 3)
        assert augmented.dtype == np.uint8
        assert augmented.flags.c_contiguous
        assert (augmented == augmented[:1]).all()
        np.testing.assert_array_equal(augmented, apply(chain, clip, rng(seed)))
        seen.append(augmented.tobytes())
    assert len(set(seen)) == 12


def test_what_is_switched_off_is_left_out():
    assert training_transforms(**OFF) == (RandomCrop(size=(6, 10)),)
    assert training_transforms(**PAPER | {'randaugment_layers': 2, 'randaugment_magnitude': 20.0}) == (
        ResizeShortSide(size=40, jitter=(0.9, 1.33), minimum=(30, 36)),
        RandomCrop(size=(30, 36)),
        RandomFlip(probability=0.5),
        RandAugment(layers=2, magnitude=20.0),
        ColourJitter(probability=0.8),
        ColourDrop(probability=0.1),
    )


def test_geometry_takes_scans():
    scan = rng().uniform(-1, 1, (4, 20, 24, 1)).astype(np.float32)
    chain = training_transforms(**PAPER | {'colour_jitter': 0.0, 'colour_drop': 0.0})
    augmented = apply(chain, scan, rng())
    assert augmented.shape == (4, 30, 36, 1)
    assert augmented.dtype == np.float32
    assert np.abs(augmented).max() <= 1


@pytest.mark.parametrize(
    'transform',
    [ColourJitter(probability=0.5), ColourDrop(probability=0.5), RandAugment(layers=1, magnitude=5.0)],
)
@pytest.mark.parametrize(
    ('clip', 'what'),
    [
        (np.zeros((2, 4, 4, 1), np.uint8), 'uint8 of 1'),
        (np.zeros((2, 4, 4, 3), np.float32), 'float32 of 3'),
    ],
)
def test_colour_needs_colours(transform, clip, what):
    with pytest.raises(
        ValueError, match=f'^colour augmentation needs uint8 frames of 3 channels, got {what}:'
    ):
        transform(clip, rng())


def test_errors_name_values_and_choices():
    small = noise(2, 20, 30)
    message = r'^a crop of 24x24 does not fit into frames of 20x30 \(height x width\): '
    for crop in (RandomCrop(size=(24, 24)), CentreCrop(size=(24, 24))):
        with pytest.raises(ValueError, match=message):
            crop(small, rng())
    with pytest.raises(ValueError, match=message):
        spatial_views(small, (24, 24), 3)
    with pytest.raises(ValueError, match=r'^spatial views=2 must be one of: 1, 3$'):
        spatial_views(small, (20, 20), 2)
    with pytest.raises(ValueError, match=r'^flip=1\.5 must be a probability'):
        training_transforms(**OFF | {'flip': 1.5})
    with pytest.raises(ValueError, match=r'^colour_drop=-0\.1 must be a probability'):
        training_transforms(**OFF | {'colour_drop': -0.1})
    with pytest.raises(ValueError, match=r'^scale_jitter=\(0\.9, 1\.33\) needs short_side above 0'):
        training_transforms(**OFF | {'scale_jitter': (0.9, 1.33)})
    with pytest.raises(ValueError, match=r'^scale jitter \(1\.3, 0\.9\) must be \(low, high\)'):
        training_transforms(**PAPER | {'scale_jitter': (1.3, 0.9)})
    with pytest.raises(ValueError, match=r'^RandAugment magnitude=-1\.0 must be at least 0'):
        training_transforms(**OFF | {'randaugment_layers': 1, 'randaugment_magnitude': -1.0})
