"""Kills a training run again and again, and compares what comes of it with an undisturbed run, bit for bit.

The real command is started, killed at a moment that the seed decides, and started again, until all kills are made;
then it is left to end. Moments are drawn in every phase of a run: while it starts, compiles, steps, validates,
writes a checkpoint, tests and writes its report. Each start must go on from the newest checkpoint that was whole
when the run was killed, and no process may be left behind. Without --config a model of hardly any size learns the
embedded data set.

examples:
  python tools/chaos.py
  python tools/chaos.py --kills=100 --gentle=0.2 --damage=5 --seed=1 --output=chaos.json
  python tools/chaos.py --config=configs/my_videos.py --config.data.root=VIDEOS --config.training.epochs=2

exit codes:
  0  identical
  1  it is not, or a run did what it should not do; what it printed is kept
  2  a mistake in the command
"""

import argparse
import dataclasses
import json
import pathlib
import random
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ordeals import comparing
from ordeals.killing import NEEDS_STEPS, Kill, Killing
from ordeals.started import PHASES, RunFailed, new_folder

from vivit_jax import command_line, help_text
from vivit_jax import config as config_module
from vivit_jax.telling.printable import printable

ATTEMPTS = 3  # to kill before it is done
CONFIG = pathlib.Path(__file__).parent.parent / 'configs' / 'moving_digits.py'
TINY = {
    'model.width': '16',
    'model.mlp_dim': '16',
    'model.num_heads': '2',
    'model.num_layers': '1',
    'model.temporal_layers': '1',
    'model.tubelet': '4,8,8',
    'data.moving_digits.train_size': '60',
    'data.moving_digits.validation_size': '64',
    'data.moving_digits.test_size': '64',
    'data.test_splits': "('test',)",
    'training.batch_size': '8',
    'training.steps': '200',
    'training.log_every': '5',
    'evaluation.batch_size': '8',
    'evaluation.every_steps': '20',
    'checkpoint.every_steps': '10',
    'optimizer.warmup_steps': '2',
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    overrides = command_line.overrides(parser, rest)
    try:
        if parsed.kills < 1 or not 0 <= parsed.gentle <= 1 or not 0 <= parsed.damage <= parsed.kills:
            raise ValueError(
                f'--kills={parsed.kills} --gentle={parsed.gentle} --damage={parsed.damage}: at least one kill, '
                'a share from 0 to 1, and not more damage than kills'
            )
        config, overrides = _settings(parsed.config, overrides)
        if parsed.damage and config.checkpoint.keep < 2:
            raise ValueError(
                f'checkpoint.keep={config.checkpoint.keep}: --damage needs one before the damaged one'
            )
        output = pathlib.Path(parsed.output) if parsed.output else None
        if output and not output.parent.is_dir():
            raise ValueError(f'--output={output}: {output.parent} is not a folder')
        folder = new_folder(parsed.folder, 'chaos-')
    except (ValueError, OSError) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 2
    killing = Killing(parsed.config or str(CONFIG), overrides, folder, parsed.seed)
    report = _carry_out(killing, parsed)
    if output:
        output.write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
    return 0 if report['identical'] else 1


def _parser() -> argparse.ArgumentParser:
    parser = help_text.parser(__doc__)
    add = parser.add_argument
    add('--kills', type=int, default=20, metavar='N', help='how often it is killed (20)')
    add('--seed', type=int, default=0, metavar='N', help='decides when, and what is damaged (0)')
    add(
        '--gentle', type=float, default=0.0, metavar='SHARE', help='of SIGTERM and SIGINT among the kills (0)'
    )
    add(
        '--damage',
        type=int,
        default=0,
        metavar='N',
        help='kills after which a checkpoint gets a wrong bit (0)',
    )
    add('--config', metavar='FILE[:ARGUMENT]', help='of the run, which --config.KEY=VALUE changes')
    add(
        '--folder',
        metavar='DIR',
        help='new folder for the workdirs and what runs print; default: a temporary one',
    )
    add('--output', metavar='FILE', help='for all figures, as JSON')
    return parser


def _settings(spec: str | None, overrides: dict[str, str]) -> tuple[Any, dict[str, str]]:
    """Returns the configuration and what is changed of its file."""
    changed = overrides if spec else TINY | overrides
    return config_module.load(spec or str(CONFIG), changed), changed


def _carry_out(killing: Killing, options: argparse.Namespace) -> dict[str, Any]:
    """Makes both runs and compares them, telling what happens; returns the figures."""
    began, kills = time.monotonic(), list[Kill]()
    failure, parameters, alone, last = '', 0, 0.0, 0.0
    try:
        alone = killing.undisturbed()
        print(f'undisturbed: {killing.total:,} steps in {alone:.1f} s', flush=True)
        for kill in _kills(killing, options):
            kills.append(kill)
            print(_line(len(kills), options.kills, kill), flush=True)
        last = killing.last()
        failure, parameters = comparing.difference(
            killing.folder / 'whole', killing.folder / 'killed', killing.total
        )
    except RunFailed as error:
        failure = str(error)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = {
        'identical': not failure,
        'difference': failure,
        'parameters': parameters,
        'steps': killing.total,
        'starts': killing.starts,
        'lost': sum(kill.lost for kill in kills),
        'unfinished': sum(kill.unfinished for kill in kills),
        'damaged': sum(kill.damaged is not None for kill in kills),
        'undisturbed_seconds': alone,
        'last_seconds': last,
        'seconds': time.monotonic() - began,
        'cpu_seconds': used.ru_utime + used.ru_stime,
        'seed': options.seed,
        'kills': [dataclasses.asdict(kill) for kill in kills],
    }
    print('\n'.join(_table(kills)))
    print(
        f'{killing.starts} starts, {report["lost"]:,} steps lost, {report["seconds"]:.0f} s '
        f'({report["cpu_seconds"]:.0f} s of processors); undisturbed {alone:.1f} s'
    )
    if failure:
        print(f'different: {failure}\nkept: {killing.folder}')
    else:
        print(f'identical: {parameters:,} parameters after {killing.total:,} steps and {len(kills)} kills')
        if not options.folder:
            shutil.rmtree(killing.folder)
    return report


def _kills(killing: Killing, options: argparse.Namespace) -> Iterator[Kill]:
    """Kills as often as asked for."""
    aims = killing.aims(options.kills)
    chosen = random.Random(options.seed).sample(range(options.kills), options.damage)
    owed = 0  # damage that there was no second checkpoint for yet
    for number, aimed in enumerate(aims):
        owed += number in chosen
        stepping = sum(name in NEEDS_STEPS for name in aims[number:])
        for _ in range(ATTEMPTS):
            kill = killing.kill(aimed, stepping=stepping, gentle=options.gentle, damage=owed > 0)
            if kill is not None:
                break
            aimed = 'testing'  # as there may be nothing left to train
        else:
            raise RunFailed(f'the run was done {ATTEMPTS} times before it could be killed')
        owed -= kill.damaged is not None
        yield kill


def _line(number: int, kills: int, kill: Kill) -> str:
    """Tells of a kill."""
    after = f'{len(kill.whole)} whole, {kill.unfinished} unfinished, {kill.lost} steps lost'
    damaged = f', then checkpoint {kill.damaged} was damaged' if kill.damaged is not None else ''
    return f'{number:>3}/{kills}  {kill.by} while {kill.phase}, step {kill.step}: {after}{damaged}'


def _table(kills: Sequence[Kill]) -> Iterator[str]:
    """Sums up by phase."""
    head = ('phase', 'kills', 'steps lost', 'most', 'unfinished', 'whole', 'seconds')
    yield '{:<12}{:>7}{:>12}{:>7}{:>12}{:>7}{:>9}'.format(*head)
    for name in (*PHASES, 'in all'):
        those = [kill for kill in kills if name in (kill.phase, 'in all')]
        if those:
            lost = [kill.lost for kill in those]
            yield (
                f'{name:<12}{len(those):>7}{sum(lost):>12}{max(lost):>7}{sum(kill.unfinished for kill in those):>12}'
                f'{sum(len(kill.whole) for kill in those):>7}{sum(kill.seconds for kill in those):>9.1f}'
            )


if __name__ == '__main__':
    sys.exit(main())
