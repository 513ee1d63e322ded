"""Starting a run from trained weights, as `config.init_from` says: which file, and how it goes into the model."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from vivit_jax import checkpoint, formats, paths, pretrained
from vivit_jax.formats.account import Account
from vivit_jax.formats.weights import Weights, flat, shortened
from vivit_jax.models.embed import token_grid

# What weights bring with them: with another activation or epsilon they compute something else.
BROUGHT = ('activation', 'norm_epsilon')


def read(config: ConfigDict) -> Weights:
    """Reads the weights that `config.init_from` names.

    Raises:
        ValueError: If they cannot be read; one line.
    """
    settings = config.init_from
    try:
        return formats.load(
            settings.path,
            settings.num_heads or None,
            kind=settings.format,
            allow_unused=patterns(settings.allow_unused),
        )
    except (ValueError, ImportError) as error:
        raise ValueError(f'init_from.path={settings.path!r}: {error}') from error


def prepare(config: ConfigDict, workdir: paths.Path) -> tuple[ConfigDict, Weights | None]:
    """Settles what a run starts from: its own checkpoint, if the workdir holds one, else the weights to start from.

    Returns:
        The configuration with the activation and epsilon that the weights need, and the weights; None for those
        where the run goes on from its checkpoint, or starts from fresh parameters.
    """
    if not config.init_from.path:
        return config, None
    found = checkpoint.find(workdir)
    if found is not None:
        return as_saved(config, checkpoint.read_meta(found)['config']), None
    weights = read(config)
    return adopt(config, weights.model), weights


def as_saved(config: ConfigDict, saved: Mapping[str, Any]) -> ConfigDict:
    """Returns a configuration with what the weights brought that a saved run started from."""
    started_from = saved.get('init_from', {}).get('path')  # unknown to runs of earlier versions
    return adopt(config, saved['model']) if started_from else config


def adopt(config: ConfigDict, model: Mapping[str, Any]) -> ConfigDict:
    """Returns a configuration with the activation and epsilon of a model."""
    config = ConfigDict(config.to_dict())
    for name in BROUGHT:
        config.model[name] = model[name]
    return config.lock()


def initialise(
    config: ConfigDict, params: Mapping[str, Any], weights: Weights
) -> tuple[dict[str, Any], Account]:
    """Puts the weights into fresh parameters, see `pretrained.initialise`."""
    model, data, settings = config.model, config.data, config.init_from
    clip = (model.sampled_frames or data.frames, *data.crop)
    filled, account = pretrained.initialise(
        params,
        weights,
        grid=token_grid(clip, tuple(model.tubelet), model.remainder),
        kernel=settings.kernel,
        temporal_attention=settings.temporal_attention,
        fresh=patterns(settings.fresh),
    )
    theirs = weights.model['attention']
    if weights.is_image or theirs == model.attention:
        return filled, account
    note = f'the weights are of {theirs}, which has the parameters of {model.attention} and computes something else'
    return filled, dataclasses.replace(account, notes=(*account.notes, note))


def patterns(text: str) -> tuple[str, ...]:
    """Splits patterns at their commas."""
    return tuple(part.strip() for part in text.split(',') if part.strip())


def describe(account: Account, config: ConfigDict, factors: Any) -> list[str]:
    """Returns lines that tell what a run starts from.

    Args:
        account: What happened to each array.
        config: The configuration.
        factors: Of each parameter's learning rate; 0 where it is frozen.
    """
    rates = flat(factors)
    idle = [n for n, change in account.changes.items() if change.action == 'fresh' and not rates[n]]
    warning = (
        f'  warning: {len(idle)} fresh parameters are frozen and stay random ({shortened(idle)}); see '
        'configs/finetune.py for a probe without them'
    )
    brought = ', '.join(f'model.{name}={config.model[name]!r}' for name in BROUGHT)
    return [
        f'starting from {account.summary()}',
        *(f'  {note}' for note in account.notes),
        *([warning] if idle else []),
        f'  with the weights come {brought}; what happened to every array: conversion.json',
    ]


def write_account(account: Account, folder: paths.Path) -> paths.Path:
    """Writes what happened to every array into `conversion.json` of a workdir."""
    path = folder / 'conversion.json'
    path.write_text(json.dumps(account.to_json(), indent=1) + '\n')
    return path
