import numpy as np
import pytest
from PIL import Image

from vivit_jax.data.resample import linear_weights, resample


@pytest.mark.parametrize(('old', 'new'), [(7, 7), (7, 19), (19, 7), (5, 4), (4, 5), (64, 3), (1, 6), (6, 1)])
@pytest.mark.parametrize(('start', 'share'), [(0.0, 1.0), (0.3, 0.6), (0.25, 0.1)])
def test_it_is_pillows_bilinear(old, new, start, share):
    samples = np.random.default_rng(old).normal(size=old).astype(np.float32)
    box = (start * old, 0, (start + share) * old, 1)
    expected = np.asarray(
        Image.fromarray(samples[np.newaxis]).resize((new, 1), Image.Resampling.BILINEAR, box)
    )
    weights = linear_weights(old, new, start=start * old, length=share * old)
    # Pillow keeps a box's corners in single precision.
    np.testing.assert_allclose(weights @ samples, expected[0], atol=2e-5)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)


def test_as_many_samples_stay_what_they_are():
    np.testing.assert_array_equal(linear_weights(9, 9).toarray(), np.eye(9))
    # Without a length it is the rest; whole samples of it are samples.
    np.testing.assert_array_equal(linear_weights(9, 3, start=2, length=3).toarray(), np.eye(9)[2:5])
    np.testing.assert_array_equal(linear_weights(9, 4, start=5).toarray(), np.eye(9)[5:])


def test_half_as_many_samples_by_hand():
    # Triangles over four samples of weights 1, 3, 3, 1; cut off at the border.
    expected = [[3 / 7, 3 / 7, 1 / 7, 0], [0, 1 / 7, 3 / 7, 3 / 7]]
    np.testing.assert_allclose(linear_weights(4, 2).toarray(), expected, rtol=1e-6)


@pytest.mark.parametrize('axis', range(3))
def test_one_axis_of_several(axis):
    values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    weights = linear_weights(values.shape[axis], 3)
    resampled = resample(values, weights, axis)
    letters = 'abc'
    expected = np.einsum(
        f'x{letters[axis]},abc->{letters.replace(letters[axis], "x")}', weights.toarray(), values
    )
    assert resampled.dtype == np.float32
    np.testing.assert_allclose(resampled, expected, atol=1e-6)
