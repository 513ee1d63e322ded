"""How training steps of whole models grow: with frames, tokens, batch, layers and devices.

One size changes at a time; all others are as the options say. Every size has a process of its own. Seconds are
medians, with quartiles; memory is what XLA plans for a device: state, batch and temporary arrays. What would need
more than the memory limit is planned, not run. At the end stand the powers of each size with which both grow, fitted
by least squares on logarithms: 1 is proportional.

Over devices, the same batch, of --batch clips or as many as the most devices, is split among more of them. CPUs have
as many as are asked for, simulated ones, which share the cores: that tells what splitting costs and how memory falls,
not how fast many devices are.

contenders:
  ours, ours-loop, ours-plain, reference: see tools/benchmark_train.py

examples:
  python tools/benchmark_scaling.py --output=scaling.json --plot=scaling.png
  python tools/benchmark_scaling.py --over tokens frames --size=B --batch=1 --contenders ours ours-plain
  python tools/benchmark_scaling.py --over tokens --over-tokens=2x224,32x224 --planned
  python tools/benchmark_scaling.py --over devices --batch=8 --fsdp
  python tools/benchmark_scaling.py --quick
"""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
from typing import Any

from benchmark_attention import SHARE, finite
from benchmark_train import about
from benchmarking import exponents, files, measuring, scaling
from benchmarking.contenders import JAX
from benchmarking.workload import Workload, add_options, at_least_one, of_options

from vivit_jax import command_line, help_text

# What --quick makes small, where it is not said otherwise.
TINY = {'layers': 1, 'heads': 2, 'width': 16, 'mlp': 16, 'frames': 4, 'crop': 32, 'classes': 5}


def main() -> None:
    """Runs the command line."""
    parser = _parser()
    options, rest = parser.parse_known_args()
    overrides = command_line.overrides(parser, rest)
    try:
        report = measure(options, overrides)
        found = scaling.curves(report['sweeps'])
        print('\n'.join(scaling.text(report['title'], report['sweeps'])))
        if options.output:
            report |= {'fits': exponents.as_json(found)}
            pathlib.Path(options.output).write_text(json.dumps(about() | report, indent=1) + '\n')
        if options.plot:
            exponents.draw(found, report['title'], options.plot)
    except (ValueError, OSError) as error:
        parser.exit(2, f'error: {error}\n')


def _parser() -> argparse.ArgumentParser:
    parser = help_text.parser(__doc__)
    add_options(parser)
    sizes = parser.add_argument_group('sizes')
    sizes.add_argument(
        '--over', nargs='+', choices=scaling.OVER, default=scaling.OVER, metavar='SIZE', help='all'
    )
    for over in scaling.OVER:
        default = scaling.DEFAULTS[over]
        reads = _clips if over == 'tokens' else _numbers
        shown = ','.join('x'.join(map(str, size)) if over == 'tokens' else str(size) for size in default)
        told = f'as frames x pixels high and wide ({shown})' if over == 'tokens' else shown
        sizes.add_argument(f'--over-{over}', type=reads, metavar='N,N', help=told)
    sizes.add_argument('--quick', action='store_true', help='a toy model and toy sizes: does it work?')
    much = parser.add_argument_group('how much is measured')
    much.add_argument('--contenders', nargs='+', choices=JAX, default=['ours', 'ours-plain'], metavar='NAME')
    much.add_argument('--steps', type=at_least_one, default=5, metavar='N', help='timed at every size (5)')
    much.add_argument('--planned', action='store_true', help='memory as planned; nothing is run')
    much.add_argument('--fsdp', action='store_true', help='devices share the parameters, besides the batch')
    much.add_argument(
        '--memory-limit', type=float, metavar='GIB', help=f'of a step ({SHARE:.0%}% of what can be had)'
    )
    much.add_argument('--output', metavar='FILE.json', help='all figures')
    much.add_argument('--plot', metavar='FILE.png', help='the curves, with both axes logarithmic')
    return parser


def measure(options: argparse.Namespace, overrides: dict[str, str]) -> dict[str, Any]:
    """Returns the rows of every size that is swept.

    Raises:
        ValueError: If options do not go together, a model cannot take a size, or files cannot be written.
    """
    files.check(options)
    if options.memory_limit is not None and not 0 < options.memory_limit < math.inf:
        raise ValueError(f'--memory-limit={options.memory_limit:g}: GiB, more than 0')
    if options.quick and not options.config:
        for name, value in TINY.items():
            setattr(options, name, getattr(options, name) or value)
    workload = of_options(options, overrides)
    settings = scaling.Settings(
        contenders=tuple(options.contenders),
        steps=options.steps,
        planned=options.planned,
        limit=_limit(options),
        fsdp=options.fsdp,
    )
    defaults = scaling.QUICK if options.quick else scaling.DEFAULTS
    swept = {over: getattr(options, f'over_{over}') or defaults[over] for over in options.over}
    for over, sizes in swept.items():
        for size in sizes:
            _check(_for(over, workload, sizes, options), over, size)
    sweeps = {
        over: scaling.sweep(_for(over, workload, sizes, options), over, sizes, settings, _tell)
        for over, sizes in swept.items()
    }
    return {
        'title': str(workload),
        'workload': dataclasses.asdict(workload),
        'settings': dataclasses.asdict(settings) | {'limit': finite(settings.limit)},
        'sweeps': sweeps,
    }


def _for(over: str, workload: Workload, sizes: Any, options: argparse.Namespace) -> Workload:
    """Returns the workload with a batch that all devices can share, if none was asked for."""
    if over != 'devices' or options.batch or options.config:
        return workload
    return dataclasses.replace(workload, batch=math.lcm(*sizes))


def _check(workload: Workload, over: str, size: Any) -> None:
    """Raises before anything is measured where a size does not go with the rest."""
    try:
        scaling.resized(workload, over, size)
    except ValueError as error:
        raise ValueError(f'--over-{over}: {error}') from None
    if over == 'devices' and workload.batch % size:
        raise ValueError(f'--over-devices: {size} do not divide a batch of {workload.batch} (--batch)')


def _limit(options: argparse.Namespace) -> float:
    """Returns how many bytes a step may take. The device is the children's: of a GPU nothing is known here."""
    had = measuring.available()
    if options.memory_limit is not None:
        return options.memory_limit * 2**30
    return math.inf if had is None else SHARE * had


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(at_least_one(number) for number in text.split(','))


def _clips(text: str) -> tuple[tuple[int, int], ...]:
    """Reads clips, as 2x224,32x224."""
    pairs = [part.split('x') for part in text.split(',')]
    if any(len(pair) != 2 for pair in pairs):
        raise argparse.ArgumentTypeError(f'{text!r} must be clips of frames x pixels, as 2x224,32x224')
    return tuple((at_least_one(frames), at_least_one(pixels)) for frames, pixels in pairs)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == '__main__':
    main()
