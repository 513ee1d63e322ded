"""Looks at a data set before a run: how much there is of what, and everything in it that is bad, by name.

examples:
  python -m vivit_jax.data.check --config=configs/my_videos.py --config.data.root=VIDEOS
  python -m vivit_jax.data.check --config=configs/my_videos.py --config.data.csv=TABLE.csv --output=bad.csv
  python -m vivit_jax.data.check --config=configs/my_videos.py --config.data.root=VIDEOS --decode

What is found is written to FILE.csv (split,name,cause), the examples of every class to FILE_classes.csv. What was
found in the files is kept, so that training need not look into them again.

exit codes:
  0 all is well; 1 something bad was found; 2 a mistake in the command, the configuration or the data
"""

import collections
import concurrent.futures
import csv
import functools
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.box
import rich.console
import rich.table
from ml_collections import ConfigDict

from vivit_jax import command_line, experiment, help_text, paths
from vivit_jax import config as config_module
from vivit_jax.data.files import stores
from vivit_jax.data.files.damage import fingerprint, record_damage, video_damage
from vivit_jax.data.overview import Survey, class_counts, headed, most_common, shortened, spread, survey
from vivit_jax.data.record import Source
from vivit_jax.telling.printable import printable, warning_line
from vivit_jax.telling.terminal import Terminal

SHOWN = 20  # bad examples on the terminal
MOST_CLASSES = 40  # on the terminal; of more, the smallest and the largest
# How a name ends that tells the part of a file, in seconds or frames, and how far its six digits may be off.
PART = re.compile(r'#(t|frames)=([0-9.e+-]+)(?:,([0-9.e+-]+))?$')
ROUNDING = 1e-5
WITHOUT = 'a class without examples'
Finding = tuple[str, str, str]  # split, name, cause


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    warnings.formatwarning = warning_line
    parser = help_text.parser(__doc__, prog='python -m vivit_jax.data.check')
    parser.add_argument('--config', required=True, metavar='FILE[:ARGUMENT]', help='a file of configs/')
    parser.add_argument('--output', metavar='FILE.csv', help='default: runs/NAME_check.csv')
    parser.add_argument('--decode', action='store_true', help='read every frame of every file; takes long')
    parsed, rest = parser.parse_known_args(arguments)
    overrides = command_line.overrides(parser, rest)
    try:
        config = config_module.load(parsed.config, overrides)
        path = paths.path(parsed.output or f'runs/{config.name}_check.csv')
        if path.suffix != '.csv':
            raise ValueError(f'--output={path}: write FILE.csv')
        return 1 if check(config, path, decode=parsed.decode) else 0
    except KeyboardInterrupt:
        print('stopped by SIGINT', file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 2


def check(config: ConfigDict, path: paths.Path, *, decode: bool) -> list[Finding]:
    """Looks at every split of a configuration, and tells.

    Args:
        config: The configuration.
        path: Of the CSV file that everything bad is listed in.
        decode: Whether every frame is read.

    Returns:
        (split, name, cause) of everything bad.

    Raises:
        ValueError: If the configuration is wrong or the data is not there; one line.
    """
    experiment.check(config)
    data = config.data
    splits = dict.fromkeys((data.train_split, data.validation_split, *data.test_splits))
    with Terminal() as terminal:
        looking = experiment.examination(config, terminal.counter('looking into files'))
        sources = {split: experiment.open_source(config, split, looking) for split in splits}
        head_sizes = experiment.head_sizes(config, sources[data.train_split])
        experiment.check_classes(config, data.train_split, sources[data.train_split])
        names = headed(sources[data.train_split].class_names, head_sizes, data.heads)
        surveys = {split: survey(source) for split, source in sources.items()}
        counts = {split: class_counts(seen.labels, len(names), head_sizes) for split, seen in surveys.items()}
        found = [(split, *bad) for split, source in sources.items() for bad in source.bad]
        if decode:
            found += damaged(config, sources, terminal.counter('reading every frame'))
        doubles, notes = duplicates(sources)
        found += [(double.split, double.name, double.cause) for double in doubles]
    without = [
        (split, name, WITHOUT)
        for split in dict.fromkeys((data.train_split, data.validation_split))
        for name, count in zip(names, counts[split], strict=True)
        if not count
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, ['split', 'name', 'cause'], found + without)
    classes = zip(names, *(counts[split].tolist() for split in sources), strict=True)
    write_csv(_classes_path(path), ['class', *sources], classes)
    console = rich.console.Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = 118  # a file has room
    console.print(f'{config.name}: {data.source} in {data.root or data.csv or "the package"}', style='bold')
    notes = [*(getattr(source, 'note', '') for source in sources.values()), *notes]
    for note in filter(None, dict.fromkeys(notes)):
        console.print(printable(note))
    console.print(_summary(config, sources, surveys, counts))
    console.print(_classes(names, counts))
    _tell(console, found, without, path)
    for line in verdict(config, sources, found, doubles, without):
        console.print(printable(line), soft_wrap=True)
    return found + without


def damaged(
    config: ConfigDict, sources: Mapping[str, Source], on_progress: Callable[[int, int], None]
) -> list[Finding]:
    """Reads every frame of every example; returns what cannot be read."""
    jobs: dict[str, tuple[str, str, Callable[[], str]]] = {}
    for split, source in sources.items():
        for index in range(len(source)):
            record = source[index]
            if config.data.source == 'video_files':
                # Several examples may be in one file, which is read whole.
                path = source.path(index)  # type: ignore[attr-defined]
                jobs.setdefault(
                    path, (split, record.name, functools.partial(stores.probe, video_damage, path))
                )
            else:
                jobs[f'{split}/{index}'] = (split, record.name, functools.partial(record_damage, record))
    found = []
    with concurrent.futures.ThreadPoolExecutor(min(config.data.threads, os.cpu_count() or 1)) as pool:
        causes = pool.map(lambda job: job[2](), jobs.values())
        for done, ((split, name, _), cause) in enumerate(zip(jobs.values(), causes, strict=True), start=1):
            on_progress(done, len(jobs))
            if cause:
                found.append((split, name, cause))
    return found


class Part(NamedTuple):
    """A file, or the part of one that an example is, in seconds or frames; `unit` is '' for a whole file."""

    split: str
    name: str
    path: str
    unit: str = ''
    start: float = 0.0
    end: float = math.inf


class Double(NamedTuple):
    """An example of a split that an earlier split, `of`, has as well, all of it or some."""

    split: str
    name: str
    cause: str
    of: str


def duplicates(sources: Mapping[str, Source]) -> tuple[list[Double], list[str]]:
    """Finds the examples that an earlier split has as well, in the same file or in one of the same content.

    Returns:
        Them, and a line about files of which different splits have different parts. Of sources that have no files
        there is nothing to tell.
    """
    by_split = {split: list(_parts(split, source)) for split, source in sources.items()}
    files = {part.path for parts in by_split.values() for part in parts}
    sizes = {path: stores.size(path) for path in files}
    common = collections.Counter(
        size for parts in by_split.values() for size in {sizes[part.path] for part in parts}
    )
    content = {path: fingerprint(path) for path in sorted(files) if common[sizes[path]] > 1}
    earlier: dict[str, list[Part]] = {}
    doubles, apart = [], {}
    for parts in by_split.values():
        mine: dict[str, list[Part]] = collections.defaultdict(list)
        for part in parts:
            if part.path in content:
                mine[content[part.path]].append(part)
        for key, several in mine.items():
            found = [_double(part, earlier[key]) for part in several] if key in earlier else []
            doubles += [double for double in found if double]
            if found and not any(found):
                apart[key] = os.path.basename(several[0].path)
        for key, several in mine.items():
            earlier.setdefault(key, []).extend(several)
    line = (
        f'{len(apart):,} of the files have parts in several splits, not the same ones: '
        f'{shortened(list(apart.values()))}'
    )
    return doubles, [line] if apart else []


def _double(part: Part, others: Sequence[Part]) -> Double | None:
    """Returns what an example has in common with those of earlier splits, the same part rather than another."""
    same = next((other for other in others if other[3:] == part[3:]), None)
    other = same or next((other for other in others if _overlap(part, other)), None)
    if other is None:
        return None
    how = 'the same as' if same else 'overlaps'
    return Double(part.split, part.name, f'{how} {other.name} of {other.split}', other.split)


def _overlap(a: Part, b: Part) -> bool:
    if a.unit and b.unit and a.unit != b.unit:
        return False  # seconds and frames of one file cannot be compared
    end = min(a.end, b.end)
    return end - max(a.start, b.start) > (0.0 if end == math.inf else ROUNDING * end)


def _parts(split: str, source: Source) -> Iterator[Part]:
    """Yields every example that is in a file."""
    if not hasattr(source, 'path'):
        return
    for index in range(len(source)):
        name, path = source[index].name, source.path(index)
        told = None if path.endswith(name) else PART.search(name)
        if told is None:
            yield Part(split, name, path)
        else:
            yield Part(split, name, path, told[1], float(told[2]), float(told[3] or math.inf))


def verdict(
    config: ConfigDict,
    sources: Mapping[str, Source],
    found: Sequence[Finding],
    doubles: Sequence[Double],
    without: Sequence[Finding],
) -> list[str]:
    """Says what training does with the data as it is."""
    beside = _beside(sources, doubles, without)
    for split, source in sources.items():
        if stop := _stops(config, split, source):
            return [stop, *([f'Besides, {beside}.'] if beside else [])]
    used = ', '.join(
        f'{len(source):,} of {len(source) + experiment.lost(source):,} examples of {split}'
        for split, source in sources.items()
        if source.bad
    )
    if used:
        lines = [
            f"Training goes on with {used}; data.on_bad_video='skip' leaves the others out, "
            '--config.data.on_bad_video=error would stop.',
            *([f'But {beside}.'] if beside else []),
        ]
    else:
        lines = ['Training goes on with all examples' + (f'; but {beside}.' if beside else '.')]
    if any(cause.startswith('damaged') for _, _, cause in found):
        lines.append(
            'Damaged videos are used as far as they can be decoded; the last frame before it stands for the rest.'
        )
    return lines


def _stops(config: ConfigDict, split: str, source: Source) -> str:
    """Says why training would not go on with a split; '' where it would."""
    data, where, lost = config.data, f'the split {split!r}', experiment.lost(source)
    total = len(source) + lost
    if not len(source):
        return f'Training would not start: {where} has no example that can be used.'
    try:
        if source.bad:
            experiment.judge_bad(config, where, source.bad, count=lost, total=total)
    except ValueError:
        how = (
            "data.on_bad_video='error' allows none; 'skip' leaves them out"
            if data.on_bad_video == 'error'
            else f'more than data.max_bad={data.max_bad:g} allows; --config.data.max_bad={lost / total + 0.005:.2f} '
            'would'
        )
        return f'Training would stop: {lost:,} of {total:,} examples of {where} are bad, {how}.'
    return ''


def _beside(sources: Mapping[str, Source], doubles: Sequence[Double], without: Sequence[Finding]) -> str:
    """Says what is amiss though nothing is bad; '' where nothing is."""
    pairs = collections.Counter((double.split, double.of) for double in doubles)
    partly = collections.Counter((d.split, d.of) for d in doubles if d.cause.startswith('overlaps'))
    parts = [
        f'{count:,} of {len(sources[split]):,} {split} examples are in {of} as well'
        + (f' ({partly[split, of]:,} of them in part)' if partly[split, of] else '')
        for (split, of), count in pairs.items()
    ]
    missing = collections.Counter(split for split, _, _ in without)
    parts += [
        f'{count:,} {"classes have" if count > 1 else "class has"} no example in {split}'
        for split, count in missing.items()
    ]
    return ', and '.join(parts)


# --- Telling ---


def write_csv(path: paths.Path, header: Sequence[str], rows: Any) -> None:
    """Writes a table; names that are no UTF-8 keep their bytes."""
    with paths.open_text(path, 'w', newline='', errors='surrogateescape') as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def _summary(
    config: ConfigDict,
    sources: Mapping[str, Source],
    surveys: Mapping[str, Survey],
    counts: Mapping[str, np.ndarray],
) -> rich.table.Table:
    """A column a split, a row a fact."""
    data = config.data
    span = (data.frames - 1) * data.stride + 1
    table = rich.table.Table('', box=rich.box.SIMPLE_HEAD)
    rows: dict[str, list[str]] = collections.defaultdict(list)
    for split, seen in surveys.items():
        table.add_column(split)
        rows['examples'].append(f'{seen.total:,}')
        rows['left out as bad'].append(f'{experiment.lost(sources[split]):,}')
        rows['of a class'].append(spread(counts[split]))
        rows['seconds'].append(spread(seen.seconds[np.isfinite(seen.seconds)]) if seen.total else '')
        rows['frames'].append(spread(seen.num_frames))
        rows[f'shorter than a clip, {span} frames'].append(f'{np.sum(seen.num_frames < span):,}')
        rows['width x height'].append(most_common(f'{width}x{height}' for height, width in seen.sizes))
        rows['stored as'].append(most_common(seen.codecs))
    if not any(np.isfinite(seen.seconds).any() for seen in surveys.values()):
        del rows['seconds']
    for fact, cells in rows.items():
        if any(cells):
            table.add_row(fact, *cells)
    return table


def _classes(names: Sequence[str], counts: Mapping[str, np.ndarray]) -> rich.table.Table:
    """A row a class; of many classes those with the fewest and the most examples to train on."""
    table = rich.table.Table('class', box=rich.box.SIMPLE_HEAD)
    for split in counts:
        table.add_column(split, justify='right')
    order = np.arange(len(names))
    if len(names) > MOST_CLASSES:
        order = np.argsort(next(iter(counts.values())), kind='stable')
    for place, k in enumerate(order.tolist()):
        if len(names) > MOST_CLASSES and 5 <= place < len(names) - 5:
            if place == 5:
                table.add_row(f'… {len(names) - 10} more …')
            continue
        table.add_row(printable(names[k]), *(f'{values[k]:,}' for values in counts.values()))
    return table


def _classes_path(path: paths.Path) -> paths.Path:
    return path.with_name(f'{path.stem}_classes.csv')


def _tell(
    console: rich.console.Console, found: Sequence[Finding], without: Sequence[Finding], path: paths.Path
) -> None:
    for split in dict.fromkeys(split for split, _, _ in without):
        missing = shortened([name for of, name, _ in without if of == split])
        console.print(printable(f'{split} has no example of {missing}'), soft_wrap=True)
    if found:
        table = rich.table.Table('split', 'name', 'cause', box=rich.box.SIMPLE_HEAD)
        table.columns[1].overflow = table.columns[2].overflow = 'fold'
        for finding in found[:SHOWN]:
            table.add_row(*(printable(' '.join(cell.split())) for cell in finding))
        console.print(table)
        by_split = collections.Counter(split for split, _, _ in found)
        told = shortened([f'{count:,} in {split}' for split, count in by_split.items()])
        more = f', {len(found) - SHOWN:,} more than shown' if len(found) > SHOWN else ''
        console.print(f'{len(found):,} found ({told}){more}: {path}', soft_wrap=True)
    else:
        console.print('no bad example found', soft_wrap=True)
    console.print(f'examples of every class: {_classes_path(path)}', soft_wrap=True)


if __name__ == '__main__':
    sys.exit(main())
