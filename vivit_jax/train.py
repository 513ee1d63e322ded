"""Training, from a configuration to a trained and evaluated model: the whole story, in order."""

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
from ml_collections import ConfigDict

from vivit_jax import (
    checkpoint,
    closing,
    compile_cache,
    distributed,
    evaluate,
    experiment,
    feeding,
    inference,
    init_from,
    lock,
    paths,
)
from vivit_jax.bad_videos import BadVideos, check_agreement
from vivit_jax.checkpoint import Checkpoints
from vivit_jax.data import pipeline
from vivit_jax.data.examine import read_known, write_known
from vivit_jax.data.examples import Example
from vivit_jax.data.record import Source
from vivit_jax.nan_guard import Detoured, KeepRegular, NonFiniteLoss, NotFinite
from vivit_jax.run import Run
from vivit_jax.signals import Stopped, caught_signals
from vivit_jax.telling import eta
from vivit_jax.telling.facts import RunFacts, device_memory, resident_memory
from vivit_jax.telling.terminal import TRAINING, Terminal
from vivit_jax.telling.writers import MetricWriter, make_folder
from vivit_jax.train_step import TrainState

__all__ = ['NonFiniteLoss', 'Run', 'train']


def train(config: ConfigDict, workdir: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
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
        NotSaved: If the last state could not be saved; the same command goes on from an earlier one.
        lock.Lost: If another run has taken the workdir over, as this one was suspended for long.
    """
    folder = paths.path(workdir)
    with Terminal() as terminal:
        experiment.check(config)
        data = config.data
        looking = experiment.examination(config, terminal.counter('checking data'))
        goes_on = checkpoint.find(folder) is not None
        if goes_on:
            read_known(folder / experiment.MANIFEST, looking)
        splits = dict.fromkeys((data.train_split, data.validation_split, *data.test_splits))
        try:
            sources = {split: experiment.make_source(config, split, looking) for split in splits}
        except ValueError as error:
            raise ValueError(f'{error}{_of_other_data(folder, config)}') from error
        check_agreement(sources)
        config, weights = init_from.prepare(config, folder)
        run = Run(config, folder, sources[data.train_split], sources[data.validation_split], terminal)
        evaluate.check_best_metric(config, run.sizes)
        make_folder(folder)
        settings, work = config.checkpoint, run.work(sources)
        policies = [KeepRegular(work.saves)] if config.training.on_nan == 'rewind' else []
        with (
            lock.held(folder, terminal.say) as held,
            Checkpoints(
                folder, keep=settings.keep, best_metric=settings.best_metric, policies=policies
            ) as checkpoints,
        ):
            if (checkpoint.find(folder) is not None) != goes_on:
                raise ValueError(f'{folder} was trained in while this run was getting ready: start it again')
            run.lock = held
            if looking.listed and jax.process_index() == 0:
                write_known(folder / experiment.MANIFEST, looking)
            bad = BadVideos(config, folder, sources, terminal, anew=not goes_on)
            checkpoints.recover()
            checkpoints.check_space(run.shapes, settings.keep)
            with terminal.phase('preparing the model'):
                state = run.begin(checkpoints, weights)
            del weights  # as large as the model
            first = int(state.step)
            if jax.process_index() == 0:
                paths.replace_text(folder / 'config.json', json.dumps(config.to_dict(), indent=2) + '\n')
            run.announce(first, sources)
            with run.facts(first) as facts:
                with caught_signals() as caught:
                    state = _steps(run, state, work, checkpoints, facts, caught, bad)
                with run.clock.aside(run.clock.spent.testing):
                    predictor, metrics = _test(run, state, checkpoints, sources, bad)
            terminal.say(facts.summary())
            terminal.say(
                'also there: checkpoints/, config.json, metrics.jsonl, run.json; curves: tensorboard --logdir '
                f'{folder}'
            )
            held.confirm()
            closing.write_report(folder, terminal, predictor=predictor, sources=sources)
        split = (*data.test_splits, data.validation_split)[0]
        closing.say_next(folder, terminal, split, len(sources[split]))
        return metrics


def _of_other_data(folder: paths.Path, config: ConfigDict) -> str:
    """Says that a run began with data elsewhere, which may be why there is no going on; '' where it did not."""
    found = checkpoint.find(folder)
    before = checkpoint.read_meta(found)['config']['data'] if found else {'root': config.data.root}
    if before['root'] == config.data.root:
        return ''
    where = f'data.root={before["root"]!r}'
    return f'; {folder} holds a run that began with {where}: for other data choose another --workdir'


def _steps(
    run: Run,
    state: TrainState,
    work: eta.Work,
    checkpoints: Checkpoints,
    facts: RunFacts,
    caught: list[int],
    bad: BadVideos,
) -> TrainState:
    """Makes the steps to come; where one was not finite and the run goes back, from an earlier checkpoint again."""
    while True:
        run.lock.confirm()
        with run.terminal.phase('opening metrics.jsonl'):
            writer = MetricWriter(run.folder, resume_step=int(state.step))
        with writer:
            try:
                return _loop(run, state, work, checkpoints, writer, facts, caught, bad)
            except NotFinite as found:
                step, numbers = found.step, str(found)
        # Not before the error is gone, and the state that it holds with it.
        state = run.go_back(checkpoints, step, numbers, work.saves)


def _loop(
    run: Run,
    state: TrainState,
    work: eta.Work,
    checkpoints: Checkpoints,
    writer: MetricWriter,
    facts: RunFacts,
    caught: list[int],
    bad: BadVideos,
) -> TrainState:
    """Steps from where the state is to the end of the plan, with everything that is due between steps."""
    config, clock, terminal = run.config, run.clock, run.terminal
    spent, first, total = clock.spent, int(state.step), work.total_steps
    reading: dict[str, Any] = feeding.reading(config, run.mesh)
    examples: Callable[[int], Example] = feeding.training_examples(config, run.source, bad.files)
    if run.guard.detours:
        examples = Detoured(examples, work.batch_size, run.guard.detours)
    with pipeline.batches(
        examples, batch_size=work.batch_size, first_step=first, last_step=total, **reading
    ) as batches:
        previous: Any = None
        for step in range(first + 1, total + 1):
            asked = time.perf_counter()
            with terminal.phase('reading the first clips') if previous is None else nullcontext():
                batch = next(batches)
            waited = time.perf_counter() - asked
            if previous is None:
                state, scalars = _first_step(run, state, batch, facts)
            else:
                dry = previous['loss'].is_ready()  # the device had nothing to do
                state, scalars = run.step(state, batch)
                # One step runs while the next is made ready; more would only pile up batches on the device.
                jax.block_until_ready(previous)
                clock.step(waited if dry else 0.0)
            previous = scalars
            run.window.append(scalars)
            run.lock.check()
            facts.reach(step)
            terminal.bar(TRAINING, step, total, eta.seconds_left(work, spent, step))
            try:
                bad.look(together=step % config.training.log_every == 0 or step == total)
            except ValueError:
                run.save(checkpoints, state, step)
                raise
            if step % config.training.log_every == 0 or step == total:
                _log(run, work, step, writer, bad)
            metrics = None
            if work.validates(step):
                run.check_finite(step)
                with clock.aside(spent.validating):
                    metrics = run.validate(state, bad.files)
                run.lock.confirm()
                writer.write(step, 'validation', metrics)
                terminal.say(f'step {step}  validation  {_line(metrics)}')
            stop = distributed.agreed(caught[0] if caught else None, last=step == total)
            if work.saves(step) or stop:
                writer.push()
                with clock.aside(spent.saving):
                    run.save(checkpoints, state, step, metrics)
                facts.write()
            if stop:
                checkpoints.wait()
                raise Stopped(stop, f'saved step {step} of {total}; the same command goes on from there')
    return state


def _first_step(
    run: Run, state: TrainState, batch: pipeline.Batch, facts: RunFacts
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Makes a step to its end, the very first one with what compiles it."""
    clock, spent, terminal = run.clock, run.clock.spent, run.terminal
    if run.compiled is not None:
        clock.start()
        made = jax.block_until_ready(run.step(state, batch))
        clock.step(0.0)
        return made
    # Compilation is over once the first step is: it is not to blur the rates.
    with terminal.phase('compiling'), clock.aside(spent.compiling):
        with compile_cache.watched() as kept:
            facts.predicted = run.compile(state, batch)
        made = jax.block_until_ready(run.step(state, batch))
    terminal.say(f'compiled in {spent.compiling[-1]:.1f} s{kept}')
    clock.start()
    return made


def _log(run: Run, work: eta.Work, step: int, writer: MetricWriter, bad: BadVideos) -> None:
    """Writes and shows the means over the steps since it last did."""
    means, lap, spent = run.log(step), run.clock.log(), run.clock.spent
    # Of the first step alone there is nothing but the compilation.
    lap = lap if lap.steps else eta.Lap(1, spent.compiling[-1])
    means['clips_per_second'] = lap.steps * work.batch_size / lap.seconds
    means['data_wait'] = min(lap.waited / lap.seconds, 1.0)
    if (memory := device_memory()) is not None:
        means['device_memory'] = memory
    if bad.count:
        means['bad_videos'] = bad.count
    run.lock.confirm()
    writer.write(step, 'train', means)
    run.terminal.progress(
        step,
        work.total_steps,
        {'loss': math.nan} | means,
        seconds_left=eta.seconds_left(work, spent, step),
        score=run.score,
        memory=memory or resident_memory(),
    )


def _test(
    run: Run, state: TrainState, checkpoints: Checkpoints, sources: dict[str, Source], bad: BadVideos
) -> tuple[inference.Predictor, dict[str, dict[str, Any]]]:
    """Evaluates the best, else the last state on the test splits; returns it, and what is in `eval.json`."""
    checkpoints.wait()
    step, best_metric = checkpoints.best_step(), run.config.checkpoint.best_metric
    if step != run.plan.total_steps:  # to be read again
        step = checkpoints.best_whole_step()
    step = run.plan.total_steps if step is None else step
    params = state.params if state.ema is None else state.ema
    if step != run.plan.total_steps:
        params = evaluate.load_params(checkpoints, step, run.model, run.config, run.mesh)
    best = f', the best by {best_metric}' if best_metric else ''
    run.terminal.say(f'evaluating step {step}{best}')
    metrics = evaluate.evaluate_tests(
        run.config,
        sources,
        params,
        run.model,
        run.mesh,
        run.folder,
        run.terminal,
        bad,
        run.eval_step,
        run.lock.confirm,
    )
    return inference.of_run(run.config, run.source, params, run.mesh, run.folder, step), metrics


def _line(metrics: dict[str, float]) -> str:
    """Formats the scalars of an evaluation."""
    return '  '.join(f'{name} {value:.4g}' for name, value in metrics.items())
