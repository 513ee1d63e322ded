"""Attention rollout: which tokens a prediction comes from, by all attentions together (Abnar & Zuidema 2020).

An attention of weights A and the residual connection around it hand on A + I, its rows made to add up to 1, and the
matrices of all layers are multiplied (section 3 there). Here a single row goes through them, from what the classifier
reads back to the tokens, so that nothing larger than the weights themselves is made: an attention over groups of
tokens stays in its groups.
"""

import dataclasses
import functools
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Float32, Float64, Int

from vivit_jax.models.attention import Grid, groups
from vivit_jax.models.patterns import pattern_of
from vivit_jax.models.vivit import ViViT

FUSIONS = ('mean', 'max', 'gradient')
# By what attentions are over: those that tell where in a frame, and when.
SPACE, TIME = ('space', 'height', 'width'), ('time',)

Rows = Float64[np.ndarray, 'b all']  # what of a prediction is at each token, a cls token first
Maps = Float64[np.ndarray, 'b nt nh nw']
# Weights without heads, by what an attention is over: the average where these are two, of half the heads each.
Attention = dict[str, Float[np.ndarray, 'b _ _ _']]  # b g m m


@dataclasses.dataclass(frozen=True)
class Rollout:
    """Where predictions of clips come from, in shares that add up to 1.

    With the fusion 'gradient' shares are 0 where nothing speaks for the class.

    Attributes:
        map: Of every token, without what is left on a cls token.
        time: Of every time, by attention over time alone where a model has such.
        space: Of every place in its frame, by attention over space alone where a model has such.
    """

    map: Float32[np.ndarray, 'b nt nh nw']
    time: Float32[np.ndarray, 'b nt']
    space: Float32[np.ndarray, 'b nt nh nw']


def on_clips(
    model: ViViT,
    params: Any,
    video: Float[Array | np.ndarray, 'b t h w c'],
    *,
    fusion: str = 'mean',
    classes: Int[Array | np.ndarray, ' b'] | None = None,
) -> tuple[Rollout, Float32[np.ndarray, 'b k']]:
    """Runs clips through a model; returns the rollout of each, and the logits.

    Args:
        model: The model.
        params: Its parameters.
        video: Clips scaled to [-1, 1].
        fusion: How the heads of an attention become one, see `fuse`: 'mean', 'max', or 'gradient', which tells
            what speaks for a class.
        classes: For 'gradient', the class of each clip; by default the most probable one.

    Raises:
        ValueError: If the fusion is unknown, or needs a class and the model has none; one line.
    """
    if fusion not in FUSIONS:
        raise ValueError(f'fusion={fusion!r}: choose one of {", ".join(FUSIONS)}')
    if fusion != 'gradient':
        logits, out = _forward(model, params, video, fusion)
    elif not model.num_classes:
        raise ValueError("fusion='gradient' tells what speaks for a class, and the model has none")
    else:
        logits, out = _forward_and_back(model, params, video, classes)
    return rollout(model, out, moved_only=fusion == 'gradient'), np.asarray(logits, np.float32)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _forward(model: ViViT, params: Any, video: Array, fusion: str) -> tuple[Any, dict[str, Any]]:
    logits, out = model.apply({'params': params}, video, capture_attention=True)
    return logits, _kept(model, out, fuse(out['attention'], fusion))


@functools.partial(jax.jit, static_argnums=0)
def _forward_and_back(
    model: ViViT, params: Any, video: Array, classes: Array | None
) -> tuple[Any, dict[str, Any]]:
    """Adds zeros to all attention weights, and takes the gradients of the classes' logits by them."""
    capture = functools.partial(model.init, jax.random.key(0), capture_attention=True)
    shapes = jax.eval_shape(capture, video)['perturbations']
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    def chosen(perturbations: Any) -> tuple[Any, Any]:
        variables = {'params': params, 'perturbations': perturbations}
        logits, out = model.apply(variables, video, capture_attention=True)
        which = logits.argmax(-1) if classes is None else classes
        return jnp.take_along_axis(logits, which[:, None], axis=1).sum(), (logits, out)

    gradients, (logits, out) = jax.grad(chosen, has_aux=True)(zeros)
    attention = out['attention']
    return logits, _kept(model, out, fuse(attention, 'gradient', _as_captured(gradients, attention)))


def _as_captured(gradients: Mapping[str, Any], attention: Mapping[str, Any]) -> dict[str, Any]:
    """Gives gradients, which have the names of modules, the names and shapes of captured weights."""
    named: dict[str, Any] = {}
    for encoder, layers in attention.items():
        named[encoder] = []
        for number, layer in enumerate(layers):
            modules = gradients[encoder][f'encoderblock_{number}'].values()
            found = {over: gradient for module in modules for over, gradient in module.items()}
            # The encoders of a factorised encoder attend to all that they have, be it space or time.
            by_over = {over: found['all' if 'all' in found else over] for over in layer}
            named[encoder].append({over: by_over[over].reshape(layer[over].shape) for over in layer})
    return named


def _kept(model: ViViT, out: Mapping[str, Any], fused: Any) -> dict[str, Any]:
    """Returns what `rollout` needs of a model's output."""
    names = {'encoded', 'spatial'} & out.keys() if model.classifier == 'gmp' else ()
    return {name: out[name] for name in names} | {'tokens': out['tokens'][..., :1], 'attention': fused}


def fuse(attention: Any, fusion: str, gradients: Any = None) -> Any:
    """Makes the heads of every attention one.

    Args:
        attention: What a model captured: `[b g heads m m]` or `[b heads n n]`, of numpy or jax.
        fusion: 'mean' or 'max', both of Abnar and Zuidema, or 'gradient': the mean of weight times gradient
            where that is above 0 (Chefer et al., ICCV 2021, equation 5).
        gradients: Of the logit of a class by the weights, in their shapes; for 'gradient'.

    Returns:
        The same without heads. Of a factorised dot-product attention, half of whose heads look over time and half
        over space, both halves.
    """
    if fusion == 'gradient':
        attention = jax.tree.map(lambda weights, by: (weights * by).clip(0), attention, gradients)
    heads = -3
    return jax.tree.map(lambda x: x.max(heads) if fusion == 'max' else x.mean(heads), attention)


def rollout(model: ViViT, out: Mapping[str, Any], *, moved_only: bool = False) -> Rollout:
    """Returns where predictions come from.

    What the classifier reads says where the row starts: at the cls token ('token'), at all tokens evenly
    ('gap', 'gsp'), at each by the share of channels in which it is the largest ('gmp'), or at the first
    ('first_token').

    The map of a factorised encoder is the share of a time multiplied by the share of a place in its frame, as each of
    its encoders has it. Elsewhere attentions over time and over space follow one another in a block, or are halves of
    one, which are then averaged; `time` and `space` are rollouts through only the one or the other, from all tokens
    evenly where a cls token takes no part. In models with neither they are the map, summed over places, and by frame.

    Args:
        model: Whose fields tell what its weights are.
        out: What it returned: 'tokens' (for their number), 'attention' without heads as `fuse` makes it, and for
            the classifier 'gmp' 'encoded' and, of a factorised encoder, 'spatial'.
        moved_only: Whether to leave out what no attention has moved, the product of the identities, and to
            leave rows as they are: right for weights by gradients, which are no shares (Chefer et al., equation 6).
    """
    if model.attention == 'factorised_encoder':
        return _of_factorised_encoder(model, out, moved_only)
    tokens = np.asarray(out['tokens'][..., 0])
    grid = tokens.shape[1:]
    attentions = _in_order(model, out['attention']['Transformer'])
    start = _start(model.classifier, tokens, out.get('encoded'))

    def through(overs: Collection[str]) -> Maps:
        """Rolls out the attentions over these alone."""
        chosen = [{over: weights for over, weights in layer.items() if over in overs} for layer in attentions]
        chosen = [layer for layer in chosen if layer]
        with_cls = any(_has_cls(over, weights, grid) for layer in chosen for over, weights in layer.items())
        begin = start if with_cls or model.classifier != 'token' else _start('gap', tokens, None)
        return _roll(chosen, grid, begin, moved_only)

    there = {over for layer in attentions for over in layer}
    whole = _shares(through(there), (1, 2, 3))
    time = through(TIME) if there.intersection(TIME) else whole
    space = through(SPACE) if there.intersection(SPACE) else whole
    return _rollout(whole, time.sum((2, 3)), space)


def _of_factorised_encoder(model: ViViT, out: Mapping[str, Any], moved_only: bool) -> Rollout:
    """Rolls out each of the two encoders by itself."""
    tokens = np.asarray(out['tokens'][..., 0])
    frames = rearrange(tokens, 'b t h w -> (b t) 1 h w')
    encoded = rearrange(out['spatial'], 'b t n d -> (b t) n d') if 'spatial' in out else None
    layers = [
        {'all': rearrange(np.asarray(layer['space']), 'b t q k -> (b t) 1 q k')}
        for layer in out['attention']['SpatialTransformer']
    ]
    space = _roll(layers, frames.shape[1:], _start(model.classifier, frames, encoded), moved_only)
    space = _shares(rearrange(space, '(b t) 1 h w -> b t h w', b=len(tokens)), (2, 3))
    times = tokens[:, :, :1, :1]
    if model.temporal_layers:
        start = _start(model.classifier, times, out.get('encoded'))
        layers = [
            {'all': np.asarray(layer['time'])[:, None]} for layer in out['attention']['TemporalTransformer']
        ]
        time = _roll(layers, times.shape[1:], start, moved_only)
    else:
        time = np.ones_like(times, np.float64)  # their average is classified, whatever the classifier
    return _rollout(_shares(time, (1,)) * space, time[:, :, 0, 0], space)


def _in_order(model: ViViT, layers: Sequence[Mapping[str, Any]]) -> list[Attention]:
    """Returns the attentions of all blocks as they follow one another."""
    ordered: list[Attention] = []
    for layer in layers:
        for over in pattern_of(model.attention, model.attention_order).attends:
            names = ('time', 'space') if over == 'time_and_space' else (over,)
            weights = {name: np.asarray(layer[name]) for name in names}
            ordered.append({'all': weights['all'][:, None]} if over == 'all' else weights)
    return ordered


def _start(classifier: str, tokens: Float[np.ndarray, 'b nt nh nw'], encoded: Any) -> Rows:
    """Returns the share of what the classifier reads that is of each encoded token; `tokens` tell how many."""
    batch, n = len(tokens), math.prod(tokens.shape[1:])
    if classifier in ('token', 'first_token'):
        row = np.zeros((batch, n + (classifier == 'token')))
        row[:, 0] = 1
        return row
    if classifier == 'gmp':
        largest = np.asarray(encoded).argmax(axis=1)
        return np.stack([np.bincount(channels, minlength=n) for channels in largest]) / largest.shape[1]
    return np.full((batch, n), 1 / n)


def _roll(layers: Sequence[Attention], grid: Grid, start: Rows, moved_only: bool) -> Maps:
    """Takes a row through attentions, the last first; returns what of it comes to the tokens of the grid."""
    row = start
    for layer in reversed(layers):
        row = _through(layer, grid, row, as_shares=not moved_only)
    moved = row - start if moved_only else row
    return moved[:, -math.prod(grid) :].reshape(-1, *grid)


def _through(layer: Attention, grid: Grid, row: Rows, *, as_shares: bool) -> Rows:
    """Returns a row times the matrix `[b m m]` of an attention plus the identity, which is never made.

    Args:
        layer: The attention.
        grid: `(nt, nh, nw)` of the tokens.
        row: As long as there are tokens in the grid, and by one longer if there is a cls token.
        as_shares: Whether the rows of that matrix are divided by what they add up to.
    """
    num_cls = row.shape[1] - math.prod(grid)
    parts = []
    for over, weights in layer.items():
        places = groups(over, grid) + num_cls
        shares = np.full(places.shape, 1 / len(layer))
        if _has_cls(over, weights, grid):
            # It comes first in every group, and what it gets is the average over them.
            shares = np.insert(shares, 0, shares[0, 0] / len(places), axis=1)
            places = np.insert(places, 0, 0, axis=1)
        parts.append((places, shares, weights.astype(np.float64)))
    if as_shares:
        sums = [_put(row.shape, places, shares * weights.sum(-1)) for places, shares, weights in parts]
        row = row / (1 + sum(sums))
    moved = [
        _put(row.shape, places, np.einsum('bgq,bgqk->bgk', shares * row[:, places], weights))
        for places, shares, weights in parts
    ]
    return row + sum(moved)


def _has_cls(over: str, weights: np.ndarray, grid: Grid) -> bool:
    """Says whether a cls token takes part: groups are then by one longer."""
    return weights.shape[-1] > groups(over, grid).shape[1]


def _put(
    shape: tuple[int, ...], places: Int[np.ndarray, 'g m'], values: Float64[np.ndarray, 'b g m']
) -> Rows:
    """Returns rows with the values at their places; those that meet at one are added."""
    rows = np.zeros(shape)
    np.add.at(rows, (slice(None), places), values)  # type: ignore[arg-type]
    return rows


def _shares(values: Float64[np.ndarray, '...'], axes: tuple[int, ...]) -> Float64[np.ndarray, '...']:
    """Divides values by what they add up to, where that is not 0."""
    total = values.sum(axes, keepdims=True)
    return values / np.where(total > 0, total, 1)


def _rollout(whole: Maps, time: Float64[np.ndarray, 'b nt'], space: Maps) -> Rollout:
    shares = _shares(whole, (1, 2, 3)), _shares(time, (1,)), _shares(space, (2, 3))
    return Rollout(*(share.astype(np.float32) for share in shares))
