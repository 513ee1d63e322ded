"""Files named one by one, as on a command line, as a source: whole, or window by window."""

import bisect
import dataclasses
import difflib
import functools
import glob
import hashlib
import itertools
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import cv2
import numpy as np
from einops import rearrange
from jaxtyping import Integer, UInt8

from vivit_jax import paths
from vivit_jax.data.examine import Examination, Outcome, examine
from vivit_jax.data.listed import ROUNDING, Kind, ListedFiles
from vivit_jax.data.listing import Entry, Listing
from vivit_jax.data.listing.annotations import Disk, understand
from vivit_jax.data.listing.folders import examples_below, loose_files
from vivit_jax.data.listing.tables import PATHS, Table, read_table
from vivit_jax.data.record import Label, Record

TABLES = ('.csv', '.tsv', '.txt', '.json', '.jsonl')
HERE = pathlib.Path('.')  # what paths are relative to
MOST_WINDOWS = 10**6  # of an example: a damaged clock makes more, which would fill the memory

Span = tuple[float, float]  # seconds
Item = tuple[Kind, Entry]
Bad = list[tuple[str, str]]
Outcomes = Mapping[str, Mapping[str, Outcome]]  # by name of the kind, then by path


class Given:
    """A source of named files, in the order in which they were named.

    Attributes:
        class_names: As the caller gave them.
        bad: (name, cause) of what cannot be used.
        digest: Of names, labels and lengths.
        files: Full path of each example.
        spans: Where in its file each example begins and ends; None where it is all of it, or there is no time.
    """

    def __init__(
        self, parts: Sequence[tuple[Kind, ListedFiles]], spans: Sequence[Span | None], channels: int
    ):
        """Joins sources; `open_given` makes them."""
        self._sources = [source for _, source in parts]
        self._grey = [channels == 1 < kind.channels for kind, _ in parts]
        self._ends = list(itertools.accumulate(map(len, self._sources)))
        self.class_names: list[str] = list(self._sources[0].class_names) if parts else []
        self.bad: Bad = list(itertools.chain(*(source.bad for source in self._sources)))
        self.digest = hashlib.sha256(' '.join(source.digest for source in self._sources).encode()).hexdigest()
        self.files = [
            path if paths.is_remote(path := source.path(index)) else os.path.abspath(path)
            for source in self._sources
            for index in range(len(source))
        ]
        self.spans = list(spans)

    def __len__(self) -> int:
        """Returns the number of examples that can be read."""
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        """Returns the record at `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f'index {index} must be in [0, {len(self)})')
        place = bisect.bisect_right(self._ends, index)
        record = self._sources[place][index - (self._ends[place - 1] if place else 0)]
        return (
            dataclasses.replace(record, read=functools.partial(_grey, record.read))
            if self._grey[place]
            else record
        )


def open_given(
    names: Sequence[str],
    *,
    kinds: tuple[Kind, ...],
    examination: Examination,
    class_names: Sequence[str] = (),
    label: Label = 0,
    fps: float = 0.0,
    window: float = 0.0,
    every: float = 0.0,
    channels: int = 3,
) -> Given:
    """Opens named files.

    A path is one of

        clip.mp4        a file
        frames/         a folder of images, where those are among the kinds: one example
        folder/         any other: everything of the kinds in it and below it, by name
        list.csv        a table with a column of paths, and where wanted `start,end` or `start_frame,stop_frame`
                        (see `listing.tables`); labels do not matter, paths are relative to the table's folder
        '*.avi'         what matches, by name; `**` is folders of any depth

    Args:
        names: Paths, in the order of the examples; what is named twice is there twice.
        kinds: What files may be. A file of an ending that none of them has is taken for the only kind of files.
        examination: How files are looked into; nothing is kept of that in a cache.
        class_names: Of the source.
        label: Of every example.
        fps: Frames a second that are counted; 0: the file's own.
        window: Seconds of a window; each window of a file is an example. 0: the whole file is.
        every: Seconds from the beginning of a window to that of the next; 0: as long as a window. The last one ends
            with the file; a file shorter than a window has one.
        channels: Of the pixels, 3, or 1: colours become grey (ITU-R BT.601).

    Returns:
        The source. Files and rows that cannot be used are in its `bad`.

    Raises:
        ValueError: If a path is not there or has nothing of the kinds in it, or the options contradict the files;
            one line.
    """
    if not (0 <= window < math.inf and 0 <= every < math.inf) or (every and not window):
        raise ValueError(f'window={window:g}, every={every:g}: must be seconds, and `every` needs a window')
    bad: Bad = []
    kinds = tuple(kind.within(examination.seconds) for kind in kinds)
    items = [item for name in names for item in _items(name, kinds, label, bad)]
    used = {kind.name: kind for kind, _ in items}
    for name, kind in used.items():
        _check(kind, next(e.path for k, e in items if k.name == name), window, fps, channels)
    # Whoever asks about a file does not ask for another one to be written.
    examination = dataclasses.replace(examination, cache=None)
    files = {name: [entry.path for kind, entry in items if kind.name == name] for name in used}
    outcomes = {name: _look(kind, files[name], examination) for name, kind in used.items()}
    if window:
        items = [cut for item in items for cut in _windows(item, outcomes, window, every or window, bad)]
    parts: list[tuple[Kind, ListedFiles]] = []
    # Several kinds keep their order: a source for each stretch of one.
    for name, group in itertools.groupby(items, key=lambda item: item[0].name):
        listing = Listing(
            folder=HERE,
            class_names=list(class_names),
            head_sizes=(len(class_names),),
            entries=[entry for _, entry in group],
            bad=[],
            splits=(),
        )
        source = ListedFiles.of(listing, outcomes[name], kind=used[name], fps=fps)
        parts.append((used[name], source))
    spans = [
        None if _is_whole(entry := source.entry(index)) else _span(kind, entry, outcomes)
        for kind, source in parts
        for index in range(len(source))
    ]
    given = Given(parts, spans, channels)
    given.bad = bad + given.bad
    return given


def _look(kind: Kind, files: Sequence[str], examination: Examination) -> dict[str, Outcome]:
    """Looks into files; of one whose name is another kind's the cause tells what it was taken for."""
    outcomes = examine(kind.name, HERE, files, kind.look, examination)
    for path, found in outcomes.items():
        if isinstance(found, str) and not kind.folders and not path.lower().endswith(kind.endings):
            outcomes[path] = f'{found}; the model takes {kind.name.replace("_", " ")}'
    return outcomes


def _check(kind: Kind, name: str, window: float, fps: float, channels: int) -> None:
    """Raises where files of a kind, as the one of that name, do not go with the options."""
    what = kind.name.replace('_', ' ')
    if kind.channels < channels:
        raise ValueError(f'{name}: {what} have {kind.channels} channel, but the model takes {channels}')
    if window and kind.times is None:
        raise ValueError(f'{name}: windows are counted in seconds, but {what} have no time')
    if fps and kind.times is None:
        raise ValueError(f'{name}: the model takes {fps:g} frames a second, but {what} have no time')


# --- What a path stands for ---


def _items(path: str, kinds: Sequence[Kind], label: Label, bad: Bad) -> list[Item]:
    """Returns the examples that a path names; what is wrong with single ones is added to `bad`."""
    path = str(paths.expanded(path)) if paths.is_remote(path) else os.path.expanduser(path)
    if not _is_there(path):
        matches = sorted(_matching(path)) if glob.has_magic(path) else []
        if not matches:
            raise ValueError(missing(path))
        return [item for match in matches for item in _items(match, kinds, label, bad)]
    if _is_folder(path):
        return _in_folder(path, kinds, label, bad)
    kind = _kind_of(path, kinds)
    if path.lower().endswith(TABLES) and not path.lower().endswith(kind.endings if kind else ()):
        return _in_table(paths.path(path), kinds, label, bad)
    if kind is None:
        raise ValueError(f'{path} is a file, but the model takes {_endings(kinds)}')
    return [(kind, Entry(path=path, label=label))]


def _is_there(path: str) -> bool:
    return paths.path(path).exists() if paths.is_remote(path) else os.path.lexists(path)


def _is_folder(path: str) -> bool:
    return paths.path(path).is_dir() if paths.is_remote(path) else os.path.isdir(path)


def _matching(pattern: str) -> list[str]:
    if not paths.is_remote(pattern):
        return glob.glob(pattern, recursive=True)
    with paths.said_as_one(pattern):
        kind = pattern[:2]
        return [f'{kind}://{name}' for name in paths.file_system(pattern).glob(pattern)]


def missing(path: str) -> str:
    """Says that there is nothing of this name, and what is there of a name like it."""
    if glob.has_magic(path):
        return f'nothing matches {path!r}'
    if paths.is_remote(path):
        return f'there is no {path}'
    folder, name = os.path.split(os.path.normpath(path))
    while folder and not os.path.isdir(folder):
        folder, name = os.path.split(folder)
    try:
        there = sorted(os.listdir(folder or '.'))
    except OSError:
        there = []
    close = difflib.get_close_matches(name, there, 1)
    return f'there is no {path}' + (f'; is it {os.path.join(folder, close[0])}?' if close else '')


def _kind_of(path: str, kinds: Sequence[Kind]) -> Kind | None:
    """Returns the kind of a file or folder; None where there is none that could be."""
    if _is_folder(path):
        return next((kind for kind in kinds if kind.folders), None)
    files = [kind for kind in kinds if not kind.folders]
    by_ending = (kind for kind in files if path.lower().endswith(kind.endings))
    return next(by_ending, files[0] if len(files) == 1 else None)


def _in_folder(folder: str, kinds: Sequence[Kind], label: Label, bad: Bad) -> list[Item]:
    """Returns the folder itself where it is one of images, else what is in it and below it."""
    endings = tuple(ending for kind in kinds if not kind.folders for ending in kind.endings)

    def holds_files(place: str) -> bool:
        return bool(endings) and bool(loose_files(paths.path(place), endings))

    found: list[tuple[str, Kind]] = []
    for kind in kinds:
        if kind.folders and loose_files(paths.path(folder), kind.endings) and not holds_files(folder):
            return [(kind, Entry(path=folder, label=label))]
    for kind in kinds:
        names, faults = examples_below(paths.path(folder), '', kind.endings, kind.folders)
        files = [os.path.join(folder, name) for name in names]
        # A picture beside videos is no video.
        found += [(path, kind) for path in files if not (kind.folders and holds_files(path))]
        if not kind.folders or not endings:
            bad += [(os.path.join(folder, name), cause) for name, cause in faults]
    if not found:
        raise ValueError(f'{folder} holds none of what the model takes, {_endings(kinds)}')
    return [(kind, Entry(path=path, label=label)) for path, kind in sorted(found, key=lambda item: item[0])]


def _in_table(file: paths.Path, kinds: Sequence[Kind], label: Label, bad: Bad) -> list[Item]:
    """Returns the rows of a table."""
    endings = tuple(ending for kind in kinds for ending in kind.endings if not kind.folders)
    table = _read(file, endings, any(kind.folders for kind in kinds))
    disk = Disk(root=file.parent, endings=endings, folders=not endings)
    told = understand(table, split='', heads=(), group='', disk=disk)
    wrong = [*table.bad, *((table.rows[place][0], cause) for place, cause in told.causes.items())]
    bad += [(str(file.with_name(table.where(line))), cause) for line, cause in sorted(wrong)]
    items: list[Item] = []
    for place, (line, _) in enumerate(table.rows):
        if place in told.causes:
            continue
        named = os.path.expanduser(told.paths[place])
        path = named if paths.is_remote(named) else str(file.parent / named)
        kind = _kind_of(path, kinds)
        if kind is None:
            bad.append((path, f'is none of {_endings(kinds)} ({table.where(line)})'))
            continue
        start, end, first, stop = (0.0, math.inf, 0, None) if told.segments is None else told.segments[place]
        where = table.where(line)
        entry = Entry(path=path, label=label, where=where, start=start, end=end, first=first, stop=stop)
        items.append((kind, entry))
    return items


def _read(file: paths.Path, endings: tuple[str, ...], folders: bool) -> Table:
    """Reads a table with or without labels, of files or of folders: what makes its first path one that is there."""
    readings: list[Table] = []
    mistakes: list[ValueError] = []
    for heads in (('label',), (), ('noun', 'verb')):
        for of_folders in (False, True) if folders else (False,):
            try:
                table = read_table(file, heads=heads, endings=endings, folders=of_folders)
            except ValueError as error:
                mistakes.append(error)
                continue
            readings.append(table)
            column = next((place for place, name in enumerate(table.columns) if name in PATHS), None)
            if table.header or not table.rows or column is None:
                return table
            if _is_there(paths.join(file.parent, table.rows[0][1][column])):
                return table
    if not readings:
        raise mistakes[0]
    return readings[0]


def _endings(kinds: Sequence[Kind]) -> str:
    """Names the kinds with their endings."""
    return ' or '.join(
        f'{"folders of images" if kind.folders else "files"} ({", ".join(kind.endings)})' for kind in kinds
    )


# --- Windows ---


def _windows(item: Item, outcomes: Outcomes, window: float, every: float, bad: Bad) -> Iterator[Item]:
    """Yields the windows of an example; one that cannot be used as it is, since `ListedFiles` says why."""
    kind, entry = item
    if isinstance(outcomes[kind.name][entry.path], str):
        yield item
        return
    span = _span(kind, entry, outcomes)
    if span is None:
        bad.append((entry.path, 'tells no time, in which windows are counted'))
        return
    begin, end = span
    if begin >= end:
        yield item
        return
    if end - begin > MOST_WINDOWS * every:
        bad.append(
            (entry.path, f'claims {end - begin:.3g} s, more than {MOST_WINDOWS:,} windows every {every:g} s')
        )
        return
    count = max(math.ceil((end - begin - window - ROUNDING) / every), 0)
    for start in [*(begin + k * every for k in range(count)), max(end - window, begin)]:
        stop = min(start + window, end)
        yield kind, dataclasses.replace(entry, start=start, end=stop, first=0, stop=None)


def _span(kind: Kind, entry: Entry, outcomes: Outcomes) -> Span | None:
    """Returns where an example begins and ends in its file; None where there is no time."""
    found = outcomes[kind.name][entry.path]
    if isinstance(found, str) or found.seconds is None or kind.times is None:
        return None
    begin, end = entry.start, min(entry.end, found.seconds)
    if entry.first or entry.stop is not None:
        times = kind.times(found)
        begin = float(times[entry.first]) if entry.first < len(times) else math.inf
        end = float(times[entry.stop]) if entry.stop is not None and entry.stop < len(times) else end
    return begin, end


def _is_whole(entry: Entry) -> bool:
    return (entry.start, entry.end, entry.first, entry.stop) == (0.0, math.inf, 0, None)


def _grey(
    read: Callable[[Integer[np.ndarray, ' t']], UInt8[np.ndarray, 't h w 3']],
    indices: Integer[np.ndarray, ' t'],
) -> UInt8[np.ndarray, 't h w 1']:
    frames = read(indices)
    grey = cv2.cvtColor(rearrange(frames, 't h w c -> (t h) w c'), cv2.COLOR_RGB2GRAY)
    return grey.reshape(*frames.shape[:3], 1)
