"""Video files on disk, in one folder a class or listed in a table, read frame by exact frame.

    ROOT/train/CLASS/*.mp4, ROOT/validation/CLASS/*.mp4     the folders name the classes
    ROOT/train.csv, ROOT/validation.csv                     path,label or path,noun,verb

Opening a split looks into every file once; pixels are decoded when a record is read.
"""

import csv
import functools
import hashlib
import json
import pathlib
import warnings
from collections.abc import Sequence
from concurrent import futures

from vivit_jax.data.decoding import probe, read_frames
from vivit_jax.data.record import Record

ENDINGS = ('.3gp', '.avi', '.flv', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.ogv', '.webm', '.wmv')
PROBING_THREADS = 16
FORMS = 'ROOT/train/CLASS/*.mp4 or ROOT/train.csv (path,label)'

Listed = list[tuple[str, int | tuple[int, ...]]]


class VideoFiles:
    """A source of video files; files that cannot be read are left out, and said.

    Attributes:
        class_names: Of all splits alike: sorted names, or numbers from '0'; those of several heads one after
            another.
        bad: (path, cause) of each file that was left out.
        digest: Of classes, names, labels and lengths.
    """

    def __init__(
        self,
        split: str,
        *,
        root: str | None,
        heads: tuple[str, ...] = (),
        num_classes: tuple[int, ...] = (),
    ):
        """Lists the files of a split and looks into each of them.

        Args:
            split: Name of a folder or table in `root`. A table has the column `path` (relative to `root`) and
                one column of class numbers or names a head; class names are those of all tables in `root`,
                or the folders in `root/train` (of the split, where there is no train).
            root: Folder that holds the data.
            heads: Columns of a table that hold the labels, in this order; (): all but `path`, as they stand.
            num_classes: Classes of each head, for tables of class numbers; (): up to the largest number in any
                table.

        Raises:
            ValueError: If the data is not there or contradicts itself, or no file can be read; one line.
        """
        if root is None:
            raise ValueError(
                f'config.data.root is not set: give the folder that holds the videos, as {FORMS}; '
                '--config.data.root=ROOT'
            )
        self._root = pathlib.Path(root).expanduser()
        if _is_table(self._root, split):
            self.class_names, listed = _from_tables(self._root, split, heads, num_classes)
        else:
            self.class_names, listed = _from_folders(self._root, split)
        with futures.ThreadPoolExecutor(PROBING_THREADS) as pool:
            probed = list(pool.map(probe, (str(self._root / name) for name, _ in listed)))
        self.bad = [
            (name, cause) for (name, _), cause in zip(listed, probed, strict=True) if isinstance(cause, str)
        ]
        self._examples = [
            (name, label, *found)
            for (name, label), found in zip(listed, probed, strict=True)
            if not isinstance(found, str)
        ]
        left_out = ', '.join(f'{name} ({cause})' for name, cause in self.bad[:5])
        left_out += ', …' if len(self.bad) > 5 else ''
        if not self._examples:
            raise ValueError(
                f'none of the {len(listed)} files of {split!r} in {root} can be read: {left_out}'
            )
        if self.bad:
            warnings.warn(
                f'{len(self.bad)} of {len(listed)} files of {split!r} in {root} cannot be read and are left '
                f'out: {left_out}',
                stacklevel=2,
            )
        manifest = [self.class_names, [example[:3] for example in self._examples]]
        self.digest = hashlib.sha256(json.dumps(manifest).encode()).hexdigest()

    def __len__(self) -> int:
        """Returns the number of videos that can be read."""
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        """Returns the record at `index`, with frames uint8 `[t h w 3]`, RGB, upright."""
        if not 0 <= index < len(self._examples):
            raise IndexError(f'video files: index {index} must be in [0, {len(self._examples)})')
        name, label, num_frames, size = self._examples[index]
        read = functools.partial(read_frames, str(self._root / name), num_frames, size)
        return Record(name=name, label=label, num_frames=num_frames, frame_size=size, read=read)


def _is_table(root: pathlib.Path, split: str) -> bool:
    """Tells whether a split is listed in a table, else it lies in folders."""
    if not root.is_dir():
        raise ValueError(f'config.data.root={str(root)!r} is not a folder: it must hold {FORMS}')
    table, train = root / f'{split}.csv', root / 'train.csv'
    if not table.is_file() and not (root / split).is_dir():
        there = sorted(entry.name for entry in root.iterdir() if entry.is_dir() or entry.suffix == '.csv')
        found = ', '.join(there[:10]) or 'neither folders nor tables'
        raise ValueError(f'{root} has no split {split!r}, neither {split}/ nor {split}.csv; it has {found}')
    if (train.is_file() or (root / 'train').is_dir()) and train.is_file() != table.is_file():
        one, other = ('train', split) if train.is_file() else (split, 'train')
        raise ValueError(f'{root} has {one}.csv but not {other}.csv: give all splits as tables, or none')
    return table.is_file()


def _from_folders(root: pathlib.Path, split: str) -> tuple[list[str], Listed]:
    def folders(name: str) -> list[str]:
        inside = (root / name).iterdir() if (root / name).is_dir() else ()
        return sorted(entry.name for entry in inside if entry.is_dir())

    own = folders(split)
    classes = folders('train') or own
    labels = {name: label for label, name in enumerate(classes)}
    listed: Listed = []
    for name in own:
        if name not in labels:
            raise ValueError(f'class folder {root / split / name} is not among the {len(classes)} of train')
        files = sorted(file.name for file in (root / split / name).iterdir())
        listed += [
            (f'{split}/{name}/{file}', labels[name])
            for file in files
            if file.lower().endswith(ENDINGS) and not file.startswith('.')
        ]
    if not listed:
        raise ValueError(f'{root / split} has no videos in CLASS/*: endings are {", ".join(ENDINGS)}')
    return classes, listed


def _from_tables(
    root: pathlib.Path, split: str, wanted: Sequence[str], sizes: Sequence[int]
) -> tuple[list[str], Listed]:
    file = root / f'{split}.csv'
    tables = {other.name: _read_table(other) for other in sorted(root.glob('*.csv'))}
    header, rows = tables[file.name]
    heads = [column for column in header if column != 'path']
    if header.count('path') != 1 or not heads or not rows:
        raise ValueError(
            f'{file}: {len(rows)} rows under the header {",".join(header)!r}; it must be path,label or path '
            'and one column a head, as path,noun,verb'
        )
    if wanted and set(wanted) != set(heads):
        raise ValueError(
            f'{file} has the columns {", ".join(heads)} but data.heads={tuple(wanted)}: they must agree'
        )
    heads = list(wanted) or heads
    if sizes and len(sizes) != len(heads):
        raise ValueError(f'{file}: num_classes={tuple(sizes)} must be one each of {", ".join(heads)}')
    tables = {name: table for name, table in tables.items() if 'path' in table[0]}
    for name, (columns, _) in tables.items():
        if columns != header:
            raise ValueError(f'{root / name}: header {",".join(columns)!r} must be {",".join(header)!r}')
    names: list[str] = []
    labels = []
    for head, size in zip(heads, sizes or [0] * len(heads), strict=True):
        column = header.index(head)
        cells = [(n, line, row[column]) for n, (_, lines) in tables.items() for line, row in lines]
        classes, numbers = _classes(root, head, cells, size)
        names += classes
        labels.append([numbers[row[column]] for _, row in rows])
    paths = [row[header.index('path')] for _, row in rows]
    return names, list(zip(paths, zip(*labels, strict=True) if len(heads) > 1 else labels[0], strict=True))


def _read_table(file: pathlib.Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Returns the header and (line, values) of each row; a table that lists no paths has none."""
    try:
        with file.open(newline='', encoding='utf-8-sig') as lines:
            reader = csv.reader(lines, skipinitialspace=True)
            header = next(reader, [])
            rows = [(reader.line_num, row) for row in reader if row] if 'path' in header else []
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f'{file} is not a table in UTF-8: {error}') from error
    for line, row in rows:
        if len(row) != len(header) or '' in row:
            raise ValueError(f'{file}, line {line}: {",".join(row)!r} must give {",".join(header)}')
    return header, rows


def _classes(
    root: pathlib.Path, head: str, cells: list[tuple[str, int, str]], size: int
) -> tuple[list[str], dict[str, int]]:
    """Returns the names of a head's classes, and the number of each text in its (file, line, text)."""
    texts = {text for _, _, text in cells}
    if not any(text.lstrip('-').isdecimal() for text in texts):
        names = sorted(texts)
        return names, {name: number for number, name in enumerate(names)}
    limit = size or float('inf')
    for file, line, text in cells:
        if not text.isdecimal() or int(text) >= limit:
            raise ValueError(f'{root / file}, line {line}: {head}={text!r} must be a number in [0, {limit})')
    numbers = {text: int(text) for text in texts}
    return [str(number) for number in range(size or max(numbers.values()) + 1)], numbers
