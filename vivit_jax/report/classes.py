"""The sections on classes: what was taken for what, how well each was recognised, and how far to trust confidence."""

import base64
import math
from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np

from vivit_jax.report import charts, numbers, wording
from vivit_jax.report.intervals import confidences
from vivit_jax.report.markup import Cell, Content, Html, Row, details, paragraph, table, tag
from vivit_jax.report.reading import Confusion, Run

MOST_IN_MATRIX = 24  # classes; of more there is a picture, and a table of the most frequent confusions
MOST_CONFUSIONS = 25
FIRST = ('examples', 'accuracy', 'average_precision')  # of the columns of a table of classes
DENSITY = 400  # pixels of the picture, at least
INK = (0, 114, 178)  # of the picture, which shows on light and dark


def confusions(run: Run, split: str) -> list[Html]:
    """Returns what was taken for what, for each head."""
    found = run.confusions.get(split, {})
    if not found:
        why = (
            'an example may have several labels, so that none is taken for another'
            if run.several_labels
            else 'there is no confusion matrix of this split'
        )
        return [paragraph(f'Nothing to show: {why}.')]
    parts: list[Html] = []
    for head, confusion in found.items():
        if head:
            parts.append(tag('h4', head))
        if len(confusion.names) <= MOST_IN_MATRIX:
            parts.append(matrix(confusion))
        else:
            parts += [density(confusion), *_pairs(confusion)]
    return parts


def matrix(confusion: Confusion) -> Html:
    """Returns counts as a table, shaded by the share of their row."""
    totals = confusion.counts.sum(axis=1)
    rows: list[Row] = []
    for row, name in enumerate(confusion.names):
        cells: list[Cell | Content] = [name]
        for column, count in enumerate(confusion.counts[row].tolist()):
            share = count / totals[row] if totals[row] else 0.0
            kind = f'{"hit" if row == column else "miss"} shade-{_shade(share)}' if count else 'none'
            cells.append(Cell(f'{count:,}' if count else '·', count, kind))
        cells.append(Cell(f'{totals[row]:,}', None, 'number total'))
        rows.append(cells)
    titles: list[Content] = [
        'class',
        *(tag('span', name, class_='upright', title=name) for name in confusion.names),
        'examples',
    ]
    return table(titles, rows, kind='matrix')


def _shade(share: float) -> int:
    """Returns a step from 1 to 10; what is there at all is seen."""
    return max(1, round(10 * share))


def density(confusion: Confusion) -> Html:
    """Returns a picture of a large matrix: the darker a dot, the larger the share of its row."""
    counts = confusion.counts
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(counts)
    scale = -(-DENSITY // size)
    opacity = np.kron(np.sqrt(shares) * 255, np.ones((scale, scale))).round().astype(np.uint8)
    pixels = np.empty((*opacity.shape, 4), np.uint8)
    pixels[..., :3], pixels[..., 3] = INK[::-1], opacity
    done, data = cv2.imencode('.png', pixels, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert done
    right = int(np.trace(counts))
    words = f'{size} by {size} classes, {right:,} of {int(counts.sum()):,} examples on the diagonal'
    picture = tag(
        'img', src=data_uri(data.tobytes(), 'png'), alt=f'Confusion matrix of {words}', class_='density'
    )
    caption = f'Rows are true classes, columns predicted ones, from the top left: {words}. Off it are errors.'
    return tag('figure', picture, tag('figcaption', caption), class_='picture')


def data_uri(data: bytes, kind: str) -> str:
    """Returns an image that is in the page itself."""
    return f'data:image/{kind};base64,{base64.b64encode(data).decode()}'


def most_confused(confusion: Confusion, most: int = MOST_CONFUSIONS) -> list[tuple[str, str, int, float]]:
    """Returns (true class, taken for, how often, share of the true class's examples), the most frequent first."""
    counts = confusion.counts.copy()
    totals = counts.sum(axis=1)
    np.fill_diagonal(counts, 0)
    order = np.argsort(-counts, axis=None, kind='stable')[:most]
    found = []
    for row, column in zip(*np.unravel_index(order, counts.shape), strict=True):
        if count := int(counts[row, column]):
            found.append((confusion.names[row], confusion.names[column], count, count / int(totals[row])))
    return found


def _pairs(confusion: Confusion) -> list[Html]:
    found = most_confused(confusion)
    if not found:
        return [paragraph('Nothing was taken for anything else.')]
    rows: list[Row] = [
        [true, other, Cell(f'{count:,}', count, 'number'), Cell(wording.percent(share), share, 'number')]
        for true, other, count, share in found
    ]
    titles = ['true class', 'taken for', 'examples', 'share of the class']
    return [tag('h4', 'Most frequent confusions'), table(titles, rows, sortable=True)]


def per_class(runs: Sequence[Run], split: str) -> list[Html]:
    """Returns a table of the classes for each head; several runs have a column each."""
    if len(runs) > 1:
        return _side_by_side(runs, split)
    run, parts = runs[0], []
    for key, found in _class_tables(run, split):
        if key != 'per_class' and key.endswith('_per_class'):
            parts.append(tag('h4', key.removesuffix('_per_class')))
        parts.append(_classes(run, split, key, found))
    return parts or [paragraph('Not evaluated yet.')]


def _class_tables(run: Run, split: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yields what `eval.json` tells of classes: a table for each head."""
    results = run.results.get(split, {})
    if isinstance(found := results.get('average_precision'), dict):
        kept = results.get('per_class', {})
        yield (
            'average_precision',
            {name: {'average_precision': value, **kept.get(name, {})} for name, value in found.items()},
        )
        return
    for key, found in results.items():
        if key.endswith('per_class') and isinstance(found, dict):
            yield key, found


def _classes(run: Run, split: str, key: str, found: dict[str, dict[str, Any]]) -> Html:
    confusion = run.confusions.get(split, {}).get(key.removesuffix('per_class').removesuffix('_'))
    taken: dict[str, tuple[str, int]] = {}
    if confusion is not None:
        for true, other, count, _ in most_confused(confusion, confusion.counts.size):
            taken.setdefault(true, (other, count))
    columns = list(dict.fromkeys(name for values in found.values() for name in values))
    if 'accuracy' in columns and 'recall' in columns:
        columns.remove('recall')  # another word for it
    columns.sort(key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
    rows: list[Row] = []
    for name, values in found.items():
        cells: list[Cell | Content] = [name]
        for column in columns:
            cells.append(_number(column, values.get(column)))
            if column == 'accuracy':
                cells.append(_interval(values))
        if confusion is not None:
            other, count = taken.get(name, ('', 0))
            cells.append(Cell(f'{other} ({count:,})' if count else '', count))
        rows.append(cells)
    titles: list[Content] = ['class']
    for column in columns:
        titles += [column.replace('_', ' ')] + (['95 % interval'] if column == 'accuracy' else [])
    return table(titles + (['most often taken for'] if confusion is not None else []), rows, sortable=True)


def _number(column: str, value: Any) -> Cell:
    if value is None:
        return Cell('–', -1, 'number')
    counts = isinstance(value, int)
    return Cell(f'{value:,}' if counts else wording.value(column, value), value, 'number')


def _interval(values: dict[str, Any]) -> Cell:
    count = int(values.get('examples', 0))
    if not count or not math.isfinite(values.get('accuracy', math.nan)):
        return Cell('–', -1, 'number')
    bounds = numbers.wilson(min(max(values['accuracy'], 0.0), 1.0), count)
    return Cell(wording.interval('accuracy', bounds), bounds[0], 'number')


def _side_by_side(runs: Sequence[Run], split: str) -> list[Html]:
    """Returns the accuracy (or average precision) of each class, a column for each run."""
    tables: dict[str, dict[int, dict[str, Any]]] = {}
    for number, run in enumerate(runs):
        for key, found in _class_tables(run, split):
            tables.setdefault(key, {})[number] = found
    parts: list[Html] = []
    for key, by_run in tables.items():
        what = 'average_precision' if key == 'average_precision' else 'accuracy'
        titles = [
            'class',
            'examples',
            *(f'{what.replace("_", " ")}, {runs[number].label}' for number in by_run),
        ]
        rows: list[Row] = []
        for name in dict.fromkeys(name for found in by_run.values() for name in found):
            values = [found.get(name, {}) for found in by_run.values()]
            examples = next((each['examples'] for each in values if 'examples' in each), None)
            cells = [_number(what, each.get(what)) for each in values]
            rows.append([name, _number('examples', examples), *cells])
        if key.endswith('_per_class'):
            parts.append(tag('h4', key.removesuffix('_per_class')))
        parts.append(table(titles, rows, sortable=True))
    return parts or [paragraph('Not evaluated yet.')]


def calibration(runs: Sequence[Run], split: str) -> list[Html]:
    """Returns a reliability diagram for each run and head."""
    figures = []
    for number, run in enumerate(runs):
        for place, head in enumerate(run.heads):
            confidence, right = confidences(run, split, place)
            if len(confidence):
                names = (run.label if len(runs) > 1 else '', head if len(run.heads) > 1 else '')
                of = ', '.join(filter(None, names)) or split
                figures.append(_reliability(confidence, right, of, number))
    if not figures:
        return [paragraph('There are no predictions of this split yet.')]
    return [tag('div', *figures, class_='charts')]


def _reliability(confidence: np.ndarray, right: np.ndarray, of: str, series: int) -> Html:
    """Returns a diagram, what it amounts to, and its numbers."""
    bins, error = numbers.calibration(confidence, right)
    sure, accuracy = float(np.mean(confidence)), float(np.mean(right))
    leaning = 100 * (sure - accuracy)
    told = (
        'calibration error ',
        tag('b', wording.percent(error)),
        f'; mean confidence {wording.percent(sure)}, accuracy {wording.percent(accuracy)}: '
        f'{"over" if leaning > 0 else "under"}confident by {abs(leaning):.1f} points',
    )
    title = tag('strong', f'{of}, {len(right):,} decisions')
    picture = charts.reliability(
        bins, title=f'Reliability diagram, {of}: calibration error {wording.percent(error)}', series=series
    )
    rows = [
        [
            Cell(wording.percent(part.confidence), part.confidence, 'number'),
            Cell(wording.percent(part.accuracy), part.accuracy, 'number'),
            Cell(f'{part.count:,}', part.count, 'number'),
        ]
        for part in bins
    ]
    behind = details('Numbers', table(['mean confidence', 'accuracy', 'decisions'], rows), kind='numbers')
    return tag('figure', tag('figcaption', title, tag('span', *told, class_='last')), picture, behind)
