"""What a workdir holds, read for a report: whatever a run has left so far, and a note on what cannot be read."""

import csv
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vivit_jax import archives, json_files, nearest, paths
from vivit_jax import config as config_module
from vivit_jax.data.bad_files import COLUMNS as BAD_COLUMNS
from vivit_jax.medical_metrics import probabilities
from vivit_jax.report import forms

Scores = tuple[np.ndarray, np.ndarray]
ENDINGS = ('.json', '.jsonl', '.csv', '.npz')  # of the files that are read


@dataclasses.dataclass(frozen=True)
class Decision:
    """What one head said of an example: its labels, and the (up to) five most probable classes."""

    labels: tuple[str, ...]
    classes: tuple[str, ...]
    probabilities: tuple[float, ...]

    @property
    def right(self) -> bool:
        """Tells whether the most probable class is a label."""
        return self.classes[0] in self.labels


@dataclasses.dataclass(frozen=True)
class Example:
    """A row of `predictions.csv`: its place in the split, its name, and a decision for each head."""

    index: int
    name: str
    decisions: tuple[Decision, ...]


@dataclasses.dataclass(frozen=True)
class Confusion:
    """Class names, and counts of examples, true class by predicted class."""

    names: tuple[str, ...]
    counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, as far as it has come.

    Attributes:
        folder: Its workdir.
        label: What it is called beside other runs.
        config: Every setting by its key; those that its version did not know have their default.
        scalars: Rows of `metrics.jsonl` by split, in order.
        results: `eval.json`: metrics by split; empty before the evaluation.
        examples: `predictions.csv` by split.
        confusions: By split, then by head ('' where there is one only).
        scores: Of all classes, by split, where an evaluation kept them: see `all_scores`.
        bad: Rows of the lists of bad files: split, name, cause, when it was found.
        conversion: `conversion.json`, None where the run did not start from weights.
        facts: `run.json`, None where there is none.
        notes: What could not be read.
    """

    folder: paths.Path
    label: str
    config: dict[str, Any]
    scalars: dict[str, list[dict[str, Any]]]
    results: dict[str, dict[str, Any]]
    examples: dict[str, list[Example]]
    confusions: dict[str, dict[str, Confusion]]
    scores: dict[str, Scores]
    bad: list[tuple[str, ...]]
    conversion: dict[str, Any] | None
    facts: dict[str, Any] | None
    notes: tuple[str, ...]

    @property
    def heads(self) -> tuple[str, ...]:
        """Returns the names of the heads."""
        return tuple(self.config['data.heads'])

    @property
    def several_labels(self) -> bool:
        """Tells whether an example may have several labels."""
        return self.config['training.loss'] == 'sigmoid'

    @property
    def main_metric(self) -> str:
        """Returns the metric that the run is judged by."""
        if self.several_labels:
            return 'auc' if self.config['evaluation.report'] == 'medical' else 'mean_average_precision'
        if len(self.heads) > 1:
            return 'action_top_1'
        return 'auc' if self.config['evaluation.report'] == 'medical' else 'top_1'

    @property
    def step(self) -> int:
        """Returns the last step of which anything was written; 0 where nothing was."""
        return max((int(row['step']) for rows in self.scalars.values() for row in rows), default=0)

    @property
    def total_steps(self) -> int | None:
        """Returns the steps that the run is to have, None where that is not known yet."""
        if self.config['training.steps']:
            return int(self.config['training.steps'])
        for row in self.scalars.get('train', []):
            if row.get('epoch'):
                return round(self.config['training.epochs'] * row['step'] / row['epoch'])
        return None

    @property
    def state(self) -> str:
        """Returns 'done', 'stopped', 'failed' or 'running'; without a `run.json`, what the other files say."""
        if self.facts is not None and self.facts.get('exit'):
            return str(self.facts['exit'])
        return 'done' if self.results else 'running'

    def all_scores(self, split: str) -> Scores | None:
        """Returns the probability of every class `[n k]` and which are labels, of one head; None if not kept.

        `predictions.csv` has them where there are five classes at most.
        """
        if split in self.scores:
            return self.scores[split]
        examples = self.examples.get(split, [])
        if len(self.heads) > 1 or not examples:
            return None
        names = sorted({name for example in examples for name in example.decisions[0].classes})
        if any(len(example.decisions[0].classes) != len(names) for example in examples):
            return None
        places = {name: place for place, name in enumerate(names)}
        scores, positive = np.zeros((len(examples), len(names))), np.zeros((len(examples), len(names)), bool)
        for row, example in enumerate(examples):
            decision = example.decisions[0]
            scores[row, [places[name] for name in decision.classes]] = decision.probabilities
            positive[row, [places[name] for name in decision.labels if name in places]] = True
        return scores, positive


def read_runs(folders: Sequence[paths.Path]) -> list[Run]:
    """Reads workdirs.

    Raises:
        ValueError: If one is no workdir, or given twice; one line.
    """
    places = [folder if paths.is_remote(folder) else folder.resolve() for folder in folders]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ValueError(f'{folders[number]} is given twice')
    names = [place.name for place in places]
    labels = [
        name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)
    ]
    return [read_run(folder, label) for folder, label in zip(folders, labels, strict=True)]


def read_run(folder: paths.Path, label: str) -> Run:
    """Reads a workdir.

    Args:
        folder: The workdir.
        label: What the run is called beside others.

    Raises:
        ValueError: If it is none; one line.
    """
    if not paths.is_remote(folder):
        return _read_run(pathlib.Path(folder), label)
    if not (folder / 'config.json').is_file():
        raise ValueError(f'{folder} is no workdir: it has no config.json')
    with paths.local_files(folder, lambda name: name.endswith(ENDINGS)) as here:
        return dataclasses.replace(_read_run(here, label), folder=folder)


def _read_run(folder: pathlib.Path, label: str) -> Run:
    config = _settings(folder)
    heads, several = tuple(config['data.heads']), config['training.loss'] == 'sigmoid'
    notes: list[str] = []

    def attempt(name: str, read: Callable[[pathlib.Path], Any], missing: Any) -> Any:
        path = folder / name
        if len(name) > 200 or not path.is_file():
            return missing
        try:
            return read(path)
        except (ValueError, KeyError, TypeError, IndexError, OverflowError, OSError, csv.Error) as error:
            notes.append(f'{name} cannot be read: {" ".join(str(error).split())[:200]}')
            return missing

    def fitted(name: str, form: forms.Form, missing: Any) -> Any:
        left: list[str] = []
        found = attempt(name, lambda path: forms.fitting(json_files.read_object(path), form, left), missing)
        if left:
            notes.append(
                f'{name}: {len(left)} values are no such values, and are left out, as {left[0][:80]}'
            )
        return found

    results = fitted('eval.json', forms.EVALUATION, {})
    confusions: dict[str, dict[str, Confusion]] = {}
    scores = {}
    for split in results:
        for head in heads if len(heads) > 1 else ('',):
            name = f'confusion_{split}_{head}.csv' if head else f'confusion_{split}.csv'
            if (confusion := attempt(name, _confusion, None)) is not None:
                confusions.setdefault(split, {})[head] = confusion
        if (kept := attempt(f'scores_{split}.npz', lambda path: _scores(path, several), None)) is not None:
            scores[split] = kept
    bad: dict[tuple[str, ...], None] = {}
    for path in sorted(folder.glob('bad_files*.csv')):  # of several processes each has its own
        bad |= dict.fromkeys(attempt(path.name, _bad, []))
    return Run(
        folder=folder,
        label=label,
        config=config,
        scalars=attempt('metrics.jsonl', lambda path: _scalars(path, notes), {}),
        results=results,
        examples=attempt('predictions.csv', lambda path: _examples(path, len(heads), several, notes), {}),
        confusions=confusions,
        scores=scores,
        bad=list(bad),
        conversion=fitted('conversion.json', forms.CONVERSION, None),
        facts=fitted('run.json', forms.FACTS, None),
        notes=tuple(notes),
    )


def _settings(folder: pathlib.Path) -> dict[str, Any]:
    """Reads `config.json`, without which a folder is no workdir."""
    path = folder / 'config.json'
    if not path.is_file():
        there = 'it has no config.json' if folder.is_dir() else 'there is no such folder'
        there = 'it is a file' if folder.is_file() else there
        raise ValueError(f'{folder} is no workdir: {there}{nearest.hint(folder)}')
    found = config_module.flatten(json_files.read_object(path))
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in found.items()}
    known = config_module.flatten(config_module.default_config())
    for key in known.keys() & values.keys():
        try:
            config_module.check_value(key, values[key], known[key])
        except ValueError as error:
            raise ValueError(f'{path}: {error}') from None
    return known | values


def _scalars(path: pathlib.Path, notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Reads `metrics.jsonl`; a last line that is being written is none yet."""
    rows: dict[str, list[dict[str, Any]]] = {}
    lines = path.read_text(encoding='utf-8', errors='replace').split('\n')[:-1]
    broken = 0
    for line in lines:
        try:
            left: list[str] = []
            row = forms.fitting(json_files.loads(line), forms.SCALARS, left)
            row['step']
            rows.setdefault(row['split'], []).append(row)
            broken += bool(left)
        except (ValueError, KeyError, TypeError):
            broken += 1
    if broken:
        notes.append(f'metrics.jsonl: {broken} of {len(lines)} lines cannot be read, and are left out')
    return rows


def _examples(path: pathlib.Path, heads: int, several: bool, notes: list[str]) -> dict[str, list[Example]]:
    examples: dict[str, list[Example]] = {}
    unclear = 0
    with path.open(newline='', encoding='utf-8', errors='replace') as file:
        for row in csv.DictReader(file):
            try:
                example = _example(row, heads, several)
            except (ValueError, KeyError, TypeError, AttributeError):
                unclear += 1
                continue
            examples.setdefault(row['split'], []).append(example)
    if unclear:
        notes.append(f"predictions.csv: {unclear} rows cannot be told apart (class names with '|' or ' + ')")
    return examples


def _example(row: dict[str, str], heads: int, several: bool) -> Example:
    """Reads a row of `predictions.csv`; a ValueError where it cannot be told apart or has no probabilities."""
    parts = [_parts(row[column], heads) for column in ('label', 'top_5', 'scores')]
    decisions = [
        Decision(
            tuple(filter(None, label.split('|'))) if several else (label,),
            tuple(classes.split('|')),
            tuple(float(score) for score in scores.split('|')),
        )
        for label, classes, scores in zip(*parts, strict=True)
    ]
    index, name = int(row['index']), row['name']
    if len(decisions) != heads or not 0 <= index < forms.LARGEST or not isinstance(name, str):
        raise ValueError('another number of heads')
    for decision in decisions:
        if len(decision.classes) != len(decision.probabilities):
            raise ValueError('another number of classes')
        if not all(0 <= probability <= 1 + 1e-6 for probability in decision.probabilities):  # nor NaN
            raise ValueError('no probabilities')
    return Example(index, name, tuple(decisions))


def _parts(cell: str, heads: int) -> list[str]:
    return [cell] if heads == 1 else cell.split(' + ')


def _confusion(path: pathlib.Path) -> Confusion:
    with path.open(newline='', encoding='utf-8', errors='replace') as file:
        (_, *names), *rows = csv.reader(file)
    counts = np.array([row[1:] for row in rows], dtype=np.int64)
    if counts.shape != (len(names), len(names)):
        raise ValueError(f'{len(names)} classes do not go with counts of shape {counts.shape}')
    if counts.min(initial=0) < 0 or counts.max(initial=0) > forms.LARGEST / max(counts.size, 1):
        raise ValueError('it holds what are no counts of examples')
    return Confusion(tuple(names), counts)


def _scores(path: pathlib.Path, several: bool) -> Scores:
    kind = 'sigmoid' if several else 'softmax'
    with archives.Npz(path) as arrays:
        scores, targets = arrays['scores'], arrays['targets']
    if any(array.dtype.kind not in 'fiu' for array in (scores, targets)) or not np.isfinite(scores).all():
        raise ValueError('it holds what are no scores')
    if scores.ndim != 2 or scores.shape != targets.shape or not scores.size:
        raise ValueError(f'scores {scores.shape} and targets {targets.shape} do not go together')
    return probabilities(scores, kind), targets > 0.5


def _bad(path: pathlib.Path) -> list[tuple[str, ...]]:
    with path.open(newline='', encoding='utf-8', errors='replace') as file:
        rows = [tuple(row) for row in csv.reader(file)]
    return [row for row in rows if len(row) == len(BAD_COLUMNS) and row != BAD_COLUMNS]
