"""Hugging Face: ViT and ViViT are read, ViViT (the paper's Model 1) is written.

Names and axes are in `torch_names`; sizes come from the arrays and are compared with `config.json`, which also
tells what no array can: the heads, the activation, LayerNorm's epsilon.
"""

import math
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vivit_jax.formats.containers import read_json
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
from vivit_jax.formats.torch_names import IMAGE, classic, pairs
from vivit_jax.formats.weights import Conversion, Weights, flat
from vivit_jax.models.vivit import ViViT, create_model

NO_CONFIG = 'there is no config.json beside the file: {} assumed'


def convert_vit(conversion: Conversion, sidecar: dict[str, Any], num_heads: int | None) -> Weights:
    """Reads `ViTForImageClassification` or `ViTModel`, as Model 1 on one frame.

    Where its `preprocessor_config.json` scales pixels otherwise than to [-1, 1], the embedding accounts for it.

    Args:
        conversion: The file's arrays; names with or without `vit.`, classic or those of transformers 5 in memory.
        sidecar: Its `config.json`, empty where there is none.
        num_heads: Attention heads, where there is no `config.json`.

    Raises:
        ValueError: One line: what is missing, contradicts the arrays, or is none of ViViT's.
    """
    file = _open(conversion, sidecar, 'vit')
    patch = file.shape(PROJECTION)[2:]
    file.agree('patch_size', patch)
    image = file.sizes('image_size', 2)
    tokens = file.shape('embeddings.position_embeddings')[1] - 1
    if image is None:
        side = math.isqrt(tokens)
        grid = (1, side, side) if side**2 == tokens else None
    else:
        grid = (1, image[0] // patch[0], image[1] // patch[1])
    clip = None if image is None else (1, *image)
    model, num_classes = _read(file, (1, *patch), clip, grid, num_heads, epsilon=1e-12, activation='gelu')
    file.fold_pixels()
    return conversion.finish(model, num_classes, grid, class_names=file.class_names(num_classes))


def convert_vivit(conversion: Conversion, sidecar: dict[str, Any], num_heads: int | None) -> Weights:
    """Reads `VivitForVideoClassification` or `VivitModel`, as Model 1.

    Args:
        conversion: See `convert_vit`, with `vivit.`.
        sidecar: See `convert_vit`.
        num_heads: See `convert_vit`.

    Raises:
        ValueError: See `convert_vit`.
    """
    file = _open(conversion, sidecar, 'vivit')
    tubelet = file.shape(PROJECTION)[2:]
    file.agree('tubelet_size', tubelet)
    image, frames = file.sizes('image_size', 2), file.sizes('num_frames', 1)
    clip = None if image is None or frames is None else (*frames, *image)
    grid = None if clip is None else (clip[0] // tubelet[0], clip[1] // tubelet[1], clip[2] // tubelet[2])
    model, num_classes = _read(file, tubelet, clip, grid, num_heads, epsilon=1e-6, activation='gelu_fast')
    processor = read_json(pathlib.Path(conversion.path).parent / 'preprocessor_config.json')
    if processor and processor.get('do_normalize', True):
        conversion.notes.append(
            'preprocessor_config.json brings pixels to [-3, 1], which the published ViViTs were not trained on: here '
            'they are scaled to [-1, 1]'
        )
    return conversion.finish(model, num_classes, grid, class_names=file.class_names(num_classes))


def _open(conversion: Conversion, sidecar: dict[str, Any], model_type: str) -> File:
    names = {classic(inner): name for inner, name in inner_names(conversion, model_type).items()}
    file = File(conversion, names, sidecar)
    file.check_type(model_type)
    return file


def _read(
    file: File,
    tubelet: tuple[int, ...],
    clip: tuple[int, ...] | None,
    grid: tuple[int, ...] | None,
    num_heads: int | None,
    *,
    epsilon: float,
    activation: str,
) -> tuple[dict[str, Any], int]:
    """Takes all arrays; returns the model that they are of, and its number of classes."""
    conversion = file.conversion
    if not file.sidecar:
        conversion.notes.append(
            NO_CONFIG.format(f'hidden_act={activation!r} and layer_norm_eps={epsilon:g} are')
        )
    num_classes = file.shape('classifier.weight')[0] if 'classifier.weight' in file.names else 0
    pooler = not num_classes and 'pooler.dense.weight' in file.names
    width = file.shape(PROJECTION)[0]
    model: dict[str, Any] = {
        'attention': 'spatio_temporal',
        'num_layers': conversion.layers(r'encoder\.layer\.(\d+)\.', file.names),
        'num_heads': file.heads(num_heads),
        'width': width,
        'mlp_dim': file.shape('encoder.layer.0.intermediate.dense.weight')[0],
        'tubelet': tubelet,
        'remainder': 'error' if clip is None or _divides(tubelet, clip) else 'crop',
        'classifier': 'token',
        'representation_size': file.shape('pooler.dense.weight')[0] if pooler else 0,
        'activation': file.activation(activation),
        'norm_epsilon': float(file.sidecar.get('layer_norm_eps', epsilon)),
    }
    file.agree('hidden_size', (width,))
    file.agree('num_channels', file.shape(PROJECTION)[1:2])
    file.agree('num_hidden_layers', (model['num_layers'],))
    file.agree('intermediate_size', (model['mlp_dim'],))
    tokens = file.shape('embeddings.position_embeddings')[1] - 1
    if grid is not None and math.prod(grid) != tokens:
        raise file.error(
            f'its position embeddings are for {tokens} tokens, but a clip of {clip} (t, h, w) has {math.prod(grid)} '
            f'of {tubelet}, as config.json says'
        )
    if pooler and file.sidecar.get('pooler_act', 'tanh') != 'tanh':
        raise file.error(f"pooler_act={file.sidecar['pooler_act']!r} of config.json: only 'tanh' is known")
    try:
        vivit = create_model(num_classes, **model)
    except ValueError as error:
        raise file.error(str(error)) from None
    _take(file, vivit)
    return model, num_classes


def _take(file: File, vivit: ViViT) -> None:
    """Takes every array that the model has a place for, and explains the others."""
    image = len(file.shape(PROJECTION)) == 4
    for pair in pairs(vivit, IMAGE if image else ''):
        name = classic(pair.theirs)
        missing = name not in file.names
        if missing and re.search(r'\.(query|key|value)\.bias$', name) and not file.has_qkv_bias():
            shape = (vivit.num_heads, vivit.width // vivit.num_heads)
            file.conversion.set(pair.ours, np.zeros(shape), 'zeros: qkv_bias is false')
        else:
            pair.take(file.conversion, file.names.get(name, name))
    for pattern, reason in (
        (r'embeddings\.mask_token', 'stands for masked patches while pre-training; a classifier has none'),
        (r'pooler\..*', 'the classifier takes the class token itself'),
        (r'decoder\..*', 'reconstructs pixels while pre-training; a classifier does not'),
    ):
        for name, actual in file.names.items():
            if re.fullmatch(pattern, name):
                file.conversion.leave(re.escape(actual), reason)


def _divides(tubelet: Iterable[int], clip: Iterable[int]) -> bool:
    return not any(size % tube for size, tube in zip(clip, tubelet, strict=True))


def misfit(weights: Weights) -> str | None:
    """Tells which setting of a model Hugging Face's ViViT has no counterpart for; None if it has all of them."""
    vivit = create_model(weights.num_classes, **weights.model)
    wanted = {
        'attention': 'spatio_temporal',
        'classifier': 'token',
        'embedding': 'tubelet',
        'position_embedding': 'learned',
        'final_norm': True,
        'representation_size': 0,
    }
    for field, value in wanted.items():
        if getattr(vivit, field) != value:
            return f"model.{field}={getattr(vivit, field)!r}, where Hugging Face's ViViT has {value!r} only"
    if vivit.activation not in ACTIVATIONS.values():
        return f"model.activation={vivit.activation!r}, which Hugging Face's ViViT has not"
    return None if vivit.num_classes else "the model has no head, and Hugging Face's classifier needs one"


def save(
    folder: pathlib.Path, weights: Weights, clip: tuple[int, int, int, int], short_side: int | None = None
) -> list[str]:
    """Writes a folder that `VivitForVideoClassification.from_pretrained` loads.

    Args:
        folder: Made if need be; files in it of the names returned are replaced.
        weights: Of a model that `misfit` has nothing against.
        clip: `(t, h, w, c)` of the clips that the model takes. Where height and width differ, transformers 5 is
            needed to load them.
        short_side: Pixels that the processor resizes the short side of frames to before cropping; 0 leaves them, and
            None takes 8 / 7 of the crop, as 256 for 224.

    Returns:
        The names of the files.

    Raises:
        ValueError: If the model does not fit.
    """
    if problem := misfit(weights):
        raise ValueError(f'{weights.path}: {problem}')
    vivit = create_model(weights.num_classes, **weights.model)
    params = flat(weights.params)
    arrays = {pair.theirs: pair.to_theirs(params[pair.ours]) for pair in pairs(vivit)}
    config = _config(vivit, clip, weights.class_names)
    return write(folder, arrays, config, _processor(clip, short_side))


def _config(vivit: ViViT, clip: tuple[int, int, int, int], class_names: Sequence[str]) -> dict[str, Any]:
    frames, height, width, channels = clip
    return {
        'architectures': ['VivitForVideoClassification'],
        'model_type': 'vivit',
        'image_size': height if height == width else [height, width],
        'num_frames': frames,
        'num_channels': channels,
        'tubelet_size': list(vivit.tubelet),
        **settings(vivit),
        'pooler_act': 'tanh',
        'pooler_output_size': vivit.width,
        **labels(vivit.num_classes, class_names),
    }


def _processor(clip: tuple[int, int, int, int], short_side: int | None) -> dict[str, Any]:
    return {
        'image_processor_type': 'VivitImageProcessor',
        **cropping(clip, short_side),
        'rescale_factor': 1 / 127.5,
        'offset': True,
        # Pixels / 127.5 - 1 are in [-1, 1] already; normalising them again would bring them to [-3, 1].
        'do_normalize': False,
    }
