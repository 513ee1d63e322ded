"""Classification losses, one value an example, from float targets that mixup may have blended.

The three label forms of a batch all become float targets first, so a training step reads

    targets = one_hot_targets(labels, head_sizes)
    video, targets = mixup(rng, video, targets, alpha=alpha)
    loss = masked_mean(per_example_loss(logits, targets, loss=..., ...), mask)

Another loss is one more function `(logits [b k], targets [b k]) -> [b]` and its line in `LOSSES`.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int


def split_heads(values: Float[Array, 'b k'], head_sizes: Sequence[int]) -> list[Float[Array, 'b _']]:
    """Cuts the class axis of the one projection into its heads.

    Args:
        values: logits or targets, all heads side by side.
        head_sizes: classes of each head, in order; they must add up to k.

    Returns:
        One array [b, head_sizes[i]] a head.

    Raises:
        ValueError: where the sizes do not add up to k.
    """
    if sum(head_sizes) != values.shape[-1]:
        raise ValueError(f'head sizes {tuple(head_sizes)} must add up to {values.shape[-1]} classes')
    return jnp.split(values, list(accumulate(head_sizes))[:-1], axis=-1)


def one_hot_targets(
    labels: Int[Array, ' b'] | Int[Array, 'b heads'] | Float[Array, 'b k'], head_sizes: Sequence[int]
) -> Float[Array, 'b k']:
    """Turns any of the three label forms into float32 targets.

    Args:
        labels: class indices [b] of one head, indices [b heads] of several, each within its own head, or
            ready targets [b k] (multi-hot, soft), which pass unchanged.
        head_sizes: classes of each head, in order.

    Returns:
        Targets in [0, 1], the heads side by side. An index outside its head gives a row of zeros there, which
        no loss counts as any class: traced code cannot raise, so sources check their labels.

    Raises:
        ValueError: where the shape of the labels does not go with the heads.
    """
    if jnp.issubdtype(labels.dtype, jnp.floating):
        if labels.ndim != 2 or labels.shape[1] != sum(head_sizes):
            raise ValueError(f'float labels of shape {labels.shape} must be [b {sum(head_sizes)}]')
        return labels.astype(jnp.float32)
    indices = rearrange(labels, 'b -> b 1') if labels.ndim == 1 else labels
    if indices.shape[1] != len(head_sizes):
        raise ValueError(
            f'integer labels of shape {labels.shape} do not go with the heads {tuple(head_sizes)}'
        )
    hot = [jax.nn.one_hot(indices[:, i], size, dtype=jnp.float32) for i, size in enumerate(head_sizes)]
    return jnp.concatenate(hot, axis=-1)


def smooth_labels(targets: Float[Array, 'b k'], label_smoothing: float) -> Float[Array, 'b k']:
    """Label smoothing, y (1 - s) + s / k (Szegedy et al. 2016, section 7).

    Args:
        targets: targets of one head.
        label_smoothing: s in [0, 1).

    Returns:
        The smoothed targets, the same shape.
    """
    return targets * (1.0 - label_smoothing) + label_smoothing / targets.shape[-1]


def softmax_cross_entropy(logits: Float[Array, 'b k'], targets: Float[Array, 'b k']) -> Float[Array, ' b']:
    """Cross-entropy with a softmax, -sum_k y_k log softmax(x)_k.

    Args:
        logits: float32 scores of one head.
        targets: float targets of that head.

    Returns:
        The loss of each example, >= 0.
    """
    return -jnp.sum(targets * jax.nn.log_softmax(logits, axis=-1), axis=-1)


def sigmoid_cross_entropy(logits: Float[Array, 'b k'], targets: Float[Array, 'b k']) -> Float[Array, ' b']:
    """Binary cross-entropy of every class, *summed* over the classes, as Scenic's multi-label models have it.

    -sum_k [y_k log sigmoid(x_k) + (1 - y_k) log sigmoid(-x_k)]

    Args:
        logits: float32 scores.
        targets: multi-hot or soft targets.

    Returns:
        The loss of each example, >= 0; it grows with the number of classes.
    """
    positive = targets * jax.nn.log_sigmoid(logits)
    negative = (1.0 - targets) * jax.nn.log_sigmoid(-logits)
    return -jnp.sum(positive + negative, axis=-1)


def softmax_twice_cross_entropy(
    logits: Float[Array, 'b k'], targets: Float[Array, 'b k']
) -> Float[Array, ' b']:
    """Cross-entropy of probabilities taken for logits, -sum_k y_k log softmax(softmax(x))_k: a slip, kept to compare.

    It is what a model that ends in a softmax gets from a cross-entropy that applies its own, as PyTorch's does.
    Probabilities lie in [0, 1], so it cannot fall below ln(e + k - 1) - 1, which is 1.543 for 11 classes, and its
    gradient fades where the model is certain. What the model predicts is softmax(x) all the same.

    Args:
        logits: float32 scores of one head, before either softmax.
        targets: float targets of that head.

    Returns:
        The loss of each example.
    """
    return softmax_cross_entropy(jax.nn.softmax(logits, axis=-1), targets)


LOSSES: dict[str, Callable[..., Array]] = {
    'softmax': softmax_cross_entropy,
    'softmax_twice': softmax_twice_cross_entropy,
    'sigmoid': sigmoid_cross_entropy,
}


def loss_kind(loss: str) -> str:
    """Returns what makes probabilities of the logits that a loss trains, 'softmax' or 'sigmoid'."""
    return 'sigmoid' if loss == 'sigmoid' else 'softmax'


def per_example_loss(
    logits: Float[Array, 'b k'],
    labels: Int[Array, ' b'] | Int[Array, 'b heads'] | Float[Array, 'b k'],
    *,
    loss: str,
    head_sizes: Sequence[int],
    label_smoothing: float,
) -> Float[Array, ' b']:
    """The loss of each example: label smoothing, then the named loss, averaged over the heads.

    Each head is smoothed over its own classes and has its own softmax; their losses are averaged, not summed
    (Scenic's multi-head model).

    Args:
        logits: scores of all heads side by side; taken to float32.
        labels: any form `one_hot_targets` takes, mixed float targets among them.
        loss: one of `LOSSES`; 'sigmoid' takes one head only, whose classes are independent anyway.
        head_sizes: classes of each head, `(k,)` for one.
        label_smoothing: s in [0, 1); 0 leaves the targets alone.

    Returns:
        float32 losses; `masked_mean` averages them.

    Raises:
        ValueError: an unknown loss, a smoothing out of range, heads that do not go with the shapes.
    """
    if loss not in LOSSES:
        raise ValueError(f'loss {loss!r} is none of {", ".join(LOSSES)}')
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f'label_smoothing {label_smoothing} must be in [0, 1)')
    if loss == 'sigmoid' and len(head_sizes) != 1:
        raise ValueError(
            f"loss 'sigmoid' takes one head, not {tuple(head_sizes)}; several heads take 'softmax'"
        )
    targets = one_hot_targets(labels, head_sizes)
    heads = zip(
        split_heads(logits.astype(jnp.float32), head_sizes), split_heads(targets, head_sizes), strict=True
    )
    losses = [LOSSES[loss](scores, smooth_labels(wanted, label_smoothing)) for scores, wanted in heads]
    return sum(losses[1:], start=losses[0]) / len(losses)


def masked_mean(
    values: Float[Array, ' b'],
    mask: Bool[Array, ' b'] | Float[Array, ' b'],
    total: Float[Array, ''] | None = None,
) -> Float[Array, '']:
    """Weighted mean sum(w v) / sum(w), and 0 where every example is masked out.

    Args:
        values: one value an example. Those with weight 0 are never read, so padding may hold NaN.
        mask: False (or 0) on padding, True (or any weight >= 0) elsewhere.
        total: what to divide by instead of the weights' sum, where these are a part of the examples: that of all.
            The results of all parts then add up to the mean.

    Returns:
        The float32 mean.
    """
    weights = mask.astype(jnp.float32)
    weighted = jnp.sum(jnp.where(weights > 0.0, weights * values, 0.0))
    total = jnp.sum(weights) if total is None else total
    return weighted / jnp.maximum(total, jnp.finfo(jnp.float32).tiny)
