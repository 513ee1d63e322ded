"""The section on how training went: curves over steps, several runs in one picture."""

import math
from collections.abc import Sequence
from typing import Any

from vivit_jax.report import charts, wording
from vivit_jax.report.charts import Line
from vivit_jax.report.markup import Cell, Html, details, join, paragraph, table, tag
from vivit_jax.report.reading import Run

MOST_ROWS = 200  # of a table of numbers


def section(runs: Sequence[Run]) -> list[Html]:
    """Returns the curves, a legend for all of them, and the numbers they show."""
    if not any(run.scalars for run in runs):
        return [paragraph('Nothing has been logged yet: metrics.jsonl is not there or empty.')]
    drawn = [figure for figure in (_figure(runs, *chart) for chart in _charts(runs)) if figure is not None]
    return [
        _legend(runs),
        tag('div', *drawn, class_='charts'),
        *(_numbers(run, len(runs) > 1) for run in runs),
    ]


def _charts(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """Returns (scalar, title, scale of its values) of the charts, in order."""
    heads = tuple(dict.fromkeys(head for run in runs for head in run.heads))
    accuracies = dict.fromkeys(run.main_metric for run in runs)
    for run in runs:
        if len(run.heads) > 1:
            accuracies |= dict.fromkeys(f'{head}_top_1' for head in run.heads)
        elif not run.several_labels:
            accuracies |= dict.fromkeys(['top_1'])
    return [
        ('loss', 'Loss', 'logarithmic'),
        *((name, _capital(wording.metric(name, heads)), 'linear') for name in accuracies),
        ('learning_rate', 'Learning rate', 'linear'),
        ('grad_norm', 'Gradient norm, before clipping', 'logarithmic'),
        ('update_ratio', 'Update over parameters, norms', 'logarithmic'),
        ('clips_per_second', 'Throughput, clips a second', 'from_zero'),
        ('data_wait', 'Share of the time spent waiting for data', 'from_zero'),
    ]


def curves(runs: Sequence[Run], scalar: str) -> list[Line]:
    """Returns what there is of a scalar: a line for each run and split that has it."""
    several = len(runs) > 1
    found = []
    for number, run in enumerate(runs):
        for split in sorted(run.scalars, key=lambda split: (split != 'train', split)):
            points = tuple(
                (float(row['step']), float(row[scalar]))
                for row in run.scalars[split]
                if isinstance(row.get(scalar), int | float)
            )
            if points:
                label = f'{run.label}, {split}' if several else split
                # Training is what a run has of its own colour; a single run has a second one for validation.
                series = number if several else int(split != 'train')
                found.append(Line(label, points, series, marked=split != 'train'))
    return found


def _figure(runs: Sequence[Run], scalar: str, title: str, scale: str) -> Html | None:
    drawn = curves(runs, scalar)
    if not any(math.isfinite(y) for line in drawn for _, y in line.points):
        return None
    heads = tuple(dict.fromkeys(head for run in runs for head in run.heads))
    shares = wording.is_share(scalar, heads) or scalar == 'data_wait'
    last = join(
        (
            tag(
                'span',
                f'{line.label} ',
                tag('b', _value(line.points[-1][1], shares)),
                class_=f'series-{line.series % 6}',
            )
            for line in drawn
        ),
        ' · ',
    )
    spoken = '; '.join(_spoken(line, shares) for line in drawn)
    picture = charts.lines(drawn, title=f'{title}. {spoken}', scale=scale, percent=shares)
    caption = tag('figcaption', tag('strong', title), tag('span', 'at the end: ', last, class_='last'))
    return tag('figure', caption, picture)


def _spoken(line: Line, shares: bool) -> str:
    """Says a line in words, for those who do not see it."""
    (first, start), (last, end) = line.points[0], line.points[-1]
    return f'{line.label}: {_value(start, shares)} at step {first:,.0f}, {_value(end, shares)} at step {last:,.0f}'


def _value(number: float, share: bool) -> str:
    return wording.percent(number) if share else wording.short(number)


def _legend(runs: Sequence[Run]) -> Html:
    """Returns what tells lines apart."""
    splits = sorted(
        {split for run in runs for split in run.scalars}, key=lambda split: (split != 'train', split)
    )
    if len(runs) == 1:
        items = [_key(split, int(split != 'train'), split != 'train') for split in splits]
    else:
        items = [_key(run.label, number, False) for number, run in enumerate(runs)]
        items += [tag('li', 'line: train'), tag('li', 'line with dots: validation')]
    return tag('ul', *items, class_='legend')


def _key(label: str, series: int, marked: bool) -> Html:
    dashes = '5 3' if series >= charts.SERIES else None
    parts = [tag('line', x1=0, y1=6, x2=26, y2=6, stroke_dasharray=dashes)]
    if marked:
        parts.append(tag('circle', cx=13, cy=6, r=3.5))
    sample = tag(
        'svg', *parts, class_=f'key series-{series % charts.SERIES}', viewBox='0 0 26 12', aria_hidden='true'
    )
    return tag('li', sample, label)


def _numbers(run: Run, several: bool) -> Html:
    """Returns the rows of `metrics.jsonl`, of many every so manieth."""
    tables = []
    for split, rows in run.scalars.items():
        names = list(dict.fromkeys(name for row in rows for name in row if name not in ('step', 'split')))
        step = math.ceil(len(rows) / MOST_ROWS)
        chosen = rows[::-step][::-1]
        cells = [[row['step'], *(_cell(row.get(name)) for name in names)] for row in chosen]
        every = f', every {step}th row of {len(rows):,}' if step > 1 else ''
        tables += [
            tag('h4', f'{split}{every}'),
            table(['step', *(name.replace('_', ' ') for name in names)], cells),
        ]
    return details(
        f'Numbers of {run.label}' if several else 'Numbers behind the curves', *tables, kind='numbers'
    )


def _cell(number: Any) -> Cell:
    return Cell('' if number is None else wording.short(number), None, 'number')


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
