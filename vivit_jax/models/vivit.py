"""ViViT and its family: ways to factorise space-time attention (Arnab et al., ICCV 2021, section 3.3)."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, reduce, repeat
from jaxtyping import Array, Float

from vivit_jax.config_values import alike, flaw, kind, shown
from vivit_jax.models import embed
from vivit_jax.models.attention import BACKENDS
from vivit_jax.models.encoder import ACTIVATIONS, REMATS, Encoder, EncoderBlock
from vivit_jax.models.patterns import ATTENTION_ORDERS, ATTENTIONS, PATTERNS, pattern_of

CLASSIFIERS = ('token', 'gap', 'gmp', 'gsp', 'first_token')
FIRST = ('token', 'first_token')  # those that read the first token alone
EMBEDDINGS = ('tubelet', 'uniform_frame_sampling')
DTYPES = ('float32', 'bfloat16')

# Larger ones are a mistake, or a file's that was made to fill the memory.
MOST = {
    'num_layers': 1_000,
    'temporal_layers': 1_000,
    'num_heads': 2**16,
    'width': 2**20,
    'mlp_dim': 2**24,
    'representation_size': 2**24,
    'num_classes': 2**24,
}

Tokens = Float[Array, 'b n d']
Encoded = Float[Array, 'b m d']  # the tokens after an encoder, with the cls token when there is one

CHOICES = {
    'attention': ATTENTIONS,
    'attention_order': ATTENTION_ORDERS,
    'classifier': CLASSIFIERS,
    'embedding': EMBEDDINGS,
    'kernel_init': embed.KERNEL_INITS,
    'remainder': embed.REMAINDERS,
    'position_embedding': embed.POSITION_EMBEDDINGS,
    'activation': tuple(ACTIVATIONS),
    'attention_backend': BACKENDS,
    'remat': REMATS,
    'dtype': DTYPES,
}


class ViViT(nn.Module):
    """A video vision transformer. Make one with `create_model`, which checks the settings.

    Attributes:
        num_classes: Classes of all heads together; 0 leaves the head out.
        attention: Which of the paper's models: 'spatio_temporal' (1), 'factorised_encoder' (2),
            'factorised_self_attention' (3), 'factorised_dot_product' (4); TimeSformer's 'divided',
            'space_only', 'axial', 'local_global'. `patterns.PATTERNS` tells what each attends over.
        num_layers: Encoder blocks; in the factorised encoder those of the spatial encoder.
        num_heads: Attention heads.
        width: Size d of a token.
        mlp_dim: Hidden size of the MLPs, after the gate of 'geglu'.
        temporal_layers: Blocks of the factorised encoder's temporal encoder; 0 averages the frames
            instead (the paper's baseline, table 1). The other models have no use for it.
        attention_order: Which comes first in factorised self-attention, 'space_time' or 'time_space'.
        embedding: 'tubelet' or 'uniform_frame_sampling' (section 3.2).
        tubelet: `(t, h, w)` in frames and pixels; t is 1 for uniform frame sampling.
        sampled_frames: Frames that uniform frame sampling keeps; 0 keeps all.
        kernel_init: How a fresh tubelet kernel starts: 'central_frame', 'average' or 'random'.
        remainder: 'error' where tubelets do not divide the clip, or 'crop'.
        classifier: What of the encoded tokens is classified: 'token' (a cls token; Models 1 and 2,
            'divided'), their mean 'gap', maximum 'gmp', sum 'gsp', or the 'first_token' (Scenic's '0').
        position_embedding: 'learned', 'learned_space_time' (TimeSformer's), 'sinusoidal_1d',
            'sinusoidal_2d' (the same at every time), 'sinusoidal_3d' or 'none'.
        representation_size: Width of a tanh layer before the head; 0 leaves it out.
        dropout_rate: Dropout of tokens, attention output and MLP.
        attention_dropout_rate: Dropout of the attention weights.
        drop_path_rate: Stochastic depth of the last block, rising linearly from the first.
        activation: The MLPs', 'gelu_tanh', 'gelu_exact', or 'geglu', gated by a GELU (tanh).
        norm_epsilon: LayerNorm's epsilon.
        final_norm: Whether encoders end with a LayerNorm.
        attention_backend: What computes attention, to rounding the same: 'auto', 'xla', 'blockwise', 'cudnn' or
            'flash'; see `attention.choose_backend`.
        scan_layers: Whether the blocks run as a scan: there one block's parameters come together at a time where
            they are split over devices, and `remat` saves memory on CPUs too. A loop has faster steps there.
        remat: What the backward pass computes anew, for less memory: 'none', 'attention', all of a 'block' or all
            of it but its products with parameters, 'dots'.
        dtype: Compute dtype, 'float32' or 'bfloat16'; parameters, statistics and logits are float32.
    """

    num_classes: int
    attention: str = 'factorised_encoder'
    num_layers: int = 12
    num_heads: int = 12
    width: int = 768
    mlp_dim: int = 3072
    temporal_layers: int = 4
    attention_order: str = 'space_time'
    embedding: str = 'tubelet'
    tubelet: tuple[int, int, int] = (2, 16, 16)
    sampled_frames: int = 0
    kernel_init: str = 'central_frame'
    remainder: str = 'error'
    classifier: str = 'token'
    position_embedding: str = 'learned'
    representation_size: int = 0
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    activation: str = 'gelu_tanh'
    norm_epsilon: float = 1e-6
    final_norm: bool = True
    attention_backend: str = 'auto'
    scan_layers: bool = False
    remat: str = 'none'
    dtype: str = 'float32'

    @nn.compact
    def __call__(
        self, video: Float[Array, 'b t h w c'], train: bool = False, capture_attention: bool = False
    ) -> tuple[Float[Array, 'b k'], dict[str, Any]]:
        """Classifies clips.

        Args:
            video: Clips scaled to [-1, 1].
            train: Whether dropout and stochastic depth are active; they use the rng 'dropout'.
            capture_attention: Whether to return the attention weights.

        Returns:
            The logits, float32 (`pre_logits` when there is no head), and what was computed on the way:
            'tokens' `[b nt nh nw d]` before positions; 'encoded' `[b n d]` after the (last) encoder, cls
            token first when there is one; 'pre_logits' `[b d]`; for the factorised encoder 'spatial'
            `[b nt n d]`, the spatial encoder's output; and with `capture_attention` 'attention': for each
            encoder's name a list over layers of weights by axis, shaped as `MultiHeadAttention` tells
            ('space' of the factorised encoder is `[b nt heads n n]`).

        Raises:
            ValueError: If the tubelet does not fit the clip (see `remainder`).
        """
        tokens = embed.TokenEmbedding(
            width=self.width,
            tubelet=self.tubelet,
            sampling=self.embedding == 'uniform_frame_sampling',
            sampled_frames=self.sampled_frames,
            kernel_init=self.kernel_init,
            remainder=self.remainder,
            dtype=jnp.dtype(self.dtype),
            name='embedding',
        )(video)
        encode = functools.partial(self._encode, train=train, capture=capture_attention)
        out: dict[str, Any] = {'tokens': tokens}
        if self.attention == 'factorised_encoder':
            encoded, read, attention = self._factorised_encoder(tokens, encode, out)
        else:
            grid = (tokens.shape[1], tokens.shape[2], tokens.shape[3])
            flat = rearrange(tokens, 'b nt nh nw d -> b (nt nh nw) d')
            encoded, read, weights = encode(flat, grid, self.num_layers, '', 'Transformer')
            attention = {'Transformer': weights}
        out['encoded'] = encoded
        if capture_attention:
            out['attention'] = attention
        # Frame representations, when nothing encodes them together, are averaged whatever the classifier.
        averaging = self.attention == 'factorised_encoder' and self.temporal_layers == 0
        x = pool(read, 'gap' if averaging else self.classifier)
        if self.representation_size:
            x = jnp.tanh(
                nn.Dense(self.representation_size, dtype=jnp.dtype(self.dtype), name='pre_logits')(x)
            )
        out['pre_logits'] = x = x.astype(jnp.float32)
        if self.num_classes:
            x = nn.Dense(self.num_classes, kernel_init=nn.initializers.zeros, name='output_projection')(x)
        return x, out

    def _encode(
        self,
        x: Tokens,
        grid: tuple[int, int, int],
        num_layers: int,
        cls_suffix: str,
        name: str,
        *,
        train: bool,
        capture: bool,
    ) -> tuple[Encoded, Float[Array, 'b q d'], list[dict[str, Array]]]:
        """Runs an encoder over the tokens, with a cls token before them if the classifier wants one.

        Returns:
            As `Encoder` does.
        """
        with_cls = self.classifier == 'token'
        if with_cls:
            cls = self.param(f'cls{cls_suffix}', nn.initializers.zeros, (1, 1, self.width))
            cls = repeat(cls.astype(x.dtype), '1 1 d -> b 1 d', b=x.shape[0])
            x = jnp.concatenate([cls, x], axis=1)
        dtype = jnp.dtype(self.dtype)
        make_block = functools.partial(
            EncoderBlock,
            pattern=pattern_of(self.attention, self.attention_order),
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            dropout_rate=self.dropout_rate,
            attention_dropout_rate=self.attention_dropout_rate,
            attention_backend=self.attention_backend,
            remat_attention=self.remat == 'attention',
            activation=self.activation,
            norm_epsilon=self.norm_epsilon,
            dtype=dtype,
        )
        encoder = Encoder(
            num_layers=num_layers,
            grid=grid,
            num_cls=int(with_cls),
            position_embedding=self.position_embedding,
            dropout_rate=self.dropout_rate,
            drop_path_rate=self.drop_path_rate,
            final_norm=self.final_norm,
            norm_epsilon=self.norm_epsilon,
            scan_layers=self.scan_layers,
            remat=self.remat,
            dtype=dtype,
            first_only=reads_first(self, train=train),
            make_block=make_block,
            name=name,
        )
        return encoder(x, train=train, capture=capture)

    def _factorised_encoder(
        self, tokens: Float[Array, 'b nt nh nw d'], encode: Any, out: dict[str, Any]
    ) -> tuple[Encoded, Float[Array, 'b q d'], dict[str, list[dict[str, Array]]]]:
        """Encodes every frame by itself, then the frames' representations together (Model 2)."""
        batch, nt, nh, nw, _ = tokens.shape
        frames = rearrange(tokens, 'b nt nh nw d -> (b nt) (nh nw) d')
        name = 'SpatialTransformer'
        x, read, weights = encode(frames, (1, nh, nw), self.num_layers, f'_{name}', name)
        out['spatial'] = rearrange(x, '(b nt) n d -> b nt n d', b=batch)
        per_frame = [{'space': rearrange(w['all'], '(b t) h q k -> b t h q k', t=nt)} for w in weights if w]
        attention = {name: per_frame}
        x = read = rearrange(pool(read, self.classifier), '(b nt) d -> b nt d', b=batch)
        if self.temporal_layers:
            name = 'TemporalTransformer'
            x, read, weights = encode(x, (nt, 1, 1), self.temporal_layers, f'_{name}', name)
            attention[name] = [{'time': w['all']} for w in weights if w]
        return x, read, attention


def reads_first(model: ViViT, *, train: bool) -> bool:
    """Tells whether the first token, all that is classified, is computed by itself in the last block.

    Not in a scan, where all blocks are alike, nor in training with dropout, whose draws for one token are others than
    for all.
    """
    alone = pattern_of(model.attention, model.attention_order).attends == ('all',)
    draws = train and (model.dropout_rate > 0 or model.attention_dropout_rate > 0)
    return model.classifier in FIRST and alone and not (draws or model.scan_layers)


def pool(x: Float[Array, 'b n d'], classifier: str) -> Float[Array, 'b d']:
    """Reduces encoded tokens to one vector a row, as `classifier` says."""
    if classifier in FIRST:
        return x[:, 0]
    if classifier == 'gmp':
        # Not `max`: its gradient compares with the maximum, which a compiler may have computed with other rounding.
        largest = jnp.argmax(x, axis=1, keepdims=True)
        return jnp.take_along_axis(x, largest, axis=1)[:, 0]
    return reduce(x, 'b n d -> b d', {'gap': 'mean', 'gsp': 'sum'}[classifier])


def create_model(num_classes: int, **model: Any) -> ViViT:
    """Returns a ViViT after checking that its settings go together.

    Args:
        num_classes: Classes, summed over the heads; 0 for a model without a head.
        **model: The fields of `ViViT`, usually `config.model`.

    Raises:
        TypeError: If a keyword is not a field.
        ValueError: If a choice is unknown or settings exclude each other; one line with the value and what
            is allowed.
    """
    if 'tubelet' in model:
        model['tubelet'] = tuple(model['tubelet'])
    vivit = ViViT(num_classes, **model)
    _check_types(vivit)
    for field, choices in CHOICES.items():
        value = getattr(vivit, field)
        if value not in choices:
            raise ValueError(f'model.{field}={value!r}: choose one of {", ".join(choices)}')
    _check_numbers(vivit)
    _check_combinations(vivit)
    return vivit


def _check_types(vivit: ViViT) -> None:
    """Compares every field with its default: models are also told by files of others."""
    for field in dataclasses.fields(ViViT):
        if field.name in ('parent', 'name'):
            continue
        value = getattr(vivit, field.name)
        default = 0 if field.default is dataclasses.MISSING else field.default
        wrong = '' if alike(value, default) else f'must be {kind(default)}'
        if wrong := wrong or flaw(value):
            raise ValueError(f'model.{field.name}={shown(value)}: {wrong}')


def _check_numbers(vivit: ViViT) -> None:
    if vivit.num_classes < 0:
        raise ValueError(f'num_classes={vivit.num_classes}: must be at least 1, or 0 for no head')
    for field in ('num_layers', 'num_heads', 'width', 'mlp_dim'):
        if getattr(vivit, field) < 1:
            raise ValueError(f'model.{field}={getattr(vivit, field)}: must be at least 1')
    for field in ('temporal_layers', 'sampled_frames', 'representation_size'):
        if getattr(vivit, field) < 0:
            raise ValueError(f'model.{field}={getattr(vivit, field)}: must be 0 or more')
    for field in ('dropout_rate', 'attention_dropout_rate', 'drop_path_rate'):
        if not 0.0 <= getattr(vivit, field) < 1.0:
            raise ValueError(f'model.{field}={getattr(vivit, field)}: must be in [0, 1)')
    for field, most in MOST.items():
        if getattr(vivit, field) > most:
            raise ValueError(f'model.{field}={getattr(vivit, field)}: must be at most {most:,}')
    if vivit.norm_epsilon < 0:
        raise ValueError(f'model.norm_epsilon={vivit.norm_epsilon}: must be 0 or more')
    if len(vivit.tubelet) != 3 or min(vivit.tubelet) < 1:
        raise ValueError(f'model.tubelet={vivit.tubelet}: must be three sizes (t, h, w), each at least 1')


def _check_combinations(vivit: ViViT) -> None:
    if vivit.width % vivit.num_heads:
        raise ValueError(
            f'model.num_heads={vivit.num_heads} does not divide model.width={vivit.width} '
            f'(remainder {vivit.width % vivit.num_heads})'
        )
    if vivit.attention == 'factorised_dot_product' and vivit.num_heads % 2:
        raise ValueError(
            f'model.num_heads={vivit.num_heads} is odd: factorised_dot_product needs an even number, half of '
            'them for time and half for space'
        )
    if vivit.classifier == 'token' and not PATTERNS[vivit.attention].cls:
        raise ValueError(
            f"model.classifier='token': {vivit.attention} has no cls token, since it would belong to none of the "
            f'groups that attend to one another; choose one of {", ".join(CLASSIFIERS[1:])}'
        )
    if vivit.attention_dropout_rate and vivit.attention_backend not in ('auto', 'xla'):
        raise ValueError(
            f'model.attention_backend={vivit.attention_backend!r} knows no dropout of attention weights, '
            f'model.attention_dropout_rate={vivit.attention_dropout_rate}: choose auto or xla, or set that to 0'
        )
    if vivit.embedding == 'uniform_frame_sampling' and vivit.tubelet[0] != 1:
        raise ValueError(
            f'model.tubelet={vivit.tubelet}: uniform_frame_sampling embeds single frames, so its time size '
            f'must be 1, as (1, {vivit.tubelet[1]}, {vivit.tubelet[2]})'
        )
    if vivit.embedding == 'tubelet' and vivit.sampled_frames:
        raise ValueError(
            f"model.sampled_frames={vivit.sampled_frames} needs model.embedding='uniform_frame_sampling'; "
            'tubelets take every frame'
        )
