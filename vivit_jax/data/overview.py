"""What the examples of a data set are like: how many of each class and split, how long, how large, what is bad."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int64

from vivit_jax.data.record import Label, Source

# So many records are looked at for a few lines at the start of a run: they tell what all are like.
ENOUGH = 20_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """What the records of a split say, one value an example.

    Attributes:
        labels: Of the examples.
        num_frames: Frames of each.
        seconds: Duration, NaN where there is no time.
        sizes: (height, width) of the frames in pixels.
        codecs: '' where pixels are not stored as such.
        total: Examples that the split has, of which all or some evenly spread ones are above.
    """

    labels: list[Label]
    num_frames: Int64[np.ndarray, ' n']
    seconds: Float64[np.ndarray, ' n']
    sizes: list[tuple[int, int]]
    codecs: list[str]
    total: int


def survey(source: Source, most: int | None = None) -> Survey:
    """Looks at the records of a split, at `most` of them or at all; pixels are not read."""
    total = len(source)
    chosen: Iterable[int] = range(total)
    if most is not None and total > most:
        chosen = np.linspace(0, total - 1, most).astype(int).tolist()
    rows = [
        (record.label, record.num_frames, record.seconds, record.frame_size, record.codec)
        for record in (source[index] for index in chosen)
    ]
    labels, num_frames, seconds, sizes, codecs = map(list, zip(*rows, strict=True)) if rows else ([],) * 5
    return Survey(
        labels=labels,
        num_frames=np.array(num_frames, np.int64),
        seconds=np.array([np.nan if value is None else value for value in seconds], np.float64),
        sizes=sizes,
        codecs=codecs,
        total=total,
    )


def class_counts(
    labels: Sequence[Label], classes: int, head_sizes: Sequence[int] = ()
) -> Int64[np.ndarray, ' k']:
    """Counts the examples of every class.

    Args:
        labels: Class indices, one index a head, or one float a class.
        classes: Of all heads together.
        head_sizes: Classes of each head; (): one head.
    """
    counts = np.zeros(classes, np.int64)
    if not labels:
        return counts
    if isinstance(labels[0], tuple) and isinstance(labels[0][0], float):
        return (np.array(labels) > 0).sum(0)
    starts = np.cumsum((0, *head_sizes))[: max(len(head_sizes), 1)]
    places = np.array(labels, np.int64).reshape(len(labels), -1) + starts
    return counts + np.bincount(places.ravel(), minlength=classes)


def headed(class_names: Sequence[str], head_sizes: Sequence[int], heads: Sequence[str]) -> list[str]:
    """Returns the names of classes, with that of their head before them, `noun: 0`, where there are several."""
    if len(heads) < 2:
        return list(class_names)
    of = [head for head, size in zip(heads, head_sizes, strict=True) for _ in range(size)]
    return [f'{head}: {name}' for head, name in zip(of, class_names, strict=True)]


def overview(
    sources: Mapping[str, Source],
    *,
    head_sizes: Sequence[int] = (),
    heads: Sequence[str] = (),
    most: int = ENOUGH,
) -> list[str]:
    """Says in a few lines what a data set is like.

    Args:
        sources: The splits in use by name, the one that is trained on first.
        head_sizes: Classes of each head; (): one head.
        heads: What the heads are called; (): classes are named without their head.
        most: Records looked at in each split.

    Returns:
        A line a split, then what is worth a second look: how examples came into splits where nobody said, classes
        without examples, and what is bad.
    """
    lines, found = [], {}
    for split, source in sources.items():
        seen = survey(source, most)
        # Whether a class has no example can be told from all of them only.
        if len(seen.labels) == seen.total:
            found[split] = class_counts(seen.labels, len(source.class_names), head_sizes)
        lines.append(f'{split}: {describe(seen, len(source.class_names), found.get(split))}')
    names = headed(next(iter(sources.values())).class_names, head_sizes, heads)
    lines += dict.fromkeys(note for source in sources.values() if (note := getattr(source, 'note', '')))
    for split, counts in found.items():
        if missing := [name for name, count in zip(names, counts, strict=True) if not count]:
            lines.append(f'{split} has no example of {shortened(missing)}')
    for split, source in sources.items():
        if source.bad:
            bad = [f'{name} ({cause})' for name, cause in source.bad]
            lost = getattr(source, 'lost', len(bad))
            total = len(source) + lost
            lines.append(f'{lost:,} of {total:,} examples of {split} left out: {shortened(bad)}')
    return lines


def describe(seen: Survey, classes: int, counts: Int64[np.ndarray, ' k'] | None) -> str:
    """Returns a line about a split: examples, classes, durations, sizes, codecs."""
    parts = [f'{seen.total:,} examples']
    each = f' of {spread(counts)} each' if counts is not None and classes > 1 else ''
    parts.append(f'{classes:,} classes{each}')
    if np.isfinite(seen.seconds).any():
        parts.append(f'{spread(seen.seconds[np.isfinite(seen.seconds)], " s")} long')
    else:
        parts.append(f'{spread(seen.num_frames)} frames')
    sizes = [f'{width}x{height}' for height, width in seen.sizes]
    parts += filter(None, (most_common(sizes), most_common(seen.codecs)))
    if len(seen.labels) < seen.total:
        parts.append(f'by {len(seen.labels):,} of them')
    return ', '.join(parts)


def spread(values: np.ndarray, unit: str = '') -> str:
    """Returns the smallest, median and largest value, or the one that all have."""
    low, middle, high = (f'{value:.3g}' if value < 1e3 else f'{value:,.0f}' for value in _quantiles(values))
    return f'{low}{unit}' if low == high else f'{low} to {high}{unit} (median {middle})'


def _quantiles(values: np.ndarray) -> list[float]:
    return (
        [0.0] * 3 if not len(values) else [float(values.min()), float(np.median(values)), float(values.max())]
    )


def most_common(values: Iterable[str]) -> str:
    """Returns the most frequent values with their shares, or the only one; '' is none."""
    counter = collections.Counter(value for value in values if value)
    if len(counter) < 2:
        return ''.join(counter)
    parts = [f'{value} ({count / counter.total():.0%})' for value, count in counter.most_common(2)]
    rest = len(counter) - len(parts)
    return ' and '.join(parts) + (f' and {rest} more' if rest else '')


def shortened(names: Sequence[str], most: int = 3) -> str:
    """Returns the first of the names, and how many there are more."""
    rest = len(names) - most
    return ', '.join(names[:most]) + (f' and {rest} more' if rest > 0 else '')
