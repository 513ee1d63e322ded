"""What a token may know of the others: read off the Jacobian, where 'must not' means a gradient of exactly zero.

Tubelets of one grey pixel make every token a pixel, so that the Jacobian of encoded tokens by pixels is a table of
who sees whom.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vivit_jax.models.attention import FOLDS, groups
from vivit_jax.models.patterns import PATTERNS
from vivit_jax.models.vivit import ATTENTIONS, create_model

GRID = (3, 2, 2)
TIME, COLUMN = (axis.ravel() for axis in np.meshgrid(range(3), range(4), indexing='ij'))
EVERYTHING = np.ones((12, 12), bool)
SAME_FRAME = TIME[:, None] == TIME
SAME_COLUMN = COLUMN[:, None] == COLUMN

# A grid that can be halved along every axis and tells all patterns apart.
LARGE = (2, 4, 6)
T, H, W = (axis.ravel() for axis in np.indices(LARGE))


def same(*keys):
    """Which tokens of the large grid have all of these in common."""
    return np.logical_and.reduce([key[:, None] == key for key in keys])


# By hand: who may attend to whom.
MAY_SEE = {
    'all': same(0 * T),
    'space': same(T),
    'time': same(H, W),
    'height': same(T, W),
    'width': same(T, H),
    'window': same(H // 2, W // 3),
    'grid': same(T % 2, H % 2, W % 2),
}


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
        **({'classifier': 'gap'} | changes),
    )


def noise(grid):
    return jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, *grid, 1)), jnp.float32)


VIDEO = noise(GRID)


def sees(jit, function, video=VIDEO):
    """Returns, for `function(video) -> [b outputs d]`, whether output i of b sees pixel j of c: `[b i c j]`."""
    jacobian = np.asarray(jit(jax.jacrev(function))(video))
    assert np.isfinite(jacobian).all()
    batch, outputs = jacobian.shape[:2]
    return (jacobian != 0).any(axis=2).reshape(batch, outputs, batch, video[0].size)


def by_example(table):
    """Checks that no example of the batch sees another, and that both show the same; returns the table of one."""
    assert not table[0, :, 1].any()
    assert not table[1, :, 0].any()
    np.testing.assert_array_equal(table[0, :, 0], table[1, :, 1])
    return table[0, :, 0]


def encoded(model, params):
    return lambda video: model.apply({'params': params}, video)[1]['encoded']


def without_output(params, name, heads=slice(None), layer=0):
    """Zeroes an attention's output kernel, or that of some heads: what they mix is then lost."""
    block = params['Transformer'][f'encoderblock_{layer}']
    kernel = block[name]['out']['kernel'].copy()
    kernel[heads] = 0
    block = {**block, name: {**block[name], 'out': {**block[name]['out'], 'kernel': kernel}}}
    return {**params, 'Transformer': {**params['Transformer'], f'encoderblock_{layer}': block}}


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


# --- Every pattern ---


def test_groups_are_who_may_see_whom():
    assert set(MAY_SEE) == {'all', *FOLDS}
    for over, expected in MAY_SEE.items():
        members = groups(over, LARGE)
        assert sorted(members.ravel()) == list(range(48)), over  # every token is in one group
        group_of = np.empty(48, int)
        for number, group in enumerate(members):
            group_of[group] = number
        np.testing.assert_array_equal(group_of[:, None] == group_of, expected, err_msg=over)


@pytest.mark.parametrize(
    ('attention', 'over'),
    [
        (attention, over)
        for attention, pattern in PATTERNS.items()
        if attention != 'factorised_encoder'
        for over in pattern.attends
    ],
)
def test_each_attention_of_a_block_sees_its_group(quick_jit, random_params, attention, over):
    """The block with all its other attentions' outputs lost."""
    model = model_of(attention)
    video = noise(LARGE)
    params = random_params(model, video)
    for other in PATTERNS[attention].attends:
        if other != over:
            params = without_output(params, f'MultiHeadDotProductAttention_{other}')
    expected = MAY_SEE['time'] | MAY_SEE['space'] if over == 'time_and_space' else MAY_SEE[over]
    table = by_example(sees(quick_jit, encoded(model, params), video))
    np.testing.assert_array_equal(table, expected)


def through(*attentions):
    """Who sees whom after several attentions, one upon the other."""
    table = np.eye(T.size, dtype=int)
    for over in attentions:
        table = MAY_SEE[over] @ table
    return table > 0


@pytest.mark.parametrize(
    ('attention', 'num_layers', 'expected'),
    [
        ('divided', 1, same(0 * T)),
        ('space_only', 1, same(T)),
        ('space_only', 3, same(T)),  # never mixes frames, however deep
        ('axial', 1, same(0 * T)),
        # A window sees all times, a grid its own half of them: together everything.
        ('local_global', 1, same(0 * T)),
    ],
)
def test_what_a_token_sees_of_the_whole_clip(quick_jit, random_params, attention, num_layers, expected):
    model, video = model_of(attention, num_layers), noise(LARGE)
    table = by_example(sees(quick_jit, encoded(model, random_params(model, video)), video))
    np.testing.assert_array_equal(table, expected)
    np.testing.assert_array_equal(table, through(*PATTERNS[attention].attends))


def renamed(params, **names):
    """Calls the parts of the first block by other names."""
    block = params['Transformer']['encoderblock_0']
    block = {names.get(name, name): value for name, value in block.items()}
    return {**params, 'Transformer': {**params['Transformer'], 'encoderblock_0': block}}


def test_axial_is_factorised_self_attention_along_other_axes(quick_jit, random_params):
    """Where frames are one token wide, height is all of space, and attention over width loses nothing if left out."""
    video = noise((3, 4, 1))
    axial = model_of('axial')
    params = without_output(random_params(axial, video), 'MultiHeadDotProductAttention_width')
    bias = params['Transformer']['encoderblock_0']['MultiHeadDotProductAttention_width']['out']['bias']
    bias[:] = 0
    names = {f'{part}_height': f'{part}_space' for part in ('LayerNorm', 'MultiHeadDotProductAttention')}
    factorised = model_of('factorised_self_attention', attention_order='time_space')
    np.testing.assert_array_equal(
        quick_jit(axial.apply)({'params': params}, video)[0],
        quick_jit(factorised.apply)({'params': renamed(params, **names)}, video)[0],
    )


def test_fresh_divided_attention_is_a_model_of_single_frames(quick_jit):
    video = noise(LARGE)
    divided, space_only = model_of('divided'), model_of('space_only')
    params = quick_jit(divided.init)(jax.random.key(0), video)['params']
    names = {
        'LayerNorm_space': 'LayerNorm_0',
        'MultiHeadDotProductAttention_space': 'MultiHeadDotProductAttention_0',
        'LayerNorm_mlp': 'LayerNorm_1',
        'MlpBlock': 'MlpBlock_0',
    }
    np.testing.assert_array_equal(
        encoded(divided, params)(video), encoded(space_only, renamed(params, **names))(video)
    )


# --- The cls token of divided attention ---


def test_the_cls_token_is_seen_by_every_frame_and_carries_between_them(quick_jit, random_params):
    video = noise(LARGE)
    for num_layers, of_tokens in ((1, same(T)), (2, same(0 * T))):
        model = model_of('divided', num_layers, classifier='token')
        params = random_params(model, video)
        for layer in range(num_layers):  # attention over space alone
            params = without_output(params, 'MultiHeadDotProductAttention_time', layer=layer)
        table = by_example(sees(quick_jit, encoded(model, params), video))
        assert table[0].all()  # the cls token sees every frame
        np.testing.assert_array_equal(
            table[1:], of_tokens
        )  # in the next block, through it, so does every token


def test_attention_over_time_leaves_the_cls_token_as_it_is(quick_jit, random_params):
    model, video = model_of('divided', classifier='token'), noise(LARGE)
    params = without_output(random_params(model, video), 'MultiHeadDotProductAttention_space')
    table = by_example(sees(quick_jit, encoded(model, params), video))
    assert not table[0].any()
    np.testing.assert_array_equal(table[1:], MAY_SEE['time'])

    def by_cls(cls):
        return model.apply({'params': params | {'cls': cls}}, video)[1]['encoded']

    jacobian = quick_jit(jax.jacrev(by_cls))(params['cls'])
    np.testing.assert_array_equal(jacobian.any(axis=(0, 2, 3, 4, 5)), np.arange(49) == 0)


@pytest.mark.parametrize('attention', ATTENTIONS)
def test_no_example_sees_another_while_training(quick_jit, random_params, attention):
    rates = {'dropout_rate': 0.2, 'attention_dropout_rate': 0.2, 'drop_path_rate': 0.2}
    model, video = model_of(attention, **rates), noise((2, 2, 2))
    params = random_params(model, video)

    def logits(video):
        return model.apply({'params': params}, video, train=True, rngs={'dropout': jax.random.key(0)})[0][
            :, None
        ]

    assert by_example(sees(quick_jit, logits, video)).all()
