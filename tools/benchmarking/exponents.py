"""How a cost grows with a size: powers fitted to measurements, as a table and as small log-log pictures."""

import dataclasses
import itertools
import math
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from benchmarking import tables

COLOURS = ('#3b6ea8', '#d9822b', '#4c8c4a', '#a04a78', '#6b6b6b', '#8a6d3b')
MARKS = 'os^Dvx'
UNITS = {'s': 's', 'bytes': 'B'}  # of costs, beside their numbers


@dataclasses.dataclass(frozen=True)
class Fit:
    """A power law, cost = factor x size^exponent.

    Attributes:
        exponent: 1 where the cost is proportional to the size.
        factor: Cost at size 1, in the cost's unit.
        points: Measurements that it was fitted to.
        off: How far the worst of them is from it, as a share of the fitted cost.
    """

    exponent: float
    factor: float
    points: int
    off: float


def fit(sizes: Sequence[float], costs: Sequence[float]) -> Fit | None:
    """Fits a power law by least squares on the logarithms.

    Args:
        sizes: Above 0.
        costs: As many, above 0.

    Returns:
        The law; None where there are not two different sizes.

    Raises:
        ValueError: If a size or a cost is not a number above 0.
    """
    points = list(zip(sizes, costs, strict=True))
    for point in points:
        if not all(0 < value < math.inf for value in point):
            raise ValueError(f'size and cost {point}: a power can only be fitted to finite numbers above 0')
    if len({size for size, _ in points}) < 2:
        return None
    logs = np.log(np.array(points, float))
    exponent, constant = np.polyfit(logs[:, 0], logs[:, 1], 1).tolist()
    off = np.exp(np.abs(logs[:, 1] - exponent * logs[:, 0] - constant).max()) - 1
    return Fit(exponent, math.exp(constant), len(points), float(off))


@dataclasses.dataclass(frozen=True)
class Curve:
    """One cost of one contender over a size.

    Attributes:
        name: The contender.
        over: The size, as 'tokens'.
        cost: The cost with its unit, as 'train step, s'.
        sizes: Of each measurement.
        costs: Their costs.
        fit_from: The smallest size that the law has to go through.
    """

    name: str
    over: str
    cost: str
    sizes: tuple[float, ...]
    costs: tuple[float, ...]
    fit_from: float = 0.0

    def fit(self) -> Fit | None:
        """Returns the law that it follows, from `fit_from` on; None where there are not two sizes."""
        points = [point for point in zip(self.sizes, self.costs, strict=True) if point[0] >= self.fit_from]
        return fit([size for size, _ in points], [cost for _, cost in points])


def curves(
    rows: Iterable[dict[str, Any]], over: str, costs: dict[str, str], fit_from: float = 0.0
) -> list[Curve]:
    """Takes curves out of the rows of a report: of every contender by its `name`, of every cost that it has.

    Args:
        rows: With the keys `name`, `over` and, where it was measured, each cost (a number, or None).
        over: Key of the size.
        costs: What people call a cost, by its key.
        fit_from: See `Curve`.
    """
    rows = list(rows)
    found = []
    for key, title in costs.items():
        for name in dict.fromkeys(row['name'] for row in rows):
            points = [(row[over], row[key]) for row in rows if row['name'] == name and row.get(key)]
            if points:
                sizes, values = zip(*points, strict=True)
                found.append(Curve(name, over, title, sizes, values, fit_from))
    return found


def of_fits(found: Sequence[Curve]) -> Iterator[str]:
    """Writes the fitted powers as a table."""
    yield from tables.table('cost', 'of', 'grows as', 'measurements', 'worst is off by')
    for curve in found:
        law = curve.fit()
        if law is None:
            yield tables.line(curve.cost, curve.name, _why_none(curve), len(curve.sizes), '')
        else:
            power = f'{curve.over}^{law.exponent:.2f}'
            yield tables.line(curve.cost, curve.name, power, law.points, f'{law.off:.0%}')


def _why_none(curve: Curve) -> str:
    """Says why there is no law."""
    return f'fewer than two sizes from {curve.fit_from:g} on' if curve.fit_from else 'one size only'


def as_json(found: Sequence[Curve]) -> list[dict[str, Any]]:
    """Returns the fitted powers for a report."""
    return [
        {'name': curve.name, 'over': curve.over, 'cost': curve.cost}
        | (dataclasses.asdict(law) if (law := curve.fit()) else {'exponent': None})
        for curve in found
    ]


def draw(found: Sequence[Curve], title: str, path: str) -> None:
    """Draws small log-log pictures: a column for every size, a row for every cost, a line for every contender.

    Args:
        found: The curves; each legend says with which power a line grows.
        title: Above all.
        path: A file; its ending says of which kind.
    """
    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot

    columns, lines, names = (
        list(dict.fromkeys(getattr(curve, part) for curve in found)) for part in ('over', 'cost', 'name')
    )
    places = list(itertools.product(lines, columns))
    # Costs side by side where there is one size only.
    across = len(columns) if len(columns) > 1 else min(2, len(lines))
    down = math.ceil(len(places) / across)
    size = (1.2 + 3.4 * across, 0.9 + 2.9 * down)
    figure, axes = pyplot.subplots(down, across, figsize=size, layout='constrained', squeeze=False)
    for axis in axes.flat[len(places) :]:
        axis.set_visible(False)
    for axis, (cost, over) in zip(axes.flat, places, strict=False):
        here = [curve for curve in found if (curve.over, curve.cost) == (over, cost)]
        axis.set_visible(bool(here))
        for curve in here:
            _line(axis, curve, names.index(curve.name))
        if here:
            _label(axis, here)
    figure.suptitle(textwrap.fill(title, int(13 * size[0])), fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _line(axis: Any, curve: Curve, number: int) -> None:
    """Draws the measurements, and the fitted law through them."""
    colour, law = COLOURS[number % len(COLOURS)], curve.fit()
    label = curve.name if law is None else f'{curve.name}: {law.exponent:.2f}'
    axis.plot(
        curve.sizes,
        curve.costs,
        MARKS[number % len(MARKS)],
        color=colour,
        markersize=max(9 - 2 * number, 3),  # none is hidden by another in the same place
        label=label,
    )
    if law is not None:
        ends = np.array([max(curve.fit_from, min(curve.sizes)), max(curve.sizes)], float)
        axis.plot(ends, law.factor * ends**law.exponent, '-', color=colour, linewidth=1, alpha=0.7)


def _label(axis: Any, here: Sequence[Curve]) -> None:
    from matplotlib import ticker

    what, _, unit = here[0].cost.rpartition(', ')
    axis.set_xscale('log')
    axis.set_yscale('log')
    sizes = sorted({size for curve in here for size in curve.sizes})
    # Whole labels where the sizes are, as many as are legible.
    shown = sizes[:: math.ceil(len(sizes) / 5) or 1]
    axis.set_xticks(shown, [f'{size:g}' for size in shown], fontsize=8)
    axis.set_xticks([], minor=True)
    # At least a power of ten from bottom to top: noise is not to look like growth.
    low, high = axis.get_ylim()
    if high < 10 * low:
        middle = math.sqrt(low * high)
        axis.set_ylim(middle / math.sqrt(10), middle * math.sqrt(10))
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    axis.yaxis.set_major_formatter(ticker.EngFormatter(unit=UNITS[unit]))
    axis.yaxis.set_minor_formatter(ticker.NullFormatter())
    axis.tick_params(axis='y', labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[['top', 'right']].set_visible(False)
    axis.set_xlabel(here[0].over, fontsize=9)
    axis.set_ylabel(what, fontsize=9)
    axis.legend(frameon=False, fontsize=7, title='power', title_fontsize=7)
