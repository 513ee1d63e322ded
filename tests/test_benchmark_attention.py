import argparse
import json

import jax
import numpy as np
import pytest
from conftest import load_tool

TOY = ('--heads=2', '--per-head=8', '--rounds=1', '--fit-from=1')


@pytest.fixture(scope='module')
def tool():
    return load_tool('benchmark_attention')


@pytest.fixture(scope='module')
def exponents(tool):
    return tool.exponents


@pytest.mark.parametrize(('exponent', 'factor'), [(2.0, 3.0), (1.0, 1e-9), (-0.5, 7.0), (0.0, 2.0)])
def test_a_power_is_found_again(exponents, exponent, factor):
    sizes = [197, 785, 3137, 12545]
    law = exponents.fit(sizes, [factor * size**exponent for size in sizes])
    assert law.exponent == pytest.approx(exponent, abs=1e-12)
    assert law.factor == pytest.approx(factor, rel=1e-9)
    assert law.off == pytest.approx(0, abs=1e-9)
    assert law.points == 4


def test_least_squares_on_logarithms(exponents):
    # By hand: logs to base 2 are (0, 0), (1, 3), (2, 0): a level line at 1, from which the middle is off by 2.
    law = exponents.fit([1, 2, 4], [1, 8, 1])
    assert law.exponent == pytest.approx(0, abs=1e-12)
    assert law.factor == pytest.approx(2)
    assert law.off == pytest.approx(3)


def test_what_no_power_can_be_fitted_to(exponents):
    assert exponents.fit([], []) is None
    assert exponents.fit([5, 5], [1.0, 2.0]) is None
    for cost in (0.0, -1.0, float('inf'), float('nan')):
        with pytest.raises(ValueError, match='can only be fitted to finite numbers above 0'):
            exponents.fit([1, 2], [1.0, cost])


def test_curves_leave_out_what_was_not_measured(exponents):
    rows = [
        {'name': 'a', 'n': 1, 'seconds': 1.0, 'bytes': 8},
        {'name': 'b', 'n': 1, 'seconds': 5.0, 'bytes': None},
        {'name': 'a', 'n': 2, 'seconds': 4.0, 'bytes': 16},
        {'name': 'a', 'n': 3, 'bytes': 24},
    ]
    found = exponents.curves(rows, 'n', {'seconds': 'time', 'bytes': 'memory'})
    assert [(curve.name, curve.cost, curve.sizes, curve.costs) for curve in found] == [
        ('a', 'time', (1, 2), (1.0, 4.0)),
        ('b', 'time', (1,), (5.0,)),
        ('a', 'memory', (1, 2, 3), (8, 16, 24)),
    ]
    assert list(exponents.of_fits(found))[2:] == [
        '| time | a | n^2.00 | 2 | 0% |',
        '| time | b | one size only | 1 |  |',
        '| memory | a | n^1.00 | 3 | 0% |',
    ]
    assert [law['exponent'] for law in exponents.as_json(found)] == [pytest.approx(2), None, pytest.approx(1)]


def test_all_that_run_here_are_compared(run, tmp_path):
    files = (f'--output={tmp_path / "a.json"}', f'--plot={tmp_path / "a.png"}')
    lines = run('--tokens=16,40', *TOY, *files).splitlines()
    assert lines[0].startswith('attention, batch 1, 2 heads of 8, float32; cpu')
    assert lines[2] == (
        '| tokens |  | forward, ms | forward + backward, ms | forward, memory | forward + backward, memory | differs '
        '|  |'
    )
    report = json.loads((tmp_path / 'a.json').read_text())
    found = [(row['tokens'], row['name']) for row in report['rows']]
    assert found == [(tokens, name) for tokens in (16, 40) for name in ('xla', 'blockwise', 'linen')]
    for row in report['rows']:
        assert row['differs'] < 1e-5
        assert 0 < row['forward']['low'] <= row['forward_seconds'] <= row['forward']['high']
        assert row['train_memory'] >= row['train_planned'] > 0
    # Plain attention holds all weights for the way back: its memory grows with their number.
    held = {row['tokens']: row['train_planned'] for row in report['rows'] if row['name'] == 'xla'}
    assert held[40] / held[16] > 4
    assert {(fit['name'], fit['points']) for fit in report['fits']} == {
        (row['name'], 2) for row in report['rows']
    }
    assert list(report['linear']) == ['blockwise']
    assert report['command']
    assert (tmp_path / 'a.png').stat().st_size > 10_000


@pytest.mark.parametrize('pattern', ['space', 'time'])
def test_three_ways_to_keep_frames_apart_are_the_same(tool, pattern):
    options = argparse.Namespace(pattern=pattern, frames=3, backends=['xla', 'blockwise'], dtype='float32')
    random = np.random.default_rng(0)
    query, key, value, gradient = (random.normal(size=(2, 12, 2, 8)).astype(np.float32) for _ in range(4))
    frame = np.arange(12) // 4 if pattern == 'space' else np.arange(12) % 4
    scores = np.einsum('bqhc,bkhc->bhqk', query, key) / np.sqrt(8)
    weights = np.exp(scores) * (frame[:, None] == frame)
    expected = np.einsum('bhqk,bkhc->bqhc', weights / weights.sum(axis=-1, keepdims=True), value)
    found = tool.ways(options, (2, 2, 12, 8))
    assert [way.name for way in found] == ['folded, xla', 'folded, blockwise', 'batch axes', 'vmap']
    gradients = []
    for way in found:
        mixed, by = jax.jit(way.run(True))(query, key, value, gradient)
        np.testing.assert_allclose(mixed, expected, atol=1e-5)
        gradients.append(by)
    for by in gradients[1:]:
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), by, gradients[0])


def test_help_names_every_option(tool):
    text = tool._parser().format_help()
    assert '(70% of what can be had)' in ' '.join(text.split())


def test_what_does_not_fit_is_planned_and_not_run(run, tmp_path):
    text = run(
        '--tokens=40', *TOY, '--memory-limit=1e-5', '--backends', 'xla', f'--output={tmp_path / "a.json"}'
    )
    (row,) = json.loads((tmp_path / 'a.json').read_text())['rows']
    assert row['train_planned'] > 0
    assert 'train_seconds' not in row
    assert row['why'].endswith('of 0.0 MiB')
    assert row['why'] in text


def test_memory_that_grows_like_the_tokens_is_called_linear(tool, exponents):
    cost = tool.COSTS['train_memory']
    sizes = (1024, 2048, 4096)
    found = [
        exponents.Curve('blockwise', 'tokens', cost, sizes, (10, 20, 40)),
        exponents.Curve('flash', 'tokens', cost, sizes, (10, 23, 53)),
        exponents.Curve('xla', 'tokens', cost, sizes, (10, 40, 160)),
    ]
    assert tool._linear(found) == {'blockwise': True, 'flash': False}


def test_a_law_is_fitted_to_large_sizes_and_all_are_drawn(exponents, tmp_path):
    rows = [{'name': 'a', 'n': n, 'seconds': cost} for n, cost in ((1, 9.0), (2, 4.0), (4, 16.0))]
    (curve,) = exponents.curves(rows, 'n', {'seconds': 'time, s'}, 2)
    assert curve.sizes == (1, 2, 4)
    assert (curve.fit().points, curve.fit().exponent) == (2, pytest.approx(2))
    (none,) = exponents.curves(rows, 'n', {'seconds': 'time, s'}, 4)
    assert list(exponents.of_fits([none]))[-1] == '| time, s | a | fewer than two sizes from 4 on | 3 |  |'
    exponents.draw([curve, none], 'Of laws, and of none', str(tmp_path / 'a.png'))
    assert (tmp_path / 'a.png').stat().st_size > 10_000


@pytest.mark.parametrize(
    ('options', 'error'),
    [
        (
            ['--backends', 'flsh'],
            'error: --backends flsh: choose some of auto, xla, blockwise, cudnn, flash, linen',
        ),
        (
            ['--backends', 'cudnn'],
            "error: model.attention_backend='cudnn': it needs an NVIDIA GPU, and this is cpu",
        ),
        (['--pattern=space', '--tokens=50'], 'error: --tokens=50: 16 frames (--frames) do not divide them'),
        (['--pattern=time', '--tokens=32', '--backends', 'linen'], 'error: --backends linen has no frames'),
        (['--memory-limit=0'], 'error: --memory-limit=0: GiB, more than 0'),
        (['--output=/nowhere/a.json'], 'error: --output=/nowhere/a.json: /nowhere is not a folder'),
        (
            ['--tokens=0'],
            "benchmark_attention.py: error: argument --tokens: '0' must be a whole number of at least 1",
        ),
    ],
)
def test_nonsense_is_refused_in_one_line(refused, options, error):
    assert refused(*options).startswith(error)
