"""The four models: equal to Scenic's recorded numbers, right where those say nothing, plain about bad settings."""

import functools
import itertools
import json
import re
from unittest import mock

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import GOLDEN

from vivit_jax.losses import masked_mean, per_example_loss
from vivit_jax.models import embed, encoder
from vivit_jax.models.encoder import DropPath, EncoderBlock, MlpBlock
from vivit_jax.models.patterns import PATTERNS
from vivit_jax.models.vivit import ATTENTIONS, CHOICES, CLASSIFIERS, create_model

CASES = (
    'A01_spacetime_token',
    'A02_spacetime_gap',
    'A03_fe_token',
    'A04_fe_gap',
    'A05_fe_spatial_only',
    'A06_fsa_space_time_gap',
    'A07_fsa_time_space_gap',
    'A08_fdp_gap',
    'A09_sampling_spacetime_token',
    'A10_sampling_fe_token',
    'A11_representation_size_fe',
    'A12_spacetime_gmp',
    'A13_spacetime_gsp',
    'A14_spacetime_classifier0',
)
CASES_WITH_BFLOAT16 = tuple(CASES[i] for i in (0, 2, 5, 7))  # one of each model

# What does not depend on size is tested at this one: clips of 8 x 8 x 12 make 4 x 2 x 3 tokens.
SMALL = {
    'num_layers': 2,
    'num_heads': 2,
    'width': 8,
    'mlp_dim': 12,
    'temporal_layers': 2,
    'tubelet': (2, 4, 4),
    'classifier': 'gap',
}


def small_model(num_classes=5, **changes):
    if changes.get('attention') == 'local_global':  # 4 x 2 x 2 tokens, since it halves every axis
        changes = {'tubelet': (2, 4, 6)} | changes
    return create_model(num_classes, **(SMALL | changes))


def clips(batch, frames=8, height=8, width=12, channels=3, seed=0):
    shape = (batch, frames, height, width, channels)
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, shape), jnp.float32)


def shapes_of(model, video):
    return jax.eval_shape(model.init, jax.random.key(0), video)['params']


def assert_close(ours, recorded, tolerance=1e-5):
    """Every entry within `tolerance` of max(1, |entry|)."""
    np.testing.assert_array_less(np.abs(ours - recorded) / np.maximum(1, np.abs(recorded)), tolerance)


# --- Scenic's recorded numbers ---


@pytest.mark.parametrize('name', CASES)
def test_parameter_names_and_shapes_are_scenics(golden, name):
    arrays, _, model = golden(name)
    chex.assert_trees_all_equal_shapes_and_dtypes(
        shapes_of(model, arrays['inputs']['video']), arrays['params']
    )


@pytest.fixture(scope='module')
def computed(golden, quick_jit):
    """Computes a case: the smoothed loss, the plain one, logits, intermediates, gradients by parameter and pixel."""

    @functools.cache
    def compute(name):
        arrays, record, model = golden(name)
        inputs = jax.tree.map(jnp.asarray, arrays['inputs'])
        labels, sizes = inputs['label_onehot'], (record['num_classes'],)

        def smoothed_loss(params, video):
            logits, out = model.apply({'params': params}, video)
            smoothed, plain = (
                masked_mean(
                    per_example_loss(
                        logits, labels, loss='softmax', head_sizes=sizes, label_smoothing=smoothing
                    ),
                    jnp.ones(len(labels), bool),
                )
                for smoothing in (0.1, 0.0)
            )
            return smoothed, (plain, logits, out)

        # By parameter; by pixel where that was recorded, since it takes time.
        by = (0, 1) if 'grad_inputs' in arrays else (0,)
        gradient = quick_jit(jax.value_and_grad(smoothed_loss, argnums=by, has_aux=True))
        return jax.device_get(gradient(arrays['params'], inputs['video']))

    return compute


@pytest.mark.parametrize('name', CASES)
def test_outputs_are_scenics(golden, computed, name):
    recorded = golden(name).arrays['outputs']
    (smoothed, (plain, logits, out)), _ = computed(name)
    assert logits.dtype == np.float32
    assert_close(logits, recorded['logits'])
    assert_close(out['pre_logits'], recorded['prelogits'])
    # Sampled frames lie below one another there, as one tall image.
    assert_close(out['tokens'].reshape(recorded['patch_embedding'].shape), recorded['patch_embedding'])
    if name == 'A05_fe_spatial_only':  # nothing comes after the spatial encoder
        assert_close(out['encoded'].mean(axis=1), recorded['prelogits'])
    else:
        (key,) = {'preclassifier', 'temporal_encoder_out'} & set(recorded)
        assert_close(out['encoded'], recorded[key])
    assert_close(plain, recorded['loss'])
    assert_close(smoothed, recorded['loss_label_smoothing_0.1'])


@pytest.mark.parametrize('name', CASES)
def test_gradients_are_scenics(golden, computed, name):
    recorded = golden(name).arrays['grads']
    _, (by_parameter, *_) = computed(name)
    # Of the whole gradient: that of the key biases is nothing but noise, since softmax ignores them.
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(recorded))
    chex.assert_trees_all_close(by_parameter, recorded, rtol=0, atol=1e-5 * largest)


def test_gradient_by_pixel_is_scenics(golden, computed):
    recorded = golden('A01_spacetime_token').arrays['grad_inputs']['video']
    _, (_, by_pixel) = computed('A01_spacetime_token')
    np.testing.assert_allclose(by_pixel, recorded, rtol=0, atol=1e-5 * np.abs(recorded).max())


# --- bfloat16 ---


@pytest.mark.parametrize('name', CASES_WITH_BFLOAT16)
def test_bfloat16_computes_the_same_with_float32_parameters(golden, quick_jit, name):
    arrays, _, model = golden(name)
    params, video, recorded = arrays['params'], arrays['inputs']['video'], arrays['outputs']
    model = model.clone(dtype='bfloat16')
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes_of(model, video), params)
    logits, out = quick_jit(model.apply)({'params': params}, video)
    largest = np.abs(recorded['logits']).max()
    np.testing.assert_allclose(logits, recorded['logits'], rtol=0, atol=2e-2 * largest)
    # Rounded indeed, by about as much as Scenic's own (0.002 to 0.011 of the largest).
    assert np.abs(logits - recorded['logits']).max() > 1e-4 * largest
    assert np.abs(recorded['logits_bf16'] - recorded['logits']).max() > 1e-4 * largest
    assert (logits.dtype, out['pre_logits'].dtype) == (jnp.float32, jnp.float32)
    assert (out['tokens'].dtype, out['encoded'].dtype) == (jnp.bfloat16, jnp.bfloat16)


@pytest.mark.parametrize('attention', ATTENTIONS)
def test_bfloat16_products_but_float32_statistics(equations, attention):
    model = small_model(attention=attention, dtype='bfloat16', representation_size=4)
    video = clips(1)
    jaxpr = jax.make_jaxpr(model.apply)({'params': shapes_of(model, video)}, video)
    types = {}
    for equation, _ in equations(jaxpr.jaxpr):
        types.setdefault(equation.primitive.name, []).append([x.aval.dtype for x in equation.invars])
    # Softmax, the mean and variance of LayerNorm, pooling.
    for statistic in ('exp', 'rsqrt', 'reduce_max', 'reduce_sum'):
        assert types[statistic]
        assert {kind for kinds in types[statistic] for kind in kinds} == {np.dtype('float32')}
    *products, head = (set(kinds) for kinds in types['dot_general'])
    # Attention weights are statistics still where they meet the values: one product for each softmax.
    of_weights = [kinds for kinds in products if kinds != {np.dtype(jnp.bfloat16)}]
    assert of_weights == [{np.dtype('float32'), np.dtype(jnp.bfloat16)}] * len(types['exp'])
    assert len(products) > 4 * len(of_weights)
    assert head == {np.dtype('float32')}


# --- Clips and their tokens ---


def token_embedding(tubelet, **changes):
    settings = {
        'width': 8,
        'tubelet': tubelet,
        'sampling': False,
        'sampled_frames': 0,
        'kernel_init': 'random',
        'remainder': 'error',
        'dtype': jnp.dtype('float32'),
    }
    return embed.TokenEmbedding(**(settings | changes))


@pytest.mark.parametrize(
    ('tubelet', 'sampling', 'used'),
    [
        ((2, 4, 4), False, (8, 8, 12)),
        ((3, 5, 7), False, (9, 10, 14)),
        ((1, 4, 5), True, (9, 8, 10)),
    ],
)
def test_cropping_what_is_left_over_equals_a_smaller_clip(random_params, quick_jit, tubelet, sampling, used):
    cropping = token_embedding(tubelet, sampling=sampling, remainder='crop')
    strict = token_embedding(tubelet, sampling=sampling)
    video = clips(2, frames=9, height=11, width=14)
    part = video[:, : used[0], : used[1], : used[2]]
    params = {'params': random_params(cropping, video)}
    np.testing.assert_allclose(
        quick_jit(cropping.apply)(params, video), quick_jit(strict.apply)(params, part), rtol=1e-6, atol=1e-6
    )
    with pytest.raises(ValueError, match=r'does not divide the clip \(9, 11, 14\)'):
        strict.apply(params, video)


@pytest.mark.parametrize('attention', ATTENTIONS)
def test_a_model_that_crops_equals_itself_on_a_smaller_clip(random_params, quick_jit, attention):
    strict = small_model(attention=attention, num_layers=1, temporal_layers=1, tubelet=(2, 4, 4))
    cropping = strict.clone(remainder='crop')
    video = clips(2, frames=5, height=11, width=9)
    part = video[:, :4, :8, :8]
    params = random_params(cropping, video)
    chex.assert_trees_all_equal_shapes(shapes_of(strict, part), params)

    @quick_jit
    def both(params):
        return cropping.apply({'params': params}, video), strict.apply({'params': params}, part)

    chex.assert_trees_all_close(*both(params), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('tubelet', [(1, 2, 3), (4, 4, 6), (2, 8, 12), (8, 1, 4)])
def test_tokens_are_a_convolution_of_non_square_frames(random_params, quick_jit, tubelet):
    layer, video = token_embedding(tubelet), clips(2)
    params = random_params(layer, video)
    tokens = quick_jit(layer.apply)({'params': params}, video)
    convolved = jax.lax.conv_general_dilated(
        video,
        params['kernel'],
        window_strides=tubelet,
        padding='VALID',
        dimension_numbers=('NTHWC', 'THWIO', 'NTHWC'),
    )
    assert tokens.shape == (2, 8 // tubelet[0], 8 // tubelet[1], 12 // tubelet[2], 8)
    np.testing.assert_allclose(tokens, convolved + params['bias'], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('channels', [1, 4])
@pytest.mark.parametrize('sampling', [False, True])
def test_input_channels_add_up(random_params, quick_jit, channels, sampling):
    layer = token_embedding((1 if sampling else 2, 4, 4), sampling=sampling)
    video = clips(2, channels=channels)
    params = random_params(layer, video)
    kernel = params['kernel']
    assert kernel.shape == ((4, 4, channels, 8) if sampling else (2, 4, 4, channels, 8))
    tokens = quick_jit(layer.apply)({'params': params}, video)
    alone = [
        quick_jit(layer.apply)(
            {'params': {'kernel': kernel[..., [channel], :], 'bias': 0 * params['bias']}},
            video[..., [channel]],
        )
        for channel in range(channels)
    ]
    np.testing.assert_allclose(tokens, np.sum(alone, axis=0) + params['bias'], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('attention', ATTENTIONS)
def test_without_classes_there_is_no_head(random_params, quick_jit, attention):
    with_head = small_model(5, attention=attention, num_layers=1, temporal_layers=1)
    without, video = with_head.clone(num_classes=0), clips(2)
    params = random_params(with_head, video)
    head = params['output_projection']
    assert head['kernel'].shape == (8, 5)
    trunk = {name: value for name, value in params.items() if name != 'output_projection'}
    chex.assert_trees_all_equal_shapes(shapes_of(without, video), trunk)

    @quick_jit
    def both(params, trunk):
        return with_head.apply({'params': params}, video), without.apply({'params': trunk}, video)

    (logits, _), (features, out) = both(params, trunk)
    assert features.shape == (2, 8)
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, out['pre_logits'])
    np.testing.assert_allclose(logits, features @ head['kernel'] + head['bias'], rtol=1e-5, atol=1e-5)


def test_frames_are_sampled_as_scenic_does_where_that_is_right():
    record = json.loads((GOLDEN / 'D01_metrics_losses.json').read_text())
    table = record['sample_frames_uniformly[num_frames,n_sampled]']
    wrong_length = record['sample_frames_uniformly_wrong_length']
    counts = {'same': 0, 'one too many': 0, 'refused': 0}
    for key, scenics in table.items():
        frames, sampled = map(int, key.split(','))
        if sampled > frames:  # there all frames are taken, here it is an error
            assert len(scenics) == frames
            with pytest.raises(ValueError, match=rf'model.sampled_frames={sampled}: must be 1 to {frames}'):
                embed.sample_frames(frames, sampled)
            counts['refused'] += 1
            continue
        ours = embed.sample_frames(frames, sampled).tolist()
        assert len(ours) == sampled
        if key in wrong_length:  # a float arange there runs one too far: the last frame is spurious
            assert len(scenics) == sampled + 1
            assert ours == scenics[:-1]
            counts['one too many'] += 1
        else:
            assert ours == scenics
            counts['same'] += 1
    assert counts == {'same': 75, 'one too many': 17, 'refused': 6}


def test_sampled_frames_are_the_ones_embedded(random_params, quick_jit):
    layer, video = token_embedding((1, 4, 4), sampling=True, sampled_frames=3), clips(2)
    params = {'params': random_params(layer, video)}
    expected = quick_jit(layer.clone(sampled_frames=0).apply)(params, video[:, jnp.array([2, 4, 6])])
    np.testing.assert_allclose(quick_jit(layer.apply)(params, video), expected, rtol=1e-6)


# --- Fresh parameters ---


def fresh_kernel(kernel_init, time):
    initialise = embed.tubelet_initialiser(kernel_init)
    return np.asarray(initialise(jax.random.key(0), (time, 4, 4, 3, 64)))


@pytest.mark.parametrize('time', [1, 2, 3, 4])
def test_fresh_central_frame_and_average_kernels(time):
    central, average = fresh_kernel('central_frame', time), fresh_kernel('average', time)
    centre = time // 2
    assert not np.delete(central, centre, axis=0).any()
    assert central[centre].all()
    # Both spread the same patch kernel over time; as an image model's it has variance 1 / (4 * 4 * 3).
    np.testing.assert_allclose(average.sum(axis=0), central[centre], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(average, np.broadcast_to(average[:1], average.shape))
    # A standard deviation estimated from n = 3072 numbers is off by less than 5 / sqrt(2 n) of itself.
    assert central[centre].std() * np.sqrt(48) == pytest.approx(1, abs=0.064)


def test_fresh_random_kernel_draws_every_frame():
    kernel = fresh_kernel('random', 4)
    assert kernel.std() * np.sqrt(4 * 48) == pytest.approx(1, abs=0.032)
    for one, other in itertools.combinations(kernel, 2):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(one.size)


def test_a_fresh_model_says_nothing(quick_jit):
    model, video = small_model(num_layers=1, temporal_layers=1), clips(2)
    (logits, out), variables = quick_jit(model.init_with_output)(jax.random.key(0), video)
    params = variables['params']
    assert not params['output_projection']['kernel'].any()
    assert params['embedding']['kernel'][1].any()
    assert not params['embedding']['kernel'][0].any()  # central_frame is the default
    np.testing.assert_array_equal(logits, np.zeros((2, 5)))
    assert np.abs(out['pre_logits']).min() > 0


# --- Positions ---


def test_sinusoidal_positions_by_hand():
    sin, cos = np.sin, np.cos
    line = [[sin(p), sin(p / 100), cos(p), cos(p / 100)] for p in range(6)]
    np.testing.assert_allclose(embed.sinusoidal_1d((1, 2, 3), 4), line, rtol=0, atol=1e-7)
    places = itertools.product(range(2), range(2), range(3))
    space = [[sin(t), cos(t), sin(h), cos(h), sin(w), cos(w)] for t, h, w in places]
    np.testing.assert_allclose(embed.sinusoidal_3d((2, 2, 3), 6), space, rtol=0, atol=1e-7)
    # A width that three axes do not share evenly: 2 * ceil(8 / 6) = 4 numbers each, the last axis cut.
    wide = [sin(1), sin(1 / 100), cos(1), cos(1 / 100), sin(0), sin(0), cos(0), cos(0)]
    np.testing.assert_allclose(embed.sinusoidal_3d((2, 1, 1), 8)[1], wide, rtol=0, atol=1e-7)


@pytest.mark.parametrize('kind', ['sinusoidal_1d', 'sinusoidal_3d'])
def test_sinusoidal_positions_leave_the_cls_token_alone(kind):
    layer = embed.PositionEmbedding(kind, (2, 2, 3), num_cls=1)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, 6)), jnp.float32)
    added = layer.apply({}, x) - x
    np.testing.assert_array_equal(added[:, 0], 0)
    expected = {'sinusoidal_1d': embed.sinusoidal_1d, 'sinusoidal_3d': embed.sinusoidal_3d}[kind](
        (2, 2, 3), 6
    )
    np.testing.assert_allclose(added[:, 1:], np.broadcast_to(expected, (2, 12, 6)), rtol=0, atol=1e-6)


@pytest.mark.parametrize('num_cls', [0, 1])
def test_positions_of_space_and_time_add_up(num_cls):
    layer = embed.PositionEmbedding('learned_space_time', (2, 1, 3), num_cls)
    random = np.random.default_rng(0)
    space, time = random.normal(size=(1, num_cls + 3, 4)), random.normal(size=(1, 2, 4))
    params = {
        'pos_embedding': jnp.asarray(space, jnp.float32),
        'time_embedding': jnp.asarray(time, jnp.float32),
    }
    added = layer.apply({'params': params}, jnp.zeros((1, num_cls + 6, 4)))[0]
    np.testing.assert_array_equal(added[:num_cls], params['pos_embedding'][0, :num_cls])
    by_hand = [space[0, num_cls + place] + time[0, t] for t in range(2) for place in range(3)]
    np.testing.assert_allclose(added[num_cls:], by_hand, rtol=0, atol=1e-6)
    fresh = layer.init(jax.random.key(0), jnp.zeros((1, num_cls + 6, 4)))['params']
    assert fresh['pos_embedding'].all()
    assert not fresh['time_embedding'].any()


def test_no_positions_change_nothing():
    layer = embed.PositionEmbedding('none', (2, 2, 3), num_cls=0)
    x = jnp.ones((2, 12, 6))
    np.testing.assert_array_equal(layer.apply({}, x), x)


@pytest.mark.parametrize('attention', ATTENTIONS)
@pytest.mark.parametrize('kind', embed.POSITION_EMBEDDINGS)
def test_only_learned_positions_are_parameters(attention, kind):
    params = shapes_of(small_model(attention=attention, position_embedding=kind), clips(1))
    encoders = [name for name in params if name.endswith('Transformer')]
    assert len(encoders) == (2 if attention == 'factorised_encoder' else 1)
    places = 4 if attention == 'local_global' else 6
    tokens = {'Transformer': 4 * places, 'SpatialTransformer': 6, 'TemporalTransformer': 4}
    tables = {  # of places and of times
        'Transformer': {'pos_embedding': (1, places, 8), 'time_embedding': (1, 4, 8)},
        'SpatialTransformer': {'pos_embedding': (1, 6, 8), 'time_embedding': (1, 1, 8)},
        'TemporalTransformer': {'pos_embedding': (1, 1, 8), 'time_embedding': (1, 4, 8)},
    }
    for name in encoders:
        if kind == 'learned':
            assert params[name]['posembed_input']['pos_embedding'].shape == (1, tokens[name], 8)
        elif kind == 'learned_space_time':
            assert jax.tree.map(np.shape, params[name]['posembed_input']) == tables[name]
        else:
            assert 'posembed_input' not in params[name]


@pytest.mark.parametrize('kind', embed.POSITION_EMBEDDINGS)
def test_only_positions_tell_the_order_of_tubelets(random_params, quick_jit, kind):
    video = clips(2)
    reversed_tubelets = video.reshape(2, 4, 2, 8, 12, 3)[:, ::-1].reshape(video.shape)
    model = small_model(attention='spatio_temporal', position_embedding=kind, num_layers=1)
    apply, params = quick_jit(model.apply), {'params': random_params(model, video)}
    (logits, _), (others, _) = apply(params, video), apply(params, reversed_tubelets)
    if kind in ('none', 'sinusoidal_2d'):  # the latter is the same at every time
        np.testing.assert_allclose(others, logits, rtol=0, atol=1e-5)
    else:
        assert np.abs(others - logits).max() > 1e-3


# --- The MLP ---


def test_geglu_is_gated(random_params, quick_jit):
    layer = MlpBlock(5, 'geglu', 0.0, jnp.dtype('float32'))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 4)), jnp.float32)
    params = random_params(layer, x, train=False)
    assert jax.tree.map(np.shape, params) == {
        'Dense_0': {'kernel': (4, 10), 'bias': (10,)},
        'Dense_1': {'kernel': (5, 4), 'bias': (4,)},
    }
    both = np.float64(x @ params['Dense_0']['kernel'] + params['Dense_0']['bias'])
    values, gates = both[..., :5], both[..., 5:]
    # Hendrycks and Gimpel 2016, their approximation by tanh.
    gelu = 0.5 * gates * (1 + np.tanh(np.sqrt(2 / np.pi) * (gates + 0.044715 * gates**3)))
    expected = (values * gelu) @ params['Dense_1']['kernel'] + params['Dense_1']['bias']
    out = quick_jit(lambda x: layer.apply({'params': params}, x, train=False))(x)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


# --- Dropout and stochastic depth ---


RATES = {'drop_path_rate': 0.6, 'dropout_rate': 0.25, 'attention_dropout_rate': 0.5}


@pytest.fixture(scope='module')
def training_pass(random_params, quick_jit):
    """Runs a training pass of 200 clips; of every DropPath and Dropout (kind, rate, what came, what went).

    And the logits: of evaluation, of this pass, of another with the same rng, of one with another rng.
    """

    @functools.cache
    def compute(attention):
        # In a scan there would be one call for all layers.
        model, video = small_model(attention=attention, scan_layers=False, **RATES), clips(200)
        params = {'params': random_params(model, video[:1])}
        sites = []

        def run(rng):
            arrays = []

            def watch(call, args, kwargs, context):
                out, module = call(*args, **kwargs), context.module
                if isinstance(module, DropPath | nn.Dropout):
                    sites.append(type(module).__name__)
                    rate = args[1] if isinstance(module, DropPath) else jnp.float32(module.rate)
                    arrays.append((rate, args[0], out))
                return out

            # What a block calls is seen from outside where it is no program of its own.
            inline = mock.patch.object(encoder, '_run_block', encoder._run_block.__wrapped__)
            with nn.intercept_methods(watch), inline:
                logits, _ = model.apply(params, video, train=True, rngs={'dropout': rng})
            return arrays, logits

        run, keys = quick_jit(run), jax.random.split(jax.random.key(1))
        arrays, logits = jax.device_get(run(keys[0]))
        evaluated = quick_jit(model.apply)(params, video)[0]
        calls = [(site, *call) for site, call in zip(sites, arrays, strict=True)]
        return calls, (evaluated, logits, run(keys[0])[1], run(keys[1])[1])

    return compute


def assert_share(mask, expected):
    """The share of True is `expected` to within five standard errors of independent draws."""
    assert abs(mask.mean() - expected) < 5 * np.sqrt(expected * (1 - expected) / mask.size)


@pytest.mark.parametrize('attention', ATTENTIONS)
def test_stochastic_depth_in_every_model(training_pass, attention):
    calls = [rest for kind, *rest in training_pass(attention)[0] if kind == 'DropPath']
    # Half of the rate in the first of two layers (l / L times it), all of it in the second; each layer drops its
    # attention, or both of them, and its MLP.
    branches = len(PATTERNS[attention].attends) + 1
    encoders = 2 if attention == 'factorised_encoder' else 1
    assert [rate for rate, *_ in calls] == pytest.approx(([0.3] * branches + [0.6] * branches) * encoders)
    # The spatial encoder, the first, has the frames in its batch.
    frames_of = ([4] * 2 * branches if encoders == 2 else []) + [1] * 2 * branches
    masks = []
    for (rate, branch, out), frames in zip(calls, frames_of, strict=True):
        assert len(out) == 200 * frames
        kept = out.any(axis=(1, 2))
        # A row goes as a whole, and what is kept is divided by the probability of keeping it.
        np.testing.assert_allclose(out, kept[:, None, None] * branch / (1 - rate), rtol=1e-5, atol=1e-6)
        assert_share(kept, 1 - rate)
        masks.append((rate, kept.reshape(200, frames)))
    for (rate, kept), (other_rate, other) in itertools.combinations(masks, 2):  # of different layers
        assert_share(kept[:, 0] & other[:, 0], (1 - rate) * (1 - other_rate))
    for rate, kept in masks:
        assert_share(kept[:100] & kept[100:], (1 - rate) ** 2)  # of different examples
        if kept.shape[1] > 1:  # of different frames
            assert_share(kept[:, :2] & kept[:, 2:], (1 - rate) ** 2)


@pytest.mark.parametrize('attention', ATTENTIONS)
def test_dropout_in_every_model(training_pass, attention):
    calls = [rest for kind, *rest in training_pass(attention)[0] if kind == 'Dropout']
    # The embedded tokens; in each of two layers attention weights and outputs, hidden and output of the MLP.
    expected = {
        'spatio_temporal': 1 + 2 * (2 + 2),
        'factorised_encoder': 2 * (1 + 2 * (2 + 2)),
        'factorised_self_attention': 1 + 2 * (4 + 2),
        'factorised_dot_product': 1 + 2 * (3 + 2),  # weights of either half
        'divided': 1 + 2 * (4 + 2),
        'space_only': 1 + 2 * (2 + 2),
        'axial': 1 + 2 * (6 + 2),
        'local_global': 1 + 2 * (4 + 2),
    }
    assert len(calls) == expected[attention]
    masks = []
    for rate, x, out in calls:
        assert rate == (0.5 if x.ndim == 4 else 0.25)  # of attention weights, of tokens
        kept = out != 0
        np.testing.assert_allclose(out, kept * x / (1 - rate), rtol=1e-5, atol=1e-6)
        assert_share(kept, 1 - rate)
        half = len(kept) // 2
        assert_share(kept[:half] & kept[half:], (1 - rate) ** 2)  # of different examples
        assert_share(kept[0::2] & kept[1::2], (1 - rate) ** 2)  # of neighbours: in a spatial encoder, frames
        masks.append((rate, kept))
    for (rate, kept), (other_rate, other) in itertools.combinations(masks, 2):  # of different layers
        if kept.shape == other.shape:
            assert_share(kept & other, (1 - rate) * (1 - other_rate))


@pytest.mark.parametrize('attention', ATTENTIONS)
def test_only_training_is_random_and_only_by_its_rng(training_pass, attention):
    _, (evaluated, logits, again, other) = training_pass(attention)
    np.testing.assert_array_equal(logits, again)
    for one, another in itertools.combinations((evaluated, logits, other), 2):
        assert np.abs(one - another).max(axis=1).min() > 1e-4  # every clip's


@pytest.mark.parametrize('setting', sorted(RATES))
def test_expectation_is_kept(random_params, quick_jit, setting):
    settings = {'dropout_rate': 0.0, 'attention_dropout_rate': 0.0, 'drop_path_rate': 0.0, setting: 0.4}
    dropping = settings.pop('drop_path_rate')
    drop_path_rate = jnp.float32(dropping) if dropping else None
    block = EncoderBlock(
        pattern=PATTERNS['spatio_temporal'],
        grid=(1, 2, 2),
        num_heads=2,
        mlp_dim=6,
        attention_backend='auto',
        remat_attention=False,
        activation='gelu_tanh',
        norm_epsilon=1e-6,
        dtype=jnp.dtype('float32'),
        **settings,
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 6)), jnp.float32)
    params = random_params(block, x, drop_path_rate=None, train=False, capture=False)
    # The MLP's branch is left out: it is not linear in what the attention gave it.
    params['MlpBlock_0']['Dense_1'] = jax.tree.map(np.zeros_like, params['MlpBlock_0']['Dense_1'])

    def branch(rng, train):
        run = functools.partial(block.apply, {'params': params}, capture=False, rngs={'dropout': rng})
        return run(x, drop_path_rate, train=train)[0] - x

    keys = jax.random.split(jax.random.key(3), 4000)
    drawn = np.asarray(quick_jit(jax.vmap(lambda rng: branch(rng, True)))(keys))
    expected = quick_jit(lambda rng: branch(rng, False))(keys[0])
    # Five standard errors of each entry's mean over the draws, as the draws themselves show them.
    allowed = 5 * drawn.std(axis=0) / np.sqrt(len(keys))
    assert allowed.min() > 0
    np.testing.assert_array_less(np.abs(drawn.mean(axis=0) - expected), allowed)
    # Known well enough to notice a missing division, which would give 0.6 of it.
    assert (allowed < 0.2 * np.abs(expected)).mean() > 0.5


# --- The last block, of one token ---


@pytest.mark.parametrize(
    'how',
    [
        {},
        {'scan_layers': True},
        {'remat': 'block'},
        {'remat': 'attention', 'num_layers': 1},
        {'attention_backend': 'blockwise'},
        {'dropout_rate': 0.2, 'attention_dropout_rate': 0.2},  # of which nothing is drawn here
    ],
    ids=str,
)
@pytest.mark.parametrize('classifier', ['token', 'first_token'])
@pytest.mark.parametrize('attention', ['spatio_temporal', 'factorised_encoder'])
def test_the_token_that_is_classified_is_that_of_the_whole(
    random_params, quick_jit, attention, classifier, how
):
    model = small_model(attention=attention, classifier=classifier, **how)
    video = clips(3)
    params = random_params(model, video)

    def logits(params, capture):
        return model.apply({'params': params}, video, capture_attention=capture)[0]

    # With its attention captured, the last block is computed for all tokens.
    alone, whole = (
        quick_jit(functools.partial(logits, capture=capture))(params) for capture in (False, True)
    )
    np.testing.assert_allclose(alone, whole, rtol=1e-5, atol=1e-6)
    slopes = [
        quick_jit(jax.grad(lambda params, c=capture: jnp.sum(jnp.sin(logits(params, c)))))(params)
        for capture in (False, True)
    ]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), *slopes)
    # And it is what comes with all the other encoded tokens.
    out = quick_jit(lambda params: model.apply({'params': params}, video)[1])(params)
    np.testing.assert_allclose(out['encoded'][:, 0], out['pre_logits'], rtol=1e-5, atol=1e-6)
    assert np.abs(np.diff(out['encoded'], axis=1)).min() > 0  # tokens differ


# --- Captured attention ---


@pytest.mark.parametrize(
    ('attention', 'classifier'),
    [
        *((attention, 'gap') for attention in ATTENTIONS),
        *((attention, 'token') for attention in ATTENTIONS[:2]),
        ('divided', 'token'),
    ],
)
def test_captured_attention(random_params, quick_jit, attention, classifier):
    model = small_model(attention=attention, classifier=classifier, num_heads=4, temporal_layers=1)
    video = clips(3)
    params = random_params(model, video)

    @quick_jit
    def both(params):
        plain = model.apply({'params': params}, video)
        return plain, model.apply({'params': params}, video, capture_attention=True)

    (plain, without), (logits, out) = both(params)
    assert 'attention' not in without
    np.testing.assert_allclose(logits, plain, rtol=1e-6, atol=1e-6)
    cls = int(classifier == 'token')
    space, time = (3, 4, 4, 6 + cls, 6 + cls), (3, 6, 4, 4, 4)
    half_space, half_time = (3, 4, 2, 6, 6), (3, 6, 2, 4, 4)
    expected = {
        'spatio_temporal': {'Transformer': [{'all': (3, 4, 24 + cls, 24 + cls)}] * 2},
        'factorised_encoder': {
            'SpatialTransformer': [{'space': space}] * 2,
            'TemporalTransformer': [{'time': (3, 4, 4 + cls, 4 + cls)}],
        },
        'factorised_self_attention': {'Transformer': [{'space': space, 'time': time}] * 2},
        'factorised_dot_product': {'Transformer': [{'space': half_space, 'time': half_time}] * 2},
        'divided': {'Transformer': [{'space': space, 'time': time}] * 2},  # none of the cls token's over time
        'space_only': {'Transformer': [{'space': space}] * 2},
        'axial': {'Transformer': [{'time': time, 'height': (3, 12, 4, 2, 2), 'width': (3, 8, 4, 3, 3)}] * 2},
        'local_global': {'Transformer': [{'window': (3, 4, 4, 4, 4), 'grid': (3, 8, 4, 2, 2)}] * 2},
    }[attention]
    assert jax.tree.map(np.shape, out['attention']) == expected
    for weights in jax.tree.leaves(out['attention']):
        assert weights.dtype == np.float32
        assert weights.min() > 0
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=0, atol=1e-6)


# --- Impossible settings ---


def assert_tells(error, words):
    assert '\n' not in str(error)
    for word in words:
        assert word in str(error)


@pytest.mark.parametrize(
    ('settings', 'told'),
    [
        *(
            ({field: 'nonsense'}, [f"model.{field}='nonsense'", *choices])
            for field, choices in CHOICES.items()
        ),
        ({'num_heads': 3}, ['model.num_heads=3', 'model.width=8', 'remainder 2']),
        (
            {'attention': 'factorised_dot_product', 'num_heads': 3, 'width': 9},
            ['model.num_heads=3', 'odd', 'even', 'factorised_dot_product'],
        ),
        *(
            (
                {'attention': attention, 'classifier': 'token'},
                ["model.classifier='token'", attention, *CLASSIFIERS[1:]],
            )
            for attention in ATTENTIONS
            if attention not in ('spatio_temporal', 'factorised_encoder', 'divided')
        ),
        (
            {'embedding': 'uniform_frame_sampling'},
            ['model.tubelet=(2, 4, 4)', 'uniform_frame_sampling', '(1, 4, 4)'],
        ),
        ({'sampled_frames': 4}, ['model.sampled_frames=4', "model.embedding='uniform_frame_sampling'"]),
        ({'tubelet': (2, 4)}, ['model.tubelet=(2, 4)', 'must be 3 values, as (2, 16, 16)']),
        ({'tubelet': (0, 4, 4)}, ['model.tubelet=(0, 4, 4)', 'at least 1']),
        *(
            ({field: 0}, [f'model.{field}=0', 'at least 1'])
            for field in ('num_layers', 'num_heads', 'width', 'mlp_dim')
        ),
        *(
            ({field: -1}, [f'model.{field}=-1', '0 or more'])
            for field in ('temporal_layers', 'sampled_frames', 'representation_size')
        ),
        *(
            ({field: rate}, [f'model.{field}={rate}', '[0, 1)'])
            for field in ('dropout_rate', 'attention_dropout_rate', 'drop_path_rate')
            for rate in (-0.1, 1.0)
        ),
        ({'num_classes': -1}, ['num_classes=-1', 'at least 1', '0 for no head']),
    ],
    ids=str,
)
def test_impossible_settings_are_told_in_one_line(unchecked, settings, told):
    with pytest.raises(ValueError, match=re.escape(told[0])) as caught:
        small_model(**settings)
    assert_tells(caught.value, told)


@pytest.mark.parametrize(
    ('tubelet', 'told'),
    [((2, 4, 4), ["'window'", '(1, 2, 2)', '(4, 2, 3)']), ((8, 4, 6), ["'grid'", '(2, 2, 2)', '(1, 2, 2)'])],
)
def test_tokens_that_cannot_be_halved_are_told_in_one_line(tubelet, told):
    with pytest.raises(ValueError, match=r'model\.tubelet') as caught:
        shapes_of(small_model(attention='local_global', tubelet=tubelet), clips(1))
    assert_tells(caught.value, told)


@pytest.mark.parametrize(
    ('settings', 'told'),
    [
        (
            {'tubelet': (3, 4, 4)},
            ['(3, 4, 4)', '(8, 8, 12)', '(2, 0, 0) left over', "model.remainder='crop'"],
        ),
        (
            {'tubelet': (2, 3, 5)},
            ['(2, 3, 5)', '(8, 8, 12)', '(0, 2, 2) left over', "model.remainder='crop'"],
        ),
        ({'tubelet': (16, 4, 4), 'remainder': 'crop'}, ['(16, 4, 4)', 'larger than the clip (8, 8, 12)']),
        (
            {'embedding': 'uniform_frame_sampling', 'tubelet': (1, 4, 4), 'sampled_frames': 9},
            ['model.sampled_frames=9', '1 to 8'],
        ),
    ],
    ids=str,
)
def test_clips_that_do_not_fit_are_told_in_one_line(settings, told):
    model, video = small_model(**settings), clips(1)
    with pytest.raises(ValueError, match=re.escape(told[0])) as caught:
        shapes_of(model, video)
    assert_tells(caught.value, told)


def test_a_misspelt_setting_is_a_type_error():
    with pytest.raises(TypeError, match='nun_heads'):
        small_model(nun_heads=2)
