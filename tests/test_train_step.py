"""Five training steps as Scenic's trainer took them: loss, learning rate, gradient norm, parameters."""

import functools
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tiny import DIGITS, SETTINGS
from vivit_jax import experiment, losses, sharding
from vivit_jax.checkpoint import Checkpoints
from vivit_jax.config import load
from vivit_jax.models.vivit import create_model
from vivit_jax.optimizer import create_optimizer, learning_rate_schedule
from vivit_jax.train_step import TrainState, create_state, micro_batches, train_step

pytestmark = pytest.mark.usefixtures('optimised')

# Both sides compute in float32 but sum in another order, which turns the last bits of a number near 1 (6e-8 each;
# seen: 4e-7 in losses and norms, 1.2e-7 in parameters). The steps move parameters by more than 1e-2.
TOLERANCE = 1e-6


def recorded_run(golden, name):
    """Trains on the recorded batches; returns the record, and the state, scalars and learning rate of every step."""
    arrays, record, model = golden(name)
    config = record['config']
    rates = config['lr_configs']
    schedule = learning_rate_schedule(
        learning_rate=rates['base_learning_rate'],
        schedule='cosine',
        warmup_steps=float(rates['warmup_steps']),
        total_steps=rates['steps_per_cycle'],
    )
    optimizer = create_optimizer(
        name=config['optimizer'],
        schedule=schedule,
        max_grad_norm=float(config['max_grad_norm']),
        weight_decay=float(config['l2_decay_factor']),
        weight_decay_mode='l2',
        weight_decay_mask='matrices',
    )
    step = jax.jit(
        functools.partial(
            train_step,
            model=model,
            optimizer=optimizer,
            loss='softmax',
            head_sizes=(record['num_classes'],),
            label_smoothing=config['label_smoothing'],
            mixup_alpha=0.0,
            ema_decay=0.0,
            seed=0,
        )
    )
    params = jax.tree.map(jnp.asarray, arrays['params_init'])
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), None)
    states, scalars = [], []
    for number in range(record['steps']):
        recorded = arrays['batches'][str(number)]
        batch = {
            'video': jnp.asarray(recorded['video']),
            'label': jnp.asarray(recorded['label_onehot']),
            'mask': jnp.ones(len(recorded['video']), bool),
        }
        state, of_step = step(state, batch)
        states.append(state)
        scalars.append(jax.device_get(of_step))
    return arrays, states, scalars, [schedule(number) for number in range(record['steps'])]


@pytest.mark.parametrize('name', ['C01_traj_fe_token', 'C02_traj_spacetime_token'])
def test_five_steps_are_scenics(golden, name):
    arrays, states, scalars, rates = recorded_run(golden, name)
    trajectory = arrays['trajectory']
    assert len(states) == 5
    np.testing.assert_allclose(rates, trajectory['lr'], rtol=1e-7, atol=0)
    np.testing.assert_allclose([row['loss'] for row in scalars], trajectory['loss'], rtol=TOLERANCE)
    np.testing.assert_allclose(
        [row['grad_norm'] for row in scalars], trajectory['grad_norm_before_clip'], rtol=TOLERANCE
    )
    # The gradient was longer than 1 throughout, so every step was clipped.
    assert min(trajectory['grad_norm_before_clip']) > 1
    after_two = arrays['params_after_step2']['embedding']['kernel']
    np.testing.assert_allclose(states[1].params['embedding']['kernel'], after_two, rtol=0, atol=TOLERANCE)
    chex.assert_trees_all_close(states[-1].params, arrays['params_final'], rtol=0, atol=TOLERANCE)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), arrays['params_final'], arrays['params_init'])
    assert max(jax.tree.leaves(moved)) > 1e4 * TOLERANCE
    assert states[-1].step == 5


def test_a_step_is_random_by_its_number_and_blind_to_padding(quick_jit, random_params):
    model = create_model(
        5,
        num_layers=1,
        temporal_layers=0,
        num_heads=2,
        width=8,
        mlp_dim=8,
        tubelet=(2, 4, 4),
        drop_path_rate=0.5,
    )
    optimizer = optax.sgd(0.1)
    step = quick_jit(
        functools.partial(
            train_step,
            model=model,
            optimizer=optimizer,
            loss='softmax',
            head_sizes=(5,),
            label_smoothing=0.0,
            mixup_alpha=0.0,
            ema_decay=0.0,
            seed=0,
        )
    )
    random = np.random.default_rng(0)
    video = random.integers(0, 256, (6, 4, 8, 8, 3), dtype=np.uint8)
    batch = {
        'video': jnp.asarray(video),
        'label': jnp.arange(6, dtype=jnp.int32) % 5,
        'mask': jnp.array([True, True, False, True, True, False]),
    }
    params = jax.tree.map(jnp.asarray, random_params(model, jnp.zeros((1, 4, 8, 8, 3))))
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), None)
    first, scalars = step(state, batch)
    # Stochastic depth is on and draws anew in every step.
    _, later = step(state.replace(step=jnp.ones((), jnp.int32)), batch)
    assert abs(scalars['loss'] - later['loss']) > 1e-3
    # What stands in rows that are masked out changes nothing; what stands in the others does.
    for rows, same in (([2, 5], True), ([3], False)):
        changed = video.copy()
        changed[rows] = 255 - changed[rows]
        other, _ = step(state, batch | {'video': jnp.asarray(changed)})
        differences = jax.tree.map(lambda a, b: np.abs(a - b).max(), first.params, other.params)
        assert (max(jax.tree.leaves(differences)) == 0) == same


# --- Micro-batches, on one device and on several ---

SMALL = {
    'num_layers': 1,
    'temporal_layers': 1,
    'num_heads': 2,
    'width': 16,
    'mlp_dim': 32,
    'tubelet': (2, 8, 8),
    'kernel_init': 'random',
}
CLIP = (4, 16, 16, 1)
RECIPE = {
    'loss': 'softmax',
    'head_sizes': (8,),
    'label_smoothing': 0.1,
    'mixup_alpha': 0.0,
    'ema_decay': 0.9,
    'seed': 0,
}


def of_name(name, state_dtype='float32'):
    schedule = learning_rate_schedule(learning_rate=0.1, schedule='constant', warmup_steps=0.0, total_steps=9)
    return create_optimizer(
        name=name,
        schedule=schedule,
        max_grad_norm=0.5,
        weight_decay=0.1,
        weight_decay_mode='decoupled',
        weight_decay_mask='kernels',
        state_dtype=state_dtype,
    )


def some_batch(rows):
    random = np.random.default_rng(0)
    return {
        'video': random.integers(0, 256, (rows, *CLIP), dtype=np.uint8),
        'label': random.integers(0, 8, rows, dtype=np.int32),
        # So unevenly that a mean of the micro-batches' means is another number.
        'mask': np.arange(rows) >= 3,
        'flip': random.integers(0, 2, rows).astype(bool),
    }


@functools.cache
def first_params():
    video = jnp.zeros((1, *CLIP))
    return jax.device_get(jax.jit(create_model(8, **SMALL).init)(jax.random.key(0), video)['params'])


def compiled(jit, mesh, rows, *, state_dtype='float32', name='momentum', model=SMALL, **changes):
    """Compiles a step as `run.Run` does; returns it, a function that gives fresh states, and its batch."""
    model, optimizer = create_model(8, **model), of_name(name, state_dtype)
    create = functools.partial(create_state, model, optimizer, CLIP, seed=0, with_ema=True)
    placement = sharding.state_sharding(mesh, jax.eval_shape(create))
    step = jit(
        functools.partial(train_step, model=model, optimizer=optimizer, mesh=mesh, **(RECIPE | changes)),
        in_shardings=(placement, sharding.batch_sharding(mesh)),
        out_shardings=(placement, sharding.replicated(mesh)),
    )
    batch = sharding.to_global(some_batch(rows), mesh)

    def fresh():
        params = jax.tree.map(jnp.asarray, first_params())
        state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), params)
        return jax.device_put(state, placement)

    return step.lower(jax.eval_shape(create), batch).compile(), fresh, batch


def trained(parts, steps=2):
    step, create, batch = parts
    state, scalars = create(), []
    for _ in range(steps):
        state, of_step = step(state, batch)
        scalars.append(of_step)
    return jax.device_get((scalars, state))


def one_device():
    return sharding.make_mesh(1, jax.devices()[:1])


@pytest.fixture(scope='module')
def whole(quick_jit):
    """Two steps with the whole batch of 16 at once on one device, with a share of mixup."""

    @functools.cache
    def run(alpha):
        return trained(compiled(quick_jit, one_device(), 16, mixup_alpha=alpha))

    return run


@pytest.mark.parametrize(('accumulate', 'alpha'), [(2, 0.0), (2, 0.4), (4, 0.4)])
def test_micro_batches_are_the_batch(quick_jit, whole, accumulate, alpha):
    found = trained(compiled(quick_jit, one_device(), 16, mixup_alpha=alpha, accumulate=accumulate))
    chex.assert_trees_all_close(found, whole(alpha), rtol=0, atol=TOLERANCE)
    (first, _), state = found
    # The gradient was clipped, and what was compared did move.
    assert first['grad_norm'] > 0.5
    moved = np.abs(state.params['embedding']['kernel'] - first_params()['embedding']['kernel'])
    assert moved.max() > 1e3 * TOLERANCE


def test_a_micro_batch_takes_the_memory_of_its_share(quick_jit):
    wide, jit = SMALL | {'mlp_dim': 256}, functools.partial(quick_jit, donate_argnums=0)  # as a run does
    needed = {}
    for accumulate in (1, 8):
        step, _, _ = compiled(jit, one_device(), 64, model=wide, accumulate=accumulate)
        needed[accumulate] = step.memory_analysis().temp_size_in_bytes
    params = jax.eval_shape(create_model(8, **wide).init, jax.random.key(0), jnp.zeros((1, *CLIP)))
    gradient = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    # An eighth of what it is for, beside the gradient and the sum of those before.
    assert needed[8] < needed[1] / 8 + 2 * gradient


def test_momentum_and_average_are_overwritten_without_a_copy(quick_jit):
    wide, jit = SMALL | {'mlp_dim': 256}, functools.partial(quick_jit, donate_argnums=0)
    step, _, _ = compiled(jit, one_device(), 8, model=wide)
    kernel = f'f32[{wide["width"]},256]'
    made = [line for line in step.as_text().splitlines() if f'= {kernel}' in line]
    assert any('fusion(' in line for line in made)
    assert not [line for line in made if ' copy(' in line]


def test_each_norm_is_taken_once(equations):
    model, optimizer = create_model(8, **SMALL), of_name('momentum')
    create = functools.partial(create_state, model, optimizer, CLIP, seed=0, with_ema=True)
    step = functools.partial(train_step, model=model, optimizer=optimizer, **RECIPE)
    state = jax.eval_shape(create)
    shape = state.params['embedding']['kernel'].shape
    sums = [
        equation
        for equation, _ in equations(jax.make_jaxpr(step)(state, some_batch(4)).jaxpr)
        if equation.primitive.name == 'reduce_sum' and equation.invars[0].aval.shape == shape
    ]
    assert len(sums) == 3  # of the gradient, the update, the parameters after it


def test_each_device_keeps_its_rows():
    parts = micro_batches({'rows': jnp.arange(24)}, 3, sharding.make_mesh(1, jax.devices()[:4]))['rows']
    expected = [[0, 1, 6, 7, 12, 13, 18, 19], [2, 3, 8, 9, 14, 15, 20, 21], [4, 5, 10, 11, 16, 17, 22, 23]]
    np.testing.assert_array_equal(parts, expected)
    np.testing.assert_array_equal(micro_batches({'rows': jnp.arange(6)}, 3)['rows'], [[0, 1], [2, 3], [4, 5]])


# What is sent between devices, by its shape, in a compiled program.
SENT = re.compile(
    r' = (.+?) (all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)(?:-start)?\('
)


def sent(step):
    found = {}
    for shape, kind in SENT.findall(step.as_text()):
        arrays = re.findall(r'(\w+)\[([\d,]*)\]', shape)
        found.setdefault(kind, []).extend(
            (kind_of, tuple(int(size) for size in sizes.split(',') if size)) for kind_of, sizes in arrays
        )
    return found


@pytest.mark.parametrize(('fsdp', 'alpha'), [(1, 0.4), (8, 0.0)])
def test_micro_batches_on_eight_devices_send_no_clips_around(quick_jit, whole, monkeypatch, fsdp, alpha):
    monkeypatch.setattr(sharding, 'SMALLEST_SHARED', 1)
    parts = compiled(quick_jit, sharding.make_mesh(fsdp), 16, mixup_alpha=alpha, accumulate=2)
    chex.assert_trees_all_close(trained(parts), whole(alpha), rtol=0, atol=TOLERANCE)
    kinds = sent(parts[0])
    assert 'all-to-all' not in kinds
    # Each device sends the clip that mixup blends with another's, in bytes, once a micro-batch; and labels, flips.
    clips = [array for array in kinds.get('collective-permute', []) if len(array[1]) > 1]
    assert clips == ([('u8', (1, *CLIP))] if alpha else [])
    # What is gathered are shared parameters, not activations.
    sizes = {leaf.size for leaf in jax.tree.leaves(parts[1]().params)}
    gathered = {math.prod(shape) for _, shape in kinds.get('all-gather', [])}
    assert gathered <= (sizes if fsdp > 1 else set())
    assert bool(gathered) == (fsdp > 1)


def test_frozen_parameters_are_neither_summed_up_nor_moved(quick_jit, equations):
    shapes = jax.eval_shape(
        lambda: create_state(create_model(8, **SMALL), of_name('adam'), CLIP, seed=0, with_ema=True)
    )
    learns = jax.tree_util.tree_map_with_path(
        lambda path, _: path[0].key in ('output_projection', 'TemporalTransformer'), shapes.params
    )
    found = [
        compiled(quick_jit, one_device(), 16, learns=learns, accumulate=accumulate) for accumulate in (1, 4)
    ]
    (scalars, state), (again, other) = (trained(parts) for parts in found)
    chex.assert_trees_all_close((scalars, state), (again, other), rtol=0, atol=TOLERANCE)
    start = jax.device_get(found[1][1]().params)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start, other.params)
    assert moved == learns
    jaxpr = jax.make_jaxpr(
        functools.partial(
            train_step,
            model=create_model(8, **SMALL),
            optimizer=of_name('momentum'),
            **RECIPE,
            learns=learns,
            accumulate=4,
        )
    )(found[1][1](), some_batch(16))
    loops = [e.params for e, _ in equations(jaxpr.jaxpr) if e.primitive.name == 'scan']
    carried = [loop['num_carry'] for loop in loops if loop['length'] == 4]
    assert carried == [1 + sum(jax.tree.leaves(learns))]  # the loss, and gradients of what learns


class Noise:
    """Stands in for a model: its scores are a parameter times what dropout's key draws."""

    def apply(self, variables, video, train, rngs):
        assert train
        return variables['params'] * jax.random.normal(rngs['dropout'], (len(video), 8)), {}


@pytest.mark.parametrize('accumulate', [1, 2])
def test_each_micro_batch_drops_out_by_its_number(unchecked, accumulate):
    batch, optimizer, params = some_batch(6), optax.sgd(0.1), jnp.ones(())
    _, scalars = train_step(
        TrainState(jnp.int32(5), params, optimizer.init(params), None),
        batch,
        model=Noise(),
        optimizer=optimizer,
        loss='softmax',
        head_sizes=(8,),
        label_smoothing=0.0,
        mixup_alpha=0.0,
        ema_decay=0.0,
        seed=3,
        accumulate=accumulate,
    )
    _, key = jax.random.split(jax.random.fold_in(jax.random.key(3), 5))
    keys = [jax.random.fold_in(key, number) for number in range(2)] if accumulate == 2 else [key]
    logits = jnp.concatenate([jax.random.normal(each, (6 // accumulate, 8)) for each in keys])
    each = losses.softmax_cross_entropy(logits, jax.nn.one_hot(batch['label'], 8))
    np.testing.assert_allclose(scalars['loss'], each[3:].mean(), rtol=TOLERANCE)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'training.accumulate': '0'}, 'training.accumulate=0: must be at least 1'),
        (
            {'training.accumulate': '3', 'training.batch_size': '32'},
            'training.accumulate=3: must divide the 4 clips of training.batch_size=32 that are on each of 8 devices',
        ),
        ({'optimizer.state_dtype': 'half'}, "optimizer.state_dtype='half': choose one of float32, bfloat16"),
    ],
)
def test_settings_that_do_not_go(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        experiment.check(load(DIGITS, SETTINGS | changes))
    experiment.check(load(DIGITS, SETTINGS | {'training.batch_size': '32', 'training.accumulate': '4'}))


# --- Types ---


@pytest.mark.parametrize(
    'attention',
    ['spatio_temporal', 'factorised_encoder', 'factorised_self_attention', 'factorised_dot_product'],
)
def test_bfloat16_computes_with_float32_parameters_statistics_and_loss(equations, attention):
    classifier = 'token' if attention in ('spatio_temporal', 'factorised_encoder') else 'gap'
    model = create_model(8, **SMALL, dtype='bfloat16', attention=attention, classifier=classifier)
    optimizer = of_name('adamw')
    create = functools.partial(create_state, model, optimizer, CLIP, seed=0, with_ema=True)
    step = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        **(RECIPE | {'mixup_alpha': 0.4}),
        accumulate=2,
    )
    jaxpr, (state, scalars) = jax.make_jaxpr(step, return_shape=True)(jax.eval_shape(create), some_batch(4))
    kept = {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.ema, scalars))}
    assert kept == {'float32'}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.opt_state)} == {'float32', 'int32'}
    types = {}
    for equation, _ in equations(jaxpr.jaxpr):
        for x in equation.invars:
            types.setdefault(equation.primitive.name, set()).add(x.aval.dtype.name)
    # Softmax, LayerNorm, cross-entropy, and their gradients; the norms of the gradient and of the update. (Sums are
    # in float32 on the way forward, see test_models.py; on the way back those that make gradients of biases are not.)
    for statistic in ('exp', 'log', 'rsqrt', 'reduce_max', 'sqrt', 'square'):
        assert types[statistic] == {'float32'}, statistic
    assert 'bfloat16' in types['dot_general']
    loops = [e for e, _ in equations(jaxpr.jaxpr) if e.primitive.name == 'scan' and e.params['length'] == 2]
    assert {x.aval.dtype.name for loop in loops for x in loop.outvars} <= {'float32', 'int32'}


# --- The optimiser's state in bfloat16 ---


@pytest.mark.parametrize(('name', 'fsdp'), [('momentum', 4), ('adamw', 1)])
def test_a_run_with_state_in_bfloat16_goes_on_bit_for_bit(quick_jit, tmp_path, monkeypatch, name, fsdp):
    monkeypatch.setattr(sharding, 'SMALLEST_SHARED', 1)
    mesh = sharding.make_mesh(fsdp)
    step, create, batch = compiled(quick_jit, mesh, 16, name=name, state_dtype='bfloat16')
    state, _ = step(create(), batch)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(
            1, params=state.params, ema=state.ema, optimizer=state.opt_state, meta={}, metrics=None
        )
        checkpoints.wait()
        shapes = jax.eval_shape(create)
        items = {'params': shapes.params, 'ema': shapes.ema, 'optimizer': shapes.opt_state}
        saved = checkpoints.restore(1, mesh, **items)
    restored = TrainState(state.step, saved['params'], saved['optimizer'], saved['ema'])
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, state)
    assert jax.tree.map(lambda x: x.sharding, restored) == jax.tree.map(lambda x: x.sharding, state)
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal(step(restored, batch), step(state, batch))
    # One number for each parameter in bfloat16; AdamW's other one, and the parameters, in float32.
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    sizes = {}
    for leaf in jax.tree.leaves(state.opt_state):
        sizes[leaf.dtype.name] = sizes.get(leaf.dtype.name, 0) + leaf.size * bool(leaf.ndim)
    assert sizes['bfloat16'] == count
    assert sizes.get('float32', 0) == (count if name == 'adamw' else 0)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.ema))} == {'float32'}
