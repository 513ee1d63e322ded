"""Flips and colours inside the training step: the host's draws, and the host's pixels to one grey level."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import load_tool
from ml_collections import ConfigDict

from tiny import DIGITS, SETTINGS
from vivit_jax import augment, experiment, feeding, sharding, train
from vivit_jax.config import load
from vivit_jax.data import pipeline, transforms
from vivit_jax.data.examples import TrainingExamples
from vivit_jax.data.record import Record
from vivit_jax.data.sampling import Order
from vivit_jax.models.vivit import create_model
from vivit_jax.train_step import TrainState, train_step

pytestmark = pytest.mark.usefixtures('optimised')

CHAIN = {
    'short_side': 0, 'crop': (12, 16), 'scale_jitter': (1.0, 1.0), 'flip': 0.5, 'colour_jitter': 0.8,
    'colour_drop': 0.2, 'randaugment_layers': 0, 'randaugment_magnitude': 0.0,
}  # fmt: skip
AUGMENT = jax.jit(augment.augment)


class Clips:
    """Ten clips of everything that colours can be: noise, near-greys, primaries, black and white."""

    class_names = ('a', 'b')
    digest = 'clips'
    bad = ()

    def __len__(self):
        return 10

    def __getitem__(self, index):
        random = np.random.default_rng(index)
        pixels = random.integers(0, 256, (4, 12, 16, 3), np.uint8)
        if index % 3 == 1:
            pixels = (pixels[..., :1] // 2 + pixels % 4).astype(np.uint8)
        if index % 3 == 2:
            pixels = np.where(pixels > 100, 255, 0).astype(np.uint8)
        return Record(
            name=str(index),
            label=index % 2,
            num_frames=4,
            frame_size=(12, 16),
            read=lambda chosen: pixels[chosen],
        )


def examples(on='device', **changes):
    chain = transforms.training_transforms(**CHAIN | changes)
    on_host, on_device = transforms.leave_to_device(chain) if on == 'device' else (chain, ())
    return TrainingExamples(
        source=Clips(),
        split='train',
        order=Order(10, 3),
        seed=3,
        frames=4,
        stride=1,
        short='repeat_last',
        augmentation=on_host,
        on_device=on_device,
    )


def stacked(read, positions):
    rows = [read(position) for position in positions]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def levels_apart(one, other):
    assert one.dtype == other.dtype == np.uint8
    return np.abs(np.asarray(one).astype(int) - np.asarray(other))


# The same as on the host.


def test_the_same_draws_and_pixels_as_on_the_host():
    """Over 600 draws of everything together."""
    on_host, on_device = (stacked(examples(on), range(600)) for on in ('host', 'device'))
    assert {name: (rows.shape[1:], str(rows.dtype)) for name, rows in on_device.items()} == {
        'video': ((4, 12, 16, 3), 'uint8'),
        'label': ((), 'int32'),
        'mask': ((), 'bool'),
        'index': ((), 'int32'),
        'flip': ((), 'bool'),
        'colour': ((4,), 'float32'),
        'grey': ((), 'bool'),
    }
    for name in ('label', 'mask', 'index'):
        np.testing.assert_array_equal(on_host[name], on_device[name])
    made = AUGMENT(on_device)
    apart = levels_apart(on_host['video'], made)
    # A value halfway between two levels may be rounded to either.
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3
    # Most clips look different, so that not all of this could be seen by doing nothing; some do not, to the bit.
    changed = levels_apart(on_device['video'], made).reshape(600, -1).any(axis=1)
    nothing = ~on_device['flip'] & ~on_device['grey'] & (on_device['colour'] == [0, 1, 1, 0]).all(axis=1)
    assert 20 < nothing.sum() < 80  # 0.5 * 0.2 * 0.8 of 600 is 48
    assert not changed[nothing].any()
    np.testing.assert_array_equal(on_host['video'][nothing], made[nothing])


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_flips_are_exact(dtype):
    video = np.random.default_rng(0).integers(0, 256, (3, 2, 4, 5, 1)).astype(dtype)
    made = AUGMENT({'video': video, 'flip': np.array([True, False, True])})
    assert made.dtype == dtype
    expected = np.stack([video[0, :, :, ::-1], video[1], video[2, :, :, ::-1]])
    np.testing.assert_array_equal(made, expected)


def test_all_greys_and_colours_turn_to_the_hosts_grey():
    """Every level of red with every one of green, and blues."""
    red, green = np.meshgrid(np.arange(256), np.arange(256), indexing='ij')
    pixels = np.stack([red, green, (red * 7 + green * 3) % 256], axis=-1).astype(np.uint8)
    clip = pixels[np.newaxis]
    expected = transforms.ColourDrop(probability=1.0)(clip, np.random.default_rng(0))
    made = AUGMENT({'video': np.stack([clip, clip]), 'grey': np.array([True, False])})
    np.testing.assert_array_equal(made, np.stack([expected, clip]))


@pytest.mark.parametrize(
    ('colour', 'pixel', 'expected'),
    [
        ((0.2, 1, 1, 0), (0, 100, 240), (51, 151, 255)),  # 0.2 * 255 = 51
        ((0, 0.5, 1, 0), (100, 200, 0), (150, 200, 100)),  # half as far from the highest
        ((0, 1.5, 1, 0), (100, 200, 50), (67, 200, 0)),  # 4 / 3 times as far, where the lowest is 0
        ((0, 1, 1, 1 / 3), (255, 0, 30), (30, 255, 0)),  # red to green, and so on around
        ((0, 1, 1, -1 / 3), (255, 0, 30), (0, 30, 255)),
        ((0, 1, 1, 0.2), (9, 9, 9), (9, 9, 9)),
    ],
)
def test_colours_by_hand(colour, pixel, expected):
    video = np.full((1, 1, 2, 2, 3), pixel, np.uint8)
    made = AUGMENT({'video': video, 'colour': np.array([colour], np.float32)})
    assert np.unique(np.asarray(made).reshape(-1, 3), axis=0).tolist() == [list(expected)]


def test_contrast_is_about_the_mean_of_each_frame_and_channel():
    # Means 100 and 50 of the red of two frames; the factor 0.5 halves what is apart from them.
    video = np.zeros((1, 2, 1, 2, 3), np.uint8)
    video[0, :, 0, :, 0] = [[40, 160], [20, 80]]
    made = AUGMENT({'video': video, 'colour': np.array([[0, 1, 0.5, 0]], np.float32)})
    assert np.asarray(made)[0, :, 0, :, 0].tolist() == [[70, 130], [35, 65]]


def test_batches_without_draws_are_left_alone():
    video = jnp.zeros((2, 3, 4, 4, 1))
    assert augment.augment({'video': video, 'label': jnp.zeros(2)}) is video


# On many devices, and in batches.


def test_eight_devices_give_what_one_gives():
    batch = stacked(examples(), range(16))
    mesh = sharding.make_mesh()
    split = AUGMENT(sharding.to_global(batch, mesh))
    assert {shard.data.shape[0] for shard in split.addressable_shards} == {2}
    np.testing.assert_array_equal(split, AUGMENT(batch))


def collect(first_step=0, **changes):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    settings = {'batch_size': 4, 'last_step': 6, 'mesh': mesh, 'threads': 2, 'workers': 0, 'prefetch': 2}
    with pipeline.batches(examples(), first_step=first_step, **settings | changes) as batches:
        return [jax.device_get(batch) for batch in batches]


def test_batches_are_a_function_of_the_step():
    whole = collect()
    assert whole[0].keys() == {'video', 'label', 'mask', 'index', 'flip', 'colour', 'grey'}
    for rest in (collect(first_step=4), collect(threads=5)[4:]):
        jax.tree.map(np.testing.assert_array_equal, rest, whole[4:])
    assert len({batch['colour'].tobytes() for batch in whole}) == 6


@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_training_step_learns_from_the_augmented_clips(quick_jit, random_params, accumulate):
    """With mixup, which comes after."""
    model = create_model(
        2, num_layers=1, temporal_layers=0, num_heads=2, width=8, mlp_dim=8, tubelet=(2, 4, 4)
    )
    optimizer = optax.sgd(0.1)
    step = quick_jit(
        functools.partial(
            train_step,
            model=model,
            optimizer=optimizer,
            loss='softmax',
            head_sizes=(2,),
            label_smoothing=0.0,
            mixup_alpha=0.5,
            ema_decay=0.0,
            seed=0,
            accumulate=accumulate,
        )
    )
    params = jax.tree.map(jnp.asarray, random_params(model, jnp.zeros((1, 4, 12, 16, 3))))
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), None)
    batch = stacked(examples(), range(8))
    pixels = AUGMENT(batch)
    plain = {name: batch[name] for name in ('label', 'mask', 'index')}
    inside, of_inside = step(state, batch)
    before, of_before = step(state, plain | {'video': pixels})
    _, of_none = step(state, plain | {'video': batch['video']})
    np.testing.assert_allclose(of_inside['loss'], of_before['loss'], rtol=1e-6)
    assert abs(of_none['loss'] - of_before['loss']) > 1e-4
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), inside.params, before.params
    )


def test_runs_on_either_are_the_same(tmp_path, monkeypatch):
    """Mirrored digits, as mirroring is exact: gradients differ by nothing but the order of sums, if at all."""
    monkeypatch.setattr(train, '_test', lambda *arguments: (None, {}))
    monkeypatch.setattr(train.Run, 'validate', lambda *arguments: {'top_1': 1.0})
    monkeypatch.setattr(train.closing, 'write_report', lambda *arguments, **options: None)
    norms = {}
    for on in ('host', 'device'):
        changes = {
            'data.flip': '0.5',
            'data.augment_on': on,
            'training.steps': '3',
            'training.log_every': '1',
        }
        train.train(load(DIGITS, SETTINGS | changes), tmp_path / on)
        rows = map(json.loads, (tmp_path / on / 'metrics.jsonl').read_text().splitlines())
        norms[on] = [row['grad_norm'] for row in rows if row['split'] == 'train']
    assert len(norms['host']) == 3
    np.testing.assert_allclose(norms['host'], norms['device'], rtol=1e-5)


# What can be left to the device.


def on_device(**changes):
    on_host, last = transforms.leave_to_device(transforms.training_transforms(**CHAIN | changes))
    return [type(each).__name__ for each in on_host], [each.entry for each in last]


def test_what_comes_last_is_left_to_the_device():
    assert on_device() == (['RandomCrop'], ['flip', 'colour', 'grey'])
    assert on_device(short_side=20, colour_jitter=0.0) == (
        ['ResizeShortSide', 'RandomCrop'],
        ['flip', 'grey'],
    )
    randaugment = {'randaugment_layers': 2, 'randaugment_magnitude': 15.0}
    assert on_device(**randaugment) == (['RandomCrop', 'RandomFlip', 'RandAugment'], ['colour', 'grey'])


def test_behind_randaugment_too_the_draws_are_the_hosts():
    randaugment = {'randaugment_layers': 2, 'randaugment_magnitude': 15.0}
    on_host, here = (stacked(examples(on, **randaugment), range(40)) for on in ('host', 'device'))
    assert 'flip' not in here
    assert levels_apart(on_host['video'], AUGMENT(here)).max() <= 1


def settings(**changes) -> ConfigDict:
    options = {'data.augment_on': 'device', 'data.flip': '0.0'}
    options |= {key.replace('__', '.', 1).replace('__', '.'): value for key, value in changes.items()}
    return load(DIGITS, SETTINGS | options)


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'data__flip': '0.5', 'data__randaugment_layers': '2'},
        {'data__flip': '0.5', 'data__volume_augment__flip': '0,0.5,0'},
    ],
)
def test_nothing_to_do_is_said_before_data_is_opened(changes):
    with pytest.raises(
        ValueError, match=r"^data\.augment_on='device' leaves the device nothing to do: .* choose 'host'$"
    ):
        experiment.check(settings(**changes))
    experiment.check(settings(**changes, data__augment_on='host'))


@pytest.mark.parametrize(
    ('changes', 'left'),
    [
        ({}, []),
        ({'data__flip': '0.5'}, []),  # too little to count
        # A step would change all clips, for three of ten.
        ({'data__flip': '0.5', 'data__colour_jitter': '0.3'}, []),
        ({'data__flip': '0.5', 'data__colour_jitter': '0.6'}, ['flip', 'colour']),
        (
            {'data__colour_jitter': '0.8', 'data__colour_drop': '0.1', 'data__randaugment_layers': '2'},
            ['colour', 'grey'],
        ),
        ({'data__colour_jitter': '0.8', 'data__volume_augment__flip': '0,0.5,0'}, []),
    ],
)
def test_auto_leaves_colours_to_the_device_where_it_is_worth_it(changes, left):
    config = settings(data__augment_on='auto', **changes)
    experiment.check(config)
    _, last = feeding.augmentation(config)
    assert [each.entry for each in last] == left


def test_other_mistakes():
    with pytest.raises(ValueError, match=r"^data\.augment_on='gpu': choose one of auto, host, device$"):
        experiment.check(settings(data__augment_on='gpu'))
    grey = np.zeros((2, 4, 4, 1), np.uint8)
    for transform in (transforms.ColourJitter(probability=0.5), transforms.ColourDrop(probability=0.5)):
        with pytest.raises(
            ValueError, match=r'^colour augmentation needs uint8 frames of 3 channels, got uint8 of 1'
        ):
            transform.draw(grey, np.random.default_rng(0))


def test_pictures_of_a_batch_show_what_the_step_makes_of_it():
    tool = load_tool('show_batches')
    shown = []
    for on in ('host', 'device'):
        config = settings(data__augment_on=on, data__flip='1.0')
        source = experiment.make_source(config, 'train')
        (block,) = tool.training_blocks(config, source, 1, 0, False)
        shown.append([strip.frames for strip in block.rows[-1]])
        assert config.data.augment_on == on
    jax.tree.map(np.testing.assert_array_equal, *shown)
    as_read = feeding.training_examples(config, source)(0)
    np.testing.assert_array_equal(shown[0][0], as_read['video'][:, :, ::-1])
