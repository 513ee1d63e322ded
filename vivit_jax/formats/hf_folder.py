"""A folder of Hugging Face: arrays by name, `config.json`, and what `preprocessor_config.json` says about pixels."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from vivit_jax.formats.containers import read_json, write_json, write_safetensors
from vivit_jax.formats.pixels import fold_normalisation
from vivit_jax.formats.weights import Conversion
from vivit_jax.models.vivit import ViViT

# Their names of the two GELUs, in the order in which ours are written back.
ACTIVATIONS = {
    'gelu_fast': 'gelu_tanh',
    'gelu_new': 'gelu_tanh',
    'gelu_pytorch_tanh': 'gelu_tanh',
    'gelu': 'gelu_exact',
}
PROJECTION = 'embeddings.patch_embeddings.projection.weight'
# What a config.json leaves out has these values in transformers; sizes that arrays tell are not needed here.
DEFAULTS = {'image_size': 224, 'num_frames': 32, 'num_attention_heads': 12}


def inner_names(conversion: Conversion, model: str) -> dict[str, str]:
    """Returns the names in the file by those without what is before them, as `vit.` or `module.vit.`.

    Args:
        conversion: The file's arrays.
        model: What the format itself puts before all but the head, as 'vit'.
    """
    whole = next(name for name in conversion.names() if name.endswith(PROJECTION))
    outer = whole.removesuffix(PROJECTION).removesuffix(f'{model}.')
    return {name.removeprefix(outer).removeprefix(f'{model}.'): name for name in conversion.names()}


@dataclasses.dataclass(frozen=True)
class File:
    """A file while it is read.

    Attributes:
        conversion: Its arrays.
        names: Their names in the file, by the classic ones.
        sidecar: The `config.json` beside it, empty where there is none.
    """

    conversion: Conversion
    names: dict[str, str]
    sidecar: dict[str, Any]

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of an array, by its classic name."""
        return self.conversion.peek(self.names.get(name, name)).shape

    def error(self, text: str) -> ValueError:
        """Returns a mistake in this file, to be raised."""
        return ValueError(f'{self.conversion.path}: {text}')

    def check_type(self, model_type: str) -> None:
        """Raises a ValueError if `config.json` says that this is another model."""
        found = self.sidecar.get('model_type', model_type)
        if found != model_type:
            raise self.error(
                f'its config.json says model_type {found!r}, whose blocks are not those of {model_type!r}'
            )

    def sizes(self, key: str, count: int) -> tuple[int, ...] | None:
        """Returns a setting that is one number or several; None where there is no config.json."""
        if not self.sidecar:
            return None
        value = self.sidecar[key] if key in self.sidecar else DEFAULTS[key]
        values = tuple(value) if isinstance(value, list) else (value,) * count
        if len(values) != count or not all(isinstance(size, int) and size > 0 for size in values):
            raise self.error(f'{key}={value!r} of config.json: must be one whole number or {count}')
        return values

    def agree(self, key: str, found: tuple[int, ...]) -> None:
        """Compares a size of config.json with the arrays'."""
        said = self.sizes(key, len(found)) if key in self.sidecar else found
        if said != found:
            raise self.error(
                f'config.json says {key}={self.sidecar[key]}, but the arrays have {_short(found)}'
            )

    def heads(self, hint: int | None) -> int:
        """Settles the number of attention heads, which no array tells."""
        key = 'num_attention_heads'
        if hint is not None and self.sidecar.get(key, hint) != hint:
            raise self.error(f'num_heads={hint}, but its config.json says {key}={self.sidecar[key]}')
        told = self.sizes(key, 1) if hint is None else (hint,)
        if told is None:
            raise self.error(f'no config.json beside it says {key}, which no array tells: give num_heads')
        return told[0]

    def activation(self, default: str) -> str:
        """Returns the activation in our words."""
        name = self.sidecar.get('hidden_act', default)
        if not isinstance(name, str) or name not in ACTIVATIONS:
            raise self.error(f'hidden_act={name!r} of config.json: known are {", ".join(ACTIVATIONS)}')
        return ACTIVATIONS[name]

    def has_qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return bool(self.sidecar.get('qkv_bias', True))

    def class_names(self, num_classes: int) -> list[str]:
        """Returns the names of the classes, where all of them have one."""
        labels = self.sidecar.get('id2label') or {}
        return [str(labels[key]) for key in sorted(labels, key=int)] if len(labels) == num_classes else []

    def fold_pixels(self, hint: str = '') -> None:
        """Accounts in the embedding for a normalisation of pixels other than to [-1, 1].

        Args:
            hint: What else to say where no `preprocessor_config.json` tells it.
        """
        path = pathlib.Path(self.conversion.path).parent / 'preprocessor_config.json'
        processor = read_json(path)
        if not processor:
            self.conversion.notes.append(
                'there is no preprocessor_config.json beside the file: pixels are assumed to be scaled to [-1, 1]'
                + hint
            )
            return
        # Pixels in [0, 1], times this, are what the mean is subtracted from.
        scale = processor.get('rescale_factor', 1 / 255) * 255 if processor.get('do_rescale', True) else 255.0
        channels = self.shape(PROJECTION)[1]

        def numbers(key: str, neutral: float) -> list[float]:
            value = processor.get(key, 0.5) if processor.get('do_normalize', True) else neutral
            return [number / scale for number in (value if isinstance(value, list) else [value] * channels)]

        mean, std = numbers('image_mean', 0.0), numbers('image_std', 1.0)
        if any(abs(number - 0.5) > 1e-9 for number in mean + std):
            fold_normalisation(self.conversion, mean, std)


def write(
    folder: pathlib.Path, arrays: dict[str, np.ndarray], config: dict[str, Any], processor: dict[str, Any]
) -> list[str]:
    """Writes a folder that transformers loads; returns the names of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / 'model.safetensors', arrays)
    write_json(folder / 'config.json', config)
    write_json(folder / 'preprocessor_config.json', processor)
    return ['config.json', 'model.safetensors', 'preprocessor_config.json']


def settings(vivit: ViViT) -> dict[str, Any]:
    """Returns the settings of `config.json` that all of these models have."""
    return {
        'dtype': 'float32',
        'hidden_size': vivit.width,
        'num_hidden_layers': vivit.num_layers,
        'num_attention_heads': vivit.num_heads,
        'intermediate_size': vivit.mlp_dim,
        'hidden_act': next(theirs for theirs, ours in ACTIVATIONS.items() if ours == vivit.activation),
        'hidden_dropout_prob': vivit.dropout_rate,
        'attention_probs_dropout_prob': vivit.attention_dropout_rate,
        'initializer_range': 0.02,
        'layer_norm_eps': vivit.norm_epsilon,
        'qkv_bias': True,
    }


def cropping(clip: tuple[int, int, int, int], short_side: int | None) -> dict[str, Any]:
    """Returns the settings of `preprocessor_config.json` that resize and crop; pixels end up in [-1, 1] by others.

    Args:
        clip: `(t, h, w, c)` of the clips that the model takes.
        short_side: Pixels that the short side of frames is resized to before cropping; 0 leaves them, and None takes
            8 / 7 of the crop, as 256 for 224.
    """
    _, height, width, channels = clip
    short_side = round(min(height, width) * 8 / 7) if short_side is None else short_side
    return {
        'do_resize': bool(short_side),
        'size': {'shortest_edge': short_side or min(height, width)},
        'resample': 2,  # bilinear
        'do_center_crop': True,
        'crop_size': {'height': height, 'width': width},
        'do_rescale': True,
        'image_mean': [0.5] * channels,
        'image_std': [0.5] * channels,
    }


def labels(num_classes: int, class_names: Sequence[str]) -> dict[str, Any]:
    """Returns the settings of `config.json` that name the classes."""
    names = (
        class_names
        if len(class_names) == num_classes
        else [f'LABEL_{number}' for number in range(num_classes)]
    )
    return {
        'id2label': {str(number): label for number, label in enumerate(names)},
        # Of classes with one name, the first.
        'label2id': {label: names.index(label) for label in names},
    }


def _short(sizes: Sequence[int]) -> Any:
    return sizes[0] if len(sizes) == 1 else list(sizes)
