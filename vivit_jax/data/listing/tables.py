"""Tables of any usual form, read into rows that know their line.

    path,label                      CSV with a header; or tabs, or semicolons
    {"path": "a.mp4", "label": 3}   JSON, an object a line, or one list of objects
    some folder/a.mp4 3             no header: the lists of Kinetics and SlowFast (commas and tabs too)
    some/folder 163 3               no header, the number of frames between: the lists of TSN and MMAction2

SlowFast: slowfast/datasets/DATASET.md (`path_to_video_1 label_1`). MMAction2: docs/en/user_guides/prepare_dataset.md
(`some/directory-1 163 1` for folders of frames, `some/path/000.mp4 1` for videos).
"""

import csv
import dataclasses
import functools
import io
import json
from collections.abc import Sequence
from typing import Any

from vivit_jax import paths

# What columns may be called. Hugging Face's metadata.csv has file_name.
PATHS = ('path', 'video_path', 'video', 'file', 'filename', 'file_name')
LABELS = ('label', 'class', 'class_name', 'category')
FRAMES = 'num_frames'
MOST_COLUMNS = 1_000
LONGEST = 10_000  # letters of a cell: many labels in one, or a path, are shorter
IDS = ('youtube_id', 'video_id')  # of published annotations, which name files in ways of their own


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table as it is written.

    Attributes:
        file: Where it was read.
        columns: Their names, in lower case.
        header: Whether the table itself names them.
        rows: (line, values) of each row, as many values as columns; an item's number where it is a JSON list.
        bad: (line, cause) of each row that could not be read so.
        unit: What rows are counted in, `line` or `item`.
    """

    file: paths.Path
    columns: list[str]
    header: bool
    rows: list[tuple[int, list[str]]]
    bad: list[tuple[int, str]]
    unit: str = 'line'

    def where(self, line: int) -> str:
        """Returns how a row is called in messages."""
        return f'{self._place} {line}'

    @functools.cached_property
    def _place(self) -> str:
        return f'{self.file.name}, {self.unit}'


def read_table(
    file: paths.Path, *, heads: Sequence[str], endings: tuple[str, ...], folders: bool = False
) -> Table:
    """Reads a table.

    Args:
        file: Where it is.
        heads: What columns of labels are called: tells a header from a row; (): it may have none.
        endings: Of the files it lists, in lower case: tells a row from a header.
        folders: It lists folders, whose names have no endings.

    Raises:
        ValueError: If the file is not there, not UTF-8, or no table; one line.
    """
    text = read_text(file)
    start = text[:1000].lstrip()
    try:
        if start[:1] in ('[', '{'):
            table = _read_objects(file, text, is_list=start[0] == '[')
        else:
            table = _read_lines(file, text, heads, endings, folders)
    except (csv.Error, RecursionError) as error:
        raise ValueError(f'{file} is no table: {error}') from error
    wrong = [(line, cause) for line, row in table.rows if (cause := _no_text(row))]
    if wrong:
        broken = {line for line, _ in wrong}
        rows = [(line, row) for line, row in table.rows if line not in broken]
        table = dataclasses.replace(table, rows=rows, bad=sorted([*table.bad, *wrong]))
    if not table.rows and not table.bad:
        raise ValueError(f'{file} has no rows under its header {shown(table.columns, ",")!r}')
    return table


def no_text(value: str) -> str:
    """Says why a cell can be neither a name nor a number; '' where it can."""
    if len(value) > LONGEST:
        return f'a value of {len(value):,} letters, more than {LONGEST:,}: {short(value)}'
    if not value.isprintable() and ('\0' in value or any('\ud800' <= letter <= '\udfff' for letter in value)):
        return f'{short(value)} holds a NUL or half a letter'
    return ''


def _no_text(row: Sequence[str]) -> str:
    return next(filter(None, map(no_text, row)), '')


def _check_columns(file: paths.Path, columns: Sequence[str]) -> None:
    if len(columns) > MOST_COLUMNS:
        raise ValueError(f'{file} has {len(columns):,} columns, more than {MOST_COLUMNS:,}: it is no table')
    for name in columns:
        if cause := no_text(name):
            raise ValueError(f'{file}: the name of a column is {cause}')


def read_text(file: paths.Path) -> str:
    """Returns a file's text, without a byte order mark; a ValueError of one line where it is none in UTF-8."""
    try:
        if file.exists() and not (file.is_file() or file.is_dir()):  # a pipe would be waited on for ever
            raise ValueError(f'table {file} cannot be read: it is no regular file')
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f'table {file} cannot be read: {error.strerror}') from error
    try:
        return content.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        at = error.start
        line = content.count(b'\n', 0, at) + 1
        raise ValueError(
            f'{file} is not a table in UTF-8: byte {at} (0x{content[at]:02x}), in line {line}, is none of its '
            'letters; save it as UTF-8'
        ) from error


def _read_lines(
    file: paths.Path, text: str, heads: Sequence[str], endings: tuple[str, ...], folders: bool
) -> Table:
    first = next((line.strip() for line in io.StringIO(text, newline=None) if line.strip(' \t\r\n,;')), '')
    delimiter, columns, header = _sniff(file, first, heads, endings, folders)
    _check_columns(file, columns)
    rows, bad = (
        _by_spaces(text, columns) if delimiter == ' ' else _by_delimiter(file, text, delimiter, columns)
    )
    if header:
        rows = rows[1:]
    elif folders and len(heads) == 1 and delimiter == ' ':
        # The number of frames is told from the end of a name by standing in every row.
        counted = [row[0].rsplit(None, 1) for _, row in rows]
        if all(len(parts) == 2 and _is_number(parts[1]) for parts in counted):
            columns = ['path', FRAMES, heads[0]]
            rows = [(line, [*parts, row[1]]) for (line, row), parts in zip(rows, counted, strict=True)]
    return Table(file=file, columns=columns, header=header, rows=rows, bad=bad)


def _sniff(
    file: paths.Path, first: str, heads: Sequence[str], endings: tuple[str, ...], folders: bool
) -> tuple[str, list[str], bool]:
    """Returns delimiter, columns and whether there is a header, from the first line that says something."""
    split = {delimiter: next(csv.reader([first], delimiter=delimiter), []) for delimiter in '\t,;'}
    split[' '] = first.rsplit(None, len(heads))
    for delimiter, values in split.items():
        path, *labels = [value.strip().lower() for value in values] or ['']
        likely = path.endswith(endings) or '/' in path or (folders and all(map(_is_number, labels)))
        if likely and (labels or not heads) and not any(label.endswith(endings) for label in labels):
            columns = ['path', *heads]
            if len(heads) == 1 and len(labels) == 3 and all(map(_is_number, labels[1:])):
                columns += ['agree', 'disagree']  # Moments in Time's counts of workers
            elif len(heads) == 1 and len(labels) == 2 and folders and all(map(_is_number, labels)):
                columns = ['path', FRAMES, *heads]
            if len(columns) == len(values):
                return delimiter, columns, False
    words = {*PATHS, *IDS, *LABELS, *(head.lower() for head in heads)}
    split[' '] = first.split()
    headers = {delimiter: [value.strip().lower() for value in values] for delimiter, values in split.items()}
    delimiter = max(headers, key=lambda delimiter: len(words.intersection(headers[delimiter])))
    if not words.intersection(headers[delimiter]):
        raise ValueError(
            f'{file}: its first line, {short(first)}, is neither a header, as path,{",".join(heads)}, nor a '
            f'path and its {", ".join(heads)}'
        )
    columns = headers[delimiter]
    if delimiter == ' ' and columns[0] not in PATHS:
        raise ValueError(f'{file}: between spaces the path must come first; the header is {short(first)}')
    return delimiter, columns, True


def _by_delimiter(
    file: paths.Path, text: str, delimiter: str, columns: list[str]
) -> tuple[list[tuple[int, list[str]]], list[tuple[int, str]]]:
    rows, bad = [], []
    width = len(columns)
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, skipinitialspace=True)
    last = 0
    try:
        for row in reader:
            line, last = last + 1, reader.line_num
            if len(row) == width:
                rows.append((line, [value.strip() for value in row]))
            elif any(value.strip() for value in row):
                told = f'{len(row)} values, {short(delimiter.join(row))}'
                cause = f'{told}, instead of {width}, {shown(columns, ",")}'
                if last > line:
                    cause += f'; lines {line} to {last} are one row: a quote is not closed'
                bad.append((line, cause))
    except csv.Error as error:
        raise ValueError(f'{file}, line {last + 1}: {error}; is there a quote that is not closed?') from error
    return [(line, row) for line, row in rows if any(row)], bad


def _by_spaces(text: str, columns: list[str]) -> tuple[list[tuple[int, list[str]]], list[tuple[int, str]]]:
    rows, bad = [], []
    for line, content in enumerate(io.StringIO(text, newline=None), 1):
        row = content.strip().rsplit(None, len(columns) - 1)
        if len(row) == len(columns):
            rows.append((line, row))
        elif row:
            bad.append((line, f'{short(content.strip())} must be {" ".join(columns)}'))
    return rows, bad


def _read_objects(file: paths.Path, text: str, is_list: bool) -> Table:
    objects: list[tuple[int, Any]] = []
    bad = []
    if is_list:
        objects = list(enumerate(read_json(file, text), 1))
    else:
        for line, content in enumerate(io.StringIO(text, newline=''), 1):
            try:
                if content.strip():
                    objects.append((line, json.loads(content)))
            except (ValueError, RecursionError) as error:
                bad.append((line, f'is not JSON: {error}'))
        if not objects:
            raise ValueError(f'{file} must be a list of JSON objects, or one object a line: {bad[0][1]}')
    unit = 'item' if is_list else 'line'
    bad += [
        (line, f'{short(str(item))} is no JSON object')
        for line, item in objects
        if not isinstance(item, dict)
    ]
    items = [
        (line, {key.lower(): value for key, value in item.items()})
        for line, item in objects
        if isinstance(item, dict)
    ]
    columns = list(dict.fromkeys(key for _, item in items for key in item))
    _check_columns(file, columns)
    rows = [(line, [_text(item.get(column)) for column in columns]) for line, item in items]
    return Table(file=file, columns=columns, header=True, rows=rows, bad=sorted(bad), unit=unit)


def read_json(file: paths.Path, text: str) -> Any:
    """Returns what a JSON file holds; a ValueError that names the file where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{file} is not JSON: {error}') from error


def _text(value: Any) -> str:
    """Returns a JSON value as the cell of a table, several labels as `a|b`."""
    if isinstance(value, list):
        return '|'.join('' if one is None else str(one).strip() for one in value)
    return '' if value is None else str(value).strip()


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def shown(columns: Sequence[str], between: str = ', ') -> str:
    """Lists names of columns, the first of many."""
    names = [name if len(name) <= 40 else f'{name[:39]}…' for name in columns[:12]]
    return between.join(names) + (f'{between}… ({len(columns)} in all)' if len(columns) > 12 else '')


def short(text: str, length: int = 80) -> str:
    """Returns a text in quotes, cut off where it is long."""
    return repr(text if len(text) <= length else text[: length - 1] + '…')
