"""Evaluation metrics, in numpy over the scores of all examples, gathered on the host with padding dropped.

`average_views`, which comes before them, is jax and runs inside jit.

Two rules hold throughout. Ties go to the lower class index, as `jax.lax.top_k` and numpy's argmax have it.
A mean over classes leaves out those for which the quantity is undefined (nothing to divide by), and is 0 when
that leaves none.
"""

import math
from collections.abc import Sequence
from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce
from jaxtyping import Array, Bool, Float, Int

LOSS_KINDS = ('softmax', 'sigmoid')
JOINT_CHUNK = 2**20  # joint scores in memory at once (8 MB in float64)


def _check(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f'{what} {value!r} is none of {", ".join(choices)}')


def _check_classes(what: str, values: np.ndarray, num_classes: int) -> None:
    wrong = values[(values < 0) | (values >= num_classes)]
    if wrong.size:
        raise ValueError(f'{what} {wrong[0]} is outside the classes 0 to {num_classes - 1}')


def _split_points(head_sizes: Sequence[int]) -> list[int]:
    return list(accumulate(head_sizes))[:-1]


def average_views(
    view_logits: Float[Array, 'b v k'], how: str = 'logits', head_sizes: Sequence[int] | None = None
) -> Float[Array, 'b k']:
    """Averages the views of each video (ViViT section 4.1: several clips and crops of one video).

    Args:
        view_logits: logits of every view.
        how: 'logits' averages the logits; 'softmax' averages each head's probabilities.
        head_sizes: classes of each head; None for one head over all k.

    Returns:
        Averaged logits, or averaged *probabilities* with 'softmax'; take their logarithm for metrics and losses,
        which expect logits. (Scenic's loss takes the softmax of the probabilities once more.)

    Raises:
        ValueError: an unknown `how`, or head sizes that do not add up to k.
    """
    _check('view averaging', how, ('logits', 'softmax'))
    num_classes = view_logits.shape[-1]
    head_sizes = (num_classes,) if head_sizes is None else head_sizes
    if sum(head_sizes) != num_classes:
        raise ValueError(f'head sizes {tuple(head_sizes)} must add up to {num_classes} classes')
    scores = view_logits
    if how == 'softmax':
        heads = jnp.split(view_logits, _split_points(head_sizes), axis=-1)
        scores = jnp.concatenate([jax.nn.softmax(head, axis=-1) for head in heads], axis=-1)
    return reduce(scores, 'b v k -> b k', 'mean')


def in_top_k(
    scores: Float[np.ndarray, 'n k'], labels: Int[np.ndarray, ' n'], top: int
) -> Bool[np.ndarray, ' n']:
    """Tells for each example whether its label is among the `top` best scores.

    Args:
        scores: any monotone score; a NaN beats every number, so a diverged model is wrong, not right.
        labels: class indices in [0, k).
        top: how many classes may be named.

    Returns:
        True where fewer than `top` classes come before the label: those with a higher score, and those with
        the same score and a lower index.
    """
    own = np.take_along_axis(scores, rearrange(labels, 'n -> n 1'), axis=1)
    not_before = (scores == own) & (np.arange(scores.shape[1]) >= rearrange(labels, 'n -> n 1'))
    before = ~((scores < own) | not_before)
    return before.sum(axis=1) < top


def joint_scores(scores: Float[np.ndarray, 'n k'], head_sizes: Sequence[int]) -> Float[np.ndarray, 'n pairs']:
    """Scores of every combination of one class a head, the last head running fastest.

    The product of the heads' softmaxes is the softmax of the sums of their logits, so sums are enough to rank
    by and cannot underflow into ties; they are taken in float64.

    Args:
        scores: logits or log-probabilities, all heads side by side.
        head_sizes: classes of each head.

    Returns:
        float64 sums [n, prod(head_sizes)]; large: `joint_in_top_k` takes it in chunks.
    """
    first, *others = np.split(scores.astype(np.float64), _split_points(head_sizes), axis=1)
    joint = first
    for head in others:
        pairs = rearrange(joint, 'n i -> n i 1') + rearrange(head, 'n j -> n 1 j')
        joint = rearrange(pairs, 'n i j -> n (i j)')
    return joint


def joint_in_top_k(
    scores: Float[np.ndarray, 'n k'],
    labels: Int[np.ndarray, 'n heads'],
    head_sizes: Sequence[int],
    tops: Sequence[int],
) -> Bool[np.ndarray, 'tops n']:
    """`in_top_k` of the combination of all labels of an example, a chunk of examples at a time.

    Args:
        scores: logits or log-probabilities, all heads side by side.
        labels: class indices, each within its own head.
        head_sizes: classes of each head.
        tops: how many combinations may be named; one row of the result each.

    Returns:
        True where the combination is among the best.
    """
    joint_labels = np.ravel_multi_index(tuple(labels.T), tuple(head_sizes))
    step = max(1, JOINT_CHUNK // math.prod(head_sizes))
    found = []
    for start in range(0, len(scores), step):
        chunk = joint_scores(scores[start : start + step], head_sizes)
        found.append(np.stack([in_top_k(chunk, joint_labels[start : start + step], top) for top in tops]))
    return np.concatenate(found, axis=1)


def average_precision(
    scores: Float[np.ndarray, 'n k'], targets: Float[np.ndarray, 'n k'] | Bool[np.ndarray, 'n k']
) -> Float[np.ndarray, ' k']:
    """Average precision of each class, sum_i (R_i - R_{i-1}) P_i over the distinct thresholds.

    Not interpolated; equal to scikit-learn's `average_precision_score`, class by class.

    Args:
        scores: any monotone score; NaN counts as the lowest.
        targets: multi-hot, positive above 0.5.

    Returns:
        Values in [0, 1]; NaN for a class with no positive example.
    """
    values = np.full(scores.shape[1], np.nan)
    for index in np.flatnonzero((targets > 0.5).any(axis=0)):
        column = np.nan_to_num(scores[:, index], nan=-np.inf, posinf=np.inf, neginf=-np.inf)
        order = np.argsort(-column, kind='stable')
        column, hits = column[order], np.cumsum(targets[order, index] > 0.5)
        ends = np.flatnonzero(np.append(column[1:] != column[:-1], True))
        recall = np.append(0.0, hits[ends] / hits[-1])
        values[index] = np.sum(np.diff(recall) * hits[ends] / (ends + 1))
    return values


def confusion_matrix(
    predictions: Int[np.ndarray, ' n'], labels: Int[np.ndarray, ' n'], num_classes: int
) -> Int[np.ndarray, 'k k']:
    """Counts examples by true class (row) and predicted class (column).

    Args:
        predictions: predicted class indices.
        labels: true class indices.
        num_classes: k.

    Returns:
        int64 counts.

    Raises:
        ValueError: an index outside [0, k).
    """
    _check_classes('prediction', predictions, num_classes)
    _check_classes('label', labels, num_classes)
    flat = labels.astype(np.int64) * num_classes + predictions
    counts = np.bincount(flat, minlength=num_classes**2)
    return rearrange(counts, '(true predicted) -> true predicted', true=num_classes)


def _ratios(confusion: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    hits, examples, predicted = np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    below = {'precision': predicted, 'recall': examples, 'jaccard': examples + predicted - hits}
    return {name: (hits / np.maximum(count, 1), count > 0) for name, count in below.items()}


def per_class(confusion: Int[np.ndarray, 'k k']) -> dict[str, np.ndarray]:
    """Precision, recall and Jaccard index (intersection over union) of each class.

    Args:
        confusion: counts, true class by predicted class.

    Returns:
        'precision', 'recall', 'jaccard': float64 [k], 0 where undefined: the class was never predicted
        (precision), had no example (recall), or both (jaccard). 'examples', 'predicted': int64 [k], how often
        each class was the label and the prediction.
    """
    values = {name: value for name, (value, _) in _ratios(confusion).items()}
    return {**values, 'examples': confusion.sum(axis=1), 'predicted': confusion.sum(axis=0)}


def mean_over_classes(confusion: Int[np.ndarray, 'k k']) -> dict[str, float]:
    """Means of `per_class`, each over the classes where it is defined.

    Args:
        confusion: counts, true class by predicted class.

    Returns:
        'precision', 'recall' (the mean per-class accuracy) and 'jaccard', in [0, 1].
    """
    ratios = _ratios(confusion)
    return {
        name: float(value[valid].mean()) if valid.any() else 0.0 for name, (value, valid) in ratios.items()
    }


def _label_indices(labels: np.ndarray, head_sizes: Sequence[int]) -> np.ndarray:
    if np.issubdtype(labels.dtype, np.floating):
        if labels.ndim != 2 or labels.shape[1] != sum(head_sizes):
            raise ValueError(f'float labels of shape {labels.shape} must be [n {sum(head_sizes)}]')
        heads = np.split(labels, _split_points(head_sizes), axis=1)
        return np.stack([head.argmax(axis=1) for head in heads], axis=1)
    indices = rearrange(labels, 'n -> n 1') if labels.ndim == 1 else labels
    if indices.shape[1] != len(head_sizes):
        raise ValueError(
            f'integer labels of shape {labels.shape} do not go with the heads {tuple(head_sizes)}'
        )
    for head, size in enumerate(head_sizes):
        _check_classes('label', indices[:, head], size)
    return indices


def _head_metrics(scores: np.ndarray, labels: np.ndarray, prefix: str) -> dict[str, float]:
    right = in_top_k(scores, labels, 1)
    metrics = {f'{prefix}top_1': float(right.mean())}
    if scores.shape[1] > 5:
        metrics[f'{prefix}top_5'] = float(in_top_k(scores, labels, 5).mean())
    examples = np.bincount(labels)
    accuracies = np.bincount(labels, weights=right)[examples > 0] / examples[examples > 0]
    metrics[f'{prefix}mean_per_class'] = float(accuracies.mean())
    return metrics


def _joint_metrics(scores: np.ndarray, labels: np.ndarray, head_sizes: Sequence[int]) -> dict[str, float]:
    tops = (1, 5) if math.prod(head_sizes) > 5 else (1,)
    found = joint_in_top_k(scores, labels, head_sizes, tops)
    return {f'action_top_{top}': float(row.mean()) for top, row in zip(tops, found, strict=True)}


def classification_metrics(
    scores: Float[np.ndarray, 'n k'],
    labels: Int[np.ndarray, ' n'] | Int[np.ndarray, 'n heads'] | Float[np.ndarray, 'n k'],
    *,
    loss_kind: str,
    head_sizes: Sequence[int],
    head_names: Sequence[str],
) -> dict[str, float]:
    """All metrics of an evaluation but the loss, as fractions in [0, 1].

    One softmax head: 'top_1', 'top_5', 'mean_per_class' (the classes' accuracies, averaged).
    Several heads: the same as '<name>_top_1' and so on, and the joint 'action_top_1', 'action_top_5': all
    heads right at once, ranked by the product of their softmaxes (Scenic's noun-verb), whatever their names.
    Sigmoid: 'mean_average_precision', the mean of `average_precision` over classes with a positive example.
    A top-5 appears only with more than 5 classes (or combinations): with fewer it is 1 by definition.

    Args:
        scores: scores of every example, the heads side by side; padding dropped.
        labels: the batch's label forms; of float targets under softmax the largest is the label.
        loss_kind: 'softmax' or 'sigmoid' (one head).
        head_sizes: classes of each head, `(k,)` for one.
        head_names: a name a head; a single head needs none.

    Returns:
        Names and values.

    Raises:
        ValueError: no examples, an unknown kind, labels or heads that do not go with the scores.
    """
    _check('loss', loss_kind, LOSS_KINDS)
    num_examples, num_classes = scores.shape
    if not num_examples:
        raise ValueError('metrics need at least one example, found none')
    if len(labels) != num_examples:
        raise ValueError(f'{len(labels)} labels do not go with the scores of {num_examples} examples')
    if sum(head_sizes) != num_classes:
        raise ValueError(f'head sizes {tuple(head_sizes)} must add up to {num_classes} classes')
    if loss_kind == 'sigmoid':
        return _multi_label_metrics(scores, labels, head_sizes)
    indices = _label_indices(labels, head_sizes)
    if len(head_sizes) == 1:
        return _head_metrics(scores, indices[:, 0], '')
    if len(set(head_names) - {'action'}) != len(head_sizes):
        raise ValueError(
            f"head names {tuple(head_names)} must be {len(head_sizes)} different ones, none of them 'action'"
        )
    metrics = {}
    heads = np.split(scores, _split_points(head_sizes), axis=1)
    for index, (name, head) in enumerate(zip(head_names, heads, strict=True)):
        metrics.update(_head_metrics(head, indices[:, index], f'{name}_'))
    return {**metrics, **_joint_metrics(scores, indices, head_sizes)}


def _multi_label_metrics(
    scores: np.ndarray, labels: np.ndarray, head_sizes: Sequence[int]
) -> dict[str, float]:
    if len(head_sizes) != 1:
        raise ValueError(
            f"loss 'sigmoid' takes one head, not {tuple(head_sizes)}; several heads take 'softmax'"
        )
    if np.issubdtype(labels.dtype, np.floating):
        targets = labels
    else:
        targets = np.arange(head_sizes[0]) == _label_indices(labels, head_sizes)
    values = average_precision(scores, targets)
    present = ~np.isnan(values)
    return {'mean_average_precision': float(values[present].mean()) if present.any() else 0.0}
