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

import argparse
import collections
import concurrent.futures
import csv
import functools
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import rich.box
import rich.console
import rich.table
from ml_collections import ConfigDict

from vivit_jax import config as config_module
from vivit_jax import experiment
from vivit_jax.data.files.damage import fingerprint, record_damage, video_damage
from vivit_jax.data.overview import Survey, class_counts, most_common, shortened, spread, survey
from vivit_jax.data.record import Source
from vivit_jax.writers import Terminal

SHOWN = 20  # bad examples on the terminal
MOST_CLASSES = 40  # on the terminal; of more, the smallest and the largest
WITHOUT = 'a class without examples'
Finding = tuple[str, str, str]  # split, name, cause


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    warnings.formatwarning = lambda message, *_, **__: f'warning: {message}\n'
    parser = argparse.ArgumentParser(
        prog='python -m vivit_jax.data.check',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('--config', required=True, metavar='FILE[:ARGUMENT]', help='a file of configs/')
    parser.add_argument('--output', metavar='FILE.csv', help='default: runs/NAME_check.csv')
    parser.add_argument('--decode', action='store_true', help='read every frame of every file; takes long')
    parsed, rest = parser.parse_known_args(arguments)
    if wrong := [option for option in rest if not option.startswith('--config.') or '=' not in option]:
        parser.error(f'{wrong[0]!r} is no option; keys of the configuration are --config.KEY=VALUE')
    overrides = dict(option.removeprefix('--config.').split('=', 1) for option in rest)
    try:
        config = config_module.load(parsed.config, overrides)
        path = pathlib.Path(parsed.output or f'runs/{config.name}_check.csv')
        if path.suffix != '.csv':
            raise ValueError(f'--output={path}: write FILE.csv')
        return 1 if check(config, path, decode=parsed.decode) else 0
    except KeyboardInterrupt:
        print('stopped by SIGINT', file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def check(config: ConfigDict, path: pathlib.Path, *, decode: bool) -> list[Finding]:
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
        names = list(sources[data.train_split].class_names)
        head_sizes = experiment.head_sizes(config, sources[data.train_split])
        experiment.check_classes(config, data.train_split, sources[data.train_split])
        surveys = {split: survey(source) for split, source in sources.items()}
        counts = {split: class_counts(seen.labels, len(names), head_sizes) for split, seen in surveys.items()}
        found = [(split, *bad) for split, source in sources.items() for bad in source.bad]
        if decode:
            found += damaged(config, sources, terminal.counter('reading every frame'))
        found += duplicates(sources)
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
    for note in filter(None, dict.fromkeys(getattr(source, 'note', '') for source in sources.values())):
        console.print(note)
    console.print(_summary(config, sources, surveys, counts))
    console.print(_classes(names, counts))
    _tell(console, found, without, path)
    for line in verdict(config, sources, found):
        console.print(line, soft_wrap=True)
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
                jobs.setdefault(path, (split, record.name, functools.partial(video_damage, path)))
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


def duplicates(sources: Mapping[str, Source]) -> list[Finding]:
    """Returns the examples that an earlier split has as well: the same part of the same file, or of the same content.

    Sources that have no files have no duplicates.
    """
    examples = [example for split, source in sources.items() for example in _files(split, source)]
    by_size = collections.defaultdict(set)
    for split, _, _, path in examples:
        by_size[os.path.getsize(path)].add(split)
    known: dict[tuple[str, str], tuple[str, str]] = {}
    found = []
    for split, name, part, path in examples:
        if len(by_size[os.path.getsize(path)]) == 1:
            continue
        first = known.setdefault((fingerprint(path), part), (split, name))
        if first[0] != split:
            found.append((split, name, f'the same as {first[1]} of {first[0]}'))
    return found


def _files(split: str, source: Source) -> Iterator[tuple[str, str, str, str]]:
    """Yields split, name, part of the file and full path of every example that is in a file."""
    if not hasattr(source, 'path'):
        return
    for index in range(len(source)):
        name, path = source[index].name, source.path(index)
        part = '' if path.endswith(name) else name.rpartition('#')[2]
        yield split, name, part, path


def verdict(config: ConfigDict, sources: Mapping[str, Source], found: Sequence[Finding]) -> list[str]:
    """Says what training does with the data as it is."""
    data = config.data
    for split, source in sources.items():
        where, total = f'the split {split!r}', len(source) + len(source.bad)
        if not len(source):
            return [f'Training would not start: {where} has no example that can be used.']
        if source.bad:
            try:
                experiment.judge_bad(config, where, source.bad, total)
            except ValueError:
                share = len(source.bad) / total
                how = (
                    "data.on_bad_video='error' allows none; 'skip' leaves them out"
                    if data.on_bad_video == 'error'
                    else f'more than data.max_bad={data.max_bad:g} allows; --config.data.max_bad={share + 0.005:.2f} '
                    'would'
                )
                return [
                    f'Training would stop: {len(source.bad)} of {total} examples of {where} are bad, {how}.'
                ]
    used = ', '.join(
        f'{len(source):,} of {len(source) + len(source.bad):,} examples of {split}'
        for split, source in sources.items()
        if source.bad
    )
    lines = [
        f"Training goes on with {used}; data.on_bad_video='skip' leaves the others out, "
        '--config.data.on_bad_video=error would stop.'
        if used
        else 'Training goes on with all examples.'
    ]
    if any(cause.startswith('damaged') for _, _, cause in found):
        lines.append(
            'Damaged videos are used as far as they can be decoded; the last frame before it stands for the rest.'
        )
    return lines


# --- Telling ---


def write_csv(path: pathlib.Path, header: Sequence[str], rows: Any) -> None:
    """Writes a table; names that are no UTF-8 keep their bytes."""
    with path.open('w', newline='', encoding='utf-8', errors='surrogateescape') as file:
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
        rows['left out as bad'].append(f'{len(sources[split].bad):,}')
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
        table.add_row(names[k], *(f'{values[k]:,}' for values in counts.values()))
    return table


def _classes_path(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f'{path.stem}_classes.csv')


def _tell(
    console: rich.console.Console, found: Sequence[Finding], without: Sequence[Finding], path: pathlib.Path
) -> None:
    for split in dict.fromkeys(split for split, _, _ in without):
        missing = shortened([name for of, name, _ in without if of == split])
        console.print(f'{split} has no example of {missing}', soft_wrap=True)
    if found:
        table = rich.table.Table('split', 'name', 'cause', box=rich.box.SIMPLE_HEAD)
        table.columns[1].overflow = table.columns[2].overflow = 'fold'
        for finding in found[:SHOWN]:
            table.add_row(*(_printable(cell) for cell in finding))
        console.print(table)
        by_split = collections.Counter(split for split, _, _ in found)
        told = shortened([f'{count:,} in {split}' for split, count in by_split.items()])
        more = f', {len(found) - SHOWN:,} more than shown' if len(found) > SHOWN else ''
        console.print(f'{len(found):,} found ({told}){more}: {path}', soft_wrap=True)
    else:
        console.print('no bad example found', soft_wrap=True)
    console.print(f'examples of every class: {_classes_path(path)}', soft_wrap=True)


def _printable(text: str) -> str:
    """Returns a text without what a terminal would take for a command or cannot show."""
    return ''.join(c if c.isprintable() else '\N{REPLACEMENT CHARACTER}' for c in ' '.join(text.split()))


if __name__ == '__main__':
    sys.exit(main())
