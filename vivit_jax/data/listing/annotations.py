"""What the columns of a table mean: one's own, or those of published annotations, which are read as they are.

Own tables have a path, labels, and where wanted a part of the file: `start,end` in seconds, `start_frame,stop_frame`
counted from 0, the frame after the last one being the stop.

- Kinetics-400/600/700 (train.csv, val.csv or validate.csv): label,youtube_id,time_start,time_end,split[,is_cc]. Files
  are cut to these times already, and called ID_000010_000020.mp4 or ID.mp4
  (github.com/cvdfoundation/kinetics-dataset, ActivityNet's crawler).
- Something-Something v2 (something-something-v2-train.json, train.json): id, label, template, placeholders; the class
  is the template without brackets, numbered in something-something-v2-labels.json or labels.json; files ID.webm.
- EPIC-Kitchens-100 (EPIC_100_train.csv): video_id, start_timestamp, stop_timestamp, start_frame, stop_frame,
  verb_class, noun_class …; names in EPIC_100_noun_classes.csv (id,key,instances,category). Frames are numbered as
  the published images are, from frame_0000000001.jpg on (github.com/epic-kitchens/epic-kitchens-100-annotations,
  README and issue 11), and the stop frame is the last one (epic-kitchens-55-lib, issue 30).
- Moments in Time (trainingSet.csv, no header): path, label, workers that agree and that do not; files in training/
  and validation/, classes numbered in moments_categories.txt, `label,index` a line (its README.txt).
"""

import dataclasses
import functools
import math
import re
import reprlib
from collections.abc import Sequence

from vivit_jax import paths
from vivit_jax.data.files import stores
from vivit_jax.data.listing.folders import examples_by_name
from vivit_jax.data.listing.splits import SPLITS
from vivit_jax.data.listing.tables import (
    LABELS,
    PATHS,
    Table,
    no_text,
    read_json,
    read_table,
    read_text,
    shown,
)

_SHORT = reprlib.Repr()
_SHORT.maxstring = 60
DIGITS = 40  # of a time or a number; no clock has more

Segment = tuple[
    float, float, int, int | None
]  # start and end in seconds, first frame and the one after the last


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
    """What a table tells, a list for each thing told, each as long as the table.

    Attributes:
        table: Where it stands.
        paths: Files, relative to the data's folder.
        cells: Texts of the labels, a list for each head.
        splits: Texts of the splits, None where none are told.
        groups: Texts of the groups, None where there is no such column.
        segments: Parts of the files, None where they are whole.
        causes: Why a row cannot be used.
        names: Classes of each head, and the file that tells them; ([], '') where none does.
    """

    table: Table
    paths: list[str]
    cells: list[list[str]]
    splits: list[str] | None
    groups: list[str] | None
    segments: list[Segment] | None
    causes: dict[int, str]
    names: list[tuple[list[str], str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Disk:
    """The files of a data set.

    Attributes:
        root: Folder that holds them.
        endings: Of files that count, lower case.
        folders: Examples are folders of such files.
    """

    root: paths.Path
    endings: tuple[str, ...]
    folders: bool

    @functools.cached_property
    def by_name(self) -> dict[str, str]:
        """Paths by name without folder and ending, found by walking the root once."""
        return examples_by_name(self.root, self.endings, self.folders)


def form_of(table: Table) -> str:
    """Tells whose columns a table has: `own`, `kinetics`, `ssv2`, `epic` or `moments`.

    Raises:
        ValueError: If they name no file.
    """
    columns = set(table.columns)
    if {'path', 'agree', 'disagree'} <= columns and not table.header:
        return 'moments'
    if columns.intersection(PATHS):
        return 'own'
    if {'youtube_id', 'time_start', 'time_end'} <= columns:
        return 'kinetics'
    if {'video_id', 'start_timestamp', 'stop_timestamp'} <= columns:
        return 'epic'
    if {'id', 'template'} <= columns:
        return 'ssv2'
    raise ValueError(
        f'{table.file} has no column of files: it has {shown(table.columns)}, and must have one of '
        f'{", ".join(PATHS)}, or be an annotation of Kinetics, Something-Something v2, EPIC-Kitchens-100 or Moments '
        'in Time as published'
    )


def label_columns(table: Table, heads: Sequence[str]) -> list[int] | None:
    """Returns where the labels of each head stand; None where the table has none at all.

    Raises:
        ValueError: If only some heads have a column, or a column stands there twice.
    """
    places = []
    for head in heads:
        choices = [head.lower(), *(LABELS if head.lower() == LABELS[0] else ())]
        if {'video_id', 'start_timestamp'} <= set(table.columns):
            choices.insert(0, f'{head.lower()}_class')  # beside it stands the word that was said
        if {'id', 'template'} <= set(table.columns):
            choices = ['template']  # its label is the sentence with all words filled in
        place = next((table.columns.index(choice) for choice in choices if choice in table.columns), None)
        if place is not None and table.columns.count(table.columns[place]) > 1:
            raise ValueError(f'{table.file} has two columns {table.columns[place]!r}')
        places.append(place)
    if places.count(None) == len(places):
        return None
    missing = [head for head, place in zip(heads, places, strict=True) if place is None]
    if missing:
        raise ValueError(no_labels(table, missing))
    return [place for place in places if place is not None]


def no_labels(table: Table, heads: Sequence[str]) -> str:
    """Says that a table has no column for some heads."""
    return (
        f'{table.file} has no column {" nor ".join(heads)}: it has {shown(table.columns)}; say which hold the '
        'labels with --config.data.heads=COLUMN,…'
    )


def understand(table: Table, *, split: str, heads: Sequence[str], group: str, disk: Disk) -> Rows:
    """Reads what a table means.

    Args:
        table: Whose columns are those of `PATHS` or of one of the annotations above.
        split: What it lists; '' where it lists all splits.
        heads: Names of the columns of labels; (): labels do not matter.
        group: Name of a column, or ''.
        disk: Where the files are.

    Raises:
        ValueError: If the columns do not make sense.
    """
    form = form_of(table)
    labels = label_columns(table, heads) if heads else []
    if labels is None:
        raise ValueError(no_labels(table, heads))
    values = list(zip(*(row for _, row in table.rows), strict=True)) or [()] * len(table.columns)
    told = {name: values[place] for place, name in reversed(list(enumerate(table.columns)))}
    cells = [list(values[place]) for place in labels]
    if form == 'ssv2':
        cells = [[text.replace('[', '').replace(']', '') for text in texts] for texts in cells]
    causes: dict[int, str] = {}
    for head, texts in zip(heads, cells, strict=True):
        _empty_where_broken(head, texts, causes)
    if form == 'own':
        column = next(name for name in PATHS if name in told)
        if table.columns.count(column) > 1:
            raise ValueError(f'{table.file} has two columns {column!r}')
        paths = _own_paths(told[column], causes)
    elif form == 'moments':
        inside = next((name for name in SPLITS.get(split, ()) if (disk.root / name).is_dir()), '')
        paths = [f'{inside}/{path}' if inside else path for path in told['path']]
    else:
        paths = _paths_by_name(form, told, disk, causes)
    beside = (table.file.parent, disk.root, disk.root / 'annotations')
    return Rows(
        table=table,
        paths=paths,
        cells=cells,
        splits=list(told['split']) if 'split' in told and not split else None,
        groups=list(told[group.lower()]) if group.lower() in told else None,
        segments=_segments(form, told, disk.folders, causes),
        causes=causes,
        names=[_class_names(form, head, len(heads), beside) for head in heads],
    )


def _empty_where_broken(head: str, texts: list[str], causes: dict[int, str]) -> None:
    """Empties the labels that go over several lines, so that they make no classes."""
    broken = {text for text in set(texts) if '\n' in text}
    for place, text in enumerate(texts if broken else []):
        if text in broken:
            texts[place] = ''
            causes[place] = f'{head}={_SHORT.repr(text)} goes over several lines: is a quote not closed?'


def _own_paths(cells: Sequence[str], causes: dict[int, str]) -> list[str]:
    paths = list(cells)
    for place, path in enumerate(paths):
        if not path:
            causes[place] = 'the path is empty'
        elif not path.isprintable() and ('\n' in path or '\0' in path):
            causes[place] = f'path={_SHORT.repr(path)} goes over several lines: is a quote not closed?'
        elif './' in path or '//' in path or path[-1] == '/':
            paths[place] = stores.name(path)  # so that one file has one name
    return paths


def _paths_by_name(
    form: str, told: dict[str, tuple[str, ...]], disk: Disk, causes: dict[int, str]
) -> list[str]:
    """Finds the files that published annotations name without folder and ending."""
    if form == 'kinetics':
        times = zip(told['youtube_id'], told['time_start'], told['time_end'], strict=True)
        names = [[f'{name}_{_six(start)}_{_six(end)}', name] for name, start, end in times]
    else:
        names = [[name] for name in told['id' if form == 'ssv2' else 'video_id']]
    paths = []
    for place, choices in enumerate(names):
        path = next((disk.by_name[name] for name in choices if name in disk.by_name), '')
        if not path:
            what = 'folder' if disk.folders else 'file'
            causes[place] = f'no such {what} in {disk.root}: {" or ".join(name[:60] for name in choices)}'
        paths.append(path)
    return paths


def _six(seconds: str) -> str:
    """Returns whole seconds in six digits, as they stand in file names."""
    return f'{int(seconds):06d}' if seconds.isdecimal() and len(seconds) < DIGITS else seconds


def _segments(
    form: str, told: dict[str, tuple[str, ...]], folders: bool, causes: dict[int, str]
) -> list[Segment] | None:
    """Returns the parts of the files: by frames for folders of images, else by time where there is one."""
    if form not in ('own', 'epic'):
        return None  # those files are cut already
    times = ('start_timestamp', 'stop_timestamp') if form == 'epic' else ('start', 'end')
    frames = ('start_frame', 'stop_frame')
    by_time, by_frames = any(name in told for name in times), any(name in told for name in frames)
    if not by_time and not by_frames:
        return None
    names = frames if by_frames and (folders or not by_time) else times
    nothing = ('',) * len(next(iter(told.values())))
    segments: list[Segment] = []
    for place, (start, stop) in enumerate(
        zip(told.get(names[0], nothing), told.get(names[1], nothing), strict=True)
    ):
        try:
            if names is frames:
                segments.append(_frames(start, stop, from_one=form == 'epic'))
            else:
                segments.append(_times(start, stop))
        except ValueError as error:
            told_here = f'{names[0]}={_SHORT.repr(start)}, {names[1]}={_SHORT.repr(stop)}'
            causes.setdefault(place, f'{told_here}: {error}')
            segments.append((0.0, math.inf, 0, None))
    return segments


def _times(start: str, stop: str) -> Segment:
    begins, ends = (_seconds(start) if start else 0.0), (_seconds(stop) if stop else math.inf)
    if not begins < ends:
        raise ValueError('it must end after it starts')
    return begins, ends, 0, None


def _seconds(text: str) -> float:
    """Reads seconds, `83.5`, or hours, minutes and seconds, `00:01:23.5`."""
    seconds = 0.0
    for part in text.split(':'):
        if len(part) > DIGITS or not re.fullmatch(r'[0-9]*\.?[0-9]+(e-?[0-9]+)?|[0-9]+\.', part):
            raise ValueError('must be seconds, as 83.5 or 00:01:23.5')
        seconds = 60 * seconds + float(part)
    return seconds


def _frames(start: str, stop: str, from_one: bool) -> Segment:
    for text in (start, stop):
        if len(text) > DIGITS or (text and not re.fullmatch(r'[0-9]+(\.0+)?', text)):
            raise ValueError('must be numbers of frames')
    first = int(start.partition('.')[0]) if start else int(from_one)
    after = int(stop.partition('.')[0]) if stop else None
    if from_one:
        first, after = max(first - 1, 0), after  # from 1 up to and with the stop is from 0 up to before it
    if after is not None and after <= first:
        raise ValueError('it must stop after it starts')
    return 0.0, math.inf, first, after


def _class_names(form: str, head: str, heads: int, folders: Sequence[paths.Path]) -> tuple[list[str], str]:
    """Looks for the file that tells a head's classes, and reads it."""
    own = 'classes.txt' if heads == 1 else f'{head}_classes.txt'
    published = {
        'ssv2': ('something-something-v2-labels.json', 'labels.json'),
        'epic': (f'EPIC_100_{head}_classes.csv', f'EPIC_100_{head}_classes_v2.csv'),
        'moments': ('moments_categories.txt',),
    }
    for name in (own, *published.get(form, ())):
        for folder in folders:
            if (folder / name).is_file():
                return _read_names(form, folder / name, own=name == own), name
    return [], ''


def _read_names(form: str, file: paths.Path, own: bool) -> list[str]:
    """Returns the names of classes by their numbers, which a file gives as (name, number) or by their order."""
    text = read_text(file)
    pairs: list[tuple[str, str]]
    if own:
        pairs = [(line.strip(), str(number)) for number, line in enumerate(text.rstrip().splitlines())]
    elif form == 'ssv2':
        content = read_json(file, text)
        pairs = [(name, str(number)) for name, number in content.items()] if isinstance(content, dict) else []
    elif form == 'epic':
        table = read_table(file, heads=('id', 'key'), endings=())
        columns = [table.columns.index(name) for name in ('key', 'id') if name in table.columns]
        if len(columns) < 2:
            raise ValueError(f'{file} must have the columns id and key: it has {shown(table.columns)}')
        pairs = [(row[columns[0]], row[columns[-1]]) for _, row in table.rows]
    else:
        lines = [line.rpartition(',') for line in text.splitlines() if line.strip()]
        pairs = [(name.strip(), number.strip()) for name, _, number in lines]
    numbers = dict(pairs)
    names = {number: name for name, number in numbers.items()}
    order = [str(number) for number in range(len(pairs))]
    if cause := next(filter(None, (no_text(name) for name in numbers)), ''):
        raise ValueError(f'{file}: {cause}')
    if not pairs or '' in numbers or len(numbers) < len(pairs) or names.keys() != set(order):
        raise ValueError(f'{file} must name each class once, and number them from 0 without a gap')
    return [names[number] for number in order]
