"""The names of splits, and how one is drawn."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from vivit_jax.data.listing.splits import draw_validation, in_order, split_name


@pytest.mark.parametrize(
    ('text', 'name'),
    [
        ('train', 'train'),
        ('Training', 'train'),
        ('val', 'validation'),
        ('valid', 'validation'),
        ('validate', 'validation'),
        ('DEV', 'validation'),
        ('testing', 'test'),
        ('holdout', 'holdout'),
        ('Fold 3', 'Fold 3'),
    ],
)
def test_names(text, name):
    assert split_name(text) == name


def test_order():
    assert in_order(['b', 'test', 'a', 'train', 'validation', 'a']) == (
        'train',
        'validation',
        'test',
        'a',
        'b',
    )


def drawn(groups, classes, share=0.2, seed=0):
    chosen = draw_validation(groups, classes, share=share, seed=seed)
    return {group for group, is_so in zip(groups, chosen, strict=True) if is_so}


def lowest(names, count, seed=0):
    """The names whose hashes are lowest, worked out apart."""

    def digest(name):
        return hashlib.blake2b(f'{seed}/{name}'.encode(), digest_size=16).hexdigest()

    return set(sorted(names, key=digest)[:count])


def test_the_share_of_every_class_is_drawn_by_hash():
    names = {'a': [f'a/{i}.mp4' for i in range(10)], 'b': [f'b/{i}.mp4' for i in range(33)]}
    files = names['a'] + names['b']
    classes = [file[0] for file in files]
    for seed in (0, 7):
        assert drawn(files, classes, seed=seed) == lowest(names['a'], 2, seed) | lowest(names['b'], 7, seed)
    assert drawn(files, classes, seed=0) != drawn(files, classes, seed=7)


@pytest.mark.parametrize(
    ('n', 'share', 'count'),
    [
        (1, 0.9, 0),
        (2, 0.01, 1),
        (2, 0.99, 1),
        (3, 0.2, 1),
        (5, 0.2, 1),
        (8, 0.2, 2),
        (10, 0.99, 9),
        (20, 0.5, 10),
    ],
)
def test_at_least_one_and_never_all(n, share, count):
    assert len(drawn([f'{i}' for i in range(n)], [3] * n, share=share)) == count


def test_the_order_does_not_matter():
    rng = np.random.default_rng(0)
    groups = [f'subject {i % 13}' for i in range(200)]
    classes = [int(label) for label in rng.integers(0, 4, 200)]
    expected = drawn(groups, classes)
    for _ in range(5):
        order = rng.permutation(200)
        assert drawn([groups[i] for i in order], [classes[i] for i in order]) == expected


def test_one_more_file_moves_at_most_one_other():
    files = [f'{i}.mp4' for i in range(100)]
    before = drawn(files, [0] * 100)
    after = drawn([*files, 'new.mp4'], [0] * 101)
    assert len(before) == len(after) == 20
    assert len(before - after) <= 1
    assert len(after - before) <= 1


def test_groups_stay_whole():
    groups = [f'subject {i // 10}' for i in range(100)]
    chosen = drawn(groups, [0] * 100)
    assert chosen == lowest(set(groups), 2)  # 2 groups of 10 are the 20 of 100
    # Of 5, 5 and 10 examples the share is 4: one of the small groups is nearest, the large one is too much.
    sizes = {'a': 5, 'b': 5, 'c': 10}
    groups = [name for name, size in sizes.items() for _ in range(size)]
    for seed in range(10):
        assert drawn(groups, [0] * 20, seed=seed) in ({'a'}, {'b'})


def test_groups_of_several_classes():
    # Every subject shows both classes twice: two of ten subjects are the share of both.
    groups = [f'{subject}' for subject in range(10) for _ in range(4)]
    classes = [kind for _ in range(10) for kind in (0, 0, 1, 1)]
    assert drawn(groups, classes) == lowest(set(groups), 2)


def test_no_group_is_small_enough():
    groups = ['a'] * 10 + [
        'b'
    ] * 9  # the share is 4, and both are nearer to nothing than to it; one it must be
    assert drawn(groups, [0] * 19) == {'b'}  # 5 too many instead of 6


def test_training_keeps_some_of_every_class():
    groups = ['a', 'a', 'b', 'b', 'c', 'c']  # only group c shows class 1
    for seed in range(10):
        assert drawn(groups, [0, 0, 0, 0, 1, 0], seed=seed) in ({'a'}, {'b'})
    assert drawn(['a', 'a', 'a'], [0, 0, 0]) == set()
    assert drawn(['a', 'b'], [0, 1]) == set()
    assert drawn([], []) == set()


def test_every_process_draws_alike():
    code = (
        'from vivit_jax.data.listing.splits import draw_validation\n'
        'print(draw_validation([str(i) for i in range(20)], [0] * 20, share=0.3, seed=1))'
    )
    for salt in ('1', '2'):
        result = subprocess.run(
            [sys.executable, '-c', code],
            capture_output=True,
            text=True,
            check=True,
            env={'PYTHONHASHSEED': salt},
        )
        expected = [str(i) in lowest(map(str, range(20)), 6, 1) for i in range(20)]
        assert result.stdout.strip() == str(expected)
