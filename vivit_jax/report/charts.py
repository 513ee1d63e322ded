"""Charts as SVG within a page: drawn by matplotlib, with the page's own colours, which follow its theme.

matplotlib knows no CSS, so it draws in colours that stand for the page's (`#0100..`), which become variables
afterwards. Text stays text, in the page's typeface.
"""

import dataclasses
import io
import math
import re
from collections.abc import Sequence
from typing import Any

from vivit_jax.report.markup import Html, text
from vivit_jax.report.numbers import Bin, wilson
from vivit_jax.report.wording import SUPERSCRIPT

# A chart is about as wide as a phone, lest its text shrinks there; pixels, at 72 a matplotlib inch.
WIDTH, HEIGHT = 340, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 34
SERIES = 6  # colours; further series are dashed
MOST_POINTS = 300  # of a line; of more, neighbours are averaged
LOGARITHMIC = 30.0  # from this ratio of the largest value to the smallest, where an axis may be logarithmic

INK, MUTED, GRID = '#010001', '#010002', '#010003'
VARIABLES = {INK: '--ink', MUTED: '--muted', GRID: '--grid'} | {
    f'#0101{number:02x}': f'--series-{number}' for number in range(SERIES)
}


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        label: What it is of.
        points: (x, y), in the order of x.
        series: Which colour it has, from 0.
        marked: Whether it has a dot at each point.
    """

    label: str
    points: tuple[tuple[float, float], ...]
    series: int
    marked: bool = False


def thinned(line: Line) -> Line:
    """Returns a line of at most `MOST_POINTS` points: the means of so many neighbours each."""
    step = math.ceil(len(line.points) / MOST_POINTS)
    if step <= 1:
        return line
    groups = [line.points[first : first + step] for first in range(0, len(line.points), step)]
    means = tuple(
        (math.fsum(x for x, _ in group) / len(group), math.fsum(y for _, y in group) / len(group))
        for group in groups
    )
    return dataclasses.replace(line, points=means)


def lines(drawn: Sequence[Line], *, title: str, scale: str = 'linear', percent: bool = False) -> Html:
    """Draws lines over steps.

    Args:
        drawn: The lines; points that are not finite are left out.
        title: What they show, for those who do not see them.
        scale: Of the values: 'linear'; 'from_zero', so that small changes look small; or 'logarithmic' where they
            are positive and far apart.
        percent: Whether values are shares.
    """
    shown = [
        thinned(
            dataclasses.replace(line, points=tuple(point for point in line.points if math.isfinite(point[1])))
        )
        for line in drawn
    ]
    values = [y for line in shown for _, y in line.points]
    with _style():
        figure, axes = _figure()
        for number, line in enumerate(shown):
            xs, ys = [x for x, _ in line.points], [y for _, y in line.points]
            single = len(xs) == 1
            axes.plot(
                xs,
                ys,
                color=_colour(line.series),
                linewidth=1.6,
                linestyle=(0, (4, 2)) if line.series >= SERIES else '-',
                marker='o' if line.marked or single else '',
                markersize=4.5,
                gid=f'line-{number}',
                clip_on=False,
            )
        if scale == 'logarithmic' and values and min(values) > 0 and max(values) > LOGARITHMIC * min(values):
            axes.set_yscale('log')
            axes.yaxis.set_major_formatter(_power)
            axes.yaxis.set_minor_formatter('')
        elif percent:
            axes.yaxis.set_major_formatter(_percent)
        else:
            axes.yaxis.set_major_formatter(_plain)
        if scale == 'from_zero':
            axes.set_ylim(0, 1.08 * max([*values, 0.1 if percent else 1e-3]))
        axes.xaxis.set_major_locator(_ticks(6))
        axes.xaxis.set_major_formatter(_count)
        axes.set_xlabel('step')
        return _svg(figure, title)


def reliability(bins: Sequence[Bin], *, title: str, series: int = 0) -> Html:
    """Draws the accuracy of decisions over their confidence, and below how many have that confidence."""
    with _style():
        figure, axes = _figure(height=280, bottom=96)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), gid='diagonal')
        for part in bins:
            low, high = wilson(part.accuracy, part.count)
            axes.plot([part.confidence] * 2, [low, high], color=_colour(series), linewidth=1.2, alpha=0.55)
        axes.plot(
            [part.confidence for part in bins],
            [part.accuracy for part in bins],
            'o',
            color=_colour(series),
            markersize=5,
            gid='bins',
            clip_on=False,
        )
        _shares(axes)
        axes.set_ylabel('accuracy')
        axes.tick_params(labelbottom=False)
        below = figure.add_axes(_box(280, LEFT, RIGHT, 280 - 96 + 18, 34))
        total = sum(part.count for part in bins)
        below.bar(
            [part.confidence for part in bins],
            [part.count / total for part in bins],
            width=0.022,
            color=_colour(series),
        )
        _dress(below)
        below.set_xlim(-0.02, 1.02)
        below.set_ylim(0, 1)
        below.set_yticks([0, 1], ['0 %', '100 %'])
        below.set_xticks([0, 0.25, 0.5, 0.75, 1], ['0 %', '25 %', '50 %', '75 %', '100 %'])
        below.set_xlabel('confidence (bars: share of the decisions)')
        return _svg(figure, title)


def _shares(axes: Any) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    places = [0, 0.25, 0.5, 0.75, 1]
    axes.set_yticks(places, [f'{place:.0%}'.replace('%', ' %') for place in places])
    axes.set_xticks(places)


def _style() -> Any:
    """What makes matplotlib's SVG the same each time, its text text."""
    import matplotlib as mpl

    return mpl.rc_context(
        {'svg.fonttype': 'none', 'svg.hashsalt': 'vivit_jax', 'font.family': 'DejaVu Sans', 'font.size': 10}
    )


def _figure(height: int = HEIGHT, bottom: int = BOTTOM) -> tuple[Any, Any]:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
    FigureCanvasSVG(figure)
    figure.patch.set_visible(False)
    axes = figure.add_axes(_box(height, LEFT, RIGHT, TOP, bottom))
    _dress(axes)
    return figure, axes


def _box(height: int, left: int, right: int, top: int, bottom: int) -> tuple[float, float, float, float]:
    """Margins in pixels as matplotlib's (left, bottom, width, height) in shares of the figure."""
    return left / WIDTH, bottom / height, (WIDTH - left - right) / WIDTH, (height - top - bottom) / height


def _dress(axes: Any) -> None:
    axes.patch.set_visible(False)
    axes.grid(axis='y', color=GRID, linewidth=1)
    axes.set_axisbelow(True)
    axes.tick_params(which='both', length=0, labelcolor=MUTED, pad=5)
    axes.tick_params(which='minor', length=0)
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    for side in ('top', 'right', 'left'):
        axes.spines[side].set_visible(False)
    axes.spines['bottom'].set_color(MUTED)
    axes.margins(x=0.02, y=0.08)


def _colour(series: int) -> str:
    return f'#0101{series % SERIES:02x}'


def _ticks(number: int) -> Any:
    from matplotlib.ticker import MaxNLocator

    # One is enough: around a single step there are no others.
    return MaxNLocator(number, integer=True, min_n_ticks=1)


def _count(value: float, place: int | None = None) -> str:
    """Writes a number of steps: 500, 1.5k, 2M."""
    for size, letter in ((1e6, 'M'), (1e3, 'k')):
        if abs(value) >= size:
            return f'{value / size:g}{letter}'
    return f'{value:g}'


def _plain(value: float, place: int | None = None) -> str:
    """Writes a number in few characters: 0.15, 300, 1.2×10⁻⁵."""
    if value == 0 or 1e-4 <= abs(value) < 1e4:
        return f'{value:.4g}'
    digits, _, power = f'{value:.2e}'.partition('e')
    digits = digits.rstrip('0').rstrip('.')
    return f'{digits}×10{str(int(power)).translate(SUPERSCRIPT)}'


def _percent(value: float, place: int | None = None) -> str:
    return f'{100 * value:g} %'


def _power(value: float, place: int | None = None) -> str:
    """Writes a power of ten."""
    return (
        f'{value:g}' if 1e-2 <= value <= 1e3 else f'10{str(round(math.log10(value))).translate(SUPERSCRIPT)}'
    )


def _svg(figure: Any, title: str) -> Html:
    """Returns the figure as an element that takes its colours and typeface from the page."""
    file = io.StringIO()
    figure.savefig(file, format='svg', metadata={'Date': None, 'Creator': None, 'Format': None, 'Type': None})
    drawn = file.getvalue()
    drawn = drawn[drawn.index('<svg') :]
    drawn = re.sub(r'<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->', '', drawn, flags=re.DOTALL)
    drawn = drawn.replace("font-family: 'DejaVu Sans'; ", '')
    drawn = re.sub(r'<g id="(?!line|bins|diagonal)[^"]*"(/?)>', r'<g\1>', drawn)
    drawn = re.sub(r'<g/>\s*', '', drawn)
    drawn = re.sub(r'<g>\s*</g>\s*', '', drawn)
    for colour, variable in VARIABLES.items():
        drawn = drawn.replace(colour, f'var({variable})')
    size = re.search(r'viewBox="([^"]*)"', drawn)
    assert size is not None
    start = f'<svg class="chart" role="img" viewBox="{size[1]}"><title>{text(title)}</title>'
    body = re.sub(r'^<svg[^>]*>', '', drawn)
    return Html(start + re.sub(r'\n\s*', '\n', body).strip())
