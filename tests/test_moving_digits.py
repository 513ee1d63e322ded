import itertools
import pickle

import numpy as np
import pytest

from vivit_jax.data.moving_digits import DIGITS, DIRECTIONS, MovingDigits, load_digits

ALL = np.arange(16)


def videos(split, size, **options):
    source = MovingDigits(split, size=size, **options)
    records = [source[i] for i in range(size)]
    indices = np.arange(source[0].num_frames)
    return np.stack([r.read(indices) for r in records]), np.array([r.label for r in records])


def displacement(first, second):
    """The (y, x) shift of a torus that matches two frames best, in [-16, 16)."""
    spectra = np.conj(np.fft.fft2(first)) * np.fft.fft2(second)
    peak = np.unravel_index(np.fft.ifft2(spectra).real.argmax(), first.shape)
    return tuple((int(p) + 16) % 32 - 16 for p in peak)


def test_record():
    source = MovingDigits('validation', size=10)
    record = source[9]
    assert len(source) == 10
    assert source.class_names == [
        'right', 'down-right', 'down', 'down-left', 'left', 'up-left', 'up', 'up-right',
    ]  # fmt: skip
    assert (record.name, record.label, record.num_frames) == ('validation/000009', 1, 16)
    assert record.frame_size == (32, 32)
    frames = record.read(ALL)
    assert frames.shape == (16, 32, 32, 1)
    assert frames.dtype == np.uint8


def test_the_embedded_digits():
    digits = load_digits()
    assert digits.shape == (1797, 8, 8)
    assert (digits.min(), digits.max()) == (0, 255)
    # The first line of the file: a nought, whose values 5, 13, 9, 1 become 80, 207, 143, 16.
    assert digits[0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]


def test_other_lengths_and_canvases():
    frames, _ = videos('train', 3, frames=5, canvas=11)
    assert frames.shape == (3, 5, 11, 11, 1)


def test_motion_tells_the_label():
    frames, labels = videos('test', 256)
    directions, seen = list(DIRECTIONS.values()), set()
    for video, label in zip(frames[..., 0].astype(float), labels, strict=True):
        shifts = {displacement(a, b) for a, b in itertools.pairwise(video)}
        assert len(shifts) == 1  # constant within a clip
        shift = shifts.pop()
        assert tuple(np.sign(shift)) == directions[label]
        seen.add(max(map(abs, shift)))
    assert seen == {1, 2}  # pixels a frame
    assert np.bincount(labels).tolist() == [32] * 8


def test_the_torus_wraps():
    frames, _ = videos('train', 200)
    mass = frames.sum(axis=(2, 3, 4), dtype=np.int64)
    np.testing.assert_array_equal(mass, mass[:, :1].repeat(16, axis=1))  # nothing is ever cut off
    crossing = (frames[:, :, 0].any(axis=(2, 3))) & (frames[:, :, -1].any(axis=(2, 3)))
    assert 0.1 < crossing.mean() < 0.4  # at most 7 of 32 rows, less the digits' empty margins


def test_a_single_frame_says_nothing():
    def single(split, size):
        frames, labels = videos(split, size)
        return frames[:, 7].reshape(size, -1) / 255, labels

    (train, train_labels), (test, test_labels) = single('train', 2000), single('test', 2000)
    weights = np.linalg.solve(train.T @ train + 10 * np.eye(1024), train.T @ np.eye(8)[train_labels])
    accuracy = np.mean((test @ weights).argmax(axis=1) == test_labels)
    assert 0.09 < accuracy < 0.16  # chance is 0.125, its standard deviation 0.0074


def test_splits_share_no_digit():
    used = [set(digits) for digits in DIGITS.values()]
    assert sorted(set.union(*used)) == list(range(1797))
    assert sum(map(len, used)) == 1797
    # What the clips show comes from their own split: the digit at the first frame is in its list and in no other.
    images = load_digits()
    for split, digits in DIGITS.items():
        allowed = {np.sort(images[i], axis=None).tobytes() for i in digits}
        frames, _ = videos(split, 100, frames=1)
        shown = {np.sort(video, axis=None)[-64:].tobytes() for video in frames}
        assert shown <= allowed


def test_shuffled_and_still_are_the_test_clips():
    ordered, labels = videos('test', 40)
    shuffled, shuffled_labels = videos('test_shuffled', 40)
    still, still_labels = videos('test_still', 40)
    np.testing.assert_array_equal(labels, shuffled_labels)
    np.testing.assert_array_equal(labels, still_labels)
    chosen = []
    for video, mixed, frozen in zip(ordered, shuffled, still, strict=True):
        assert sorted(f.tobytes() for f in video) == sorted(f.tobytes() for f in mixed)
        assert (video != mixed).any()
        assert (frozen == frozen[0]).all()
        matches = [i for i, frame in enumerate(video) if (frame == frozen[0]).all()]
        assert matches
        chosen.append(matches[0])
    assert len(set(chosen)) > 5  # not always the same frame


def test_clips_are_a_function_of_seed_split_and_index():
    first, second = MovingDigits('train', size=50, seed=3), MovingDigits('train', size=80, seed=3)
    forwards = [first[i].read(ALL) for i in range(50)]
    backwards = [second[i].read(ALL) for i in reversed(range(50))][::-1]
    np.testing.assert_array_equal(forwards, backwards)
    copied = pickle.loads(pickle.dumps(first))[7]  # as it travels to another process
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(copied)).read(ALL), forwards[7])
    for other in (videos('train', 50, seed=4)[0], videos('validation', 50, seed=3)[0]):
        assert all((a != b).any() for a, b in zip(forwards, other, strict=True))


@pytest.mark.parametrize('split', ['test', 'test_shuffled', 'test_still'])
def test_only_the_frames_asked_for(split):
    record = MovingDigits(split, size=5)[3]
    asked = np.array([9, 0, 9, 15])
    np.testing.assert_array_equal(record.read(asked), record.read(ALL)[asked])


def test_errors():
    choices = 'train, validation, test, test_shuffled, test_still'
    with pytest.raises(ValueError, match=f"^moving digits have no split 'valid': choose one of {choices}$"):
        MovingDigits('valid', size=5)
    with pytest.raises(ValueError, match='canvas=7 must be at least 8'):
        MovingDigits('train', size=5, canvas=7)
    with pytest.raises(ValueError, match='size=0 must be at least 1'):
        MovingDigits('train', size=0)
    with pytest.raises(IndexError, match=r'index 5 must be in \[0, 5\)'):
        MovingDigits('train', size=5)[5]
