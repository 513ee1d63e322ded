"""timm's VisionTransformer: safetensors or `.pth`, with the hub's `config.json` where there is one.

Its sizes are told by shapes, but the heads are not, since query, key and value are one projection. The activation is
the exact GELU and LayerNorm's epsilon 1e-6; both are timm's defaults, which the plain ViTs have.
"""

import functools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from einops import rearrange

from vivit_jax.config import SIZES
from vivit_jax.formats.flax_vit import square_grid
from vivit_jax.formats.pixels import fold_normalisation
from vivit_jax.formats.weights import Conversion, Weights

POSITIONS = 'Transformer/posembed_input/pos_embedding'
ACTIVATIONS = {'gelu': 'gelu_exact', 'gelu_tanh': 'gelu_tanh'}

# What ViViT cannot compute, by the arrays that tell it.
FOREIGN = {
    r'reg_token': 'register tokens',
    r'(dist_token|head_dist\..*)': 'a distillation token (DeiT)',
    r'norm_pre\..*': 'a LayerNorm before the encoder',
    r'patch_embed\.backbone\..*': 'a convolutional network before the patches (a hybrid)',
    r'patch_embed\.norm\..*': 'a LayerNorm of the patches',
    r'blocks\.\d+\.attn\.[qk]_norm\..*': 'normalised queries and keys (qk-norm)',
    r'blocks\.\d+\.attn\.norm\..*': 'a LayerNorm inside the attention',
    r'(.*\.)?(rel_pos.*|relative_position.*)': 'relative positions',
    r'blocks\.\d+\.mlp\.(norm\..*|fc1_g\..*|fc1_x\..*|w12\..*|gate\..*)': 'a gated or normalised MLP',
}


def convert(conversion: Conversion, sidecar: dict[str, Any], num_heads: int | None) -> Weights:
    """Reads a ViT, as Model 1 on one frame. Where it pools otherwise than ViViT can, all but the head.

    Args:
        conversion: The file's arrays; a prefix common to the image model, as `module.`, is found.
        sidecar: Its `config.json`: heads, pooling, and the normalisation of pixels, which goes into the embedding.
        num_heads: Attention heads, where the sidecar does not tell.

    Raises:
        ValueError: One line: what is missing, what ViViT has not, or that the number of heads is to be given.
    """
    prefix = find_prefix(conversion)
    _refuse(conversion, sidecar, prefix)
    kernel = conversion.peek(f'{prefix}patch_embed.proj.weight').shape
    if len(kernel) != 4:
        raise ValueError(
            f'{conversion.path}: {prefix}patch_embed.proj.weight is {kernel}, not of images [d c h w]'
        )
    model: dict[str, Any] = {
        'attention': 'spatio_temporal',
        'embedding': 'tubelet',
        'num_layers': conversion.layers(rf'{re.escape(prefix)}blocks\.(\d+)\.'),
        'width': kernel[0],
        'mlp_dim': conversion.peek(f'{prefix}blocks.0.mlp.fc1.weight').shape[0],
        'tubelet': (1, *kernel[2:]),
        'position_embedding': 'learned',
        'representation_size': 0,
        'activation': _activation(conversion, sidecar),
        'norm_epsilon': 1e-6,
        'final_norm': f'{prefix}norm.weight' in conversion,
    }
    model['num_heads'] = heads_of(conversion, sidecar, num_heads, model)
    _take_ends(conversion, prefix, final_norm=model['final_norm'])
    for layer in range(model['num_layers']):
        _take_block(conversion, prefix, layer, model['num_heads'], model['width'])
    with_cls = f'{prefix}cls_token' in conversion
    if with_cls:
        conversion.take(f'{prefix}cls_token', 'cls')
    grid = _take_positions(conversion, prefix, sidecar, kernel[2:], with_cls=with_cls)
    model['classifier'] = 'token' if with_cls else 'gap'
    classes = _take_head(conversion, prefix, sidecar, with_cls=with_cls)
    _fold_pixels(conversion, sidecar)
    labels = _told(sidecar, 'label_names') or []
    return conversion.finish(model, classes, grid, class_names=labels if len(labels) == classes else [])


def _told(sidecar: dict[str, Any], key: str) -> Any:
    """Looks a setting up where the hub's `config.json` may have it; None where it has not."""
    for place in (sidecar.get('model_args'), sidecar, sidecar.get('pretrained_cfg')):
        if isinstance(place, dict) and place.get(key) is not None:
            return place[key]
    return None


def find_prefix(conversion: Conversion) -> str:
    """Returns what stands before the model's names, and leaves what is under another top-level name."""
    ending = 'patch_embed.proj.weight'
    names = [name for name in conversion.names() if name.endswith(ending)]
    if len(names) > 1:
        raise ValueError(f'{conversion.path}: has {len(names)} image models: {", ".join(names)}')
    prefix = names[0].removesuffix(ending)
    if prefix:
        top = prefix.split('.')[0]
        conversion.leave(rf'(?!{re.escape(top)}\.).*', f'is not of the model, which is under {prefix!r}')
    if prefix.endswith('trunk.'):
        head = re.escape(prefix.removesuffix('trunk.'))
        conversion.leave(rf'{head}head\..*', 'projects into the space shared with text')
    return prefix


def _refuse(conversion: Conversion, sidecar: dict[str, Any], prefix: str) -> None:
    """Raises a ValueError if the model computes what ViViT cannot."""
    for pattern, what in FOREIGN.items():
        for name in conversion.names():
            if re.fullmatch(re.escape(prefix) + pattern, name):
                raise ValueError(f'{conversion.path}: has {what} ({name}), which ViViT has not')
    architecture = str(_told(sidecar, 'architecture') or '')
    if '_rpn_' in architecture:
        raise ValueError(
            f'{conversion.path}: {architecture} (config.json) normalises after attention and MLP, which ViViT has not'
        )


def _activation(conversion: Conversion, sidecar: dict[str, Any]) -> str:
    name = _told(sidecar, 'act_layer')
    if name is None:
        # SigLIP's: timm has both, by the model's name and its own version.
        pools_by_attention = any('attn_pool.' in name for name in conversion.names())
        if pools_by_attention or 'siglip' in str(_told(sidecar, 'architecture')):
            conversion.notes.append(
                'the exact GELU is assumed, as the file does not tell; some models of this sort have the tanh form'
            )
        return 'gelu_exact'
    if name not in ACTIVATIONS:
        raise ValueError(
            f'{conversion.path}: act_layer={name!r} of config.json: known are {", ".join(ACTIVATIONS)}'
        )
    return ACTIVATIONS[name]


def heads_of(conversion: Conversion, sidecar: dict[str, Any], hint: int | None, model: dict[str, Any]) -> int:
    """Settles the number of heads: as asked, as the sidecar tells, or as the named size of these measures has it."""
    told, width = _told(sidecar, 'num_heads'), model['width']
    if hint is not None and told not in (None, hint):
        raise ValueError(f'{conversion.path}: num_heads={hint}, but its config.json says num_heads={told}')
    heads = told if hint is None else hint
    if heads is not None:
        if not isinstance(heads, int) or heads < 1 or width % heads:
            raise ValueError(f'{conversion.path}: num_heads={heads!r} does not divide its width {width}')
        return heads
    measures = (model['num_layers'], width, model['mlp_dim'])
    for name, (layers, heads, *rest) in SIZES.items():
        if (layers, *rest) == measures:
            conversion.notes.append(
                f'num_heads={heads} is assumed, since layers, width and MLP {measures} are those of size {name}: the '
                'file does not tell'
            )
            return heads
    plausible = [str(n) for n in range(1, width + 1) if width % n == 0 and 8 <= width // n <= 128]
    raise ValueError(
        f'{conversion.path}: does not tell the number of attention heads: give num_heads '
        f'(--config.init_from.num_heads=N), for its width {width} one of {", ".join(plausible) or "its divisors"}'
    )


def _take_ends(conversion: Conversion, prefix: str, *, final_norm: bool) -> None:
    """Takes the embedding, and the last LayerNorm where there is one."""
    projection = f'{prefix}patch_embed.proj'
    conversion.take(
        f'{projection}.weight',
        'embedding/kernel',
        lambda kernel: rearrange(kernel, 'd c h w -> 1 h w c d'),
        'transposed, with a time axis of 1',
    )
    if f'{projection}.bias' in conversion:
        conversion.take(f'{projection}.bias', 'embedding/bias')
    else:
        width = conversion.made('embedding/kernel').shape[-1]
        conversion.set('embedding/bias', np.zeros(width), 'zeros: the file has no such bias')
    if final_norm:
        conversion.take(f'{prefix}norm.weight', 'Transformer/encoder_norm/scale')
        conversion.take(f'{prefix}norm.bias', 'Transformer/encoder_norm/bias')


def _take_block(conversion: Conversion, prefix: str, layer: int, heads: int, width: int) -> None:
    theirs, ours = f'{prefix}blocks.{layer}.', f'Transformer/encoderblock_{layer}/'
    take = functools.partial(_take, conversion, theirs, ours)
    for i in (1, 2):
        take(f'norm{i}.weight', f'LayerNorm_{i - 1}/scale')
        take(f'norm{i}.bias', f'LayerNorm_{i - 1}/bias')
        take(f'mlp.fc{i}.weight', f'MlpBlock_0/Dense_{i - 1}/kernel', np.transpose, 'transposed')
        take(f'mlp.fc{i}.bias', f'MlpBlock_0/Dense_{i - 1}/bias')
    # One layer without it would be a damaged file.
    with_bias = any(
        name.startswith(f'{prefix}blocks.') and name.endswith('.attn.qkv.bias') for name in conversion.names()
    )
    for name, expected in (
        ('qkv.weight', (3 * width, width)),
        *([('qkv.bias', (3 * width,))] if with_bias else []),
        ('proj.weight', (width, width)),
    ):
        shape = conversion.peek(f'{theirs}attn.{name}').shape
        if shape != expected:
            raise ValueError(
                f'{conversion.path}: {theirs}attn.{name} is {shape}, which for width {width} must be {expected}'
            )
    attention = 'MultiHeadDotProductAttention_0/'
    for i, part in enumerate(('query', 'key', 'value')):
        rows = slice(i * width, (i + 1) * width)
        how = f'rows {rows.start} to {rows.stop - 1}'

        def kernel(array: np.ndarray, rows: slice = rows) -> np.ndarray:
            return rearrange(array[rows], '(heads e) d -> d heads e', heads=heads)

        def bias(array: np.ndarray, rows: slice = rows) -> np.ndarray:
            return array[rows].reshape(heads, -1)

        take('attn.qkv.weight', f'{attention}{part}/kernel', kernel, f'{how}, transposed')
        if with_bias:
            take('attn.qkv.bias', f'{attention}{part}/bias', bias, how)
        else:
            zeros = np.zeros((heads, width // heads))
            conversion.set(
                f'{ours}{attention}{part}/bias', zeros, 'zeros: the file has none (qkv_bias=False)'
            )
    take(
        'attn.proj.weight',
        f'{attention}out/kernel',
        lambda array: rearrange(array, 'd (heads e) -> heads e d', heads=heads),
        'transposed',
    )
    take('attn.proj.bias', f'{attention}out/bias')
    # LayerScale (Touvron et al. 2021) multiplies what a branch gives, so that the branch's last map can hold it.
    for branch, map_out in (('1', f'{attention}out'), ('2', 'MlpBlock_0/Dense_1')):
        for name in (f'{theirs}ls{branch}.gamma', f'{theirs}gamma_{branch}'):
            if name in conversion:
                conversion.multiply(f'{ours}{map_out}/kernel', name, 'times LayerScale')
                conversion.multiply(f'{ours}{map_out}/bias', name, 'times LayerScale')


def _take(
    conversion: Conversion,
    theirs: str,
    ours: str,
    name: str,
    parameter: str,
    change: Callable[[np.ndarray], np.ndarray] = lambda array: array,
    how: str = 'copied',
) -> None:
    conversion.take(f'{theirs}{name}', f'{ours}{parameter}', change, how)


def _take_positions(
    conversion: Conversion, prefix: str, sidecar: dict[str, Any], patch: tuple[int, ...], *, with_cls: bool
) -> tuple[int, int, int] | None:
    """Takes the positions, with zeros for a cls token that has none; returns the grid, where it can be told."""
    name = f'{prefix}pos_embed'
    shape = conversion.peek(name).shape
    if len(shape) != 3:
        raise ValueError(
            f'{conversion.path}: {name} is {shape}, where a ViT has one position a token [1 n d]'
        )
    n = shape[1]
    told = _told_grid(sidecar, patch)
    slots = (1, 0) if with_cls else (0,)  # a slot for the cls token is timm's default
    fitting = [slot for slot in slots if told and math.prod(told) == n - slot]
    square = [slot for slot in slots if square_grid(n - slot)]
    slot = (fitting or square or slots)[0]
    if with_cls and not slot:
        conversion.take(
            name,
            POSITIONS,
            lambda array: np.pad(array, ((0, 0), (1, 0), (0, 0))),
            'zeros before it for cls (no_embed_class)',
        )
    else:
        conversion.take(name, POSITIONS)
    if with_cls and not fitting and slot == 0:
        conversion.notes.append(
            f'{n} positions are taken for a square of patches without one for cls: a config.json with img_size tells'
        )
    return told if fitting else square_grid(n - slot)


def _told_grid(sidecar: dict[str, Any], patch: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Returns the grid of tokens of the image size that the sidecar tells."""
    size = _told(sidecar, 'img_size') or (_told(sidecar, 'input_size') or [])[-2:]
    high, wide = (size, size) if isinstance(size, int) else (size if len(size) == 2 else (0, 0))
    return (1, high // patch[0], wide // patch[1]) if high and wide else None


def _take_head(conversion: Conversion, prefix: str, sidecar: dict[str, Any], *, with_cls: bool) -> int:
    """Takes the head if ViViT pools as it does, and explains it otherwise; returns its classes."""
    pool = _told(sidecar, 'global_pool') or ('token' if with_cls else 'avg')
    start = re.escape(prefix)
    if any(name.startswith(f'{prefix}attn_pool.') for name in conversion.names()):
        reason = 'follows the pooling by attention (map)'
        conversion.leave(rf'{start}attn_pool\..*', 'pools the tokens by attention (map), which ViViT has not')
    elif f'{prefix}fc_norm.weight' in conversion:
        reason = 'follows a LayerNorm of the pooled tokens'
        conversion.leave(
            rf'{start}fc_norm\.(weight|bias)', 'normalises the pooled tokens, which ViViT does not'
        )
    elif pool != ('token' if with_cls else 'avg'):
        tokens = 'the patches without the cls token' if with_cls else 'the patches'
        reason = f'global_pool={pool!r} pools {tokens}, which ViViT cannot'
    else:
        if f'{prefix}head.weight' not in conversion:
            return 0
        conversion.take(f'{prefix}head.weight', 'output_projection/kernel', np.transpose, 'transposed')
        conversion.take(f'{prefix}head.bias', 'output_projection/bias')
        return conversion.made('output_projection/bias').shape[0]
    conversion.leave(rf'{start}head\.(weight|bias)', reason)
    return 0


def _fold_pixels(conversion: Conversion, sidecar: dict[str, Any]) -> None:
    """Accounts in the embedding for the normalisation of pixels that the sidecar tells."""
    mean, std = _told(sidecar, 'mean'), _told(sidecar, 'std')
    if mean is None or std is None:
        conversion.notes.append(
            'no config.json tells how pixels were normalised (pretrained_cfg.mean, std): [-1, 1] is assumed'
        )
    else:
        fold_normalisation(conversion, mean, std)
