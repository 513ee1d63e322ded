"""Divided attention is TimeSformer's: the recorded numbers of Hugging Face's, with its arrays put in by hand."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from safetensors.numpy import load_file

from vivit_jax.models.vivit import create_model

GOLDEN = Path(__file__).parent / 'golden' / 'formats' / 'hf_timesformer'
SETTINGS = {  # its config.json: two blocks of width 32, four frames of 32 x 32 in patches of 8
    'num_classes': 7,
    'attention': 'divided',
    'num_layers': 2,
    'num_heads': 4,
    'width': 32,
    'mlp_dim': 64,
    'tubelet': (1, 8, 8),
    'position_embedding': 'learned_space_time',
    'activation': 'gelu_exact',
}


def linear(arrays, name):
    return {'kernel': arrays[f'{name}.weight'].T, 'bias': arrays[f'{name}.bias']}


def norm(arrays, name):
    return {'scale': arrays[f'{name}.weight'], 'bias': arrays[f'{name}.bias']}


def attention(arrays, name):
    kernels = rearrange(arrays[f'{name}.attention.qkv.weight'], '(p h c) d -> p d h c', p=3, h=4)
    biases = rearrange(arrays[f'{name}.attention.qkv.bias'], '(p h c) -> p h c', p=3, h=4)
    out = {
        'kernel': rearrange(arrays[f'{name}.output.dense.weight'], 'd (h c) -> h c d', h=4),
        'bias': arrays[f'{name}.output.dense.bias'],
    }
    parts = {
        part: {'kernel': kernels[i], 'bias': biases[i]} for i, part in enumerate(('query', 'key', 'value'))
    }
    return parts | {'out': out}


def block(arrays, name):
    return {
        'LayerNorm_time': norm(arrays, f'{name}.temporal_layernorm'),
        'MultiHeadDotProductAttention_time': attention(arrays, f'{name}.temporal_attention'),
        'projection_time': linear(arrays, f'{name}.temporal_dense'),
        'LayerNorm_space': norm(arrays, f'{name}.layernorm_before'),
        'MultiHeadDotProductAttention_space': attention(arrays, f'{name}.attention'),
        'LayerNorm_mlp': norm(arrays, f'{name}.layernorm_after'),
        'MlpBlock': {
            'Dense_0': linear(arrays, f'{name}.intermediate.dense'),
            'Dense_1': linear(arrays, f'{name}.output.dense'),
        },
    }


@pytest.fixture(scope='module')
def recorded():
    """Parameters in our names, clips `[b t h w c]`, and what Hugging Face's model made of them."""
    file = load_file(GOLDEN / 'model.safetensors')
    arrays = {name.removeprefix('timesformer.'): array for name, array in file.items()}
    patch = 'embeddings.patch_embeddings.projection'
    params = {
        'embedding': {
            'kernel': rearrange(arrays[f'{patch}.weight'], 'd c h w -> 1 h w c d'),
            'bias': arrays[f'{patch}.bias'],
        },
        'cls': arrays['embeddings.cls_token'],
        'Transformer': {
            'posembed_input': {
                'pos_embedding': arrays['embeddings.position_embeddings'],
                'time_embedding': arrays['embeddings.time_embeddings'],
            },
            'encoderblock_0': block(arrays, 'encoder.layer.0'),
            'encoderblock_1': block(arrays, 'encoder.layer.1'),
            'encoder_norm': norm(arrays, 'layernorm'),
        },
        'output_projection': linear(arrays, 'classifier'),
    }
    with np.load(GOLDEN / 'io.npz') as file:
        outputs = dict(file)
    video = rearrange(outputs['pixel_values'], 'b t c h w -> b t h w c')
    return params, jnp.asarray(video), outputs


def in_our_order(tokens):
    """Puts its tokens, cls first and then frame by frame at every place, place by place at every frame."""
    return np.concatenate([tokens[:, :1], rearrange(tokens[:, 1:], 'b (s t) d -> b (t s) d', t=4)], axis=1)


def test_its_parameters_are_all_of_ours(recorded):
    params, video, _ = recorded
    ours = jax.eval_shape(create_model(**SETTINGS).init, jax.random.key(0), video)['params']
    chex.assert_trees_all_equal_shapes_and_dtypes(ours, params)


def test_outputs_are_hugging_faces(recorded, quick_jit):
    params, video, outputs = recorded
    logits, out = quick_jit(create_model(**SETTINGS).apply)({'params': params}, video)
    np.testing.assert_allclose(logits, outputs['logits'], rtol=0, atol=1e-5)
    np.testing.assert_allclose(
        out['encoded'], in_our_order(outputs['last_hidden_state']), rtol=1e-5, atol=1e-5
    )


def test_the_tanh_activation_is_another(recorded, quick_jit):
    params, video, outputs = recorded
    model = create_model(**(SETTINGS | {'activation': 'gelu_tanh'}))
    logits, _ = quick_jit(model.apply)({'params': params}, video)
    np.testing.assert_allclose(logits, outputs['logits_tanhgelu'], rtol=0, atol=1e-5)


@pytest.mark.parametrize('layers', [0, 1])
def test_every_block_is_hugging_faces(recorded, quick_jit, layers):
    """Without the final LayerNorm, the tokens after that many blocks (none: embedded, with their positions)."""
    params, video, outputs = recorded
    model = create_model(**(SETTINGS | {'num_layers': 1, 'final_norm': False}))
    encoder = dict(params['Transformer'])
    if not layers:  # a block whose branches end in zeros
        encoder['encoderblock_0'] = jax.tree.map(np.zeros_like, encoder['encoderblock_0'])
    _, out = quick_jit(model.apply)({'params': params | {'Transformer': encoder}}, video)
    np.testing.assert_allclose(
        out['encoded'], in_our_order(outputs['hidden_states'][layers]), rtol=1e-5, atol=1e-5
    )


def test_divided_attention_starts_as_a_spatial_model(recorded, quick_jit):
    """Whatever the temporal attention holds, a fresh projection loses it; and learns from it."""
    params, video, _ = recorded
    model = create_model(**SETTINGS)
    shapes = {'kernel': (32, 32), 'bias': (32,)}
    fresh = quick_jit(model.init)(jax.random.key(0), video)['params']['Transformer']
    projections = [fresh[f'encoderblock_{layer}']['projection_time'] for layer in range(2)]
    chex.assert_trees_all_equal(projections, [{name: np.zeros(shape) for name, shape in shapes.items()}] * 2)

    def encoded(factor, projection):
        blocks = dict(params['Transformer'])
        for layer in range(2):
            block = dict(blocks[f'encoderblock_{layer}'], projection_time=projection)
            temporal = block['MultiHeadDotProductAttention_time']
            block['MultiHeadDotProductAttention_time'] = jax.tree.map(lambda x: factor * x, temporal)
            blocks[f'encoderblock_{layer}'] = block
        return model.apply({'params': params | {'Transformer': blocks}}, video)[1]['encoded']

    run = quick_jit(encoded)
    np.testing.assert_array_equal(run(0.0, projections[0]), run(1.0, projections[0]))
    gradient = quick_jit(jax.grad(lambda projection: (encoded(1.0, projection) ** 2)[:, 1, 0].sum()))
    assert np.abs(gradient(projections[0])['kernel']).min() > 0
