"""What the models cost: the paper's table 2, counts by hand, and the products that the program really does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.interpreters import partial_eval

from vivit_jax.models.cost import multiply_adds, parameters
from vivit_jax.models.vivit import ATTENTIONS, create_model

CLIP = (32, 224, 224, 3)

# By hand, B/16x2 on 32 frames of 224 x 224: 16 times of 14 x 14 = 196 tubelets, width 768, MLP 3072.
EMBEDDING = 2 * 16 * 16 * 3 * 768 + 768
CLS = 768
NORM = 2 * 768  # scale and bias
ATTENTION = 4 * (768 * 768 + 768)  # query, key, value, out, with their biases
MLP = (768 * 3072 + 3072) + (3072 * 768 + 768)
BLOCK = NORM + ATTENTION + NORM + MLP
HEAD = 768 * 400 + 400

SPACETIME = EMBEDDING + CLS + (16 * 196 + 1) * 768 + 12 * BLOCK + NORM + HEAD
SPATIAL = CLS + (196 + 1) * 768 + 12 * BLOCK + NORM
TEMPORAL = CLS + (16 + 1) * 768 + 4 * BLOCK + NORM
FACTORISED_SELF_ATTENTION = EMBEDDING + 16 * 196 * 768 + 12 * (BLOCK + NORM + ATTENTION) + NORM + HEAD
FACTORISED_DOT_PRODUCT = EMBEDDING + 16 * 196 * 768 + 12 * BLOCK + NORM + HEAD

# Settings, parameters by hand, and the paper's row: millions of parameters, thousand millions of multiply-adds.
TABLE = {
    'spatio-temporal': ({'attention': 'spatio_temporal'}, SPACETIME, 88.9, 455.2),
    'factorised encoder': (
        {'attention': 'factorised_encoder'},
        EMBEDDING + SPATIAL + TEMPORAL + HEAD,
        115.1,
        284.4,
    ),
    'factorised self-attention': (
        {'attention': 'factorised_self_attention', 'classifier': 'gap'},
        FACTORISED_SELF_ATTENTION,
        117.3,
        372.3,
    ),
    'factorised dot-product': (
        {'attention': 'factorised_dot_product', 'classifier': 'gap'},
        FACTORISED_DOT_PRODUCT,
        88.9,
        277.1,
    ),
    'average pooling': (
        {'attention': 'factorised_encoder', 'temporal_layers': 0},
        EMBEDDING + SPATIAL + HEAD,
        86.7,
        283.9,
    ),
}


def everything(model):
    """The model with nothing left out or computed twice: beside its attention."""
    return functools.partial(model.apply, capture_attention=True)


def needed(jaxpr):
    """What of a program its first result, the logits, depends on."""
    kept, _ = partial_eval.dce_jaxpr(jaxpr.jaxpr, [number == 0 for number in range(len(jaxpr.out_avals))])
    return jaxpr.replace(jaxpr=kept)


@functools.cache
def traced(row):
    """The parameters' shapes and the program of a row of the table; nothing is computed."""
    # In blocks, tokens are padded to whole ones.
    model = create_model(400, **TABLE[row][0], attention_backend='xla')
    video = jax.ShapeDtypeStruct((1, *CLIP), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), video)
    return model, params, jax.make_jaxpr(everything(model))(params, video)


def products(equations, jaxpr):
    """Multiply-adds of all matrix products of a program."""
    total = 0
    for equation, times in equations(jaxpr.jaxpr):
        assert 'conv' not in equation.primitive.name or equation.primitive.name == 'convert_element_type'
        if equation.primitive.name == 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            left = equation.invars[0].aval.shape
            total += (
                times
                * int(np.prod(equation.outvars[0].aval.shape))
                * int(np.prod([left[axis] for axis in contracted]))
            )
    return total


@pytest.mark.parametrize('row', TABLE)
def test_parameters_of_the_papers_table(unchecked, row):
    _, by_hand, millions, _ = TABLE[row]
    model, params, _ = traced(row)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == by_hand
    assert count == parameters(model, CLIP)
    assert abs(count - millions * 1e6) < 0.1e6


@pytest.mark.parametrize('row', TABLE)
def test_multiply_adds_of_the_papers_table(unchecked, equations, row):
    model, _, jaxpr = traced(row)
    count = multiply_adds(model, CLIP)
    assert abs(count / (TABLE[row][3] * 1e9) - 1) < 0.01
    assert count == products(equations, jaxpr)


SMALL = {
    'num_layers': 2,
    'num_heads': 2,
    'width': 12,
    'mlp_dim': 20,
    'temporal_layers': 3,
    'tubelet': (2, 4, 4),
}
SMALL_CLIP = (8, 8, 12, 3)


@pytest.mark.parametrize(
    'settings',
    [
        {'attention': 'spatio_temporal'},
        {'attention': 'spatio_temporal', 'classifier': 'gap'},
        {'attention': 'factorised_encoder'},
        {'attention': 'factorised_encoder', 'classifier': 'gsp'},
        {'attention': 'factorised_encoder', 'temporal_layers': 0},
        {'attention': 'factorised_encoder', 'temporal_layers': 0, 'classifier': 'gap'},
        {'attention': 'factorised_self_attention', 'classifier': 'gap'},
        {'attention': 'factorised_self_attention', 'classifier': 'gmp', 'attention_order': 'time_space'},
        {'attention': 'factorised_dot_product', 'classifier': 'gap'},
        {'attention': 'factorised_dot_product', 'classifier': 'first_token', 'num_heads': 4},
        {'representation_size': 7},
        {'num_classes': 0},
        {'num_classes': 0, 'representation_size': 7},
        {'embedding': 'uniform_frame_sampling', 'tubelet': (1, 4, 4)},
        {'embedding': 'uniform_frame_sampling', 'tubelet': (1, 4, 4), 'sampled_frames': 3},
        {
            'attention': 'factorised_dot_product',
            'classifier': 'gap',
            'tubelet': (3, 3, 5),
            'remainder': 'crop',
        },
        {'position_embedding': 'sinusoidal_3d', 'final_norm': False},
        {'attention': 'divided'},
        {'attention': 'divided', 'classifier': 'gap', 'position_embedding': 'none'},
        {'attention': 'divided', 'position_embedding': 'learned_space_time'},
        {'attention': 'factorised_encoder', 'position_embedding': 'learned_space_time'},
        {'attention': 'space_only', 'classifier': 'gap'},
        {'attention': 'axial', 'classifier': 'gap', 'activation': 'geglu'},
        {'attention': 'local_global', 'classifier': 'gap', 'tubelet': (2, 4, 3)},
        {'activation': 'geglu'},
    ],
    ids=str,
)
def test_counts_are_those_of_the_program(equations, settings):
    model = create_model(**({'num_classes': 5} | SMALL | settings))
    video = jax.ShapeDtypeStruct((1, *SMALL_CLIP), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), video)
    jaxpr = jax.make_jaxpr(everything(model))(params, video)
    assert multiply_adds(model, SMALL_CLIP) == products(equations, jaxpr)
    assert multiply_adds(model, SMALL_CLIP, logits_alone=True, train=False) == products(
        equations, needed(jax.make_jaxpr(model.apply)(params, video))
    )
    assert parameters(model, SMALL_CLIP) == sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize('attention', ATTENTIONS)
def test_xla_counts_the_same(attention):
    # Wide enough that products outweigh the rest: two operations a multiply-add, and a few per cent for softmax,
    # LayerNorm, GELU, which grow with the width where the products grow with its square.
    changes = {'attention': attention, 'classifier': 'gap', 'tubelet': (2, 4, 6)}
    sizes = {'num_layers': 1, 'temporal_layers': 1, 'width': 256, 'mlp_dim': 512}
    model = create_model(5, **(SMALL | sizes | changes))
    video = jax.ShapeDtypeStruct((1, *SMALL_CLIP), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), video)
    counted = jax.jit(model.apply).lower(params, video).compile().cost_analysis()['flops']
    assert 1.0 < counted / (2 * multiply_adds(model, SMALL_CLIP)) < 1.03


@pytest.mark.parametrize('attention', ATTENTIONS[:2])
def test_xla_leaves_out_what_no_logit_depends_on(attention):
    sizes = {'num_layers': 2, 'temporal_layers': 2, 'width': 256, 'mlp_dim': 512, 'tubelet': (2, 4, 6)}
    model = create_model(5, **(SMALL | sizes | {'attention': attention, 'classifier': 'token'}))
    video = jax.ShapeDtypeStruct((1, *SMALL_CLIP), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), video)
    logits = jax.jit(lambda params, video: model.apply(params, video)[0])
    counted = logits.lower(params, video).compile().cost_analysis()['flops'] / 2
    assert 1.0 < counted / multiply_adds(model, SMALL_CLIP, logits_alone=True) < 1.05
    assert counted < 0.9 * multiply_adds(model, SMALL_CLIP)


def test_training_with_dropout_leaves_nothing_out():
    model, dropping = (create_model(5, **SMALL, classifier='token', dropout_rate=rate) for rate in (0.0, 0.1))
    alone = multiply_adds(model, SMALL_CLIP, logits_alone=True)
    assert alone < multiply_adds(model, SMALL_CLIP)
    assert multiply_adds(dropping, SMALL_CLIP, logits_alone=True) == multiply_adds(model, SMALL_CLIP)
    assert multiply_adds(dropping, SMALL_CLIP, logits_alone=True, train=False) == alone


def test_a_clip_that_does_not_fit():
    model = create_model(5, **SMALL)
    with pytest.raises(ValueError, match=r'does not divide the clip \(9, 8, 12\)'):
        multiply_adds(model, (9, 8, 12, 3))
    model = create_model(5, **(SMALL | {'attention': 'local_global', 'classifier': 'gap'}))
    with pytest.raises(ValueError, match=r"a 'window' cuts the token grid .* do not divide \(4, 2, 3\)"):
        multiply_adds(model, SMALL_CLIP)
