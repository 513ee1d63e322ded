"""Training, from a configuration to a trained and evaluated model: the whole story, in order."""

import functools
import json
import math
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vivit_jax import checkpoint, evaluate, experiment, init_from, sharding
from vivit_jax.bad_videos import BadVideos, check_agreement
from vivit_jax.checkpoint import Checkpoints
from vivit_jax.data import pipeline
from vivit_jax.data.bad_files import BadFiles
from vivit_jax.data.examine import read_known, write_known
from vivit_jax.data.record import Source
from vivit_jax.describing import describe, describe_data
from vivit_jax.formats.account import Account
from vivit_jax.formats.weights import Weights
from vivit_jax.signals import Stopped, caught_signals
from vivit_jax.train_step import TrainState, create_state, train_step
from vivit_jax.writers import MetricWriter, Terminal, device_memory, make_folder, progress_text


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite."""


class Run:
    """A run under way: the compiled step and its state, and what is done between steps.

    Args:
        config: The configuration.
        folder: The workdir.
        source: What is trained on.
        validation: What is looked at on the way.
        terminal: Where the run speaks.
    """

    def __init__(
        self, config: ConfigDict, folder: pathlib.Path, source: Source, validation: Source, terminal: Terminal
    ):
        self.config, self.folder, self.terminal = config, folder, terminal
        self.source, self.validation = source, validation
        self.mesh = sharding.make_mesh(config.sharding.fsdp)
        self.sizes = experiment.head_sizes(config, self.source)
        self.model = experiment.make_model(config, self.source)
        self.plan = experiment.plan(config, len(self.source))
        self.optimizer, self.schedule = experiment.make_optimizer(config, self.plan)
        self.window: list[dict[str, Any]] = []
        self.last_good: int | None = None
        self.account: Account | None = None
        self.started: list[str] = []
        self._eval_step: evaluate.EvalStep | None = None
        training = config.training
        self.create = functools.partial(
            create_state,
            self.model,
            self.optimizer,
            experiment.clip_shape(config),
            seed=config.seed,
            with_ema=training.ema_decay > 0,
        )
        self.shapes = jax.eval_shape(self.create)
        self.placement = sharding.state_sharding(self.mesh, self.shapes)
        self.factors = experiment.rate_factors(config, self.shapes.params)
        step = functools.partial(
            train_step,
            model=self.model,
            optimizer=self.optimizer,
            loss=training.loss,
            head_sizes=self.sizes,
            label_smoothing=training.label_smoothing,
            mixup_alpha=training.mixup_alpha,
            ema_decay=training.ema_decay,
            seed=config.seed,
            learns=jax.tree.map(bool, self.factors),
        )
        self.step = jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(self.placement, sharding.batch_sharding(self.mesh)),
            out_shardings=(self.placement, sharding.replicated(self.mesh)),
        )

    def begin(self, checkpoints: Checkpoints, weights: Weights | None = None) -> TrainState:
        """Returns the state to start from: that of the last checkpoint, else of the weights, else a fresh one."""
        step = checkpoints.latest_step()
        if step is None:
            state = self.fresh_state(weights)
            if self.account is not None and jax.process_index() == 0:
                init_from.write_account(self.account, self.folder)
            return state
        if not checkpoints.holds_run(step):
            raise ValueError(
                f'{self.folder} holds converted weights, not a run to go on with: start from them with '
                f'--config.init_from.path={self.folder} and another --workdir'
            )
        meta = checkpoints.meta(step)
        evaluate.check_same(meta['config'], self.config, self.folder)
        if meta['data_digest'] != self.source.digest:
            raise ValueError(
                f'{self.folder} was trained on other data than the {self.config.data.train_split!r} split now '
                'holds: choose another --workdir to start anew'
            )
        self.window, self.last_good = meta['window'], step
        items = {'params': self.shapes.params, 'optimizer': self.shapes.opt_state}
        if self.shapes.ema is not None:
            items['ema'] = self.shapes.ema
        saved = checkpoints.restore(step, self.mesh, **items)
        count = jax.device_put(np.int32(step), sharding.replicated(self.mesh))
        return TrainState(count, saved['params'], saved['optimizer'], saved.get('ema'))

    def fresh_state(self, weights: Weights | None) -> TrainState:
        """Returns the state before the first step, with trained weights in it where there are any."""
        state = jax.jit(self.create, out_shardings=self.placement)()
        if weights is None:
            return state
        params, self.account = init_from.initialise(self.config, sharding.to_host(state.params), weights)
        params = sharding.from_host(params, self.placement.params)
        ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
        self.started = init_from.describe(self.account, self.config, self.factors)
        return state.replace(params=params, ema=ema)

    def save(
        self, checkpoints: Checkpoints, state: TrainState, step: int, metrics: dict[str, float] | None = None
    ) -> None:
        """Starts a checkpoint of a state known to be finite."""
        self.check_finite(step)
        meta = {
            'config': self.config.to_dict(),
            'class_names': list(self.source.class_names),
            'data_digest': self.source.digest,
            'window': list(self.window),  # written while the loop goes on
        }
        checkpoints.save(
            step, params=state.params, ema=state.ema, optimizer=state.opt_state, meta=meta, metrics=metrics
        )
        self.last_good = step

    def check_finite(self, step: int) -> None:
        """Fetches the scalars of the steps since the last log, the last of them being `step`."""
        self.window = jax.tree.map(float, jax.device_get(self.window))
        first = step - len(self.window) + 1
        for number, scalars in enumerate(self.window, start=first):
            if not math.isfinite(scalars['loss']) or not math.isfinite(scalars['grad_norm']):
                good = 'none' if self.last_good is None else f'step {self.last_good}'
                settings = self.config.optimizer
                tips = [f'a lower optimizer.learning_rate than {settings.learning_rate}', 'a longer warm-up']
                tips.append(f'optimizer.max_grad_norm below {settings.max_grad_norm or "infinity: 1"}')
                if self.config.model.dtype != 'float32':
                    tips.append("model.dtype='float32'")
                raise NonFiniteLoss(
                    f'loss {scalars["loss"]:g}, gradient norm {scalars["grad_norm"]:g} at step {number}; last good '
                    f'checkpoint: {good} in {self.folder}. Try {", ".join(tips)}'
                )

    def log(self, step: int) -> dict[str, float]:
        """Returns the means over the steps since the last log, and forgets these."""
        self.check_finite(step)
        names = self.window[0]
        means = {name: math.fsum(row[name] for row in self.window) / len(self.window) for name in names}
        self.window = []
        return {
            **means,
            'learning_rate': float(self.schedule(step - 1)),
            'epoch': step / self.plan.steps_per_epoch,
        }

    def validate(self, state: TrainState, bad_files: BadFiles) -> dict[str, float]:
        """Evaluates one view of the validation split."""
        if self._eval_step is None:
            self._eval_step = evaluate.make_eval_step(self.config, self.model, self.sizes, self.mesh)
        params = state.params if state.ema is None else state.ema
        outcome = evaluate.evaluate_source(
            self.config,
            self.validation,
            params,
            self._eval_step,
            self.mesh,
            split=self.config.data.validation_split,
            bad_files=bad_files,
            on_batch=functools.partial(self.terminal.bar, 'validating'),
        )
        return outcome.metrics

    def describe(self) -> dict[str, str]:
        """Returns lines about the model with its cost, the devices, and what learns where that differs."""
        return describe(self.config, self.model, self.shapes.params, self.mesh, self.factors)

    def announce(self, first: int, sources: dict[str, Source]) -> None:
        """Says what is about to happen: model, devices, data, steps."""
        config, steps = self.config, self.plan
        lines = self.describe() | {
            'data': '\n'.ljust(13).join(describe_data(config, sources, self.sizes)),
            'steps': f'{steps.total_steps:,} of {config.training.batch_size} clips '
            f'({steps.total_steps / steps.steps_per_epoch:.3g} epochs), validation every {steps.evaluate_every:,}',
            'settings': f'{self.folder / "config.json"}',
        }
        self.terminal.say(f'{config.name}: {self.folder}', style='bold')
        for label, text in lines.items():
            self.terminal.say(f'  {label:<9} {text}')
        if first >= steps.total_steps:
            self.terminal.say(f'already trained to step {first}')
        elif first:
            self.terminal.say(f'going on from step {first}')
        if first and config.init_from.path:
            self.terminal.say(
                f'  its own checkpoint, not init_from.path={config.init_from.path!r}, where it began'
            )
        for line in self.started:
            self.terminal.say(f'  {line}')


def train(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, dict[str, Any]]:
    """Trains, validates and checkpoints, then evaluates the test splits with all views.

    Goes on from the last checkpoint if the workdir holds one of the same configuration: the numbers are then
    those that an uninterrupted run would have given.

    Args:
        config: See `config.default_config`.
        workdir: Created if it is not there.

    Returns:
        The test metrics by split, as in `eval.json`.

    Raises:
        ValueError: If the configuration, the data or the workdir do not allow to start; one line.
        NonFiniteLoss: If the loss is NaN or infinite.
        Stopped: On SIGINT or SIGTERM, after saving.
    """
    folder = pathlib.Path(workdir)
    with Terminal() as terminal:
        experiment.check(config)
        data = config.data
        looking = experiment.examination(config, terminal.counter('looking into files'))
        goes_on = checkpoint.find(folder) is not None
        if goes_on:
            read_known(folder / experiment.MANIFEST, looking)
        splits = dict.fromkeys((data.train_split, data.validation_split, *data.test_splits))
        sources = {split: experiment.make_source(config, split, looking) for split in splits}
        check_agreement(sources)
        config, weights = init_from.prepare(config, folder)
        run = Run(config, folder, sources[data.train_split], sources[data.validation_split], terminal)
        make_folder(folder)
        if looking.listed and jax.process_index() == 0:
            write_known(folder / experiment.MANIFEST, looking)
        bad = BadVideos(config, folder, sources, terminal, anew=not goes_on)
        best_metric = config.checkpoint.best_metric
        with Checkpoints(folder, keep=config.checkpoint.keep, best_metric=best_metric) as checkpoints:
            state = run.begin(checkpoints, weights)
            del weights  # as large as the model
            first = int(state.step)
            if jax.process_index() == 0:
                (folder / 'config.json').write_text(json.dumps(config.to_dict(), indent=2) + '\n')
            run.announce(first, sources)
            with MetricWriter(folder, resume_step=first) as writer, caught_signals() as caught:
                state = _loop(run, state, first, checkpoints, writer, caught, bad)
            checkpoints.wait()
            step = checkpoints.best_step()
            params = state.params if state.ema is None else state.ema
            if step is not None and step != run.plan.total_steps:
                params = evaluate.load_params(checkpoints, step, run.model, config, run.mesh)
        best = f', the best by {best_metric}' if best_metric else ''
        terminal.say(f'evaluating step {step}{best}')
        report = evaluate.evaluate_tests(config, sources, params, run.model, run.mesh, folder, terminal, bad)
        terminal.say(
            f'also there: checkpoints/, config.json, metrics.jsonl; curves: tensorboard --logdir {folder}'
        )
        terminal.say('next: the same command with --mode=eval evaluates again, with other views where told')
        return report


def _loop(
    run: Run,
    state: TrainState,
    first: int,
    checkpoints: Checkpoints,
    writer: MetricWriter,
    caught: list[int],
    bad: BadVideos,
) -> TrainState:
    """Steps from `first` to the end of the plan, with everything that is due between steps."""
    config, total = run.config, run.plan.total_steps
    log_every, save_every = config.training.log_every, config.checkpoint.every_steps
    reading: dict[str, Any] = experiment.reading(config, run.mesh)
    examples = experiment.training_examples(config, run.source, bad.files)
    batch_size = config.training.batch_size
    with pipeline.batches(
        examples, batch_size=batch_size, first_step=first, last_step=total, **reading
    ) as batches:
        logged, waited = first, 0.0
        previous: Any = None
        for step in range(first + 1, total + 1):
            asked = time.perf_counter()
            batch = next(batches)
            got = time.perf_counter()
            if previous is None:
                began = lap = got
            elif previous['loss'].is_ready():  # the device had run dry
                waited += got - asked
            state, scalars = run.step(state, batch)
            run.window.append(scalars)
            # One step runs while the next is made ready; more would only pile up batches on the device.
            jax.block_until_ready(previous)
            previous = scalars
            if step == first + 1:
                # Compilation is over once the first step is: it is not to blur the rates.
                jax.block_until_ready(scalars)
                run.terminal.say(f'compiled in {time.perf_counter() - began:.1f} s')
                began = lap = time.perf_counter()
                logged, waited = step, 0.0
            run.terminal.bar('step', step, total)
            try:
                bad.look(together=step % log_every == 0 or step == total)
            except ValueError:
                run.save(checkpoints, state, step)
                raise
            if step % log_every == 0 or step == total:
                means = run.log(step)
                now = time.perf_counter()
                seconds = max(now - lap, 1e-9)
                means['clips_per_second'] = max(step - logged, 1) * batch_size / seconds
                means['data_wait'] = min(waited / seconds, 1.0)
                if (memory := device_memory()) is not None:
                    means['device_memory'] = memory
                if bad.count:
                    means['bad_videos'] = bad.count
                writer.write(step, 'train', means)
                left = (now - began) / max(step - first - 1, 1) * (total - step)
                run.terminal.progress(step, total, progress_text(means, seconds_left=left))
                lap, logged, waited = time.perf_counter(), step, 0.0
            if step % run.plan.evaluate_every == 0 or step == total:
                paused = time.perf_counter()
                metrics = run.validate(state, bad.files)
                writer.write(step, 'validation', metrics)
                run.terminal.say(f'step {step}  validation  {_line(metrics)}')
                run.save(checkpoints, state, step, metrics)
                lap += time.perf_counter() - paused
            elif step % save_every == 0 or caught:
                run.save(checkpoints, state, step)
            if caught and step < total:
                checkpoints.wait()
                raise Stopped(caught[0], f'saved step {step} of {total}; the same command goes on from there')
    return state


def _line(metrics: dict[str, float]) -> str:
    """Formats the scalars of an evaluation."""
    return '  '.join(f'{name} {value:.4g}' for name, value in metrics.items())
