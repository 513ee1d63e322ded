"""Trained weights into models: Scenic's recorded initialisations, and what must hold by construction."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import GOLDEN, our_settings

from vivit_jax import pretrained
from vivit_jax.formats.account import Unused
from vivit_jax.formats.weights import Origin, Weights, flat, nested
from vivit_jax.inflation import inflate, rank_pooling, resize
from vivit_jax.models.embed import token_grid
from vivit_jax.models.vivit import create_model

CASES = sorted(path.stem for path in GOLDEN.glob('B[0-9]*.json'))
D01 = np.load(GOLDEN / 'D01_metrics_losses.npz')
TINY = {'num_layers': 2, 'num_heads': 4, 'width': 16, 'mlp_dim': 24}


def weights_of(arrays, model, grid, path='vit.npz'):
    """Weights as a reader would give them; every array is of its own name in the file."""
    arrays = dict(arrays)
    if arrays['embedding/kernel'].ndim == 4 and model.get('embedding', 'tubelet') == 'tubelet':
        arrays['embedding/kernel'] = arrays['embedding/kernel'][None]
    model = {'position_embedding': 'learned', **model}
    head = arrays.get('output_projection/bias', np.zeros(0))
    origin = {name: Origin({f'file/{name}': array.shape}, 'copied') for name, array in arrays.items()}
    return Weights(nested(arrays), model, len(head), 'scenic', path, grid, origin, {})


def image_vit(random_params, classifier='token', size=16, channels=3, num_classes=9, **settings):
    """A random image ViT with patches of 4 x 4 pixels."""
    model = TINY | {'attention': 'spatio_temporal', 'tubelet': (1, 4, 4), 'classifier': classifier} | settings
    vit = create_model(num_classes, **model)
    high, wide = (size, size) if isinstance(size, int) else size
    params = random_params(vit, jnp.zeros((1, 1, high, wide, channels)))
    return vit, weights_of(flat(params), model, (1, high // 4, wide // 4))


def video_model(random_params, clip=(8, 16, 16, 3), num_classes=5, **settings):
    model = create_model(num_classes, **(TINY | {'tubelet': (2, 4, 4), 'classifier': 'gap'} | settings))
    return model, random_params(model, jnp.zeros((1, *clip)))


def after_three_steps(model, params, quick_jit):
    """Trains on four clips of noise."""
    video = jax.random.uniform(jax.random.key(3), (4, 8, 16, 16, 3), minval=-1.0)
    optimizer = optax.sgd(0.1)

    def loss(params):
        logits, _ = model.apply({'params': params}, video)
        return optax.softmax_cross_entropy_with_integer_labels(logits, np.arange(4)).mean()

    gradient = quick_jit(jax.grad(loss))
    state = optimizer.init(params)
    for _ in range(3):
        updates, state = optimizer.update(gradient(params), state)
        params = optax.apply_updates(params, updates)
    return params


def case(name):
    """A recorded initialisation: parameters before and after, its source as weights, and our options for it."""
    record = json.loads((GOLDEN / f'{name}.json').read_text())
    with np.load(GOLDEN / f'{name}.npz') as file:
        before, after = (
            {key.partition('/')[2]: file[key] for key in file.files if key.startswith(part)}
            for part in ('before/', 'after/')
        )
    with np.load(GOLDEN / record['source_npz']) as file:
        source = {key.removeprefix('source/'): file[key] for key in file.files}
    theirs = record['source_config']
    if 'attention_config' in theirs['model']:
        model = our_settings(theirs)
        lengths = [a.shape[1] for key, a in source.items() if key.endswith('pos_embedding')]
        fe = model['attention'] == 'factorised_encoder'
        grid = (4, 4, 4)
        assert sorted(lengths) == ([5, 17] if fe else [64])
    else:
        size = theirs['model']['patches']['size']
        model = {'attention': 'spatio_temporal', 'tubelet': (1, *size), 'classifier': 'token'}
        tokens = source['Transformer/posembed_input/pos_embedding'].shape[1] - ('cls' in source)
        grid = (1, math.isqrt(tokens), math.isqrt(tokens))
    ours = our_settings(record['config'])
    clip = record['target_video_shape'][1:4]
    if ours.get('sampled_frames'):
        clip[0] = ours['sampled_frames']
    options = {'grid': token_grid(tuple(clip), ours['tubelet'])}
    temporal, start = record['config']['model']['temporal_encoding_config'], record['config']['init_from']
    kernel = temporal.get('kernel_init_method', 'central_frame_initializer')
    options['kernel'] = {
        'central_frame_initializer': 'central_frame',
        'average_frame_initializer': 'average',
        'average_arp_frame_initializer': 'rank_pooling',
    }[kernel]
    options['temporal_attention'] = 'copy' if start.get('init_temporal_transformer', True) else 'fresh'
    fresh = []
    if not start['restore_input_embedding']:
        options['kernel'] = 'fresh'
    if not start['restore_positional_embedding']:
        fresh.append('*/pos_embedding')
    if not start.get('init_spatial_transformer', True):
        fresh.append('*MultiHeadDotProductAttention_space*')
    if not record['restore_output_proj']:
        fresh.append('output_projection/*')
    options['fresh'] = tuple(fresh)
    return record, before, after, weights_of(source, model, grid), options


@pytest.mark.parametrize('name', CASES)
def test_equals_scenics_initialisation(name):
    record, before, after, weights, options = case(name)
    found, account = pretrained.initialise(nested(before), weights, **options)
    found = flat(found)
    assert list(found) == list(before)
    for parameter, recorded in after.items():
        expected = recorded
        if parameter == 'cls_SpatialTransformer' and weights.is_image and 'cls' in flat(weights.params):
            # Scenic leaves it as it was; the image's cls token is what its spatial encoder was trained with.
            np.testing.assert_array_equal(recorded, before[parameter])
            expected = flat(weights.params)['cls']
        if '/LayerNorm_time/' in parameter and options['temporal_attention'] == 'copy' and weights.is_image:
            # Scenic leaves it as it was; the attention copied from space is used to the norm before it.
            np.testing.assert_array_equal(recorded, before[parameter])
            expected = flat(weights.params)[parameter.replace('LayerNorm_time', 'LayerNorm_0')]
        np.testing.assert_allclose(found[parameter], expected, rtol=0, atol=1e-6, err_msg=parameter)
        assert found[parameter].dtype == np.float32
    fresh = {parameter for parameter, change in account.changes.items() if change.action == 'fresh'}
    corrected = {
        p for p in record['unchanged_leaves'] if p == 'cls_SpatialTransformer' or 'LayerNorm_time' in p
    }
    # The slot of a cls token that the file has not is fresh within positions that are the file's.
    assert set(record['unchanged_leaves']) - corrected <= fresh <= set(record['unchanged_leaves'])


def test_every_array_of_the_file_is_accounted_for():
    for name in CASES:
        *_, weights, options = case(name)
        before = case(name)[1]
        _, account = pretrained.initialise(nested(before), weights, **options)
        used = {array for change in account.changes.values() for array in change.arrays}
        everything = {f'file/{array}' for array in flat(weights.params)}
        assert used | set(account.unused) == everything
        assert not used & set(account.unused)
        assert set(account.changes) == set(before)


def test_approximate_rank_pooling_is_scenics():
    for time in range(1, 9):
        np.testing.assert_allclose(rank_pooling(time) / time, D01[f'arp_weights/{time}'], atol=1e-6)


@pytest.mark.parametrize('pair', ['4to6', '4to3', '7to7', '5to8'])
def test_resized_positions_are_scenics(pair):
    for axes, key in ((1, 'posemb1d'), (2, 'posemb2d')):
        values, expected = D01[f'{key}/{pair}/in'], D01[f'{key}/{pair}/out'][0]
        old, new = map(int, pair.split('to'))
        found = resize(values.reshape(*(old,) * axes, -1), (new,) * axes).reshape(expected.shape)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_resizing_keeps_corners_and_straight_lines():
    row, column = np.meshgrid(np.arange(3.0), np.arange(5.0), indexing='ij')
    found = resize(np.stack([row, column], axis=-1), (4, 9))
    np.testing.assert_allclose(found[:, 0, 0], [0, 2 / 3, 4 / 3, 2], rtol=1e-12)
    np.testing.assert_allclose(found[0, :, 1], np.arange(9) / 2, rtol=1e-12)
    np.testing.assert_array_equal(resize(np.array([[0.0], [1.0], [5.0]]), (1,)), [[1.0]])
    np.testing.assert_array_equal(resize(np.array([[2.0]]), (3,)), [[2.0]] * 3)


def test_inflated_kernels_sum_to_what_they_see_of_a_still_clip():
    kernel = np.random.default_rng(0).normal(size=(4, 4, 3, 8)).astype(np.float32)
    for time in (1, 2, 3, 4):
        central = inflate(kernel, time, 'central_frame')
        np.testing.assert_array_equal(central[time // 2], kernel)
        assert np.count_nonzero(central.any(axis=(1, 2, 3, 4))) == 1
        np.testing.assert_allclose(inflate(kernel, time, 'average').sum(0), kernel, atol=1e-6)


@pytest.mark.parametrize('classifier', ['token', 'gap'])
@pytest.mark.parametrize('kernel', ['central_frame', 'average'])
def test_a_still_clip_gives_the_image_vits_features(random_params, quick_jit, classifier, kernel):
    vit, weights = image_vit(random_params, classifier)
    model, params = video_model(random_params, classifier=classifier)
    params, _ = pretrained.initialise(params, weights, kernel=kernel)
    image = np.random.default_rng(1).uniform(-1, 1, (2, 1, 16, 16, 3)).astype(np.float32)
    _, of_image = quick_jit(vit.apply)({'params': weights.params}, image)
    _, of_clip = quick_jit(model.apply)({'params': params}, np.repeat(image, 8, axis=1))
    for frame in range(4):
        np.testing.assert_allclose(of_clip['spatial'][:, frame], of_image['encoded'], atol=1e-5)


def test_a_still_clip_gives_the_image_vits_features_in_uniform_frame_sampling(random_params, quick_jit):
    vit, weights = image_vit(random_params)
    settings = {'embedding': 'uniform_frame_sampling', 'tubelet': (1, 4, 4), 'sampled_frames': 3}
    model, params = video_model(random_params, classifier='token', **settings)
    params, account = pretrained.initialise(params, weights)
    assert account.changes['embedding/kernel'].action == 'copied'
    image = np.random.default_rng(1).uniform(-1, 1, (1, 1, 16, 16, 3)).astype(np.float32)
    _, of_image = quick_jit(vit.apply)({'params': weights.params}, image)
    _, of_clip = quick_jit(model.apply)({'params': params}, np.repeat(image, 8, axis=1))
    for frame in range(3):
        np.testing.assert_allclose(of_clip['spatial'][:, frame], of_image['encoded'], atol=1e-5)


@pytest.mark.parametrize('attention', ['spatio_temporal', 'factorised_dot_product'])
def test_the_other_models_take_every_array_of_the_encoder(random_params, attention):
    _, weights = image_vit(random_params)
    _, params = video_model(random_params, attention=attention)
    found, account = pretrained.initialise(params, weights)
    flat_found, source = flat(found), flat(weights.params)
    for name, array in source.items():
        if 'encoderblock' in name:
            np.testing.assert_array_equal(flat_found[name], array)
    positions = flat_found['Transformer/posembed_input/pos_embedding'][0].reshape(4, 16, 16)
    for frame in positions:
        np.testing.assert_array_equal(frame, source['Transformer/posembed_input/pos_embedding'][0, 1:])
    assert account.changes['Transformer/posembed_input/pos_embedding'].note == "without the cls token's"
    assert account.unused['file/cls'] == Unused((1, 1, 16), 'the model has no cls token')
    assert account.changes['output_projection/kernel'].action == 'fresh'


def spatial_only(params):
    """The parameters without their temporal attention, as those of an image ViT."""
    renamed = {}
    for name, array in flat(params).items():
        if '_time/' not in name:
            name = re.sub(
                'LayerNorm_space|MultiHeadDotProductAttention_space', lambda m: m[0][:-5] + '0', name
            )
            renamed[name.replace('LayerNorm_mlp', 'LayerNorm_1').replace('MlpBlock/', 'MlpBlock_0/')] = array
    return nested(renamed)


@pytest.mark.parametrize('order', ['space_time', 'time_space'])
@pytest.mark.parametrize('how', ['zero_output', 'zero'])
def test_factorised_self_attention_starts_as_if_there_were_no_time(random_params, quick_jit, how, order):
    _, weights = image_vit(random_params)
    settings = {'attention': 'factorised_self_attention', 'attention_order': order}
    model, params = video_model(random_params, **settings)
    if how == 'zero':
        with pytest.warns(
            UserWarning, match="no kernel of the temporal attention .* 'zero_output' starts equally"
        ):
            params, _ = pretrained.initialise(params, weights, temporal_attention=how)
    else:
        params, _ = pretrained.initialise(params, weights, temporal_attention=how)
    video = np.random.default_rng(2).uniform(-1, 1, (2, 8, 16, 16, 3)).astype(np.float32)
    _, out = quick_jit(model.apply)({'params': params}, video)
    # Without time, every frame goes through the image's blocks by itself: a clip of one tubelet each.
    frames = create_model(
        5, **(TINY | {'attention': 'spatio_temporal', 'tubelet': (2, 4, 4), 'classifier': 'gap'})
    )
    alone = spatial_only(params)
    for frame in range(4):
        positions = alone['Transformer']['posembed_input']['pos_embedding'][:, 16 * frame : 16 * frame + 16]
        one = {
            **alone,
            'Transformer': {**alone['Transformer'], 'posembed_input': {'pos_embedding': positions}},
        }
        _, of_frame = quick_jit(frames.apply)({'params': one}, video[:, 2 * frame : 2 * frame + 2])
        np.testing.assert_allclose(
            out['encoded'][:, 16 * frame : 16 * frame + 16], of_frame['encoded'], atol=1e-5
        )


@pytest.mark.filterwarnings('ignore:temporal_attention')
@pytest.mark.parametrize(('how', 'moves'), [('zero_output', True), ('zero', False)])
def test_only_zero_output_learns_temporal_attention(random_params, quick_jit, how, moves):
    _, weights = image_vit(random_params)
    model, params = video_model(random_params, attention='factorised_self_attention')
    params, _ = pretrained.initialise(params, weights, temporal_attention=how)
    before, after = flat(params), flat(after_three_steps(model, params, quick_jit))
    kernels = [name for name in before if 'MultiHeadDotProductAttention_time' in name and 'kernel' in name]
    assert len(kernels) == 8
    for name in kernels:
        assert bool(np.any(before[name] != np.asarray(after[name]))) == moves, name


def test_positions_without_a_cls_slot_and_back(random_params):
    _, of_gap = image_vit(random_params, 'gap')
    _, params = video_model(random_params, attention='spatio_temporal', classifier='token')
    found, account = pretrained.initialise(params, of_gap)
    name = 'Transformer/posembed_input/pos_embedding'
    np.testing.assert_array_equal(flat(found)[name][0, 0], flat(params)[name][0, 0])
    np.testing.assert_array_equal(flat(found)[name][0, 1:17], flat(of_gap.params)[name][0])
    assert account.changes['cls'].note == 'the file has no cls token'
    assert account.changes[name].note == "the cls token's fresh"


def test_a_grid_that_is_not_square(random_params):
    _, weights = image_vit(random_params, size=(8, 16))
    _, params = video_model(
        random_params, clip=(4, 12, 24, 3), classifier='token', attention='spatio_temporal'
    )
    found, account = pretrained.initialise(params, weights, grid=(2, 3, 6))
    name = 'Transformer/posembed_input/pos_embedding'
    positions = flat(weights.params)[name][0, 1:].reshape(2, 4, 16)
    expected = resize(positions, (3, 6))
    np.testing.assert_array_equal(flat(found)[name][0, 1:].reshape(2, 3, 6, 16), [expected, expected])
    assert account.changes[name].action == 'resized and repeated'
    with pytest.raises(
        ValueError, match=r"the model's 36 tokens can lie in several grids; tell .* grid=\(nt, nh, nw\)"
    ):
        pretrained.initialise(params, weights)


def test_colours_become_one_channel(random_params, quick_jit):
    vit, weights = image_vit(random_params)
    model, params = video_model(random_params, clip=(8, 16, 16, 1), classifier='token')
    params, account = pretrained.initialise(params, weights)
    change = account.changes['embedding/kernel']
    assert (change.action, change.note) == ('summed and inflated', 'over RGB, central_frame')
    grey = np.random.default_rng(1).uniform(-1, 1, (1, 1, 16, 16, 1)).astype(np.float32)
    _, of_image = quick_jit(vit.apply)({'params': weights.params}, np.repeat(grey, 3, axis=-1))
    _, of_clip = quick_jit(model.apply)({'params': params}, np.repeat(grey, 8, axis=1))
    np.testing.assert_allclose(of_clip['spatial'][:, 1], of_image['encoded'], atol=1e-5)


def test_a_video_model_keeps_its_head_where_the_classes_agree(random_params):
    settings = TINY | {'tubelet': (2, 4, 4), 'classifier': 'token', 'attention': 'factorised_encoder'}
    _, trained = video_model(random_params, **settings)
    weights = weights_of(flat(trained), settings, (4, 4, 4))
    _, params = video_model(random_params, **settings)
    found, account = pretrained.initialise(jax.tree.map(np.zeros_like, params), weights)
    jax.tree.map(np.testing.assert_array_equal, found, trained)
    assert {change.action for change in account.changes.values()} == {'copied'}
    assert account.summary().endswith(
        "of 108 parameter arrays 108 copied; 0 of the file's arrays left unused"
    )
    _, other = video_model(random_params, num_classes=3, **settings)
    _, account = pretrained.initialise(other, weights)
    assert account.changes['output_projection/bias'].action == 'fresh'
    assert (
        account.unused['file/output_projection/kernel'].reason
        == 'its kernel is (16, 5) in the file and (16, 3) here'
    )


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'num_layers': 3}, r'vit.npz: num_layers is 2 in the file and 3 in the model \(model.num_layers\)'),
        ({'width': 32}, 'width is 16 in the file and 32 in the model'),
        ({'num_heads': 2}, 'num_heads is 4 in the file and 2 in the model'),
        ({'mlp_dim': 20}, 'mlp_dim is 24 in the file and 20 in the model'),
        ({'tubelet': (2, 8, 8)}, r'the tubelet is \(1, 4, 4\) in the file and \(2, 8, 8\) in the model'),
    ],
)
def test_sizes_that_differ_are_told(random_params, change, message):
    _, weights = image_vit(random_params)
    _, params = video_model(random_params, **change)
    with pytest.raises(ValueError, match=message) as error:
        pretrained.initialise(params, weights)
    assert '\n' not in str(error.value)


def test_temporal_layers_that_differ_are_told(random_params):
    settings = TINY | {'tubelet': (2, 4, 4), 'attention': 'factorised_encoder', 'temporal_layers': 3}
    _, trained = video_model(random_params, **settings)
    _, params = video_model(random_params, **{**settings, 'temporal_layers': 1})
    weights = weights_of(flat(trained), settings, (4, 4, 4))
    with pytest.raises(ValueError, match='temporal_layers is 3 in the file and 1 in the model'):
        pretrained.initialise(params, weights)


def test_what_does_not_fit_is_told(random_params):
    _, weights = image_vit(random_params)
    _, params = video_model(random_params)
    for options, message in (
        (
            {'kernel': 'inflate'},
            "kernel='inflate': choose one of central_frame, average, rank_pooling, fresh",
        ),
        (
            {'temporal_attention': 'none'},
            "temporal_attention='none': choose one of zero_output, zero, copy, fresh",
        ),
        ({'fresh': ('head/*',)}, r"fresh='head/\*' matches no parameter; names are as SpatialT"),
    ):
        with pytest.raises(ValueError, match=message):
            pretrained.initialise(params, weights, **options)
    settings = TINY | {'attention': 'spatio_temporal', 'tubelet': (2, 4, 4), 'classifier': 'gap'}
    _, trained = video_model(random_params, **settings)
    with pytest.raises(
        ValueError,
        match=r'video model with attention spatio_temporal, .* cannot start one with attention factorised_enc',
    ):
        pretrained.initialise(params, weights_of(flat(trained), settings, (4, 4, 4)))
    _, four = video_model(random_params, clip=(8, 16, 16, 4))
    with pytest.raises(ValueError, match='takes 3 channels and the model 4'):
        pretrained.initialise(four, weights)


def test_the_account_names_every_array_once_and_in_few_lines(random_params):
    _, weights = image_vit(random_params)
    _, params = video_model(random_params, temporal_layers=2)
    _, account = pretrained.initialise(params, weights)
    text = '\n'.join(account.lines())
    assert text.splitlines()[-1] == account.summary()
    assert 'SpatialTransformer/encoderblock_*/MlpBlock_0/Dense_0/kernel' in text
    assert '2 x file/Transformer/encoderblock_*/MlpBlock_0/Dense_0/kernel' in text
    assert 'inflated' in text
    assert len(text.splitlines()) < 70
    assert json.loads(json.dumps(account.to_json()))['parameters']['embedding/kernel'] == {
        'action': 'inflated',
        'shape': [2, 4, 4, 3, 16],
        'arrays': {'file/embedding/kernel': [1, 4, 4, 3, 16]},
        'note': 'central_frame',
    }


def test_sampled_frames_of_scenics_are_not_taken_for_an_image(random_params):
    """Four frames of 4 x 4 patches are as many tokens as an image of 8 x 8: in the same model they are frames."""
    settings = TINY | {
        'attention': 'spatio_temporal',
        'embedding': 'uniform_frame_sampling',
        'tubelet': (1, 4, 4),
        'sampled_frames': 4,
    }
    _, trained = video_model(random_params, **settings)
    as_read = TINY | {'attention': 'spatio_temporal', 'tubelet': (1, 4, 4), 'classifier': 'gap'}
    weights = weights_of(flat(trained), as_read, (1, 8, 8))
    _, params = video_model(random_params, **settings)
    found, account = pretrained.initialise(jax.tree.map(np.zeros_like, params), weights, grid=(4, 4, 4))
    assert {change.action for change in account.changes.values()} == {'copied'}
    jax.tree.map(np.testing.assert_array_equal, found, trained)
    # Into another model it is what it looks like.
    _, tubelets = video_model(random_params, attention='spatio_temporal')
    _, account = pretrained.initialise(tubelets, weights, grid=(4, 4, 4))
    assert account.changes['Transformer/posembed_input/pos_embedding'].action == 'resized and repeated'
    # A number of tokens that is no square is of frames, in Scenic's files.
    assert not weights_of(flat(trained), as_read, None).is_image


@pytest.mark.parametrize('attention', ['spatio_temporal', 'factorised_self_attention', 'factorised_encoder'])
def test_an_image_whose_grid_no_one_tells_goes_into_frames_of_as_many_patches(random_params, attention):
    _, weights = image_vit(random_params, size=(20, 28))
    unknown = dataclasses.replace(weights, grid=None, kind='vit_npz')
    _, params = video_model(random_params, clip=(4, 20, 28, 3), attention=attention)
    found, account = pretrained.initialise(params, unknown, grid=(2, 5, 7))
    expected, _ = pretrained.initialise(params, weights, grid=(2, 5, 7))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert account.summary()
    _, other = video_model(random_params, clip=(4, 20, 20, 3), attention=attention)
    with pytest.raises(ValueError, match=r'has positions for 35 tokens, .* take frames of as many patches$'):
        pretrained.initialise(other, unknown, grid=(2, 5, 5))


def test_a_grid_that_is_not_the_models_is_told(random_params):
    _, weights = image_vit(random_params)
    _, params = video_model(random_params, attention='spatio_temporal', classifier='token')
    with pytest.raises(ValueError, match=r'grid=\(5, 4, 4\): the model has 65 positions at Transformer/pos'):
        pretrained.initialise(params, weights, grid=(5, 4, 4))


def test_a_video_model_without_a_temporal_encoder_says_so(random_params):
    settings = TINY | {'tubelet': (2, 4, 4), 'attention': 'factorised_encoder', 'temporal_layers': 0}
    _, trained = video_model(random_params, **settings)
    _, params = video_model(random_params, **{**settings, 'temporal_layers': 1})
    _, account = pretrained.initialise(params, weights_of(flat(trained), settings, (4, 4, 4)))
    temporal = [c.note for name, c in account.changes.items() if name.startswith('TemporalTransformer')]
    assert set(temporal) == {'the file has no temporal encoder'}
