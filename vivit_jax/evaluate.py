"""Evaluation: every example once, all its views averaged, metrics and predictions for each split."""

import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import Mesh
from jaxtyping import Array, Num
from ml_collections import ConfigDict

from vivit_jax import config as config_module
from vivit_jax import (
    experiment,
    feeding,
    init_from,
    losses,
    medical_metrics,
    metrics,
    nearest,
    paths,
    results,
    sharding,
    steps,
)
from vivit_jax.bad_videos import BadVideos
from vivit_jax.checkpoint import Checkpoints, item_to_use
from vivit_jax.data import pipeline
from vivit_jax.data.bad_files import BadFiles
from vivit_jax.data.examine import Examination, read_known
from vivit_jax.data.record import Source
from vivit_jax.models.vivit import ViViT
from vivit_jax.telling.terminal import Terminal

MOST_KEYS = 6  # that are named where configurations differ

EvalStep = Callable[[Any, pipeline.Batch], dict[str, jax.Array]]


def to_float(video: Num[Array, '... h w c']) -> Num[Array, '... h w c']:
    """Scales uint8 pixels to [-1, 1]; float32 ones are scaled already."""
    return video.astype(jnp.float32) / 127.5 - 1.0 if video.dtype == jnp.uint8 else video


def eval_step(
    params: Any, batch: pipeline.Batch, *, model: ViViT, loss: str, head_sizes: tuple[int, ...], average: str
) -> dict[str, jax.Array]:
    """Scores a batch.

    Args:
        params: The model's parameters.
        batch: Contract of the pipeline; `video` `[b t h w c]` or, with views, `[b v t h w c]`.
        model: The model.
        loss: See `losses.per_example_loss`.
        head_sizes: Classes of each head.
        average: What is averaged over views, 'logits' or 'softmax' (whose logarithm is the score).

    Returns:
        `scores` `[b k]` and `loss` `[b]` (without label smoothing), float32, and the batch's `label`, `mask`
        and `index`.
    """
    video = to_float(batch['video'])
    if video.ndim == 5:
        video = rearrange(video, 'b t h w c -> b 1 t h w c')
    views = video.shape[1]
    # Blocks gather theirs themselves, one at a time.
    params = sharding.gathered(params, but='encoderblock_')
    logits, _ = model.apply({'params': params}, rearrange(video, 'b v t h w c -> (b v) t h w c'))
    scores = metrics.average_views(rearrange(logits, '(b v) k -> b v k', v=views), average, head_sizes)
    if average == 'softmax':
        scores = jnp.log(jnp.maximum(scores, jnp.finfo(scores.dtype).tiny))
    each = losses.per_example_loss(
        scores, batch['label'], loss=loss, head_sizes=head_sizes, label_smoothing=0.0
    )
    return {'scores': scores, 'loss': each, **{name: batch[name] for name in ('label', 'mask', 'index')}}


def make_eval_step(config: ConfigDict, model: ViViT, sizes: tuple[int, ...], mesh: Mesh) -> EvalStep:
    """Compiles `eval_step` for a mesh; its results are copied to every device, so that each process has all."""
    step = functools.partial(
        eval_step,
        model=model,
        loss=config.training.loss,
        head_sizes=sizes,
        average=config.evaluation.average,
    )
    return jax.jit(sharding.within(mesh, step), out_shardings=sharding.replicated(mesh))


def batches_of(
    config: ConfigDict,
    source: Source,
    params: Any,
    step: EvalStep,
    mesh: Mesh,
    *,
    views: tuple[int, int] = (1, 1),
    mirror: bool = True,
    batch_size: int = 0,
    split: str = '',
    bad_files: BadFiles | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[dict[str, np.ndarray]]:
    """Runs a step over a source, batch by batch; while one computes the next are read.

    Args:
        config: The configuration.
        source: The examples.
        params: Parameters on the mesh.
        step: Maps parameters and a batch to arrays, a row an example, `mask` and `index` among them.
        mesh: The mesh.
        views: (temporal, spatial) views of each example.
        mirror: Whether these are mirrored as well, where the configuration says so.
        batch_size: Clips of a batch, which holds as many examples as have so many views; 0: the configuration's.
        split: Its name, for the list of bad files.
        bad_files: Where examples that cannot be read are named.
        on_batch: Told of the batches done and in all.

    Yields:
        What the step returns for the examples of a batch that could be read, on the host.

    Raises:
        ValueError: If there are to be no views; one line.
    """
    if min(views) < 1:
        raise ValueError(f'views={views}: at least one clip and one crop make a view')
    if not len(source):
        return
    # The batch is counted in clips, so that memory does not depend on the views.
    devices = mesh.devices.size
    mirrored = feeding.mirrored_axes(config) if mirror else ()
    rows = (batch_size or config.evaluation.batch_size) // (math.prod(views) * 2 ** len(mirrored))
    rows = min(max(rows // devices, 1) * devices, math.ceil(len(source) / devices) * devices)
    examples = feeding.evaluation_examples(
        config,
        source,
        temporal_views=views[0],
        spatial_views=views[1],
        mirrored=mirrored,
        split=split,
        bad_files=bad_files,
    )
    total = math.ceil(len(source) / rows)
    reading: dict[str, Any] = feeding.reading(config, mesh)
    with pipeline.batches(
        examples, batch_size=rows, first_step=0, last_step=total, length=len(source), **reading
    ) as batches:
        before: dict[str, jax.Array] | None = None
        for done, batch in enumerate(batches, start=1):
            under_way = step(params, batch)
            if before is not None:
                yield _readable(before)
            before = under_way
            on_batch(done, total)
        if before is not None:
            yield _readable(before)


def _readable(rows: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    """Fetches the rows of a batch that are no padding, in the order of the examples."""
    there = jax.device_get(rows)
    kept = {name: values[there['mask']] for name, values in there.items() if name != 'mask'}
    order = np.argsort(kept['index'])
    return {name: values[order] for name, values in kept.items()}


def evaluate_source(
    config: ConfigDict,
    source: Source,
    params: Any,
    step: EvalStep,
    mesh: Mesh,
    *,
    views: tuple[int, int] = (1, 1),
    mirror: bool = True,
    split: str = '',
    bad_files: BadFiles | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> results.Outcome:
    """Evaluates one split with a step from `make_eval_step`; for the arguments see `batches_of`."""
    parts = list(
        batches_of(
            config,
            source,
            params,
            step,
            mesh,
            views=views,
            mirror=mirror,
            split=split,
            bad_files=bad_files,
            on_batch=on_batch,
        )
    )
    each = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    scores, labels = each['scores'], each['label']
    numbers = summary_metrics(config, experiment.head_sizes(config, source), scores, labels)
    loss = float(np.mean(each['loss'], dtype=np.float64))
    counts = {'count': len(scores)}
    if source.bad:
        counts['left_out'] = experiment.lost(source)
    if len(scores) < len(source):
        counts['unreadable'] = len(source) - len(scores)
    return results.Outcome({**numbers, 'loss': loss, **counts}, scores, labels, each['index'])


def summary_metrics(
    config: ConfigDict, sizes: tuple[int, ...], scores: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Returns the metrics that sum up an evaluation, but for the loss."""
    kind = losses.loss_kind(config.training.loss)
    numbers = metrics.classification_metrics(
        scores, labels, loss_kind=kind, head_sizes=sizes, head_names=tuple(config.data.heads)
    )
    if config.evaluation.report == 'medical':
        numbers |= medical_metrics.medical_metrics(*medical_metrics.decided(scores, labels, kind))
    return numbers


def check_best_metric(config: ConfigDict, sizes: tuple[int, ...]) -> None:
    """Raises a ValueError of one line where the best checkpoint is to be told by a metric that there is none of."""
    name = config.checkpoint.best_metric
    rows = max(sizes)
    labels = np.stack([np.arange(rows) % size for size in sizes], axis=1).astype(np.int32)
    if config.training.loss == 'sigmoid':
        labels = np.eye(sum(sizes), dtype=np.float32)
    elif len(sizes) == 1:
        labels = labels[:, 0]
    known = ['loss', *summary_metrics(config, sizes, np.zeros((len(labels), sum(sizes)), np.float32), labels)]
    if name and name not in known:
        raise ValueError(steps.no_such_metric(name, known))


def evaluate_tests(
    config: ConfigDict,
    sources: dict[str, Source],
    params: Any,
    model: ViViT,
    mesh: Mesh,
    folder: paths.Path,
    terminal: Terminal,
    bad: BadVideos,
    step: EvalStep | None = None,
    may_write: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, Any]]:
    """Evaluates the test splits with all views, by a step of `make_eval_step` where there is one already.

    Writes `eval.json`, `predictions.csv`, confusion matrices and MedMNIST's result files, and shows a table;
    `may_write` raises before, where these are not for this run to write.

    Returns:
        What is in `eval.json`: metrics by split.
    """
    views = (config.evaluation.temporal_views, config.evaluation.spatial_views)
    report: dict[str, dict[str, Any]] = {}
    summary: dict[str, dict[str, float]] = {}
    rows: list[list[Any]] = []
    written = ['eval.json', 'predictions.csv']
    main_process = jax.process_index() == 0
    for split in config.data.test_splits:
        source = sources[split]
        sizes = experiment.head_sizes(config, source)
        step = step or make_eval_step(config, model, sizes, mesh)
        on_batch = functools.partial(terminal.bar, f'evaluating {split}')
        outcome = evaluate_source(
            config,
            source,
            params,
            step,
            mesh,
            views=views,
            split=split,
            bad_files=bad.files,
            on_batch=on_batch,
        )
        bad.look(together=True)
        may_write()
        summary[split] = outcome.metrics
        by_class, confusions = results.by_class(
            outcome, source, sizes, tuple(config.data.heads), config.training.loss
        )
        told = {'views': list(views), 'dtype': config.model.dtype}
        report[split] = {**outcome.metrics, **told, **by_class}
        if mirrored := feeding.mirrored_axes(config):
            report[split]['mirrored_axes'] = list(mirrored)
        if config.evaluation.report == 'medical':
            names = results.medical(
                config, split, outcome, source, report[split], folder if main_process else None
            )
            written.extend(names)
        for head, counts in confusions.items():
            written.append(f'confusion_{split}{head}.csv')
            if main_process:
                results.write_csv(folder / written[-1], counts[0], counts[1:])
        rows += results.prediction_rows(split, source, outcome, sizes, config.training.loss)
        if config.evaluation.report == 'medical' or config.training.loss == 'sigmoid':
            written.append(f'scores_{split}.npz')
            if main_process:
                results.write_scores(folder / written[-1], outcome, sizes)
    if main_process:
        paths.replace_text(folder / 'eval.json', json.dumps(report, indent=2) + '\n')
        results.write_csv(folder / 'predictions.csv', results.PREDICTION_COLUMNS, rows)
    terminal.table(summary)
    terminal.say(f'written to {folder}: {", ".join(written)}')
    return report


def load_params(checkpoints: Checkpoints, step: int, model: ViViT, config: ConfigDict, mesh: Mesh) -> Any:
    """Reads the parameters of a checkpoint that are to be used: their moving average where there is one."""
    video = jax.ShapeDtypeStruct((1, *experiment.clip_shape(config)), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), video)['params']
    item = item_to_use(checkpoints.folder / str(step))
    return checkpoints.restore(step, mesh, **{item: shapes})[item]


def evaluate(
    config: ConfigDict, workdir: str | os.PathLike[str], afterwards: Callable[..., None] | None = None
) -> dict[str, dict[str, Any]]:
    """Evaluates the best (else the latest) checkpoint of a workdir on the test splits.

    Args:
        config: The configuration.
        workdir: The workdir.
        afterwards: Called with the workdir, the terminal, and the `config`, `sources`, `params`, `mesh` and `step`.

    Returns:
        Metrics by split, as in `eval.json`.

    Raises:
        ValueError: If there is no checkpoint, it is of another model or data, or no split is named; one line.
    """
    folder = paths.path(workdir)
    experiment.check(config)
    if not config.data.test_splits:
        raise ValueError('data.test_splits=(): name a split to evaluate, as --config.data.test_splits=test')
    if not (folder / 'checkpoints').is_dir():
        raise ValueError(_untrained(folder))
    mesh = sharding.make_mesh(config.sharding.fsdp)
    with Terminal() as terminal:
        with Checkpoints(folder) as checkpoints:
            step = checkpoints.best_whole_step()
            if step is None:
                raise ValueError(_untrained(folder))
            saved = checkpoints.meta(step)['config']
            config = init_from.as_saved(config, saved)
            check_same(saved, config, folder, groups=('model', 'data'), free=('model.dtype',))
            # How it was trained (loss, moving average) is the checkpoint's to tell, not the command's.
            config = ConfigDict(config.to_dict())
            config.training = saved['training']
            looking = experiment.examination(config, terminal.counter('checking data'))
            if all(saved['data'].get(key) == config.data[key] for key in ('root', 'csv')):
                keep_drawn(folder, looking)
            splits = config.data.test_splits
            sources = {split: experiment.make_source(config, split, looking) for split in splits}
            model = experiment.make_model(config, sources[config.data.test_splits[0]])
            params = load_params(checkpoints, step, model, config, mesh)
        terminal.say(f'evaluating step {step} of {folder}')
        if config.model.dtype != saved['model']['dtype']:
            terminal.say(f'evaluating in {config.model.dtype}, trained in {saved["model"]["dtype"]}')
        bad = BadVideos(config, folder, sources, terminal, anew=False)
        report = evaluate_tests(config, sources, params, model, mesh, folder, terminal, bad)
        if afterwards is not None:
            afterwards(folder, terminal, config=config, sources=sources, params=params, mesh=mesh, step=step)
        return report


def _untrained(folder: paths.Path) -> str:
    return f'{folder} holds no checkpoints: train first, or choose another --workdir{nearest.hint(folder)}'


def keep_drawn(folder: paths.Path, looking: Examination) -> None:
    """Lets the splits that were drawn for a run hold, lest an evaluation meets what the run was trained on.

    Splits that somebody gave are as they are given now, and files are looked into anew.
    """
    begun = Examination()
    read_known(folder / experiment.MANIFEST, begun)
    for kind, listings in begun.begun.items():
        drawn = {split: listing for split, listing in listings.items() if listing['note']}
        looking.begun[kind] = drawn


def check_same(
    saved: dict[str, Any],
    config: ConfigDict,
    folder: paths.Path,
    groups: Sequence[str] = (),
    free: Sequence[str] = (),
) -> None:
    """Compares a checkpoint's configuration with the one at hand, in `groups` or in all, but for the keys `free`.

    Raises:
        ValueError: Naming the keys that differ, with both values.
    """
    # A run of an earlier version had, in keys that are new since, what is the default now.
    before = config_module.flatten(config_module.default_config()) | config_module.flatten(saved)
    differing = config_module.differences(before, config_module.flatten(config))
    relevant = {
        key: values
        for key, values in differing.items()
        if key not in (*config_module.FREE_TO_CHANGE, *free)
        and (not groups or key.partition('.')[0] in groups)
    }
    if relevant:
        some = list(relevant.items())[:MOST_KEYS]
        listed = ', '.join(f'{key} is {there!r} there and {here!r} here' for key, (there, here) in some)
        if len(relevant) > len(some):
            listed = f'{len(relevant)} keys differ: {listed}, …; all of it is in {folder / "config.json"}'
        raise ValueError(
            f'{folder} holds a run of another configuration ({listed}): choose another --workdir'
        )
