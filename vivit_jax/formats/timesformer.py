"""TimeSformer (Bertasius et al., ICML 2021): Hugging Face's folders, read and written, and the original files, read.

Both have the same arrays under other names. Those of Hugging Face follow from `torch_names`, but for queries, keys
and values, which are the thirds of one fused projection.
"""

import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vivit_jax.formats import timm
from vivit_jax.formats.hf_folder import (
    ACTIVATIONS,
    PROJECTION,
    File,
    cropping,
    inner_names,
    labels,
    settings,
    write,
)
from vivit_jax.formats.torch_names import IMAGE, Pair, pairs
from vivit_jax.formats.weights import Conversion, Weights, flat
from vivit_jax.models.vivit import ViViT, create_model

POSITIONS, TIMES = 'embeddings.position_embeddings', 'embeddings.time_embeddings'
# Their names of attentions. In 'space_only' every frame has a cls token of its own, which no model here has.
ATTENTIONS = {'divided_space_time': 'divided', 'joint_space_time': 'spatio_temporal'}
# From names of our PyTorch model to Hugging Face's, without what is before all of these.
FROM_OURS = (
    (r'^vivit\.', ''),
    (r'\.(attention|layernorm)_time\.', r'.temporal_\1.'),
    (r'\.projection_time\.', '.temporal_dense.'),
    (r'\.attention_space\.', '.attention.'),
    (r'\.layernorm_space\.', '.layernorm_before.'),
)
# And from the original names.
FROM_ORIGINAL = (
    (r'^patch_embed\.proj\.', 'embeddings.patch_embeddings.projection.'),
    (r'^cls_token$', 'embeddings.cls_token'),
    (r'^pos_embed$', POSITIONS),
    (r'^time_embed$', TIMES),
    (r'^blocks\.', 'encoder.layer.'),
    (r'\.temporal_norm1\.', '.temporal_layernorm.'),
    (r'\.norm1\.', '.layernorm_before.'),
    (r'\.norm2\.', '.layernorm_after.'),
    (r'attn\.qkv\.', 'attention.attention.qkv.'),
    (r'attn\.proj\.', 'attention.output.dense.'),
    (r'\.temporal_fc\.', '.temporal_dense.'),
    (r'\.mlp\.fc1\.', '.intermediate.dense.'),
    (r'\.mlp\.fc2\.', '.output.dense.'),
    (r'^norm\.', 'layernorm.'),
    (r'^head\.', 'classifier.'),
)
PIXELS = (
    '; the published TimeSformers were trained with mean 0.45 and standard deviation 0.225 of pixels in [0, 1]: a '
    'preprocessor_config.json there with {"image_mean": 0.45, "image_std": 0.225} has that accounted for'
)


def convert_hugging_face(conversion: Conversion, sidecar: dict[str, Any], num_heads: int | None) -> Weights:
    """Reads `TimesformerForVideoClassification` or `TimesformerModel`.

    Where its `preprocessor_config.json` scales pixels otherwise than to [-1, 1], the embedding accounts for it.

    Args:
        conversion: The file's arrays; names with or without `timesformer.`.
        sidecar: Its `config.json`, empty where there is none.
        num_heads: Attention heads, where there is no `config.json`, unless the sizes are those of a named model.

    Raises:
        ValueError: One line: what is missing, contradicts the arrays, or is of no model here.
    """
    file = File(conversion, inner_names(conversion, 'timesformer'), sidecar)
    file.check_type('timesformer')
    return _convert(file, num_heads)


def convert_original(conversion: Conversion, sidecar: dict[str, Any], num_heads: int | None) -> Weights:
    """Reads a file of facebookresearch/TimeSformer, as the `.pyth` with its `model_state`.

    Args:
        conversion: The file's arrays; a prefix common to the model, as `model_state.model.`, is found.
        sidecar: A `config.json` beside it, usually none.
        num_heads: Attention heads, unless the sizes are those of a named model.

    Raises:
        ValueError: See `convert_hugging_face`.
    """
    prefix = timm.find_prefix(conversion)
    names = {_renamed(name.removeprefix(prefix), FROM_ORIGINAL): name for name in conversion.names()}
    return _convert(File(conversion, names, sidecar), num_heads)


def _convert(file: File, num_heads: int | None) -> Weights:
    conversion = file.conversion
    attention = _attention(file)
    patch = file.shape(PROJECTION)[2:]
    frames = file.shape(TIMES)[1]
    image = file.sizes('image_size', 2) if 'image_size' in file.sidecar else None
    model: dict[str, Any] = {
        'attention': attention,
        'num_layers': conversion.layers(r'encoder\.layer\.(\d+)\.', file.names),
        'width': file.shape(PROJECTION)[0],
        'mlp_dim': file.shape('encoder.layer.0.intermediate.dense.weight')[0],
        'tubelet': (1, *patch),
        'remainder': 'crop' if image and any(np.mod(image, patch)) else 'error',
        'classifier': 'token',
        'position_embedding': 'learned_space_time',
        'activation': file.activation('gelu'),
        'norm_epsilon': float(file.sidecar.get('layer_norm_eps', 1e-6)),
    }
    for key, found in (
        ('hidden_size', (model['width'],)),
        ('num_channels', file.shape(PROJECTION)[1:2]),
        ('num_hidden_layers', (model['num_layers'],)),
        ('intermediate_size', (model['mlp_dim'],)),
        ('patch_size', patch),
        ('num_frames', (frames,)),
    ):
        file.agree(key, found)
    if 'model_type' in file.sidecar:
        model['num_heads'] = file.heads(num_heads)
    else:
        model['num_heads'] = timm.heads_of(conversion, file.sidecar, num_heads, model)
    num_classes = file.shape('classifier.weight')[0] if 'classifier.weight' in file.names else 0
    try:
        vivit = create_model(num_classes, **model)
    except ValueError as error:
        raise file.error(str(error)) from None
    _take(file, vivit)
    file.fold_pixels(PIXELS)
    grid = (frames, *_places(file, patch, image))
    return conversion.finish(model, num_classes, grid, class_names=file.class_names(num_classes))


def _attention(file: File) -> str:
    """Tells the attention by the arrays, and compares it with config.json."""
    divided = any('.temporal_attention.' in name for name in file.names)
    found = 'divided_space_time' if divided else 'joint_space_time' if TIMES in file.names else 'space_only'
    said = file.sidecar.get('attention_type', found)
    if said != found:
        raise file.error(f'config.json says attention_type={said!r}, but the arrays are of {found!r}')
    if found not in ATTENTIONS:
        raise file.error(
            "is a TimeSformer with attention_type='space_only': every frame has a cls token of its own there, and "
            'these are averaged before the last LayerNorm, which no model here does'
        )
    return ATTENTIONS[found]


def _places(file: File, patch: Sequence[int], image: Sequence[int] | None) -> tuple[int, int]:
    """Returns how many patches a frame has along height and width."""
    tokens = file.shape(POSITIONS)[1] - 1
    side = math.isqrt(tokens)
    places = (side, side) if image is None else (image[0] // patch[0], image[1] // patch[1])
    if math.prod(places) != tokens:
        raise file.error(
            f'its position embeddings are for {tokens} patches a frame, but '
            + (f'{image} pixels, as config.json says, have {places}' if image else 'frames must be square')
        )
    return places


def _take(file: File, vivit: ViViT) -> None:
    """Takes every array that the model has a place for."""
    without_bias = not file.sidecar.get('qkv_bias') and not any(n.endswith('qkv.bias') for n in file.names)
    for pair in pairs(vivit, IMAGE):
        name, third = _theirs(pair)
        actual = file.names.get(name, name)
        if third is None:
            pair.take(file.conversion, actual)
        elif without_bias and name.endswith('.bias'):
            zeros = np.zeros((vivit.num_heads, vivit.width // vivit.num_heads))
            file.conversion.set(pair.ours, zeros, 'zeros: the file has none (qkv_bias is false)')
        else:
            shape = file.shape(name)
            if shape[0] != 3 * vivit.width:
                raise file.error(
                    f'{actual} is {shape}, which for width {vivit.width} must have {3 * vivit.width} rows'
                )
            pair.take(file.conversion, actual, slice(third * vivit.width, (third + 1) * vivit.width))


def _theirs(pair: Pair) -> tuple[str, int | None]:
    """Returns Hugging Face's name of a parameter, and which third of that array it is, where it is one."""
    name = _renamed(pair.theirs, FROM_OURS)
    match = re.search(r'\.attention\.(query|key|value)\.', name)
    if not match:
        return name, None
    return name.replace(match[0], '.attention.qkv.'), ('query', 'key', 'value').index(match[1])


def _renamed(name: str, table: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def misfit(weights: Weights, clip: tuple[int, int, int, int]) -> str | None:
    """Tells which setting Hugging Face's TimeSformer has no counterpart for; None if it has all of them."""
    vivit = create_model(weights.num_classes, **weights.model)
    wanted: dict[str, tuple[Any, ...]] = {
        'attention': tuple(ATTENTIONS.values()),
        'classifier': ('token',),
        'embedding': ('tubelet',),
        'position_embedding': ('learned_space_time',),
        'activation': tuple(dict.fromkeys(ACTIVATIONS.values())),
        'final_norm': (True,),
        'representation_size': (0,),
    }
    for field, values in wanted.items():
        if getattr(vivit, field) not in values:
            only = ' or '.join(map(repr, values))
            return (
                f"model.{field}={getattr(vivit, field)!r}, where Hugging Face's TimeSformer has {only} only"
            )
    time, *patch = vivit.tubelet
    if time != 1 or len(set(patch)) > 1:
        return (
            f"model.tubelet={vivit.tubelet}, where Hugging Face's TimeSformer has square patches of one frame"
        )
    if clip[1] != clip[2]:
        return f"clips are {clip[1]} x {clip[2]} pixels, where Hugging Face's TimeSformer has square ones"
    return None if vivit.num_classes else "the model has no head, and Hugging Face's classifier needs one"


def save(
    folder: pathlib.Path, weights: Weights, clip: tuple[int, int, int, int], short_side: int | None = None
) -> list[str]:
    """Writes a folder that `TimesformerForVideoClassification.from_pretrained` loads.

    Args:
        folder: Made if need be; files in it of the names returned are replaced.
        weights: Of a model that `misfit` has nothing against.
        clip: `(t, h, w, c)` of the clips that the model takes.
        short_side: Pixels that the processor resizes the short side of frames to before cropping; 0 leaves them, and
            None takes 8 / 7 of the crop, as 256 for 224.

    Returns:
        The names of the files.

    Raises:
        ValueError: If the model does not fit.
    """
    if problem := misfit(weights, clip):
        raise ValueError(f'{weights.path}: {problem}')
    vivit = create_model(weights.num_classes, **weights.model)
    params = flat(weights.params)
    parts: dict[str, list[np.ndarray]] = {}
    for pair in pairs(vivit, IMAGE):  # queries before keys before values
        name, _ = _theirs(pair)
        before = '' if name.startswith('classifier.') else 'timesformer.'
        parts.setdefault(f'{before}{name}', []).append(pair.to_theirs(params[pair.ours]))
    arrays = {name: np.concatenate(part) for name, part in parts.items()}
    config = _config(vivit, clip, weights.class_names)
    return write(folder, arrays, config, _processor(clip, short_side))


def _config(vivit: ViViT, clip: tuple[int, int, int, int], class_names: Sequence[str]) -> dict[str, Any]:
    return {
        'architectures': ['TimesformerForVideoClassification'],
        'model_type': 'timesformer',
        'attention_type': next(theirs for theirs, ours in ATTENTIONS.items() if ours == vivit.attention),
        'image_size': clip[1],
        'num_frames': clip[0],
        'num_channels': clip[3],
        'patch_size': vivit.tubelet[1],
        'drop_path_rate': 0,  # transformers takes whole numbers only; of no effect but in training
        **settings(vivit),
        **labels(vivit.num_classes, class_names),
    }


def _processor(clip: tuple[int, int, int, int], short_side: int | None) -> dict[str, Any]:
    return {
        'image_processor_type': 'VideoMAEImageProcessor',
        **cropping(clip, short_side),
        'rescale_factor': 1 / 255,
        'do_normalize': True,  # to [-1, 1]
    }
