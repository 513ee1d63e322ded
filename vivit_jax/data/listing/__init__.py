"""Which examples a data set has, with their labels: told by folders or tables, before any file is looked into."""

import dataclasses
import math
from typing import Any

from vivit_jax import paths
from vivit_jax.data.listing.annotations import Disk, Rows, label_columns, understand
from vivit_jax.data.listing.folders import examples_by_class, files_in, loose_files, split_folders, subfolders
from vivit_jax.data.listing.labels import one_hot
from vivit_jax.data.listing.rows import draw_rows, label_rows, split_rows
from vivit_jax.data.listing.split_tables import ALL, named_tables, tables_in
from vivit_jax.data.listing.splits import SPLITS, draw_validation, in_order, no_split, split_name
from vivit_jax.data.listing.tables import read_table
from vivit_jax.data.record import Label


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Where a data set's examples are told.

    Attributes:
        root: Folder that holds the data.
        csv: A table of all splits, `FILE`, or one a split, `SPLIT=FILE,SPLIT=FILE`; '': as found in the root.
        heads: Columns that hold the labels, in this order.
        num_classes: Classes of each head; (): as many as the data shows.
        several_labels: An example may have several labels, `a|b`.
        validation_share: Share of the examples that validate where no split is given, in (0, 1).
        group: Column whose examples of equal value stay in one split; '': none.
        seed: Of the split.
    """

    root: str | None = None
    csv: str = ''
    heads: tuple[str, ...] = ('label',)
    num_classes: tuple[int, ...] = ()
    several_labels: bool = False
    validation_share: float = 0.2
    group: str = ''
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One example as it is listed.

    Attributes:
        path: File (or folder of frames), relative to the listing's folder or absolute.
        label: Class indices, or one float a class.
        where: The row that lists it, as `train.csv, line 12`; '' for one found in a folder.
        start: Where in the file it begins, in seconds.
        end: Where it ends, in seconds.
        first: Its first frame, counted from 0.
        stop: The frame after its last one; None: to the end of the file.
    """

    path: str
    label: Label
    where: str = ''
    start: float = 0.0
    end: float = math.inf
    first: int = 0
    stop: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """The examples of one split, in a fixed order.

    Attributes:
        folder: What paths are relative to.
        class_names: Of all splits alike, those of several heads one after another.
        head_sizes: Classes of each head.
        entries: The examples.
        bad: (path or row, cause) of each that cannot be used: no label, a label out of range, a broken row.
        splits: Names of all splits there are.
        note: How examples came into this split, where nobody said: a line for the log; '' where somebody did.
    """

    folder: paths.Path
    class_names: list[str]
    head_sizes: tuple[int, ...]
    entries: list[Entry]
    bad: list[tuple[str, str]]
    splits: tuple[str, ...]
    note: str = ''


def list_examples(split: str, *, layout: Layout, endings: tuple[str, ...], folders: bool = False) -> Listing:
    """Lists the examples of a split; no file is opened but tables.

    What may be there, of which the first that is counts:

        layout.csv                              one table of all splits, or one a split
        ROOT/train.csv, ROOT/validation.csv     tables (see `tables`) or published annotations (see `annotations`)
        ROOT/train/CLASS/*, ROOT/validation/CLASS/*
        ROOT/CLASS/*

    A validation split that is not given is drawn from what trains (see `splits.draw_validation`).

    Args:
        split: `train`, `validation`, `test`, or a name of one's own.
        layout: Where the examples are told.
        endings: Of the files that are examples, lower case with the dot.
        folders: An example is a folder of such files.

    Raises:
        ValueError: If the data is not there or contradicts itself; one line. A row that is broken is no error but
            stands in `bad`.
    """
    split = split_name(split)
    root = None if layout.root is None else paths.expanded(layout.root)
    example = ('EXAMPLE/*' if folders else '*') + ('.mp4' if '.mp4' in endings else endings[0])
    forms = (
        f'ROOT/train/CLASS/{example}, ROOT/CLASS/{example} or ROOT/train.csv (path,{",".join(layout.heads)})'
    )
    _check(layout)
    if root is None and not layout.csv:
        raise ValueError(
            f'config.data.root is not set: give the folder that holds the data, as {forms}, with '
            '--config.data.root=ROOT, or a table with --config.data.csv=FILE (docs/data.md)'
        )
    if root is not None and not root.is_dir():
        raise ValueError(f'config.data.root={layout.root!r} is not a folder: it must hold {forms}')
    if layout.csv:
        tables = named_tables(layout.csv, root)
        return _from_tables(split, tables, layout, root=root, endings=endings, folders=folders)
    assert root is not None
    tables = tables_in(root, split)
    given = split_folders(root, split)
    if tables:
        untold = {'train', 'validation', split} & (given.keys() - tables.keys())
        if untold:
            has = ', '.join(table.name for table in tables.values())
            raise ValueError(
                f'{root} has {has} but no table of {given[min(untold)]}/: give all splits as tables, or none'
            )
        return _from_tables(split, tables, layout, root=root, endings=endings, folders=folders)
    return _from_folders(split, given, layout, root=root, endings=endings, folders=folders)


def _check(layout: Layout) -> None:
    if not 0 < layout.validation_share < 1:
        raise ValueError(f'config.data.validation_share={layout.validation_share}: must be in (0, 1)')
    if layout.num_classes and len(layout.num_classes) != len(layout.heads):
        raise ValueError(
            f'config.data.num_classes={layout.num_classes} must be one each of config.data.heads={layout.heads}'
        )


def _from_folders(
    split: str,
    given: dict[str, str],
    layout: Layout,
    *,
    root: paths.Path,
    endings: tuple[str, ...],
    folders: bool,
) -> Listing:
    """Lists class folders, those of the split or, where there are no splits, those of the root."""
    drawn = 'validation' not in given and (not given or 'train' in given)
    splits = in_order([*(given or ['train']), *(['validation'] if drawn else [])])
    if given and split not in splits:
        raise ValueError(no_split(split, splits, str(root)))
    folder = given.get(split, given.get('train', ''))
    train = given.get('train', folder)
    shape = f'CLASS/{"EXAMPLE/" if folders else ""}*'
    names, examples, bad = examples_by_class(root, folder, train, endings, folders)
    if not examples and (loose := loose_files(root / folder, endings)):
        raise ValueError(_without_classes(root / folder, loose, endings, folders))
    if not examples:
        raise ValueError(
            f'{root / folder} has no examples as {shape}: endings are {", ".join(endings)}; {_there(root)}'
        )
    if len(names) == 1 and (
        not given or all(path.count('/') > 1 + folders + bool(folder) for path, _ in examples)
    ):
        raise ValueError(
            f'{root / train} has a single class folder, {names[0]}: if the classes are in it, give '
            f'--config.data.root={root / names[0]}, if a table tells them, --config.data.csv=FILE; {_there(root)}'
        )
    if split not in splits:
        raise ValueError(no_split(split, splits, str(root)))
    drawn, note = drawn and split in ('train', 'validation'), ''
    if len(layout.heads) > 1 or (layout.group and drawn):
        setting = f'heads={layout.heads}' if len(layout.heads) > 1 else f'group={layout.group!r}'
        raise ValueError(
            f'config.data.{setting} needs a table, but the examples in {root} lie in folders: '
            'give --config.data.csv=FILE'
        )
    if drawn:
        validates = draw_validation(
            *zip(*examples, strict=True), share=layout.validation_share, seed=layout.seed
        )
        note = _note(layout, len(validates), sum(validates), whole=not given)
        pairs = zip(examples, validates, strict=True)
        examples = [example for example, is_so in pairs if is_so == (split == 'validation')]
        bad = bad if split == 'train' else []
        if not examples:
            raise ValueError(
                f'no class in {root / folder} has two examples, so that none are left for {split}'
            )
    labels = [
        one_hot([number], len(names)) if layout.several_labels else number for number in range(len(names))
    ]
    return Listing(
        folder=root,
        class_names=names,
        head_sizes=(len(names),),
        entries=[Entry(path=path, label=labels[number]) for path, number in examples],
        bad=bad,
        splits=splits,
        note=note,
    )


def _there(root: paths.Path) -> str:
    """Says what a folder holds."""
    names = [f'{name}/' for name in subfolders(root)] + [file.name for file in files_in(root)]
    return f'{root} holds {", ".join(names[:8]) or "nothing"}' + (', …' if len(names) > 8 else '')


def _without_classes(folder: paths.Path, loose: list[Any], endings: tuple[str, ...], folders: bool) -> str:
    """Says what to do with examples that lie in no folder of a class."""
    name = loose[0].name.lower()
    ending = max((each for each in endings if name.endswith(each)), key=len)
    kind = ('image' if folders else 'video' if '.mp4' in endings else 'file') + (
        's' if len(loose) > 1 else ''
    )
    return (
        f'{folder} has {len(loose):,} {kind}, but no folders of classes: make a folder a class, '
        f'{folder}/CLASS/{"EXAMPLE/" if folders else ""}*{ending}, or give a table with --config.data.csv=FILE'
    )


def _note(layout: Layout, total: int, validating: int, whole: bool) -> str:
    """Says how many were drawn of how many; files that cannot be read are not yet known."""
    share = f'({round(100 * validating / max(total, 1), 1):g} %)'
    grouped = f', grouped by {layout.group}' if layout.group else ''
    parts = (
        f'no split is given: {total - validating:,} train, {validating:,} validation {share}'
        if whole
        else f'no validation split is given: {validating:,} of {total:,} of train {share} are taken'
    )
    return f'{parts}, drawn by name (seed {layout.seed}){grouped}'


def _from_tables(
    split: str,
    tables: dict[str, paths.Path],
    layout: Layout,
    *,
    root: paths.Path | None,
    endings: tuple[str, ...],
    folders: bool,
) -> Listing:
    """Lists the rows of a split's table, or those of a split in the table of all."""
    rows, disk = {}, None
    for name, file in tables.items():
        table = read_table(file, heads=layout.heads, endings=endings, folders=folders)
        if name == 'test' != split and label_columns(table, layout.heads) is None:
            continue  # published without labels; they are missed when they are asked for
        if root is None or disk is None:
            disk = Disk(root=file.parent if root is None else root, endings=endings, folders=folders)
        rows[name] = understand(table, split=name, heads=layout.heads, group=layout.group, disk=disk)
    classes, labels = label_rows(
        rows,
        heads=layout.heads,
        num_classes=layout.num_classes,
        several=layout.several_labels,
        extra='' if layout.csv or split in SPLITS else split,
    )
    source = next((name for name in (ALL, split, 'train') if name in rows), '')
    if source not in rows:
        raise ValueError(no_split(split, in_order(rows), ', '.join(map(str, tables.values()))))
    told, row_splits = rows[source], split_rows(source, rows[source])
    splits = in_order({*rows, *row_splits} - {ALL}) or ('train',)
    note = ''
    if 'validation' not in splits and 'train' in splits and source in (ALL, 'train'):
        splits = in_order([*splits, 'validation'])
        row_splits = draw_rows(
            row_splits,
            told,
            labels[source],
            group=layout.group,
            share=layout.validation_share,
            seed=layout.seed,
        )
        if split in ('train', 'validation'):
            used = [name for place, name in enumerate(row_splits) if place not in told.causes]
            validating, training = used.count('validation'), used.count('train')
            whole = source == ALL and told.splits is None
            note = _note(layout, training + validating, validating, whole)
    if split not in splits:
        raise ValueError(no_split(split, splits, str(told.table.file)))
    home = splits[0] if source == ALL else source  # of rows that do not tell their split
    row_splits = [name or home for name in row_splits]
    entries, bad = _entries(split, row_splits, told, labels[source], with_broken=split == home)
    if not entries:
        raise ValueError(_nothing(split, told, bad))
    return Listing(
        folder=root or told.table.file.parent,
        class_names=[name for names in classes for name in names],
        head_sizes=tuple(len(names) for names in classes),
        entries=entries,
        bad=bad,
        splits=splits,
        note=note,
    )


def _entries(
    split: str, row_splits: list[str], told: Rows, labels: list[Label | str], with_broken: bool
) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Returns the examples of a split, and (row, cause) of its rows that are none, in their order."""
    entries: list[Entry] = []
    bad = list(told.table.bad) if with_broken else []
    for place, (line, _) in enumerate(told.table.rows):
        label = labels[place]
        if row_splits[place] != split:
            continue
        if place in told.causes or isinstance(label, str):
            bad.append((line, told.causes[place]))
            continue
        start, end, first, stop = (0.0, math.inf, 0, None) if told.segments is None else told.segments[place]
        where = told.table.where(line)
        entries.append(
            Entry(
                path=told.paths[place],
                label=label,
                where=where,
                start=start,
                end=end,
                first=first,
                stop=stop,
            )
        )
    return entries, [(told.table.where(line), cause) for line, cause in sorted(bad)]


def _nothing(split: str, told: Rows, bad: list[tuple[str, str]]) -> str:
    if not bad:
        return (
            f'{told.table.file}: no class has two examples that could be parted, so none are left for the split '
            f'{split}: give a table of it'
        )
    causes = '; '.join(f'{where}: {cause}' for where, cause in bad[:3]) + ('; …' if len(bad) > 3 else '')
    return f'{told.table.file}: none of the {len(bad)} rows of the split {split} can be used: {causes}'
