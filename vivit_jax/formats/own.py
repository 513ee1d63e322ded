"""This package's own checkpoints, read and written as weights."""

import json
from typing import Any

from vivit_jax import checkpoint, paths
from vivit_jax.config import ConfigDict, from_values
from vivit_jax.config_values import alike, flaw, shown
from vivit_jax.formats.containers import read_json
from vivit_jax.formats.weights import RUNTIME, Origin, Weights, check_shapes, flat
from vivit_jax.models.embed import token_grid
from vivit_jax.models.vivit import create_model


def is_checkpoint(path: paths.Path) -> bool:
    """Tells whether a folder is a workdir with checkpoints, or one of these."""
    return checkpoint.find(path) is not None


def load(path: paths.Path) -> Weights:
    """Reads a workdir's best (else latest) checkpoint, or the one that is named: its moving average where it has one.

    Raises:
        ValueError: If it is damaged; one line.
    """
    saved = checkpoint.read(path)
    config, names = understood(saved)
    model = {name: value for name, value in config.model.items() if name not in RUNTIME}
    arrays = flat(saved.params)
    clip = (model['sampled_frames'] or config.data.frames, *config.data.crop)
    grid = token_grid(clip, model['tubelet'], model['remainder'])
    return Weights(
        params=saved.params,
        model=model,
        num_classes=sum(config.data.num_classes),
        kind='vivit_jax',
        path=str(saved.folder),
        grid=grid,
        origin={name: Origin({name: array.shape}, 'copied') for name, array in arrays.items()},
        unused={},
        class_names=names,
        notes=tuple(_converted(saved.folder)),
    )


def understood(saved: checkpoint.Saved) -> tuple[ConfigDict, tuple[str, ...]]:
    """Tells what a checkpoint is of, once its configuration, classes and parameters go together.

    Returns:
        The configuration, with the classes of each head, and the names of the classes (none where they are numbers).

    Raises:
        ValueError: If they do not; one line.
    """
    meta, where = saved.meta, str(saved.folder)
    if not isinstance(meta, dict) or 'config' not in meta or 'class_names' not in meta:
        raise ValueError(f'{where}: its meta tells no config and class_names')
    config = from_values(meta['config'], where)
    names = meta['class_names']
    # Runs of earlier versions tell the sizes only of a single head.
    sizes = meta['head_sizes'] if 'head_sizes' in meta else config.data.num_classes or [len(names)]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'{where}: its class_names are {shown(names)}, not a list of names')
    if not alike(tuple(sizes) if isinstance(sizes, list) else sizes, ()) or flaw(tuple(sizes)):
        raise ValueError(f'{where}: its head_sizes are {shown(sizes)}, not a list of numbers')
    if len(sizes) != len(config.data.heads) or len(names) not in (0, sum(sizes)):
        raise ValueError(
            f'{where}: {len(names)} class names and heads {tuple(config.data.heads)} of {shown(tuple(sizes))} '
            'classes do not go together'
        )
    config.data.num_classes = tuple(sizes)
    clip = (config.data.frames, *config.data.crop, config.data.channels)
    try:
        check_shapes(saved.params, create_model(sum(sizes), **config.model), clip)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{where}: {" ".join(str(error).split())[:500]}') from error
    return config, tuple(names)


def _converted(folder: paths.Path) -> list[str]:
    """Tells what a checkpoint was converted from."""
    account = read_json(folder.parent.parent / 'conversion.json')
    return [f'converted from {account.get("summary")}'] if folder.name == '0' and account else []


def save(folder: paths.Path, params: dict[str, Any], config: dict[str, Any], class_names: list[str]) -> None:
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
