"""Multi-headed dot-product attention over all tokens, or over one axis of the token grid."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

# What a token may attend to. 'time_and_space' is Model 4: half of the heads for each axis.
AXES = ('all', 'space', 'time', 'time_and_space')

Tokens = Float[Array, 'b n d']
Heads = Float[Array, 'b heads n c']
Weights = Float[Array, 'b heads n n']
# The same with the axis that is not attended over in the batch.
Folded = Float[Array, 'bf heads m c']


def attend(
    query: Heads, key: Heads, value: Heads, *, dropout: nn.Module, train: bool
) -> tuple[Heads, Weights]:
    """Softmax attention, softmax(Q Kᵀ / √c) V (paper, equation 7), with float32 softmax statistics.

    Heads come before tokens, so that both products are plain batched matrix products: on CPU this layout is
    nearly twice as fast as tokens first.

    Args:
        query: Queries `[b heads n c]`, in the compute dtype.
        key: Keys, same shape.
        value: Values, same shape.
        dropout: Dropout for the attention weights.
        train: Whether dropout is active.

    Returns:
        The mixed values `[b heads n c]` in the compute dtype, and the weights `[b heads n n]` in float32,
        before dropout.
    """
    query = query / math.sqrt(query.shape[-1])
    scores = jnp.einsum('bhqc,bhkc->bhqk', query, key, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores, axis=-1)
    dropped = dropout(weights, deterministic=not train).astype(value.dtype)
    return jnp.einsum('bhqk,bhkc->bhqc', dropped, value), weights


class HeadProjection(nn.Module):
    """A linear map into heads: `[b n d] -> [b heads n c]`, kernel `[d heads c]`, bias `[heads c]`."""

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Tokens) -> Heads:
        """Projects every token into `num_heads` vectors of `d / num_heads` numbers."""
        width = x.shape[-1]
        per_head = (self.num_heads, width // self.num_heads)
        # The initialiser sees the matrix it really is: d inputs, d outputs.
        kernel = self.param('kernel', _reshaped_xavier((width, width)), (width, *per_head))
        bias = self.param('bias', nn.initializers.zeros, per_head)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return jnp.einsum('bnd,dhc->bhnc', x, kernel) + bias[:, None, :]


class HeadMerge(nn.Module):
    """The linear map out of the heads: `[b heads n c] -> [b n d]`, kernel `[heads c d]`, bias `[d]`."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Heads) -> Tokens:
        """Joins the heads of every token and projects them."""
        heads, per_head = x.shape[1], x.shape[3]
        width = heads * per_head
        kernel = self.param('kernel', _reshaped_xavier((width, width)), (heads, per_head, width))
        bias = self.param('bias', nn.initializers.zeros, (width,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        return jnp.einsum('bhnc,hcd->bnd', x, kernel) + bias


class MultiHeadAttention(nn.Module):
    """Self-attention over the axes that `over` names (paper, section 3.3).

    Attributes:
        num_heads: Heads; for 'time_and_space' an even number, of which the first half attends over time and
            the second over space (Model 4, equation 8; the order is Scenic's).
        over: One of `AXES`.
        grid: `(time, space)` sizes of the token grid, `time * space = n`; unused for 'all'.
        dropout_rate: Dropout of the attention weights, in [0, 1).
        dtype: Compute dtype; parameters, softmax statistics and captured weights are float32.
    """

    num_heads: int
    over: str
    grid: tuple[int, int]
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool, capture: bool) -> tuple[Tokens, dict[str, Array]]:
        """Returns the attended tokens `[b n d]` and, if `capture`, the attention weights by axis.

        The weights, taken before dropout, are `{'all': [b heads n n]}`, `{'space': [b time heads space space]}` or
        `{'time': [b space heads time time]}`; 'time_and_space' has both of the latter, with half of the heads
        each.
        """
        query, key, value = (
            HeadProjection(self.num_heads, self.dtype, name=name)(x) for name in ('query', 'key', 'value')
        )
        dropout = nn.Dropout(self.dropout_rate)
        weights: dict[str, Array] = {}
        mixed = []
        for axis, heads in self._heads_by_axis():
            parts = [_fold(part[:, heads], axis, self.grid) for part in (query, key, value)]
            folded, folded_weights = attend(*parts, dropout=dropout, train=train)
            mixed.append(_unfold(folded, axis, self.grid))
            if capture:
                weights[axis] = _unfold_batch(folded_weights, axis, self.grid)
        return HeadMerge(self.dtype, name='out')(jnp.concatenate(mixed, axis=1)), weights

    def _heads_by_axis(self) -> list[tuple[str, slice]]:
        if self.over != 'time_and_space':
            return [(self.over, slice(None))]
        half = self.num_heads // 2
        return [('time', slice(None, half)), ('space', slice(half, None))]


def _fold(x: Heads, axis: str, grid: tuple[int, int]) -> Folded:
    """Moves the axis that is not attended over into the batch."""
    time, space = grid
    if axis == 'space':
        return rearrange(x, 'b h (t s) c -> (b t) h s c', t=time, s=space)
    if axis == 'time':
        return rearrange(x, 'b h (t s) c -> (b s) h t c', t=time, s=space)
    return x


def _unfold(x: Folded, axis: str, grid: tuple[int, int]) -> Heads:
    """Undoes `_fold`."""
    time, space = grid
    if axis == 'space':
        return rearrange(x, '(b t) h s c -> b h (t s) c', t=time)
    if axis == 'time':
        return rearrange(x, '(b s) h t c -> b h (t s) c', s=space)
    return x


def _unfold_batch(weights: Weights, axis: str, grid: tuple[int, int]) -> Array:
    """Gives the folded axis of attention weights back its own place."""
    if axis == 'all':
        return weights
    folded = {'space': grid[0], 'time': grid[1]}[axis]
    return rearrange(weights, '(b f) h q k -> b f h q k', f=folded)


def _reshaped_xavier(matrix_shape: tuple[int, int]) -> nn.initializers.Initializer:
    """Xavier-uniform for a kernel that is a matrix with one of its sides split into heads."""

    def initialise(rng: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return nn.initializers.xavier_uniform()(rng, matrix_shape, dtype).reshape(shape)

    return initialise
