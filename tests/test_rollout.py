"""Attention rollout, compared with products of whole matrices that are written out here, token by token."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vivit_jax import rollout
from vivit_jax.models.patterns import ATTENTIONS
from vivit_jax.models.vivit import create_model

GRID = NT, NH, NW = 2, 4, 6
N = NT * NH * NW
BATCH, HEADS, LAYERS, WIDTH = 2, 4, 2, 8
WITH_CLS = ('spatio_temporal', 'factorised_encoder', 'divided')
CASES = [
    *((attention, 'gap') for attention in ATTENTIONS),
    *((attention, 'token') for attention in WITH_CLS),
]


def place(token):
    """Time, row and column of a token."""
    return token // (NH * NW), token // NW % NH, token % NW


def together(over, one, other):
    """Whether two tokens attend to one another, by what the attention is over."""
    (t, y, x), (u, v, w) = place(one), place(other)
    return {
        'all': True,
        'space': t == u,
        'time': (y, x) == (v, w),
        'height': (t, x) == (u, w),
        'width': (t, y) == (u, v),
        'window': (y // (NH // 2), x // (NW // 2)) == (v // (NH // 2), w // (NW // 2)),
        'grid': (t % 2, y % 2, x % 2) == (u % 2, v % 2, w % 2),
    }[over]


def members(over):
    """The groups of an attention, each in the order of its tokens, in the order of their first tokens."""
    found = []
    for token in range(N):
        if not any(token in group for group in found):
            found.append([other for other in range(N) if together(over, token, other)])
    return found


def model_of(attention, classifier='gap', **settings):
    defaults = {'num_layers': LAYERS, 'temporal_layers': 2, 'num_heads': HEADS, 'width': WIDTH}
    fields = defaults | {'mlp_dim': 8, 'tubelet': (2, 4, 4)} | settings
    return create_model(3, attention=attention, classifier=classifier, **fields)


def softmax(scores):
    exponents = np.exp(scores - scores.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


@functools.cache
def shapes(model):
    """What a model returns, as shapes."""
    video = jax.ShapeDtypeStruct((BATCH, NT * 2, NH * 4, NW * 4, 1), np.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), video)['params']
    apply = functools.partial(model.apply, capture_attention=True)
    return jax.eval_shape(apply, {'params': params}, video)[1]


def planted(model, scores=None):
    """Weights in the shapes that a model captures them in; random, or what `scores(shape)` makes of each."""
    random, captured = np.random.default_rng(0), shapes(model)
    scores = scores or (lambda shape: 2 * random.normal(size=shape))
    return {
        'tokens': np.zeros((BATCH, *GRID, 1), np.float32),
        'attention': jax.tree.map(
            lambda leaf: softmax(scores(leaf.shape)).astype(np.float32), captured['attention']
        ),
        'encoded': random.normal(size=captured['encoded'].shape),
        'spatial': random.normal(size=(BATCH, NT, NH * NW, WIDTH)),
    }


def dense(weights, over, cls):
    """An attention over groups as one matrix `[m m]`, of weights `[g m m]`; the cls token sees with each group."""
    matrix = np.zeros((cls + N, cls + N))
    groups = members(over)
    for group, table in zip(groups, weights, strict=True):
        with_cls = len(table) - len(group)
        for i, row in enumerate([*[0] * with_cls, *(cls + token for token in group)]):
            for j, column in enumerate([*[0] * with_cls, *(cls + token for token in group)]):
                matrix[row, column] += table[i, j] / (len(groups) if with_cls and row == 0 else 1)
    return matrix


def one_layer(matrix, as_shares=True):
    """The attention and the residual connection around it."""
    matrix = matrix + np.eye(len(matrix))
    return matrix / matrix.sum(1, keepdims=True) if as_shares else matrix


def product(matrices):
    """All layers, the last at the left."""
    result = np.eye(len(matrices[0]))
    for matrix in matrices:
        result = matrix @ result
    return result


def read(matrix, classifier):
    """Of a matrix `[m m]` what the classifier reads, of the tokens, adding up to 1."""
    row = matrix[0, 1:] if classifier == 'token' else matrix.mean(0)
    return row / row.sum()


def by_hand(model, out, example, fuse, overs=None, as_shares=True):
    """The map, time and space of one example, by whole matrices."""
    cls = int(model.classifier == 'token')
    less = 0 if as_shares else 1

    def roll(matrices):
        whole = product([one_layer(matrix, as_shares) for matrix in matrices])
        return whole - less * np.eye(len(whole))

    if model.attention == 'factorised_encoder':
        spatial, temporal = (out['attention'][name] for name in ('SpatialTransformer', 'TemporalTransformer'))
        space = np.stack(
            [
                read(roll([fuse(layer['space'][example, t]) for layer in spatial]), model.classifier)
                for t in range(NT)
            ]
        )
        time = read(roll([fuse(layer['time'][example]) for layer in temporal]), model.classifier)
        return (time[:, None] * space).reshape(GRID), time, space.reshape(GRID)

    def rolled(overs):
        matrices = []
        for layer in out['attention']['Transformer']:
            parts = {
                over: dense(
                    [
                        fuse(table)
                        for table in (weights[example] if over != 'all' else weights[example][None])
                    ],
                    over,
                    cls,
                )
                for over, weights in layer.items()
                if overs is None or over in overs
            }
            order = {
                'factorised_self_attention': model.attention_order.split('_'),
                'divided': ['time', 'space'],
                'axial': ['time', 'height', 'width'],
                'local_global': ['window', 'grid'],
            }.get(model.attention, list(parts))
            if model.attention == 'factorised_dot_product':
                matrices.append(sum(parts.values()) / len(parts))
            else:
                matrices += [parts[over] for over in order if over in parts]
        return matrices

    def shares(overs):
        matrix = roll(rolled(overs))
        if overs == ('time',) and model.attention == 'divided' and cls:
            return read(matrix[1:, 1:], 'gap').reshape(GRID)
        return read(matrix, model.classifier).reshape(GRID)

    whole = shares(None)
    time_and_space = model.attention not in ('spatio_temporal', 'local_global', 'space_only')
    space = shares(('space', 'height', 'width')) if time_and_space else whole
    return (
        whole,
        (shares(('time',)) if time_and_space else whole).sum((1, 2)),
        space / space.sum((1, 2), keepdims=True),
    )


def assert_by_hand(model, out, fused, fuse, **options):
    found = rollout.rollout(model, {**out, 'attention': fused}, **options)
    for example in range(BATCH):
        expected = by_hand(model, out, example, fuse, as_shares=not options.get('moved_only'))
        for name, numbers in zip(('map', 'time', 'space'), expected, strict=True):
            np.testing.assert_allclose(
                getattr(found, name)[example], numbers, rtol=2e-6, atol=0, err_msg=name
            )
    return found


@pytest.mark.parametrize('fusion', ['mean', 'max'])
@pytest.mark.parametrize(('attention', 'classifier'), CASES)
def test_planted_weights(attention, classifier, fusion):
    model = model_of(attention, classifier)
    out = planted(model)
    fuse = {'mean': lambda table: table.mean(0), 'max': lambda table: table.max(0)}[fusion]
    found = assert_by_hand(model, out, rollout.fuse(out['attention'], fusion), fuse)
    assert np.ptp(found.map[0]) > 0.1 / N
    assert np.abs(found.map[0] - found.map[1]).max() > 0.01 / N


def test_other_order():
    model = model_of('factorised_self_attention', attention_order='time_space')
    out = planted(model)
    fused = rollout.fuse(out['attention'], 'mean')
    found = assert_by_hand(model, out, fused, lambda table: table.mean(0))
    other = rollout.rollout(model_of('factorised_self_attention'), {**out, 'attention': fused})
    assert np.abs(found.map - other.map).max() > 1e-4


@pytest.mark.parametrize(('attention', 'classifier'), CASES)
def test_shares_add_up_to_one(attention, classifier):
    model = model_of(attention, classifier)
    found = rollout.rollout(model, _fused(planted(model)))
    np.testing.assert_allclose(found.map.sum((1, 2, 3)), 1, rtol=1e-6)
    np.testing.assert_allclose(found.time.sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(found.space.sum((2, 3)), 1, rtol=1e-6)
    assert found.map.min() > 0


def _fused(out, fusion='mean'):
    return {**out, 'attention': rollout.fuse(out['attention'], fusion)}


@pytest.mark.parametrize(('attention', 'classifier'), CASES)
def test_even_attention_gives_an_even_map(attention, classifier):
    model = model_of(attention, classifier)
    found = rollout.rollout(model, _fused(planted(model, scores=np.zeros)))
    np.testing.assert_allclose(found.map, 1 / N, rtol=1e-6)
    np.testing.assert_allclose(found.time, 1 / NT, rtol=1e-6)
    np.testing.assert_allclose(found.space, 1 / (NH * NW), rtol=1e-6)


@pytest.mark.parametrize(('attention', 'classifier'), CASES)
def test_attention_to_one_token_gives_that_token(attention, classifier):
    model = model_of(attention, classifier)

    def first(shape):
        """Everybody looks at the first token of the group, the one after the cls token."""
        scores = np.zeros(shape)
        groups = {'space': NH * NW, 'time': NT, 'all': N}.values()
        scores[..., 0 if shape[-1] in groups or classifier != 'token' else 1] = 50
        return scores

    found = rollout.rollout(model, _fused(planted(model, scores=first)))
    assert found.map[0].argmax() == 0
    # What the identities do not hold back at every layer is all there.
    if attention == 'spatio_temporal':
        left = 0.5**LAYERS
        expected = 1 if classifier == 'token' else 1 - left + left / N
        np.testing.assert_allclose(found.map[:, 0, 0, 0], expected, rtol=1e-6)


def test_averaged_frames_count_the_same():
    model = model_of('factorised_encoder', 'token', temporal_layers=0)
    found = rollout.rollout(model, _fused(planted(model)))
    np.testing.assert_allclose(found.time, 1 / NT, rtol=1e-6)
    np.testing.assert_allclose(found.map, found.space / NT, rtol=1e-6)


def test_what_other_classifiers_read():
    model = model_of('spatio_temporal')
    out = planted(model)
    matrix = [
        product([one_layer(layer['all'][example].mean(0)) for layer in out['attention']['Transformer']])
        for example in range(BATCH)
    ]
    largest = out['encoded'].argmax(1)  # [b d]
    for classifier, rows in {
        'gsp': [m.mean(0) for m in matrix],
        'first_token': [m[0] for m in matrix],
        'gmp': [m[tokens].mean(0) for m, tokens in zip(matrix, largest, strict=True)],
    }.items():
        found = rollout.rollout(model_of('spatio_temporal', classifier), _fused(out))
        np.testing.assert_allclose(found.map.reshape(BATCH, N), rows, rtol=1e-6, err_msg=classifier)


def test_frames_by_their_largest_channels():
    model = model_of('factorised_encoder', 'gmp')
    out = planted(model)
    found = rollout.rollout(model, _fused(out))
    spatial, temporal = (out['attention'][name] for name in ('SpatialTransformer', 'TemporalTransformer'))
    for example in range(BATCH):
        matrix = product([one_layer(layer['time'][example].mean(0)) for layer in temporal])
        np.testing.assert_allclose(
            found.time[example], matrix[out['encoded'][example].argmax(0)].mean(0), rtol=1e-6
        )
        for t in range(NT):
            matrix = product([one_layer(layer['space'][example, t].mean(0)) for layer in spatial])
            row = matrix[out['spatial'][example, t].argmax(0)].mean(0)
            np.testing.assert_allclose(found.space[example, t].ravel(), row, rtol=1e-6)


# --- Gradients ---


@pytest.mark.parametrize(('attention', 'classifier'), CASES)
def test_planted_gradients(attention, classifier):
    model = model_of(attention, classifier)
    out = planted(model)
    random = np.random.default_rng(1)
    gradients = jax.tree.map(
        lambda weights: random.normal(size=weights.shape).astype(np.float32), out['attention']
    )
    weighted = jax.tree.map(lambda weights, by: weights * by, out['attention'], gradients)
    fused = rollout.fuse(out['attention'], 'gradient', gradients)
    positive = {**out, 'attention': weighted}
    assert_by_hand(model, positive, fused, lambda table: np.maximum(table, 0).mean(0), moved_only=True)


def clips():
    pixels = np.random.default_rng(0).uniform(-1, 1, (BATCH, NT * 2, NH * 4, NW * 4, 1))
    return jnp.asarray(pixels, jnp.float32)


@pytest.mark.parametrize(
    ('attention', 'classifier'), [*((attention, 'gap') for attention in ATTENTIONS[:4]), ('divided', 'token')]
)
def test_of_a_model_as_it_is_captured(random_params, quick_jit, attention, classifier):
    model, video = model_of(attention, classifier, num_layers=1, temporal_layers=1), clips()
    params = random_params(model, video)
    found, logits = rollout.on_clips(model, params, video)
    apply = quick_jit(lambda params: model.apply({'params': params}, video, capture_attention=True))
    expected, out = apply(params)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)
    out = jax.tree.map(np.asarray, out)
    for example in range(BATCH):
        by = by_hand(model, out, example, lambda table: table.mean(0))
        np.testing.assert_allclose(found.map[example], by[0], rtol=1e-4)


@pytest.mark.parametrize(('attention', 'classifier'), [('factorised_encoder', 'token'), ('divided', 'gap')])
def test_gradients_are_those_of_the_logit(random_params, quick_jit, attention, classifier, monkeypatch):
    """A weight that is a little larger, all else the same, makes the logit larger by its gradient."""
    model, video = model_of(attention, classifier, num_layers=1, temporal_layers=1), clips()
    params = random_params(model, video)
    seen = {}
    fuse = rollout.fuse

    def watched(weights, fusion, gradients):
        jax.debug.callback(lambda tree: seen.update(tree), gradients)
        return fuse(weights, fusion, gradients)

    monkeypatch.setattr(rollout, 'fuse', watched)
    which = np.array([2, 0])
    rollout.on_clips(model, params, video, fusion='gradient', classes=which)
    monkeypatch.undo()
    jax.effects_barrier()
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), video, capture_attention=True))
    random = np.random.default_rng(0)
    nudge = jax.tree.map(lambda leaf: random.normal(size=leaf.shape), shapes['perturbations'])

    apply = quick_jit(lambda variables: model.apply(variables, video, capture_attention=True)[0])

    def logit(step):
        variables = {'params': params, 'perturbations': jax.tree.map(lambda x: np.float32(step * x), nudge)}
        return np.asarray(apply(variables), np.float64)[np.arange(BATCH), which].sum()

    slope = (logit(1e-2) - logit(-1e-2)) / 2e-2
    flat = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(seen)]
    along = sum(float(a @ b.ravel()) for a, b in zip(flat, jax.tree.leaves(nudge), strict=True))
    np.testing.assert_allclose(along, slope, rtol=1e-2)


def test_what_speaks_for_another_class_is_elsewhere(random_params):
    model, video = model_of('spatio_temporal', 'token', num_layers=1), clips()
    params = random_params(model, video)
    maps = [
        rollout.on_clips(model, params, video, fusion='gradient', classes=np.full(BATCH, k))[0].map
        for k in range(3)
    ]
    chosen, logits = rollout.on_clips(model, params, video, fusion='gradient')
    for example, k in enumerate(logits.argmax(1)):
        np.testing.assert_allclose(chosen.map[example], maps[k][example], rtol=1e-4)
    assert np.abs(maps[0] - maps[1]).max() > 0.1 / N


def test_nothing_speaks_for_a_class_without_a_gradient(random_params):
    model, video = model_of('factorised_encoder', num_layers=1, temporal_layers=1), clips()
    params = random_params(model, video)
    params['output_projection']['kernel'] = np.zeros((WIDTH, 3), np.float32)
    found, _ = rollout.on_clips(model, params, video, fusion='gradient')
    assert not found.map.any()
    assert not found.time.any()


def test_nothing_is_added_where_nothing_is_captured(random_params):
    model, video = model_of('divided'), clips()
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), video))
    assert set(variables) == {'params'}
    capturing = jax.eval_shape(lambda: model.init(jax.random.key(0), video, capture_attention=True))
    assert set(capturing) == {'params', 'perturbations'}
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(capturing['perturbations'])]
    assert sum(sizes) == LAYERS * BATCH * HEADS * (NH * NW * NT**2 + NT * (NH * NW) ** 2)


def test_what_cannot_be_asked():
    model = model_of('spatio_temporal')
    with pytest.raises(ValueError, match="fusion='sum': choose one of mean, max, gradient"):
        rollout.on_clips(model, {}, clips(), fusion='sum')
    headless = create_model(0, attention='spatio_temporal', classifier='gap', width=8, num_heads=2)
    with pytest.raises(ValueError, match='the model has none'):
        rollout.on_clips(headless, {}, clips(), fusion='gradient')
