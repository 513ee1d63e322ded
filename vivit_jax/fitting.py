"""Whether trained weights fit a model, told by names and shapes: the parts of their blocks, sizes, tubelets."""

import re
from collections.abc import Mapping

import numpy as np

from vivit_jax.formats.weights import Weights
from vivit_jax.models.patterns import PATTERNS, Pattern

Arrays = Mapping[str, np.ndarray]  # parameters by their names with slashes


def pattern_by_name(names: Mapping[str, object]) -> tuple[str, Pattern]:
    """Tells what the blocks of a model attend over, by its parameters.

    Models whose blocks have the same parameters (Model 1, Model 4, space only) count as the first of them in
    `PATTERNS`, and the factorised encoder as itself.
    """
    if any(name.startswith('SpatialTransformer/') for name in names):
        return 'factorised_encoder', PATTERNS['factorised_encoder']
    found = {
        m[1]
        for name in names
        if (m := re.search(r'/(?:MultiHeadDotProductAttention|projection)_(\w+)/', name))
    }
    projected = {m[1] for name in names if (m := re.search(r'/projection_(\w+)/', name))}
    for attention, pattern in PATTERNS.items():
        over = set(pattern.attends) if len(pattern.attends) > 1 else {'0'}
        if found == over and projected == set(pattern.projected):
            return attention, pattern
    raise ValueError(f'no pattern of attention has blocks with {", ".join(sorted(found))}')


def check_sizes(target: Arrays, source: Arrays, weights: Weights) -> None:
    """Compares layers, heads, widths, patches and channels.

    Args:
        target: The model's parameters.
        source: The weights' parameters.
        weights: What they are.

    Raises:
        ValueError: One line that names every size that differs.
    """
    (ours, pattern), (theirs, from_pattern) = pattern_by_name(target), pattern_by_name(source)
    if not weights.is_image and ours != theirs:
        raise ValueError(
            f'{weights.path}: is a video model with {_described(theirs, from_pattern)}, which cannot start one with '
            f'{_described(ours, pattern)}: choose the same model.attention, or weights of an image model'
        )
    sizes, from_sizes = _sizes(target), _sizes(source)
    # Only two video models with temporal encoders have a number of temporal layers to compare.
    compared = [name for name in sizes if name in from_sizes]
    differing = [
        f'{name} is {from_sizes[name]} in the file and {sizes[name]} in the model (model.{name})'
        for name in compared
        if sizes[name] != from_sizes[name]
    ]
    if differing:
        raise ValueError(f'{weights.path}: {"; ".join(differing)}')
    gated, from_gated = _is_gated(target), _is_gated(source)
    if gated != from_gated:
        with_gate = 'the file' if from_gated else 'the model'
        raise ValueError(f"{weights.path}: only {with_gate} has the gated MLPs of model.activation='geglu'")
    _check_tubelets(target['embedding/kernel'], source['embedding/kernel'], weights.path)


def _described(attention: str, pattern: Pattern) -> str:
    several = [
        other
        for other, its in PATTERNS.items()
        if len(its.attends) == len(pattern.attends) == 1 and other != 'factorised_encoder'
    ]
    if attention == 'factorised_encoder' or not several:
        return f'attention {attention}'
    return f'attention {", ".join(several[:-1])} or {several[-1]}'


def _check_tubelets(kernel: np.ndarray, from_kernel: np.ndarray, path: str) -> None:
    (time, high, wide, channels), (from_time, from_high, from_wide, from_channels) = (
        kernel_shape(array) for array in (kernel, from_kernel)
    )
    if (high, wide) != (from_high, from_wide) or from_time not in (1, time):
        raise ValueError(
            f'{path}: the tubelet is {(from_time, from_high, from_wide)} in the file and {(time, high, wide)} in the '
            'model (model.tubelet: frames, pixels high, pixels wide)'
        )
    if channels != from_channels and (from_channels, channels) != (3, 1):
        raise ValueError(
            f'{path}: takes {from_channels} channels and the model {channels} (data.channels): only RGB can be '
            'turned into one channel'
        )


def kernel_shape(kernel: np.ndarray) -> tuple[int, ...]:
    """Returns `(t, h, w, c)` of an embedding's kernel; one of sampled frames has no t."""
    return kernel.shape[:-1] if kernel.ndim == 5 else (1, *kernel.shape[:-1])


def _sizes(tree: Arrays) -> dict[str, int]:
    def layers(encoder: str) -> int:
        found = (re.match(rf'{encoder}/encoderblock_(\d+)/', name) for name in tree)
        return max((int(match[1]) + 1 for match in found if match), default=0)

    query = _first(tree, 'query/kernel')
    sizes = {
        'num_layers': layers('Transformer') or layers('SpatialTransformer'),
        'num_heads': query.shape[1],
        'width': query.shape[0],
        'mlp_dim': _first(tree, 'Dense_1/kernel').shape[0],
    }
    return sizes | (
        {'temporal_layers': layers('TemporalTransformer')} if layers('TemporalTransformer') else {}
    )


def _is_gated(tree: Arrays) -> bool:
    return _first(tree, 'Dense_0/kernel').shape[1] != _first(tree, 'Dense_1/kernel').shape[0]


def _first(tree: Arrays, ending: str) -> np.ndarray:
    return next(array for name, array in tree.items() if name.endswith(ending))
