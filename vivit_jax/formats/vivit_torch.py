"""Our own folder for PyTorch: any model, with the file `vivit_torch.py` that runs it. Read back, too."""

import dataclasses
import pathlib
import shutil
from typing import Any

from vivit_jax.formats.containers import write_json, write_safetensors
from vivit_jax.formats.torch_names import pairs
from vivit_jax.formats.weights import RUNTIME, Conversion, Weights, flat
from vivit_jax.models.embed import token_grid
from vivit_jax.models.vivit import ViViT, create_model

# No module of this package, which does without PyTorch: it is copied into the folders that are written.
MODEL_FILE = pathlib.Path(__file__).with_name('vivit_torch.py.txt')
KEYS = ('model', 'num_classes', 'clip')


def convert(conversion: Conversion, sidecar: dict[str, Any], num_heads: int | None) -> Weights:
    """Reads what `save` wrote, or what PyTorch made of it by training; bit for bit.

    Args:
        conversion: The file's arrays.
        sidecar: Its `config.json`.
        num_heads: Attention heads, to insist on; None takes what `config.json` says.

    Raises:
        ValueError: One line: what is missing, or contradicts the arrays.
    """
    if missing := [key for key in KEYS if key not in sidecar]:
        raise ValueError(f'{conversion.path}: its config.json lacks {", ".join(missing)}')
    model = dict(sidecar['model'])
    if num_heads not in (None, model.get('num_heads')):
        raise ValueError(
            f'{conversion.path}: num_heads={num_heads}, but its config.json says {model.get("num_heads")}'
        )
    try:
        vivit = create_model(sidecar['num_classes'], **model)
        clip = (vivit.sampled_frames or sidecar['clip'][0], *sidecar['clip'][1:3])
        grid = token_grid(clip, vivit.tubelet, vivit.remainder)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{conversion.path}: its config.json is of no model here: {error}') from None
    for pair in pairs(vivit):
        pair.take(conversion, pair.theirs)
    names = sidecar.get('class_names', ())
    return conversion.finish(settings(vivit), vivit.num_classes, grid, class_names=names)


def settings(vivit: ViViT) -> dict[str, Any]:
    """Returns the keyword arguments that `create_model` makes this model of, but for the classes and `RUNTIME`."""
    left_out = ('num_classes', 'parent', 'name', *RUNTIME)
    fields = [field.name for field in dataclasses.fields(vivit) if field.name not in left_out]
    return {name: getattr(vivit, name) for name in fields}


def save(folder: pathlib.Path, weights: Weights, clip: tuple[int, int, int, int]) -> list[str]:
    """Writes a folder that its own `vivit_torch.py` loads with nothing but PyTorch and safetensors.

    Args:
        folder: Made if need be; files in it of the names returned are replaced.
        weights: Of any model.
        clip: `(t, h, w, c)` of the clips that the model takes.

    Returns:
        The names of the files.
    """
    vivit = create_model(weights.num_classes, **weights.model)
    params = flat(weights.params)
    arrays = {pair.theirs: pair.to_theirs(params[pair.ours]) for pair in pairs(vivit)}
    config = {
        'model_type': 'vivit_jax',
        'model': settings(vivit),
        'num_classes': vivit.num_classes,
        'clip': list(clip),
        'class_names': list(weights.class_names),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / 'model.safetensors', arrays)
    write_json(folder / 'config.json', config)
    shutil.copyfile(MODEL_FILE, folder / 'vivit_torch.py')
    return ['config.json', 'model.safetensors', 'vivit_torch.py']
