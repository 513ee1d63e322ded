"""Ways to compute attention, blocks as a scan, and what the backward pass computes anew: all give the same."""

import functools
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vivit_jax.models.attention import BACKENDS, LONG, choose_backend, dot_product_attention, plain, weighed
from vivit_jax.models.blockwise import blockwise
from vivit_jax.models.encoder import REMATS
from vivit_jax.models.vivit import create_model
from vivit_jax.sharding import make_mesh

pytestmark = pytest.mark.usefixtures('optimised')


class Device:
    """Of a kind that is not here."""

    def __init__(self, platform, **more):
        self.platform, self.device_kind = platform, 'a test'
        self.__dict__.update(more)


CPU, TPU = Device('cpu'), Device('tpu')
GPU = Device('gpu', compute_capability='9.0')


def in_float64(query, key, value):
    """Softmax attention by numpy."""
    query, key, value = (np.asarray(part, np.float64) for part in (query, key, value))
    scores = query @ np.swapaxes(key, -1, -2) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ value


def gradients_in_float64(query, key, value, gradient):
    """By query, key and value, as written out by hand (softmax's derivative: W * (dW - sum(W dW)))."""
    query, key, value, gradient = (np.asarray(part, np.float64) for part in (query, key, value, gradient))
    scale = 1 / np.sqrt(query.shape[-1])
    scores = query @ np.swapaxes(key, -1, -2) * scale
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    by_weights = gradient @ np.swapaxes(value, -1, -2)
    by_scores = weights * (by_weights - (weights * by_weights).sum(axis=-1, keepdims=True)) * scale
    by_key = np.swapaxes(by_scores, -1, -2) @ query
    return by_scores @ key, by_key, np.swapaxes(weights, -1, -2) @ gradient


def heads(tokens, dtype='float32', count=4, per_head=8, spread=1.5):
    random = np.random.default_rng(tokens)
    drawn = spread * random.normal(size=(count, 2, 3, tokens, per_head))
    return [jnp.asarray(part, dtype) for part in drawn]


# Fewer than a block, a whole number of blocks, and not.
@pytest.mark.parametrize(('tokens', 'block'), [(1, 8), (7, 8), (24, 8), (37, 8), (37, 512)])
def test_blockwise_is_softmax_attention(tokens, block):
    *parts, gradient = heads(tokens)
    mixed, backward = jax.vjp(lambda *parts: blockwise(*parts, block), *parts)
    np.testing.assert_allclose(mixed, in_float64(*parts), rtol=0, atol=1e-5)
    for got, wanted in zip(backward(gradient), gradients_in_float64(*parts, gradient), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * max(1, np.abs(wanted).max()))


def test_blockwise_in_bfloat16():
    *parts, gradient = heads(37, 'bfloat16')
    mixed, backward = jax.vjp(lambda *parts: blockwise(*parts, 8), *parts)
    wanted = in_float64(*parts)
    assert mixed.dtype == jnp.bfloat16
    np.testing.assert_allclose(mixed.astype(np.float32), wanted, rtol=0, atol=1e-2 * np.abs(wanted).max())
    for got, wanted in zip(backward(gradient), gradients_in_float64(*parts, gradient), strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(np.float32), wanted, rtol=0, atol=1e-2 * np.abs(wanted).max())


def test_blockwise_stands_large_scores():
    """Differences of hundreds between scores: exp() of them would overflow without the running maximum."""
    *parts, gradient = heads(37, spread=30.0)
    mixed, backward = jax.vjp(lambda *parts: blockwise(*parts, 8), *parts)
    np.testing.assert_allclose(mixed, in_float64(*parts), rtol=1e-4, atol=1e-3)
    assert all(np.isfinite(part).all() for part in backward(gradient))


def temporary_bytes(tokens, backend):
    shape = jax.ShapeDtypeStruct((1, 2, tokens, 16), jnp.float32)

    def gradient(*parts):
        return jax.grad(lambda *parts: dot_product_attention(*parts, backend=backend).sum(), (0, 1, 2))(
            *parts
        )

    return jax.jit(gradient).lower(shape, shape, shape).compile().memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_tokens_not_with_their_square():
    few, many = temporary_bytes(2048, 'blockwise'), temporary_bytes(8192, 'blockwise')
    assert many < 4.4 * few
    assert many < temporary_bytes(8192, 'xla') / 10  # whose weights alone are 2 x 8192^2 x 4 bytes
    assert temporary_bytes(8192, 'auto') == many


def both_ways(mix):
    """The mixed values, and the gradients by query, key and value."""

    def compute(gradient, *parts):
        mixed, backward = jax.vjp(mix, *parts)
        return mixed, *backward(gradient)

    return compute


@pytest.mark.parametrize(('dtype', 'within'), [('float32', 1e-5), ('bfloat16', 5e-3)])
@pytest.mark.parametrize(
    ('backend', 'tokens'),
    [
        *itertools.product(('xla', 'blockwise'), (5, 257, 393, LONG - 1)),
        *itertools.product(('auto', 'blockwise'), (LONG + 1,)),
    ],
)
def test_backends_agree(backend, tokens, dtype, within):
    *parts, gradient = heads(tokens, dtype)
    mix = functools.partial(dot_product_attention, backend=backend)
    wanted = in_float64(*parts), *gradients_in_float64(*parts, gradient)
    for got, exact in zip(jax.jit(both_ways(mix))(gradient, *parts), wanted, strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(
            got.astype(np.float32), exact, rtol=0, atol=within * max(1, np.abs(exact).max())
        )


@pytest.mark.parametrize(
    ('mix', 'size'),
    [
        (plain, 24),
        (lambda *parts: weighed(*parts)[0], 24),
        (lambda *parts: weighed(*parts, drop=lambda weights: 2 * weights)[0], 24),
        (blockwise, 24),
        (lambda *parts: blockwise(*parts, 8), 8),
    ],
    ids=['plain', 'weighed', 'weighed, some dropped', 'one block', 'several blocks'],
)
def test_in_bfloat16_weights_and_their_gradients_stay_float32(equations, mix, size):
    """Rounded, they would no longer cancel where a softmax is peaked: no array of theirs is of 16 bits."""
    *parts, gradient = heads(24, 'bfloat16', per_head=4)
    jaxpr = jax.make_jaxpr(both_ways(mix))(gradient, *parts)
    products = 0
    for equation, _ in equations(jaxpr.jaxpr):
        arrays = [each.aval for each in (*equation.invars, *equation.outvars)]
        weights = {each.dtype for each in arrays if each.shape[-2:] == (size, size)} - {np.dtype(bool)}
        assert weights <= {np.dtype('float32')}
        products += equation.primitive.name == 'dot_general' and bool(weights)
    assert products >= 6  # scores and mixed values; gradients by weights and values, queries and keys


@pytest.mark.parametrize(
    ('device', 'dtype', 'tokens', 'chosen'),
    [
        (CPU, 'float32', 197, 'xla'),
        (CPU, 'float32', 785, 'xla'),
        (CPU, 'float32', 1569, 'blockwise'),
        (CPU, 'bfloat16', 3137, 'blockwise'),
        (GPU, 'bfloat16', 17, 'cudnn'),
        (GPU, 'bfloat16', 3137, 'cudnn'),
        (GPU, 'float32', 197, 'xla'),
        (GPU, 'float32', 785, 'xla'),
        (GPU, 'float32', 3137, 'blockwise'),
        (TPU, 'bfloat16', 785, 'xla'),
        (TPU, 'bfloat16', 3137, 'flash'),
        (TPU, 'float32', 3137, 'flash'),
    ],
)
def test_auto_takes_what_fits_the_device(device, dtype, tokens, chosen):
    with jax.sharding.use_abstract_mesh(make_mesh().abstract_mesh):  # as steps are traced
        assert choose_backend('auto', (8, 12, tokens, 64), jnp.dtype(dtype), device) == chosen


def test_what_cannot_be_is_said_in_a_line():
    shape = (8, 12, 197, 64)
    wanted = r"^model\.attention_backend='cudnn': it needs an NVIDIA GPU, and this is cpu.*; choose auto$"
    with pytest.raises(ValueError, match=wanted):
        choose_backend('cudnn', shape, jnp.bfloat16)
    with pytest.raises(
        ValueError, match=r"^model\.attention_backend='flash': it needs a TPU.*; choose auto$"
    ):
        choose_backend('flash', shape, jnp.bfloat16)
    with pytest.raises(ValueError, match='16-bit'):
        choose_backend('cudnn', shape, jnp.float32, GPU)
    with pytest.raises(ValueError, match=f"'fast': choose one of {', '.join(BACKENDS)}$"):
        choose_backend('fast', shape, jnp.float32)
    with pytest.raises(
        ValueError, match=r"^model\.attention_backend='cudnn' knows no dropout.*=0\.1: choose auto"
    ):
        create_model(2, attention_backend='cudnn', attention_dropout_rate=0.1)
    with pytest.raises(ValueError, match=r"^model\.remat='all': choose one of none, attention, block, dots$"):
        create_model(2, remat='all')


def test_no_dropout_of_weights_is_left_out(monkeypatch):
    """A sequence for which auto takes a kernel without dropout, and a model that asks for dropout."""
    monkeypatch.setattr('vivit_jax.models.attention.LONG', 4)
    settings = {'num_layers': 1, 'num_heads': 2, 'width': 8, 'mlp_dim': 8, 'tubelet': (1, 4, 4)}
    model = create_model(2, attention='spatio_temporal', attention_dropout_rate=0.5, **settings)
    video = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 8, 8, 3)), jnp.float32)
    params = model.init(jax.random.key(0), video)

    def encoded(seed):
        rngs = {'dropout': jax.random.key(seed)}
        return model.apply(params, video, train=True, rngs=rngs)[1]['encoded']

    assert np.abs(encoded(0) - encoded(1)).max() > 1e-3
    np.testing.assert_array_equal(encoded(0), encoded(0))


# --- blocks as a scan, and what is computed anew ---

PATTERNS = ('spatio_temporal', 'factorised_encoder', 'factorised_self_attention', 'factorised_dot_product')


@pytest.fixture(scope='module')
def loss_of(random_params):
    """Returns a function of the way to run a model of three layers, all kinds of dropout among them."""
    video = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 8, 8, 3)), jnp.float32)

    def prepare(attention, train, classifier='gap', **run):
        model = create_model(
            3,
            attention=attention,
            classifier=classifier,
            num_layers=3,
            num_heads=2,
            width=8,
            mlp_dim=12,
            temporal_layers=2,
            tubelet=(2, 4, 4),
            dropout_rate=0.1,
            attention_dropout_rate=0.2,
            drop_path_rate=0.3,
            **run,
        )
        params = random_params(model, video)

        def loss(params):
            logits, _ = model.apply(
                {'params': params}, video, train=train, rngs={'dropout': jax.random.key(1)}
            )
            return jnp.sum(jnp.sin(logits))

        return loss, params

    return prepare


@pytest.mark.parametrize(
    ('attention', 'classifier'),
    [*((attention, 'gap') for attention in PATTERNS), *((attention, 'token') for attention in PATTERNS[:2])],
)
def test_scan_and_remat_change_no_number(loss_of, quick_jit, attention, classifier):
    """Values, gradients, and the draws of dropout and stochastic depth."""
    results = []
    ways = [(False, 'none'), (True, 'none'), (True, 'dots'), (True, 'attention'), (True, 'block')]
    for scan_layers, remat in [*ways, (False, 'block')] if attention == PATTERNS[0] else ways[:4]:
        loss, params = loss_of(attention, True, classifier, scan_layers=scan_layers, remat=remat)
        results.append(jax.device_get(quick_jit(jax.value_and_grad(loss))(params)))
    (first, gradient), *others = results
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    assert largest > 1e-3
    for value, other in others:
        np.testing.assert_allclose(value, first, rtol=1e-6)
        chex.assert_trees_all_close(other, gradient, rtol=0, atol=1e-5 * largest)


def primitives(jaxpr, equations):
    """Names of primitives, each with how many there are, those of inner programs too."""
    names = [equation.primitive.name for equation, _ in equations(jaxpr.jaxpr)]
    return {name: len(list(group)) for name, group in itertools.groupby(sorted(names))}


@pytest.mark.parametrize('scan_layers', [True, False])
def test_what_the_backward_pass_computes_anew(loss_of, equations, scan_layers):
    """Counted are exponentials: of softmax, one in the forward pass of a layer (or of all, in a scan)."""
    counts = {}
    for remat in REMATS:
        loss, params = loss_of('spatio_temporal', False, scan_layers=scan_layers, remat=remat)
        counts[remat] = primitives(jax.make_jaxpr(jax.grad(loss))(params), equations)
    layers = 1 if scan_layers else 3
    assert counts['none']['exp'] == layers
    assert {counts[remat]['exp'] for remat in ('attention', 'dots', 'block')} == {2 * layers}
    # Products: those of the MLP and of the projections are computed twice by 'block' alone, those of the attention
    # by all.
    products = {remat: counts[remat]['dot_general'] for remat in REMATS}
    assert products['none'] < products['dots'] < products['block']
    assert ('scan' in counts['none']) is scan_layers


def test_a_scan_compiles_one_layer(loss_of):
    """The compiled program does not grow with the layers."""
    sizes = {}
    for scan_layers, layers in itertools.product((True, False), (2, 6)):
        model = create_model(
            2, num_layers=layers, num_heads=1, width=4, mlp_dim=4, temporal_layers=0, tubelet=(1, 4, 4),
            classifier='gap', scan_layers=scan_layers,
        )  # fmt: skip
        video = jnp.zeros((1, 1, 8, 8, 3))
        params = jax.eval_shape(model.init, jax.random.key(0), video)
        lowered = jax.jit(lambda p, v, model=model: model.apply(p, v)[0]).lower(params, video)
        compiled = lowered.compile({'xla_backend_optimization_level': 0}).as_text()
        sizes[scan_layers, layers] = len(re.findall(r' dot\(|dot_general', compiled))
    assert sizes[True, 2] == sizes[True, 6]
    assert sizes[False, 6] > 2.5 * sizes[False, 2]
