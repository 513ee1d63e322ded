"""The bars that ours is held to, each a comparison by itself; ratios of medians, in turn, in one run."""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarking import comparing, compiling, tables, workload
from benchmarking.contenders import Child, Contender, ContenderError, expanded
from benchmarking.workload import Workload

FIRST = {'num_layers': 12, 'num_heads': 6, 'width': 384, 'mlp_dim': 1536, 'tubelet': (2, 16, 16)}
BASE = {'num_layers': 12, 'num_heads': 12, 'width': 768, 'mlp_dim': 3072, 'tubelet': (2, 16, 16)}
LARGE = {'num_layers': 24, 'num_heads': 16, 'width': 1024, 'mlp_dim': 4096, 'tubelet': (2, 16, 16)}
CLASSES = 400
CLOSE = 0.15  # of the predicted memory

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Bar:
    """A comparison and what is wanted of it.

    Attributes:
        workload: What is computed.
        contenders: Who takes part, ours first.
        wanted: How many times slower (`train`, `forward`), or larger (`memory`), who must be than ours; or which
            share of the device's peak a training step of whom must reach (`mfu`).
        rounds: Of the comparison, unless asked for otherwise.
    """

    workload: Workload
    contenders: tuple[str, ...]
    wanted: tuple[tuple[str, str, float], ...]
    rounds: int


def _first(attention: str) -> Workload:
    classifier = 'token' if attention in ('spatio_temporal', 'factorised_encoder') else 'gap'
    model = {'attention': attention, 'classifier': classifier, **FIRST}
    return Workload(model, CLASSES, (16, 112, 112, 3), 2)


def _large(attention: str, size: dict[str, Any], *, batch: int = 1, dtype: str = 'float32') -> Workload:
    model = {'attention': attention, 'classifier': 'token', 'dtype': dtype, **size}
    return Workload(model, CLASSES, (32, 224, 224, 3), batch)


def _against_reference(attention: str) -> Bar:
    return Bar(_first(attention), ('ours', 'reference'), (('reference', 'train', 1.2),), 20)


SPEED = {
    'model1': Bar(
        _first('spatio_temporal'),
        ('ours', 'hf-eager', 'hf-compiled', 'reference', 'reference-kept'),
        (
            ('hf-eager', 'train', 1.4),
            ('hf-compiled', 'train', 1.2),
            ('reference', 'train', 1.4),
            ('hf-eager', 'forward', 2.2),
            ('hf-compiled', 'forward', 1.8),
        ),
        20,
    ),
    'b16x2': Bar(
        _large('spatio_temporal', BASE),
        ('ours', 'reference'),
        (('reference', 'train', 1.6), ('reference', 'memory', 3.0)),
        5,
    ),
    'fe': _against_reference('factorised_encoder'),
    'fsa': _against_reference('factorised_self_attention'),
    'fdp': _against_reference('factorised_dot_product'),
}
# In 16 bits; without a GPU they are not measured.
GPU = {
    'gpu_b': Bar(
        _large('factorised_encoder', BASE, batch=32, dtype='bfloat16'),
        ('ours',),
        (('ours', 'mfu', 0.45),),
        20,
    ),
    'gpu_l': Bar(
        _large('factorised_encoder', LARGE, batch=16, dtype='bfloat16'),
        ('ours',),
        (('ours', 'mfu', 0.55),),
        20,
    ),
    'gpu_hf': Bar(
        _large('spatio_temporal', BASE, batch=8, dtype='bfloat16').changed(attention_backend='cudnn'),
        ('ours', 'hf-compiled-bf16'),
        (('hf-compiled-bf16', 'train', 1.5),),
        20,
    ),
}
# The compiled step of the factorised encoder, L/16x2: our layers in a scan, recomputed, against our loop.
COMPILED, COMPILED_AS, COMPILE_FASTER = (
    _large('factorised_encoder', LARGE),
    {'scan_layers': True, 'remat': 'block'},
    4.0,
)
MEMORY = {
    **{name: SPEED[name].workload for name in ('model1', 'fe', 'fsa', 'fdp')},
    'b16x2': SPEED['b16x2'].workload,
}
NAMES = (*SPEED, 'compile_l', 'memory', *GPU)


def run(
    names: list[str], options: argparse.Namespace, tell: Callable[[str], None]
) -> tuple[list[Row], dict[str, Any]]:
    """Measures bars one after another.

    Args:
        names: Some of `NAMES`.
        options: Of the command: how ours computes, `rounds`, `seconds`, `peak_flops`.
        tell: Told of what is going on, and of the tables on the way.

    Returns:
        The rows `{bar, wanted, measured, verdict, command}`, and the reports that they are taken from, by bar.
    """
    ours = workload.ours_of(options)
    rows: list[Row] = []
    reports: dict[str, Any] = {}
    for name in names:
        tell(f'bar {name}')
        try:
            measure = _compile if name == 'compile_l' else _memory if name == 'memory' else _speed
            found, reports[name] = measure(name, ours, options, tell)
        except ContenderError as error:
            found = [{'bar': name, 'wanted': '', 'measured': str(error), 'verdict': 'not measured'}]
        command = _command(name, ours, options)
        rows += [row | {'command': command} for row in found]
    return rows, reports


def _speed(
    name: str, ours: dict[str, Any], options: argparse.Namespace, tell: Callable[[str], None]
) -> tuple[list[Row], dict[str, Any]]:
    bar = (SPEED | GPU)[name]
    if name in GPU:
        tell(f'on {_gpu(bar.workload)}')
    contenders, left_out = expanded(list(bar.contenders))
    report = comparing.compare(
        bar.workload.changed(**ours),
        contenders,
        rounds=options.rounds or bar.rounds,
        seconds=options.seconds,
        peak_flops=options.peak_flops,
        tell=tell,
    )
    report['left_out'] |= left_out
    tell('\n'.join(tables.of_comparison(report)))
    return [_judged(name, *wanted, report) for wanted in bar.wanted], report


def _gpu(work: Workload) -> str:
    """Returns the GPU that contenders compute on; raises a ContenderError where they compute on something else."""
    with tempfile.TemporaryDirectory() as caches, Child(Contender('ours'), work, caches) as child:
        device = child.ask('device')
    if device['platform'] != 'gpu':
        raise ContenderError(f'no GPU is here, but {device["kind"]}')
    return str(device['kind'])


def _judged(name: str, who: str, what: str, least: float, report: dict[str, Any]) -> Row:
    """Returns the row of one ratio, or of a share of the peak."""
    if what == 'mfu':
        share = next(row for row in report['contenders'] if row['name'] == who)['train']['mfu']
        row = {'bar': f'{name}: train step, share of the peak', 'wanted': f'>= {least:.0%}'}
        if share is None:
            return row | {'measured': 'the peak is not known here: --peak-flops', 'verdict': 'not measured'}
        peak, kind = report['peak'], report['device']['kind']
        of = f'{peak["flops"] / 1e12:g} TFLOP/s, {peak["source"]}; {kind}'
        return row | {'measured': f'{share:.1%} ({of})', 'verdict': 'met' if share >= least else 'missed'}
    says = {'train': 'train step', 'forward': 'forward', 'memory': 'peak memory of the step'}[what]
    row = {'bar': f'{name}: {says}, {who} / ours', 'wanted': f'>= {least:g}'}
    entry = next((entry for entry in report['ratios'] if entry['name'] == who), None)
    value = entry and entry[what]
    if entry is None or value is None:
        causes = [cause for title, cause in report['left_out'].items() if title.startswith(who)]
        return row | {'measured': '; '.join(causes) or 'not told here', 'verdict': 'not measured'}
    measured = value if what == 'memory' else value['ratio']
    shown = f'{measured:.2f}' if what == 'memory' else tables.ratio(value)
    return row | {'measured': shown, 'verdict': 'met' if measured >= least else 'missed'}


def _compile(
    name: str, ours: dict[str, Any], options: argparse.Namespace, tell: Callable[[str], None]
) -> tuple[list[Row], dict[str, Any]]:
    work = COMPILED.changed(**{**ours, **COMPILED_AS})
    contenders, _ = expanded(['ours', 'ours-loop'])
    report = compiling.compile_times(work, contenders, rounds=options.rounds or 3, tell=tell)
    tell('\n'.join(tables.of_compile_times(report)))
    found = report['ratios'][0]['seconds']
    alone = report['ratios'][0]['compile_seconds']
    row = {
        'bar': f'{name}: factorised encoder L/16x2, trace and compile, loop / scan with remat',
        'wanted': f'>= {COMPILE_FASTER:g}',
        'measured': f'{tables.ratio(found)}; compile alone {tables.ratio(alone)}',
        'verdict': 'met' if found['ratio'] >= COMPILE_FASTER else 'missed',
    }
    return [row], report


def _memory(
    name: str, ours: dict[str, Any], options: argparse.Namespace, tell: Callable[[str], None]
) -> tuple[list[Row], dict[str, Any]]:
    rows: list[Row] = []
    report: dict[str, Any] = {}
    for which, work in MEMORY.items():
        tell(f'memory of {which}')
        row = {
            'bar': f'{name}: {which}, peak of the step / predicted',
            'wanted': f'{1 - CLOSE:g} to {1 + CLOSE:g}',
        }
        try:
            found = _peak(work.changed(**ours))
        except ContenderError as error:
            rows.append(row | {'measured': str(error), 'verdict': 'not measured'})
            continue
        report[which] = found
        if not found['peak_bytes'] or not found['predicted_bytes']:
            rows.append(row | {'measured': 'not told here', 'verdict': 'not measured'})
            continue
        share = found['peak_bytes'] / found['predicted_bytes']
        amounts = [tables.amount(found[of]) for of in ('peak_bytes', 'predicted_bytes')]
        verdict = 'met' if abs(share - 1) <= CLOSE else 'missed'
        rows.append(row | {'measured': f'{share:.2f} ({" of ".join(amounts)})', 'verdict': verdict})
    return rows, report


def _peak(work: Workload) -> dict[str, Any]:
    """Returns the measured and the predicted memory of our training step."""
    with tempfile.TemporaryDirectory() as caches, Child(Contender('ours'), work, caches) as child:
        facts = child.ask('compile', runs=True, forward=False)
        if problem := comparing.too_large(child, facts['planned']):
            raise ContenderError(f'ours {problem}')
        return child.ask('start', forward=False)


def _command(name: str, ours: dict[str, Any], options: argparse.Namespace) -> str:
    flags = [f'--rounds={options.rounds}'] if options.rounds else []
    flags += [f'--peak-flops={options.peak_flops:g}'] if options.peak_flops and name in SPEED | GPU else []
    for field, value in ours.items():
        option = field.replace('_', '-')
        flags.append(
            f'--{"" if value else "no-"}{option}' if isinstance(value, bool) else f'--{option}={value}'
        )
    return ' '.join(['python tools/benchmark_train.py', f'--bars={name}', *flags])
