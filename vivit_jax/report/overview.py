"""The head of a report and the sections on results: what came out, and how sure that is."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vivit_jax.report import wording
from vivit_jax.report.charts import SERIES
from vivit_jax.report.intervals import FEWEST_DRAWS, Estimate
from vivit_jax.report.markup import Cell, Content, Html, Row, join, paragraph, table, tag
from vivit_jax.report.numbers import DRAWS, Interval
from vivit_jax.report.reading import Run

Estimates = Mapping[str, Mapping[str, Estimate]]  # by split, then by metric
STATES = {
    'done': 'finished',
    'stopped': 'stopped before its end',
    'failed': 'failed',
    'running': 'not finished',
}


def first_split(runs: Sequence[Run]) -> str:
    """Returns the split that the runs are judged by: the first test split that they were evaluated on."""
    splits = [split for run in runs for split in (*run.config['data.test_splits'], *run.results)]
    return next((split for split in splits if any(split in run.results for run in runs)), '')


def headline(run: Run, found: Estimates, split: str) -> list[Html]:
    """Returns a run's name, and its result in one large number."""
    name = tag('h1', run.config['name'])
    where = tag('p', tag('code', str(run.folder)), ' · ', _state(run), class_='where')
    if split not in found:
        return [name, where, *_so_far(run)]
    metric = run.main_metric if run.main_metric in found[split] else next(iter(found[split]), '')
    if not metric:
        return [name, where]
    estimate, count = found[split][metric], run.results[split].get('count')
    parts: list[Content] = [f'{_capital(wording.metric(metric, run.heads))} on {split}']
    if estimate.interval:
        parts.append(f'95 % interval {wording.interval(metric, estimate.interval, run.heads)}')
    if count:
        parts.append(f'{int(count):,} examples')
    if (baseline := _baseline(run, split)) is not None and wording.is_share(metric, run.heads):
        parts.append(f'naming the most frequent class gives {wording.percent(baseline)}')
    if metric == 'auc':
        parts.append('0.5 is chance')
    result = tag('p', wording.value(metric, estimate.value, run.heads), class_='result')
    return [name, where, result, tag('p', join(parts, ' · '), class_='meaning')]


def _state(run: Run) -> str:
    """Says how far a run has come."""
    total = run.total_steps
    told = f'step {run.step:,}' + (f' of {total:,}' if total else '')
    when = wording.moment(run.facts['ended']) if run.facts and run.facts.get('ended') else ''
    state = STATES.get(run.state, run.state)
    if run.state == 'done' and total == run.step:
        told = f'{total:,} steps'
    return ', '.join(filter(None, (f'{state} {when}'.strip(), told)))


def _so_far(run: Run) -> list[Html]:
    """Returns the last validation of a run without an evaluation."""
    rows = run.scalars.get('validation', [])
    metric = run.main_metric
    if not rows or metric not in rows[-1]:
        return [
            paragraph('No result yet: the test splits are evaluated when training is over.', kind='meaning')
        ]
    last = rows[-1]
    words = f'{_capital(wording.metric(metric, run.heads))} on validation at step {last["step"]:,}, so far'
    return [
        tag('p', wording.value(metric, last[metric], run.heads), class_='result'),
        paragraph(words, kind='meaning'),
    ]


def _baseline(run: Run, split: str) -> float | None:
    """Returns the accuracy of naming whatever is most frequent in a split."""
    found = run.results[split].get('per_class')
    if not isinstance(found, dict) or run.several_labels:
        return None
    examples = [values.get('examples', 0) for values in found.values()]
    return max(examples) / sum(examples) if sum(examples) else None


def key_figures(run: Run) -> Html:
    """Returns what a run was in a row of figures."""
    facts = run.facts or {}
    train = run.scalars.get('train', [])
    epoch = train[-1].get('epoch') if train else None
    figures: list[tuple[str, str]] = [('steps', f'{run.step:,}')]
    if epoch:
        figures.append(('epochs', wording.short(round(float(epoch), 2))))
    if facts.get('parameters'):
        figures.append(('parameters', wording.large(facts['parameters'])))
    if facts.get('multiply_adds_per_clip'):
        figures.append(('multiply-adds a clip', wording.large(facts['multiply_adds_per_clip'])))
    if facts.get('train_seconds'):
        figures.append(('training', wording.seconds(facts['train_seconds'])))
    if (rate := speed(run)) is not None:
        figures.append(('clips a second', f'{rate:.3g}'))
    if facts.get('mfu') is not None:
        figures.append(('of the devices’ peak (MFU)', wording.percent(facts['mfu'])))
    if facts.get('peak_memory_bytes'):
        figures.append(('peak memory', wording.memory(facts['peak_memory_bytes'])))
    if (waited := waiting(run)) is not None:
        figures.append(('waiting for data', wording.percent(waited)))
    pairs = (tag('div', tag('dt', name), tag('dd', value)) for name, value in figures)
    return tag('dl', *pairs, class_='figures')


def speed(run: Run) -> float | None:
    """Returns clips a second over the training: as the run tells, else the mean of what it logged."""
    return _over_training(run, 'clips_per_second')


def waiting(run: Run) -> float | None:
    """Returns the share of the training that the devices waited for data."""
    return _over_training(run, 'data_wait')


def _over_training(run: Run, name: str) -> float | None:
    if run.facts is not None and isinstance(run.facts.get(name), int | float):
        return float(run.facts[name])
    values = [row[name] for row in run.scalars.get('train', []) if isinstance(row.get(name), int | float)]
    return math.fsum(values) / len(values) if values else None


def several(runs: Sequence[Run], found: Sequence[Estimates]) -> list[Html]:
    """Returns the head of a report on several runs: a row for each, the best first, those without a result last."""
    rows: list[tuple[float, Row]] = []
    for number, (run, estimates) in enumerate(zip(runs, found, strict=True)):
        split, name, facts = first_split([run]), run.main_metric, run.facts or {}
        estimate = estimates.get(split, {}).get(name)
        validated = run.scalars.get('validation', [])
        if estimate is None and validated and isinstance(validated[-1].get(name), int | float):
            split, estimate = 'validation, so far', Estimate(float(validated[-1][name]), None, '')
        value = estimate.value if estimate else -1.0
        rate = speed(run)
        cells: Row = [
            join([tag('span', class_=f'swatch series-{number % SERIES}'), run.label]),
            Cell(_measured(name, estimate, run), value, 'number'),
            whisker(estimate, number),
            f'{wording.metric(name, run.heads)} on {split}' if estimate else 'no result yet',
            _state(run),
            Cell(wording.large(facts['parameters']) if facts.get('parameters') else '–', None, 'number'),
            Cell(
                wording.seconds(facts['train_seconds']) if facts.get('train_seconds') else '–', None, 'number'
            ),
            Cell('–' if rate is None else f'{rate:.3g}', None, 'number'),
        ]
        rows.append((value, cells))
    rows.sort(key=lambda row: -row[0])
    titles = ['run', 'result', '0 to 100 %', 'what', 'state', 'parameters', 'training', 'clips a second']
    return [
        tag('h1', f'{len(runs)} runs side by side'),
        table(titles, [cells for _, cells in rows], kind='runs'),
    ]


def whisker(estimate: Estimate | None, series: int = 0) -> Html:
    """Returns a value between 0 and 1 and its interval as a dot on a line."""
    if estimate is None or not 0 <= estimate.value <= 1:
        return Html('')
    low, high = estimate.interval or (estimate.value, estimate.value)
    parts = [
        tag('line', x1=0, y1=8, x2=100, y2=8, class_='axis'),
        tag('line', x1=f'{100 * low:.2f}', y1=8, x2=f'{100 * high:.2f}', y2=8, class_='range'),
        tag('circle', cx=f'{100 * estimate.value:.2f}', cy=8, r=3.5),
    ]
    return tag(
        'svg', *parts, class_=f'whisker series-{series % SERIES}', viewBox='-4 0 108 16', aria_hidden='true'
    )


def _measured(name: str, estimate: Estimate | None, run: Run) -> Content:
    if estimate is None:
        return '–'
    return _with_interval(name, estimate.value, estimate.interval, run.heads)


def _with_interval(name: str, value: float, bounds: Interval | None, heads: tuple[str, ...]) -> Html:
    told = tag('b', wording.value(name, value, heads))
    return join([told, tag('small', wording.interval(name, bounds, heads))] if bounds else [told])


def results(runs: Sequence[Run], found: Sequence[Estimates]) -> list[Html]:
    """Returns the metrics with their intervals: of a single run a column a split, of several a table a split."""
    splits = list(dict.fromkeys(split for estimates in found for split in estimates))
    if not splits:
        return [paragraph('Not evaluated yet.')]
    parts: list[Html] = []
    if len(runs) == 1:
        columns = [(split, runs[0], found[0][split]) for split in splits]
        parts.append(_metrics(columns))
    else:
        for split in splits:
            columns = [
                (run.label, run, estimates[split])
                for run, estimates in zip(runs, found, strict=True)
                if split in estimates
            ]
            parts += [tag('h4', split), _metrics(columns, split)]
    return [*parts, *_explained(runs, found)]


def _metrics(columns: Sequence[tuple[str, Run, Mapping[str, Estimate]]], split: str = '') -> Html:
    names = list(dict.fromkeys(name for _, _, metrics in columns for name in metrics))
    heads = tuple(dict.fromkeys(head for _, run, _ in columns for head in run.heads))
    rows: list[Row] = []
    for name in names:
        cells = [Cell(_measured(name, metrics.get(name), run), None, 'number') for _, run, metrics in columns]
        rows.append([_capital(wording.metric(name, heads)), *cells])
    for name, title in (
        ('count', 'Examples'),
        ('left_out', 'Left out as bad'),
        ('unreadable', 'Could not be read'),
    ):
        values = [run.results[split or label].get(name) for label, run, _ in columns]
        if any(value is not None for value in values):
            rows.append(
                [title, *(Cell('–' if value is None else f'{value:,}', None, 'number') for value in values)]
            )
    views = [run.results[split or label].get('views') or [] for label, run, _ in columns]
    if any(views):
        told = (Cell(' × '.join(map(str, each)), None, 'number') for each in views)
        rows.append(['Views of each (time × space)', *told])
    trained = [run.config['model.dtype'] for _, run, _ in columns]
    types = [run.results[split or label].get('dtype', run.config['model.dtype']) for label, run, _ in columns]
    if types != trained:
        rows.append(['Computed in', *(Cell(dtype, None, 'number') for dtype in types)])
    return table(['', *(label for label, _, _ in columns)], rows, kind='metrics')


def _explained(runs: Sequence[Run], found: Sequence[Estimates]) -> list[Html]:
    """Says where the intervals come from, and which metrics have none."""
    names: dict[str, dict[str, None]] = {'Wilson': {}, 'bootstrap': {}, '': {}}
    for run, estimates in zip(runs, found, strict=True):
        for metrics in estimates.values():
            for name, estimate in metrics.items():
                # Heads have the same metrics, which are told once.
                told = wording.metric(name, run.heads).rpartition(': ')[2]
                names[estimate.how][told] = None
    of = {how: ', '.join(told) for how, told in names.items() if told}
    lines = [
        'An interval tells what another test set of this size might give, not another seed of the training.'
    ]
    if 'Wilson' in of:
        lines.append(f'{_capital(of["Wilson"])}: Wilson’s score interval of a share of examples.')
    if 'bootstrap' in of:
        lines.append(
            f'{_capital(of["bootstrap"])}: the middle 95 % of {DRAWS:,} draws of the examples, with replacement '
            f'(bootstrap; {FEWEST_DRAWS} draws where examples and classes are many).'
        )
    if '' in of:
        lines.append(f'Without an interval: {of[""]}.')
    return [tag('p', ' '.join(lines), class_='small')]


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def bad_files(run: Run) -> list[Html]:
    """Returns the examples that were left out or replaced, with their causes."""
    most = 200
    rows = [[name, split, cause, found] for split, name, cause, found in run.bad[:most]]
    more = [paragraph(f'{len(run.bad) - most:,} more are in bad_files.csv.')] if len(run.bad) > most else []
    return [table(['example', 'split', 'cause', 'found'], rows, sortable=True), *more]


def conversion(run: Run) -> list[Html]:
    """Returns what happened to the weights that a run started from."""
    account: dict[str, Any] = run.conversion or {}
    parts = [paragraph(account.get('summary', ''))]
    counts: dict[tuple[str, str], list[str]] = {}
    for name, change in account.get('parameters', {}).items():
        counts.setdefault((change.get('action', ''), change.get('note', '')), []).append(name)
    rows: list[Row] = [
        [action, Cell(f'{len(names):,}', len(names), 'number'), note, _some(names)]
        for (action, note), names in counts.items()
    ]
    if rows:
        parts.append(table(['what was done', 'arrays', 'how', 'which'], rows, sortable=True))
    unused: dict[str, list[str]] = {}
    for name, left in account.get('unused', {}).items():
        unused.setdefault(left.get('reason', ''), []).append(name)
    if unused:
        left_out: list[Row] = [
            [reason, Cell(f'{len(names):,}', len(names), 'number'), _some(names)]
            for reason, names in unused.items()
        ]
        parts += [tag('h4', 'Of the file, left unused'), table(['why', 'arrays', 'which'], left_out)]
    parts += [paragraph(note) for note in account.get('notes', [])]
    return [
        *parts,
        paragraph('Array by array: ', tag('code', str(run.folder / 'conversion.json')), kind='small'),
    ]


def _some(names: Sequence[str], most: int = 4) -> str:
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '')
