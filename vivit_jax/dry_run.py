"""Trying a configuration without data: does it compile, does it fit, how fast is it."""

import dataclasses
import math
import pathlib
import statistics
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vivit_jax import experiment, init_from
from vivit_jax.data import pipeline
from vivit_jax.data.record import Label, Record
from vivit_jax.run import Run
from vivit_jax.telling.facts import device_memory
from vivit_jax.telling.terminal import Terminal, duration


@dataclasses.dataclass(frozen=True)
class RandomClips:
    """A source of noise in the shape of a configuration's clips, as many as make an epoch of 1,000 batches."""

    config: ConfigDict
    bad = ()

    @property
    def class_names(self) -> list[str]:
        """Returns a number for each class."""
        return [str(k) for k in range(sum(experiment.head_sizes(self.config)))]

    @property
    def digest(self) -> str:
        """Returns nothing to compare with."""
        return ''

    def __len__(self) -> int:
        return 1_000 * self.config.training.batch_size

    def __getitem__(self, index: int) -> Record:
        frames, height, width, channels = experiment.clip_shape(self.config)
        shape = (frames, height, width, channels)
        pixels = np.random.default_rng(index).integers(0, 256, shape, np.uint8)
        sizes = experiment.head_sizes(self.config)
        label: Label = tuple(index % size for size in sizes) if len(sizes) > 1 else index % sizes[0]
        return Record(
            name=str(index),
            label=label,
            num_frames=frames,
            frame_size=(height, width),
            read=lambda chosen: pixels[chosen],
        )


def dry_run(config: ConfigDict, steps: int = 5) -> dict[str, float]:
    """Compiles the training step and runs it on random clips.

    Args:
        config: Any configuration that names its classes (`data.num_classes`).
        steps: Steps after the first, which are timed; at least 1.

    Returns:
        `compile_seconds`, `seconds_per_step` (median), `clips_per_second`, `loss`; and `temporary_bytes`, what a
        step needs on a device beside parameters, optimiser and batch, as XLA plans it (NaN where it does not
        tell).

    Raises:
        ValueError: If the settings exclude each other, the number of classes is not set, or the weights to start
            from cannot be read or do not fit.
    """
    if not config.data.num_classes:
        raise ValueError("data.num_classes is not set: a dry run has no data to count them in; e.g. '(10,)'")
    experiment.check(config)
    weights = init_from.read(config) if config.init_from.path else None
    config = ConfigDict((config if weights is None else init_from.adopt(config, weights.model)).to_dict())
    config.training.steps, config.training.epochs = 0, 1.0 + config.optimizer.warmup_epochs
    config.optimizer.warmup_steps = 0
    noise = RandomClips(config)
    with Terminal() as terminal:
        run = Run(config, pathlib.Path(), noise, noise, terminal)
        terminal.say(f'{config.name}: dry run', style='bold')
        for label, text in run.describe().items():
            terminal.say(f'  {label:<9} {text}')
        with terminal.phase('preparing the model'):
            state = run.fresh_state(weights)
        for line in run.started:
            terminal.say(f'  {line}')
        examples: Any = experiment.evaluation_examples(config, noise, temporal_views=1, spatial_views=1)
        reading: dict[str, Any] = experiment.reading(config, run.mesh)
        batch_size = config.training.batch_size
        with pipeline.batches(
            examples, batch_size=batch_size, first_step=0, last_step=1, **reading
        ) as batches:
            batch = next(batches)
        began = time.perf_counter()
        with terminal.phase('compiling'):
            step = run.step.lower(state, batch).compile()
        compile_seconds = time.perf_counter() - began
        planned = step.memory_analysis()
        temporary = planned.temp_size_in_bytes if planned else math.nan
        seconds = []
        for _ in range(steps + 1):
            began = time.perf_counter()
            state, scalars = step(state, batch)
            jax.block_until_ready(scalars)
            seconds.append(time.perf_counter() - began)
        median = statistics.median(seconds[1:])
        memory = device_memory()
        terminal.say(f'compiled in {compile_seconds:.1f} s, then {median:.3f} s a step')
        terminal.say(
            f'{batch_size / median:.1f} clips/s; {duration(1_000 * median)} for 1,000 steps; '
            f'{temporary / 2**20:.0f} MiB of temporary memory a step'
            + (f'; memory {memory / 2**30:.1f} GiB in all' if memory is not None else '')
        )
    return {
        'compile_seconds': compile_seconds,
        'seconds_per_step': median,
        'clips_per_second': batch_size / median,
        'temporary_bytes': temporary,
        'loss': float(scalars['loss']),
    }
