"""The transformer encoder: pre-norm blocks of attention and MLP (paper, equations 3 to 6)."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vivit_jax import sharding
from vivit_jax.models.attention import MultiHeadAttention
from vivit_jax.models.embed import PositionEmbedding
from vivit_jax.models.patterns import Pattern

Tokens = Float[Array, 'b n d']


def geglu(x: Array) -> Array:
    """The first half of `x` times the GELU (tanh) of the second (Shazeer 2020, as T5 1.1 computes it)."""
    values, gates = jnp.split(x, 2, axis=-1)
    return values * nn.gelu(gates, approximate=True)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    'gelu_tanh': functools.partial(nn.gelu, approximate=True),
    'gelu_exact': functools.partial(nn.gelu, approximate=False),
    'geglu': geglu,
}
# Numbers that go into an activation for each that comes out.
INPUTS = {'gelu_tanh': 1, 'gelu_exact': 1, 'geglu': 2}


# What of a block the forward pass keeps for the backward pass, which computes the rest anew: nothing but its input,
# or the products with parameters.
POLICIES: dict[str, Callable[..., bool] | None] = {
    'block': None,
    'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
REMATS = ('none', 'attention', *POLICIES)


class MlpBlock(nn.Module):
    """Two dense layers with an activation between (the second half of a block).

    `hidden` is the width after the activation; with 'geglu' the first layer makes twice as many.
    """

    hidden: int
    activation: str
    dropout_rate: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: Tokens, *, train: bool) -> Tokens:
        """Returns `[b n d]`, every token by itself."""
        dense = functools.partial(
            nn.Dense,
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            bias_init=nn.initializers.normal(stddev=1e-6),
        )
        dropout = nn.Dropout(self.dropout_rate, deterministic=not train)
        hidden = dense(INPUTS[self.activation] * self.hidden, name='Dense_0')(x)
        hidden = ACTIVATIONS[self.activation](hidden)
        return dropout(dense(x.shape[-1], name='Dense_1')(dropout(hidden)))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops a residual branch for some examples.

    What is kept is divided by the probability of keeping it, so that the expectation stays. Every example
    of the batch, and in a spatial encoder every frame of it, has a draw of its own.
    """

    @nn.compact
    def __call__(self, x: Tokens, rate: Float[Array, ''] | None, *, train: bool) -> Tokens:
        """Returns `x`, or zeros for the examples whose branch is dropped, with probability `rate`; None: never."""
        if not train or rate is None:
            return x
        keep = 1.0 - rate
        kept = jax.random.bernoulli(self.make_rng('dropout'), keep, (x.shape[0], 1, 1))
        return jnp.where(kept, x / keep, 0.0).astype(x.dtype)


class EncoderBlock(nn.Module):
    """LayerNorm, attention, residual: once for each of the pattern's attentions; then LayerNorm, MLP, residual.

    Attributes:
        pattern: What each attention of the block looks over, in order; see `Pattern`.
        grid: `(nt, nh, nw)` of the tokens; those before them are cls tokens.
        num_heads: Attention heads.
        mlp_dim: Hidden size of the MLP.
        dropout_rate: Dropout after the attention and in the MLP.
        attention_dropout_rate: Dropout of the attention weights.
        attention_backend: What computes attention; see `attention.BACKENDS`.
        remat_attention: Whether the backward pass computes it anew.
        activation: One of `ACTIVATIONS`.
        norm_epsilon: LayerNorm's epsilon.
        dtype: Compute dtype.
    """

    pattern: Pattern
    grid: tuple[int, int, int]
    num_heads: int
    mlp_dim: int
    dropout_rate: float
    attention_dropout_rate: float
    attention_backend: str
    remat_attention: bool
    activation: str
    norm_epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        drop_path_rate: Float[Array, ''] | None,
        *,
        train: bool,
        capture: bool,
        wanted: int | None = None,
    ) -> tuple[Float[Array, 'b q d'], dict[str, Array]]:
        """Returns the tokens and, if `capture`, this block's attention weights by axis.

        `drop_path_rate` is the probability of dropping a residual branch of this block; None: never. Of the tokens
        only the first `wanted` are computed, where the block's one attention is over 'all'; None: all of them.
        """
        norm = functools.partial(nn.LayerNorm, epsilon=self.norm_epsilon, dtype=self.dtype)
        # Scenic's names: a block with one attention numbers its parts, one with several names them.
        several = len(self.pattern.attends) > 1
        num_cls = x.shape[1] - math.prod(self.grid)
        weights: dict[str, Array] = {}
        for over in self.pattern.attends:
            suffix = over if several else '0'
            apart = 0 if over in self.pattern.cls else num_cls  # cls tokens that take no part
            attention = MultiHeadAttention(
                num_heads=self.num_heads,
                over=over,
                grid=self.grid,
                dropout_rate=self.attention_dropout_rate,
                backend=self.attention_backend,
                remat=self.remat_attention,
                dtype=self.dtype,
                name=f'MultiHeadDotProductAttention_{suffix}',
            )
            normed = norm(name=f'LayerNorm_{suffix}')(x[:, apart:])
            branch, captured = attention(normed, train=train, capture=capture, asking=wanted)
            branch = nn.Dropout(self.dropout_rate)(branch, deterministic=not train)
            if over in self.pattern.projected:
                project = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=nn.initializers.zeros)
                branch = project(x.shape[-1], name=f'projection_{over}')(branch)
            if apart:
                branch = jnp.pad(branch, ((0, 0), (apart, 0), (0, 0)))
            x = x[:, :wanted] + DropPath()(branch, drop_path_rate, train=train)
            weights |= captured
        mlp = MlpBlock(
            hidden=self.mlp_dim,
            activation=self.activation,
            dropout_rate=self.dropout_rate,
            dtype=self.dtype,
            name='MlpBlock' if several else 'MlpBlock_0',
        )
        branch = mlp(norm(name='LayerNorm_mlp' if several else 'LayerNorm_1')(x), train=train)
        return x + DropPath()(branch, drop_path_rate, train=train), weights


class Encoder(nn.Module):
    """Position embedding, a stack of blocks, a final LayerNorm.

    Parameters are those of every block by itself. Where the blocks run as a scan, they are stacked on the way: a
    copy that costs little beside the blocks.

    Attributes:
        num_layers: Blocks.
        grid: `(nt, nh, nw)` of the tokens.
        num_cls: Leading tokens that are not of the grid (0 or 1).
        position_embedding: See `PositionEmbedding`.
        dropout_rate: Dropout of the embedded tokens.
        drop_path_rate: Of the last block; block l of L drops with probability `l / L` times this.
        final_norm: Whether `encoder_norm` is there.
        norm_epsilon: LayerNorm's epsilon.
        scan_layers: Whether the compiler sees one block, which runs again and again, or all of them.
        remat: What the backward pass computes anew, one of `REMATS`.
        dtype: Compute dtype; what the blocks add to, layer by layer, is float32.
        first_only: Whether nothing but the first token is classified: the last block computes it by itself. Neither
            in a scan, where all blocks are alike, nor with dropout, which draws for tokens together.
        make_block: `EncoderBlock` with everything set that all blocks share.
    """

    num_layers: int
    grid: tuple[int, int, int]
    num_cls: int
    position_embedding: str
    dropout_rate: float
    drop_path_rate: float
    final_norm: bool
    norm_epsilon: float
    scan_layers: bool
    remat: str
    dtype: jnp.dtype
    first_only: bool
    make_block: Callable[..., EncoderBlock]

    @nn.compact
    def __call__(
        self, x: Tokens, *, train: bool, capture: bool
    ) -> tuple[Tokens, Float[Array, 'b q d'], list[dict[str, Array]]]:
        """Returns the encoded tokens `[b n d]`; those to classify, `[b q d]`; and what the blocks captured, by layer.

        With `first_only` the token to classify is computed beside all others, without them: a compiled program that
        does not return the others leaves them out, most of the last block.
        """
        x = PositionEmbedding(self.position_embedding, self.grid, self.num_cls, name='posembed_input')(x)
        # Sums of many branches: in 16 bits they would lose more than all products do.
        x = nn.Dropout(self.dropout_rate)(x, deterministic=not train).astype(jnp.float32)
        if capture or self.is_initializing():
            x, weights = self._by_name(x, train=train, capture=capture)
            read = x
        else:
            x, read = self._by_parameters(x, train=train)
            weights = [{}] * self.num_layers
        if self.final_norm:
            norm = nn.LayerNorm(epsilon=self.norm_epsilon, dtype=self.dtype, name='encoder_norm')
            x, read = norm(x), norm(read)
        return x.astype(self.dtype), read.astype(self.dtype), weights

    def _by_name(self, x: Tokens, *, train: bool, capture: bool) -> tuple[Tokens, list[dict[str, Array]]]:
        """Runs every block as a module of its own: makes its parameters, and can show its attention."""
        weights, rates = [], self._drop_path_rates()
        for layer in range(self.num_layers):
            block = self.make_block(grid=self.grid, name=f'encoderblock_{layer}')
            rate = None if rates is None else rates[layer]
            x, captured = block(x, rate, train=train, capture=capture)
            weights.append(captured)
        return x, weights

    def _by_parameters(self, x: Tokens, *, train: bool) -> tuple[Tokens, Float[Array, 'b q d']]:
        """Runs the blocks as one function of their parameters: in a scan, in a loop, with or without remat.

        Returns:
            The tokens, and those to classify.
        """
        block = self.make_block(grid=self.grid, parent=None)
        params = [self.variables['params'][f'encoderblock_{layer}'] for layer in range(self.num_layers)]

        def run(
            x: Tokens, layer: tuple[Any, Array | None, Array | None], wanted: int | None = None
        ) -> tuple[Float[Array, 'b q d'], None]:
            return _run_block(x, *layer, block=block, train=train, wanted=wanted), None

        def as_set(wanted: int | None = None, *, prevent_cse: bool = True) -> Callable[..., Any]:
            body = functools.partial(run, wanted=wanted)
            if self.remat not in POLICIES and not sharding.is_split():
                return body
            policy = POLICIES.get(self.remat, _all_but(params[0]))
            # A scan's body is computed anew as it is; elsewhere the compiler would find both computations the same.
            return jax.checkpoint(body, policy=policy, prevent_cse=prevent_cse)

        rngs = (
            jax.random.split(self.make_rng('dropout'), self.num_layers) if self.has_rng('dropout') else None
        )
        rates = self._drop_path_rates()
        if self.scan_layers and self.num_layers > 1:
            stacked = jax.tree.map(lambda *layers: jnp.stack(layers), *params)
            x, _ = jax.lax.scan(as_set(prevent_cse=False), x, (stacked, rates, rngs))
            return x, x
        before = x
        for layer, own in enumerate(params):
            each = [None if several is None else several[layer] for several in (rates, rngs)]
            before, (x, _) = x, as_set()(x, (own, *each))
        return x, as_set(wanted=1)(before, (own, *each))[0] if self.first_only else x

    def _drop_path_rates(self) -> Float[Array, 'layers'] | None:
        """Returns the rate of every block, None where none is ever dropped."""
        if not self.drop_path_rate:
            return None
        return self.drop_path_rate * jnp.arange(1, self.num_layers + 1) / self.num_layers


def _all_but(params: Any) -> Callable[..., bool]:
    """Returns the policy that keeps all for the backward pass but copies of parameters.

    Where they are split over devices, each block would leave a whole copy of its own there, of all blocks together
    that of the model: so they are brought together, and converted, once more.
    """
    shapes = {leaf.shape for leaf in jax.tree.leaves(params)}

    def keep(primitive: Any, *inputs: Any, **_: Any) -> bool:
        del primitive
        return len(inputs) != 1 or inputs[0].shape not in shapes

    return keep


@functools.partial(jax.jit, static_argnames=('block', 'train', 'wanted'))
def _run_block(
    x: Tokens,
    params: Any,
    rate: Float[Array, ''] | None,
    rng: Array | None,
    *,
    block: EncoderBlock,
    train: bool,
    wanted: int | None,
) -> Float[Array, 'b q d']:
    """Runs a block with its parameters; as a program of its own it is traced once for all layers that are alike."""
    rngs = None if rng is None else {'dropout': rng}
    variables = {'params': sharding.gathered(params)}
    return block.apply(variables, x, rate, train=train, capture=False, wanted=wanted, rngs=rngs)[0]
