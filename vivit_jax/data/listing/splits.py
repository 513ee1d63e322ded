"""Splits: what they are called, and how one is drawn where nobody gives it."""

import hashlib
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

SPLITS = {
    'train': ('train', 'training'),
    'validation': ('validation', 'val', 'valid', 'validate', 'dev'),
    'test': ('test', 'testing'),
}
_NAMES = {alias: name for name, aliases in SPLITS.items() for alias in aliases}


def split_name(text: str) -> str:
    """Returns what a split is called here: `validation` for `val` or `Valid`; a name of one's own as it is."""
    return _NAMES.get(text.lower(), text)


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of splits, train, validation and test first."""
    there = set(names)
    return (*(name for name in SPLITS if name in there), *sorted(there - SPLITS.keys()))


def no_split(split: str, splits: Sequence[str], where: str) -> str:
    """Says that a split is not there, and which are."""
    return (
        f'{where} has no split {split!r}: it has {", ".join(splits)}; choose of them with --config.data.train_split, '
        'validation_split and test_splits, or add a folder or table of that name'
    )


def draw_validation(
    groups: Sequence[str], classes: Sequence[Hashable], *, share: float, seed: int
) -> list[bool]:
    """Draws the examples that validate, by the hashes of their groups' names alone.

    The order of the examples does not matter, and one more or less moves few others. Of each class the share
    is drawn, rounded: at least one of a class that has two or more, and never all. Groups stay whole: one is
    drawn where that brings the counts of its classes nearer to what they should be.

    Args:
        groups: What an example may not be parted from, as its file or its subject.
        classes: The class of each example.
        share: Of the examples, in (0, 1).
        seed: Another one draws others.

    Returns:
        Whether each example validates. None does where no class could spare a group.
    """
    members: dict[str, dict[Hashable, int]] = {}
    for group, kind in zip(groups, classes, strict=True):
        counts = members.setdefault(group, {})
        counts[kind] = counts.get(kind, 0) + 1
    sizes = Counter(classes)
    missing = {kind: max(1, min(round(share * n), n - 1)) if n > 1 else 0 for kind, n in sizes.items()}
    order = sorted(members, key=lambda group: _hash(group, seed))
    drawn = set()
    nearest: tuple[int, str] | None = None  # for when no group is small enough
    for group in order:
        counts = members[group]
        if any(sizes[kind] == n for kind, n in counts.items()):
            continue  # training would have none of that class
        gain = sum(abs(missing[kind]) - abs(missing[kind] - n) for kind, n in counts.items())
        if gain > 0:
            drawn.add(group)
            for kind, n in counts.items():
                missing[kind] -= n
                sizes[kind] -= n
        elif nearest is None or gain > nearest[0]:
            nearest = (gain, group)
    if not drawn and nearest is not None:
        drawn.add(nearest[1])
    return [group in drawn for group in groups]


def _hash(text: str, seed: int) -> bytes:
    return hashlib.blake2b(f'{seed}/{text}'.encode('utf-8', 'surrogateescape'), digest_size=16).digest()
