"""Placement: what is split and what is copied, and that the numbers do not depend on it."""

import collections
import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from vivit_jax import create_model, sharding
from vivit_jax.checkpoint import Checkpoints
from vivit_jax.optimizer import create_optimizer, learning_rate_schedule
from vivit_jax.train_step import TrainState, create_state, train_step


@pytest.mark.parametrize('fsdp', [1, 2, 4, 8])
def test_a_mesh_has_all_devices(fsdp):
    mesh = sharding.make_mesh(fsdp)
    assert dict(mesh.shape) == {'data': 8 // fsdp, 'fsdp': fsdp}
    assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize('fsdp', [-1, 0, 3, 16])
def test_a_mesh_that_cannot_be(fsdp):
    with pytest.raises(
        ValueError, match=rf'sharding.fsdp={fsdp}: must divide the number of devices, 8'
    ) as caught:
        sharding.make_mesh(fsdp)
    assert '\n' not in str(caught.value)


def momentum(learning_rate=0.1):
    schedule = learning_rate_schedule(
        learning_rate=learning_rate, schedule='constant', warmup_steps=0.0, total_steps=10
    )
    return create_optimizer(
        name='momentum',
        schedule=schedule,
        max_grad_norm=1.0,
        weight_decay=0.0,
        weight_decay_mode='decoupled',
        weight_decay_mask='kernels',
    )


# Of the factorised encoder B/16x2: the axis that is split, None for copies.
SPLIT = {
    'embedding/kernel': 4,  # 2 16 16 3 768
    'embedding/bias': None,
    'cls_SpatialTransformer': None,
    'SpatialTransformer/posembed_input/pos_embedding': 2,  # 1 197 768
    'TemporalTransformer/posembed_input/pos_embedding': None,  # 1 17 768 is small
    'SpatialTransformer/encoderblock_11/LayerNorm_0/scale': None,
    'SpatialTransformer/encoderblock_11/MultiHeadDotProductAttention_0/query/kernel': 0,  # 768 12 64
    'SpatialTransformer/encoderblock_11/MultiHeadDotProductAttention_0/query/bias': None,
    'SpatialTransformer/encoderblock_11/MultiHeadDotProductAttention_0/out/kernel': 2,  # 12 64 768
    'SpatialTransformer/encoderblock_11/MlpBlock_0/Dense_0/kernel': 1,  # 768 3072
    'SpatialTransformer/encoderblock_11/MlpBlock_0/Dense_0/bias': None,
    'TemporalTransformer/encoderblock_3/MlpBlock_0/Dense_1/kernel': 0,  # 3072 768
    'output_projection/kernel': 0,  # 768 400
}


@pytest.fixture(scope='module')
def base_shapes():
    create = functools.partial(
        create_state, create_model(400), momentum(), (32, 224, 224, 3), seed=0, with_ema=True
    )
    return jax.eval_shape(create)


@pytest.mark.parametrize('fsdp', [1, 2, 4, 8])
def test_large_arrays_are_split_over_fsdp_alone(base_shapes, fsdp):
    mesh = sharding.make_mesh(fsdp)
    placed = sharding.state_sharding(mesh, base_shapes)
    by_name = {
        '/'.join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(placed.params)
    }
    for name, axis in SPLIT.items():
        copied = axis is None or fsdp == 1
        assert by_name[name].spec == (
            P() if copied else P(*[None] * axis, 'fsdp', *by_name[name].spec[axis + 1 :])
        )
        assert [part for part in by_name[name].spec if part] == ([] if copied else ['fsdp'])
    # The moving average and the momentum, of the parameters' shapes, lie where those do; the step is everywhere.
    assert placed.ema == placed.params
    assert [leaf for leaf in jax.tree.leaves(placed.opt_state) if leaf.spec != P()] == [
        leaf for leaf in jax.tree.leaves(placed.params) if leaf.spec != P()
    ]
    assert placed.step.spec == P()
    # So each device holds hardly more than its share: the small arrays are 0.2 % of all.
    whole = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(base_shapes.params))
    held = sum(
        math.prod(where.shard_shape(leaf.shape))
        for where, leaf in zip(
            jax.tree.leaves(placed.params), jax.tree.leaves(base_shapes.params), strict=True
        )
    )
    assert whole / fsdp <= held <= whole / fsdp * 1.02


@pytest.mark.parametrize(
    ('shape', 'spec'),
    [
        ((), P()),
        ((127, 129), P()),  # one below the smallest that is shared: 2**14 - 1
        ((128, 128), P('fsdp', None)),
        ((1001, 197), P()),  # nothing that 8 divides
        ((1001, 24), P(None, 'fsdp')),  # the longest that 8 divides, not the longest
        ((3, 16, 4096), P(None, None, 'fsdp')),
    ],
    ids=str,
)
def test_the_longest_axis_that_divides_is_split(shape, spec):
    mesh = sharding.make_mesh(8)
    assert sharding.state_sharding(mesh, jax.ShapeDtypeStruct(shape, jnp.float32)).spec == spec


def test_a_batch_is_split_over_all_devices():
    mesh = sharding.make_mesh(2)
    rows = np.arange(16, dtype=np.int32)
    placed = sharding.to_global({'label': rows}, mesh)['label']
    assert [shard.data.shape for shard in placed.addressable_shards] == [(2,)] * 8
    np.testing.assert_array_equal(placed, rows)


MESHES = {
    '1 device': lambda: sharding.make_mesh(1, jax.devices()[:1]),
    '8 data-parallel': lambda: sharding.make_mesh(1),
    '2 x 4': lambda: sharding.make_mesh(4),
    '8 fsdp': lambda: sharding.make_mesh(8),
    '2 fsdp': lambda: sharding.make_mesh(2, jax.devices()[:2]),
}
ON_EIGHT = [name for name in MESHES if '8' in name or 'x' in name]
STEPS = 10


def batches():
    random = np.random.default_rng(0)
    for _ in range(STEPS):
        yield {
            'video': random.integers(0, 256, (16, 4, 16, 16, 1), dtype=np.uint8),
            'label': random.integers(0, 8, 16, dtype=np.int32),
            # Unlike many on each device, and none on the first: what is averaged are examples, not devices.
            'mask': np.arange(16) >= 3,
        }


@pytest.fixture(scope='module')
def trained(quick_jit):
    """Trains as `train.Run` does; returns scalars by step, the end, the compiled step, a batch, the creator."""

    @functools.cache
    def run(name):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharding, 'SMALLEST_SHARED', 1)  # else a tiny model would be copied everywhere
            return train_on(MESHES[name](), quick_jit)

    return run


def train_on(mesh, jit):
    model = create_model(
        8,
        num_layers=1,
        temporal_layers=1,
        num_heads=2,
        width=16,
        mlp_dim=32,
        tubelet=(2, 8, 8),
        kernel_init='random',
        dropout_rate=0.1,
        attention_dropout_rate=0.1,
        drop_path_rate=0.2,
    )
    optimizer = momentum()
    create = functools.partial(create_state, model, optimizer, (4, 16, 16, 1), seed=0, with_ema=True)
    placement = sharding.state_sharding(mesh, jax.eval_shape(create))
    chex.clear_trace_counter()

    @chex.assert_max_traces(n=1)
    def step(state, batch):
        return train_step(
            state,
            batch,
            model=model,
            optimizer=optimizer,
            loss='softmax',
            head_sizes=(8,),
            label_smoothing=0.1,
            mixup_alpha=0.3,
            ema_decay=0.9,
            seed=0,
            mesh=mesh,
        )

    step = jit(
        step,
        donate_argnums=0,
        in_shardings=(placement, sharding.batch_sharding(mesh)),
        out_shardings=(placement, sharding.replicated(mesh)),
    )
    state = jit(create, out_shardings=placement)()
    scalars = []
    for batch in batches():
        placed = sharding.to_global(batch, mesh)
        state, of_step = step(state, placed)
        scalars.append(jax.device_get(of_step))
    assert step._cache_size() == 1  # compiled once as well as traced once
    return scalars, state, step, placed, jit(create, out_shardings=placement)


@pytest.mark.parametrize('name', ON_EIGHT)
def test_ten_steps_do_not_depend_on_the_devices(trained, name):
    expected, alone, *_ = trained('1 device')
    scalars, state, *_ = trained(name)
    for key in ('loss', 'grad_norm', 'update_norm'):
        np.testing.assert_allclose(
            [row[key] for row in scalars], [row[key] for row in expected], rtol=0, atol=1e-5
        )
    for part in ('params', 'ema', 'opt_state'):
        chex.assert_trees_all_close(
            jax.device_get(getattr(state, part)), jax.device_get(getattr(alone, part)), rtol=0, atol=1e-5
        )
    assert state.step == STEPS
    # It did train, and on many devices.
    assert expected[0]['loss'] == pytest.approx(math.log(8), abs=1e-5)
    assert abs(expected[-1]['loss'] - expected[0]['loss']) > 1e-3
    kernel = state.params['SpatialTransformer']['encoderblock_0']['MlpBlock_0']['Dense_0']['kernel']
    assert len(kernel.sharding.device_set) == 8
    assert kernel.addressable_shards[0].data.shape == (16, 32 // MESHES[name]().shape['fsdp'])


@pytest.mark.parametrize(
    'route',
    [
        ('8 fsdp', '1 device', '2 fsdp'),
        ('1 device', '2 fsdp', '8 data-parallel'),
        ('8 data-parallel', '2 x 4', '1 device'),
    ],
    ids=' to '.join,
)
def test_a_run_goes_on_on_other_devices(trained, route, tmp_path, monkeypatch):
    """Saved after four steps and after seven, restored on another number of devices, copied or in parts."""
    expected, alone, *_ = trained('1 device')
    monkeypatch.setattr(sharding, 'SMALLEST_SHARED', 1)
    scalars, given = [], list(batches())
    for name, legs in zip(route, (range(4), range(4, 7), range(7, STEPS)), strict=True):
        _, _, step, _, create = trained(name)
        mesh, shapes = MESHES[name](), jax.eval_shape(create)
        with Checkpoints(tmp_path) as checkpoints:
            if legs.start == 0:
                state = create()
            else:
                assert checkpoints.recover() == legs.start
                items = {'params': shapes.params, 'ema': shapes.ema, 'optimizer': shapes.opt_state}
                saved = checkpoints.restore(legs.start, mesh, **items)
                count = jax.device_put(np.int32(legs.start), sharding.replicated(mesh))
                state = TrainState(count, saved['params'], saved['optimizer'], saved['ema'])
            for number in legs:
                state, of_step = step(state, sharding.to_global(given[number], mesh))
                scalars.append(jax.device_get(of_step))
            checkpoints.save(
                legs.stop,
                params=state.params,
                ema=state.ema,
                optimizer=state.opt_state,
                meta={},
                metrics=None,
            )
    for key in ('loss', 'grad_norm', 'update_norm'):
        np.testing.assert_allclose(
            [row[key] for row in scalars], [row[key] for row in expected], rtol=0, atol=1e-5
        )
    for part in ('params', 'ema', 'opt_state'):
        chex.assert_trees_all_close(
            jax.device_get(getattr(state, part)), jax.device_get(getattr(alone, part)), rtol=0, atol=1e-5
        )


def test_randomness_comes_from_the_step(trained):
    _, state, step, batch, _ = trained('1 device')
    values, placement = jax.device_get(state), jax.tree.map(lambda leaf: leaf.sharding, state)
    norms = []
    for number in (0, 0, 1):
        again = jax.device_put(values.replace(step=np.int32(number)), placement)  # the step takes its buffers
        norms.append(float(step(again, batch)[1]['grad_norm']))
    assert norms[0] == norms[1]
    assert abs(norms[0] - norms[2]) > 1e-3


def test_what_is_traced_within_a_mesh_knows_it():
    mesh, seen = sharding.make_mesh(2), []

    def traced(x):
        seen.append(jax.sharding.get_abstract_mesh())
        return x

    jax.jit(sharding.within(mesh, traced))(1.0)
    jax.jit(traced)(2.0)
    assert seen[0] == mesh.abstract_mesh
    assert seen[1].empty


def test_a_model_within_a_mesh_of_ones_own(unchecked):
    model = create_model(
        3, num_layers=1, num_heads=1, width=4, mlp_dim=4, temporal_layers=0, tubelet=(1, 8, 8)
    )
    video = jnp.ones((8, 1, 16, 16, 3))
    params = jax.jit(model.init)(jax.random.key(0), video)
    apply = jax.jit(lambda params, video: model.apply(params, video)[1]['encoded'])
    alone = apply(params, video)
    with jax.set_mesh(jax.make_mesh((8,), ('clips',), axis_types=(jax.sharding.AxisType.Auto,))):
        np.testing.assert_array_equal(apply(params, video), alone)


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['none', 'block'])
def test_the_largest_model_is_held_in_parts_and_nowhere_whole(unchecked, remat):
    """ViViT-H's blocks, four of its 32: state and step as `run.Run` compiles them, with an eighth on each device."""
    mesh = sharding.make_mesh(8)
    huge = {'num_heads': 16, 'width': 1280, 'mlp_dim': 5120, 'tubelet': (2, 14, 14)}
    model = create_model(8, num_layers=4, temporal_layers=0, remat=remat, scan_layers=True, **huge)
    clip = (4, 28, 28, 3)
    create = functools.partial(create_state, model, momentum(), clip, seed=0, with_ema=False)
    shapes = jax.eval_shape(create)
    placement = sharding.state_sharding(mesh, shapes)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    assert whole > 2**28

    quick = {'xla_backend_optimization_level': 0}
    state = jax.jit(create, out_shardings=placement).lower().compile(quick)()
    held = collections.Counter()
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device] += shard.data.nbytes
    assert len(held) == 8
    assert max(held.values()) < whole / 8 * 1.01

    options = {'loss': 'softmax', 'head_sizes': (8,), 'label_smoothing': 0.0, 'mixup_alpha': 0.0}
    step = functools.partial(
        train_step, model=model, optimizer=momentum(), ema_decay=0.0, seed=0, mesh=mesh, **options
    )
    batch = {
        'video': np.zeros((8, *clip), np.uint8),
        'label': np.arange(8, dtype=np.int32),
        'mask': np.ones(8, bool),
    }
    batch = sharding.to_global(batch, mesh)
    sides = (placement, sharding.batch_sharding(mesh)), (placement, sharding.replicated(mesh))
    jitted = jax.jit(step, donate_argnums=0, in_shardings=sides[0], out_shardings=sides[1])
    compiled = jitted.lower(state, batch).compile(quick)
    planned = compiled.memory_analysis()
    assert planned.argument_size_in_bytes < whole / 8 * 1.01
    assert planned.alias_size_in_bytes > whole / 8 * 0.99  # the next state takes its place
    # Gradients, and the blocks stacked for the scan: eighths too; whole for a moment are one block's parameters and
    # gradients.
    block = sum(
        leaf.size * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes.params['SpatialTransformer']['encoderblock_0'])
    )
    assert planned.temp_size_in_bytes < whole / 4 + 1.5 * block
    after, scalars = compiled(state, batch)
    assert np.isfinite(scalars['loss'])
    assert int(after.step) == 1
