"""Trying a configuration without data: does it compile, does it fit, how fast is it, how long would the run take."""

import dataclasses
import math
import pathlib
import statistics
import time
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vivit_jax import compile_cache, experiment, feeding, init_from
from vivit_jax.data import medmnist, pipeline
from vivit_jax.data.record import Label, Record
from vivit_jax.run import Run
from vivit_jax.telling import eta, memory
from vivit_jax.telling.facts import device_memory
from vivit_jax.telling.terminal import Terminal, duration, rate
from vivit_jax.train_step import TrainState

ASSUMED = 400  # classes of a head, where nothing tells: as many as Kinetics-400 has
STEPS = 1_000  # that are spoken of, where it is not known how many there would be
SECONDS = 60.0  # to spend on timing steps; one is timed in any case


@dataclasses.dataclass(frozen=True)
class RandomClips:
    """A source of noise in the shape of a configuration's clips: float32 for volumes, else uint8.

    Attributes:
        config: The configuration, with the classes of its heads.
        length: Examples; 0: as many as make an epoch of 1,000 batches.
    """

    config: ConfigDict
    length: int = 0
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
        return self.length or STEPS * self.config.training.batch_size

    def __getitem__(self, index: int) -> Record:
        clip = experiment.clip_shape(self.config)

        def read(chosen: np.ndarray) -> np.ndarray:
            random, shape = np.random.default_rng(index), (len(chosen), *clip[1:])
            if self.config.data.source == 'volumes':
                return random.uniform(-1, 1, shape).astype(np.float32)
            return random.integers(0, 256, shape, np.uint8)

        return Record(
            name=str(index), label=self._label(index), num_frames=clip[0], frame_size=clip[1:3], read=read
        )

    def _label(self, index: int) -> Label:
        sizes = experiment.head_sizes(self.config)
        if self.config.training.loss == 'sigmoid':
            return tuple(float(k == index % sum(sizes)) for k in range(sum(sizes)))
        return tuple(index % size for size in sizes) if len(sizes) > 1 else index % sizes[0]


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of a configuration's data.

    Attributes:
        sizes: Classes of each head.
        counts: Examples by split, of those splits where they are known.
        remarks: Lines about what is not known.
    """

    sizes: tuple[int, ...]
    counts: dict[str, int]
    remarks: list[str]


def dry_run(config: ConfigDict, steps: int = 5) -> dict[str, float]:
    """Times the training step and a pass forward on random clips, and says what the whole run would take.

    Args:
        config: Any configuration; its data need not be there.
        steps: Steps after the first that are timed at most: fewer where they take long, but one.

    Returns:
        `compile_seconds`; `seconds_per_step` (median), `clips_per_second`, `loss`; `clips_per_second_forward`;
        `temporary_bytes`, what a step needs on a device beside parameters, optimiser and batch, and
        `predicted_bytes`, all that training will hold (see `telling.memory`), both NaN where XLA does not tell;
        `measured_bytes`, the most that was held during steps; `run_seconds` of `run_steps` steps with, where the
        sizes of all splits are known, their evaluations.

    Raises:
        ValueError: If the settings exclude each other, or the weights to start from cannot be read or do not fit.
    """
    with Terminal() as terminal:
        known = what_is_known(config, terminal)
        config = ConfigDict(config.to_dict())
        config.data.num_classes = known.sizes
        experiment.check(config)
        weights = init_from.read(config) if config.init_from.path else None
        config = config if weights is None else init_from.adopt(config, weights.model)
        counts, data = known.counts, config.data
        if data.train_split not in counts:
            config.training.steps = config.training.steps or STEPS
            config.optimizer.warmup_epochs, config.optimizer.warmup_steps = 0.0, 0
        splits = dict.fromkeys((data.train_split, data.validation_split, *data.test_splits))
        sources: dict[str, Any] = {split: RandomClips(config, counts.get(split, 0)) for split in splits}
        run = Run(config, pathlib.Path(), sources[data.train_split], sources[data.validation_split], terminal)
        terminal.say(f'{config.name}: dry run', style='bold')
        for label, text in run.describe().items():
            terminal.say(f'  {label:<9} {text}', indent=14)
        for line in known.remarks:
            terminal.say(f'  {"data":<9} {line}', indent=14)
        with terminal.phase('preparing the model'):
            state = run.fresh_state(weights)
        for line in run.started:
            terminal.say(f'  {line}')
        numbers, state = _train(run, state, steps)
        numbers |= _forward(run, state)
        whole = splits.keys() <= counts.keys()
        numbers |= _whole_run(numbers, run.work(sources), evaluates=whole)
        for line in _told(config, numbers, counts, evaluates=whole):
            terminal.say(line)
    return numbers


def what_is_known(config: ConfigDict, terminal: Terminal) -> Known:
    """Finds out how many classes and examples there are: as set, as published, else from the data if it is there."""
    data = config.data
    splits = dict.fromkeys((data.train_split, data.validation_split, *data.test_splits))
    sizes, counts, remarks = tuple(data.num_classes), {}, []
    if data.source == 'medmnist' and (published := medmnist.SETS.get(data.medmnist.name)):
        counts = dict(zip(medmnist.SPLITS, published.counts, strict=True))
        sizes = sizes or (len(published.class_names),)
    elif data.source == 'moving_digits' or ((data.root or data.csv) and not (sizes and data.train_examples)):
        looking = experiment.examination(config, terminal.counter('checking data'))
        try:
            sources = {split: experiment.open_source(config, split, looking) for split in splits}
            counts = {split: len(source) for split, source in sources.items() if len(source)}
            sizes = experiment.head_sizes(config, sources[data.train_split])
        except (ValueError, OSError, ImportError) as error:
            remarks.append(f'not looked at: {error}')
    if data.train_examples:
        counts[data.train_split] = data.train_examples
    if not sizes:
        sizes = (ASSUMED,) * len(data.heads)
        heads = ' of each head' if len(sizes) > 1 else ''
        remarks.append(f'{ASSUMED} classes{heads} assumed: data.num_classes is not set, no data at hand')
    counts = {split: count for split, count in counts.items() if split in splits}
    return Known(sizes, counts, remarks)


def _train(run: Run, state: TrainState, steps: int) -> tuple[dict[str, float], TrainState]:
    """Compiles and times the training step."""
    config = run.config
    batch_size = config.training.batch_size
    batch = _first_batch(run, feeding.training_examples(config, run.source), batch_size)
    began = time.perf_counter()
    with run.terminal.phase('compiling'), compile_cache.watched() as kept:
        predicted = run.compile(state, batch)
    compile_seconds = time.perf_counter() - began
    run.terminal.say(f'compiled in {compile_seconds:.1f} s{kept}')
    memory.forget_peak()
    seconds: list[float] = []
    with run.terminal.phase('timing steps'):
        while len(seconds) < 2 or (len(seconds) <= steps and sum(seconds) < SECONDS):
            began = time.perf_counter()
            state, scalars = run.step(state, batch)
            jax.block_until_ready(scalars)
            seconds.append(time.perf_counter() - began)
    median = statistics.median(seconds[1:])
    numbers = {
        'compile_seconds': compile_seconds,
        'seconds_per_step': median,
        'clips_per_second': batch_size / median,
        'temporary_bytes': predicted.step if predicted else math.nan,
        'predicted_bytes': predicted.total if predicted else math.nan,
        'measured_bytes': device_memory() or memory.peak_resident() or math.nan,
        'loss': float(scalars['loss']),
    }
    return numbers, state


def _forward(run: Run, state: TrainState) -> dict[str, float]:
    """Times what evaluates, on no more clips than a training step has."""
    config, devices = run.config, run.mesh.devices.size
    clips = min(config.evaluation.batch_size, config.training.batch_size)
    clips = max(clips // devices, 1) * devices
    examples = feeding.evaluation_examples(config, run.source, temporal_views=1, spatial_views=1)
    batch = _first_batch(run, examples, clips)
    seconds = []
    with run.terminal.phase('timing evaluation'):
        for _ in range(2):
            began = time.perf_counter()
            jax.block_until_ready(run.eval_step(state.params, batch))
            seconds.append(time.perf_counter() - began)
    return {
        'compile_seconds_forward': max(seconds[0] - seconds[1], 0.0),
        'clips_per_second_forward': clips / seconds[1],
    }


def _first_batch(run: Run, examples: Any, batch_size: int) -> pipeline.Batch:
    reading: dict[str, Any] = feeding.reading(run.config, run.mesh)
    with pipeline.batches(examples, batch_size=batch_size, first_step=0, last_step=1, **reading) as batches:
        return next(batches)


def _whole_run(numbers: dict[str, float], work: eta.Work, *, evaluates: bool) -> dict[str, float]:
    """Reckons how long a run would take from beginning to end, without evaluations where these are not known."""
    step = numbers['seconds_per_step']
    seconds = numbers['compile_seconds'] + work.total_steps * step
    if evaluates:
        validating = work.validation_clips / numbers['clips_per_second_forward']
        spent = eta.Spent(
            laps=[eta.Lap(1, step)],
            compiling_forward=[numbers['compile_seconds_forward']],
            validating=[validating] * 2,  # the second tells how long one takes without compiling
        )
        seconds = numbers['compile_seconds'] + step + eta.seconds_left(work, spent, 1)
    return {'run_seconds': seconds, 'run_steps': work.total_steps}


def _told(
    config: ConfigDict, numbers: dict[str, float], counts: dict[str, int], *, evaluates: bool
) -> list[str]:
    """Says the numbers in lines."""
    data, steps = config.data, numbers['run_steps']
    lines = [
        f'{numbers["seconds_per_step"]:.3f} s a step of '
        f'{config.training.batch_size} clips: {rate(numbers["clips_per_second"])}; forward alone '
        f'{rate(numbers["clips_per_second_forward"])}'
    ]
    if not math.isnan(numbers['measured_bytes']):
        lines.append(f'memory measured while it stepped: {memory.amount(numbers["measured_bytes"])}')
    whole = f'{duration(numbers["run_seconds"])} for {steps:,} steps'
    if data.train_split in counts:
        epochs = steps * config.training.batch_size / counts[data.train_split]
        lines.append(f'the whole run: {whole} ({epochs:.3g} epochs of {counts[data.train_split]:,} examples)')
    else:
        lines.append(f'{whole}; how many examples there are is not known: set data.train_examples')
    if evaluates:
        lines[-1] += ', evaluations and all'
    else:
        thousand = duration(1_000 / numbers['clips_per_second_forward'])
        lines[-1] += f'; besides, {thousand} for every 1,000 clips (views) that are evaluated'
    return [*lines, 'reading and writing left out: clips were drawn at random']
