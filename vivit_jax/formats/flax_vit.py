"""What Google's two formats of image ViTs share: prefixes, sizes told by shapes, what else a training run saves."""

import math
import re
from typing import Any

from vivit_jax.formats.weights import Conversion

PREFIXES = ('params/img/', 'opt/target/', 'params/', 'img/', '')

# Of a block, in our names, which are those of today's Flax.
ATTENTION = 'MultiHeadDotProductAttention_0'
BLOCK = (
    *(f'LayerNorm_{i}/{leaf}' for i in (0, 1) for leaf in ('scale', 'bias')),
    *(
        f'{ATTENTION}/{part}/{leaf}'
        for part in ('query', 'key', 'value', 'out')
        for leaf in ('kernel', 'bias')
    ),
    *(f'MlpBlock_0/Dense_{i}/{leaf}' for i in (0, 1) for leaf in ('kernel', 'bias')),
)


def find_prefix(conversion: Conversion) -> str:
    """Returns what stands before the names of the image model.

    Raises:
        ValueError: If there is none under any known prefix.
    """
    for prefix in PREFIXES:
        if f'{prefix}embedding/kernel' in conversion:
            return prefix
    found = next(name for name in conversion.names() if name.endswith('embedding/kernel'))
    raise ValueError(
        f'{conversion.path}: its image model is at {found!r}, but known prefixes of embedding/kernel are '
        f'{", ".join(repr(prefix) for prefix in PREFIXES)}'
    )


def sizes(
    conversion: Conversion, prefix: str, query: str, hidden: str, num_heads: int | None
) -> dict[str, Any]:
    """Reads what the model is from the shapes of arrays.

    Args:
        conversion: The file.
        prefix: From `find_prefix`.
        query: Name of a query kernel `[… d heads d/heads]`.
        hidden: Name of an MLP's first kernel `[… d mlp]`.
        num_heads: A caller's idea of the heads, to be compared.

    Returns:
        Keyword arguments of `create_model`, but for the layers, the classifier and the positions.

    Raises:
        ValueError: If the embedding is of another kind, or `num_heads` is not the file's.
    """
    kernel = conversion.peek(f'{prefix}embedding/kernel').shape
    if any(re.match(rf'{prefix}(conv_root|block\d+)/', name) for name in conversion.names()):
        raise ValueError(
            f'{conversion.path}: is a hybrid: a ResNet (conv_root) comes before its ViT, and ViViT has none'
        )
    if len(kernel) != 4:
        raise ValueError(
            f'{conversion.path}: {prefix}embedding/kernel is {kernel}, not that of image patches [h w c d]'
        )
    heads = conversion.peek(query).shape[-2]
    if num_heads not in (None, heads):
        raise ValueError(f'{conversion.path}: num_heads={num_heads}, but {query} has {heads} heads')
    return {
        'attention': 'spatio_temporal',
        'embedding': 'tubelet',
        'num_heads': heads,
        'width': kernel[-1],
        'mlp_dim': conversion.peek(hidden).shape[-1],
        'tubelet': (1, *kernel[:2]),
        'representation_size': 0,
        'activation': 'gelu_tanh',
        'norm_epsilon': 1e-6,
        'final_norm': True,
    }


def count_layers(conversion: Conversion, prefix: str) -> int:
    """Returns the number of blocks that have names of their own, `encoderblock_<i>`."""
    return conversion.layers(rf'{prefix}Transformer/encoderblock_(\d+)/')


def take_ends(conversion: Conversion, prefix: str) -> None:
    """Takes the embedding and the last LayerNorm."""
    # A clip's kernel has an axis of time, here of one frame.
    conversion.take(
        f'{prefix}embedding/kernel', 'embedding/kernel', lambda kernel: kernel[None], 'with a time axis of 1'
    )
    conversion.take(f'{prefix}embedding/bias', 'embedding/bias')
    for leaf in ('scale', 'bias'):
        conversion.take(f'{prefix}Transformer/encoder_norm/{leaf}', f'Transformer/encoder_norm/{leaf}')


def take_head(conversion: Conversion, prefix: str) -> tuple[int, int]:
    """Takes the tanh layer and the head, where there are any; returns the classes and the representation's size."""
    classes, representation = 0, 0
    if f'{prefix}pre_logits/kernel' in conversion:
        representation = conversion.peek(f'{prefix}pre_logits/kernel').shape[-1]
        for leaf in ('kernel', 'bias'):
            conversion.take(f'{prefix}pre_logits/{leaf}', f'pre_logits/{leaf}')
    if f'{prefix}head/kernel' in conversion:
        classes = conversion.peek(f'{prefix}head/kernel').shape[-1]
        for leaf in ('kernel', 'bias'):
            conversion.take(f'{prefix}head/{leaf}', f'output_projection/{leaf}')
    return classes, representation


def leave_training(conversion: Conversion) -> None:
    """Explains what else a training run saves."""
    conversion.leave(r'opt/(?!target/).*', "the optimiser's state")
    conversion.leave(r'chrono/.*', "the training run's clock")


def square_grid(tokens: int) -> tuple[int, int, int] | None:
    """Returns the grid of an image's tokens if it can only be square, else None."""
    side = math.isqrt(tokens)
    return (1, side, side) if side and side**2 == tokens else None
