"""Trains for a long time on small videos, some of them broken, and watches what grows or is left behind.

The real command trains with validation, checkpoints and worker processes. Every few seconds memory, open files,
threads and processes of the whole run, its part of /dev/shm and the disk are sampled; after a warm-up none of them
may grow by more than is allowed per 1000 steps (Theil and Sen's slope, with a certainty of 95 %). Then the run is
killed (SIGKILL), started again, where it must go on, and told to stop (SIGTERM): neither may leave processes or
shared memory behind, nor may any of its processes complain of a leak.

examples:
  python tools/soak.py --minutes=10 --plot=soak.png --output=soak.json
  python tools/soak.py --minutes=1 --workers=0
  python tools/soak.py --config.training.batch_size=16 --allow=memory=8,disk=4

exit codes:
  0  all is level, and nothing was left behind
  1  something grows, or was left behind; what the run printed is kept
  2  a mistake in the command
"""

import argparse
import dataclasses
import json
import pathlib
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import av
import numpy as np
from ordeals import sampling, started
from ordeals.sampling import Growth, Sample
from ordeals.started import RunFailed, Started, new_folder

from vivit_jax import command_line, help_text
from vivit_jax import config as config_module
from vivit_jax.telling.printable import printable

CONFIG = pathlib.Path(__file__).parent.parent / 'configs' / 'my_videos.py'
SETTINGS = {
    'model.width': '32',
    'model.mlp_dim': '32',
    'model.num_heads': '2',
    'model.num_layers': '1',
    'model.temporal_layers': '1',
    'data.frames': '4',
    'data.stride': '2',
    'data.short_side': '36',
    'data.crop': '32,32',
    'data.threads': '2',
    'data.max_bad': '0.5',
    'training.steps': '10000000',
    'training.log_every': '10',
    'evaluation.every_steps': '100',
    'checkpoint.every_steps': '50',
}
CLASSES, VIDEOS = ('left', 'right'), 12  # good ones of each
# Growth per 1000 steps that is allowed: logs and curves take disk, and allocators some memory until they settle.
ALLOWED = {
    'memory': 8.0,
    'main_memory': 4.0,
    'files': 0.5,
    'threads': 0.5,
    'children': 0.25,
    'shared': 0.25,
    'disk': 1.0,
}
UNITS = {'memory': 'MiB', 'main_memory': 'MiB', 'disk': 'MiB'}
WARM_UP = 0.4  # of the time: validation and checkpoints have come a few times by then
GOES_BAD = 0.4  # of the time, after which a file is broken that was good
TOLD = 20  # lines while the first start trains
FURTHER = 20  # steps that the second start is left to make
LATEST = 600.0  # seconds until a run that should have come so far is taken to hang
LEAKS = re.compile(r'leaked|Traceback|Exception ignored|ResourceWarning')
SIZE, FRAMES = (36, 48), 24  # of the videos: high and wide; frames


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = _parser()
    parsed, rest = parser.parse_known_args(arguments)
    overrides = command_line.overrides(parser, rest)
    try:
        if parsed.minutes <= 0 or parsed.workers < 0:
            raise ValueError(
                f'--minutes={parsed.minutes} --workers={parsed.workers}: some minutes, workers from 0'
            )
        allowed = ALLOWED | _allowed(parsed.allow)
        for name in ('plot', 'output'):
            path = pathlib.Path(getattr(parsed, name) or '.')
            if not path.parent.is_dir():
                raise ValueError(f'--{name}={path}: {path.parent} is not a folder')
        folder = new_folder(parsed.folder, 'soak-')
        settings = SETTINGS | {'data.root': str(folder / 'videos'), 'data.workers': str(parsed.workers)}
        settings |= {'data.cache': str(folder / 'cache')} | overrides
        config_module.load(str(CONFIG), settings)
    except (ValueError, OSError) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 2
    report = carry_out(folder, settings, parsed.minutes, allowed)
    if parsed.plot and report['samples']:
        draw(report, pathlib.Path(parsed.plot))
    if parsed.output:
        pathlib.Path(parsed.output).write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
    print('\n'.join(_table(report)))
    for failure in report['failures']:
        print(f'failed: {failure}')
    if report['failures']:
        print(f'kept: {folder}')
        return 1
    print(f'level: {report["steps"]:,} steps in {report["seconds"]:.0f} s; nothing left behind')
    if not parsed.folder:
        shutil.rmtree(folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = help_text.parser(__doc__)
    add = parser.add_argument
    add('--minutes', type=float, default=60.0, metavar='N', help='from the first steps to the kill (60)')
    add('--workers', type=int, default=2, metavar='N', help='processes that read (2)')
    add('--allow', default='', metavar='NAME=N,…', help=f'growth per 1000 steps, of {", ".join(ALLOWED)}')
    add('--folder', metavar='DIR', help='new folder for videos, workdir and output; default: a temporary one')
    add('--plot', metavar='FILE', help='for a picture of the samples, as PNG')
    add('--output', metavar='FILE', help='for samples and figures, as JSON')
    return parser


def _allowed(text: str) -> dict[str, float]:
    """Reads --allow."""
    found = {}
    for part in filter(None, text.split(',')):
        name, _, value = part.partition('=')
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f'--allow: {part!r} should be NAME=NUMBER') from None
        if name not in ALLOWED:
            raise ValueError(f'--allow: {name!r} is none of {", ".join(ALLOWED)}')
    return found


def carry_out(
    folder: pathlib.Path, settings: dict[str, str], minutes: float, allowed: dict[str, float]
) -> dict[str, Any]:
    """Makes the runs; returns samples, growth and what has failed."""
    videos = write_videos(folder / 'videos')
    before, samples, failures = sampling.shared(), list[Sample](), list[str]()
    workdir = folder / 'run'
    arguments = started.command(str(CONFIG), workdir, settings)
    began = time.monotonic()
    try:
        with Started(arguments, workdir, folder / 'first.txt') as run:
            samples += _watch(run, minutes * 60, videos[0])
            failures += _end(run, signal.SIGKILL, (-signal.SIGKILL,), before)
        whole = max(started.look(workdir).whole, default=None)
        with Started(arguments, workdir, folder / 'second.txt') as run:
            _until(run, lambda: run.step >= (whole or 0) + FURTHER)
            if run.goes_on_from != whole:
                failures.append(
                    f'after the kill it went on from step {run.goes_on_from}, not from {whole}: {run.log}'
                )
            failures += _end(run, signal.SIGTERM, (143,), before)
    except RunFailed as error:
        failures.append(str(error))
    seconds, steps = time.monotonic() - began, samples[-1].step if samples else 0
    warm = WARM_UP * minutes * 60
    late = [sample for sample in samples if sample.seconds >= warm]
    grown: dict[str, Growth] = {}
    try:
        for name, most in allowed.items():
            grown[name] = sampling.growth(
                [sample.step for sample in late], [getattr(sample, name) for sample in late], most
            )
    except ValueError as error:
        failures.append(str(error))
    failures += [f'{name} grows' for name, its in grown.items() if not its.level]
    if any(all(sample.zombies for sample in samples[at : at + 3]) for at in range(len(samples) - 2)):
        failures.append('ended processes stay about as zombies')
    return {
        'failures': failures,
        'steps': steps,
        'seconds': seconds,
        'minutes': minutes,
        'warm': warm,
        'growth': {name: dataclasses.asdict(its) | {'level': its.level} for name, its in grown.items()},
        'samples': [dataclasses.asdict(sample) for sample in samples],
    }


def _watch(run: Started, seconds: float, victim: pathlib.Path) -> Iterator[Sample]:
    """Samples a run for so long; breaks a video on the way."""
    interval = min(max(seconds / 120, 0.2), 5.0)
    _until(run, lambda: run.step > 0)
    began, told = time.monotonic(), 0.0
    while (now := time.monotonic() - began) < seconds:
        run.phase()
        if run.process.poll() is not None:
            raise RunFailed(f'ended with exit code {run.process.returncode}: {run.log}')
        if now > GOES_BAD * seconds and victim.stat().st_size > 100:
            victim.write_bytes(victim.read_bytes()[:100])
        processes = started.of_session(run.process.pid, zombies=True)
        sample = sampling.take(processes, run.process.pid, run.workdir)
        yield dataclasses.replace(sample, seconds=now, step=run.step)
        if now >= told:
            print(
                f'{now / 60:5.1f} of {seconds / 60:g} min: step {run.step:,}, {sample.memory:.0f} MiB in '
                f'{1 + sample.children} processes, {sample.files} open files',
                flush=True,
            )
            told += seconds / TOLD
        time.sleep(interval)


def _until(run: Started, reached: Callable[[], bool]) -> None:
    while not reached():
        if run.process.poll() is not None:
            raise RunFailed(f'ended with exit code {run.process.returncode}: {run.log}')
        if time.monotonic() - run.began > LATEST:
            raise RunFailed(f'still {run.phase()} after {LATEST:.0f} s: {run.log}')
        time.sleep(0.1)
        run.phase()


def _end(run: Started, by: signal.Signals, codes: Sequence[int], before: set[str]) -> Iterator[str]:
    """Ends a run, and tells what of it is left."""
    run.process.send_signal(by)
    code = run.process.wait(LATEST)
    if code not in codes:
        yield f'exit code {code} after {by.name}: {run.log}'
    if left := run.left_behind():
        yield f'{by.name} left processes behind: {left}'
    if names := sampling.ownerless(sampling.shared() - before):
        yield f'{by.name} left shared memory behind: {", ".join(sorted(names)[:5])}'
    if found := LEAKS.search(run.printed()):
        yield f'{found[0]!r} in {run.log}'


def write_videos(folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes videos of a square that moves left or right, and files that are none; returns the good ones."""
    good, random = [], np.random.default_rng(0)
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for number in range(VIDEOS):
            path = folder / name / f'{number}.mp4'
            left = random.integers(0, SIZE[1], 1) + np.arange(FRAMES) * (-2 if name == 'left' else 2)
            with av.open(str(path), 'w') as container:
                stream: Any = container.add_stream('libx264', rate=25, options={'g': '8'})
                stream.height, stream.width = SIZE
                stream.pix_fmt, stream.thread_count = 'yuv420p', 1
                for place in left % (SIZE[1] - 8):
                    pixels = np.full((*SIZE, 3), 40, np.uint8)
                    pixels[14:22, place : place + 8] = 230
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels)))
                container.mux(stream.encode())
            good.append(path)
    content = good[0].read_bytes()
    broken = {'empty': b'', 'cut': content[: len(content) // 3], 'text': b'no video\n' * 100}
    broken |= {'noise': random.bytes(5000), 'holes': content[:200] + bytes(400) + content[600:]}
    for name, wrong in broken.items():
        (folder / CLASSES[0] / f'{name}.mp4').write_bytes(wrong)
    return good


def _table(report: dict[str, Any]) -> Iterator[str]:
    """Sums up what was sampled after the warm-up."""
    late = [its for its in report['samples'] if its['seconds'] >= report['warm']]
    if not report['growth']:
        return
    head = ('', 'median', 'at the end', 'per 1000 steps', 'between', 'and', 'allowed')
    yield '{:<17}{:>9}{:>12}{:>16}{:>10}{:>9}{:>9}'.format(*head)
    for name, its in report['growth'].items():
        values = [sample[name] for sample in late]
        label = name.replace('_', ' ') + (f', {UNITS[name]}' if name in UNITS else '')
        yield (
            f'{label:<17}{np.median(values):>9.1f}{values[-1]:>12.1f}{its["per_1000_steps"]:>16.3f}'
            f'{its["lowest"]:>10.3f}{its["highest"]:>9.3f}{its["allowed"]:>9.2f}'
            f'{"" if its["level"] else "  grows"}'
        )


def draw(report: dict[str, Any], path: pathlib.Path) -> None:
    """Draws the samples, a panel a quantity, with the fitted growth."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    samples, warm = report['samples'], report['warm'] / 60
    minutes = np.array([sample['seconds'] for sample in samples]) / 60
    steps = np.array([sample['step'] for sample in samples])
    figure, axes = pyplot.subplots(
        len(ALLOWED), 1, figsize=(8, 1.5 * len(ALLOWED)), sharex=True, layout='constrained'
    )
    for axis, name in zip(axes, ALLOWED, strict=True):
        values = np.array([sample[name] for sample in samples], float)
        axis.plot(minutes, values, '.', color='#1098ad', markersize=4)
        axis.axvspan(0, warm, color='#f1f3f5', zorder=0)
        title = name.replace('_', ' ') + (f' ({UNITS[name]})' if name in UNITS else '')
        if its := report['growth'].get(name):
            late = minutes >= warm
            middle = np.median(values[late] - its['per_1000_steps'] * steps[late] / 1000)
            line = middle + its['per_1000_steps'] * steps[late] / 1000
            axis.plot(minutes[late], line, color='#d6336c', linewidth=1)
            title += f': {its["per_1000_steps"]:+.3g} per 1000 steps (allowed {its["allowed"]:g})'
        axis.set_title(title, loc='left', fontsize=9)
        axis.set_ylim(0, max(values.max() * 1.15, 1))
        axis.spines[['top', 'right']].set_visible(False)
        axis.tick_params(labelsize=8)
    axes[-1].set_xlabel(f'minutes; {report["steps"]:,} steps; grey: warm-up', fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == '__main__':
    sys.exit(main())
