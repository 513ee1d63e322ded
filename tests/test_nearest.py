"""What is suggested for a path where nothing is."""

import pathlib

import pytest

from vivit_jax.nearest import hint


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with three runs, weights, and things that are neither."""
    monkeypatch.chdir(tmp_path)
    for name in ('moving_digits', 'kinetics400_fe', 'my_videos'):
        for step in ('500', '1000'):
            (tmp_path / 'runs' / name / 'checkpoints' / step / 'params').mkdir(parents=True)
    for name in ('hf/model.safetensors', 'vit_b16.npz', 'vit_b16.txt', 'moving_digit/notes.txt'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('')


@pytest.mark.parametrize(
    ('wrong', 'right'),
    [
        ('runs/moving_digit', 'runs/moving_digits'),
        ('moving_digits', 'runs/moving_digits'),
        ('run/moving_digits', 'runs/moving_digits'),
        ('runs/moving_digits/checkpoints/100', 'runs/moving_digits/checkpoints/1000'),
        ('runs/kinetics_fe/checkpoints/1000', 'runs/kinetics400_fe'),
        ('vit_b16', 'vit_b16.npz'),
        ('vit_b61.npz', 'vit_b16.npz'),
    ],
)
def test_the_nearest_weights_are_named(here, wrong, right):
    assert hint(pathlib.Path(wrong)) == f'; did you mean {right}?'


def test_where_none_is_alike_some_are_named(here):
    assert hint(pathlib.Path('runs/ssv2')) == (
        '; there are runs/my_videos, runs/moving_digits, runs/kinetics400_fe'
    )
    assert hint(pathlib.Path('zzz')).endswith(', …')


def test_where_there_is_nothing_nothing_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hint(pathlib.Path('runs/moving_digits')) == ''
    assert hint(tmp_path / 'deep' / 'down') == ''
