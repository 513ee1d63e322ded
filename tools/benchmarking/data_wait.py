"""How long training steps wait for clips."""

import pathlib
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from benchmarking.workload import Workload
from vivit_jax import config as config_module
from vivit_jax import experiment, feeding
from vivit_jax.data import pipeline
from vivit_jax.dry_run import RandomClips
from vivit_jax.run import Run
from vivit_jax.telling.terminal import Terminal

BASE = pathlib.Path(__file__).parent.parent.parent / 'configs' / 'base.py'
WARM = 2


def config_of(workload: Workload) -> ConfigDict:
    """Returns a configuration that trains a workload on clips of noise."""
    config = config_module.load(str(BASE), {})
    with config.unlocked():
        config.model.update(workload.model)
    frames, height, width, channels = workload.clip
    config.data.frames, config.data.crop, config.data.channels = frames, (height, width), channels
    config.data.num_classes = (workload.num_classes,)
    config.training.batch_size = workload.batch
    return config


def measure(config: ConfigDict, *, noise: bool, steps: int) -> dict[str, Any]:
    """Takes training steps on batches as the pipeline gives them.

    Args:
        config: What is trained, and on what.
        noise: Whether on clips of noise, made in place of reading videos, and augmented as the configuration says.
        steps: Steps that are timed.

    Returns:
        `seconds_per_step` in all, `wait_seconds` of them, and `data_wait`, the share.

    Raises:
        ValueError: If a setting is wrong or data is missing.
    """
    config = ConfigDict(config.to_dict())
    config.training.epochs, config.training.steps = 0.0, WARM + steps
    config.optimizer.warmup_epochs, config.optimizer.warmup_steps = 0.0, 0
    experiment.check(config)
    source = RandomClips(config) if noise else experiment.make_source(config, config.data.train_split)
    with Terminal() as terminal:
        run = Run(config, pathlib.Path(), source, source, terminal)
        state = run.fresh_state(None)
        examples: Any = feeding.training_examples(config, source)
        reading: dict[str, Any] = feeding.reading(config, run.mesh)
        size = config.training.batch_size
        waited = total = 0.0
        with pipeline.batches(
            examples, batch_size=size, first_step=0, last_step=WARM + steps, **reading
        ) as batches:
            for step in range(WARM + steps):
                began = time.perf_counter()
                batch = next(batches)
                given = time.perf_counter()
                state, scalars = run.step(state, batch)
                jax.block_until_ready((state, scalars))
                if step >= WARM:
                    waited += given - began
                    total += time.perf_counter() - began
    return {'seconds_per_step': total / steps, 'wait_seconds': waited / steps, 'data_wait': waited / total}
