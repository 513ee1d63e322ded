"""Google's released ViTs (google-research/vision_transformer), `.npz`: names of today's Flax, and those before linen.

Sizes are told by shapes; the activation is the tanh GELU, LayerNorm's epsilon 1e-6, pixels are in [-1, 1].
"""

from typing import Any

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

# Modules of a block were numbered in the order of their use, whatever their kind.
PRE_LINEN = {
    'LayerNorm_1': 'LayerNorm_2',
    'MultiHeadDotProductAttention_0': 'MultiHeadDotProductAttention_1',
    'MlpBlock_0': 'MlpBlock_3',
}


def convert(conversion: Conversion, sidecar: dict[str, Any], num_heads: int | None) -> Weights:
    """Reads a ViT, as Model 1 on one frame.

    Args:
        conversion: The file's arrays, with or without a prefix as `params/`, a cls token, `pre_logits`, and a head.
        sidecar: Not needed, since the arrays tell everything.
        num_heads: Must be the file's, if given.

    Raises:
        ValueError: One line: what is missing, surplus, or contradicts the file.
    """
    prefix = find_prefix(conversion)
    encoder = f'{prefix}Transformer/'
    old = any('/MlpBlock_3/' in name for name in conversion.names())
    spelling = PRE_LINEN if old else {}

    def theirs(layer: int, name: str) -> str:
        module, leaf = name.split('/', 1)
        return f'{encoder}encoderblock_{layer}/{spelling.get(module, module)}/{leaf}'

    model = sizes(
        conversion,
        prefix,
        theirs(0, f'{ATTENTION}/query/kernel'),
        theirs(0, 'MlpBlock_0/Dense_0/kernel'),
        num_heads,
    )
    take_ends(conversion, prefix)
    layers = count_layers(conversion, prefix)
    for layer in range(layers):
        for name in BLOCK:
            conversion.take(theirs(layer, name), f'Transformer/encoderblock_{layer}/{name}')
    positions = 'Transformer/posembed_input/pos_embedding'
    conversion.take(f'{prefix}{positions}', positions)
    with_cls = f'{prefix}cls' in conversion
    if with_cls:
        conversion.take(f'{prefix}cls', 'cls')
    classes, representation = take_head(conversion, prefix)
    leave_training(conversion)
    model |= {
        'num_layers': layers,
        'classifier': 'token' if with_cls else 'gap',
        'position_embedding': 'learned',
        'representation_size': representation,
    }
    tokens = conversion.made(positions).shape[1] - with_cls
    return conversion.finish(model, classes, square_grid(tokens))
