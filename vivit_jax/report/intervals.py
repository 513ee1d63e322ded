"""Which interval each metric of an evaluation has, and from what."""

import dataclasses

import numpy as np

from vivit_jax.report import numbers
from vivit_jax.report.numbers import Interval, Statistic
from vivit_jax.report.reading import Run
from vivit_jax.report.wording import NOT_METRICS

# Draws take time in proportion to examples times classes: where these are many, fewer draws are made.
MOST_WORK = 1e9
FEWEST_DRAWS = 200
MEANS = {
    'mean_per_class': 'recall',
    'balanced_accuracy': 'recall',
    'mean_precision': 'precision',
    'mean_jaccard': 'jaccard',
}


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A metric: its value, its interval where one can be had, and whether that is 'Wilson' or 'bootstrap'."""

    value: float
    interval: Interval | None
    how: str


def estimates(run: Run, split: str) -> dict[str, Estimate]:
    """Returns the metrics of a split in the order of `eval.json`, with their intervals."""
    found = run.results[split]
    count = int(found.get('count', 0))
    values = {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in NOT_METRICS
    }
    result = {}
    for name, value in values.items():
        interval, how = None, ''
        if count and _is_share_of_examples(name, run) and 0 <= value <= 1:
            interval, how = numbers.wilson(value, count), 'Wilson'
        elif (statistic := _statistic(name, run, split)) is not None:
            number = _draws(run, split, name)
            interval, how = numbers.bootstrap(statistic, len(_rows(run, split, name)), number), 'bootstrap'
        result[name] = Estimate(value, interval, how)
    return result


def _is_share_of_examples(name: str, run: Run) -> bool:
    """Tells whether a metric counts examples that are right."""
    if run.several_labels:
        return False
    prefixes = ('', 'action_', *(f'{head}_' for head in run.heads))
    return name in ('accuracy', *(f'{prefix}top_{top}' for prefix in prefixes for top in (1, 5)))


def _rows(run: Run, split: str, name: str) -> np.ndarray | list:
    """Returns what is drawn from."""
    kept = run.all_scores(split) if name in ('auc', 'mean_average_precision') else None
    return run.examples.get(split, []) if kept is None else kept[0]


def _draws(run: Run, split: str, name: str) -> int:
    rows = _rows(run, split, name)
    work = float(np.size(rows)) if isinstance(rows, np.ndarray) else float(len(rows))
    return int(np.clip(MOST_WORK / max(work, 1.0), FEWEST_DRAWS, numbers.DRAWS))


def _statistic(name: str, run: Run, split: str) -> Statistic | None:
    """Returns what to compute in every draw; None for a metric that the files do not allow to draw anew."""
    if name in ('auc', 'mean_average_precision'):
        kept = run.all_scores(split)
        if kept is None:
            return None
        return (numbers.mean_area if name == 'auc' else numbers.mean_average_precision)(*kept)
    if run.several_labels or not run.examples.get(split):
        return None
    for place, head in enumerate(run.heads):
        prefix = f'{head}_' if len(run.heads) > 1 else ''
        kind = MEANS.get(name.removeprefix(prefix))
        if name.startswith(prefix) and kind is not None:
            return numbers.class_means(kind, *_indices(run, split, place))
    return None


def _indices(run: Run, split: str, head: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the label and the prediction of each example, as numbers."""
    decisions = [example.decisions[head] for example in run.examples[split]]
    number: dict[str, int] = {}
    for decision in decisions:
        number.setdefault(decision.labels[0], len(number))
    for decision in decisions:
        number.setdefault(decision.classes[0], len(number))
    labels = np.array([number[decision.labels[0]] for decision in decisions])
    return labels, np.array([number[decision.classes[0]] for decision in decisions])


def confidences(run: Run, split: str, head: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns how probable decisions were held and whether they were right.

    A decision is that for the most probable class; where an example may have several labels, that each of the (up
    to) five most probable ones is a label.
    """
    decisions = [example.decisions[head] for example in run.examples.get(split, [])]
    most = None if run.several_labels else 1
    pairs = [
        (probability, name in decision.labels)
        for decision in decisions
        for name, probability in list(zip(decision.classes, decision.probabilities, strict=True))[:most]
    ]
    return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs], dtype=bool)
