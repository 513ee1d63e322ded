"""This package's own checkpoints, read and written as weights."""

import json
import pathlib
from typing import Any

from vivit_jax import checkpoint
from vivit_jax.formats.containers import read_json
from vivit_jax.formats.weights import RUNTIME, Origin, Weights, flat
from vivit_jax.models.embed import token_grid


def is_checkpoint(path: pathlib.Path) -> bool:
    """Tells whether a folder is a workdir with checkpoints, or one of these."""
    return checkpoint.find(path) is not None


def load(path: pathlib.Path) -> Weights:
    """Reads a workdir's best (else latest) checkpoint, or the one that is named: its moving average where it has one.

    Raises:
        ValueError: If it is damaged; one line.
    """
    saved = checkpoint.read(path)
    config = saved.meta['config']
    fields = {name: value for name, value in config['model'].items() if name not in RUNTIME}
    model = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    arrays = flat(saved.params)
    head = arrays.get('output_projection/kernel')
    frames = model['sampled_frames'] or config['data']['frames']
    clip = (frames, *config['data']['crop'])
    grid = token_grid(clip, tuple(model['tubelet']), str(model['remainder']))
    return Weights(
        params=saved.params,
        model=model,
        num_classes=0 if head is None else head.shape[-1],
        kind='vivit_jax',
        path=str(saved.folder),
        grid=grid,
        origin={name: Origin({name: array.shape}, 'copied') for name, array in arrays.items()},
        unused={},
        class_names=tuple(saved.meta['class_names']),
        notes=tuple(_converted(saved.folder)),
    )


def _converted(folder: pathlib.Path) -> list[str]:
    """Tells what a checkpoint was converted from."""
    account = read_json(folder.parent.parent / 'conversion.json')
    return [f'converted from {account["summary"]}'] if folder.name == '0' and account else []


def save(
    folder: pathlib.Path, params: dict[str, Any], config: dict[str, Any], class_names: list[str]
) -> None:
    """Writes parameters as step 0 of a new workdir, from where training may start and which can be evaluated.

    Args:
        folder: The workdir; its `config.json` is written too.
        params: Nested dict of arrays.
        config: The whole configuration, as a dict.
        class_names: Names of the classes.

    Raises:
        ValueError: If the folder holds checkpoints already.
    """
    if checkpoint.find(folder) is not None:
        raise ValueError(f'{folder}: holds checkpoints already: choose another folder')
    sizes = list(config['data']['num_classes']) or [len(class_names)]
    meta = {
        'config': config,
        'class_names': class_names,
        'head_sizes': sizes,
        'data_digest': '',
        'window': [],
    }
    with checkpoint.Checkpoints(folder) as checkpoints:
        checkpoints.save(0, params=params, ema=None, optimizer=None, meta=meta, metrics=None)
    (folder / 'config.json').write_text(json.dumps(config, indent=2) + '\n')
