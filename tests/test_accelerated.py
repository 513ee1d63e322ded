import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash

from vivit_jax import sharding
from vivit_jax.models import accelerated

CPU = types.SimpleNamespace(platform='cpu', device_kind='cpu')
AMD = types.SimpleNamespace(platform='gpu', device_kind='MI300X', compute_capability='gfx942')
V100 = types.SimpleNamespace(platform='gpu', device_kind='V100', compute_capability='7.0')
A100 = types.SimpleNamespace(platform='gpu', device_kind='A100', compute_capability='8.0')
H100 = types.SimpleNamespace(platform='gpu', device_kind='H100', compute_capability='9.0')
TPU = types.SimpleNamespace(platform='tpu', device_kind='TPU v5e')
WITHIN = {'float32': 1e-5, 'bfloat16': 1e-2}


def plain(query, key, value):
    """The formula, in float32."""
    query, key, value = (part.astype(jnp.float32) for part in (query, key, value))
    scores = jnp.einsum('bhqc,bhkc->bhqk', query, key) / math.sqrt(query.shape[-1])
    return jnp.einsum('bhqk,bhkc->bhqc', jax.nn.softmax(scores), value)


def drawn(shape, dtype):
    random = np.random.default_rng(0)
    return [jnp.asarray(random.normal(size=shape), dtype) for _ in range(4)]


def with_gradients(attention, query, key, value, to_mixed):
    """What comes out, and the gradients by all three that go in."""
    mixed, backward = jax.vjp(attention, query, key, value)
    return mixed, *backward(to_mixed.astype(mixed.dtype))


def check(attention, arrays, within):
    # Optimising machine code would take longer than running it; a GPU's compiler does not know the option.
    quick = {'xla_backend_optimization_level': 0} if jax.default_backend() == 'cpu' else None
    found = jax.jit(functools.partial(with_gradients, attention), compiler_options=quick)(*arrays)
    for ours, formula in zip(found, with_gradients(plain, *arrays), strict=True):
        assert ours.dtype == arrays[0].dtype
        assert ours.shape == arrays[0].shape
        formula = formula.astype(jnp.float32)
        largest = float(jnp.abs(formula).max())
        np.testing.assert_allclose(ours.astype(jnp.float32), formula, rtol=0, atol=within * largest)
    return found[0]


@pytest.fixture
def interpreted(monkeypatch):
    """The TPU's kernels as XLA operations, which any device can run."""
    make = functools.partial(splash.make_splash_mha, interpret=True)
    monkeypatch.setattr(splash, 'make_splash_mha', make)


@pytest.mark.parametrize(
    ('shape', 'dtype'),
    [
        ((2, 2, 17, 8), 'float32'),
        ((1, 2, 197, 64), 'float32'),
        ((1, 1, 393, 80), 'float32'),
        ((1, 2, 197, 64), 'bfloat16'),
    ],
)
def test_the_tpu_kernel_is_the_formula(interpreted, shape, dtype):
    check(accelerated.flash, drawn(shape, dtype), WITHIN[dtype])


def test_the_tpu_kernel_in_the_simulator_of_a_tpu():
    with pltpu.force_tpu_interpret_mode():
        check(accelerated.flash, drawn((1, 1, 17, 8), 'float32'), 1e-5)


@pytest.mark.parametrize(('shape', 'dtype'), [((2, 2, 3137, 64), 'bfloat16'), ((1, 1, 197, 80), 'float32')])
def test_it_is_one_kernel_forward_and_two_backward_on_a_tpu(shape, dtype):
    part = jax.ShapeDtypeStruct(shape, dtype)
    traced = jax.jit(functools.partial(with_gradients, accelerated.flash)).trace(part, part, part, part)
    assert traced.lower(lowering_platforms=('tpu',)).as_text().count('@tpu_custom_call') == 3


@pytest.mark.parametrize(('clips', 'split'), [(4, True), (1, False)])
def test_each_device_computes_its_own_clips(interpreted, clips, split):
    mesh = sharding.make_mesh(2, jax.devices()[:4])
    arrays = drawn((clips, 1, 17, 8), 'float32')
    if split:
        arrays = jax.device_put(arrays, sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        mixed = check(accelerated.flash, arrays, 1e-5)
    rows = {shard.data.shape[0] for shard in mixed.addressable_shards}
    assert rows == {1}
    assert mixed.sharding.is_fully_replicated != split


@pytest.mark.parametrize(
    ('tokens', 'expected'),
    [
        (1, (128, 128)),
        (128, (128, 128)),
        (197, (256, 256)),
        (393, (512, 512)),  # also two of 256
        (785, (1024, 512)),  # also four of 256
        (1153, (1280, 640)),
        (3137, (3200, 640)),
        (12545, (12672, 384)),
    ],
)
def test_padding_is_as_little_as_whole_blocks_allow(tokens, expected):
    assert accelerated.padded_tokens(tokens) == expected


@pytest.mark.parametrize(('tokens', 'padded'), [(16, 16), (17, 18)])
def test_cudnn_is_asked_for_tokens_before_heads_an_even_number_of_them(monkeypatch, tokens, padded):
    asked = []
    really = jax.nn.dot_product_attention

    def instead(*parts, implementation, **left_out):
        asked.append((implementation, [part.shape for part in parts]))
        for given in (left_out['query_seq_lengths'], left_out['key_value_seq_lengths']):
            assert (given is None) == (padded == tokens)
        return really(*parts, **left_out, implementation='xla')

    monkeypatch.setattr(jax.nn, 'dot_product_attention', instead)
    check(accelerated.cudnn, drawn((2, 3, tokens, 8), 'bfloat16'), 1e-2)
    assert asked == [('cudnn', [(2, padded, 3, 8)] * 3)]


@pytest.mark.gpu
@pytest.mark.parametrize('shape', [(2, 12, 197, 64), (1, 3, 1569, 64), (4, 2, 17, 80)])
@pytest.mark.parametrize('dtype', ['float16', 'bfloat16'])
def test_cudnn_is_the_formula(shape, dtype):
    if jax.default_backend() != 'gpu':
        pytest.skip('needs a GPU (JAX_PLATFORMS=cuda)')
    assert accelerated.cudnn_takes(shape, dtype) == ''
    check(accelerated.cudnn, drawn(shape, dtype), 1e-2)


@pytest.mark.parametrize(
    ('device', 'per_head', 'dtype', 'reason'),
    [
        (H100, 64, 'bfloat16', ''),
        (H100, 256, 'float16', ''),
        (A100, 128, 'bfloat16', ''),
        (
            A100,
            256,
            'bfloat16',
            'it needs heads of a multiple of 8 numbers, at most 128 on this GPU, not of 256',
        ),
        (
            H100,
            264,
            'bfloat16',
            'it needs heads of a multiple of 8 numbers, at most 256 on this GPU, not of 264',
        ),
        (
            H100,
            12,
            'bfloat16',
            'it needs heads of a multiple of 8 numbers, at most 256 on this GPU, not of 12',
        ),
        (H100, 64, 'float32', 'it needs 16-bit numbers (model.dtype=bfloat16), not float32'),
        (V100, 64, 'float16', 'it needs an NVIDIA GPU of compute capability 8.0 (Ampere), and this has 7.0'),
        (AMD, 64, 'bfloat16', 'it needs an NVIDIA GPU, and this is gpu (MI300X)'),
        (CPU, 64, 'bfloat16', 'it needs an NVIDIA GPU, and this is cpu (cpu)'),
        (TPU, 64, 'bfloat16', 'it needs an NVIDIA GPU, and this is tpu (TPU v5e)'),
    ],
)
def test_what_cudnn_takes(device, per_head, dtype, reason):
    assert accelerated.cudnn_takes((1, 2, 197, per_head), jnp.dtype(dtype), device) == reason


@pytest.mark.parametrize(
    ('device', 'devices', 'dtype', 'reason'),
    [
        (TPU, 1, 'bfloat16', ''),
        (TPU, 1, 'float32', ''),
        (TPU, 1, 'float16', 'it needs float32 or bfloat16, not float16'),
        (TPU, 4, 'bfloat16', 'on 4 devices it needs a mesh in use (jax.set_mesh), to split the batch'),
        (H100, 1, 'bfloat16', 'it needs a TPU, and this is gpu (H100)'),
    ],
)
def test_what_the_tpu_kernel_takes(monkeypatch, device, devices, dtype, reason):
    monkeypatch.setattr(jax, 'device_count', lambda: devices)
    assert accelerated.flash_takes((1, 2, 197, 64), jnp.dtype(dtype), device) == reason
    with jax.set_mesh(sharding.make_mesh(1, jax.devices()[:2])):
        assert accelerated.flash_takes((1, 2, 197, 64), jnp.dtype(dtype), device) == (
            '' if devices == 4 else reason
        )


def test_where_jax_computes_counts_not_which_devices_there_are(monkeypatch):
    cpu, really = jax.devices('cpu')[1], jax.devices
    monkeypatch.setattr(jax, 'devices', lambda kind=None: really(kind) if kind else [H100])
    shape = (1, 2, 197, 64)
    assert accelerated.cudnn_takes(shape, jnp.bfloat16) == ''
    for chosen in (cpu, 'cpu'):
        with jax.default_device(chosen):
            assert accelerated.cudnn_takes(shape, jnp.bfloat16).startswith('it needs an NVIDIA GPU')


def test_here_neither_can_be_had():
    if jax.default_backend() != 'cpu':
        pytest.skip('there is an accelerator here')
    assert accelerated.cudnn_takes((1, 2, 197, 64), jnp.bfloat16).startswith('it needs an NVIDIA GPU')
    assert accelerated.flash_takes((1, 2, 197, 64), jnp.bfloat16).startswith('it needs a TPU')


def test_what_they_cannot_compute_is_said_before_they_try():
    query, key, value, _ = drawn((1, 2, 17, 12), 'bfloat16')
    with pytest.raises(
        ValueError, match=r'^attention by cuDNN: it needs heads of a multiple of 8 .* not of 12$'
    ):
        accelerated.cudnn(query, key, value)
    with pytest.raises(ValueError, match=r'^attention by cuDNN: it needs 16-bit numbers'):
        accelerated.cudnn(*(part.astype(jnp.float32) for part in (query, key, value)))
    with pytest.raises(
        ValueError, match=r'^attention by the TPU kernel: it needs float32 or bfloat16, not float16$'
    ):
        accelerated.flash(*(part.astype(jnp.float16) for part in (query, key, value)))
