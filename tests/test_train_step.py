"""Five training steps as Scenic's trainer took them: loss, learning rate, gradient norm, parameters."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vivit_jax.models.vivit import create_model
from vivit_jax.optimizer import create_optimizer, learning_rate_schedule
from vivit_jax.train_step import TrainState, train_step

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
