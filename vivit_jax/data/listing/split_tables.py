"""Which tables tell a data set's splits: those that are named, or those found by their names in its folder."""

import pathlib
import re
from typing import Any

from vivit_jax import paths
from vivit_jax.data.listing.folders import files_in
from vivit_jax.data.listing.splits import SPLITS, in_order, split_name

ENDINGS = (
    '.csv',
    '.tsv',
    '.txt',
    '.jsonl',
    '.json',
)  # the first there is counts: Kinetics has .csv and .json alike
BESIDE = ('', 'annotations', 'labels')  # folders in the root where tables are published
# train.csv; kinetics_400_train.csv, something-something-v2-train.json, EPIC_100_train.csv, trainingSet.csv
_PUBLISHED = re.compile(
    r'(?:kinetics[-_]?(?:[4-7]00)?[-_]|k[4-7]00[-_]|something-something-v2-|epic_100_)?([a-z]+?)(?:set)?',
    re.IGNORECASE,
)
ALL = ''  # the name of a table that holds all splits


def named_tables(csv: str, root: paths.Path | None) -> dict[str, paths.Path]:
    """Returns the table of each split, by a setting.

    Args:
        csv: `FILE`, which is that of `ALL` splits, or `SPLIT=FILE,SPLIT=FILE`.
        root: Where files are looked for that are not where one stands.

    Raises:
        ValueError: If a file is not there, or a split has two.
    """
    if '=' not in csv or (not paths.is_remote(csv) and pathlib.Path(csv).expanduser().is_file()):
        return {ALL: _there(csv, root)}
    tables: dict[str, paths.Path] = {}
    for part in re.split(r',(?=[\w-]+=)', csv):
        name, _, file = part.partition('=')
        name = split_name(name.strip())
        if not name or name in tables:
            raise ValueError(
                f'config.data.csv={csv!r}: must be FILE or SPLIT=FILE,SPLIT=FILE, as train=a.csv,validation=b.csv, '
                'each split once'
            )
        tables[name] = _there(file.strip(), root)
    return tables


def _there(name: str, root: paths.Path | None) -> paths.Path:
    places = [paths.expanded(name)]
    if root is not None and not paths.is_remote(name):
        places.append(root / places[0])
    for place in places:
        if place.is_file():
            return place
    raise ValueError(f'config.data.csv: there is no table {" nor ".join(map(str, places))}')


def tables_in(root: paths.Path, split: str) -> dict[str, paths.Path]:
    """Returns the tables of the splits that lie in a folder, or in one for annotations in it.

    Args:
        root: The folder.
        split: A split of one's own that may be there too, besides train, validation and test.

    Raises:
        ValueError: If a split has two.
    """
    for folder in BESIDE:
        if not (root / folder).is_dir():
            continue
        files = files_in(root / folder)
        tables: dict[str, paths.Path] = {}
        for ending in ENDINGS:
            tables = _by_split([file for file in files if file.suffix.lower() == ending], split) | tables
        if tables:
            return {name: tables[name] for name in in_order(tables)}
    return {}


def _by_split(files: list[Any], split: str) -> dict[str, paths.Path]:
    tables: dict[str, paths.Path] = {}
    for file in files:
        match = _PUBLISHED.fullmatch(file.stem)
        name = file.stem if file.stem == split else split_name(match[1]) if match else ''
        if name not in {*SPLITS, split} or not file.is_file():
            continue
        if name in tables:
            raise ValueError(
                f'{file.parent} has two tables of the split {name}, {tables[name].name} and {file.name}: keep one, '
                f'or give --config.data.csv={name}={file},…'
            )
        tables[name] = file
    return tables
