import itertools

import numpy as np
import pytest
from PIL import Image

from vivit_jax.data import volume_transforms
from vivit_jax.data.transforms import apply
from vivit_jax.data.volume_transforms import (
    RandomAffine,
    RandomFlips,
    RandomIntensity,
    RandomResizedCrop,
    RandomTurns,
)

OFF = {
    'size': (8, 8, 8),
    'videos': False,
    'flip': (0.0, 0.0, 0.0),
    'rotate90': (0.0, 0.0, 0.0),
    'affine': 0.0,
    'rotation': (10.0, 10.0, 10.0),
    'scale': (0.9, 1.1),
    'translation': 0.05,
    'resized_crop': (1.0, 1.0),
    'intensity_scale': 0.0,
    'intensity_shift': 0.0,
    'noise': 0.0,
}


class Drawn(np.random.Generator):
    """Draws what it is told: places in the range of `uniform` in [0, 1], one after another."""

    def __init__(self, *places):
        super().__init__(np.random.PCG64(0))
        self.places = list(places)

    def random(self, size=None):
        return np.zeros(size) if size else 0.0

    def uniform(self, low=0.0, high=1.0, size=None):
        place = np.asarray(self.places.pop(0), float)
        assert place.shape == (() if size is None else (size,))
        return low + place * (high - low)


def noise(shape=(8, 8, 8, 1), dtype=np.uint8):
    values = np.random.default_rng(3).integers(0, 256, shape, np.uint8)
    return values if dtype == np.uint8 else values.astype(np.float32) / 127.5 - 1


def outcomes(transform, clip, draws=300):
    rng = np.random.default_rng(0)
    return {apply([transform], clip, rng).tobytes() for _ in range(draws)}


# --- Mirroring and turning ---


@pytest.mark.parametrize('axis', range(3))
def test_one_axis_is_mirrored(axis):
    clip = noise((3, 4, 5, 2))
    probabilities = tuple(float(other == axis) for other in range(3))
    flipped = RandomFlips(probabilities=probabilities)(clip, np.random.default_rng(0))
    np.testing.assert_array_equal(flipped, np.flip(clip, axis))


def test_axes_are_mirrored_independently():
    clip = noise((3, 4, 5, 1))
    axes = itertools.chain.from_iterable(itertools.combinations(range(3), count) for count in range(4))
    expected = {np.flip(clip, chosen).tobytes() for chosen in axes}
    assert len(expected) == 8
    assert outcomes(RandomFlips(probabilities=(0.5, 0.5, 0.5)), clip) == expected


@pytest.mark.parametrize(('axis', 'plane'), [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
def test_turns_about_one_axis(axis, plane):
    clip = noise()
    probabilities = tuple(float(other == axis) for other in range(3))
    expected = {np.rot90(clip, quarters, plane).tobytes() for quarters in (1, 2, 3)}
    assert outcomes(RandomTurns(probabilities=probabilities), clip) == expected


def test_turns_reach_every_position_of_a_cube_and_no_mirror_image():
    clip = noise()
    found = outcomes(RandomTurns(probabilities=(0.75, 0.75, 0.75)), clip, draws=1000)
    assert len(found) == 24
    assert clip.tobytes() in found
    assert np.flip(clip, 0).tobytes() not in found


# --- Affine maps ---


def affine(**changed):
    still = {'probability': 1.0, 'rotation': (0.0, 0.0, 0.0), 'scale': (1.0, 1.0), 'translation': 0.0}
    return RandomAffine(**(still | changed))


HALF = [0.5, 0.5, 0.5]  # no rotation, no shift


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_an_affine_map_that_does_nothing(dtype):
    clip = noise((4, 6, 5, 3), dtype)
    moved = affine()(clip, np.random.default_rng(0))
    assert moved.dtype == dtype
    np.testing.assert_array_equal(moved, clip)
    assert affine(probability=0.0, scale=(2.0, 2.0))(clip, np.random.default_rng(0)) is clip


@pytest.mark.parametrize(('axis', 'plane'), [(0, (1, 2)), (1, (0, 2)), (2, (0, 1))])
def test_a_quarter_turn_about_each_axis(axis, plane):
    clip = noise()
    angles = [90.0 if other == axis else 0.0 for other in range(3)]
    turned = affine(rotation=tuple(angles))(clip, Drawn([1.0, 1.0, 1.0], 0.5, HALF))
    back = affine(rotation=tuple(angles))(clip, Drawn([0.0, 0.0, 0.0], 0.5, HALF))
    assert {turned.tobytes(), back.tobytes()} == {np.rot90(clip, k, plane).tobytes() for k in (1, 3)}


def test_scale_is_about_the_centre():
    place = np.arange(9, dtype=np.float32) / 8 - 0.5
    clip = np.broadcast_to(place[:, None, None, None], (9, 9, 9, 1)).copy()
    larger = affine(scale=(2.0, 2.0))(clip, Drawn(HALF, 0.5, HALF))
    np.testing.assert_allclose(larger[:, 4, 4, 0], place / 2, atol=1e-6)
    smaller = affine(scale=(0.5, 0.5))(clip, Drawn(HALF, 0.5, HALF))
    # What lies outside repeats the border.
    np.testing.assert_allclose(smaller[:, 4, 4, 0], np.clip(2 * place, -0.5, 0.5), atol=1e-6)


def test_a_shift_of_whole_voxels_and_of_half_a_voxel():
    clip = noise((8, 8, 8, 1))
    moved = affine(translation=0.25)(clip, Drawn(HALF, 0.5, [1.0, 0.5, 0.5]))
    np.testing.assert_array_equal(moved, clip[[0, 0, 0, 1, 2, 3, 4, 5]])
    moved = affine(translation=0.25)(clip, Drawn(HALF, 0.5, [0.5, 0.5, 0.0]))
    np.testing.assert_array_equal(moved, clip[:, :, [2, 3, 4, 5, 6, 7, 7, 7]])
    pair = np.array([0, 255, 100, 100], np.uint8).reshape(1, 1, 4, 1)
    half = affine(translation=0.125)(pair, Drawn(HALF, 0.5, [0.5, 0.5, 1.0]))
    assert half[0, 0, :, 0].tolist() == [0, 128, 178, 100]  # 127.5 and 177.5, rounded up


# --- Resized crops ---


def test_a_resized_crop_is_pillows_along_each_axis():
    clip = noise((7, 6, 5, 1), np.float32)
    lengths, starts = np.array([0.5, 0.7, 0.9]), np.array([0.2, 0.5, 1.0])
    cropped = RandomResizedCrop(shares=(0.001, 1.0))(clip, Drawn((lengths - 0.001) / 0.999, starts))
    assert cropped.dtype == np.float32
    expected = clip[..., 0]
    for axis, side in enumerate((7, 6, 5)):
        rows = np.moveaxis(expected, axis, -1)
        start = starts[axis] * (side - lengths[axis] * side)
        flat = np.ascontiguousarray(rows.reshape(-1, side))
        box = (start, 0, start + lengths[axis] * side, len(flat))
        resized = Image.fromarray(flat).resize((side, len(flat)), Image.Resampling.BILINEAR, box)
        expected = np.moveaxis(np.asarray(resized).reshape(rows.shape), -1, axis)
    np.testing.assert_allclose(cropped[..., 0], expected, atol=1e-5)


def test_a_resized_crop_of_everything_and_of_bytes():
    clip = noise((4, 5, 6, 3))
    whole = RandomResizedCrop(shares=(1.0, 1.0))(clip, np.random.default_rng(0))
    np.testing.assert_array_equal(whole, clip)
    part = RandomResizedCrop(shares=(0.5, 0.5))(clip, np.random.default_rng(0))
    assert (part.dtype, part.shape) == (np.uint8, clip.shape)
    assert part.min() > clip.min()
    assert part.max() < clip.max()


# --- Intensities ---


def test_intensities_of_bytes_by_hand():
    clip = np.array([0, 101, 202, 250], np.uint8).reshape(1, 1, 4, 1)
    brighter = RandomIntensity(scale=0.2, shift=0.1)(clip, Drawn(1.0, 0.0, 0.0))
    # 1.2 v - 25.5, rounded and cut off
    assert brighter.dtype == np.uint8
    assert brighter.ravel().tolist() == [0, 96, 217, 255]


def test_intensities_of_floats_are_those_of_bytes():
    clip = noise((4, 4, 4, 1), np.float32)
    changed = RandomIntensity(scale=0.2, shift=0.1)(clip, Drawn(1.0, 0.0, 0.0))
    assert changed.dtype == np.float32
    expected = np.clip(1.2 * (clip + 1) / 2 - 0.1, 0, 1) * 2 - 1
    np.testing.assert_allclose(changed, expected, atol=1e-6)


@pytest.mark.parametrize(('dtype', 'unit'), [(np.uint8, 255), (np.float32, 2)])
def test_noise_has_its_deviation(dtype, unit):
    clip = np.full((32, 32, 32, 1), 128 if dtype == np.uint8 else 0, dtype)
    noisy = RandomIntensity(noise=0.1)(clip, Drawn(0.5, 0.5, 0.5))
    assert noisy.dtype == dtype
    # Half of the largest; the deviation of 32,768 draws is known to 0.4 %.
    assert noisy.std() / unit == pytest.approx(0.05, rel=0.02)
    assert abs(float(noisy.mean()) - clip.flat[0]) / unit < 0.001


def test_the_input_stays_as_it_was():
    clip = noise()
    before = clip.copy()
    chain = volume_transforms.volume_transforms(
        **(OFF | {'affine': 1.0, 'resized_crop': (0.7, 1.0), 'intensity_shift': 0.3, 'noise': 0.1})
    )
    assert (apply(chain, clip, np.random.default_rng(0)) != before).any()
    np.testing.assert_array_equal(clip, before)


# --- Put together ---


def test_all_off_is_nothing_and_all_on_is_in_order():
    assert volume_transforms.volume_transforms(**OFF) == ()
    on = {
        'flip': (0.5, 0.0, 0.0),
        'rotate90': (0.5, 0.0, 0.0),
        'affine': 0.5,
        'resized_crop': (0.8, 1.0),
        'noise': 0.1,
    }
    chain = volume_transforms.volume_transforms(**(OFF | on))
    kinds = [RandomFlips, RandomTurns, RandomAffine, RandomResizedCrop, RandomIntensity]
    assert [type(transform) for transform in chain] == kinds
    assert chain[2] == RandomAffine(
        probability=0.5, rotation=(10.0, 10.0, 10.0), scale=(0.9, 1.1), translation=0.05
    )
    for number, name in enumerate(on):
        alone = volume_transforms.volume_transforms(**(OFF | {name: on[name]}))
        assert alone == (chain[number],)
    first, again = (apply(chain, noise(), np.random.default_rng((5, 7))) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_shape_and_dtype_stay_whatever_is_drawn(dtype):
    on = {'flip': (0.5, 0.5, 0.5), 'rotate90': (0.5, 0.5, 0.5), 'affine': 0.5, 'resized_crop': (0.8, 1.0)}
    chain = volume_transforms.volume_transforms(**(OFF | on | {'intensity_scale': 0.1, 'noise': 0.1}))
    for seed in range(20):
        changed = apply(chain, noise(dtype=dtype), np.random.default_rng(seed))
        assert (changed.dtype, changed.shape) == (dtype, (8, 8, 8, 1))
        assert changed.flags.c_contiguous


@pytest.mark.parametrize(
    ('changed', 'message'),
    [
        ({'flip': (0.5, 1.5, 0.0)}, 'flip=(0.5, 1.5, 0.0): must be probabilities, in [0, 1]'),
        ({'rotate90': (-0.5, 0.0, 0.0)}, 'rotate90=(-0.5, 0.0, 0.0): must be probabilities, in [0, 1]'),
        ({'affine': 2.0}, 'affine=2.0: must be probabilities, in [0, 1]'),
        ({'rotation': (-1.0, 0.0, 0.0)}, 'rotation=(-1.0, 0.0, 0.0): must be degrees of at least 0'),
        ({'scale': (1.1, 0.9)}, 'scale=(1.1, 0.9): must be (low, high) with 0 < low <= high'),
        ({'translation': 1.0}, 'translation=1.0: must be a share, in [0, 1)'),
        ({'resized_crop': (0.5, 1.5)}, 'resized_crop=(0.5, 1.5): must be (low, high) with 0 < low <= high <= 1'),
        ({'intensity_scale': 1.0}, 'intensity_scale=1.0: must be in [0, 1)'),
        ({'intensity_shift': -0.1}, 'intensity_shift=-0.1: must be in [0, 1)'),
        ({'noise': 3.0}, 'noise=3.0: must be in [0, 1)'),
        ({'size': (8, 6, 6), 'rotate90': (0.5, 0.5, 0.0)}, 'rotate90=(0.5, 0.5, 0.0): about height only where '
         'depth and width are equally long, but they are 8 and 6'),
        ({'videos': True, 'rotate90': (0.5, 0.0, 0.0)}, 'rotate90=(0.5, 0.0, 0.0) would mix time with space: it is '
         'for volumes (data.source medmnist or volumes); flip, intensity_scale, intensity_shift and noise go with '
         'videos, too'),
        ({'videos': True, 'affine': 0.5}, 'affine=0.5 would mix '),
        ({'videos': True, 'resized_crop': (0.5, 1.0)}, 'resized_crop=(0.5, 1.0) would mix '),
    ],
)  # fmt: skip
def test_what_does_not_go(changed, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared as plain text below
        volume_transforms.volume_transforms(**(OFF | changed))
    assert str(caught.value).startswith(f'config.data.volume_augment.{message}')


def test_what_goes_with_videos_and_other_shapes():
    on = {'size': (8, 6, 6), 'rotate90': (0.5, 0.0, 0.0)}
    assert len(volume_transforms.volume_transforms(**(OFF | on))) == 1
    on = {'size': (8, 6, 4), 'videos': True, 'flip': (0.0, 0.0, 0.5), 'noise': 0.1}
    assert len(volume_transforms.volume_transforms(**(OFF | on))) == 2
