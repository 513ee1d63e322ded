"""What a token may know of the others: read off the Jacobian, where 'must not' means a gradient of exactly zero.

Tubelets of one grey pixel make every token a pixel, so that the Jacobian of encoded tokens by pixels is a table of
who sees whom.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vivit_jax.models.vivit import ATTENTIONS, create_model

GRID = (3, 2, 2)
TIME, COLUMN = (axis.ravel() for axis in np.meshgrid(range(3), range(4), indexing='ij'))
EVERYTHING = np.ones((12, 12), bool)
SAME_FRAME = TIME[:, None] == TIME
SAME_COLUMN = COLUMN[:, None] == COLUMN


def model_of(attention, num_layers=1, **changes):
    return create_model(
        3,
        attention=attention,
        num_layers=num_layers,
        temporal_layers=1,
        num_heads=4,
        width=8,
        mlp_dim=12,
        tubelet=(1, 1, 1),
        classifier='gap',
        **changes,
    )


VIDEO = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, *GRID, 1)), jnp.float32)


def sees(jit, function):
    """Returns, for `function(video) -> [b outputs d]`, whether output i of b sees pixel j of c: `[b i c j]`."""
    jacobian = np.asarray(jit(jax.jacrev(function))(VIDEO))
    assert np.isfinite(jacobian).all()
    batch, outputs = jacobian.shape[:2]
    return (jacobian != 0).any(axis=2).reshape(batch, outputs, batch, TIME.size)


def by_example(table):
    """Checks that no example of the batch sees another, and that both show the same; returns the table of one."""
    assert not table[0, :, 1].any()
    assert not table[1, :, 0].any()
    np.testing.assert_array_equal(table[0, :, 0], table[1, :, 1])
    return table[0, :, 0]


def encoded(model, params):
    return lambda video: model.apply({'params': params}, video)[1]['encoded']


def without_output(params, name, heads=slice(None)):
    """Zeroes an attention's output kernel, or that of some heads: what they mix is then lost."""
    block = params['Transformer']['encoderblock_0']
    kernel = block[name]['out']['kernel'].copy()
    kernel[heads] = 0
    block = {**block, name: {**block[name], 'out': {**block[name]['out'], 'kernel': kernel}}}
    return {**params, 'Transformer': {**params['Transformer'], 'encoderblock_0': block}}


@pytest.mark.parametrize(
    ('attention', 'num_layers', 'expected'),
    [
        ('spatio_temporal', 1, EVERYTHING),
        ('factorised_self_attention', 1, EVERYTHING),  # space, then time: by way of another token
        ('factorised_dot_product', 1, SAME_FRAME | SAME_COLUMN),
        ('factorised_dot_product', 2, EVERYTHING),
    ],
)
def test_what_a_token_sees(quick_jit, random_params, attention, num_layers, expected):
    model = model_of(attention, num_layers)
    table = sees(quick_jit, encoded(model, random_params(model, VIDEO)))
    np.testing.assert_array_equal(by_example(table), expected)


def test_factorised_encoder_sees_frames_first(quick_jit, random_params):
    model = model_of('factorised_encoder', num_layers=2)
    params = random_params(model, VIDEO)

    def both(video):
        out = model.apply({'params': params}, video)[1]
        return jnp.concatenate([out['spatial'].reshape(2, 12, 8), out['encoded']], axis=1)

    table = by_example(sees(quick_jit, both))
    # The temporal encoder has one token a frame, and each of them sees all.
    np.testing.assert_array_equal(table, [*SAME_FRAME, *EVERYTHING[:3]])


def test_averaged_frames_stay_apart_until_the_end(quick_jit, random_params):
    model = model_of('factorised_encoder').clone(temporal_layers=0)
    table = by_example(sees(quick_jit, encoded(model, random_params(model, VIDEO))))
    np.testing.assert_array_equal(table, np.arange(3)[:, None] == TIME)


@pytest.mark.parametrize('order', ['space_time', 'time_space'])
@pytest.mark.parametrize(('lost', 'left'), [('time', SAME_FRAME), ('space', SAME_COLUMN)])
def test_halves_of_factorised_self_attention(quick_jit, random_params, order, lost, left):
    model = model_of('factorised_self_attention', attention_order=order)
    params = without_output(random_params(model, VIDEO), f'MultiHeadDotProductAttention_{lost}')
    np.testing.assert_array_equal(by_example(sees(quick_jit, encoded(model, params))), left)


@pytest.mark.parametrize('order', ['space_time', 'time_space'])
def test_order_of_factorised_self_attention(quick_jit, random_params, order):
    model = model_of('factorised_self_attention', attention_order=order)
    params = random_params(model, VIDEO)

    def weights(axis):
        def function(video):
            out = model.apply({'params': params}, video, capture_attention=True)[1]
            (layer,) = out['attention']['Transformer']
            return layer[axis].reshape(len(video), layer[axis].shape[1], -1)  # [b frames …] or [b columns …]

        return function

    own = {'space': np.arange(3)[:, None] == TIME, 'time': np.arange(4)[:, None] == COLUMN}
    first, second = order.split('_')
    # What comes first has seen nothing yet but its own frame or column; what comes second all that those have.
    np.testing.assert_array_equal(by_example(sees(quick_jit, weights(first))), own[first])
    assert by_example(sees(quick_jit, weights(second))).all()


def test_orders_of_factorised_self_attention_differ(quick_jit, random_params):
    model = model_of('factorised_self_attention')
    params = random_params(model, VIDEO)
    one, other = (
        quick_jit(model.clone(attention_order=order).apply)({'params': params}, VIDEO)[0]
        for order in ('space_time', 'time_space')
    )
    assert np.abs(one - other).max() > 1e-2


@pytest.mark.parametrize(
    ('lost', 'left'), [(slice(2, None), SAME_COLUMN), (slice(None, 2), SAME_FRAME)], ids=['first', 'second']
)
def test_halves_of_factorised_dot_product(quick_jit, random_params, lost, left):
    model = model_of('factorised_dot_product')
    params = without_output(random_params(model, VIDEO), 'MultiHeadDotProductAttention_0', lost)
    np.testing.assert_array_equal(by_example(sees(quick_jit, encoded(model, params))), left)


@pytest.mark.parametrize('attention', ATTENTIONS)
def test_no_example_sees_another_while_training(quick_jit, random_params, attention):
    rates = {'dropout_rate': 0.2, 'attention_dropout_rate': 0.2, 'drop_path_rate': 0.2}
    model = model_of(attention, **rates)
    params = random_params(model, VIDEO)

    def logits(video):
        return model.apply({'params': params}, video, train=True, rngs={'dropout': jax.random.key(0)})[0][
            :, None
        ]

    assert by_example(sees(quick_jit, logits)).all()
