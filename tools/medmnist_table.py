"""Puts runs on MedMNIST 3D beside the official results: a table in Markdown, and a picture.

Runs of the same experiment and set that differ in the seed only become mean and standard deviation. The official
results are those on volumes of 28 voxels (Yang et al. 2023); runs at 64 have a table of their own. Accuracy says
little where one class is frequent: the majority class is the line to beat, the AUC what to judge by.

examples:
  python tools/medmnist_table.py runs/medmnist3d_adrenal* runs/medmnist3d_fracture* --output=runs/medmnist
"""

import dataclasses
import json
import pathlib
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from vivit_jax import config as config_module
from vivit_jax import help_text, paths
from vivit_jax.telling.printable import printable

SETS = ('organ', 'nodule', 'fracture', 'adrenal', 'vessel', 'synapse')
# AUC and accuracy on the test splits, in the order of SETS.
OFFICIAL = {
    'ResNet-18 + 2.5D': '.977/.788 .838/.835 .587/.451 .718/.772 .748/.846 .634/.696',
    'ResNet-18 + 3D': '.996/.907 .863/.844 .712/.508 .827/.721 .874/.877 .820/.745',
    'ResNet-18 + ACS': '.994/.900 .873/.847 .714/.497 .839/.754 .930/.928 .705/.722',
    'ResNet-50 + 2.5D': '.974/.769 .835/.848 .552/.397 .732/.763 .751/.877 .669/.735',
    'ResNet-50 + 3D': '.994/.883 .875/.847 .725/.494 .828/.745 .907/.918 .851/.795',
    'ResNet-50 + ACS': '.994/.889 .886/.841 .750/.517 .828/.758 .912/.858 .719/.709',
    'auto-sklearn': '.977/.814 .914/.874 .628/.453 .828/.802 .910/.915 .631/.730',
    'AutoKeras': '.979/.804 .844/.834 .642/.458 .804/.705 .773/.894 .538/.724',
}
MAJORITY = {
    'fracture': 0.433,
    'adrenal': 0.768,
    'vessel': 0.887,
}  # accuracy of naming the most frequent class
# What may differ between runs of one experiment: the seed, where files are and how fast they are read.
FREE = ('seed', 'name', *config_module.FREE_TO_CHANGE)


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: Its workdir.
        experiment: The configuration's name without the set.
        name: The set, as `organ`.
        size: Voxels along an axis.
        seed: Of the run.
        values: AUC, accuracy and that of the majority class, on the test split.
        config: All settings.
    """

    folder: str
    experiment: str
    name: str
    size: int
    seed: int
    values: tuple[float, float, float]
    config: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Cell:
    """AUC and accuracy of a method on a set: means, deviations and the number of runs, 0 of official ones."""

    auc: float
    accuracy: float
    deviations: tuple[float, float] = (0.0, 0.0)
    seeds: int = 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = help_text.parser(__doc__)
    parser.add_argument('runs', nargs='+', metavar='RUN_DIR', help='workdirs of runs on sets of MedMNIST 3D')
    parser.add_argument(
        '--output', default='runs/medmnist', metavar='DIR', help='for medmnist.md and medmnist.png'
    )
    parsed = parser.parse_args(arguments)
    try:
        runs = [run for folder in parsed.runs if (run := read_run(paths.here(folder, 'RUN'))) is not None]
        if not runs:
            raise ValueError('none of these runs is finished')
        output = paths.here(parsed.output, '--output')
        rows = {size: tabulate(runs, size) for size in sorted({run.size for run in runs})}
        output.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(printable(f'error: {error}'), file=sys.stderr)
        return 2
    majority = MAJORITY | {run.name: run.values[2] for run in runs}
    text = '\n'.join(markdown(size, ours, majority) for size, ours in rows.items())
    (output / 'medmnist.md').write_text(text, encoding='utf-8')
    draw(output / 'medmnist.png', rows, majority)
    print(text)
    print(f'written to {output}: medmnist.md, medmnist.png')
    return 0


def read_run(folder: pathlib.Path) -> Run | None:
    """Reads a workdir; one that has no evaluation yet is named and left out.

    Raises:
        ValueError: If it is no workdir, or not of MedMNIST; one line.
    """
    settings, evaluation = folder / 'config.json', folder / 'eval.json'
    if not settings.is_file():
        raise ValueError(f'{folder} is no workdir: it has no config.json')
    config = _read_json(settings)
    try:
        data, experiment, seed = config['data'], config['name'], config['seed']
        name, size = data['medmnist']['name'], data['medmnist']['size']
        source = data['source']
    except (KeyError, TypeError) as error:
        raise ValueError(f'{settings} is no configuration of a run: {error} is missing') from error
    if source != 'medmnist':
        raise ValueError(f'{folder} is a run on data.source={source!r}, not on medmnist')
    if not evaluation.is_file():
        print(f'{folder}: not finished, it has no eval.json; left out', file=sys.stderr)
        return None
    try:
        found = _read_json(evaluation)['test']
        values = (found['auc'], found['accuracy'], found['majority_accuracy'])
    except KeyError as error:
        raise ValueError(
            f'{evaluation} has no AUC of the test split: evaluate again, with the command of the run and '
            "--mode=eval --config.evaluation.report=medical --config.data.test_splits='(test,)'"
        ) from error
    experiment = experiment.replace(f'_{name}', '').removesuffix(f'_{size}')
    return Run(str(folder), experiment, name, size, seed, values, config)


def _read_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ValueError(f'{path} is no JSON ({error})') from error


def tabulate(runs: list[Run], size: int) -> dict[str, dict[str, Cell]]:
    """Returns a row for each experiment, a cell for each set it ran on.

    Raises:
        ValueError: If runs of an experiment and set differ in more than the seed, or not even in that.
    """
    rows: dict[str, dict[str, Cell]] = {}
    for experiment in sorted({run.experiment for run in runs if run.size == size}):
        rows[experiment] = {}
        for name in SETS:
            mine = [run for run in runs if (run.experiment, run.name, run.size) == (experiment, name, size)]
            if not mine:
                continue
            _check_alike(mine)
            auc, accuracy, _ = zip(*(run.values for run in mine), strict=True)
            # Of a sample: with one run there is none.
            deviations = [statistics.stdev(values) if len(mine) > 1 else 0.0 for values in (auc, accuracy)]
            rows[experiment][name] = Cell(
                statistics.fmean(auc), statistics.fmean(accuracy), (deviations[0], deviations[1]), len(mine)
            )
    return rows


def _check_alike(runs: list[Run]) -> None:
    first = runs[0]
    seeds: dict[int, str] = {}
    for run in runs:
        differing = [
            f'{key} ({one!r} and {other!r})'
            for key, (one, other) in config_module.differences(first.config, run.config).items()
            if key not in FREE
        ]
        if differing:
            raise ValueError(
                f'{first.folder} and {run.folder} are of one experiment but differ in {", ".join(differing)}: '
                'give them one at a time, or name them differently (config.name)'
            )
        if run.seed in seeds:
            raise ValueError(
                f'{seeds[run.seed]} and {run.folder} have the same seed, {run.seed}: give one of them'
            )
        seeds[run.seed] = run.folder


def official() -> dict[str, dict[str, Cell]]:
    """Returns the official rows."""
    rows = {}
    for method, text in OFFICIAL.items():
        pairs = [pair.partition('/') for pair in text.split()]
        rows[method] = {
            name: Cell(float(auc), float(accuracy))
            for name, (auc, _, accuracy) in zip(SETS, pairs, strict=True)
        }
    return rows


def markdown(size: int, ours: dict[str, dict[str, Cell]], majority: dict[str, float]) -> str:
    """Returns the table of one size; the best AUC of each set is bold."""
    rows = (official() if size == 28 else {}) | {f'ViViT, {name}': row for name, row in ours.items()}
    best = {
        name: max((_short(row[name].auc) for row in rows.values() if name in row), default='')
        for name in SETS
    }
    lines = [
        f'| AUC / accuracy at {size} | {" | ".join(name.capitalize() for name in SETS)} |',
        f'| --- |{" --- |" * len(SETS)}',
    ]
    for method, row in rows.items():
        cells = [_text(row[name], best[name]) if name in row else '–' for name in SETS]
        lines.append(f'| {method} | {" | ".join(cells)} |')
    cells = [f'– / {_short(majority[name])}' if name in majority else '–' for name in SETS]
    lines.append(f'| majority class | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def _text(cell: Cell, best: str) -> str:
    parts = [_short(cell.auc), _short(cell.accuracy)]
    if cell.seeds > 1:
        parts = [
            f'{part} ± {_short(deviation)}' for part, deviation in zip(parts, cell.deviations, strict=True)
        ]
    if _short(cell.auc) == best:  # as it is printed: what looks alike is alike
        parts[0] = f'**{parts[0]}**'
    return ' / '.join(parts) + (f' ({cell.seeds} seed{"s" if cell.seeds > 1 else ""})' if cell.seeds else '')


def _short(value: float) -> str:
    return f'{value:.3f}'.removeprefix('0')


OURS, OTHERS, DARK, PALE = '#c8471d', '#b9c6d3', '#26323d', '#8795a3'


def draw(path: pathlib.Path, rows: dict[int, dict[str, dict[str, Cell]]], majority: dict[str, float]) -> None:
    """Draws AUC and accuracy on each set that there are runs on, the best AUC on top, ours in colour."""
    import matplotlib as mpl

    mpl.use('Agg')
    from matplotlib import pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = [
        (name, size) for size in rows for name in SETS if any(name in row for row in rows[size].values())
    ]
    methods = {
        (name, size): sorted(
            (
                (method, row[name])
                for method, row in (
                    (official() if size == 28 else {}) | {f'ViViT, {m}': r for m, r in rows[size].items()}
                ).items()
                if name in row
            ),
            key=lambda item: item[1].auc,
        )
        for name, size in panels
    }
    heights = [0.33 * len(methods[panel]) + 1.0 for panel in panels]
    with plt.rc_context({'font.family': 'DejaVu Sans', 'font.size': 10}):
        figure, grid = plt.subplots(
            len(panels),
            2,
            figsize=(10.5, sum(heights)),
            squeeze=False,
            sharey='row',
            layout=ConstrainedLayoutEngine(hspace=0.08, wspace=0.03),
            gridspec_kw={'height_ratios': heights},
        )
        for (left, right), panel in zip(grid, panels, strict=True):
            name, size = panel
            bars = methods[panel]
            _bars(left, [(cell.auc, cell.deviations[0], cell.seeds) for _, cell in bars], low=0.5)
            _bars(right, [(cell.accuracy, cell.deviations[1], cell.seeds) for _, cell in bars], low=0.0)
            left.set_yticks(
                range(len(bars)),
                [method + (f', {cell.seeds} seeds' if cell.seeds > 1 else '') for method, cell in bars],
            )
            for label, (_, cell) in zip(left.get_yticklabels(), bars, strict=True):
                label.set(color=OURS if cell.seeds else DARK, weight='bold' if cell.seeds else 'normal')
            title = f'{name.capitalize()}MNIST3D, {size} voxels'
            left.set_title(title, loc='left', weight='bold', color=DARK, fontsize=12)
            left.set_xlabel('test AUC (0.5 is chance)', color=DARK)
            right.set_xlabel('test accuracy', color=DARK)
            if name in majority:
                right.axvline(majority[name], color=DARK, linestyle=(0, (4, 3)), linewidth=1.2)
                right.annotate(
                    f'majority class {_short(majority[name])}',
                    (majority[name], 1.0),
                    xycoords=('data', 'axes fraction'),
                    xytext=(0, 4),
                    textcoords='offset points',
                    ha='center',
                    color=DARK,
                    fontsize=9,
                )
        figure.savefig(path, dpi=150, bbox_inches='tight', pad_inches=0.2)
        plt.close(figure)


def _bars(axes: Any, values: list[tuple[float, float, int]], low: float) -> None:
    """Draws one bar for each (value, deviation, number of runs), from `low` to 1, and the values to their right."""
    for place, (value, deviation, seeds) in enumerate(values):
        axes.barh(place, value - low, left=low, height=0.72, color=OURS if seeds else OTHERS, zorder=2)
        if seeds > 1:
            axes.errorbar(value, place, xerr=deviation, color=DARK, capsize=3, linewidth=1.2, zorder=3)
        text = _short(value) + (f' ± {_short(deviation)}' if seeds > 1 else '')
        axes.annotate(
            text,
            (1.0, place),
            xytext=(6, 0),
            textcoords='offset points',
            va='center',
            fontsize=9,
            color=OURS if seeds else DARK,
            weight='bold' if seeds else 'normal',
        )
    axes.set_xlim(low, 1.0)
    lonely = 0.6 if len(values) == 1 else 0.0  # a single bar is no thicker than one of many
    axes.set_ylim(-0.6 - lonely, len(values) - 0.4 + lonely)
    axes.tick_params(length=0, colors=DARK)
    axes.tick_params(axis='x', colors=PALE)
    axes.grid(axis='x', color='#e6ebef', zorder=0)
    axes.set_axisbelow(True)
    for side in ('top', 'right', 'left', 'bottom'):
        axes.spines[side].set_visible(False)


if __name__ == '__main__':
    sys.exit(main())
