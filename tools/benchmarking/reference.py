"""The reference, frozen: what Scenic's ViViT computes, and its training step, out of linen's own parts.

A python loop of blocks with linen's `MultiHeadDotProductAttention`, `LayerNorm`, `Conv` and `Dense` at their
defaults, for the four models of the paper; plain momentum SGD with the gradient's norm clipped. Its parameters have
the names and shapes of ours, so that either computes with the other's. Nothing here is ever made faster: it is what
others are measured by.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

LEARNING_RATE, MOMENTUM, MAX_NORM = 1e-3, 0.9, 1.0
# Models that the reference has; fields that it reads, those that it has at one value alone, others at their defaults.
MODELS = ('spatio_temporal', 'factorised_encoder', 'factorised_self_attention', 'factorised_dot_product')
FIELDS = (
    'attention',
    'num_layers',
    'num_heads',
    'width',
    'mlp_dim',
    'tubelet',
    'classifier',
    'temporal_layers',
    'attention_order',
    'dtype',
)
FIXED = {
    'embedding': 'tubelet',
    'position_embedding': 'learned',
    'activation': 'gelu_tanh',
    'norm_epsilon': 1e-6,
    'final_norm': True,
    'representation_size': 0,
    'dropout_rate': 0.0,
    'attention_dropout_rate': 0.0,
    'drop_path_rate': 0.0,
}


class Mlp(nn.Module):
    """Two dense layers with a GELU between."""

    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[b n d]`."""
        hidden = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype)(x))
        return nn.Dense(x.shape[-1], dtype=self.dtype)(hidden)


class HalvedAttention(nn.Module):
    """Attention whose first half of heads looks over time, the second over space (Model 4)."""

    num_heads: int
    frames: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[b n d]`; the tokens are those of one frame after another."""
        batch, tokens, width = x.shape
        half = self.num_heads // 2
        into_heads = functools.partial(
            nn.DenseGeneral, (self.num_heads, width // self.num_heads), dtype=self.dtype
        )
        query, key, value = (into_heads(name=name)(x) for name in ('query', 'key', 'value'))
        grid = (batch, self.frames, tokens // self.frames)
        # Either is [b, t, s, heads, c]; linen's attention is along the third axis from the end.
        in_time = [part[..., :half, :].reshape(*grid, half, -1) for part in (query, key, value)]
        in_space = [part[..., half:, :].reshape(*grid, half, -1) for part in (query, key, value)]
        query, key, value = (part.swapaxes(1, 2) for part in in_time)
        over_time = nn.dot_product_attention(query, key, value).swapaxes(1, 2)
        query, key, value = in_space
        over_space = nn.dot_product_attention(query, key, value)
        mixed = jnp.concatenate([over_time, over_space], axis=-2).reshape(batch, tokens, self.num_heads, -1)
        return nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, name='out')(mixed)


class Block(nn.Module):
    """LayerNorm, attention, residual; LayerNorm, MLP, residual."""

    num_heads: int
    hidden: int
    halved: bool
    frames: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[b n d]`."""
        normed = nn.LayerNorm(dtype=self.dtype, name='LayerNorm_0')(x)
        name = 'MultiHeadDotProductAttention_0'
        attention: nn.Module
        if self.halved:
            attention = HalvedAttention(self.num_heads, self.frames, self.dtype, name=name)
        else:
            attention = nn.MultiHeadDotProductAttention(self.num_heads, dtype=self.dtype, name=name)
        x = x + attention(normed)
        normed = nn.LayerNorm(dtype=self.dtype, name='LayerNorm_1')(x)
        return x + Mlp(self.hidden, self.dtype, name='MlpBlock_0')(normed)


class FactorisedBlock(nn.Module):
    """Attention over space and over time, one after the other, then an MLP (Model 3)."""

    num_heads: int
    hidden: int
    order: tuple[str, ...]
    frames: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[b n d]`; the tokens are those of one frame after another."""
        batch, tokens, width = x.shape
        grid = (batch, self.frames, tokens // self.frames, width)
        for over in self.order:
            normed = nn.LayerNorm(dtype=self.dtype, name=f'LayerNorm_{over}')(x).reshape(grid)
            rows = normed if over == 'space' else normed.swapaxes(1, 2)
            attention = nn.MultiHeadDotProductAttention(
                self.num_heads, dtype=self.dtype, name=f'MultiHeadDotProductAttention_{over}'
            )
            mixed = attention(rows.reshape(-1, rows.shape[2], width)).reshape(rows.shape)
            x = x + (mixed if over == 'space' else mixed.swapaxes(1, 2)).reshape(x.shape)
        normed = nn.LayerNorm(dtype=self.dtype, name='LayerNorm_mlp')(x)
        return x + Mlp(self.hidden, self.dtype, name='MlpBlock')(normed)


class Positions(nn.Module):
    """Adds a learned vector to every token."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[b n d]`."""
        return x + self.param('pos_embedding', nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(
            x.dtype
        )


class Encoder(nn.Module):
    """Positions, blocks one after another, a last LayerNorm."""

    attention: str
    num_layers: int
    num_heads: int
    hidden: int
    order: tuple[str, ...]
    frames: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns `[b n d]`."""
        x = Positions(name='posembed_input')(x)
        for layer in range(self.num_layers):
            name = f'encoderblock_{layer}'
            block: nn.Module
            if self.attention == 'factorised_self_attention':
                block = FactorisedBlock(
                    self.num_heads, self.hidden, self.order, self.frames, self.dtype, name=name
                )
            else:
                halved = self.attention == 'factorised_dot_product'
                block = Block(self.num_heads, self.hidden, halved, self.frames, self.dtype, name=name)
            x = block(x)
        return nn.LayerNorm(dtype=self.dtype, name='encoder_norm')(x)


class Reference(nn.Module):
    """The four models; fields as those of ours with the same names."""

    num_classes: int
    attention: str
    num_layers: int
    num_heads: int
    width: int
    mlp_dim: int
    tubelet: tuple[int, int, int]
    classifier: str
    temporal_layers: int = 4
    attention_order: str = 'space_time'
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, video: jax.Array) -> jax.Array:
        """Returns the logits `[b k]` of clips `[b t h w c]` in [-1, 1]."""
        embed = nn.Conv(
            self.width,
            self.tubelet,
            self.tubelet,
            padding='VALID',
            dtype=jnp.dtype(self.dtype),
            name='embedding',
        )
        x = embed(video)
        batch, frames, height, width, size = x.shape
        if self.attention == 'factorised_encoder':
            x = self._encoder(x.reshape(batch * frames, height * width, size), 'SpatialTransformer', 1)
            x = self._pool(x).reshape(batch, frames, size)
            if self.temporal_layers:
                x = self._pool(self._encoder(x, 'TemporalTransformer', frames))
            else:
                x = x.mean(axis=1)
        else:
            x = self._pool(self._encoder(x.reshape(batch, -1, size), 'Transformer', frames))
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name='output_projection')
        return head(x.astype(jnp.float32))

    def _encoder(self, x: jax.Array, name: str, frames: int) -> jax.Array:
        if self.classifier == 'token':
            suffix = '' if name == 'Transformer' else f'_{name}'
            cls = self.param(f'cls{suffix}', nn.initializers.zeros, (1, 1, self.width)).astype(x.dtype)
            x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
        encoder = Encoder(
            self.attention,
            self.temporal_layers if name == 'TemporalTransformer' else self.num_layers,
            self.num_heads,
            self.mlp_dim,
            tuple(self.attention_order.split('_')),
            frames,
            jnp.dtype(self.dtype),
            name=name,
        )
        return encoder(x)

    def _pool(self, x: jax.Array) -> jax.Array:
        return x[:, 0] if self.classifier == 'token' else x.mean(axis=1)


def make(num_classes: int, model: dict[str, Any]) -> Reference:
    """Returns the reference for the fields of one of our models.

    Args:
        num_classes: Classes.
        model: Fields of `vivit_jax.create_model`; those that say how ours computes or starts are passed over.

    Raises:
        ValueError: For a model, or a field's value, that the reference has not.
    """
    if model['attention'] not in MODELS or model['classifier'] not in ('token', 'gap'):
        raise ValueError(
            f'the reference has {", ".join(MODELS)} with a classifier token or gap, not {model["attention"]} with '
            f'{model["classifier"]}: leave it out of --contenders'
        )
    if others := [
        f'{name}={model[name]!r}' for name, value in FIXED.items() if model.get(name, value) != value
    ]:
        raise ValueError(f'the reference has no {", no ".join(others)}: leave it out of --contenders')
    fields = {name: model[name] for name in FIELDS if name in model}
    return Reference(num_classes, **{**fields, 'tubelet': tuple(model['tubelet'])})


def optimiser() -> optax.GradientTransformation:
    """Returns the optimiser of every contender: momentum SGD, the gradient's norm clipped."""
    return optax.chain(
        optax.clip_by_global_norm(MAX_NORM),
        optax.trace(MOMENTUM),
        optax.scale_by_learning_rate(LEARNING_RATE),
    )


State = tuple[Any, optax.OptState]


def create_state(model: Reference, clip: tuple[int, ...]) -> State:
    """Returns fresh parameters and the optimiser's state for clips of `clip = (t, h, w, c)`."""
    params = model.init(jax.random.key(0), jnp.zeros((1, *clip), jnp.float32))['params']
    return params, optimiser().init(params)


def train_step(
    state: State, video: jax.Array, labels: jax.Array, *, model: Reference
) -> tuple[State, jax.Array]:
    """Returns the next state and the mean cross entropy of the batch."""

    def mean_loss(params: Any) -> jax.Array:
        logits = model.apply({'params': params}, video)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    params, opt_state = state
    loss, gradient = jax.value_and_grad(mean_loss)(params)
    updates, opt_state = optimiser().update(gradient, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss
