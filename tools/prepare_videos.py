r"""Prepares videos once, so that training reads them fast ever after.

Every video (or the part of it that a table asks for) is cut out, turned upright, resized, and encoded with a key
frame every few frames; the results are packed into few large files. The originals are not touched. What was prepared
is kept: the same command goes on after an interruption, and checks and mends what is there.

  OUT/train-00000-of-00008.array_record, …    the videos; --shards says how many such files a split has
  OUT/manifest.json.gz                        classes, labels, places, settings
  OUT/bad_files.csv                           what was left out, and why
  OUT/settings.json, OUT/facts/               what going on needs

examples:
  python tools/prepare_videos.py --config=configs/my_videos.py --config.data.root=VIDEOS --output=OUT
  python tools/prepare_videos.py --config=configs/my_videos.py --config.data.csv=clips.csv --output=OUT --workers=16
  python tools/prepare_videos.py --config=configs/epic_kitchens_fe.py --config.data.root=EPIC --output=OUT --fps=30
  python -m vivit_jax.main --config=configs/my_videos.py --config.data.source=array_record --config.data.root=OUT

On many machines, which all see the videos and OUT, as an Apache Beam pipeline (pip install 'vivit_jax[beam]');
options after -- are Beam's:
  python tools/prepare_videos.py --config=configs/my_videos.py --config.data.root=VIDEOS --output=OUT --beam \
      -- --runner=FlinkRunner --flink_master=HOST:8081
"""

import argparse
import collections
import contextlib
import dataclasses
import fcntl
import functools
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from vivit_jax import command_line, help_text, paths
from vivit_jax.data.array_record import (
    Prepared,
    Shard,
    Split,
    read_shard,
    write_manifest,
    write_shard,
    write_whole,
)
from vivit_jax.data.bad_files import BadFiles
from vivit_jax.data.files import stores
from vivit_jax.data.files.preparing import Job, Settings, prepare, prepare_shard, start_worker
from vivit_jax.data.listed import ListedFiles
from vivit_jax.data.record import Record
from vivit_jax.telling.printable import printable, warning_line

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from vivit_jax.telling.terminal import Terminal

# Worker processes import this file as well: what brings jax is imported where it is used.

SOURCES = ('video_files', 'frame_folders')
EXAMPLES_A_SHARD = 256  # some hundred megabytes; what an interruption can cost
# Settings that say where the originals are.
OF_ORIGINALS = ('source', 'root', 'csv', 'fps', 'validation_share', 'group', 'split_seed', 'cache')


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    from vivit_jax import config as config_module
    from vivit_jax.telling.terminal import Terminal

    warnings.formatwarning = warning_line
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index('--') if '--' in given else len(given)
    parsed, overrides = _parse(given[:end], beam_options=given[end + 1 :])
    try:
        config = config_module.load(parsed.config, overrides)
        settings = Settings(short_side=parsed.short_side, gop=parsed.gop, crf=parsed.crf)
        output = paths.here(parsed.output, '--output')
        run = functools.partial(_with_processes, workers=parsed.workers)
        if parsed.beam:
            run = functools.partial(_with_beam, options=given[end + 1 :])
        with Terminal() as terminal:
            prepare_videos(config, output, settings, shards=parsed.shards, run=run, terminal=terminal)
    except KeyboardInterrupt:
        print('interrupted; what is whole is kept: the same command goes on from there', file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 2
    kept = {key: value for key, value in overrides.items() if key.removeprefix('data.') not in OF_ORIGINALS}
    words = {**kept, 'data.source': 'array_record', 'data.root': str(output)}
    options = ' '.join(shlex.quote(f'--config.{key}={value}') for key, value in words.items())
    print(f'train from it: python -m vivit_jax.main --config={shlex.quote(parsed.config)} {options}')
    return 0


def _parse(given: list[str], beam_options: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Returns the options and the values of the configuration by key."""
    parser = help_text.parser(__doc__)
    add = parser.add_argument
    add('--config', required=True, metavar='FILE[:ARGUMENT]', help='a file of configs/')
    add('--output', required=True, metavar='OUT', help='folder for what is prepared')
    add('--short_side', type=int, default=256, metavar='N', help='pixels; 0: not resized (default 256)')
    add('--gop', type=int, default=16, metavar='N', help='frames from key frame to key frame (default 16)')
    add('--fps', type=float, default=0.0, metavar='N', help='frames a second (default 0: as they are)')
    add('--crf', type=int, default=18, metavar='N', help='quality, 0 best to 51 worst (default 18)')
    add('--shards', type=int, default=0, metavar='N', help='of each split (default: one for 256 videos)')
    add('--workers', type=int, default=2, metavar='N', help='processes, up to 0.8 GB each (default 2)')
    add('--beam', action='store_true', help='prepare as an Apache Beam pipeline')
    parsed, rest = parser.parse_known_args(given)
    if parsed.workers < 1 or parsed.shards < 0:
        parser.error(f'--workers={parsed.workers} --shards={parsed.shards}: must be at least 1 and 0')
    if beam_options and not parsed.beam:
        parser.error(f'{beam_options[0]!r} after -- is for Beam: add --beam')
    overrides = command_line.overrides(parser, rest)
    if parsed.fps:
        overrides['data.fps'] = str(parsed.fps)
    return parsed, overrides


@dataclasses.dataclass(kw_only=True)
class Telling:
    """Told what became of each example: counts, names the bad ones, stops where none may be.

    Attributes:
        bad_files: The list.
        none_may_be: Stop at the first bad one, as `data.on_bad_video='error'` says.
        count: Is told of the examples done and in all.
        total: Examples in all.
        done: So far.
    """

    bad_files: BadFiles
    none_may_be: bool
    count: Callable[[int, int], None]
    total: int
    done: int = 0

    def __call__(self, split: str, record: Record, cause: str | None) -> None:
        """Takes the cause why an example is left out, or None."""
        self.done += 1
        self.count(self.done, self.total)
        if cause is not None:
            self.bad_files.add(split, 'while preparing', [(record.name, cause)])
            if self.none_may_be:
                raise ValueError(
                    f"{record.name} of {split!r} cannot be prepared: {cause}; data.on_bad_video='error' stops here, "
                    "'skip' leaves it out"
                )

    def all(self, job: Job, shard: Shard) -> None:
        """Takes the examples of a whole shard."""
        for record, outcome in zip(job.records, shard.outcomes, strict=True):
            self(job.split, record, outcome if isinstance(outcome, str) else None)


# Prepares jobs, tells what becomes of each example, and yields each job with its shard.
Run = Callable[[list[Job], Telling], Iterator[tuple[Job, Shard]]]


def prepare_videos(
    config: 'ConfigDict',
    output: pathlib.Path,
    settings: Settings,
    *,
    shards: int,
    run: Run,
    terminal: 'Terminal',
) -> None:
    """Prepares all splits of a data set.

    Args:
        config: Tells the data set, and by `data.on_bad_video` and `data.max_bad` what is done about bad files.
        output: Folder to write.
        settings: What the videos become.
        shards: Files of each split; 0: as many as are handy.
        run: Does the work.
        terminal: Where to tell of it.

    Raises:
        ValueError: If there is no such data, too much of it is bad, or the folder holds other work; one line.
        OSError: If something cannot be written.
    """
    from vivit_jax import experiment

    began = time.monotonic()
    if config.data.source not in SOURCES:
        raise ValueError(
            f'data.source={config.data.source!r} cannot be prepared: choose one of {", ".join(SOURCES)}'
        )
    experiment.check(config)
    sources = _open(config, terminal)
    jobs = {split: _jobs(split, source, output, settings, shards) for split, source in sources.items()}
    every = [job for those in jobs.values() for job in those]
    plan = {
        **dataclasses.asdict(settings),
        'fps': config.data.fps,
        'shards': {split: len(those) for split, those in jobs.items()},
        'examples': {split: source.digest for split, source in sources.items()},
    }
    with _claimed(output, plan):
        bad_files = BadFiles(output / 'bad_files.csv')
        bad_files.clear()
        for split, source in sources.items():
            if source.bad:
                bad_files.add(split, 'at the start', source.bad)
            _judge(config, split, source.bad, source)
        whole = _whole(every, terminal)
        count, total = terminal.counter('preparing'), sum(len(job.records) for job in every)
        strict = config.data.on_bad_video == 'error'
        telling = Telling(bad_files=bad_files, none_may_be=strict, count=count, total=total)
        for job in every:
            if job.path in whole:
                telling.all(job, whole[job.path])
        reused = len(whole)
        if reused < len(every):
            left = [job for job in every if job.path not in whole]
            whole |= {job.path: shard for job, shard in run(left, telling)}
        splits = {split: _split(those, whole, sources[split]) for split, those in jobs.items()}
        for split, prepared in splits.items():
            if said := _judge(config, split, prepared.all_bad(), sources[split]):
                terminal.say(f'warning: {said}; see {bad_files.path}')
        first = next(iter(sources.values()))
        write_manifest(
            output,
            class_names=first.class_names,
            heads=dict(zip(config.data.heads, experiment.head_sizes(config, first), strict=True)),
            settings={**dataclasses.asdict(settings), 'fps': config.data.fps},
            splits=splits,
        )
    terminal.say(_summary(sources, splits, reused=reused, seconds=time.monotonic() - began))


def _split(jobs: list[Job], whole: dict[pathlib.Path, Shard], source: ListedFiles) -> Split:
    """Returns what a split has become."""
    return Split(
        examples=[(record.name, record.label) for job in jobs for record in job.records],
        shards=[(job.path.name, whole[job.path]) for job in jobs],
        bad=source.bad,
    )


def _open(config: 'ConfigDict', terminal: 'Terminal') -> dict[str, ListedFiles]:
    """Opens all splits of a data set."""
    from vivit_jax import experiment

    sources: dict[str, ListedFiles] = {}
    left = [config.data.train_split]
    while left:
        split = left.pop(0)
        looking = experiment.examination(config, terminal.counter(f'looking into files of {split!r}'))
        source = experiment.open_source(config, split, looking)
        assert isinstance(source, ListedFiles)
        sources[split] = source
        if len(sources) == 1:
            left += [name for name in source.splits if name != split]
            if source.note:
                terminal.say(source.note)
        if not len(source):
            _judge(config, split, source.bad, source)
            raise ValueError(f'the split {split!r} is empty (data.root={config.data.root})')
    return sources


def _judge(config: 'ConfigDict', split: str, bad: Sequence[tuple[str, str]], source: ListedFiles) -> str:
    """Says what is left out, '' where nothing is; a ValueError where it is too much."""
    from vivit_jax import experiment

    total = len(source) + len(source.bad)
    return (
        experiment.judge_bad(config, f'the split {split!r}', bad, count=len(bad), total=total) if bad else ''
    )


def _jobs(
    split: str, source: ListedFiles, output: pathlib.Path, settings: Settings, shards: int
) -> list[Job]:
    """Divides a split into shards, as even as may be."""
    if not re.fullmatch(r'\w[\w.-]*', split):
        raise ValueError(
            f'the split {split!r} cannot be part of a file name: letters, digits, "_", "-" and "." can'
        )
    number = min(shards or -(-len(source) // EXAMPLES_A_SHARD), len(source))
    ends = [len(source) * place // number for place in range(number + 1)]
    return [
        Job(
            split=split,
            path=output / f'{split}-{place:05d}-of-{number:05d}.array_record',
            records=tuple(source[index] for index in range(start, end)),
            settings=settings,
        )
        for place, (start, end) in enumerate(itertools.pairwise(ends))
    ]


@contextlib.contextmanager
def _claimed(output: pathlib.Path, plan: dict[str, object]) -> Iterator[None]:
    """Keeps a folder for one process and one plan; a ValueError where it is another's."""
    output.mkdir(parents=True, exist_ok=True)
    folder = os.open(output, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f'{output} is being written by another process: wait, or give another --output'
            ) from error
        except OSError:
            pass  # a file system without locks
        path = output / 'settings.json'
        plan = json.loads(json.dumps(plan))
        begun = path.exists() and any(output.glob('*.array_record'))
        before = json.loads(path.read_bytes()) if begun else plan
        for key, value in plan.items():
            if before.get(key) != value:
                told = (
                    'other examples or labels'
                    if key == 'examples'
                    else f'{key}={before.get(key)}, not {value}'
                )
                raise ValueError(f'{output} was begun with {told}: give another --output, or empty it')
        write_whole(path, json.dumps(plan, indent=2).encode())
        for unfinished in [*output.glob('*.*.tmp'), *output.glob('facts/*.tmp')]:
            unfinished.unlink()  # of a process that was killed
        yield
    finally:
        os.close(folder)


def _whole(jobs: list[Job], terminal: 'Terminal') -> dict[pathlib.Path, Shard]:
    """Returns the shards that are there and whole."""
    there = [job.path for job in jobs if job.path.exists()]
    whole, count = {}, terminal.counter('checking')
    with futures.ThreadPoolExecutor(8) as pool:
        for done, (path, shard) in enumerate(zip(there, pool.map(read_shard, there), strict=True), start=1):
            count(done, len(there))
            if shard is not None:
                whole[path] = shard
    return whole


def _with_processes(jobs: list[Job], telling: Telling, *, workers: int) -> Iterator[tuple[Job, Shard]]:
    """Prepares examples in processes and writes them in order, so that shards do not depend on the processes."""
    # Not forked: threads run here already.
    context = multiprocessing.get_context('spawn')
    pool = futures.ProcessPoolExecutor(workers, context, initializer=start_worker)
    try:
        outcomes = _in_order(pool, jobs, telling, ahead=2 * workers)
        for job in jobs:
            yield job, write_shard(job.path, itertools.islice(outcomes, len(job.records)))
        pool.shutdown()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()  # a long video is not waited for
        raise


def _in_order(
    pool: futures.ProcessPoolExecutor, jobs: list[Job], telling: Telling, ahead: int
) -> Iterator[Prepared | str]:
    """Yields what becomes of every example, while those after it are prepared."""
    every = ((job, record) for job in jobs for record in job.records)
    pending: collections.deque[tuple[Job, Record, futures.Future[Prepared | str]]] = collections.deque()
    try:
        while True:
            for job, record in itertools.islice(every, ahead - len(pending)):
                pending.append((job, record, pool.submit(prepare, record, job.settings)))
            if not pending:
                return
            job, record, future = pending[0]
            outcome = future.result()
            pending.popleft()
            telling(job.split, record, outcome if isinstance(outcome, str) else None)
            yield outcome
    except BrokenProcessPool as error:
        names = ', '.join(record.name for _, record, _ in pending)
        raise ValueError(
            f'a worker process was killed, perhaps for want of memory, at one of: {names}; the same command goes on, '
            'with fewer --workers'
        ) from error


def _with_beam(jobs: list[Job], telling: Telling, *, options: Sequence[str]) -> Iterator[tuple[Job, Shard]]:
    """Prepares shards as a Beam pipeline."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError as error:
        raise ValueError("--beam needs Apache Beam: pip install 'vivit_jax[beam]'") from error
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
        pipeline | beam.Create(jobs) | beam.Reshuffle() | beam.Map(prepare_shard)
    for job in jobs:
        shard = read_shard(job.path)
        if shard is None:
            raise ValueError(f'{job.path} is not whole, though Beam ended: all machines must see this folder')
        telling.all(job, shard)
        yield job, shard


def _summary(
    sources: dict[str, ListedFiles], splits: dict[str, Split], *, reused: int, seconds: float
) -> str:
    """Says what was done: counts, sizes, time."""
    paths = {source.path(index) for source in sources.values() for index in range(len(source))}
    before = sum(map(_size, paths))
    after = sum(shard.size for split in splits.values() for _, shard in split.shards)
    counts, left_out = [], 0
    for name, split in splits.items():
        good = len(split.examples) - len(split.all_bad()) + len(split.bad)
        counts.append(f'{name} {good:,}')
        left_out += len(split.all_bad())
    shards = sum(len(split.shards) for split in splits.values())
    return (
        f'prepared: {", ".join(counts)}; left out: {left_out}; {before / 1e6:,.1f} MB are {after / 1e6:,.1f} MB in '
        f'{shards} shards now ({reused} of them were there); {seconds:,.1f} s'
    )


def _size(path: str) -> int:
    """Returns the bytes of a file, or of a folder's files."""
    if paths.is_remote(path):
        return stores.size(path)
    if os.path.isdir(path):
        return sum(entry.stat().st_size for entry in os.scandir(path))
    return os.stat(path).st_size


if __name__ == '__main__':
    sys.exit(main())
