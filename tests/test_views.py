"""Mirrored views: which there are, in which order, and that an evaluation averages over them."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vivit_jax import evaluate, experiment, feeding, sharding
from vivit_jax.config import load
from vivit_jax.data.record import Record
from vivit_jax.data.views import Views

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 8, 1), dtype=np.uint8)
SETTINGS = {
    'model.tubelet': '4,4,4',
    'model.width': '8',
    'model.mlp_dim': '8',
    'model.num_layers': '1',
    'data.frames': '8',
    'data.crop': '8,8',
}


class Volumes:
    """Volumes of random bytes."""

    class_names = ('a', 'b')
    digest = 'volumes'
    bad = ()

    def __init__(self, pixels):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        return Record(
            name=str(index),
            label=index % 2,
            num_frames=8,
            frame_size=(8, 8),
            read=lambda chosen: self.pixels[index][chosen],
        )


def settings(**changes):
    return load('configs/medmnist3d.py:adrenal', SETTINGS | {'evaluation.mirror_views': 'True'} | changes)


def test_every_view_is_mirrored_in_all_combinations():
    options = {'frames': 4, 'stride': 1, 'short': 'loop', 'short_side': 0, 'crop': (8, 8)}
    options |= {'temporal_views': 2, 'spatial_views': 1}
    one, two = PIXELS[0, :4], PIXELS[0, 4:]
    record = Volumes(PIXELS)[0]
    np.testing.assert_array_equal(Views(**options)(record), [one, two])
    expected = [
        *(one, two, one[::-1], two[::-1]),
        *(one[:, :, ::-1], two[:, :, ::-1], one[::-1, :, ::-1], two[::-1, :, ::-1]),
    ]
    np.testing.assert_array_equal(Views(**options, mirrored=(0, 2))(record), expected)


@pytest.mark.parametrize(
    ('volume_flip', 'flip', 'axes'),
    [
        ('0.5,0,0.1', '0', (0, 2)),
        ('0.5,0.5,0.5', '0', (0, 1, 2)),
        ('0,0,0', '0.5', (2,)),
        ('0,1,0', '1', (1, 2)),
    ],
)
def test_the_axes_are_those_that_training_mirrors(volume_flip, flip, axes):
    flips = {'data.volume_augment.flip': volume_flip, 'data.flip': flip}
    config = settings(**flips)
    experiment.check(config)
    assert feeding.mirrored_axes(config) == axes
    assert feeding.mirrored_axes(settings(**flips, **{'evaluation.mirror_views': 'False'})) == ()


def test_mirroring_what_training_does_not_mirror_is_refused():
    config = settings(**{'data.volume_augment.flip': '0,0,0'})
    message = (
        r'^evaluation\.mirror_views=True mirrors along the axes that training mirrors, but data\.flip and'
    )
    with pytest.raises(ValueError, match=message):
        experiment.check(config)


@pytest.mark.parametrize('batch_size', ['1', '24'])
def test_scores_are_means_over_the_mirrored_volumes(batch_size):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    config = settings(**{'evaluation.batch_size': batch_size})
    model = experiment.make_model(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 8, 1)))['params']
    random = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32), shapes)

    def scores(config, pixels, **options):
        step = evaluate.make_eval_step(config, model, (2,), mesh)
        return evaluate.evaluate_source(config, Volumes(pixels), params, step, mesh, **options).scores

    plain = settings(**{'evaluation.mirror_views': 'False', 'evaluation.batch_size': batch_size})
    steps = itertools.product((1, -1), repeat=3)
    each = [scores(plain, PIXELS[:, ::depth, ::height, ::width]) for depth, height, width in steps]
    assert np.std(each, axis=0).min() > 0.01
    np.testing.assert_allclose(scores(config, PIXELS), np.mean(each, axis=0), rtol=1e-5, atol=1e-5)
    # As while training.
    np.testing.assert_array_equal(scores(config, PIXELS, mirror=False), each[0])
