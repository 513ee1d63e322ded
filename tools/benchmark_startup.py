"""Measures how long a command takes until it steps: with no compiled programs at hand, then with those it kept.

Starts the same training, or the same dry run, several times in fresh folders, and ends each when it says "compiled":
training after its first step, a dry run just before it. The first start finds no cache of compiled programs, the
others that of the first. CPU seconds count what the machine does for the command alone and are comparable on a busy
machine; compiling uses several cores.

examples:
  python tools/benchmark_startup.py --config=configs/moving_digits.py
  python tools/benchmark_startup.py --config=configs/moving_digits.py --config.model.num_layers=12 --starts=4
  python tools/benchmark_startup.py --config=configs/kinetics400_fe.py:S/16x2 --mode=dry_run --output=startup.json

Other options go to vivit_jax.main.
"""

import dataclasses
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarking import files

from vivit_jax import help_text
from vivit_jax.telling.printable import printable

ROOT = pathlib.Path(__file__).parent.parent
COMPILED = re.compile(r'compiled in [\d.]+ s( \(from the cache\))?')


@dataclasses.dataclass(frozen=True)
class Start:
    """Seconds from the start of the process until it says "compiled", and whether the step was loaded."""

    wall: float
    cpu: float
    loaded: bool


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = help_text.parser(__doc__)
    parser.add_argument('--config', required=True, metavar='FILE[:ARGUMENT]', help='a file of configs/')
    parser.add_argument('--mode', choices=('train', 'dry_run'), default='train', help='default: train')
    parser.add_argument('--starts', type=int, default=2, metavar='N', help='the first compiles; default: 2')
    parser.add_argument('--output', metavar='FILE.json', help='write the figures')
    parsed, rest = parser.parse_known_args(arguments)
    command = [f'--config={parsed.config}', f'--mode={parsed.mode}', *rest]
    try:
        files.check(parsed)
        if parsed.starts < 2:
            raise ValueError(f'--starts={parsed.starts}: must be at least 2')
        with tempfile.TemporaryDirectory() as folder:
            starts = []
            for number in range(parsed.starts):
                starts.append(start(command, pathlib.Path(folder), number))
                print(line('first' if not number else f'start {number + 1}', starts[-1]), flush=True)
    except (ValueError, OSError) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 2
    figures = ratios(starts)
    print(
        f'the first start takes {figures["wall"]:.2f} x the time of a later one, {figures["cpu"]:.2f} x its CPU time'
    )
    if parsed.output:
        rows = [dataclasses.asdict(one) for one in starts]
        text = json.dumps({'command': command, 'starts': rows, 'first_to_later': figures}, indent=1)
        pathlib.Path(parsed.output).write_text(text + '\n', encoding='utf-8')
    return 0


def start(command: list[str], folder: pathlib.Path, number: int) -> Start:
    """Starts `vivit_jax.main` until it says "compiled".

    Raises:
        ValueError: If it ends before, with its last line.
    """
    kept = ('JAX_COMPILATION_CACHE_DIR', 'JAX_ENABLE_COMPILATION_CACHE', 'VIVIT_JAX_COMPILE_CACHE')
    environment = {key: value for key, value in os.environ.items() if key not in kept}
    environment['XDG_CACHE_HOME'] = str(folder / 'cache')
    workdir = f'--workdir={folder / str(number)}'
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, '-u', '-m', 'vivit_jax.main', workdir, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert process.stdout is not None
    last, found, wall = '', None, 0.0
    for last in process.stdout:
        found = COMPILED.search(last)
        if found:
            wall = time.perf_counter() - began
            break
    os.kill(process.pid, signal.SIGKILL)  # not process.kill(): that would wait for one that has ended
    process.stdout.close()
    _, _, used = os.wait4(process.pid, 0)
    process.returncode = 0  # waited for: its use of the CPU is told only once
    if found is None:
        raise ValueError(
            f'vivit_jax.main {" ".join(command)} ended before it said "compiled": {last.strip()}'
        )
    return Start(wall, used.ru_utime + used.ru_stime, bool(found[1]))


def ratios(starts: list[Start]) -> dict[str, float]:
    """Returns the time of the first start as a multiple of the median of the others, `wall` and `cpu`."""
    first, *later = starts
    return {
        kind: getattr(first, kind) / statistics.median(getattr(one, kind) for one in later)
        for kind in ('wall', 'cpu')
    }


def line(name: str, one: Start) -> str:
    """Returns a row of the table."""
    how = 'loaded' if one.loaded else 'compiled'
    return f'{name:<8} {how:<8} {one.wall:6.1f} s to "compiled", {one.cpu:6.1f} s of CPU time'


if __name__ == '__main__':
    sys.exit(main())
