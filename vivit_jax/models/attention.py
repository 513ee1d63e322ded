"""Multi-headed dot-product attention over all tokens, or within groups of them."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, reduce, repeat
from jaxtyping import Array, Float, Int

from vivit_jax.models import accelerated
from vivit_jax.models.blockwise import blockwise, scaled_products

# How tokens that do not attend to one another go apart, into the batch; and heads before the rest, in the same turn.
FOLDS = {
    'space': 'b (t h w) heads c -> (b t) heads (h w) c',
    'time': 'b (t h w) heads c -> (b h w) heads t c',
    'height': 'b (t h w) heads c -> (b t w) heads h c',
    'width': 'b (t h w) heads c -> (b t h) heads w c',
    # A quarter of every frame, all frames of it: a neighbourhood.
    'window': 'b (t i h j w) heads c -> (b i j) heads (t h w) c',
    # Every second token along all three axes: the whole clip, coarsely.
    'grid': 'b (t k h i w j) heads c -> (b k i j) heads (t h w) c',
}
# Into how many parts time, height and width are cut: k, i and j above.
PARTS = {'window': (1, 2, 2), 'grid': (2, 2, 2)}

BACKENDS = ('auto', 'xla', 'blockwise', 'cudnn', 'flash')
# Tokens from which on 'auto' keeps the matrix of all weights out of memory. On CPUs, whole models take no more of it
# with fewer tokens, and are a tenth faster forward; on GPUs and TPUs this was not measured.
LONG = 1024

Grid = tuple[int, int, int]

Tokens = Float[Array, 'b n d']
Split = Float[Array, 'b n heads c']  # as they are projected: no more than another view of `b n d`
Heads = Float[Array, 'b heads n c']
Queries = Float[Array, 'b heads q c']  # of all n tokens, or of some
Weights = Float[Array, 'b heads q n']
# The same with groups of tokens in the batch.
Folded = Float[Array, 'bf heads m c']


def dot_product_attention(query: Heads, key: Heads, value: Heads, *, backend: str = 'auto') -> Heads:
    """Softmax attention, softmax(Q Kᵀ / √c) V (paper, equation 7), with float32 softmax statistics.

    Heads come before tokens, so that all products are plain batched matrix products: on CPU this layout is
    nearly twice as fast as tokens first.

    Args:
        query: Queries `[b heads n c]`, in the compute dtype.
        key: Keys, same shape.
        value: Values, same shape.
        backend: One of `BACKENDS`; see `choose_backend`. All agree to rounding.

    Returns:
        The mixed values `[b heads n c]` in the compute dtype.

    Raises:
        ValueError: If the backend is none, or cannot do this here.
    """
    backends: dict[str, Callable[..., Heads]] = {
        'xla': plain,
        'blockwise': blockwise,
        'cudnn': accelerated.cudnn,
        'flash': accelerated.flash,
    }
    return backends[choose_backend(backend, query.shape, query.dtype)](query, key, value)


def choose_backend(backend: str, shape: tuple[Any, ...], dtype: Any, device: Any = None) -> str:
    """Returns what computes attention: 'xla' with the matrix of all weights, or one of those without it.

    'auto' takes cuDNN on GPUs in 16 bits, Pallas' flash attention on TPUs for long sequences, 'blockwise' wherever
    else the sequence is long, and 'xla' for short ones. Any other is what it says, where it can be.

    Args:
        backend: One of `BACKENDS`.
        shape: `(b, heads, n, c)` of the queries.
        dtype: Theirs.
        device: Where it is to run; by default where jax computes.

    Raises:
        ValueError: If the backend is none, or cannot do this there: one line that says why.
    """
    device = device or accelerated.default_device()
    against = {
        'cudnn': accelerated.cudnn_takes(shape, dtype, device),
        'flash': accelerated.flash_takes(shape, dtype, device),
    }
    if backend == 'auto':
        if not against['cudnn']:
            return 'cudnn'
        if shape[2] < LONG:
            return 'xla'
        return 'blockwise' if against['flash'] else 'flash'
    if backend not in BACKENDS:
        raise ValueError(f'model.attention_backend={backend!r}: choose one of {", ".join(BACKENDS)}')
    if against.get(backend):
        raise ValueError(f'model.attention_backend={backend!r}: {against[backend]}; choose auto')
    return backend


def plain(query: Queries, key: Heads, value: Heads) -> Queries:
    """Softmax attention with a matrix of all weights in memory; see `dot_product_attention`.

    What is divided by the sums over keys is the result, which is smaller than the weights as a rule. The weights stay
    float32: rounded, they and their gradients would no longer cancel where a softmax is peaked.
    """
    scores = scaled_products(query, key)
    # The result does not depend on what is subtracted, so neither does its gradient.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    mixed = jnp.einsum('bhqk,bhkc->bhqc', weights, value)
    return (mixed / weights.sum(axis=-1, keepdims=True)).astype(value.dtype)


def weighed(
    query: Queries,
    key: Heads,
    value: Heads,
    *,
    drop: Callable[[Weights], Weights] | None = None,
    watch: Callable[[Weights], Weights] | None = None,
) -> tuple[Queries, Weights]:
    """Softmax attention that can show its weights and drop some; see `dot_product_attention`.

    Args:
        query: Queries `[b heads q c]`, in the compute dtype.
        key: Keys `[b heads n c]`.
        value: Values, same shape.
        drop: Dropout for the attention weights, if any.
        watch: Is given the weights, if there is one, and gives those to go on with.

    Returns:
        The mixed values `[b heads q c]` in the compute dtype, and the weights `[b heads q n]` in float32,
        before dropout.
    """
    weights = jax.nn.softmax(scaled_products(query, key), axis=-1)
    if watch:
        weights = watch(weights)
    dropped = drop(weights) if drop else weights
    return jnp.einsum('bhqk,bhkc->bhqc', dropped, value).astype(value.dtype), weights


class HeadProjection(nn.Module):
    """A linear map into heads: `[b n d] -> [b n heads c]`, kernel `[d heads c]`, bias `[heads c]`."""

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Tokens) -> Split:
        """Projects every token into `num_heads` vectors of `d / num_heads` numbers."""
        width = x.shape[-1]
        per_head = (self.num_heads, width // self.num_heads)
        # The initialiser sees the matrix it really is: d inputs, d outputs.
        kernel = self.param('kernel', _reshaped_xavier((width, width)), (width, *per_head))
        bias = self.param('bias', nn.initializers.zeros, per_head)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return jnp.einsum('bnd,dhc->bnhc', x, kernel) + bias


class HeadMerge(nn.Module):
    """The linear map out of the heads: `[b n heads c] -> [b n d]`, kernel `[heads c d]`, bias `[d]`."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Split) -> Tokens:
        """Joins the heads of every token and projects them."""
        heads, per_head = x.shape[2:]
        width = heads * per_head
        kernel = self.param('kernel', _reshaped_xavier((width, width)), (heads, per_head, width))
        bias = self.param('bias', nn.initializers.zeros, (width,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return jnp.einsum('bnhc,hcd->bnd', x, kernel) + bias


class MultiHeadAttention(nn.Module):
    """Self-attention over what `over` names (ViViT, section 3.3; TimeSformer, section 3).

    Attributes:
        num_heads: Heads; for 'time_and_space' an even number, of which the first half attends over time and
            the second over space (Model 4, equation 8; the order is Scenic's).
        over: 'all', a key of `FOLDS`, or 'time_and_space'.
        grid: `(nt, nh, nw)` of the tokens. Those before them, of no place in it, are cls tokens: as `n - nt nh nw`
            tells. Attention over 'all' makes no difference between them; in any other they belong to every group,
            and their outputs are averaged over the groups.
        dropout_rate: Dropout of the attention weights, in [0, 1); where it is active, 'xla' computes them.
        backend: One of `BACKENDS`.
        remat: Whether the backward pass computes the attention anew.
        dtype: Compute dtype; parameters, softmax statistics and captured weights are float32.
    """

    num_heads: int
    over: str
    grid: Grid
    dropout_rate: float
    backend: str
    remat: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, x: Tokens, *, train: bool, capture: bool, asking: int | None = None
    ) -> tuple[Float[Array, 'b q d'], dict[str, Array]]:
        """Returns the attended tokens `[b q d]` and, if `capture`, the attention weights by what they are over.

        `asking` tokens, the first, look at all others (q of n, over 'all' only); None: all of them, q = n.

        The weights, taken before dropout, are `{'all': [b heads n n]}`, or `[b g heads m m]` with the g groups in
        the order of `groups` and the m tokens of each: `{'space': [b nt heads nh*nw nh*nw]}`,
        `{'time': [b nh*nw heads nt nt]}`, and so on; m is one more where a cls token, the first, takes part.
        'time_and_space' has both of these, with half of the heads each. What is in the collection 'perturbations'
        under the same names, `[(b g) heads m m]`, is added to captured weights: gradients by zeros in it are those
        by the weights.

        Raises:
            ValueError: If the grid cannot be cut as a 'window' or a 'grid' needs.
        """
        query, key, value = (
            HeadProjection(self.num_heads, self.dtype, name=name)(tokens)
            for name, tokens in (('query', x[:, :asking]), ('key', x), ('value', x))
        )
        weights: dict[str, Array] = {}
        mixed = []
        for over, heads in self._heads_by_group():
            parts = [_fold(part[:, :, heads], over, self.grid) for part in (query, key, value)]
            drop = self._drop() if train and self.dropout_rate else None
            if capture:
                watch = functools.partial(self.perturb, over)
                folded, folded_weights = weighed(*parts, drop=drop, watch=watch)
                weights[over] = _unfold_batch(folded_weights, over, self.grid)
            else:
                folded = self._mix(drop, few=asking is not None)(*parts)
            mixed.append(_unfold(folded, over, self.grid))
        return HeadMerge(self.dtype, name='out')(jnp.concatenate(mixed, axis=2)), weights

    def _mix(self, drop: Callable[[Weights], Weights] | None, *, few: bool) -> Callable[..., Heads]:
        """Returns the attention without its weights; those of `few` queries are no matrix to be kept from memory."""
        mix: Callable[..., Heads] = functools.partial(dot_product_attention, backend=self.backend)
        if few:
            mix = plain
        if drop:
            mix = lambda *parts: weighed(*parts, drop=drop)[0]  # noqa: E731
        return jax.checkpoint(mix) if self.remat else mix

    def _drop(self) -> Callable[[Weights], Weights]:
        """Returns dropout with a draw of its own, the same however often it is computed."""
        rngs = {'dropout': self.make_rng('dropout')}
        dropout: Any = nn.Dropout(self.dropout_rate, deterministic=False, parent=None)
        return functools.partial(dropout.apply, {}, rngs=rngs)

    def _heads_by_group(self) -> list[tuple[str, slice]]:
        if self.over != 'time_and_space':
            return [(self.over, slice(None))]
        half = self.num_heads // 2
        return [('time', slice(None, half)), ('space', slice(half, None))]


def groups(over: str, grid: Grid) -> Int[np.ndarray, 'g m']:
    """Returns the tokens that attend to one another, a row of flat indices a group, as the attention folds them.

    Args:
        over: 'all' or a key of `FOLDS`.
        grid: `(nt, nh, nw)` of the tokens.

    Raises:
        ValueError: If the grid cannot be cut as a 'window' or a 'grid' needs.
    """
    places = np.arange(math.prod(grid))
    if over == 'all':
        return places[None]
    return rearrange(places[None, :, None, None], FOLDS[over], **_sizes(over, grid))[:, 0, :, 0]


def _sizes(over: str, grid: Grid) -> dict[str, int]:
    """Returns the lengths of the axes that a fold names."""
    parts = PARTS.get(over, (1, 1, 1))
    if any(size % part for size, part in zip(grid, parts, strict=True)):
        raise ValueError(
            f'attention over a {over!r} cuts the token grid into {parts} parts along (time, height, width), which '
            f'do not divide {grid}: choose a clip and model.tubelet for which they do'
        )
    sizes = {axis: size // part for axis, size, part in zip('thw', grid, parts, strict=True)}
    return sizes | {axis: part for axis, part in zip('kij', parts, strict=True) if part > 1}


def _fold(x: Split, over: str, grid: Grid) -> Folded:
    """Moves groups of tokens into the batch, cls tokens into each of them, and heads before tokens."""
    if over == 'all':
        return rearrange(x, 'b n heads c -> b heads n c')
    num_cls = x.shape[1] - math.prod(grid)
    folded = rearrange(x[:, num_cls:], FOLDS[over], **_sizes(over, grid))
    if not num_cls:
        return folded
    cls = repeat(x[:, :num_cls], 'b m heads c -> (b g) heads m c', g=len(groups(over, grid)))
    return jnp.concatenate([cls, folded], axis=2)


def _unfold(x: Folded, over: str, grid: Grid) -> Split:
    """Undoes `_fold`, with the average of the cls tokens."""
    if over == 'all':
        return rearrange(x, 'b heads n c -> b n heads c')
    num_groups, in_group = groups(over, grid).shape
    num_cls = x.shape[2] - in_group
    tokens, folded = FOLDS[over].split(' -> ')
    unfolded = rearrange(x[:, :, num_cls:], f'{folded} -> {tokens}', **_sizes(over, grid))
    if not num_cls:
        return unfolded
    cls = reduce(x[:, :, :num_cls], '(b g) heads m c -> b m heads c', 'mean', g=num_groups)
    return jnp.concatenate([cls, unfolded], axis=1)


def _unfold_batch(weights: Weights, over: str, grid: Grid) -> Array:
    """Gives the groups of attention weights their own axis."""
    if over == 'all':
        return weights
    return rearrange(weights, '(b g) heads q k -> b g heads q k', g=len(groups(over, grid)))


def _reshaped_xavier(matrix_shape: tuple[int, int]) -> nn.initializers.Initializer:
    """Xavier-uniform for a kernel that is a matrix with one of its sides split into heads."""

    def initialise(rng: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return nn.initializers.xavier_uniform()(rng, matrix_shape, dtype).reshape(shape)

    return initialise
