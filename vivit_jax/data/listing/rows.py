"""The rows of a data set's tables, labelled alike and parted into splits."""

from collections import Counter
from collections.abc import Mapping, Sequence

from vivit_jax.data.listing.annotations import Rows
from vivit_jax.data.listing.labels import first_class, label_of, number_classes, parts_of
from vivit_jax.data.listing.split_tables import ALL
from vivit_jax.data.listing.splits import SPLITS, draw_validation, split_name
from vivit_jax.data.listing.tables import short, shown
from vivit_jax.data.record import Label


def label_rows(
    rows: Mapping[str, Rows],
    *,
    heads: Sequence[str],
    num_classes: Sequence[int],
    several: bool,
    extra: str = '',
) -> tuple[list[list[str]], dict[str, list[Label | str]]]:
    """Labels the rows of all tables alike.

    Args:
        rows: Of each table; what is wrong with a label is added to their causes.
        heads: Names of the heads.
        num_classes: Classes of each head; (): as many as there are.
        several: A cell may hold several labels, `a|b`.
        extra: A table that is labelled too, but adds no classes; '': none.

    Returns:
        The names of the classes of each head, and the label of each row of each table or what is wrong with it.

    Raises:
        ValueError: If a cell holds several labels that may not, or tables contradict each other.
    """
    names: list[list[str]] = []
    numbers, sizes = [], []
    for place, head in enumerate(heads):
        if not several:
            _one_label_each(head, place, rows)
        texts = {name: Counter(parts_of(told.cells[place], several)) for name, told in rows.items()}
        counting = {
            str(rows[name].table.file): texts[name] for name in rows if name != extra or len(rows) == 1
        }
        known, file = next((told.names[place] for told in rows.values() if told.names[place][0]), ([], ''))
        classes, numbered = number_classes(
            head,
            counting,
            size=num_classes[place] if num_classes else 0,
            names=known,
            names_file=file,
            more=texts.get(extra, ()),
        )
        names.append(classes)
        numbers.append(numbered)
        sizes.append(len(classes))
    labels: dict[str, list[Label | str]] = {}
    for name, told in rows.items():
        cells = list(zip(*told.cells, strict=True))
        found = {these: label_of(heads, these, numbers, sizes, several) for these in set(cells)}
        labels[name] = [found[these] for these in cells]
        for place, label in enumerate(labels[name]):
            if isinstance(label, str):
                told.causes.setdefault(place, label)
    return names, labels


def _one_label_each(head: str, place: int, rows: Mapping[str, Rows]) -> None:
    """Raises where a cell seems to hold several labels."""
    for told in rows.values():
        several = {
            text for text in set(told.cells[place]) if '|' in text and text not in told.names[place][0]
        }
        if several:
            row = next(row for row, text in enumerate(told.cells[place]) if text in several)
            raise ValueError(
                f'{told.table.where(told.table.rows[row][0])}: {head}={short(told.cells[place][row])} has several '
                "labels: they need --config.training.loss=sigmoid; one label must not hold a '|'"
            )


def split_rows(source: str, told: Rows) -> list[str]:
    """Returns the split of each row; '' where it does not tell one that there is, which is added to the causes.

    Args:
        source: The split whose table it is, or `ALL`.
        told: The rows.
    """
    if told.splits is None:
        return ['train' if source == ALL else source] * len(told.paths)
    known = {text: split_name(text) for text in set(told.splits)}
    for place, text in enumerate(told.splits):
        if known[text] not in SPLITS:
            told.causes.setdefault(place, f'split={short(text)}: must be one of {", ".join(SPLITS)}')
    return [known[text] if known[text] in SPLITS else '' for text in told.splits]


def draw_rows(
    row_splits: Sequence[str],
    told: Rows,
    labels: Sequence[Label | str],
    *,
    group: str,
    share: float,
    seed: int,
) -> list[str]:
    """Draws the validation split from the rows of train, those of one group, or else of one file, together.

    Args:
        row_splits: The split of each row.
        told: The rows; those that cannot be used stay where they are.
        labels: The label of each.
        group: The column that must not be parted, or ''.
        share: See `draw_validation`.
        seed: See `draw_validation`.

    Returns:
        The split of each row from now on.

    Raises:
        ValueError: If there is no such column.
    """
    groups = told.paths
    if group:
        if told.groups is None:
            raise ValueError(
                f'config.data.group={group!r} is no column of {told.table.file}: it has '
                + shown(told.table.columns)
            )
        groups = told.groups
        for place, name in enumerate(groups):
            if not name:
                told.causes.setdefault(place, f'{group} is empty')
    usable = [place for place, name in enumerate(row_splits) if name == 'train' and place not in told.causes]
    validates = draw_validation(
        [groups[place] for place in usable],
        [first_class(labels[place]) for place in usable],
        share=share,
        seed=seed,
    )
    result = list(row_splits)
    for place, is_so in zip(usable, validates, strict=True):
        if is_so:
            result[place] = 'validation'
    return result
