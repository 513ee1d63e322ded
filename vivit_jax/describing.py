"""What a run says of itself before it begins: its model, devices and data, in lines."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from vivit_jax import experiment, learning_rates
from vivit_jax.data.overview import overview
from vivit_jax.data.record import Source
from vivit_jax.models.cost import multiply_adds
from vivit_jax.models.vivit import ViViT


def describe(config: ConfigDict, model: ViViT, params: Any, mesh: Mesh, factors: Any) -> dict[str, str]:
    """Returns lines about the model with its cost, the devices, and what learns where that differs.

    Args:
        config: The configuration.
        model: Its model.
        params: Its parameters, or their shapes.
        mesh: The devices.
        factors: Of the learning rate, one a parameter.
    """
    clip = experiment.clip_shape(config)
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    flops = multiply_adds(model, clip)
    cost = f'{flops / 1e9:.3f} GFLOPs' if flops >= 1e9 else f'{flops / 1e6:.3f} MFLOPs'
    device = mesh.devices.flat[0]
    axes = ' x '.join(f'{name} {size}' for name, size in mesh.shape.items())
    processes = f', {jax.process_count()} processes' if jax.process_count() > 1 else ''
    lines = {
        'model': f'{config.model.attention}, {parameters / 1e6:.3f} M parameters, {cost} '
        f'(multiply-adds) a clip of {" x ".join(map(str, clip))}, {config.model.dtype}',
        'devices': f'{mesh.devices.size} x {device.device_kind} ({device.platform}), {axes}{processes}',
    }
    if unused := _unused(config):
        lines['unused'] = unused
    if not experiment.learns_evenly(config):
        rates = learning_rates.table(params, factors, config.optimizer.learning_rate)
        lines['learns'] = '\n'.ljust(13).join(rates)
    return lines


def _unused(config: ConfigDict) -> str:
    """Says what of a clip no tubelet covers (`model.remainder='crop'`); '' where that is nothing."""
    axes = zip(
        ('frames', 'rows', 'columns'), experiment.clip_shape(config), config.model.tubelet, strict=False
    )
    if config.model.embedding != 'tubelet':
        return ''
    rests = [f'the last {size % step} {name} of {size}' for name, size, step in axes if size % step]
    return ', '.join(rests) + ' fill no tubelet' if rests else ''


def describe_data(config: ConfigDict, sources: Mapping[str, Source], head_sizes: Sequence[int]) -> list[str]:
    """Returns lines about the data: how much of what, how it came into splits and is sampled, what is bad in it."""
    data = config.data
    lines = [f'{data.source}' + (f' in {where}' if (where := data.root or data.csv) else '')]
    lines += overview(sources, head_sizes=head_sizes, heads=tuple(data.heads))
    if data.sampling == 'balanced':
        lines.append('balanced sampling: every class equally often, examples of rare ones again and again')
    return lines
