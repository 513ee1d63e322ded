"""Metrics of medical classification: MedMNIST's official ones, and what tells whether to trust them.

Numpy in float64, over the probabilities of all examples, with padding dropped. The area under the curve and the
accuracy follow `medmnist.evaluator` (Yang et al. 2023, https://doi.org/10.1038/s41597-022-01721-8), which needs
scikit-learn and pandas; here neither is needed. Labels are class indices `[n]`, or multi-hot `[n k]` where an example
may have several. A mean over classes leaves out those for which the quantity is undefined, where the official code
would give NaN or raise, and is 0 when that leaves none.
"""

import csv

import numpy as np
from jaxtyping import Bool, Float, Int

from vivit_jax import paths

BINS = 15  # of the calibration error, as Guo et al. 2017 have it

Probabilities = Float[np.ndarray, 'n k']
Labels = Int[np.ndarray, ' n'] | Float[np.ndarray, 'n k']


def probabilities(scores: Float[np.ndarray, 'n k'], loss_kind: str) -> Probabilities:
    """Turns logits into float64 probabilities.

    Args:
        scores: Logits, or logarithms of probabilities.
        loss_kind: 'softmax' over the classes, or 'sigmoid' of each.

    Returns:
        Values in [0, 1]; with 'softmax' a row adds up to 1.
    """
    scores = scores.astype(np.float64)
    if loss_kind == 'sigmoid':
        return np.exp(-np.logaddexp(0.0, -scores))
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


def decided(
    scores: Float[np.ndarray, 'n k'],
    labels: Int[np.ndarray, ' n'] | Int[np.ndarray, 'n 1'] | Float[np.ndarray, 'n k'],
    loss_kind: str,
) -> tuple[Probabilities, Labels]:
    """Brings an evaluation's scores and any form of labels of one head to what the other functions take.

    Args:
        scores: See `probabilities`.
        labels: Class indices, or float targets.
        loss_kind: 'softmax', of whose float targets the largest is the label; or 'sigmoid', of multi-hot targets.

    Returns:
        Probabilities, and class indices or multi-hot targets.
    """
    if loss_kind == 'sigmoid':
        hot = (
            labels if np.issubdtype(labels.dtype, np.floating) else _positive(labels.ravel(), scores.shape[1])
        )
        return probabilities(scores, loss_kind), hot.astype(np.float64)
    indices = labels.argmax(axis=1) if np.issubdtype(labels.dtype, np.floating) else labels.ravel()
    return probabilities(scores, loss_kind), indices


def area_under_curve(scores: Float[np.ndarray, ' n'], positive: Bool[np.ndarray, ' n']) -> float:
    """Area under the receiver operating characteristic, of one class against the rest.

    It is the chance that a positive example has a higher score than a negative one, ties counting half (Mann and
    Whitney): from ranks, equal to scikit-learn's `roc_auc_score`.

    Args:
        scores: Any monotone score; NaN counts as the lowest.
        positive: Which examples are of the class.

    Returns:
        A value in [0, 1], 0.5 by chance; NaN where all examples are positive or none is.
    """
    above, below = int(positive.sum()), int((~positive).sum())
    if not above or not below:
        return float('nan')
    finite = np.nan_to_num(scores, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    _, place, ties = np.unique(finite, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(ties) - (ties - 1) / 2)[place]  # from 1; those of equal score share their mean
    return float((ranks[positive].sum() - above * (above + 1) / 2) / (above * below))


def areas_under_curves(scores: Probabilities, labels: Labels) -> Float[np.ndarray, ' k']:
    """`area_under_curve` of each class against the rest, NaN where undefined."""
    positive = _positive(labels, scores.shape[1])
    return np.array([area_under_curve(scores[:, k], positive[:, k]) for k in range(scores.shape[1])])


def official_auc(scores: Probabilities, labels: Labels) -> float:
    """MedMNIST's AUC: of the positive score with two classes, else the mean of one against the rest."""
    areas = areas_under_curves(scores, labels)
    return _mean(areas[-1:] if labels.ndim == 1 and scores.shape[1] == 2 else areas)


def official_accuracy(scores: Probabilities, labels: Labels) -> float:
    """MedMNIST's accuracy: positive above 0.5 with two classes, else the most probable class.

    Where an example may have several labels every class is decided at 0.5, and the mean over classes is taken.
    """
    if labels.ndim == 2:
        return float(np.mean((scores > 0.5) == (labels > 0.5)))
    return float(np.mean(_predicted(scores) == labels))


def per_class(scores: Probabilities, labels: Labels) -> dict[str, Float[np.ndarray, ' k']]:
    """Recall, F1 and AUC of each class.

    Args:
        scores: Probabilities.
        labels: Class indices or multi-hot targets.

    Returns:
        'recall' (sensitivity), hits over examples; 'f1', 2 hits / (examples + predicted); 'auc' against the rest.
        NaN where there is nothing to divide by.
    """
    positive, named = _positive(labels, scores.shape[1]), _named(scores, labels)
    hits = (positive & named).sum(axis=0)
    examples, predicted = positive.sum(axis=0), named.sum(axis=0)
    return {
        'recall': _ratio(hits, examples),
        'f1': _ratio(2 * hits, examples + predicted),
        'auc': areas_under_curves(scores, labels),
    }


def balanced_accuracy(scores: Probabilities, labels: Labels) -> float:
    """The classes' recalls, averaged; of several labels, each class's recall averaged with its specificity first."""
    positive, named = _positive(labels, scores.shape[1]), _named(scores, labels)
    recalls = _ratio((positive & named).sum(axis=0), positive.sum(axis=0))
    if labels.ndim == 2:
        specificities = _ratio((~positive & ~named).sum(axis=0), (~positive).sum(axis=0))
        recalls = (recalls + specificities) / 2
    return _mean(recalls)


def calibration_error(scores: Probabilities, labels: Labels, bins: int = BINS) -> float:
    """Expected calibration error: how far confidence is from accuracy (Guo et al. 2017, equation 3).

    Decisions are sorted into bins of equal width by their confidence, the probability of what was decided; the
    result is the mean over decisions of |accuracy - confidence| of their bin.

    Args:
        scores: Probabilities.
        labels: Class indices, of which the most probable is decided; or multi-hot targets, each decided at 0.5.
        bins: How many, from 0 (left out) to 1.

    Returns:
        A value in [0, 1]; 0 is perfect.
    """
    if labels.ndim == 2:
        confidence = np.where(scores > 0.5, scores, 1.0 - scores).ravel()
        right = ((scores > 0.5) == (labels > 0.5)).ravel()
    else:
        confidence, right = scores.max(axis=1), _predicted(scores) == labels
    edges = np.linspace(0.0, 1.0, bins + 1)
    place = np.searchsorted(edges[1:-1], confidence, side='left')
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def majority_accuracy(labels: Labels, num_classes: int) -> float:
    """The accuracy of naming whatever is most frequent among these labels: what a model must beat."""
    share = _positive(labels, num_classes).mean(axis=0)
    return float(np.maximum(share, 1.0 - share).mean() if labels.ndim == 2 else share.max())


def medical_metrics(scores: Probabilities, labels: Labels) -> dict[str, float]:
    """All metrics of this file that are one number.

    Args:
        scores: Probabilities of every example, see `probabilities`.
        labels: Class indices or multi-hot targets.

    Returns:
        'auc', 'accuracy' (the official ones), 'balanced_accuracy', 'calibration_error', 'majority_accuracy'.
    """
    return {
        'auc': official_auc(scores, labels),
        'accuracy': official_accuracy(scores, labels),
        'balanced_accuracy': balanced_accuracy(scores, labels),
        'calibration_error': calibration_error(scores, labels),
        'majority_accuracy': majority_accuracy(labels, scores.shape[1]),
    }


def write_official(
    folder: paths.Path, scores: Probabilities, labels: Labels, *, flag: str, split: str, run: str
) -> str:
    """Writes the result file that MedMNIST's evaluator reads, `{flag}_{split}_[AUC]0.xxx_[ACC]0.xxx@{run}.csv`.

    A line is an example: its index in the split and the probability of each class. A file of the same run that an
    earlier evaluation left goes away.

    Args:
        folder: Where to.
        scores: Probabilities of the whole split, in its order.
        labels: Class indices or multi-hot targets.
        flag: Data set and size, as `organmnist3d` or `organmnist3d_64`.
        split: 'train', 'val' or 'test'.
        run: What tells runs apart, as the seed.

    Returns:
        The file's name.
    """
    earlier = [file for file in folder.iterdir() if file.name.startswith(f'{flag}_{split}_[AUC]')]
    for old in earlier:
        if old.name.endswith(f'@{run}.csv'):
            paths.unlink(old)
    auc, accuracy = official_auc(scores, labels), official_accuracy(scores, labels)
    name = f'{flag}_{split}_[AUC]{auc:.3f}_[ACC]{accuracy:.3f}@{run}.csv'
    with paths.open_text(folder / name, 'w', newline='') as file:
        csv.writer(file, lineterminator='\n').writerows(
            [index, *row] for index, row in enumerate(scores.tolist())
        )
    return name


def _positive(labels: Labels, num_classes: int) -> Bool[np.ndarray, 'n k']:
    return labels > 0.5 if labels.ndim == 2 else labels[:, np.newaxis] == np.arange(num_classes)


def _named(scores: Probabilities, labels: Labels) -> Bool[np.ndarray, 'n k']:
    """Which classes were decided for."""
    if labels.ndim == 2:
        return scores > 0.5
    return _positive(_predicted(scores), scores.shape[1])


def _predicted(scores: Probabilities) -> Int[np.ndarray, ' n']:
    """The class decided for; with two the second needs more than 0.5, so a tie is the first in any case."""
    return (scores[:, 1] > 0.5).astype(np.int64) if scores.shape[1] == 2 else scores.argmax(axis=1)


def _ratio(part: Int[np.ndarray, ' k'], whole: Int[np.ndarray, ' k']) -> Float[np.ndarray, ' k']:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def _mean(values: Float[np.ndarray, ' k']) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else 0.0
