"""Google's big_vision, `.npz`: ViTs by themselves or beside a text model (LiT, SigLIP), blocks looped or scanned.

Sizes are told by shapes; the activation is the tanh GELU, LayerNorm's epsilon 1e-6, pixels are in [-1, 1]. A file
without position embeddings has the fixed ones of sines and cosines.
"""

import operator
import re
from typing import Any

import numpy as np

from vivit_jax.formats.flax_vit import (
    ATTENTION,
    BLOCK,
    count_layers,
    find_prefix,
    leave_training,
    sizes,
    square_grid,
    take_ends,
    take_head,
)
from vivit_jax.formats.weights import Conversion, Weights

POSITIONS = 'Transformer/posembed_input/pos_embedding'


def convert(conversion: Conversion, sidecar: dict[str, Any], num_heads: int | None) -> Weights:
    """Reads a ViT, as Model 1 on one frame. Of one that pools by attention (MAP), all but the head.

    Args:
        conversion: The file's arrays, under one of the prefixes of `flax_vit`.
        sidecar: Not needed, since the arrays tell everything.
        num_heads: Must be the file's, if given.

    Raises:
        ValueError: One line: what is missing, surplus, or contradicts the file.
    """
    prefix = find_prefix(conversion)
    scanned = any(name.startswith(f'{prefix}Transformer/encoderblock/') for name in conversion.names())
    first = f'{prefix}Transformer/encoderblock' + ('/' if scanned else '_0/')
    query, hidden = f'{first}{ATTENTION}/query/kernel', f'{first}MlpBlock_0/Dense_0/kernel'
    model = sizes(conversion, prefix, query, hidden, num_heads)
    take_ends(conversion, prefix)
    layers = conversion.peek(query).shape[0] if scanned else count_layers(conversion, prefix)
    _take_blocks(conversion, prefix, layers, scanned=scanned)
    with_cls = f'{prefix}cls' in conversion
    if with_cls:
        conversion.take(f'{prefix}cls', 'cls')
    tokens = _take_positions(conversion, prefix, with_cls=with_cls)
    classes, representation = _take_head(conversion, prefix)
    _leave_text(conversion, prefix, classes)
    leave_training(conversion)
    model |= {
        'num_layers': layers,
        'classifier': 'token' if with_cls else 'gap',
        'position_embedding': 'learned' if tokens else 'sinusoidal_2d',
        'representation_size': representation,
    }
    return conversion.finish(model, classes, square_grid(tokens))


def _take_blocks(conversion: Conversion, prefix: str, layers: int, *, scanned: bool) -> None:
    """Takes all blocks, one array after another, since a scanned one holds every layer."""
    for name in BLOCK:
        for layer in range(layers):
            ours = f'Transformer/encoderblock_{layer}/{name}'
            if not scanned:
                conversion.take(f'{prefix}{ours}', ours)
                continue
            theirs = f'{prefix}Transformer/encoderblock/{name}'
            depth = conversion.peek(theirs).shape[0]
            if depth != layers:
                raise ValueError(f'{conversion.path}: {theirs} has {depth} layers, but others have {layers}')
            conversion.take(theirs, ours, operator.itemgetter(layer), f'layer {layer} of all')


def _take_positions(conversion: Conversion, prefix: str, *, with_cls: bool) -> int:
    """Takes learned positions; returns how many tokens they are for, 0 if there are none."""
    name = f'{prefix}pos_embedding'
    if name not in conversion:
        conversion.notes.append(
            'the file has no position embeddings: they are the fixed sines and cosines in 2-D'
        )
        return 0
    if with_cls:
        # Positions are added to the patches, and the cls token is put before them as it is.
        conversion.take(
            name, POSITIONS, lambda array: np.pad(array, ((0, 0), (1, 0), (0, 0))), 'zeros before it for cls'
        )
    else:
        conversion.take(name, POSITIONS)
    return conversion.made(POSITIONS).shape[1] - with_cls


def _take_head(conversion: Conversion, prefix: str) -> tuple[int, int]:
    if not any(name.startswith(f'{prefix}MAPHead_0/') for name in conversion.names()):
        return take_head(conversion, prefix)
    conversion.leave(rf'{prefix}MAPHead_0/.*', 'pools the tokens by attention (MAP), which ViViT has not')
    conversion.leave(rf'{prefix}(pre_logits|head)/(kernel|bias)', 'follows the pooling by attention (MAP)')
    return 0, 0


def _leave_text(conversion: Conversion, prefix: str, classes: int) -> None:
    """Explains what a file of two towers has besides the image model."""
    if not prefix.endswith('img/'):
        return
    both = re.escape(prefix.removesuffix('img/'))
    conversion.leave(rf'{both}txt/.*', 'the text tower')
    conversion.leave(rf'{both}t', 'the temperature of the similarity of image and text')
    conversion.leave(rf'{both}b', 'the bias of the similarity of image and text')
    if classes:
        conversion.notes.append(
            f'the head projects into the space shared with text: its {classes} outputs are no classes'
        )
