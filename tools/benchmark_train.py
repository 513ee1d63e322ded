"""Measures training steps: how long, how much memory, how close to what the device can do; beside others, if wanted.

Without any of the modes below, our own step. Every contender has a process of its own; they take turns, step by step,
and only one computes at any time. Seconds are medians, with quartiles; FLOP/s count the model's own products, a
training step as three passes; MFU is their share of the device's peak: of --peak-flops, or of what a large product
reaches in the first contender's type, and then contenders of another type have none. Peak memory is the device's own
counter, or on CPUs the resident set of a process above what it held once the step was compiled; "predicted" is what
the package tells before the first step, and the measured share of it.

contenders:
  ours         the package's model and step, computed as the options say, or as it does by default
  ours-loop    the same with the layers in a python loop, nothing recomputed
  ours-plain   the same, with plain attention too
  reference    what Scenic's ViViT computes, out of linen's own layers (tools/benchmarking/reference.py);
               reference-kept: with memory kept from step to step, which our commands do on CPUs
  hf-eager     Hugging Face's ViViT in PyTorch, SDPA; Model 1 only; twice, with OpenMP's threads spinning while they
               wait, and sleeping: the faster one counts
  hf-compiled  the same after torch.compile

All take SGD with momentum, the gradient's norm clipped, and have the same number of parameters. Any name with -bf16
after it computes in bfloat16 (autocast in PyTorch).

examples:
  python tools/benchmark_train.py --size=S --output=step.json
  python tools/benchmark_train.py --compare --size=S --batch=2 --plot=compare.png
  python tools/benchmark_train.py --compare --contenders ours reference --attention=factorised_encoder
  python tools/benchmark_train.py --compare --bf16 --rounds=10
  python tools/benchmark_train.py --config=configs/kinetics400_fe.py --config.data.root=VIDEOS --data-wait
  python tools/benchmark_train.py --find-batch --config=configs/kinetics400_fe.py
  python tools/benchmark_train.py --compile-only --size=L --scan-layers --remat=block --contenders ours ours-loop
  python tools/benchmark_train.py --profile --size=S
  python tools/benchmark_train.py --profile=forward --size=S --attention=factorised_self_attention
  python tools/benchmark_train.py --bars=model1,fe --output=bars.json
"""

import argparse
import json
import os
import pathlib
import platform
import shlex
import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata
from typing import Any

from benchmarking import (
    bars,
    comparing,
    compiling,
    files,
    find_batch,
    hugging_face,
    plots,
    reference,
    tables,
    workload,
)
from benchmarking.child import BFLOAT16
from benchmarking.contenders import Child, Contender, ContenderError, check_name, expanded
from benchmarking.workload import Workload

from vivit_jax import command_line, help_text
from vivit_jax.telling import facts

ROUNDS, COMPILE_ROUNDS = 20, 3
# What a bar says itself.
OF_BAR = ('config', *workload.OF_MODEL, 'batch', 'contenders')
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'torch', 'transformers')
Report = dict[str, Any]


def main() -> None:
    """Runs the command line."""
    parser = _parser()
    options, rest = parser.parse_known_args()
    overrides = command_line.overrides(parser, rest)
    try:
        _check(options)
        if instead := '' if options.bars else workload.instead(options, overrides):
            _tell(instead)
        report, lines = _measure(options, overrides)
        print('\n'.join([*lines, instead] if instead else lines))
        if options.output:
            report |= {'instead': instead}
            pathlib.Path(options.output).write_text(json.dumps(about() | report, indent=1) + '\n')
        if options.plot:
            plots.draw(report, options.plot)
    except (ValueError, OSError, ContenderError) as error:
        parser.exit(2, f'error: {error}\n')


def _parser() -> argparse.ArgumentParser:
    parser = help_text.parser(__doc__, usage='%(prog)s [-h] [MODE] [OPTION ...]')
    mode = parser.add_argument_group('modes').add_mutually_exclusive_group()
    mode.add_argument('--compare', action='store_true', help='ours beside others')
    mode.add_argument('--find-batch', action='store_true', help='the largest batch that the device takes')
    mode.add_argument('--compile-only', action='store_true', help='compile, and print the planned memory')
    mode.add_argument(
        '--profile',
        nargs='?',
        const='train',
        choices=comparing.WHAT,
        help='operations that take the most time, and idle time: of training (train), or forward',
    )
    mode.add_argument(
        '--bars', nargs='?', const='all', metavar='BAR,BAR', help=f'all, or of {",".join(bars.NAMES)}'
    )
    workload.add_options(parser)
    much = parser.add_argument_group('how much is measured')
    much.add_argument(
        '--contenders',
        nargs='+',
        metavar='NAME',
        help='who takes part; ratios are to the first, in bfloat16 to its own bfloat16',
    )
    much.add_argument(
        '--bf16', action='store_true', help='with --compare: ours and PyTorch in bfloat16 as well'
    )
    much.add_argument(
        '--rounds',
        type=workload.at_least_one,
        metavar='N',
        help='20; of --find-batch and compiling 3, of --profile 5, of bars their own',
    )
    much.add_argument(
        '--seconds',
        type=_positive,
        default=600.0,
        metavar='S',
        help='no round after the third begins later (600)',
    )
    much.add_argument(
        '--peak-flops', type=_positive, metavar='N', help='of the device, as 989e12; else measured'
    )
    much.add_argument(
        '--data-wait',
        action='store_true',
        help="also feed ours by the pipeline, from the config's data or noise",
    )
    much.add_argument('--output', metavar='FILE.json', help='all figures')
    much.add_argument('--plot', metavar='FILE.png', help='a picture of a comparison, or of batches')
    return parser


def _measure(options: argparse.Namespace, overrides: dict[str, str]) -> tuple[Report, Iterable[str]]:
    """Carries out the mode; returns its report and what to print of it."""
    if options.bars:
        if overrides:
            raise ValueError(f'--config.{next(iter(overrides))} does not go with --bars')
        names = list(bars.NAMES) if options.bars == 'all' else options.bars.split(',')
        if unknown := [name for name in names if name not in bars.NAMES]:
            raise ValueError(f'--bars={options.bars}: {unknown[0]!r} is none of {", ".join(bars.NAMES)}')
        rows, reports = bars.run(names, options, _tell)
        return {'bars': rows, 'reports': reports}, tables.of_bars(rows)
    work = workload.of_options(options, overrides)
    report: Report
    if options.compile_only:
        contenders = _contenders(options, ['ours', 'ours-loop'], work)[0]
        if any(contender.name.startswith('hf-') for contender in contenders):
            raise ValueError('--compile-only: PyTorch compiles while it runs; see "compile s" of --compare')
        report = compiling.compile_times(
            work, contenders, rounds=options.rounds or COMPILE_ROUNDS, tell=_tell
        )
        return report, tables.of_compile_times(report)
    if options.find_batch or options.profile:
        contender = _contenders(options, ['ours'], work)[0][0]
        if options.profile:
            report = _profile(work, contender, options.profile, options.rounds or 5)
            return report, tables.of_profile(report)
        steps, start = options.rounds or 3, work if options.batch else _single(work)
        report = find_batch.find(start, contender, steps=steps, seconds=options.seconds, tell=_tell)
        return report, tables.of_batches(report)
    contenders, left_out = _contenders(options, _rivals(work) if options.compare else ['ours'], work)
    report = comparing.compare(
        work,
        contenders,
        rounds=options.rounds or ROUNDS,
        seconds=options.seconds,
        peak_flops=options.peak_flops,
        tell=_tell,
    )
    report['left_out'] |= left_out
    if options.data_wait:
        report['data_wait'] = _data_wait(work, options, overrides)
    return report, tables.of_comparison(report)


def _single(work: Workload) -> Workload:
    """Returns the workload with the smallest batch."""
    return Workload(work.model, work.num_classes, work.clip, 1)


def _rivals(work: Workload) -> list[str]:
    """Returns who ours is compared with where that is not said: all that have the model."""
    names = ['ours']
    try:
        hugging_face.check(work)
        names += ['hf-eager', 'hf-compiled']
    except ValueError as error:
        _tell(f'left out: hf-eager, hf-compiled: {error}')
    try:
        reference.make(work.num_classes, work.model)
        names.append('reference')
    except ValueError as error:
        _tell(f'left out: reference: {error}')
    return names


def _contenders(
    options: argparse.Namespace, default: list[str], work: Workload
) -> tuple[list[Contender], dict[str, str]]:
    """Returns who takes part, and why others do not."""
    names = [check_name(name) for name in options.contenders or default]
    if options.bf16:
        names += [name + BFLOAT16 for name in names if name == 'ours' or name.startswith('hf-')]
    if any(name.startswith('hf-') for name in names):
        hugging_face.check(work)
    if any(name.startswith('reference') for name in names):
        reference.make(work.num_classes, work.model)
    contenders, left_out = expanded(list(dict.fromkeys(names)))
    if not contenders:
        raise ValueError('; '.join(f'{name}: {cause}' for name, cause in left_out.items()))
    return contenders, left_out


def _profile(work: Workload, contender: Contender, of: str, steps: int) -> Report:
    forward = of == 'forward'
    with tempfile.TemporaryDirectory() as caches, Child(contender, work, caches) as child:
        _tell('compiling')
        child.ask('compile', runs=True, forward=forward)
        child.ask('start', forward=forward)
        _tell(f'{steps} steps')
        return {'title': str(work), 'contender': contender.title, **child.ask('profile', of=of, steps=steps)}


def _data_wait(work: Workload, options: argparse.Namespace, overrides: dict[str, str]) -> Report:
    _tell('steps fed by the pipeline')
    config = {'file': options.config, 'overrides': overrides} if options.config else None
    with tempfile.TemporaryDirectory() as caches, Child(Contender('ours'), work, caches) as child:
        return child.ask('data_wait', config=config, steps=options.rounds or ROUNDS)


def about() -> Report:
    """Returns what tells code, command and machine, without waking the device, which is the contenders'."""
    commit, dirty = facts.revision()
    cpu = platform.processor() or platform.machine()
    try:
        lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
        cpu = next(line.split(':', 1)[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        pass
    found = {distribution.name.lower(): distribution.version for distribution in metadata.distributions()}
    return {
        'command': shlex.join(['python', *sys.orig_argv[1:]]),
        'measured': facts.now(),
        'commit': commit,
        'dirty': dirty,
        'cpu': cpu,
        'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        'load_average': os.getloadavg()[0] if hasattr(os, 'getloadavg') else None,
        'python': platform.python_version(),
        'packages': {name: found[name] for name in PACKAGES if name in found},
    }


def _check(options: argparse.Namespace) -> None:
    """Raises before anything is measured where options exclude each other or files cannot be written."""
    files.check(options)
    if options.plot and (options.bars or options.profile or options.compile_only):
        raise ValueError('--plot draws a comparison, or the batches of --find-batch')
    if len(options.contenders or []) > 1 and (options.profile or options.find_batch):
        mode = 'profile' if options.profile else 'find-batch'
        raise ValueError(f'--{mode} looks at one contender, not at {" and ".join(options.contenders)}')
    if options.bf16 and not options.compare:
        raise ValueError('--bf16 goes with --compare; for ours alone: --dtype=bfloat16')
    if options.bars and (given := [name for name in OF_BAR if getattr(options, name) is not None]):
        raise ValueError(f'--{given[0]} does not go with --bars, each of which says what is computed')
    if options.data_wait and (options.bars or options.profile or options.compile_only or options.find_batch):
        raise ValueError('--data-wait goes with steps that are timed: alone, or with --compare')


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'{text!r} must be a number above 0')
    return value


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == '__main__':
    main()
