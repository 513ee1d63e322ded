"""What learns and how fast: factors by hand, frozen parameters bit for bit, the arithmetic that freezing saves."""

import functools
import json
import os
import pathlib
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.interpreters import partial_eval

from tiny import SETTINGS
from vivit_jax import create_model, dry_run, train
from vivit_jax.checkpoint import Checkpoints
from vivit_jax.config import load
from vivit_jax.learning_rates import groups, learning_rate_factors, scale_updates, table
from vivit_jax.models.cost import multiply_adds
from vivit_jax.optimizer import create_optimizer, learning_rate_schedule
from vivit_jax.telling.terminal import Terminal
from vivit_jax.train_step import train_step

PLAIN = {'train': 'all', 'freeze': '', 'layer_decay': 1.0, 'head_rate': 1.0}
SMALL = {
    'num_layers': 2,
    'temporal_layers': 3,
    'num_heads': 2,
    'width': 8,
    'mlp_dim': 12,
    'tubelet': (2, 4, 4),
}
CLIP = (4, 8, 8, 3)


def shapes(**settings):
    model = create_model(**{'num_classes': 5, **SMALL, **settings})
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *CLIP)))['params']


def by_name(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {'/'.join(key.key for key in path): leaf for path, leaf in leaves}


def factors_by_module(params, **options):
    """The factor of every module, whose leaves all have the same."""
    found = {}
    for name, factor in by_name(learning_rate_factors(params, **{**PLAIN, **options})).items():
        module = '/'.join(name.split('/')[: 2 if 'Transformer/' in name else 1])
        assert found.setdefault(module, factor) == factor
    return found


# Exponents of the layer decay, counted from the head downwards.
EXPONENTS = {
    'factorised_encoder': {
        'embedding': 6,
        'cls_SpatialTransformer': 6,
        'SpatialTransformer/posembed_input': 6,
        'SpatialTransformer/encoderblock_0': 5,
        'SpatialTransformer/encoderblock_1': 4,
        'SpatialTransformer/encoder_norm': 4,
        'cls_TemporalTransformer': 4,
        'TemporalTransformer/posembed_input': 4,
        'TemporalTransformer/encoderblock_0': 3,
        'TemporalTransformer/encoderblock_1': 2,
        'TemporalTransformer/encoderblock_2': 1,
        'TemporalTransformer/encoder_norm': 1,
        'output_projection': 0,
    },
    'averaged frames': {
        'embedding': 3,
        'cls_SpatialTransformer': 3,
        'SpatialTransformer/posembed_input': 3,
        'SpatialTransformer/encoderblock_0': 2,
        'SpatialTransformer/encoderblock_1': 1,
        'SpatialTransformer/encoder_norm': 1,
        'output_projection': 0,
    },
    'spatio_temporal': {
        'embedding': 3,
        'cls': 3,
        'Transformer/posembed_input': 3,
        'Transformer/encoderblock_0': 2,
        'Transformer/encoderblock_1': 1,
        'Transformer/encoder_norm': 1,
        'pre_logits': 0,
        'output_projection': 0,
    },
    'factorised_self_attention': {
        'embedding': 3,
        'Transformer/posembed_input': 3,
        'Transformer/encoderblock_0': 2,
        'Transformer/encoderblock_1': 1,
        'Transformer/encoder_norm': 1,
        'output_projection': 0,
    },
}
MODELS = {
    'factorised_encoder': {},
    'averaged frames': {'temporal_layers': 0},
    'spatio_temporal': {'attention': 'spatio_temporal', 'representation_size': 6},
    'factorised_self_attention': {'attention': 'factorised_self_attention', 'classifier': 'gap'},
}


@pytest.mark.parametrize('name', MODELS)
def test_layer_decay_by_hand(name):
    expected = {module: 0.5**exponent for module, exponent in EXPONENTS[name].items()}
    params = shapes(**MODELS[name])
    assert factors_by_module(params, layer_decay=0.5) == expected
    with_head = expected | {
        head: 3.0 * expected[head] for head in ('pre_logits', 'output_projection') if head in expected
    }
    assert factors_by_module(params, layer_decay=0.5, head_rate=3.0) == with_head
    assert set(factors_by_module(params).values()) == {1.0}


def test_blocks_are_counted_as_numbers():
    params = shapes(num_layers=11, temporal_layers=0)
    assert factors_by_module(params, layer_decay=0.5)['SpatialTransformer/encoderblock_10'] == 0.5
    names = [
        group.name for group in groups(params, learning_rate_factors(params, **{**PLAIN, 'layer_decay': 0.5}))
    ]
    assert names == [
        'embedding … SpatialTransformer/posembed_input',
        *(f'SpatialTransformer/encoderblock_{i}' for i in range(10)),
        'SpatialTransformer/encoderblock_10 … encoder_norm',
        'output_projection',
    ]


def test_a_linear_probe_trains_the_head():
    found = factors_by_module(shapes(representation_size=6), train='head', layer_decay=0.5, head_rate=2.0)
    assert {module: factor for module, factor in found.items() if factor} == {
        'pre_logits': 2.0,
        'output_projection': 2.0,
    }


def test_patterns_freeze():
    params = shapes()
    options = {**PLAIN, 'freeze': 'embedding/*, SpatialTransformer/*/MlpBlock_0/*,', 'layer_decay': 0.5}
    found = by_name(learning_rate_factors(params, **options))
    plain = by_name(learning_rate_factors(params, **{**options, 'freeze': ''}))
    frozen = {name for name, factor in found.items() if factor == 0.0}
    dense = [f'Dense_{i}/{leaf}' for i in range(2) for leaf in ('kernel', 'bias')]
    assert frozen == {'embedding/kernel', 'embedding/bias'} | {
        f'SpatialTransformer/encoderblock_{i}/MlpBlock_0/{leaf}' for i in range(2) for leaf in dense
    }
    assert all(found[name] == plain[name] for name in plain if name not in frozen)


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        (
            {'freeze': 'cls*,embeding/*'},
            r"optimizer.freeze='cls\*,embeding/\*': 'embeding/\*' matches none of the 92 parameters, as "
            'embedding/bias, ',
        ),
        ({'freeze': 'Embedding/*'}, r"'Embedding/\*' matches none"),
        ({'freeze': '*'}, r"optimizer.train='all', optimizer.freeze='\*' and .* leave nothing to learn"),
        ({'train': 'head', 'freeze': 'output_projection/*'}, 'leave nothing to learn'),
        ({'train': 'head', 'head_rate': 0.0}, r'optimizer.head_rate=0\.0 leave nothing to learn'),
    ],
)
def test_what_cannot_be_frozen(options, told):
    with pytest.raises(ValueError, match=told) as caught:
        learning_rate_factors(shapes(), **{**PLAIN, **options})
    assert '\n' not in str(caught.value)


def test_the_table_names_what_differs():
    params = shapes()
    sizes = {name: leaf.size for name, leaf in by_name(params).items()}
    head = sizes['output_projection/kernel'] + sizes['output_projection/bias']
    assert head == 8 * 5 + 5
    rest = sum(sizes.values()) - head
    options = {**PLAIN, 'train': 'head', 'head_rate': 10.0}
    assert table(params, learning_rate_factors(params, **options), 2e-4) == [
        f'45 of {rest + 45:,} parameters, with these rates at their highest',
        f'embedding … TemporalTransformer/encoder_norm  {rest:,}    frozen',
        f'output_projection                                {45}  2.00e-03',
    ]
    # Parts of modules that are frozen have rows of their own.
    options = {**PLAIN, 'freeze': 'SpatialTransformer/*/bias'}
    blocks = {name: size for name, size in sizes.items() if 'SpatialTransformer/encoder' in name}
    biases = sum(size for name, size in blocks.items() if name.endswith('bias'))
    rows = groups(params, learning_rate_factors(params, **options))
    name = 'SpatialTransformer/encoderblock_0 … encoder_norm'
    assert rows[1:3] == [(name, sum(blocks.values()) - biases, 1.0), (name, biases, 0.0)]
    assert [row.name for row in rows[::3]] == [
        'embedding … SpatialTransformer/posembed_input',
        'cls_TemporalTransformer … output_projection',
    ]


# --- The optimiser ---

SCHEDULE = learning_rate_schedule(learning_rate=0.1, schedule='cosine', warmup_steps=2.0, total_steps=8)
OPTIMIZERS = [('momentum', 'l2'), ('momentum', 'decoupled'), ('adam', 'l2'), ('adamw', 'decoupled')]


def optimizer_of(name, mode, schedule=SCHEDULE, max_grad_norm=1.0):
    return create_optimizer(
        name=name,
        schedule=schedule,
        max_grad_norm=max_grad_norm,
        weight_decay=0.2,
        weight_decay_mode=mode,
        weight_decay_mask='all',
    )


def arrays(seed):
    random = np.random.default_rng(seed)
    draw = {'a/kernel': (3, 4), 'a/bias': (4,), 'b/kernel': (4, 2)}
    return {name: jnp.asarray(random.normal(size=shape), jnp.float32) for name, shape in draw.items()}


def steps(optimizer, params, gradients):
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


@pytest.mark.parametrize(('name', 'mode'), OPTIMIZERS)
def test_to_the_optimiser_frozen_parameters_do_not_exist(name, mode):
    gradients = [arrays(seed) for seed in (1, 2, 3)]
    frozen = scale_updates(
        optimizer_of(name, mode), lambda _: {'a/kernel': 1.0, 'a/bias': 0.0, 'b/kernel': 1.0}
    )
    params, state = steps(frozen, arrays(0), gradients)

    def without(tree):
        return {key: leaf for key, leaf in tree.items() if key != 'a/bias'}

    alone, smaller = steps(optimizer_of(name, mode), without(arrays(0)), [without(g) for g in gradients])
    chex.assert_trees_all_equal(without(params), alone)
    chex.assert_trees_all_equal(params['a/bias'], arrays(0)['a/bias'])
    assert not np.array_equal(alone['b/kernel'], arrays(0)['b/kernel'])
    # Nor is there any state of them.
    chex.assert_trees_all_equal(jax.tree.leaves(state), jax.tree.leaves(smaller))


@pytest.mark.parametrize(('name', 'mode'), OPTIMIZERS)
def test_a_factor_multiplies_the_whole_update(name, mode):
    """Weight decay with it."""
    factors = {'a/kernel': 0.25, 'a/bias': 1.0, 'b/kernel': 8.0}
    plain, scaled = optimizer_of(name, mode), scale_updates(optimizer_of(name, mode), lambda _: factors)
    params, states = arrays(0), [plain.init(arrays(0)), scaled.init(arrays(0))]
    for seed in (1, 2, 3):
        whole, states[0] = plain.update(arrays(seed), states[0], params)
        updates, states[1] = scaled.update(arrays(seed), states[1], params)
        chex.assert_trees_all_equal(updates, {key: factors[key] * whole[key] for key in whole})
    assert max(float(jnp.abs(u).max()) for u in jax.tree.leaves(updates)) > 0.01


def test_a_factor_is_a_learning_rate():
    """AdamW at a quarter of the rate, decay included, when no clipping couples the parameters."""
    gradients = [arrays(seed) for seed in (1, 2, 3)]
    slow = optimizer_of('adamw', 'decoupled', lambda step: 0.25 * SCHEDULE(step), max_grad_norm=0.0)
    expected, _ = steps(slow, arrays(0), gradients)
    factors = dict.fromkeys(expected, 0.25)
    scaled = scale_updates(optimizer_of('adamw', 'decoupled', max_grad_norm=0.0), lambda _: factors)
    chex.assert_trees_all_equal(steps(scaled, arrays(0), gradients)[0], expected)


# --- The step ---


def step_of(model, factors, name='adam', mode='l2'):
    """A training step with everything that could move a parameter, and the optimiser."""
    optimizer = scale_updates(optimizer_of(name, mode, optax.constant_schedule(0.1)), lambda _: factors)
    step = functools.partial(
        train_step,
        model=model,
        optimizer=optimizer,
        loss='softmax',
        head_sizes=(5,),
        label_smoothing=0.1,
        mixup_alpha=0.0,
        ema_decay=0.9,
        seed=0,
        learns=jax.tree.map(bool, factors),
    )
    return step, optimizer


def some_batch():
    random = np.random.default_rng(0)
    return {
        'video': jnp.asarray(random.integers(0, 256, (2, *CLIP), dtype=np.uint8)),
        'label': jnp.array([1, 3], jnp.int32),
        'mask': jnp.ones(2, bool),
    }


def bits(tree):
    return {name: np.asarray(leaf).tobytes() for name, leaf in by_name(tree).items()}


@pytest.mark.parametrize(
    'options',
    [
        {'train': 'head'},
        {'freeze': 'embedding/*,*/encoderblock_0/*', 'layer_decay': 0.5},
        {'head_rate': 0.0},
    ],
)
def test_frozen_parameters_stay_bit_for_bit(quick_jit, random_params, options):
    model = create_model(5, **SMALL)
    params = jax.tree.map(jnp.asarray, random_params(model, jnp.zeros((1, *CLIP))))
    # A negative zero, which adding an update of zero would make a positive one.
    params['embedding']['bias'] = params['embedding']['bias'].at[0].set(-0.0)
    factors = learning_rate_factors(params, **{**PLAIN, **options})
    step, optimizer = step_of(model, factors)
    ema = jax.tree.map(jnp.copy, params)
    # A full average, whose rounding would show: d e + (1 - d) e is seldom e.
    state = train.TrainState(jnp.asarray(1000, jnp.int32), params, optimizer.init(params), ema)
    before = bits(params)
    stepped = quick_jit(step, donate_argnums=0)
    for _ in range(2):
        state, scalars = stepped(state, some_batch())
    frozen = {name for name, factor in by_name(factors).items() if factor == 0.0}
    assert 2 <= len(frozen) < len(before)
    for after in (bits(state.params), bits(state.ema)):
        assert {name for name in before if after[name] == before[name]} == frozen
    assert scalars['grad_norm'] > 0


def test_the_gradients_norm_is_that_of_what_learns(quick_jit, random_params):
    model = create_model(5, **{**SMALL, 'num_layers': 1, 'temporal_layers': 1})
    params = jax.tree.map(jnp.asarray, random_params(model, jnp.zeros((1, *CLIP))))
    batch = some_batch()

    def loss(params):
        logits, _ = model.apply({'params': params}, batch['video'] / 127.5 - 1.0)
        targets = 0.9 * jax.nn.one_hot(batch['label'], 5) + 0.1 / 5
        return -(targets * jax.nn.log_softmax(logits)).sum(-1).mean()

    gradient = quick_jit(jax.grad(loss))(params)
    learning = ('TemporalTransformer', 'cls_TemporalTransformer', 'output_projection')
    for options, parts in (
        ({'freeze': 'SpatialTransformer/*,embedding/*,cls_Sp*'}, {key: gradient[key] for key in learning}),
        ({'layer_decay': 0.5}, gradient),
    ):
        factors = learning_rate_factors(params, **{**PLAIN, **options})
        step, optimizer = step_of(model, factors)
        state = train.TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), params)
        _, scalars = quick_jit(step)(state, batch)
        np.testing.assert_allclose(scalars['grad_norm'], optax.global_norm(parts), rtol=1e-5)


def products(equations, jaxpr):
    """Multiply-adds of all matrix products of a program."""
    total = 0
    for equation, times in equations(jaxpr.jaxpr):
        if equation.primitive.name == 'dot_general':
            (contracted, _), _ = equation.params['dimension_numbers']
            left = equation.invars[0].aval.shape
            inner = int(np.prod([left[axis] for axis in contracted]))
            total += times * int(np.prod(equation.outvars[0].aval.shape)) * inner
    return total


def test_frozen_layers_cost_no_backward_pass(equations):
    """By the products of the program that is traced, and by what XLA counts in the one that it compiles."""
    # Wide enough that products outweigh the rest.
    model = create_model(5, **{**SMALL, 'width': 64, 'mlp_dim': 128, 'num_layers': 1, 'temporal_layers': 1})
    params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *CLIP)))['params']
    forward = 2 * multiply_adds(model, CLIP, logits_alone=True)  # of the batch of two
    head, embedding = 2 * 64 * 5, 2 * 8 * (2 * 4 * 4 * 3) * 64  # 8 tokens of 2 x 4 x 4 x 3 numbers
    traced, counted = {}, {}
    for name, options in {
        'all': {},
        'head': {'train': 'head'},
        'embedding frozen': {'freeze': 'embedding/*'},
        'lower half frozen': {'freeze': 'embedding/*,cls_Sp*,Sp*'},
    }.items():
        step, optimizer = step_of(model, learning_rate_factors(params, **{**PLAIN, **options}))
        state = train.TrainState(
            jax.ShapeDtypeStruct((), jnp.int32), params, jax.eval_shape(optimizer.init, params), params
        )
        program = jax.make_jaxpr(step)(state, some_batch())
        needed, _ = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.out_avals))
        traced[name] = products(equations, program.replace(jaxpr=needed))
        if name in ('all', 'head'):
            counted[name] = jax.jit(step).lower(state, some_batch()).compile().cost_analysis()['flops']
    # Twice the forward pass goes backward: to the weights and to what came in, but for the pixels.
    assert traced['all'] == 3 * forward - embedding
    assert traced['head'] == forward + head
    assert traced['embedding frozen'] == traced['all'] - embedding
    assert traced['head'] < traced['lower half frozen'] < 0.6 * traced['all']
    assert counted['head'] < 0.4 * counted['all']


# --- Runs ---

FINETUNE = str(pathlib.Path(__file__).parent.parent / 'configs' / 'finetune.py')
DIGITS = SETTINGS | {
    'data.source': 'moving_digits',
    'data.test_splits': 'test',
    'data.num_classes': '8',
    'data.frames': '16',
    'data.stride': '1',
    'data.short_side': '0',
    'data.scale_jitter': '1,1',
    'data.crop': '32,32',
    'data.channels': '1',
    'data.colour_jitter': '0',
    'data.colour_drop': '0',
    'evaluation.temporal_views': '1',
    'evaluation.spatial_views': '1',
}


def finetuning(**changes):
    return load(FINETUNE, DIGITS | {key.replace('__', '.'): str(value) for key, value in changes.items()})


def run_of(config):
    noise = dry_run.RandomClips(config)
    return train.Run(config, pathlib.Path(), noise, noise, Terminal())


def test_only_what_differs_is_told():
    assert 'learns' not in run_of(finetuning(optimizer__layer_decay=1.0, optimizer__head_rate=1.0)).describe()
    lines = run_of(finetuning()).describe()['learns'].split('\n')
    assert [line.strip().split('  ')[0] for line in lines[1:]] == [
        'embedding … SpatialTransformer/posembed_input',
        'SpatialTransformer/encoderblock_0 … TemporalTransformer/posembed_input',
        'TemporalTransformer/encoderblock_0 … encoder_norm',
        'output_projection',
    ]
    rates = [float(line.split()[-1]) for line in lines[1:]]
    expected = [1e-4 * 0.75**3, 1e-4 * 0.75**2, 1e-4 * 0.75, 1e-3]
    np.testing.assert_allclose(rates, expected, rtol=0.005)


@pytest.mark.parametrize(
    ('changes', 'told'),
    [
        ({'optimizer__layer_decay': 0.0}, r'optimizer.layer_decay=0.0: must be in \(0, 1\]\Z'),
        ({'optimizer__layer_decay': 1.01}, r'optimizer.layer_decay=1.01: must be in \(0, 1\]\Z'),
        ({'optimizer__head_rate': -0.5}, r'optimizer.head_rate=-0.5: must be at least 0\Z'),
        ({'optimizer__train': 'heads'}, r"optimizer.train='heads': choose one of all, head\Z"),
        ({'optimizer__freeze': 'cls'}, "optimizer.freeze='cls': 'cls' matches none of the "),
        ({'optimizer__freeze': '*'}, 'leave nothing to learn'),
    ],
)
def test_slips_are_told_before_anything_is_written(changes, told, tmp_path):
    with pytest.raises(ValueError, match=told) as caught:
        train.train(finetuning(**changes), tmp_path / 'run')
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'run').exists()


def saved(folder, config):
    """Parameters, average and optimiser's state of the last checkpoint."""
    run = run_of(config)
    with Checkpoints(folder, best_metric='top_1') as checkpoints:
        step = checkpoints.latest_step()
        like = {'params': run.shapes.params, 'ema': run.shapes.ema, 'optimizer': run.shapes.opt_state}
        return step, jax.device_get(checkpoints.restore(step, run.mesh, **like))


def test_a_linear_probe_stopped_and_gone_on_with(tmp_path, monkeypatch, capsys):
    config = finetuning(optimizer__train='head', training__steps=6, evaluation__every_steps=6)
    report = train.train(config, tmp_path / 'whole')
    output = capsys.readouterr().out
    assert '  learns    136 of ' in output
    assert 'TemporalTransformer/encoder_norm  ' in output
    real, count = train.Run.__init__, 0

    def counting(self, *arguments):
        real(self, *arguments)
        inner = self.step

        def step(*inputs):
            nonlocal count
            count += 1
            if count == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return inner(*inputs)

        self.step = step

    monkeypatch.setattr(train.Run, '__init__', counting)
    with pytest.raises(train.Stopped, match='saved step 3 of 6'):
        train.train(config, tmp_path / 'stopped')
    assert train.train(config, tmp_path / 'stopped') == report
    assert 'going on from step 3' in capsys.readouterr().out
    (one, ours), (other, theirs) = saved(tmp_path / 'stopped', config), saved(tmp_path / 'whole', config)
    assert one == other == 6
    chex.assert_trees_all_equal(ours, theirs)
    # The rest is what it was at the start, and nothing of it is in the optimiser's state.
    run = run_of(config)
    start = bits(jax.jit(run.create, out_shardings=run.placement)().params)
    for tree in (ours['params'], ours['ema']):
        moved = {name for name, after in bits(tree).items() if after != start[name]}
        assert moved == {'output_projection/kernel', 'output_projection/bias'}
    moments = [leaf.shape for leaf in jax.tree.leaves(ours['optimizer']) if leaf.ndim]
    assert sorted(moments) == [(8,), (8,), (16, 8), (16, 8)]
    # What learns is part of what a run is.
    with pytest.raises(ValueError, match=r'optimizer\.train'):
        train.train(finetuning(training__steps=6, evaluation__every_steps=6), tmp_path / 'stopped')
    written = json.loads((tmp_path / 'whole' / 'config.json').read_text())['optimizer']
    assert written['train'] == 'head'
