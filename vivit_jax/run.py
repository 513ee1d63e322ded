"""A run under way: what is compiled, its state, and what is done between steps."""

import contextlib
import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vivit_jax import evaluate, experiment, feeding, init_from, paths, sharding
from vivit_jax.checkpoint import Checkpoints, NotSaved
from vivit_jax.data import pipeline
from vivit_jax.data.bad_files import BadFiles
from vivit_jax.data.record import Source
from vivit_jax.describing import describe, describe_data
from vivit_jax.formats.account import Account
from vivit_jax.formats.weights import Weights, flat, nested
from vivit_jax.lock import Lock
from vivit_jax.models.cost import multiply_adds
from vivit_jax.nan_guard import (
    MOST_IN_A_ROW,
    MOST_REWINDS,
    NanGuard,
    NonFiniteLoss,
    last_regular,
    leads_on,
    remembered,
)
from vivit_jax.telling import eta
from vivit_jax.telling.clock import Clock
from vivit_jax.telling.facts import RunFacts
from vivit_jax.telling.memory import Memory, predicted
from vivit_jax.telling.peak_flops import peak_flops
from vivit_jax.telling.terminal import Terminal
from vivit_jax.train_step import TrainState, create_state, train_step


class Run:
    """A run under way: the compiled step and its state, and what is done between steps.

    Args:
        config: The configuration.
        folder: The workdir.
        source: What is trained on.
        validation: What is looked at on the way.
        terminal: Where the run speaks.

    Attributes:
        lock: To be asked before anything is written; not held before `train` has it so.
    """

    def __init__(
        self, config: ConfigDict, folder: paths.Path, source: Source, validation: Source, terminal: Terminal
    ):
        self.config, self.folder, self.terminal = config, folder, terminal
        self.source, self.validation = source, validation
        self.mesh = sharding.make_mesh(config.sharding.fsdp)
        self.sizes = experiment.head_sizes(config, self.source)
        self.model = experiment.make_model(config, self.source)
        self.plan = experiment.plan(config, len(self.source))
        self.optimizer, self.schedule = experiment.make_optimizer(config, self.plan)
        self.lock = Lock(folder)
        self.window: list[dict[str, Any]] = []
        self.last_good: int | None = None
        self.guard = NanGuard(config.training.on_nan)
        self.account: Account | None = None
        self.started: list[str] = []
        self.clock = Clock()
        self.score = ''
        self.compiled: jax.stages.Compiled | None = None
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
            accumulate=training.accumulate,
            mesh=self.mesh,
        )
        self.jitted = jax.jit(
            step,
            donate_argnums=0,
            in_shardings=(self.placement, sharding.batch_sharding(self.mesh)),
            out_shardings=(self.placement, sharding.replicated(self.mesh)),
        )

        # Compiled for the views and batches that it meets.
        self.eval_step = self.clock.first_call(
            evaluate.make_eval_step(config, self.model, self.sizes, self.mesh),
            self.clock.spent.compiling_forward,
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
        return self.restore(checkpoints, step, meta)

    def restore(self, checkpoints: Checkpoints, step: int, meta: dict[str, Any]) -> TrainState:
        """Returns the state of a checkpoint, after which all is as it was then."""
        self.window, self.last_good = meta['window'], step
        self.guard = remembered(self.config.training.on_nan, step, meta.get('guard'))
        items = {'params': self.shapes.params, 'optimizer': self.shapes.opt_state}
        if self.shapes.ema is not None:
            items['ema'] = self.shapes.ema
        saved = checkpoints.restore(step, self.mesh, **items)
        count = jax.device_put(np.int32(step), sharding.replicated(self.mesh))
        return TrainState(count, saved['params'], saved['optimizer'], saved.get('ema'))

    def go_back(
        self, checkpoints: Checkpoints, found: int, numbers: str, regular: Callable[[int], bool]
    ) -> TrainState:
        """Returns the state to go on from after a step that was not finite, where the configuration has it so.

        Args:
            checkpoints: Where it comes from.
            found: The step.
            numbers: What was wrong with it.
            regular: Tells whether a checkpoint follows on a step whatever happens.

        Raises:
            NonFiniteLoss: If the run ends here.
        """
        guard, to = self.guard, last_regular(regular, found)
        step = 0
        if guard.on_nan == 'rewind' and len(guard.detours) < MOST_REWINDS:
            step = self._to_go_back_to(checkpoints, to)
        if not step:
            raise self._ended_by(numbers)
        detours = (*guard.detours, (to, found - to))
        self.terminal.say(
            f'{numbers}: going back to step {step}; the batches of steps {to + 1} to {found} are passed over (rewind '
            f'{len(detours)} of {MOST_REWINDS} at most)'
        )
        state = self.restore(checkpoints, step, checkpoints.meta(step))
        self.guard = dataclasses.replace(self.guard, detours=detours)
        return state

    def _to_go_back_to(self, checkpoints: Checkpoints, to: int) -> int:
        """Returns the last checkpoint on the run's way, up to a step; 0 for none. All go by what the first finds."""
        with contextlib.suppress(NotSaved):  # then an earlier one will do
            checkpoints.wait()
        there = (
            step
            for step in reversed(checkpoints.steps())
            if step <= to
            and checkpoints.is_whole(step)
            and leads_on(
                step, remembered('rewind', step, checkpoints.meta(step).get('guard')), self.guard.detours
            )
        )
        found = next(there, 0) if jax.process_index() == 0 else 0
        checkpoints.look_again()
        return int(sharding.gather_rows(np.array([[found]], np.uint32))[0, 0])

    def _ended_by(self, numbers: str) -> NonFiniteLoss:
        """Returns the error that tells of the last good checkpoint, and what to try."""
        guard, settings = self.guard, self.config.optimizer
        good = 'none' if self.last_good is None else f'step {self.last_good}'
        if guard.on_nan == 'skip' and guard.in_a_row >= MOST_IN_A_ROW:
            numbers += f', the last of {MOST_IN_A_ROW} in a row whose updates were left out'
        elif guard.on_nan == 'rewind':
            numbers += (
                f' after {len(guard.detours)} rewinds' if guard.detours else ', with no checkpoint before it'
            )
        tips = [f'a lower optimizer.learning_rate than {settings.learning_rate}', 'a longer warm-up']
        tips.append(f'optimizer.max_grad_norm below {settings.max_grad_norm or "infinity: 1"}')
        if self.config.model.dtype != 'float32':
            tips.append("model.dtype='float32'")
        if guard.on_nan == 'stop':
            tips.append('training.on_nan=skip or rewind')
        return NonFiniteLoss(
            f'{numbers}; last good checkpoint: {good} in {self.folder}. Try {", ".join(tips)}'
        )

    def fresh_state(self, weights: Weights | None) -> TrainState:
        """Returns the state before the first step, with trained weights in it where there are any."""
        state = jax.jit(self.create, out_shardings=self.placement)()
        if weights is None:
            return state
        # The model stays where it is: only what the weights bring goes to the devices, to each its part.
        fresh, where = flat(state.params), flat(self.placement.params)
        blank = {name: np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape) for name, leaf in fresh.items()}
        filled, self.account = init_from.initialise(self.config, nested(blank), weights)
        kept = {name for name, change in self.account.changes.items() if change.action == 'fresh'}
        params = nested(
            {
                name: fresh[name] if name in kept else sharding.from_host(array, where[name])
                for name, array in flat(filled).items()
            }
        )
        ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
        self.started = init_from.describe(self.account, self.config, self.factors)
        return state.replace(params=params, ema=ema)

    def compile(self, state: TrainState, batch: pipeline.Batch) -> Memory | None:
        """Compiles the step for batches like this one; says and returns what training will hold, where XLA tells."""
        self.compiled = self.jitted.lower(state, batch).compile()
        saving = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        memory = predicted(self.compiled, batch, ahead=self.config.data.prefetch + 1, saving=saving)
        if memory is not None:
            self.terminal.say(f'  {"memory":<9} {memory.describe()}', indent=14)
            if warning := memory.warning():
                warnings.warn(warning, stacklevel=2)
        return memory

    def step(self, state: TrainState, batch: pipeline.Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        """Makes a step, see `train_step`; the state that it is given is gone then."""
        return (self.compiled or self.jitted)(state, batch)

    def save(
        self, checkpoints: Checkpoints, state: TrainState, step: int, metrics: dict[str, float] | None = None
    ) -> None:
        """Starts a checkpoint of a state known to be finite."""
        self.check_finite(step)
        self.lock.confirm()
        meta = {
            'config': self.config.to_dict(),
            'class_names': list(self.source.class_names),
            'head_sizes': list(self.sizes),
            'data_digest': self.source.digest,
            'window': list(self.window),  # written while the loop goes on
            'guard': self.guard.memory(),
        }
        checkpoints.save(
            step, params=state.params, ema=state.ema, optimizer=state.opt_state, meta=meta, metrics=metrics
        )
        self.last_good = step

    def check_finite(self, step: int) -> None:
        """Fetches the scalars of the steps since the last log, the last of them being `step`.

        Raises:
            NotFinite: If the run must not go on so; see `go_back`.
        """
        fetched = jax.tree.map(float, jax.device_get(self.window))
        self.window, left_out = self.guard.judge(fetched, step)
        if left_out:
            named = ', '.join(map(str, left_out[:5])) + (', …' if len(left_out) > 5 else '')
            self.terminal.say(
                f'warning: not finite: the updates of steps {named} were left out, {self.guard.skipped} of {step} so '
                f'far; {MOST_IN_A_ROW} in a row end the run'
            )

    def log(self, step: int) -> dict[str, float]:
        """Returns the means over the steps since the last log that were finite, if any, and forgets these."""
        self.check_finite(step)
        names = self.window[0] if self.window else ()
        means = {name: math.fsum(row[name] for row in self.window) / len(self.window) for name in names}
        self.window = []
        guard = self.guard
        counts = {'skipped_steps': guard.skipped, 'rewinds': sum(to < step for to, _ in guard.detours)}
        return {
            **means,
            # Updates that were left out are none to the optimiser.
            'learning_rate': float(self.schedule(max(step - 1 - guard.skipped, 0))),
            'epoch': step / self.plan.steps_per_epoch,
            **{name: count for name, count in counts.items() if count},
        }

    def validate(self, state: TrainState, bad_files: BadFiles) -> dict[str, float]:
        """Evaluates one view of the validation split."""
        params = state.params if state.ema is None else state.ema
        outcome = evaluate.evaluate_source(
            self.config,
            self.validation,
            params,
            self.eval_step,
            self.mesh,
            mirror=False,
            split=self.config.data.validation_split,
            bad_files=bad_files,
            on_batch=functools.partial(self.terminal.bar, 'validating'),
        )
        named = self.config.checkpoint.best_metric
        name = named if named in outcome.metrics else next(iter(outcome.metrics))
        self.score = f'{name} {outcome.metrics[name]:.3g}'
        return outcome.metrics

    def work(self, sources: dict[str, Source]) -> eta.Work:
        """Returns what there is to do, from the first step to the evaluation at the end."""
        settings = self.config.evaluation
        mirrors = 2 ** len(feeding.mirrored_axes(self.config))
        views = settings.temporal_views * settings.spatial_views * mirrors
        return eta.Work(
            total_steps=self.plan.total_steps,
            evaluate_every=self.plan.evaluate_every,
            save_every=self.config.checkpoint.every_steps,
            batch_size=self.config.training.batch_size,
            validation_clips=len(self.validation),
            test_clips=views * sum(len(sources[split]) for split in self.config.data.test_splits),
            test_views=views,
        )

    def facts(self, first: int) -> RunFacts:
        """Returns the account of this run, which goes on after step `first`."""
        leaves = jax.tree.leaves(self.shapes.params)
        with self.terminal.phase('measuring the device'):
            peak = peak_flops(list(self.mesh.devices.flat), self.config.model.dtype)
        return RunFacts(
            self.folder,
            first_step=first,
            model={
                'parameters': sum(math.prod(leaf.shape) for leaf in leaves),
                'multiply_adds_per_clip': multiply_adds(
                    self.model, experiment.clip_shape(self.config), logits_alone=True
                ),
            },
            batch_size=self.config.training.batch_size,
            peak=peak,
            spent=self.clock.spent,
        )

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
            self.terminal.say(f'  {label:<9} {text}', indent=14)
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
