"""Scenic's checkpoints: their parameters have our names, below one of several roots, beside an optimiser's state.

What a file cannot tell (the order of factorised self-attention, Model 1 or 4, how tokens are pooled, the grid of
joint models) its configuration does: `with_config`.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from einops import rearrange

from vivit_jax import checkpoint
from vivit_jax.config import ConfigDict, flatten
from vivit_jax.formats.scenic_config import to_config, translate
from vivit_jax.formats.weights import Conversion, Origin, Weights, flat, nested
from vivit_jax.models.embed import token_grid
from vivit_jax.models.vivit import create_model

__all__ = ['Configured', 'convert', 'is_orbax', 'read_orbax', 'to_config', 'translate', 'with_config']

# Where parameters are: in old files, new ones, either with one more level, or bare.
ROOTS = ('optimizer/target/params/', 'optimizer/target/', 'params/params/', 'params/', '')
# What else a training state holds, and why it is left.
OTHERS = {
    r'(optimizer/state|opt_state)(/.*)?': "the optimiser's state: training starts with a fresh one",
    r'(rng|prng)(/.*)?': 'the state of the random numbers',
    r'(global_step|step|accum_train_time)': 'how far training was',
    r'model_state(/.*)?': 'statistics beside the parameters, which ViViT has none of',
    r'metadata(/.*)?': 'remarks about the run',
    r'ema\w*(/.*)?': 'a moving average of the parameters: the parameters themselves are taken',
}
MARKS = ('_METADATA', 'manifest.ocdbt')
# What a configuration decides about a model and no array tells.
FREE = ('kernel_init', 'dropout_rate', 'attention_dropout_rate', 'drop_path_rate', 'dtype')
POSITIONS = 'posembed_input/pos_embedding'
Grid = tuple[int, int, int]
Shapes = Mapping[str, tuple[int, ...]]


def is_orbax(path: pathlib.Path) -> bool:
    """Tells whether a folder is a checkpoint that Orbax wrote, or holds some by their steps."""
    return _find_tree(path) is not None


def _find_tree(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of the arrays, of several steps the latest's."""
    if not path.is_dir():
        return None
    if any((path / mark).is_file() for mark in MARKS):
        return path
    steps = {}
    for folder in path.iterdir():
        match = re.fullmatch(r'(?:\w+_)?(\d+)', folder.name)
        if match and folder.is_dir():
            steps[int(match[1])] = folder
    for step in sorted(steps, reverse=True):
        for item in ('.', 'default', 'state', 'train_state'):
            if any((steps[step] / item / mark).is_file() for mark in MARKS):
                return steps[step] / item
    return None


def read_orbax(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a checkpoint that Orbax wrote: its arrays, by names with slashes.

    Args:
        path: Its folder, or one that holds `checkpoint_<step>` folders; the latest is read.

    Raises:
        ValueError: If there is none, or it is damaged.
    """
    folder = _find_tree(path)
    if folder is None:
        raise ValueError(f'{path}: holds no checkpoint that Orbax wrote')
    leaves, _ = jax.tree_util.tree_flatten_with_path(checkpoint.read_arrays(folder))
    named = {jax.tree_util.keystr(place, simple=True, separator='/'): leaf for place, leaf in leaves}
    return {name: leaf for name, leaf in named.items() if isinstance(leaf, np.ndarray)}


def convert(conversion: Conversion, sidecar: dict[str, Any], num_heads: int | None) -> Weights:
    """Reads a ViViT of Scenic's, or an image ViT of its, as Model 1 on one frame. All sizes come from the arrays.

    Args:
        conversion: The file's arrays.
        sidecar: Not used: what a configuration has to say, `with_config` hears.
        num_heads: A hint that this format does not need; it must not contradict the arrays.

    Raises:
        ValueError: One line: what is missing, contradicts, or has no place in ViViT.
    """
    del sidecar
    root = next((root for root in ROOTS if f'{root}embedding/kernel' in conversion), None)
    if root is None:
        raise ValueError(
            f"{conversion.path}: seems to be of Scenic's, but has no embedding/kernel at "
            f'{", ".join(root or "its top" for root in ROOTS)}'
        )
    shapes = {
        name.removeprefix(root): conversion.peek(name).shape
        for name in conversion.names()
        if name.startswith(root) and not (root == '' and any(re.fullmatch(other, name) for other in OTHERS))
    }
    model = _model(conversion, shapes)
    if num_heads not in (None, model['num_heads']):
        raise ValueError(
            f'{conversion.path}: num_heads={num_heads}, but its arrays have {model["num_heads"]}'
        )
    grid = _grid(shapes)
    flat_kernel = len(shapes['embedding/kernel']) == 4
    for name in shapes:
        if name == 'embedding/kernel' and flat_kernel:
            conversion.take(
                root + name, name, lambda kernel: rearrange(kernel, 'h w c d -> 1 h w c d'), 'time axis added'
            )
        elif re.match(r'(embedding|cls\w*|\w*Transformer|pre_logits|output_projection)(/|$)', name):
            conversion.take(root + name, name)
    for pattern, reason in OTHERS.items():
        conversion.leave(pattern, reason)
    _note_assumptions(conversion, model, flat_kernel)
    head = shapes.get('output_projection/kernel')
    return conversion.finish(model, head[-1] if head else 0, grid)


def _model(conversion: Conversion, shapes: Shapes) -> dict[str, Any]:
    """Reads the model off its parameters."""
    encoders = any(name.startswith('SpatialTransformer/') for name in shapes)
    encoder = 'SpatialTransformer' if encoders else 'Transformer'
    block = f'{encoder}/encoderblock_0'
    factorised = f'{block}/MultiHeadDotProductAttention_space/query/kernel' in shapes
    queries = f'{block}/MultiHeadDotProductAttention_{"space" if factorised else "0"}/query/kernel'
    mlp = f'{block}/{"MlpBlock" if factorised else "MlpBlock_0"}/Dense_0/kernel'
    for name in (queries, mlp):
        if name not in shapes:
            raise ValueError(
                f'{conversion.path}: has no {name}: it is none of the four ViViTs, or incomplete'
            )
    width, heads, _ = shapes[queries]
    attention = 'factorised_self_attention' if factorised else 'spatio_temporal'
    cls = 'cls_SpatialTransformer' if encoders else 'cls'
    over_time = conversion.layers(r'TemporalTransformer/encoderblock_(\d+)/', shapes)
    return ({'temporal_layers': over_time} if encoders else {}) | {
        'attention': 'factorised_encoder' if encoders else attention,
        'num_layers': conversion.layers(rf'{encoder}/encoderblock_(\d+)/', shapes),
        'num_heads': heads,
        'width': width,
        'mlp_dim': shapes[mlp][1],
        'tubelet': ((1,) + shapes['embedding/kernel'])[-5:-2],
        'classifier': 'token' if cls in shapes else 'gap',
        'position_embedding': 'learned' if f'{encoder}/{POSITIONS}' in shapes else 'none',
        'representation_size': shapes.get('pre_logits/kernel', (0, 0))[1],
        'final_norm': f'{encoder}/encoder_norm/scale' in shapes,
        'activation': 'gelu_tanh',
        'norm_epsilon': 1e-6,
    }


def _tokens(shapes: Shapes, encoder: str) -> int:
    """Returns how many tokens an encoder has positions for, without the cls token's; 0 if it has none."""
    shape = shapes.get(f'{encoder}/{POSITIONS}')
    cls = 'cls' if encoder == 'Transformer' else f'cls_{encoder}'
    return shape[1] - (cls in shapes) if shape else 0


def _grid(shapes: Shapes) -> Grid | None:
    """Returns the grid of the tokens, taking frames to be square."""
    spatial, temporal, joint = (_tokens(shapes, f'{kind}Transformer') for kind in ('Spatial', 'Temporal', ''))
    if not temporal and (spatial or len(shapes['embedding/kernel']) == 5):
        return None
    tokens, time = (spatial, temporal) if spatial else (joint, 1)
    side = math.isqrt(tokens)
    return (time, side, side) if tokens and side**2 == tokens else None


def _note_assumptions(conversion: Conversion, model: dict[str, Any], flat_kernel: bool) -> None:
    """Says what was assumed where the arrays are the same for several models."""
    say = conversion.notes.append
    if model['attention'] == 'factorised_self_attention':
        say("attention_order='space_time' is assumed: the file does not tell, its configuration does")
    if model['attention'] == 'spatio_temporal' and model['classifier'] != 'token' and not flat_kernel:
        say(
            "attention='spatio_temporal' is assumed: factorised_dot_product has the same parameters, its "
            'configuration tells which'
        )
    if model['classifier'] != 'token':
        say("classifier='gap' is assumed: gmp, gsp and first_token have the same parameters")
    if model['position_embedding'] == 'none':
        say("position_embedding='none' is assumed: sinusoidal ones have no parameters either")
    if flat_kernel:
        say('the embedding has no time: single frames are embedded, of an image or of uniform frame sampling')


@dataclasses.dataclass(frozen=True)
class Configured:
    """Weights and the configuration that they were trained with, in agreement.

    Attributes:
        weights: With its model and grid settled; the notes tell where file and configuration differ.
        config: Ours, with the file's sizes, clip and classes.
        unknown: Fields of Scenic's configuration that were not understood.
    """

    weights: Weights
    config: ConfigDict
    unknown: tuple[str, ...]


def with_config(weights: Weights, scenic_config: Mapping[str, Any] | ConfigDict) -> Configured:
    """Settles what the file cannot tell by its configuration. Where both tell, the file is right, and a note says so.

    Args:
        weights: As `convert` read them.
        scenic_config: Scenic's configuration, see `to_config`.

    Raises:
        ValueError: If the configuration cannot be understood, or its clips do not fit the position embeddings.
    """
    told = flatten(scenic_config)
    config, unknown, remarks = translate(scenic_config)
    config = ConfigDict(config.to_dict())
    params = flat(weights.params)
    origin = dict(weights.origin)
    notes = list(remarks)
    model = _settled(weights, config, notes)
    if model['embedding'] == 'uniform_frame_sampling':
        params['embedding/kernel'] = params['embedding/kernel'][0]
        origin['embedding/kernel'] = Origin(origin['embedding/kernel'].arrays, 'copied')
    if told.get('dataset_configs.zero_centering') not in (None, True):
        _fold_range(params, origin)
        notes.append('the embedding was changed to take pixels in [-1, 1] instead of [0, 1]')
    shapes = {name: array.shape for name, array in params.items()}
    grid = _configured_grid(weights, config, model, shapes, told)
    # What Scenic's configuration leaves out is no difference.
    frames = config.data.frames if 'dataset_configs.num_frames' in told else ()
    _agree(config, 'data.frames', frames, _frames(config, model, grid), notes)
    crop = (grid[1] * model['tubelet'][1], grid[2] * model['tubelet'][2])
    fits = [size // tube for size, tube in zip(config.data.crop, model['tubelet'][1:], strict=True)]
    if tuple(fits) != grid[1:]:
        said = tuple(config.data.crop) if 'dataset_configs.crop_size' in told else ()
        _agree(config, 'data.crop', said, crop, notes)
    if model['sampled_frames'] and model['sampled_frames'] != grid[0]:
        notes.append(_differ('model.sampled_frames', grid[0], model['sampled_frames']))
        model['sampled_frames'] = grid[0]
    clip = (model['sampled_frames'] or config.data.frames, *config.data.crop)
    left = [size % tube for size, tube in zip(clip, model['tubelet'], strict=True)]
    model['remainder'] = 'crop' if any(left) else 'error'
    if weights.num_classes and sum(config.data.num_classes) != weights.num_classes:
        config.data.heads = ('label',)
        _agree(config, 'data.num_classes', tuple(config.data.num_classes), (weights.num_classes,), notes)
    if not weights.num_classes:
        notes.append('the file has no head: train one, or use the features')
    config.model.update(model)
    create_model(weights.num_classes, **config.model)
    settled = dataclasses.replace(
        weights, params=nested(params), model=model, grid=grid, origin=origin, notes=tuple(notes)
    )
    return Configured(settled, config.lock(), tuple(unknown))


def _settled(weights: Weights, config: ConfigDict, notes: list[str]) -> dict[str, Any]:
    """Returns the model: the file's word first, the configuration's where the file is silent."""
    told, wanted = weights.model, config.model
    model = dict(told) | {name: wanted[name] for name in FREE}
    # What the file leaves open: names of settings, and the values between which its arrays do not decide.
    joint = told['attention'] == 'spatio_temporal' and told['classifier'] != 'token'
    pooled = told['classifier'] != 'token'
    single = told['tubelet'][0] == 1
    open_to = {
        'attention': ('spatio_temporal', 'factorised_dot_product') if joint else (told['attention'],),
        'attention_order': ('space_time', 'time_space'),
        'classifier': ('gap', 'gmp', 'gsp', 'first_token') if pooled else ('token',),
        'position_embedding': ('learned',)
        if told['position_embedding'] == 'learned'
        else ('none', 'sinusoidal_1d', 'sinusoidal_3d'),
        'embedding': ('tubelet', 'uniform_frame_sampling') if single else ('tubelet',),
    }
    for name, values in open_to.items():
        model[name] = wanted[name] if wanted[name] in values else values[0]
        if wanted[name] not in values:
            notes.append(_differ(f'model.{name}', model[name], wanted[name]))
    sizes = ['num_layers', 'num_heads', 'width', 'mlp_dim', 'tubelet', 'representation_size', 'final_norm']
    if told['attention'] == 'factorised_encoder':
        sizes.append('temporal_layers')
    for name in sizes:
        if wanted[name] != told[name]:
            notes.append(_differ(f'model.{name}', told[name], wanted[name]))
    if told['attention'] != 'factorised_encoder':
        # Of no use there; the default, so that models compare equal.
        model['temporal_layers'] = wanted.temporal_layers
    model['sampled_frames'] = wanted.sampled_frames if model['embedding'] == wanted.embedding else 0
    return model


def _differ(name: str, there: Any, said: Any) -> str:
    return f'{name} is {there!r} in the file and {said!r} in the configuration: the file is right'


def _agree(config: ConfigDict, key: str, said: Any, there: Any, notes: list[str]) -> None:
    """Sets a key to the file's value, and notes where the configuration says another."""
    if said != there:
        if said != ():
            notes.append(_differ(key, there, said))
        config.update_from_flattened_dict({key: there})


def _configured_grid(
    weights: Weights, config: ConfigDict, model: dict[str, Any], shapes: Shapes, told: Mapping[str, Any]
) -> Grid:
    """Returns the grid that the positions are for: the configuration's, or one with as much of it as they allow.

    `told` are the fields of Scenic's configuration, since what it leaves out proves nothing.
    """
    clip = (model['sampled_frames'] or config.data.frames, *config.data.crop)
    nt, nh, nw = token_grid(clip, model['tubelet'], 'crop')
    spatial, temporal, joint = (_tokens(shapes, f'{kind}Transformer') for kind in ('Spatial', 'Temporal', ''))
    if model['position_embedding'] != 'learned' or joint == nt * nh * nw:
        return (nt, nh, nw)
    time = model['sampled_frames'] or 'dataset_configs.num_frames' in told
    tokens = spatial or (joint // nt if joint % nt == 0 and time else 0)
    side = math.isqrt(tokens)
    if spatial and spatial == nh * nw:
        return (temporal or nt, nh, nw)
    if joint and joint % (nh * nw) == 0 and 'dataset_configs.crop_size' in told:
        return (joint // (nh * nw), nh, nw)
    if tokens and side**2 == tokens:
        return (temporal or nt, side, side)
    raise ValueError(
        f'{weights.path}: has positions for {spatial or joint} tokens, but clips of {clip} (frames, pixels high, '
        f'pixels wide) have {nh * nw if spatial else nt * nh * nw}: set dataset_configs.num_frames and crop_size in '
        "Scenic's configuration"
    )


def _frames(config: ConfigDict, model: dict[str, Any], grid: Grid) -> int:
    """Returns the frames of a clip; frames that are sampled, and what is left over at its end, count too."""
    tube, frames = model['tubelet'][0], config.data.frames
    if model['sampled_frames']:
        return max(frames, grid[0])
    return frames if frames // tube == grid[0] else grid[0] * tube


def _fold_range(params: dict[str, np.ndarray], origin: dict[str, Origin]) -> None:
    """Makes an embedding that takes pixels p in [0, 1] take x = 2 p - 1: k p = k x / 2 + k / 2."""
    half = params['embedding/kernel'] / 2
    params['embedding/kernel'] = half
    params['embedding/bias'] = params['embedding/bias'] + half.reshape(-1, half.shape[-1]).sum(0)
    for name in ('embedding/kernel', 'embedding/bias'):
        how = f'{origin[name].how}, for pixels in [-1, 1]'
        origin[name] = Origin(origin[name].arrays, how)
