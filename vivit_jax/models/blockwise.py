"""Softmax attention in blocks: the n x n matrix is never there, forward or backward (memory linear in n).

The forward pass walks over blocks of keys with a running maximum and sum (Milakov and Gimelshein 2018, "Online
normalizer calculation for softmax"; Rabe and Staats 2021, "Self-attention does not need O(n^2) memory"); the backward
pass makes the weights anew from the logarithm of that sum, block by block (Dao et al. 2022, "FlashAttention",
section 3.1 and appendix B).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax
from jaxtyping import Array, Float

Heads = Float[Array, 'b heads n c']
Rows = Float[Array, 'b heads n']

# Of queries and keys. Smaller blocks are slower, by the work that each takes besides its products; the weights of
# larger ones begin to count beside what a model keeps for its backward pass: here 48 MiB for twelve heads of a clip,
# and on the way back as much again for their gradients.
LARGEST_BLOCK = 1024


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def blockwise(query: Heads, key: Heads, value: Heads, block: int = LARGEST_BLOCK) -> Heads:
    """Softmax attention, softmax(Q Kᵀ / √c) V (paper, equation 7), without the matrix of all weights.

    Scores, statistics, weights and their gradients, what is summed up over blocks, and the mixed values that are kept
    for the backward pass are float32, whatever the inputs.

    Args:
        query: Queries, float32 or bfloat16.
        key: Keys, as many.
        value: Values, as many.
        block: Most queries, and most keys, of a block; at least 1.

    Returns:
        The mixed values, of the values' dtype. Differentiable once, in reverse.
    """
    return _forward(query, key, value, block)[0]


def _forward(query: Heads, key: Heads, value: Heads, block: int) -> tuple[Heads, tuple[Array, ...]]:
    if query.shape[2] <= block:
        scores = scaled_products(query, key)
        largest = scores.max(axis=-1, keepdims=True)
        weights = jnp.exp(scores - largest)
        total = weights.sum(axis=-1, keepdims=True)
        mixed = _product('bhqk,bhkc->bhqc', weights, value) / total
        return mixed.astype(value.dtype), (query, key, value, mixed, (largest + jnp.log(total))[..., 0])
    blocks = (_cut(key, block), _cut(value, block), _bias(key.shape[2], block))

    def of_queries(_: None, queries: Array) -> tuple[None, tuple[Array, Array]]:
        def over_keys(carry: Any, keys: tuple[Array, Array, Array]) -> tuple[Any, None]:
            mixed, largest, total = carry
            k, v, bias = keys
            scores = scaled_products(queries, k) + bias
            higher = jnp.maximum(largest, scores.max(axis=-1))
            weights = jnp.exp(scores - higher[..., None])
            shrink = jnp.exp(largest - higher)
            mixed = mixed * shrink[..., None] + _product('bhqk,bhkc->bhqc', weights, v)
            return (mixed, higher, total * shrink + weights.sum(axis=-1)), None

        rows = queries.shape[:-1]
        start = (jnp.zeros(queries.shape, jnp.float32), jnp.full(rows, -jnp.inf), jnp.zeros(rows))
        (mixed, largest, total), _ = lax.scan(over_keys, start, blocks)
        return None, (mixed / total[..., None], largest + jnp.log(total))

    _, (mixed, log_total) = lax.scan(of_queries, None, _cut(query, block))
    mixed = _join(mixed, query.shape[2])
    return mixed.astype(value.dtype), (query, key, value, mixed, log_total)


def _backward(block: int, saved: tuple[Array, ...], gradient: Heads) -> tuple[Heads, Heads, Heads]:
    query, key, value, mixed, log_total = saved
    # What every weight's gradient has in common in a row: the sum over the row of weight times gradient.
    common = jnp.sum(gradient.astype(jnp.float32) * mixed, axis=-1, keepdims=True)
    if query.shape[2] <= block:
        to_query, to_key, to_value = _gradients(query, key, value, gradient, common, log_total[..., None])
        return to_query.astype(query.dtype), to_key.astype(key.dtype), to_value.astype(value.dtype)
    blocks = (_cut(key, block), _cut(value, block), _bias(key.shape[2], block))

    def of_queries(sums: tuple[Array, Array], rows: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        q, g, shared, logs = rows

        def over_keys(to_q: Array, keys: tuple[Array, ...]) -> tuple[Array, tuple[Array, Array]]:
            k, v, bias = keys
            more, to_k, to_v = _gradients(q, k, v, g, shared, logs[..., None], bias)
            return to_q + more, (to_k, to_v)

        to_q, to_keys = lax.scan(over_keys, jnp.zeros(q.shape, jnp.float32), blocks)
        return jax.tree.map(jnp.add, sums, to_keys), to_q.astype(query.dtype)

    zeros = jnp.zeros(blocks[0].shape, jnp.float32)
    rows = (_cut(query, block), _cut(gradient, block), _cut(common, block), log_total)
    (to_key, to_value), to_query = lax.scan(of_queries, (zeros, zeros), rows)
    n = query.shape[2]
    return _join(to_query, n), _join(to_key, n).astype(key.dtype), _join(to_value, n).astype(value.dtype)


blockwise.defvjp(_forward, _backward)


def scaled_products(
    query: Float[Array, 'b heads q c'], key: Float[Array, 'b heads k c']
) -> Float[Array, 'b heads q k']:
    """Returns Q Kᵀ / √c in float32.

    Queries are scaled where they are float32, which is faster than scaling their products; those of 16 bits would be
    rounded once more by it.
    """
    scale = 1 / math.sqrt(query.shape[-1])
    if query.dtype == jnp.float32:
        return _product('bhqc,bhkc->bhqk', query * scale, key)
    return _product('bhqc,bhkc->bhqk', query, key) * scale


def _size(n: int, block: int) -> tuple[int, int]:
    """Returns how many blocks n tokens take, and the tokens of each: as even as can be, so that little is padded."""
    count = -(-n // block)
    return count, -(-n // count)


def _cut(x: Heads, block: int) -> Float[Array, 'blocks b heads m c']:
    """Cuts tokens into blocks, the last padded with zeros."""
    count, size = _size(x.shape[2], block)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, count * size - x.shape[2]), (0, 0)))
    return rearrange(x, 'b heads (blocks m) c -> blocks b heads m c', blocks=count)


def _join(x: Float[Array, 'blocks b heads m c'], n: int) -> Heads:
    """Undoes `_cut`."""
    return rearrange(x, 'blocks b heads m c -> b heads (blocks m) c')[:, :, :n]


def _bias(n: int, block: int) -> Float[Array, 'blocks m']:
    """Returns what is added to the scores of keys: minus infinity to those of the padding."""
    count, size = _size(n, block)
    return jnp.where(jnp.arange(count * size) < n, 0.0, -jnp.inf).reshape(count, size)


def _gradients(
    q: Array, k: Array, v: Array, g: Array, common: Array, log_total: Array, bias: Array | float = 0.0
) -> tuple[Array, Array, Array]:
    """Returns what a block of queries and a block of keys give to the gradients by q, k and v."""
    weights = jnp.exp(scaled_products(q, k) + bias - log_total)
    to_products = weights * (_product('bhqc,bhkc->bhqk', g, v) - common) / math.sqrt(k.shape[-1])
    return (
        _product('bhqk,bhkc->bhqc', to_products, k),
        _product('bhqk,bhqc->bhkc', to_products, q),
        _product('bhqk,bhqc->bhkc', weights, g),
    )


def _product(axes: str, one: Array, other: Array) -> Array:
    return jnp.einsum(axes, one, other, preferred_element_type=jnp.float32)
