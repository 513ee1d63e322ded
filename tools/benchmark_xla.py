"""Measures what flags of XLA bring for a training step: each by itself, all together, against none.

Every measurement is a dry run in a process of its own, since XLA reads its flags once. The processes take turns, and
the medians of their step times are compared; a gain below 1 is a loss.

examples:
  python tools/benchmark_xla.py --config=configs/kinetics400_fe.py --config.model.dtype=bfloat16
  python tools/benchmark_xla.py --config=configs/kinetics400_fe.py:L/16x2 --rounds=5 --output=flags.json
  python tools/benchmark_xla.py --config=configs/moving_digits.py --flags=--xla_cpu_enable_fast_min_max=true

Without --flags: those of --xla-preset=gpu, and what may be worth joining them. They do nothing on a CPU.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

from benchmarking import files

from vivit_jax import command_line, help_text, xla_preset
from vivit_jax.telling.printable import printable

ROOT = pathlib.Path(__file__).parent.parent
NONE, ALL, PRESET = 'none', 'all of them', '--xla-preset=gpu'


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = help_text.parser(__doc__)
    add = parser.add_argument
    add('--config', required=True, metavar='FILE[:ARGUMENT]', help='a file of configs/')
    add('--flags', action='append', metavar='--xla_NAME=VALUE', help='a flag to measure; again for each')
    add('--rounds', type=int, default=3, metavar='N', help='processes for each; default: 3')
    add('--steps', type=int, default=10, metavar='N', help='timed in each process; default: 10')
    add('--output', metavar='FILE.json', help='write the figures')
    add('--result', help=argparse.SUPPRESS)  # of the processes that measure
    parsed, rest = parser.parse_known_args(arguments)
    overrides = command_line.overrides(parser, rest)
    if parsed.result:
        return measure(parsed, overrides)
    try:
        files.check(parsed)
        if parsed.rounds < 1 or parsed.steps < 1:
            raise ValueError(f'--rounds={parsed.rounds}, --steps={parsed.steps}: must be at least 1')
        seconds = take_turns(choices(parsed.flags), parsed, rest)
    except (ValueError, OSError) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 2
    figures = gains(seconds)
    print(table(seconds, figures))
    if parsed.output:
        text = json.dumps(
            {'config': parsed.config, 'overrides': overrides, 'seconds': seconds, 'gain': figures}, indent=1
        )
        pathlib.Path(parsed.output).write_text(text + '\n', encoding='utf-8')
    return 0


def choices(flags: list[str] | None) -> dict[str, str]:
    """Returns what is measured: XLA_FLAGS by name, none of them first."""
    if flags is None:
        each = [str(flag) for flag in (*xla_preset.GPU, *xla_preset.CANDIDATES)]
        together = {PRESET: ' '.join(map(str, xla_preset.GPU))}
    else:
        each = flags
        together = {ALL: ' '.join(flags)} if len(flags) > 1 else {}
    return {NONE: '', **{flag: flag for flag in each}, **together}


def take_turns(chosen: dict[str, str], parsed: argparse.Namespace, rest: list[str]) -> dict[str, list[float]]:
    """Measures all of them once a round; returns seconds a step, one number a round."""
    seconds: dict[str, list[float]] = {name: [] for name in chosen}
    # XLA ends the process where it does not know a flag: that is found out first.
    together = ' '.join(dict.fromkeys(flags for flags in chosen.values() if flags))
    _run([sys.executable, '-c', 'import jax; jax.devices()'], together)
    with tempfile.TemporaryDirectory() as folder:
        result = pathlib.Path(folder) / 'seconds.json'
        for number in range(parsed.rounds):
            for name, flags in chosen.items():
                command = [
                    sys.executable,
                    __file__,
                    f'--config={parsed.config}',
                    f'--steps={parsed.steps}',
                    *rest,
                ]
                _run([*command, f'--result={result}'], flags)
                seconds[name].append(json.loads(result.read_text()))
                print(f'round {number + 1}  {1_000 * seconds[name][-1]:9.1f} ms  {name}', flush=True)
    return seconds


def _run(command: list[str], flags: str) -> None:
    """Runs a process with flags beside those that are set already.

    Raises:
        ValueError: If it fails, with the line that tells why.
    """
    theirs = f'{os.environ.get(xla_preset.VARIABLE, "")} {flags}'.strip()
    done = subprocess.run(
        command,
        env={**os.environ, xla_preset.VARIABLE: theirs},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if done.returncode:
        lines = [text for text in done.stderr.splitlines() if text.strip()] or ['no word of why']
        told = next((text for text in lines if 'Unknown flag' in text or 'error:' in text), lines[-1])
        # Without the time and the place in the source that XLA's log begins a line with.
        why = re.sub(r'^[A-Z]\d{4} [^]]*\] ', '', told.strip())
        raise ValueError(f'with XLA_FLAGS={theirs!r}: {why}')


def measure(parsed: argparse.Namespace, overrides: dict[str, str]) -> int:
    """Times the training step in this process, with the flags that it was started with."""
    from vivit_jax import config as config_module
    from vivit_jax.dry_run import dry_run

    try:
        figures = dry_run(config_module.load(parsed.config, overrides), steps=parsed.steps)
    except (ValueError, OSError) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 2
    pathlib.Path(parsed.result).write_text(json.dumps(figures['seconds_per_step']))
    return 0


def gains(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Returns how many times faster than with no flag: ratios of medians."""
    plain = statistics.median(seconds[NONE])
    return {name: plain / statistics.median(rounds) for name, rounds in seconds.items()}


def table(seconds: dict[str, list[float]], figures: dict[str, float]) -> str:
    """Returns the figures as a table in Markdown."""
    rows = [
        f'| `{name}` | {1_000 * statistics.median(seconds[name]):.1f} | {1_000 * min(seconds[name]):.1f} to '
        f'{1_000 * max(seconds[name]):.1f} | {gain:.3f} |'
        for name, gain in figures.items()
    ]
    return '\n'.join(['| flags | step, ms | rounds | gain |', '| --- | --- | --- | --- |', *rows])


if __name__ == '__main__':
    sys.exit(main())
