"""Evaluation: every example once, all its views averaged, metrics and predictions for each split."""

import csv
import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import Mesh
from jaxtyping import Array, Num
from ml_collections import ConfigDict

from vivit_jax import config as config_module
from vivit_jax import experiment, init_from, losses, medical_metrics, metrics, sharding
from vivit_jax.bad_videos import BadVideos
from vivit_jax.checkpoint import Checkpoints, item_to_use
from vivit_jax.data import pipeline
from vivit_jax.data.bad_files import BadFiles
from vivit_jax.data.examine import Examination, read_known
from vivit_jax.data.medmnist import SPLITS
from vivit_jax.data.record import Source
from vivit_jax.models.vivit import ViViT
from vivit_jax.writers import Terminal

PREDICTION_COLUMNS = ['split', 'index', 'name', 'label', 'top_5', 'scores']

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
    return jax.jit(step, out_shardings=sharding.replicated(mesh))


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The evaluation of one split: summary numbers, and the scores, labels and places of the examples, in order.

    Examples that could not be read are not among them; `metrics` counts them as `unreadable` where there are any.
    """

    metrics: dict[str, float]
    scores: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


def evaluate_source(
    config: ConfigDict,
    source: Source,
    params: Any,
    step: EvalStep,
    mesh: Mesh,
    *,
    views: tuple[int, int] = (1, 1),
    split: str = '',
    bad_files: BadFiles | None = None,
    on_batch: Callable[[int, int], None] = lambda done, total: None,
) -> Outcome:
    """Evaluates one split.

    Args:
        config: The configuration.
        source: The split.
        params: Parameters on the mesh.
        step: From `make_eval_step`.
        mesh: The mesh.
        views: (temporal, spatial) views of each example.
        split: Its name, for the list of bad files.
        bad_files: Where examples that cannot be read are named.
        on_batch: Told of the batches done and in all.
    """
    # The batch is counted in clips, so that memory does not depend on the views.
    devices = mesh.devices.size
    batch_size = max(config.evaluation.batch_size // math.prod(views) // devices, 1) * devices
    batch_size = min(batch_size, math.ceil(len(source) / devices) * devices)
    examples = experiment.evaluation_examples(
        config,
        source,
        temporal_views=views[0],
        spatial_views=views[1],
        split=split,
        bad_files=bad_files,
    )
    total = math.ceil(len(source) / batch_size)
    reading: dict[str, Any] = experiment.reading(config, mesh)
    results = []
    with pipeline.batches(
        examples, batch_size=batch_size, first_step=0, last_step=total, **reading
    ) as batches:
        for done, batch in enumerate(batches, start=1):
            results.append(step(params, batch))
            on_batch(done, total)
    gathered = jax.device_get(results)
    joined = {name: np.concatenate([result[name] for result in gathered]) for name in gathered[0]}
    kept = {name: values[joined['mask']] for name, values in joined.items()}
    order = np.argsort(kept['index'])
    scores, labels = kept['scores'][order], kept['label'][order]
    kind = losses.loss_kind(config.training.loss)
    numbers = metrics.classification_metrics(
        scores,
        labels,
        loss_kind=kind,
        head_sizes=experiment.head_sizes(config, source),
        head_names=tuple(config.data.heads),
    )
    if config.evaluation.report == 'medical':
        numbers |= medical_metrics.medical_metrics(*medical_metrics.decided(scores, labels, kind))
    loss = float(np.mean(kept['loss'], dtype=np.float64))
    counts = {'count': len(scores)}
    if source.bad:
        counts['left_out'] = experiment.lost(source)
    if len(scores) < len(source):
        counts['unreadable'] = len(source) - len(scores)
    return Outcome({**numbers, 'loss': loss, **counts}, scores, labels, kept['index'][order])


def evaluate_tests(
    config: ConfigDict,
    sources: dict[str, Source],
    params: Any,
    model: ViViT,
    mesh: Mesh,
    folder: pathlib.Path,
    terminal: Terminal,
    bad: BadVideos,
) -> dict[str, dict[str, Any]]:
    """Evaluates the test splits with all views.

    Writes `eval.json`, `predictions.csv`, confusion matrices and MedMNIST's result files, and shows a table.

    Returns:
        What is in `eval.json`: metrics by split.
    """
    views = (config.evaluation.temporal_views, config.evaluation.spatial_views)
    report: dict[str, dict[str, Any]] = {}
    summary: dict[str, dict[str, float]] = {}
    rows: list[list[Any]] = []
    written = ['eval.json', 'predictions.csv']
    step: EvalStep | None = None
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
        summary[split] = outcome.metrics
        by_class, confusions = _by_class(
            outcome, source, sizes, tuple(config.data.heads), config.training.loss
        )
        report[split] = {**outcome.metrics, 'views': list(views), **by_class}
        if config.evaluation.report == 'medical':
            names = _medical(config, split, outcome, source, report[split], folder if main_process else None)
            written.extend(names)
        for head, counts in confusions.items():
            written.append(f'confusion_{split}{head}.csv')
            if main_process:
                _write_csv(folder / written[-1], counts[0], counts[1:])
        rows += _predictions(split, source, outcome, sizes, config.training.loss)
    if main_process:
        (folder / 'eval.json').write_text(json.dumps(report, indent=2) + '\n')
        _write_csv(folder / 'predictions.csv', PREDICTION_COLUMNS, rows)
    terminal.table(summary)
    terminal.say(f'written to {folder}: {", ".join(written)}')
    return report


def _by_class(
    outcome: Outcome, source: Source, sizes: tuple[int, ...], heads: tuple[str, ...], loss: str
) -> tuple[dict[str, Any], dict[str, list[list[Any]]]]:
    """Returns the numbers of each class, and the confusion matrix of each head as a table.

    With several heads, names of metrics begin with the head's, and the matrices are keyed `_<head>`.
    """
    names = list(source.class_names)
    if loss == 'sigmoid':
        targets = np.asarray(losses.one_hot_targets(jnp.asarray(outcome.labels), sizes))
        values = metrics.average_precision(outcome.scores, targets).tolist()
        # A class without an example has none; JSON knows no NaN.
        known = {name: value for name, value in zip(names, values, strict=True) if math.isfinite(value)}
        return {'average_precision': known}, {}
    numbers: dict[str, Any] = {}
    tables: dict[str, list[list[Any]]] = {}
    starts = np.cumsum((0, *sizes))
    labels = outcome.labels.reshape(len(outcome.labels), -1)
    for number, (head, size) in enumerate(zip(heads, sizes, strict=True)):
        classes = names[starts[number] : starts[number + 1]]
        predicted = outcome.scores[:, starts[number] : starts[number + 1]].argmax(1)
        confusion = metrics.confusion_matrix(predicted, labels[:, number], size)
        prefix = f'{head}_' if len(sizes) > 1 else ''
        columns = {name: column.tolist() for name, column in metrics.per_class(confusion).items()}
        # The share of a class's examples that were recognised: its accuracy.
        columns['accuracy'] = columns.pop('recall')
        each = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        numbers[f'{prefix}per_class'] = dict(zip(classes, each, strict=True))
        means = metrics.mean_over_classes(confusion)
        numbers |= {f'{prefix}mean_{name}': means[name] for name in means if name != 'recall'}
        rows = [[name, *row] for name, row in zip(classes, confusion.tolist(), strict=True)]
        tables[f'_{head}' if prefix else ''] = [['label \\ predicted', *classes], *rows]
    return numbers, tables


def _medical(
    config: ConfigDict,
    split: str,
    outcome: Outcome,
    source: Source,
    report: dict[str, Any],
    folder: pathlib.Path | None,
) -> list[str]:
    """Adds recall, F1 and AUC of each class to a split's report; writes its result file where it is of MedMNIST.

    Returns:
        The names of the files written, into `folder` where there is one.
    """
    kind = losses.loss_kind(config.training.loss)
    scores, labels = medical_metrics.decided(outcome.scores, outcome.labels, kind)
    per_class = report.setdefault('per_class', {})
    for name, values in medical_metrics.per_class(scores, labels).items():
        for known, value in zip(source.class_names, values.tolist(), strict=True):
            # JSON knows no NaN: where there is no example there is no recall.
            per_class.setdefault(known, {}).update({name: value} if math.isfinite(value) else {})
    data = config.data
    if data.source != 'medmnist' or folder is None:
        return []
    flag = f'{data.medmnist.name}mnist3d' + ('' if data.medmnist.size == 28 else f'_{data.medmnist.size}')
    return [
        medical_metrics.write_official(
            folder, scores, labels, flag=flag, split=SPLITS[split], run=str(config.seed)
        )
    ]


def _predictions(
    split: str, source: Source, outcome: Outcome, sizes: tuple[int, ...], loss: str
) -> list[list[Any]]:
    """One row an example: its label, and its five most probable classes with their probabilities.

    Classes, and their probabilities, are separated by `|`, heads by ` + `.
    """
    ends = np.cumsum(sizes)
    heads = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    names = np.array(source.class_names, dtype=object)
    rows = []
    for index, scores, label in zip(outcome.indices, outcome.scores, outcome.labels, strict=True):
        tops, probabilities = [], []
        for head in heads:
            probability = _probabilities(scores[head], loss)
            best = np.argsort(-probability, kind='stable')[:5]
            tops.append('|'.join(names[head][best]))
            probabilities.append('|'.join(f'{value:.6g}' for value in probability[best]))
        if label.dtype.kind == 'f':
            truth = ['|'.join(names[label > 0.5])]
        else:
            truth = [names[head][k] for head, k in zip(heads, np.atleast_1d(label), strict=True)]
        rows.append([split, index, source[int(index)].name, *map(' + '.join, (truth, tops, probabilities))])
    return rows


def _probabilities(scores: np.ndarray, loss: str) -> np.ndarray:
    if loss == 'sigmoid':
        return 1.0 / (1.0 + np.exp(-scores))
    shifted = np.exp(scores - scores.max())
    return shifted / shifted.sum()


def _write_csv(path: pathlib.Path, header: list[str], rows: list[list[Any]]) -> None:
    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def load_params(checkpoints: Checkpoints, step: int, model: ViViT, config: ConfigDict, mesh: Mesh) -> Any:
    """Reads the parameters of a checkpoint that are to be used: their moving average where there is one."""
    video = jax.ShapeDtypeStruct((1, *experiment.clip_shape(config)), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), video)['params']
    item = item_to_use(checkpoints.folder / str(step))
    return checkpoints.restore(step, mesh, **{item: shapes})[item]


def evaluate(config: ConfigDict, workdir: str | pathlib.Path) -> dict[str, dict[str, Any]]:
    """Evaluates the best (else the latest) checkpoint of a workdir on the test splits.

    Returns:
        Metrics by split, as in `eval.json`.

    Raises:
        ValueError: If there is no checkpoint, or it is of another model or data; one line.
    """
    folder = pathlib.Path(workdir)
    experiment.check(config)
    if not (folder / 'checkpoints').is_dir():
        raise ValueError(f'{folder} holds no checkpoints: train first, or choose another --workdir')
    mesh = sharding.make_mesh(config.sharding.fsdp)
    with Terminal() as terminal:
        with Checkpoints(folder) as checkpoints:
            step = checkpoints.best_step()
            if step is None:
                raise ValueError(f'{folder} holds no checkpoints: train first, or choose another --workdir')
            saved = checkpoints.meta(step)['config']
            config = init_from.as_saved(config, saved)
            check_same(saved, config, folder, groups=('model', 'data'))
            # How it was trained (loss, moving average) is the checkpoint's to tell, not the command's.
            config = ConfigDict(config.to_dict())
            config.training = saved['training']
            looking = experiment.examination(config, terminal.counter('looking into files'))
            if all(saved['data'].get(key) == config.data[key] for key in ('root', 'csv')):
                keep_drawn(folder, looking)
            splits = config.data.test_splits
            sources = {split: experiment.make_source(config, split, looking) for split in splits}
            model = experiment.make_model(config, sources[config.data.test_splits[0]])
            params = load_params(checkpoints, step, model, config, mesh)
        terminal.say(f'evaluating step {step} of {folder}')
        bad = BadVideos(config, folder, sources, terminal, anew=False)
        return evaluate_tests(config, sources, params, model, mesh, folder, terminal, bad)


def keep_drawn(folder: pathlib.Path, looking: Examination) -> None:
    """Lets the splits that were drawn for a run hold, lest an evaluation meets what the run was trained on.

    Splits that somebody gave are as they are given now, and files are looked into anew.
    """
    begun = Examination()
    read_known(folder / experiment.MANIFEST, begun)
    for kind, listings in begun.begun.items():
        drawn = {split: listing for split, listing in listings.items() if listing['note']}
        looking.begun[kind] = drawn


def check_same(
    saved: dict[str, Any], config: ConfigDict, folder: pathlib.Path, groups: Sequence[str] = ()
) -> None:
    """Compares a checkpoint's configuration with the one at hand, in `groups` or in all.

    Raises:
        ValueError: Naming the keys that differ, with both values.
    """
    # A run of an earlier version had, in keys that are new since, what is the default now.
    before = config_module.flatten(config_module.default_config()) | config_module.flatten(saved)
    differing = config_module.differences(before, config_module.flatten(config))
    relevant = {
        key: values
        for key, values in differing.items()
        if key not in config_module.FREE_TO_CHANGE and (not groups or key.partition('.')[0] in groups)
    }
    if relevant:
        listed = ', '.join(
            f'{key} is {there!r} there and {here!r} here' for key, (there, here) in relevant.items()
        )
        raise ValueError(
            f'{folder} holds a run of another configuration ({listed}): choose another --workdir'
        )
