"""Measures how fast training clips are read, beside a plain PyAV loop and decord, stage by stage, and in all.

Three tables:
  readers     the same clips by each reader, taking turns, one thread each: clips a second of processor time, and how
              many times that of the plain loop (median, lowest and highest of the rounds). "clips" ends with the
              model's input (resized with jitter, cropped, mirrored), "frames" with decoded RGB. The plain loop seeks
              the time of the first frame and decodes to the last; "right" counts what equals decoding from the start.
  stages      processor time of a clip: opening, seeking and decoding, conversion to RGB, resize, crop and mirroring,
              making a batch, putting it on the device; and colours and RandAugment, each as if on for every clip.
  in all      batches as training gets them, in threads and worker processes: clips a second, cores in use, the most
              memory beside what the program holds before it reads, an estimate of it (no bound, as libraries hold
              some tens of MiB a thread), and a worker's memory in all.

examples:
  python tools/benchmark_data.py --videos=FOLDER
  python tools/benchmark_data.py --videos=FOLDER --config.data.stride=1 --threads=1,2,4 --workers=0,2 --json=data.json
  python tools/benchmark_data.py --config=configs/my_videos.py --config.data.root=FOLDER
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import multiprocessing
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import av
import cv2
import jax
import numpy as np
from benchmarking import readers
from ml_collections import ConfigDict

from vivit_jax import command_line, experiment, feeding, help_text, sharding
from vivit_jax import config as config_module
from vivit_jax.data import pipeline, transforms
from vivit_jax.data.files import decoding
from vivit_jax.data.randaugment import RandAugment
from vivit_jax.data.record import Found, Record, Source

BASE = pathlib.Path(__file__).parent.parent / 'configs' / 'base.py'
# Of --videos: without labels, and with batches that fit into small machines.
OF_VIDEOS = {'data.num_classes': '(1,)', 'training.batch_size': '8'}
OF_VIDEOS |= {'data.colour_jitter': '0.0', 'data.colour_drop': '0.0'}
SPEEDS = ('clips_per_cpu_second', 'of_plain', 'lowest', 'highest')
MEMORY = ('memory', 'estimate', 'worker')
File = tuple[str, Found]


@dataclasses.dataclass(frozen=True)
class Videos:
    """A source of files without labels."""

    files: tuple[File, ...]
    class_names: tuple[str, ...] = ('video',)
    digest: str = ''
    bad: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        """Returns the number of files."""
        return len(self.files)

    def path(self, index: int) -> str:
        """Returns the path of a file."""
        return self.files[index][0]

    def __getitem__(self, index: int) -> Record:
        """Returns the record at `index`."""
        path, found = self.files[index]
        read = functools.partial(decoding.read_frames, path, found)
        return Record(name=path, label=0, num_frames=found.num_frames, frame_size=found.frame_size, read=read)


def main() -> None:
    """Runs the command line."""
    parser = help_text.parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument('--config', metavar='FILE', help='experiment whose training data is read')
    what.add_argument('--videos', metavar='FOLDER', help='folder of videos, searched at any depth')
    parser.add_argument('--threads', type=_numbers, default=(1, 2), metavar='N,N', help='that read (1,2)')
    parser.add_argument('--workers', type=_numbers, default=(0, 1, 2), metavar='N,N', help='processes: 0,1,2')
    parser.add_argument('--clips', type=int, default=24, metavar='N', help='clips of a round (24)')
    parser.add_argument('--rounds', type=int, default=5, metavar='N', help='rounds of readers and stages (5)')
    parser.add_argument('--json', metavar='FILE', help='also write all figures there')
    parsed, rest = parser.parse_known_args()
    if min(parsed.clips, parsed.rounds, *parsed.threads) < 1 or min(parsed.workers) < 0:
        parser.error('--clips, --rounds and --threads must be at least 1, --workers at least 0')
    overrides = command_line.overrides(parser, rest)
    try:
        if parsed.json:
            _check_output(pathlib.Path(parsed.json))
        if parsed.videos:
            config = config_module.load(str(BASE), OF_VIDEOS | overrides)
            source: Source = _videos(pathlib.Path(parsed.videos))
        else:
            config = config_module.load(parsed.config, overrides)
            source = experiment.make_source(config, config.data.train_split)
        report = _measure(config, source, parsed)
        print('\n'.join(_text(report)))
        if parsed.json:
            pathlib.Path(parsed.json).write_text(json.dumps(report, indent=2) + '\n')
    except (ValueError, OSError) as error:
        sys.exit(f'error: {error}')


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(','))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r} must be whole numbers with commas between, as 1,2,4'
        ) from None


def _check_output(path: pathlib.Path) -> None:
    """Raises before anything is measured where figures could not be written."""
    if not path.parent.is_dir():
        raise ValueError(f'--json={path}: {path.parent} is not a folder')
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f'--json={path} cannot be written')


def _videos(folder: pathlib.Path) -> Videos:
    """Looks into all files of a folder; says which are no videos."""
    if not folder.is_dir():
        raise ValueError(f'--videos={folder} is not a folder')
    paths = sorted(str(path) for path in folder.rglob('*') if path.is_file())
    with concurrent.futures.ThreadPoolExecutor() as executor:
        outcomes = list(executor.map(decoding.probe, paths))
    for path, cause in zip(paths, outcomes, strict=True):
        if isinstance(cause, str):
            print(f'left out: {path}: {cause}', file=sys.stderr)
    files = tuple((p, f) for p, f in zip(paths, outcomes, strict=True) if not isinstance(f, str))
    if not files:
        raise ValueError(f'--videos={folder}: none of its {len(paths)} files is a video that can be read')
    return Videos(files)


def _measure(config: ConfigDict, source: Source, parsed: argparse.Namespace) -> dict[str, Any]:
    data = config.data
    report: dict[str, Any] = {
        'command': ' '.join(sys.argv),
        'machine': f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores, '
        f'{jax.devices()[0].device_kind}; PyAV {av.__version__}, OpenCV {cv2.__version__}, jax {jax.__version__}',
        'clip': f'{data.frames} frames, stride {data.stride}; short side {data.short_side} x '
        f'{tuple(data.scale_jitter)}, crop {tuple(data.crop)}, flip {data.flip:g}',
    }
    if drawn := readers.draw(config, source, parsed.clips):
        report['readers'], report['left_out'] = readers.compare(config, drawn, parsed.rounds)
        report['stages'] = _stages(config, drawn, parsed.rounds)
    report['in_all'] = []
    for settings in itertools.product(parsed.workers, parsed.threads):
        # In a fresh process, so that the most memory is that of one run.
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as executor:
            run = executor.submit(_in_all, config, source, *settings, parsed.clips)
            report['in_all'].append(run.result())
    return report


def _leave_out(*args: Any) -> None:
    """Does nothing, instead of what is to be left out."""


def _stages(config: ConfigDict, drawn: Sequence[readers.Drawn], rounds: int) -> dict[str, float]:
    """Returns milliseconds of processor time a clip by stage: medians over rounds."""
    chain = readers.geometry(config)
    resize, crop = (chain[:1], chain[1:]) if config.data.short_side else ((), chain)
    mesh, rows = sharding.make_mesh(config.sharding.fsdp), config.training.batch_size
    made: dict[str, np.ndarray] = {}

    def decode(clip: readers.Drawn, seed: int) -> None:
        with mock.patch.object(decoding, '_write', _leave_out):
            decoding.read_frames(*clip)

    def read(clip: readers.Drawn, seed: int) -> None:
        made['frames'] = decoding.read_frames(*clip)

    def batch(clip: readers.Drawn, seed: int) -> None:
        made['batch'] = np.stack([made['clip']] * rows)

    def transfer(clip: readers.Drawn, seed: int) -> None:
        jax.block_until_ready(sharding.to_global({'video': made['batch']}, mesh))

    def augment(
        to: str, chain: Sequence[transforms.Transform], of: str, clip: readers.Drawn, seed: int
    ) -> None:
        made[to] = transforms.apply(chain, made[of], np.random.default_rng(seed))

    steps: dict[str, Callable[..., None]] = {
        'open': lambda clip, seed: decoding.open_video(clip[0])[0].close(),
        'seek and decode': decode,
        'convert': read,
        'resize': functools.partial(augment, 'resized', resize, 'frames'),
        'crop and mirror': functools.partial(augment, 'clip', crop, 'resized'),
        'batch': batch,
        'transfer': transfer,
        'colour jitter': functools.partial(augment, '', [transforms.ColourJitter(probability=1.0)], 'clip'),
        'RandAugment': functools.partial(augment, '', [RandAugment(layers=2, magnitude=15)], 'clip'),
    }
    for step in steps.values():  # each works on what one before it has made
        step(drawn[0], 0)
    seconds = readers.take_turns(steps, drawn, rounds)
    times = {name: 1000 / len(drawn) * float(np.median(values)) for name, values in seconds.items()}
    times['convert'] -= times['seek and decode']  # which it does as well
    times['seek and decode'] -= times['open']
    return times | {name: times[name] / rows for name in ('batch', 'transfer')}


def _in_all(config: ConfigDict, source: Source, workers: int, threads: int, number: int) -> dict[str, Any]:
    """Reads at least `number` clips as training does."""
    rows, mesh = config.training.batch_size, sharding.make_mesh(config.sharding.fsdp)
    examples = feeding.training_examples(config, source)
    clip = examples(0)['video'].nbytes
    before = _peak()
    steps = -(-number // rows)
    settings: dict[str, Any] = {'threads': threads, 'workers': workers, 'prefetch': config.data.prefetch}
    with pipeline.batches(
        examples, batch_size=rows, first_step=0, last_step=10**6, mesh=mesh, **settings
    ) as batches:
        jax.block_until_ready(next(batches))
        began, processor = time.perf_counter(), time.process_time()
        for _ in range(steps):
            jax.block_until_ready(next(batches))
        seconds, processor = time.perf_counter() - began, time.process_time() - processor
        peaks = [_peak(child) for child in _children()]
    # Read and waiting in order; put together, waiting for the device, on it, and a copy on the way.
    waiting = (0 if workers else max(2 * threads, rows)) + (config.data.prefetch + 3) * rows
    sizes = np.array([source[index].frame_size for index in range(min(len(source), 1000))])
    scale = config.data.short_side / sizes.min(axis=1) * max(config.data.scale_jitter)
    pixels = float((sizes.prod(axis=1) * (1 + scale**2)).max())  # of a frame, decoded and resized
    being_made = 0 if workers else threads * config.data.frames * pixels * config.data.channels
    return {
        'workers': workers,
        'threads': threads,
        'clips_per_second': steps * rows / seconds,
        'cores': None if workers else processor / seconds,
        'memory': _peak() - before,
        'estimate': (waiting * clip + being_made) / 2**20,
        'worker': max(peaks, default=None),
    }


def _children() -> list[str]:
    """Returns the ids of the processes that this one has started; none where the system does not tell."""
    lists = pathlib.Path('/proc/self/task').glob('*/children')
    return [child for children in lists for child in children.read_text().split()]


def _peak(process: str = 'self') -> float:
    """Returns the most memory that a process has had in use, in MiB; 0 where the system does not tell."""
    try:
        lines = pathlib.Path(f'/proc/{process}/status').read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith('VmHWM')), 0.0)


def _text(report: dict[str, Any]) -> Iterator[str]:
    """Writes the figures down for people."""
    yield from (report['machine'], report['clip'])
    if report.get('readers'):
        yield from _table('ends with', 'reader', 'clips / CPU-s', 'of plain', 'lowest', 'highest', 'right')
        for row in report['readers']:
            right = f'{row["right"]}/{row["clips"]}' if 'right' in row else ''
            speeds = [f'{row[name]:.2f}' for name in SPEEDS]
            yield _row(row['what'], row['reader'], *speeds, right)
        yield from (f'left out: {path}: {cause}' for path, cause in report['left_out'].items())
    if report.get('stages'):
        yield from _table('stage', 'CPU ms a clip')
        yield from (_row(name, f'{value:.2f}') for name, value in report['stages'].items())
    yield from _table(
        'workers', 'threads', 'clips / s', 'cores', 'memory, MiB', 'estimate, MiB', 'a worker, MiB'
    )
    for row in report['in_all']:
        cores = '' if row['cores'] is None else f'{row["cores"]:.2f}'
        memory = ['' if row[name] is None else f'{row[name]:.0f}' for name in MEMORY]
        yield _row(row['workers'], row['threads'], f'{row["clips_per_second"]:.1f}', cores, *memory)


def _table(*header: str) -> Iterator[str]:
    yield from ('', _row(*header), _row(*['---'] * len(header)))


def _row(*cells: Any) -> str:
    return f'| {" | ".join(map(str, cells))} |'


if __name__ == '__main__':
    main()
