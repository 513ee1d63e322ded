"""What an evaluation leaves: numbers of each class, a row an example, the files of MedMNIST."""

import csv
import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vivit_jax import losses, medical_metrics, metrics, paths
from vivit_jax.data.medmnist import SPLITS
from vivit_jax.data.record import Source

PREDICTION_COLUMNS = ['split', 'index', 'name', 'label', 'top_5', 'scores']


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The evaluation of one split: summary numbers, and the scores, labels and places of the examples, in order.

    Examples that could not be read are not among them; `metrics` counts them as `unreadable` where there are any.
    """

    metrics: dict[str, float]
    scores: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


def by_class(
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


def medical(
    config: ConfigDict,
    split: str,
    outcome: Outcome,
    source: Source,
    report: dict[str, Any],
    folder: paths.Path | None,
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


def prediction_rows(
    split: str, source: Source, outcome: Outcome, sizes: tuple[int, ...], loss: str
) -> list[list[Any]]:
    """One row an example: its label, and its five most probable classes with their probabilities.

    Classes, and their probabilities, are separated by `|`, heads by ` + `.
    """
    heads = slices(sizes)
    names = np.array(source.class_names, dtype=object)
    rows = []
    for index, scores, label in zip(outcome.indices, outcome.scores, outcome.labels, strict=True):
        tops, shares = [], []
        for head in heads:
            probability = probabilities(scores[head], loss)
            best = np.argsort(-probability, kind='stable')[:5]
            tops.append('|'.join(names[head][best]))
            shares.append('|'.join(f'{value:.6g}' for value in probability[best]))
        if label.dtype.kind == 'f':
            truth = ['|'.join(names[label > 0.5])]
        else:
            truth = [names[head][k] for head, k in zip(heads, np.atleast_1d(label), strict=True)]
        rows.append([split, index, source[int(index)].name, *map(' + '.join, (truth, tops, shares))])
    return rows


def slices(sizes: tuple[int, ...]) -> list[slice]:
    """Returns where in the scores the classes of each head are."""
    return [slice(end - size, end) for end, size in zip(np.cumsum(sizes).tolist(), sizes, strict=True)]


def probabilities(scores: np.ndarray, loss: str) -> np.ndarray:
    """Turns the scores `[k]` of one head into probabilities: of each class by itself, or adding up to 1."""
    if loss == 'sigmoid':
        return 1.0 / (1.0 + np.exp(-scores))
    shifted = np.exp(scores - scores.max())
    return shifted / shifted.sum()


def write_csv(path: paths.Path, header: list[str], rows: list[list[Any]]) -> None:
    """Writes a table; names that are no UTF-8 keep their bytes."""
    with paths.open_text(path, 'w', newline='', errors='surrogateescape') as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_scores(path: paths.Path, outcome: Outcome, sizes: tuple[int, ...]) -> None:
    """Writes the scores of all classes `[n k]`, and which are right `[n k]`: what areas under curves need."""
    targets = np.asarray(losses.one_hot_targets(jnp.asarray(outcome.labels), sizes))
    with paths.written(path) as file:
        np.savez_compressed(file, scores=outcome.scores, targets=targets)
