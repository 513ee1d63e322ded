"""The schedule against Scenic's tables; the optimiser against arithmetic written out in numpy."""

import json
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vivit_jax.optimizer import (
    create_optimizer,
    decay_after_update,
    ema_update,
    keep_in,
    learning_rate_schedule,
)

FOLDER = Path(__file__).parent / 'golden' / 'scenic'
TABLES = json.loads((FOLDER / 'C03_lr_table.json').read_text())['tables']


def schedule_of(lr_configs):
    return learning_rate_schedule(
        learning_rate=float(lr_configs['base_learning_rate']),
        schedule='cosine',
        warmup_steps=float(lr_configs['warmup_steps']),
        total_steps=lr_configs['steps_per_cycle'],
    )


@pytest.mark.parametrize('name', sorted(TABLES))
def test_schedule_is_scenics_up_to_the_end_of_the_cosine(name):
    lr_configs, table = TABLES[name]['lr_configs'], TABLES[name]['table']
    recorded = np.load(FOLDER / 'C03_lr_table.npz')
    np.testing.assert_array_equal(recorded[f'{name}/steps'], [step for step, _ in table])
    steps, rates = recorded[f'{name}/steps'], recorded[f'{name}/lr']
    ours = jnp.stack([schedule_of(lr_configs)(step) for step in steps])
    assert ours.dtype == jnp.float32
    inside = steps < lr_configs['steps_per_cycle']
    assert inside.sum() == 18
    np.testing.assert_allclose(ours[inside], rates[inside], rtol=1e-7, atol=0)
    # Scenic's cosine starts again at the base rate; ours stays where it ended.
    assert rates[-1] == np.float32(lr_configs['base_learning_rate'])
    np.testing.assert_array_equal(ours[~inside], [0.0, 0.0])


@pytest.mark.parametrize('case', ['C01_traj_fe_token', 'C02_traj_spacetime_token'])
def test_schedule_of_the_recorded_training(case):
    lr_configs = json.loads((FOLDER / f'{case}.json').read_text())['config']['lr_configs']
    recorded = np.load(FOLDER / f'{case}.npz')['trajectory/lr']
    schedule = schedule_of(lr_configs)
    np.testing.assert_allclose([schedule(step) for step in range(5)], recorded, rtol=1e-7, atol=0)


@pytest.mark.parametrize('warmup', [0.0, 2.5])
def test_schedule_formula(warmup):
    schedule = learning_rate_schedule(
        learning_rate=0.3, schedule='cosine', warmup_steps=warmup, total_steps=10
    )
    steps = np.arange(14)
    progress = np.clip((steps - warmup) / (10 - np.floor(warmup)), 0, 1)
    expected = 0.3 * 0.5 * (1 + np.cos(np.pi * progress)) * (np.minimum(1, steps / warmup) if warmup else 1)
    # 1 + cos loses digits near the end: half a float32 step of 1, times 0.3.
    np.testing.assert_allclose(jax.jit(jax.vmap(schedule))(steps), expected, rtol=1e-6, atol=0.3 * 6e-8)


def test_constant_schedule_only_warms_up():
    schedule = learning_rate_schedule(learning_rate=0.5, schedule='constant', warmup_steps=4.0, total_steps=4)
    np.testing.assert_array_equal(
        [schedule(step) for step in range(7)], [0, 0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    )


def test_steps_divide_by_ten():
    schedule = learning_rate_schedule(
        learning_rate=0.5, schedule='steps', warmup_steps=2.0, total_steps=8, drops=(3.0, 5.5)
    )
    expected = [0, 0.25, 0.5, 0.05, 0.05, 0.05, 0.005, 0.005, 0.005]
    np.testing.assert_allclose([schedule(step) for step in range(9)], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'schedule': 'linear'}, "schedule 'linear' is none of cosine, constant, steps"),
        ({'warmup_steps': -1.0}, 'warmup_steps -1.0 must be >= 0'),
        ({'warmup_steps': 8.0}, 'warmup_steps 8.0 must be below total_steps 8'),
        ({'schedule': 'steps'}, r"schedule 'steps' needs to know .* \(optimizer.drop_epochs\)"),
    ],
)
def test_bad_schedules(change, message):
    arguments = {'learning_rate': 0.1, 'schedule': 'cosine', 'warmup_steps': 2.0, 'total_steps': 8, **change}
    with pytest.raises(ValueError, match=message):
        learning_rate_schedule(**arguments)


SCHEDULE = learning_rate_schedule(learning_rate=0.1, schedule='cosine', warmup_steps=2.0, total_steps=8)
RATES = [0.0, 0.05, 0.1, 0.1 * 0.5 * (1 + np.cos(np.pi / 6)), 0.075]
DECAYED = {
    'kernels': {'layer/kernel'},
    'matrices': {'layer/kernel', 'layer/bias', 'cls'},
    'all': {'layer/kernel', 'layer/bias', 'cls', 'norm/scale'},
}
SETTINGS = {
    'name': 'momentum',
    'schedule': SCHEDULE,
    'max_grad_norm': 1.0,
    'weight_decay': 0.0,
    'weight_decay_mode': 'decoupled',
    'weight_decay_mask': 'kernels',
}


def some_arrays(seed, scale):
    random = np.random.default_rng(seed)
    shapes = {'layer/kernel': (3, 4), 'layer/bias': (2, 2), 'cls': (1, 1, 4), 'norm/scale': (4,)}
    return {name: (scale * random.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}


def nested(flat):
    """The flat names as the nested tree a model has."""
    tree = {}
    for name, value in flat.items():
        *groups, leaf = name.split('/')
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[leaf] = jnp.asarray(value)
    return tree


START = some_arrays(0, 1.0)
# The second gradient is short, the others longer than the largest norm.
GRADIENTS = [some_arrays(1 + i, scale) for i, scale in enumerate([2.0, 0.05, 5.0, 1.0, 0.5])]


def run(optimizer, gradients=GRADIENTS):
    params = nested(START)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(nested(gradient), state, params)
        params = optax.apply_updates(params, updates)
    return params


def clip(gradient, max_norm):
    norm = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in gradient.values()))
    return {k: g * (max_norm / norm if norm >= max_norm else 1.0) for k, g in gradient.items()}


def momentum_by_hand(decay, mode, mask, max_norm=1.0):
    weights = {k: w.astype(np.float64) for k, w in START.items()}
    momenta = {k: np.zeros_like(w) for k, w in weights.items()}
    for rate, gradient in zip(RATES, GRADIENTS, strict=True):
        if mode == 'l2':
            gradient = {k: g + decay * weights[k] * (k in DECAYED[mask]) for k, g in gradient.items()}
        gradient = clip(gradient, max_norm) if max_norm else gradient
        for k, g in gradient.items():
            momenta[k] = 0.9 * momenta[k] + g
            weights[k] = weights[k] - rate * momenta[k]
            if mode == 'decoupled' and k in DECAYED[mask]:
                weights[k] = weights[k] * (1 - rate * decay)
    return nested({k: w.astype(np.float32) for k, w in weights.items()})


@pytest.mark.parametrize('mask', sorted(DECAYED))
@pytest.mark.parametrize('mode', ['l2', 'decoupled'])
def test_momentum_clipping_and_decay(mode, mask):
    found = run(
        create_optimizer(
            **{**SETTINGS, 'weight_decay': 0.2, 'weight_decay_mode': mode, 'weight_decay_mask': mask}
        )
    )
    chex.assert_trees_all_close(found, momentum_by_hand(0.2, mode, mask), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('max_norm', [0.0, 1.0])
def test_momentum_without_decay(max_norm):
    found = run(create_optimizer(**{**SETTINGS, 'max_grad_norm': max_norm}))
    expected = momentum_by_hand(0.0, 'decoupled', 'all', max_norm)
    chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-6)


def test_l2_is_the_gradient_of_the_penalty():
    def penalty(params):
        return 0.5 * 0.2 * sum(jnp.sum(w**2) for w in jax.tree.leaves(params) if w.ndim > 1)

    no_gradient = jax.tree.map(jnp.zeros_like, nested(START))
    settings = {**SETTINGS, 'schedule': optax.constant_schedule(1.0), 'max_grad_norm': 0.0}
    decays = {'weight_decay': 0.2, 'weight_decay_mode': 'l2', 'weight_decay_mask': 'matrices'}
    optimizer = create_optimizer(**{**settings, **decays})
    updates, _ = optimizer.update(no_gradient, optimizer.init(nested(START)), nested(START))
    expected = jax.tree.map(jnp.negative, jax.grad(penalty)(nested(START)))
    chex.assert_trees_all_close(updates, expected, rtol=1e-6)


def test_clipping_bounds_the_global_norm_and_leaves_short_gradients_alone():
    optimizer = create_optimizer(**{**SETTINGS, 'schedule': optax.constant_schedule(1.0)})
    params = nested(START)
    for gradient, expected in ((GRADIENTS[0], 1.0), (GRADIENTS[1], None)):
        updates, _ = optimizer.update(nested(gradient), optimizer.init(params), params)
        if expected is None:
            chex.assert_trees_all_equal(updates, jax.tree.map(jnp.negative, nested(gradient)))
        else:
            norm = np.sqrt(sum(np.sum(np.square(u)) for u in jax.tree.leaves(updates)))
            np.testing.assert_allclose(norm, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ('changes', 'taken'),
    [
        ({}, True),
        ({'weight_decay': 0.2}, True),
        ({'name': 'adamw', 'weight_decay': 0.2}, True),
        # The norm is then that of gradient and decay together.
        ({'weight_decay': 0.2, 'weight_decay_mode': 'l2'}, False),
    ],
)
def test_a_norm_that_is_known_is_taken_for_that_of_the_gradient(changes, taken):
    optimizer, params, gradient = create_optimizer(**SETTINGS | changes), nested(START), nested(GRADIENTS[0])
    # The rate of the first step is 0.
    state = optimizer.update(gradient, optimizer.init(params), params)[1]

    def update(**known):
        return optimizer.update(gradient, state, params, **known)

    norm = optax.global_norm(gradient)
    chex.assert_trees_all_equal(update(grad_norm=norm), update())
    doubled, plain = (jax.tree.leaves(update(**known)) for known in ({'grad_norm': 2 * norm}, {}))
    differ = any(not np.array_equal(a, b) for a, b in zip(doubled, plain, strict=True))
    assert differ == taken


@pytest.mark.parametrize(('b1', 'b2', 'epsilon'), [(0.9, 0.999, 1e-8), (0.8, 0.95, 1e-3)])
def test_adamw_is_the_conventional_one(b1, b2, epsilon):
    ours = create_optimizer(
        **{**SETTINGS, 'name': 'adamw', 'weight_decay': 0.2}, b1=b1, b2=b2, epsilon=epsilon
    )
    mask = {'layer': {'kernel': True, 'bias': False}, 'cls': False, 'norm': {'scale': False}}
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(SCHEDULE, b1=b1, b2=b2, eps=epsilon, weight_decay=0.2, mask=mask),
    )
    chex.assert_trees_all_close(run(ours), run(theirs), rtol=1e-7)


@pytest.mark.parametrize('mode', ['l2', 'decoupled'])
def test_adam_by_hand(mode):
    weights = {k: w.astype(np.float64) for k, w in START.items()}
    first, second = ({k: np.zeros_like(w) for k, w in weights.items()} for _ in range(2))
    for step, (rate, gradient) in enumerate(zip(RATES, GRADIENTS, strict=True)):
        coupled = 0.2 if mode == 'l2' else 0.0
        decay = 0.2 if mode == 'decoupled' else 0.0
        gradient = clip({k: g + coupled * weights[k] for k, g in gradient.items()}, 1.0)
        for k, g in gradient.items():
            first[k] = 0.5 * first[k] + 0.5 * g
            second[k] = 0.75 * second[k] + 0.25 * g**2
            mean, square = first[k] / (1 - 0.5 ** (step + 1)), second[k] / (1 - 0.75 ** (step + 1))
            weights[k] = (weights[k] - rate * mean / (np.sqrt(square) + 1e-8)) * (1 - rate * decay)
    changes = {'name': 'adam', 'weight_decay': 0.2, 'weight_decay_mode': mode, 'weight_decay_mask': 'all'}
    # Decays that float32 holds exactly: 1 - 0.999 alone is off by 5e-5 there.
    found = run(create_optimizer(**{**SETTINGS, **changes}, b1=0.5, b2=0.75))
    expected = nested({k: w.astype(np.float32) for k, w in weights.items()})
    chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ('name', 'mode'),
    [('momentum', 'l2'), ('momentum', 'decoupled'), ('adam', 'decoupled'), ('adamw', 'decoupled')],
)
def test_a_donated_jitted_step_equals_the_plain_one(name, mode):
    optimizer = create_optimizer(**{**SETTINGS, 'name': name, 'weight_decay': 0.2, 'weight_decay_mode': mode})

    def step(carry, gradient):
        params, state = carry
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    chex.clear_trace_counter()
    jitted = jax.jit(chex.assert_max_traces(step, n=1), donate_argnums=0)
    params = nested(START)
    carry = (params, optimizer.init(params))
    buffers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(carry)]
    assert len(set(buffers)) == len(buffers)
    for gradient in GRADIENTS:
        carry = jitted(carry, nested(gradient))
    chex.assert_trees_all_close(carry[0], run(optimizer), rtol=1e-6, atol=1e-7)


def test_state_is_arrays_only_and_survives_being_rebuilt():
    optimizer = create_optimizer(**{**SETTINGS, 'weight_decay': 0.2})
    params = nested(START)
    _, state = optimizer.update(nested(GRADIENTS[0]), optimizer.init(params), params)
    leaves, structure = jax.tree.flatten(state)
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    restored = jax.tree.unflatten(structure, [jnp.asarray(np.asarray(leaf)) for leaf in leaves])
    chex.assert_trees_all_equal(
        optimizer.update(nested(GRADIENTS[1]), restored, params),
        optimizer.update(nested(GRADIENTS[1]), state, params),
    )


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'name': 'lamb'}, "optimizer 'lamb' is none of momentum, adam, adamw"),
        ({'weight_decay_mode': 'l1'}, "weight_decay_mode 'l1' is none of l2, decoupled"),
        ({'weight_decay_mask': 'bias'}, "weight_decay_mask 'bias' is none of kernels, matrices, all"),
        ({'state_dtype': 'float16'}, "state_dtype 'float16' is none of float32, bfloat16"),
        ({'weight_decay': -0.1}, 'weight_decay -0.1 and max_grad_norm 1.0 must be >= 0'),
        ({'name': 'adamw', 'weight_decay_mode': 'l2'}, "'adamw' takes weight_decay_mode 'decoupled'"),
    ],
)
def test_bad_optimizers(change, message):
    with pytest.raises(ValueError, match=message):
        create_optimizer(**{**SETTINGS, **change})


def test_decay_after_update_needs_the_parameters():
    decay = decay_after_update(SCHEDULE, 0.1)
    with pytest.raises(ValueError, match='needs the parameters'):
        decay.update(nested(GRADIENTS[0]), decay.init(nested(START)))


def test_moving_average():
    average, params = nested(START), nested(GRADIENTS[0])
    expected = nested({k: 0.75 * START[k] + 0.25 * GRADIENTS[0][k] for k in START})
    chex.assert_trees_all_close(ema_update(average, params, 0.75), expected, rtol=1e-6)
    young = jax.jit(ema_update, static_argnums=2)(average, params, 0.75, 5)  # (1 + 5) / (10 + 5) = 0.4
    expected = nested({k: 0.4 * START[k] + 0.6 * GRADIENTS[0][k] for k in START})
    chex.assert_trees_all_close(young, expected, rtol=1e-6)
    old = ema_update(average, params, 0.75, 1000)
    chex.assert_trees_all_close(old, ema_update(average, params, 0.75), rtol=1e-6)


# --- State in bfloat16 ---


def rounded(array):
    return array.astype(jnp.bfloat16).astype(np.float32)


def test_momentum_in_bfloat16_is_rounded_once_a_step_and_nothing_else():
    settings = {'schedule': optax.constant_schedule(1.0), 'max_grad_norm': 0.0, 'state_dtype': 'bfloat16'}
    optimizer = create_optimizer(**{**SETTINGS, **settings})
    state = optimizer.init(nested(START))
    kept = {k: np.zeros_like(w) for k, w in START.items()}
    for gradient in GRADIENTS:
        updates, state = optimizer.update(nested(gradient), state, nested(START))
        exact = {k: np.float32(0.9) * kept[k] + g for k, g in gradient.items()}
        # The update is the momentum before it is rounded.
        chex.assert_trees_all_close(updates, nested({k: -m for k, m in exact.items()}), rtol=1e-6, atol=1e-6)
        kept = {k: rounded(m) for k, m in exact.items()}
        chex.assert_trees_all_close(
            jax.tree.map(lambda m: m.astype(jnp.float32), state[0].trace), nested(kept), rtol=2**-7
        )
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state[0])} == {'bfloat16'}


def test_adam_in_bfloat16_keeps_the_squares_in_float32():
    options = {'name': 'adam', 'state_dtype': 'bfloat16'}
    optimizer = create_optimizer(**{**SETTINGS, **options})
    state = optimizer.init(nested(START))
    for gradient in GRADIENTS:
        _, state = optimizer.update(nested(gradient), state, nested(START))
    adam = state[1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(adam.mu)} == {'bfloat16'}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(adam.nu)} == {'float32'}
    whole = create_optimizer(**{**SETTINGS, 'name': 'adam'})
    other = whole.init(nested(START))
    for gradient in GRADIENTS:
        _, other = whole.update(nested(gradient), other, nested(START))
    chex.assert_trees_all_equal(adam.nu, other[1].nu)


@pytest.mark.parametrize(('decay', 'as_bfloat16'), [(0.9, 0.8984375), (0.999, 1.0)])
def test_the_decay_itself_is_not_rounded(decay, as_bfloat16):
    momentum, no_gradient = optax.TraceState(jnp.ones(2, jnp.bfloat16)), jnp.zeros(2)
    ours, _ = keep_in(optax.trace(decay), 'trace', jnp.bfloat16).update(no_gradient, momentum)
    np.testing.assert_array_equal(ours, np.full(2, decay, np.float32))
    # What optax does by itself.
    theirs, _ = optax.trace(decay, accumulator_dtype=jnp.bfloat16).update(no_gradient, momentum)
    np.testing.assert_array_equal(theirs, np.full(2, as_bfloat16, np.float32))
