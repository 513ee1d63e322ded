"""Class names and numbers, from the texts that stand in tables."""

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from vivit_jax.data.record import Label

MAX_CLASSES = 100_000  # a larger number is a slip, unless the configuration says how many classes there are
_NUMBER = re.compile(r'-?[0-9]+(\.0+)?')  # pandas writes 3.0 where a column of numbers has a gap


def number_classes(
    head: str,
    texts: Mapping[str, Counter[str]],
    *,
    size: int = 0,
    names: Sequence[str] = (),
    names_file: str = '',
    more: Iterable[str] = (),
) -> tuple[list[str], dict[str, int | str]]:
    """Numbers the classes of a head: sorted names, or the numbers that stand there.

    Args:
        head: What the labels are called.
        texts: How often each text stands in each table.
        size: How many classes there are; 0: as many as the texts or the names show.
        names: The classes in order, where that is known.
        names_file: Where the names stand.
        more: Texts that are numbered too, but add no classes.

    Returns:
        The names of the classes, and for each text the number of its class, or what is wrong with it.

    Raises:
        ValueError: If one table has names where another has numbers, or names and size contradict each other.
    """
    if names and size and size != len(names):
        raise ValueError(f'{names_file} has {len(names)} classes, but data.num_classes gives {head} {size}')
    as_names = not names and not _are_numbers(head, texts)
    if as_names:
        names, names_file = sorted(set().union(*texts.values())), ', '.join(texts)
    limit = len(names) or size or MAX_CLASSES
    numbers: dict[str, int | str] = {name: number for number, name in enumerate(names)}
    for text in set().union(*texts.values()) - numbers.keys():
        numbers[text] = _number(head, text, limit, names, names_file)
    largest = max((number for number in numbers.values() if isinstance(number, int)), default=-1)
    classes = list(names) or [str(number) for number in range(size or largest + 1)]
    for text in set(more) - numbers.keys():
        if as_names:
            numbers[text] = _unknown(head, text, names, names_file)
        else:
            numbers[text] = _number(head, text, len(classes), names, names_file)
    return classes, numbers


def _are_numbers(head: str, texts: Mapping[str, Counter[str]]) -> bool:
    """Tells whether labels are numbers: what most of them are; all tables must be alike."""
    kinds = {}
    for table, counts in texts.items():
        numeric = sum(count for text, count in counts.items() if _NUMBER.fullmatch(text))
        if counts:
            kinds[table] = 2 * numeric >= counts.total()
    if len(set(kinds.values())) > 1:
        numbers, others = (next(table for table in kinds if kinds[table] is kind) for kind in (True, False))
        example = next(text for text in texts[others] if not _NUMBER.fullmatch(text))
        raise ValueError(
            f'{numbers} has numbers in the column {head}, but {others} has names, as {_short(example)}: they '
            'must be alike'
        )
    return any(kinds.values())


def _number(head: str, text: str, limit: int, names: Sequence[str], names_file: str) -> int | str:
    if _NUMBER.fullmatch(text) and len(text) < 20 and 0 <= int(text.partition('.')[0]) < limit:
        return int(text.partition('.')[0])
    if names:
        return _unknown(head, text, names, names_file)
    larger = ' (or more: --config.data.num_classes)' if limit == MAX_CLASSES else ''
    return f'{head}={_short(text)}: must be a number in [0, {limit}){larger}'


def _unknown(head: str, text: str, names: Sequence[str], names_file: str) -> str:
    examples = ', '.join(name[:60] for name in names[:3]) + (', …' if len(names) > 3 else '')
    return f'{head}={_short(text)}: must be one of the {len(names)} classes of {names_file}: {examples}'


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:59] + '…')


def one_hot(numbers: Iterable[int], size: int) -> tuple[float, ...]:
    """Returns a float for each class: 1 for those that are given, else 0."""
    label = [0.0] * size
    for number in numbers:
        label[number] = 1.0
    return tuple(label)


def parts_of(cells: Iterable[str], several: bool) -> Iterator[str]:
    """Yields the labels in cells, those of `a|b` one by one where there may be several."""
    for cell in cells:
        yield from _parts(cell, several)


def _parts(cell: str, several: bool) -> list[str]:
    if several:
        return [part.strip() for part in cell.split('|') if part.strip()]
    return [cell] if cell else []


def label_of(
    heads: Sequence[str],
    cells: Sequence[str],
    numbers: Sequence[Mapping[str, int | str]],
    sizes: Sequence[int],
    several: bool,
) -> Label | str:
    """Returns the label that stands in the cells of a row, one a head, or what is wrong with it.

    Args:
        heads: Their names.
        cells: Their texts.
        numbers: Of each head, the number of each text or what is wrong with it.
        sizes: Classes of each head.
        several: A cell may hold several labels: the label is a float a class, those of all heads in a row.
    """
    found: list[list[int]] = []
    for head, cell, numbered in zip(heads, cells, numbers, strict=True):
        outcomes = [numbered[part] for part in _parts(cell, several)]
        wrong = [outcome for outcome in outcomes if isinstance(outcome, str)]
        if wrong or not outcomes:
            return wrong[0] if wrong else f'{head} is empty'
        found.append([outcome for outcome in outcomes if isinstance(outcome, int)])
    if several:
        return tuple(
            itertools.chain(*(one_hot(these, size) for these, size in zip(found, sizes, strict=True)))
        )
    return found[0][0] if len(heads) == 1 else tuple(these[0] for these in found)


def first_class(label: Label | str) -> int:
    """Returns the class that an example is counted under: its only one, that of its first head, or its first."""
    if isinstance(label, int):
        return label
    if isinstance(label, str) or not label:
        return -1
    return label.index(1.0) if isinstance(label[0], float) else int(label[0])
