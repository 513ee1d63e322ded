"""The order of an epoch: every example once, or every class equally often."""

import pickle

import numpy as np
import pytest

from vivit_jax.data.sampling import Order

SKEWED = np.array([0] * 20 + [1] * 3 + [7] * 2)


def test_uniform_has_every_example_once_in_another_order_each_epoch():
    order = Order(25, seed=0)
    assert sorted(order(0)) == sorted(order(1)) == list(range(25))
    assert list(order(0)) != list(order(1))
    assert list(order(0)) != list(Order(25, seed=1)(0))


def test_balanced_has_every_class_equally_often():
    for epoch in range(4):
        chosen = Order(25, 0, SKEWED)(epoch)
        counts = np.bincount(SKEWED[chosen], minlength=8)
        assert sorted(counts[[0, 1, 7]]) == [8, 8, 9]
        assert counts.sum() == len(chosen) == 25
        # Within a class examples come equally often too, to one.
        for name in (0, 1, 7):
            times = np.bincount(chosen, minlength=25)[name == SKEWED]
            assert times.max() - times.min() <= 1


def test_balanced_reaches_everything_in_time():
    order = Order(25, 0, SKEWED)
    assert set(np.concatenate([order(epoch) for epoch in range(12)])) == set(range(25))


def test_more_classes_than_examples_of_an_epoch_share():
    chosen = Order(3, 0, np.array([4, 5, 6]))(0)
    assert sorted(chosen) == [0, 1, 2]


@pytest.mark.parametrize('classes', [None, SKEWED])
def test_an_order_is_a_function_of_seed_and_epoch(classes):
    order = Order(25, 3, classes)
    expected = [order(epoch).copy() for epoch in range(20)]
    again = pickle.loads(pickle.dumps(order))
    for epoch in reversed(range(20)):
        np.testing.assert_array_equal(again(epoch), expected[epoch])
