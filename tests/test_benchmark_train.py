"""The benchmark of training steps: its reference computes what Scenic does, its figures are what they say."""

import argparse
import dataclasses
import gzip
import json
import math
import os
import pathlib
import signal
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import load_tool

from vivit_jax.losses import masked_mean, per_example_loss
from vivit_jax.models.cost import multiply_adds
from vivit_jax.models.embed import token_grid

TOOLS = pathlib.Path(__file__).parent.parent / 'tools'
CONFIGS = TOOLS.parent / 'configs'
sys.path.append(str(TOOLS))  # where programs of tools/ find what they share

from benchmarking import (  # noqa: E402
    bars,
    child,
    comparing,
    contenders,
    data_wait,
    find_batch,
    hugging_face,
    jax_contender,
    measuring,
    profiling,
    reference,
    tables,
    workload,
)

CASES = {
    'A01_spacetime_token': 'spatio_temporal',
    'A02_spacetime_gap': 'spatio_temporal',
    'A03_fe_token': 'factorised_encoder',
    'A04_fe_gap': 'factorised_encoder',
    'A05_fe_spatial_only': 'factorised_encoder',
    'A06_fsa_space_time_gap': 'factorised_self_attention',
    'A07_fsa_time_space_gap': 'factorised_self_attention',
    'A08_fdp_gap': 'factorised_dot_product',
}
TINY = workload.Workload(
    {
        'attention': 'spatio_temporal',
        'num_layers': 2,
        'num_heads': 2,
        'width': 16,
        'mlp_dim': 24,
        'tubelet': (2, 8, 8),
        'classifier': 'token',
    },
    5,
    (4, 16, 16, 3),
    2,
)
TINY_OPTIONS = ['--layers=2', '--heads=2', '--width=16', '--mlp=24', '--tubelet=2x8x8', '--classes=5']
TINY_OPTIONS += ['--frames=4', '--crop=16']


def quiet(line):
    """Hears what a benchmark tells of its progress."""


# --- The reference ---


def reference_of(model):
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}
    return reference.make(model.num_classes, fields)


def smoothed_loss(logits, labels):
    each = per_example_loss(
        logits, labels, loss='softmax', head_sizes=(logits.shape[-1],), label_smoothing=0.1
    )
    return masked_mean(each, jnp.ones(len(labels), bool))


@pytest.mark.parametrize('name', CASES)
def test_the_reference_has_scenics_parameters_outputs_and_gradients(golden, quick_jit, name):
    arrays, _, ours = golden(name)
    assert ours.attention == CASES[name]
    model = reference_of(ours)
    video, labels = (jnp.asarray(arrays['inputs'][key]) for key in ('video', 'label_onehot'))
    shapes = jax.eval_shape(model.init, jax.random.key(0), video)['params']
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, arrays['params'])

    def loss(params):
        logits = model.apply({'params': params}, video)
        return smoothed_loss(logits, labels), logits

    (value, logits), gradient = quick_jit(jax.value_and_grad(loss, has_aux=True))(arrays['params'])
    recorded = arrays['outputs']
    np.testing.assert_allclose(logits, recorded['logits'], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(value, recorded['loss_label_smoothing_0.1'], rtol=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(arrays['grads']))
    chex.assert_trees_all_close(gradient, arrays['grads'], rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize(
    'name', ['A01_spacetime_token', 'A03_fe_token', 'A06_fsa_space_time_gap', 'A08_fdp_gap']
)
def test_a_step_of_the_reference_is_a_step_of_ours(golden, random_params, quick_jit, name):
    _, record, model = golden(name)
    fields = {field: getattr(model, field) for field in reference.FIELDS}
    clip = golden(name).arrays['inputs']['video'].shape[1:]
    work = workload.Workload(fields, record['num_classes'], clip, 3)
    video, labels = work.clips()
    params = random_params(model, jnp.zeros((1, *clip)))
    after = {}
    for contender in ('ours', 'reference'):
        programs = jax_contender.programs(contender, work)
        batch = programs.batch(video, labels)
        state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(programs.create))
        chex.assert_trees_all_equal_shapes_and_dtypes(programs.params(state), params)
        state = state.replace(params=params) if contender == 'ours' else (params, state[1])
        state, told = quick_jit(programs.train)(state, batch)
        loss = told['loss'] if contender == 'ours' else told
        after[contender] = (loss, programs.params(state))
    (loss, stepped), (their_loss, their_stepped) = after['ours'], after['reference']
    np.testing.assert_allclose(loss, their_loss, rtol=1e-5)
    # The gradient's norm is clipped to 1: the step's is the learning rate, 1e-3, to be told apart at 1e-5 of that.
    moved = [jax.tree.map(jnp.subtract, new, params) for new in (stepped, their_stepped)]
    norms = [np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(tree))) for tree in moved]
    np.testing.assert_allclose(norms, 1e-3, rtol=1e-3)
    chex.assert_trees_all_close(stepped, their_stepped, rtol=1e-6, atol=2e-8)


def test_the_reference_says_what_it_has_not():
    with pytest.raises(ValueError, match=r'the reference has spatio_temporal, .*, not axial with gap'):
        reference.make(5, {**TINY.model, 'attention': 'axial', 'classifier': 'gap'})
    with pytest.raises(
        ValueError, match=r'the reference has no dropout_rate=0.1, no drop_path_rate=0.3: leave it'
    ):
        reference.make(5, {**TINY.model, 'drop_path_rate': 0.3, 'dropout_rate': 0.1})


def test_the_reference_knows_every_field():
    """It has a field as it is, at one value, or the field says no more than how ours computes or starts."""
    how = {'attention_backend', 'scan_layers', 'remat', 'kernel_init', 'remainder', 'sampled_frames'}
    fields = {field.name for field in dataclasses.fields(TINY.make_model())} - {
        'num_classes',
        'parent',
        'name',
    }
    assert fields == {*reference.FIELDS, *reference.FIXED} | how
    model = TINY.make_model()
    assert {name: getattr(model, name) for name in reference.FIXED} == reference.FIXED


# --- What is computed ---


def options(*given):
    parser = argparse.ArgumentParser()
    workload.add_options(parser)
    return parser.parse_args(given)


def test_options_say_what_is_computed():
    work = workload.of_options(options('--size=L', '--attention=factorised_self_attention', '--batch=3'), {})
    model = work.make_model()
    assert (model.num_layers, model.num_heads, model.width, model.mlp_dim) == (24, 16, 1024, 4096)
    assert (work.clip, work.batch, work.num_classes, model.classifier) == ((16, 112, 112, 3), 3, 400, 'gap')
    small = workload.of_options(options(*TINY_OPTIONS), {})
    assert small == TINY.changed(dtype='float32')
    ours = workload.of_options(options('--remat=block', '--no-scan-layers', '--attention-backend=xla'), {})
    assert (ours.make_model().remat, ours.make_model().scan_layers) == ('block', False)
    assert 'attention_backend=xla, scan_layers=False, remat=block' in str(ours)


def test_a_configuration_says_what_is_computed():
    config = str(CONFIGS / 'kinetics400_fe.py')
    assert workload.instead(options(f'--config={config}'), {}) == ''
    assert workload.instead(
        options(f'--config={config}'), {'optimizer.name': 'adamw', 'training.ema_decay': '0.9'}
    ) == (
        "measured with optimizer.name='momentum' instead of 'adamw', training.ema_decay=0.0 instead of 0.9: "
        'the run itself takes other memory and time'
    )
    work = workload.of_options(options(f'--config={config}', '--batch=2'), {'model.width': '96'})
    model = work.make_model()
    assert (model.attention, model.width, work.clip, work.batch) == (
        'factorised_encoder',
        96,
        (32, 224, 224, 3),
        2,
    )
    assert work.num_classes == 400
    again = workload.Workload.of_json(json.loads(json.dumps(dataclasses.asdict(work))))
    assert again.make_model() == model


def test_operations_are_counted_by_formula():
    once = multiply_adds(TINY.make_model(), TINY.clip, logits_alone=True)
    assert TINY.flops() == {'forward': 2 * 2 * once, 'train': 3 * 2 * 2 * once}
    # 2 x 2 x 2 tokens and one for the class; embedding, two blocks, head.
    block = 9 * (4 * 16**2 + 2 * 16 * 24) + 2 * 9**2 * 16
    # In the last, keys and values of all tokens; the rest for the class alone.
    last = 9 * 2 * 16**2 + 2 * 16**2 + 2 * 16 * 24 + 2 * 9 * 16
    assert once == 8 * (2 * 8 * 8 * 3) * 16 + block + last + 16 * 5


@pytest.mark.parametrize(
    ('given', 'overrides', 'says'),
    [
        (['--config=x.py', '--width=8'], {}, '--width does not go with --config'),
        ([], {'model.width': '8'}, r'--config.model.width needs --config=FILE'),
        (['--heads=5'], {}, 'model.num_heads=5 does not divide model.width=384'),
        (['--crop=100'], {}, r'does not divide the clip \(16, 100, 100\)'),
        (['--remat=all'], {}, "model.remat='all': choose one of"),
    ],
)
def test_what_does_not_go_together_is_said(given, overrides, says):
    with pytest.raises(ValueError, match=says):
        workload.of_options(options(*given), overrides)


# --- Seconds, bytes, ratios ---


def test_ratios_are_of_medians_and_rounds_are_drawn_together():
    # Whatever rounds are drawn, one takes twice as long as the other.
    assert measuring.ratio([2.0, 4.0, 20.0], [1.0, 2.0, 10.0]) == {'ratio': 2.0, 'low': 2.0, 'high': 2.0}
    noisy = measuring.ratio([3.0, 3.0, 3.0, 9.0], [1.0, 2.0, 1.0, 1.0])
    assert noisy['ratio'] == 3.0
    assert noisy['low'] < 3.0 < noisy['high']
    assert measuring.spread([4.0, 1.0, 3.0, 2.0, 5.0]) == {'median': 3.0, 'low': 2.0, 'high': 4.0}


@pytest.mark.skipif(not pathlib.Path('/proc/self/clear_refs').exists(), reason='Linux tells the resident set')
def test_the_peak_of_a_step_is_its_own():
    size = 64 * 2**20

    def hold(times):
        def step():
            np.ones(times * size, np.uint8)

        return measuring.peak_over(step)

    measuring.settle()
    before = measuring.memory.resident()
    large, small = hold(4), hold(1)
    assert 0.9 * 3 * size < large - small < 1.1 * 3 * size  # the larger, gone before, does not count
    assert small > before + 0.9 * size


def test_the_better_way_of_waiting_counts_and_memory_is_compared():
    def row(name, title, train, forward, peak):
        both = {'train': {'median': train, 'seconds': [train] * 3}}
        both |= {'forward': {'median': forward, 'seconds': [forward] * 3}}
        return {'name': name, 'title': title, 'peak_bytes': peak} | both

    passive = row('hf-eager', 'hf-eager, OMP passive', 3.0, 5.0, 40)
    rows = [row('ours', 'ours', 1.0, 2.0, 10), passive, row('hf-eager', 'hf-eager', 4.0, 3.0, 50)]
    (entry,) = comparing.ratios(rows)
    assert (entry['name'], entry['of'], entry['memory']) == ('hf-eager', 'ours', 4.0)
    assert (entry['train']['ratio'], entry['train']['title']) == (3.0, 'hf-eager, OMP passive')
    assert (entry['forward']['ratio'], entry['forward']['title']) == (1.5, 'hf-eager')
    # Like with like: 16 bits with 16 bits, where the first took part in them too.
    rows += [row('hf-eager-bf16', 'hf-eager-bf16', 2.0, 2.0, 20)]
    assert [(one['name'], one['of'], one['train']['ratio']) for one in comparing.ratios(rows)] == [
        ('hf-eager', 'ours', 3.0),
        ('hf-eager-bf16', 'ours', 2.0),
    ]
    rows += [row('ours-bf16', 'ours-bf16', 0.5, 1.0, 5)]
    assert [(one['name'], one['of'], one['train']['ratio']) for one in comparing.ratios(rows)][1:] == [
        ('hf-eager-bf16', 'ours-bf16', 4.0),
        ('ours-bf16', 'ours', 0.5),
    ]


@pytest.mark.parametrize(
    ('device', 'problem'),
    [
        ({'platform': 'gpu', 'bytes': 90 * 2**20}, 'is predicted to take 96 MiB where 90 MiB can be had'),
        ({'platform': 'gpu', 'bytes': 96 * 2**20}, ''),
        ({'platform': 'gpu', 'bytes': None}, ''),
        ({'platform': 'cpu', 'bytes': None}, ''),
    ],
)
def test_what_cannot_fit_is_known_before_it_runs(device, problem):
    class Answers:
        def ask(self, do):
            assert do == 'device'
            return device

    planned = {'arguments': 90 * 2**20, 'temporary': 6 * 2**20, 'total': 96 * 2**20}
    assert comparing.too_large(Answers(), planned) == problem
    assert comparing.too_large(Answers(), planned, 'temporary') == ''
    assert comparing.too_large(Answers(), None) == ''


def test_others_give_back_what_they_keep_where_a_step_wants_it(monkeypatch):
    class Answers:
        def __init__(self, title):
            self.contender, self.rested, self.ends = contenders.Contender(title), 0, False

        def ask(self, do):
            if self.ends:
                raise contenders.ContenderError(f'{self.contender.title}: ended')
            if do == 'rest':
                self.rested += 1
            return {'platform': 'cpu', 'bytes': None}

        def close(self):
            pass

    # The arguments are there already.
    facts, left_out = {'planned': {'temporary': 96 * 2**20, 'total': 2**30}}, {}
    first, second, gone = (
        comparing.Turns(Answers(name), facts) for name in ('ours', 'reference', 'ours-loop')
    )
    gone.child.ends = True
    monkeypatch.setattr(comparing.measuring, 'available', lambda: 96 * 2**20)
    comparing._make_room(second, [first, second, gone], left_out)
    assert (first.child.rested, second.child.rested, left_out) == (0, 0, {})
    monkeypatch.setattr(comparing.measuring, 'available', lambda: 95 * 2**20)
    comparing._make_room(second, [first, second, gone], left_out)
    assert (first.child.rested, second.child.rested) == (1, 0)
    # Who has ended is left out, not who asked.
    assert left_out == {'ours-loop': 'ours-loop: ended'}
    comparing._make_room(second, [first, second, gone], left_out)
    assert first.child.rested == 2


# --- The largest batch ---


@pytest.mark.parametrize(
    ('capacity', 'start', 'tried'),
    [
        (11, 1, [1, 2, 4, 8, 16, 12, 10, 11]),
        (0, 1, [1]),
        (3, 8, [8, 4, 2, 3]),
        (1, 1, [1, 2]),
    ],
)
def test_the_batch_is_doubled_then_the_gap_halved(capacity, start, tried):
    rows, exact = find_batch.search(
        lambda batch: {'batch': batch, 'fits': batch <= capacity}, start, lambda: True
    )
    assert [row['batch'] for row in rows] == tried
    assert exact
    assert max((row['batch'] for row in rows if row['fits']), default=0) == capacity


def test_a_search_without_time_says_that_it_is_not_exact():
    time_left = iter([True, True, False])
    rows, exact = find_batch.search(lambda batch: {'batch': batch, 'fits': True}, 1, lambda: next(time_left))
    assert ([row['batch'] for row in rows], exact) == ([1, 2], False)


def test_an_attempt_that_fails_says_why(monkeypatch):
    class Failing:
        def __init__(self, *arguments):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *arguments):
            pass

        def ask(self, do, **arguments):
            if do == 'compile':
                return {'planned': None}
            raise contenders.ContenderError('ours: was killed, most likely since memory ran out')

    monkeypatch.setattr(find_batch, 'Child', Failing)
    row = find_batch.attempt(TINY, contenders.Contender('ours'), 3)
    assert not row['fits']
    assert row['why'] == 'ours: was killed, most likely since memory ran out'


# --- Where the time goes ---


def test_time_of_an_operation_is_without_that_of_others_inside():
    line, other = (1, 1), (1, 2)
    events = [
        profiling.Event(line, 'while', 0, 100),
        profiling.Event(line, 'dot.1', 10, 40),
        profiling.Event(line, 'dot.2', 50, 60),
        profiling.Event(line, 'add', 100, 110),
        profiling.Event(other, 'dot.3', 20, 120),
    ]
    assert sorted(profiling.own_time(events)) == [
        ('add', 10),
        ('dot.1', 30),
        ('dot.2', 10),
        ('dot.3', 100),
        ('while', 60),
    ]
    assert profiling.busy(events, [(0, 150)]) == 120
    assert profiling.busy(events[3:4], [(0, 105), (108, 200)]) == 5 + 2
    purposes = {'dot.1': ('Dense_0', 'forward'), 'dot.2': ('Dense_0', 'forward')}
    rows = profiling.operations(events, purposes, 2)
    assert [(row['what'], row['pass'], row['events']) for row in rows] == [
        ('dot', '', 0.5),
        ('while', '', 0.5),
        ('Dense_0', 'forward', 1.0),
        ('add', '', 0.5),
    ]
    assert [row['share'] for row in rows] == [100 / 210, 60 / 210, 40 / 210, 10 / 210]
    assert rows[0]['seconds'] == pytest.approx(50e-6)


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        (
            'jit(train_step)/transpose(jvp(ViViT))/ViViT._encode/Transformer/encoderblock_1/MlpBlock_0/Dense_1/dot_general',
            ('MlpBlock_0/Dense_1/dot_general', 'backward'),
        ),
        (
            'jit(step)/jvp(ViViT)/Transformer/while/body/EncoderBlock/LayerNorm_1/mul;jit(step)/other',
            ('LayerNorm_1/mul', 'forward'),
        ),
        ('jit(step)/jvp(ViViT)/embedding/dot_general', ('embedding/dot_general', 'forward')),
        ('jit(train_step)/mul', ('mul', '')),
        ('jit(train_step)/cond/branch_1_fun/mul', ('mul', '')),
        (
            'jit(f)/transpose(jvp(M))/while/body/checkpoint/rematted_computation/EncoderBlock/tanh',
            ('tanh', 'recomputed'),
        ),
    ],
)
def test_long_names_of_operations_are_told_short(name, expected):
    assert profiling.purpose(name) == expected


def test_traces_are_read(tmp_path):
    folder = tmp_path / 'plugins' / 'profile' / 'now'
    folder.mkdir(parents=True)
    entries = [
        {'ph': 'M', 'name': 'process_name', 'pid': 1},
        {'ph': 'X', 'pid': 1, 'tid': 1, 'name': profiling.STEP, 'ts': 5, 'dur': 100},
        {'ph': 'X', 'pid': 1, 'tid': 2, 'name': 'x', 'ts': 10, 'dur': 20, 'args': {'hlo_op': 'dot.1'}},
        {'ph': 'X', 'pid': 1, 'tid': 2, 'name': 'end: x', 'ts': 30, 'dur': 1},
        {},
    ]
    with gzip.open(folder / 'host.trace.json.gz', 'wt') as file:
        json.dump({'traceEvents': entries}, file)
    windows, events = profiling.read(tmp_path)
    assert windows == [(5, 105)]
    assert events == [profiling.Event((1, 2), 'dot.1', 10, 30)]


def test_the_profile_of_a_step_names_the_models_operations():
    contender = jax_contender.JaxContender('ours', TINY)
    contender.compile(runs=True, forward=True)
    contender.start()
    report = profiling.profile(contender, 'train', 2)
    assert (report['of'], report['steps']) == ('train', 2)
    assert sum(row['share'] for row in report['operations']) == pytest.approx(1)
    assert 0 < report['products_share'] < 1
    assert 0 <= report['idle_share'] < 1
    products = [row for row in report['operations'] if 'MlpBlock_0' in row['what']]
    assert {row['pass'] for row in products} >= {'forward', 'backward'}
    assert (
        0 < sum(row['seconds'] for row in report['operations']) < report['lines'] * report['seconds_per_step']
    )
    forward = profiling.profile(contender, 'forward', 2)
    assert any('MlpBlock_0' in row['what'] for row in forward['operations'])
    assert {row['pass'] for row in forward['operations']} == {''}


# --- Contenders ---


def test_pytorchs_contenders_take_part_twice_or_say_what_is_missing(monkeypatch):
    monkeypatch.setattr(hugging_face, 'missing', list)
    found, left_out = contenders.expanded(['ours', 'hf-compiled-bf16'])
    assert [contender.title for contender in found] == [
        'ours',
        'hf-compiled-bf16, OMP passive',
        'hf-compiled-bf16',
    ]
    assert left_out == {}
    monkeypatch.setattr(hugging_face, 'missing', lambda: ['torch', 'transformers'])
    found, left_out = contenders.expanded(['ours', 'hf-eager'])
    assert [contender.title for contender in found] == ['ours']
    assert left_out == {'hf-eager': 'torch and transformers not installed: pip install torch transformers'}


def test_unknown_contenders_are_named():
    with pytest.raises(
        ValueError, match="contender 'mine': choose some of ours, ours-loop, ours-plain, reference"
    ):
        contenders.check_name('mine')
    assert contenders.check_name('ours-plain-bf16') == 'ours-plain-bf16'


def test_variants_change_how_not_what():
    plain = jax_contender.VARIANTS['ours-plain']
    assert plain == {'scan_layers': False, 'remat': 'none', 'attention_backend': 'xla'}
    for name, fields in jax_contender.VARIANTS.items():
        assert TINY.changed(**fields).parameters() == TINY.parameters(), name
    assert child.make('reference-bf16', TINY).workload.dtype == 'bfloat16'


@pytest.mark.parametrize(
    ('name', 'dtype', 'bfloat16'),
    [
        ('hf-eager', 'float32', False),
        ('hf-compiled', 'bfloat16', True),
        ('hf-eager-bf16', 'float32', True),
    ],
)
def test_pytorch_computes_in_the_type_asked_for(monkeypatch, name, dtype, bfloat16):
    made = {}
    monkeypatch.setattr(hugging_face, 'TorchContender', lambda work, **given: made.update(given))
    child.make(name, TINY.changed(dtype=dtype))
    assert made == {'compiled': name == 'hf-compiled', 'bfloat16': bfloat16}


@pytest.mark.parametrize(
    ('name', 'peak', 'mfu'),
    [
        ('ours', {'flops': 1e12, 'dtype': 'float32'}, True),
        ('ours-bf16', {'flops': 1e12, 'dtype': 'float32'}, False),
        ('ours-bf16', {'flops': 1e12, 'source': '--peak-flops'}, True),
        ('ours', None, False),
    ],
)
def test_no_share_of_a_peak_of_another_type(name, peak, mfu):
    there = argparse.Namespace(contender=contenders.Contender(name))
    turns = comparing.Turns(there, {}, {what: [2.0] for what in comparing.WHAT})
    row = comparing._row(turns, TINY, {'train': 6e12, 'forward': 2e12}, peak)
    assert [row[what]['mfu'] for what in comparing.WHAT] == ([3.0, 1.0] if mfu else [None, None])


def test_hugging_faces_model_is_the_same_size_and_learns():
    torch = pytest.importorskip('torch')
    pytest.importorskip('transformers')
    contender = hugging_face.TorchContender(TINY, compiled=False, bfloat16=False)
    facts = contender.compile(runs=True, forward=True)
    assert facts['parameters'] == TINY.parameters()
    assert contender.model.config._attn_implementation == 'sdpa'
    assert contender.optimiser.param_groups[0]['momentum'] == reference.MOMENTUM
    batch = 2 * 4 * 16 * 16 * 3 * 4 + 2 * 8
    assert contender.live_bytes() == 2 * 4 * TINY.parameters() + batch
    before = [p.detach().clone() for p in contender.model.parameters()]
    contender.train()
    with torch.no_grad():
        moved = [p - old for p, old in zip(contender.model.parameters(), before, strict=True)]
        change = torch.sqrt(sum((leaf**2).sum() for leaf in moved))
    # The third step with momentum: at most 1 + 0.9 + 0.81 times the clipped gradient's norm.
    assert 0 < float(change) <= 1e-3 * (1 + 0.9 + 0.81) * 1.001


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        ({'attention': 'factorised_encoder'}, "no attention='factorised_encoder': leave it out"),
        (
            {'classifier': 'gap', 'activation': 'gelu_exact'},
            "no classifier='gap', no activation='gelu_exact'",
        ),
    ],
)
def test_what_hugging_face_has_not_is_said(changes, says):
    with pytest.raises(ValueError, match=says):
        hugging_face.check(TINY.changed(**changes))


def test_a_process_that_cannot_or_ends_says_why_in_a_line(tmp_path):
    # Not asked of a reference before: a model that it has not.
    other = TINY.changed(attention='axial', classifier='gap')
    with contenders.Child(contenders.Contender('reference'), other, str(tmp_path)) as process:
        with pytest.raises(contenders.ContenderError, match='reference: the reference has spatio_temporal'):
            process.ask('compile', runs=False, forward=False)
        os.kill(process._process.pid, signal.SIGKILL)
        with pytest.raises(
            contenders.ContenderError, match='reference: was killed, most likely since memory'
        ):
            process.ask('device')


# --- Bars ---


def test_bars_are_about_the_sizes_that_they_name():
    tokens = {}
    for name, bar in bars.SPEED.items():
        model, clip = bar.workload.make_model(), bar.workload.clip
        tokens[name] = math.prod(token_grid(clip[:3], model.tubelet)), model.classifier
    assert tokens == {
        'model1': (392, 'token'),
        'b16x2': (3136, 'token'),
        'fe': (392, 'token'),
        'fsa': (392, 'gap'),
        'fdp': (392, 'gap'),
    }
    # As many parameters as the paper's B/16x2 (88.9 M), with 400 classes and a learned place for every token.
    assert (
        bars.SPEED['b16x2'].workload.parameters()
        == 12 * 7_087_872 + 1_180_416 + 3_138 * 768 + 1_536 + 307_600
    )
    wanted = {name: bar.wanted for name, bar in bars.SPEED.items()}
    assert wanted['model1'] == (
        ('hf-eager', 'train', 1.4),
        ('hf-compiled', 'train', 1.2),
        ('reference', 'train', 1.4),
        ('hf-eager', 'forward', 2.2),
        ('hf-compiled', 'forward', 1.8),
    )
    assert wanted['b16x2'] == (('reference', 'train', 1.6), ('reference', 'memory', 3.0))
    assert {wanted[name] for name in ('fe', 'fsa', 'fdp')} == {(('reference', 'train', 1.2),)}
    assert bars.COMPILED.make_model().num_layers == 24


def test_bars_are_met_missed_or_not_measured():
    train = {'ratio': 1.5, 'low': 1.4, 'high': 1.6, 'title': 'hf-eager, OMP passive'}
    report = {
        'ratios': [{'name': 'hf-eager', 'train': train, 'memory': None}],
        'left_out': {'reference': 'reference: is predicted to take 20 GiB where 9 GiB can be had'},
    }
    met = bars._judged('model1', 'hf-eager', 'train', 1.4, report)
    assert met == {
        'bar': 'model1: train step, hf-eager / ours',
        'wanted': '>= 1.4',
        'measured': '1.50 (1.40 to 1.60) (OMP passive)',
        'verdict': 'met',
    }
    assert bars._judged('model1', 'hf-eager', 'train', 1.51, report)['verdict'] == 'missed'
    assert bars._judged('b16x2', 'hf-eager', 'memory', 3, report)['verdict'] == 'not measured'
    row = bars._judged('b16x2', 'reference', 'train', 1.6, report)
    assert (row['verdict'], row['measured']) == ('not measured', report['left_out']['reference'])


def test_shares_of_a_gpus_peak_are_judged_and_without_a_gpu_not_measured(monkeypatch):
    report = {
        'contenders': [{'name': 'ours', 'train': {'mfu': 0.5}}],
        'peak': {'flops': 989.4e12, 'source': 'published: H100 SXM bfloat16'},
        'device': {'kind': 'NVIDIA H100 80GB HBM3'},
    }
    assert bars._judged('gpu_b', *bars.GPU['gpu_b'].wanted[0], report) == {
        'bar': 'gpu_b: train step, share of the peak',
        'wanted': '>= 45%',
        'measured': '50.0% (989.4 TFLOP/s, published: H100 SXM bfloat16; NVIDIA H100 80GB HBM3)',
        'verdict': 'met',
    }
    assert bars._judged('gpu_l', *bars.GPU['gpu_l'].wanted[0], report)['verdict'] == 'missed'
    unknown = report | {'contenders': [{'name': 'ours', 'train': {'mfu': None}}], 'peak': None}
    assert bars._judged('gpu_l', *bars.GPU['gpu_l'].wanted[0], unknown)['verdict'] == 'not measured'
    monkeypatch.setenv('JAX_PLATFORMS', 'cpu')  # of the contender's process
    options = argparse.Namespace(
        attention_backend=None, scan_layers=None, remat=None, rounds=None, seconds=1.0, peak_flops=None
    )
    (row,), _ = bars.run(['gpu_hf'], options, lambda line: None)
    assert (row['measured'], row['verdict']) == ('no GPU is here, but cpu', 'not measured')
    assert row['command'] == 'python tools/benchmark_train.py --bars=gpu_hf'


def test_a_bar_tells_the_command_that_measures_it_alone():
    given = argparse.Namespace(rounds=3, peak_flops=None)
    ours = {'attention_backend': 'blockwise', 'scan_layers': False, 'remat': 'block'}
    assert bars._command('fe', ours, given) == (
        'python tools/benchmark_train.py --bars=fe --rounds=3 --attention-backend=blockwise --no-scan-layers '
        '--remat=block'
    )
    rows = [{'bar': 'fe', 'wanted': '>= 1.2', 'measured': '1.3', 'verdict': 'met', 'command': 'python x'}]
    assert list(tables.of_bars(rows))[2:] == ['| fe | >= 1.2 | 1.3 | met | `python x` |']


# --- Fed by the pipeline ---


def test_steps_are_fed_by_the_pipeline():
    found = data_wait.measure(data_wait.config_of(dataclasses.replace(TINY, batch=8)), noise=True, steps=2)
    assert 0 < found['wait_seconds'] < found['seconds_per_step']
    assert found['data_wait'] == pytest.approx(found['wait_seconds'] / found['seconds_per_step'])


def test_a_configuration_is_fed_to_what_options_make_of_it(monkeypatch):
    fed = []
    monkeypatch.setattr(data_wait, 'measure', lambda config, **how: fed.append((config, how)) or {})
    file = str(CONFIGS / 'moving_digits.py')
    asked = workload.of_options(
        options(f'--config={file}', '--remat=block', '--scan-layers', '--batch=4'), {}
    )
    work = workload.Workload.of_json(json.loads(json.dumps(dataclasses.asdict(asked))))
    child.Worker('ours', work).data_wait({'file': file, 'overrides': {'data.threads': '3'}}, steps=7)
    ((config, how),) = fed
    assert how == {'noise': False, 'steps': 7}
    assert (config.model.remat, config.model.scan_layers, config.model.tubelet) == ('block', True, (4, 4, 4))
    assert (config.training.batch_size, config.data.threads) == (4, 3)


# --- The command ---


def test_ours_beside_the_reference_from_beginning_to_end(tmp_path):
    output, plot = tmp_path / 'report.json', tmp_path / 'plot.png'
    command = [sys.executable, str(TOOLS / 'benchmark_train.py'), '--compare', *TINY_OPTIONS, '--rounds=3']
    command += [
        '--contenders',
        'ours',
        'reference',
        '--peak-flops=1e12',
        f'--output={output}',
        f'--plot={plot}',
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(output.read_text())
    ours, other = report['contenders']
    assert (ours['title'], other['title'], report['left_out']) == ('ours', 'reference', {})
    assert ours['parameters'] == other['parameters'] == TINY.parameters()
    for row in (ours, other):
        assert (len(row['train']['seconds']), len(row['forward']['seconds'])) == (3, 3)
        assert row['train']['median'] == np.median(row['train']['seconds'])
        assert row['clips_per_second'] == pytest.approx(2 / row['train']['median'])
        assert row['train']['mfu'] == pytest.approx(TINY.flops()['train'] / row['train']['median'] / 1e12)
        assert min(row['compile_seconds'], row['forward_compile_seconds'], row['trace_seconds']) > 0
        # Of the parameters, and as much momentum.
        assert row['planned']['arguments'] >= 2 * 4 * TINY.parameters()
        assert row['peak_bytes'] > 0
    (entry,) = report['ratios']
    assert entry['train']['ratio'] == pytest.approx(other['train']['median'] / ours['train']['median'])
    assert entry['memory'] == pytest.approx(other['peak_bytes'] / ours['peak_bytes'])
    assert report['peak'] == {'flops': 1e12, 'source': '--peak-flops'}
    assert '| reference | ' in done.stdout
    assert plot.read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize(
    ('given', 'says'),
    [
        (['--compare', '--contenders', 'mine'], "contender 'mine': choose some of"),
        (['--bars=fastest'], "--bars=fastest: 'fastest' is none of model1, b16x2, fe"),
        (['--output=nowhere/x.json'], '--output=nowhere/x.json: nowhere is not a folder'),
        (['--plot=x.txt'], '--plot=x.txt: the name ends in .png, or another of '),
        (['--profile', '--plot=x.png'], '--plot draws a comparison'),
        (
            ['--profile', '--contenders', 'ours', 'reference'],
            '--profile looks at one contender, not at ours and',
        ),
        (['--bf16'], '--bf16 goes with --compare'),
        (['--bars=fe', '--size=B'], '--size does not go with --bars, each of which says what is computed'),
        (['--bars=fe', '--contenders', 'ours'], '--contenders does not go with --bars'),
        (['--bars=fe', '--config.model.width=96'], '--config.model.width does not go with --bars'),
        (
            ['--compare', '--contenders', 'ours', 'reference', f'--config={CONFIGS / "ssv2_fe.py"}'],
            'the reference has no drop_path_rate=0.3: leave it out of --contenders',
        ),
        (['--compile-only', '--contenders', 'hf-eager'], 'PyTorch compiles while it runs'),
        (['--peak-flops=none'], "'none' must be a number above 0"),
        (['--batch=0'], "'0' must be a whole number of at least 1"),
        (
            ['--attention=factorised_encoder', '--compare', '--contenders', 'hf-eager'],
            "Hugging Face's ViViT has no",
        ),
    ],
)
def test_mistakes_are_answered_with_a_line(given, says, monkeypatch, capsys):
    monkeypatch.setattr(hugging_face, 'missing', list)
    monkeypatch.setattr(sys, 'argv', ['benchmark_train.py', *given])
    with pytest.raises(SystemExit) as ending:
        load_tool('benchmark_train').main()
    assert ending.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert says in last
