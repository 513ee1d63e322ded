"""How sure the numbers of an evaluation are: intervals of 95 %, and how well confidence agrees with accuracy.

Shares of examples have Wilson's score interval. For all other metrics the examples are drawn anew, with replacement,
many times (the bootstrap, seeded): the interval holds the middle 95 % of the values. Both tell what another test set
of this size might have given, not what another seed of the training would.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Int

Interval = tuple[float, float]
# From how often each example was drawn `[draws n]` to the metric's value in each draw.
Statistic = Callable[[Int[np.ndarray, 'draws n']], Float[np.ndarray, ' draws']]

Z = 1.959963984540054  # the normal distribution has 95 % within so many deviations
DRAWS = 1_000
CHUNK = 2**22  # numbers in memory at once
BINS = 15  # of calibration, as Guo et al. 2017 have it


def wilson(share: float, count: int) -> Interval:
    """Wilson's score interval of a share (Wilson 1927), which stays within [0, 1] at any share and count.

    Args:
        share: Of the examples, in [0, 1].
        count: Examples, at least 1.
    """
    spread = Z**2 / count
    centre = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def draws(count: int, number: int = DRAWS, seed: int = 0) -> Iterator[Int[np.ndarray, 'draws n']]:
    """Yields how often each of `count` examples is drawn, for `number` draws in chunks."""
    random = np.random.default_rng(seed)
    step = max(CHUNK // count, 1)
    for first in range(0, number, step):
        size = min(step, number - first)
        drawn = random.integers(0, count, (size, count), dtype=np.int32)
        drawn += np.arange(size, dtype=np.int32)[:, None] * np.int32(count)
        yield np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)


def bootstrap(statistic: Statistic, count: int, number: int = DRAWS, seed: int = 0) -> Interval:
    """Returns the interval of a metric over `count` examples; draws in which it is undefined are left out."""
    values = np.concatenate([statistic(weights) for weights in draws(count, number, seed)])
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return float(low), float(high)


def class_means(name: str, labels: Int[np.ndarray, ' n'], predicted: Int[np.ndarray, ' n']) -> Statistic:
    """Returns the mean over classes of 'recall', 'precision' or 'jaccard', each where it is defined."""
    right = labels == predicted

    def statistic(weights: Int[np.ndarray, 'draws n']) -> Float[np.ndarray, ' draws']:
        classes = int(max(labels.max(), predicted.max())) + 1
        hits = _sums(weights * right, labels, classes)
        examples, named = _sums(weights, labels, classes), _sums(weights, predicted, classes)
        below = {'recall': examples, 'precision': named, 'jaccard': examples + named - hits}[name]
        ratio = hits / np.maximum(below, 1)
        return ratio.sum(axis=1) / np.maximum((below > 0).sum(axis=1), 1)

    return statistic


def _sums(
    weights: Int[np.ndarray, 'draws n'], groups: Int[np.ndarray, ' n'], number: int
) -> Int[np.ndarray, 'draws k']:
    """Adds up the columns of each group."""
    order = np.argsort(groups, kind='stable')
    there, starts = np.unique(groups[order], return_index=True)
    sums = np.zeros((len(weights), number), weights.dtype)
    sums[:, there] = np.add.reduceat(weights[:, order], starts, axis=1)
    return sums


def mean_area(scores: Float[np.ndarray, 'n k'], positive: Bool[np.ndarray, 'n k']) -> Statistic:
    """Returns the mean over classes of the area under the ROC curve, ties counting half."""
    return _mean_over(scores, positive, _area)


def mean_average_precision(scores: Float[np.ndarray, 'n k'], positive: Bool[np.ndarray, 'n k']) -> Statistic:
    """Returns the mean over classes of the average precision, not interpolated."""
    return _mean_over(scores, positive, _average_precision)


def _mean_over(scores: np.ndarray, positive: np.ndarray, of_class: Callable[..., np.ndarray]) -> Statistic:
    def statistic(weights: Int[np.ndarray, 'draws n']) -> Float[np.ndarray, ' draws']:
        total, defined = np.zeros(len(weights)), np.zeros(len(weights))
        for column, truth in zip(scores.T, positive.T, strict=True):
            if truth.any():
                values = of_class(weights, column, truth)
                total += np.nan_to_num(values)
                defined += np.isfinite(values)
        return np.where(defined > 0, total / np.maximum(defined, 1), np.nan)

    return statistic


def _tied(weights: np.ndarray, column: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many positive and negative examples each draw has at each score, the highest first."""
    order = np.argsort(-column, kind='stable')
    starts = np.flatnonzero(np.append(True, np.diff(column[order]) != 0))
    drawn = weights[:, order]
    hits = np.add.reduceat(drawn * truth[order], starts, axis=1)
    return hits, np.add.reduceat(drawn, starts, axis=1) - hits


def _area(weights: np.ndarray, column: np.ndarray, truth: np.ndarray) -> np.ndarray:
    above, below = _tied(weights, column, truth)
    positives, negatives = above.sum(axis=1), below.sum(axis=1)
    lower = negatives[:, None] - np.cumsum(below, axis=1) + below / 2
    pairs = positives * negatives
    return np.where(pairs > 0, (above * lower).sum(axis=1) / np.maximum(pairs, 1), np.nan)


def _average_precision(weights: np.ndarray, column: np.ndarray, truth: np.ndarray) -> np.ndarray:
    hits, misses = _tied(weights, column, truth)
    found, named = np.cumsum(hits, axis=1), np.cumsum(hits + misses, axis=1)
    positives = found[:, -1]
    sums = (hits * found / np.maximum(named, 1)).sum(axis=1)
    return np.where(positives > 0, sums / np.maximum(positives, 1), np.nan)


@dataclasses.dataclass(frozen=True)
class Bin:
    """Decisions of like confidence: how many, their mean confidence, and the share of them that was right."""

    count: int
    confidence: float
    accuracy: float


def calibration(
    confidence: Float[np.ndarray, ' n'], right: Bool[np.ndarray, ' n'], bins: int = BINS
) -> tuple[list[Bin], float]:
    """Sorts decisions into bins of equal width by their confidence (Guo et al. 2017, equation 3).

    Args:
        confidence: The probability of what was decided, in [0, 1].
        right: Whether it was so.
        bins: How many, from 0 to 1; a value at an edge belongs below it.

    Returns:
        The bins that hold anything, and the expected calibration error: the mean over decisions of
        |accuracy - confidence| of their bin.
    """
    place = np.searchsorted(np.linspace(0.0, 1.0, bins + 1)[1:-1], confidence, side='left')
    counts = np.bincount(place, minlength=bins)
    sums = np.bincount(place, weights=confidence, minlength=bins)
    hits = np.bincount(place, weights=right, minlength=bins)
    found = [
        Bin(int(n), float(total / n), float(hit / n))
        for n, total, hit in zip(counts, sums, hits, strict=True)
        if n
    ]
    error = sum(part.count * abs(part.accuracy - part.confidence) for part in found)
    return found, error / max(len(confidence), 1)
