"""Draws what one token sees in each attention of a block, for every model, as the code's own folding has it.

examples:
  python tools/draw_attention.py --output=docs/attention.png
"""

import math
import pathlib
from typing import Any

import matplotlib
import numpy as np

from vivit_jax import help_text
from vivit_jax.models.attention import Grid, groups
from vivit_jax.models.patterns import ATTENTIONS, PATTERNS

GRID: Grid = (4, 4, 4)
QUERY = (1, 1, 2)  # time, row and column of the token that looks
CAPTIONS = {
    'spatio_temporal': 'ViViT, Model 1',
    'factorised_encoder': 'ViViT, Model 2: one encoder for\nframes, one for their summaries',
    'factorised_self_attention': 'ViViT, Model 3 (or time first)',
    'factorised_dot_product': 'ViViT, Model 4: half of the\nheads for each',
    'divided': 'TimeSformer',
    'space_only': 'TimeSformer: frames never mix',
    'axial': 'TimeSformer',
    'local_global': 'TimeSformer: a neighbourhood,\nthen the whole clip, coarsely',
}
COLOURS = {
    'all': '#4263eb',
    'space': '#1098ad',
    'time': '#f08c00',
    'height': '#7048e8',
    'width': '#d6336c',
    'window': '#2f9e44',
    'grid': '#862e9c',
    'block': '#7b8794',
}
EMPTY, INK, PALE, LINE = '#e6e9ec', '#212529', '#6c757d', '#dee2e6'

# Lengths in tokens.
FRAME = GRID[2] + 0.9  # from one frame to the next
CLS = 1.9  # room for a cls token before the frames
PANEL = CLS + GRID[0] * FRAME + 1.8
ROW = GRID[1] + 4.0
LABELS = 25.5


def main() -> None:
    """Runs the command line."""
    parser = help_text.parser(__doc__)
    parser.add_argument('--output', default='docs/attention.png', metavar='FILE')
    path = pathlib.Path(parser.parse_args().output)
    path.parent.mkdir(parents=True, exist_ok=True)
    matplotlib.use('Agg')
    draw().savefig(path, dpi=120)
    print(f'written to {path}')


def seen(over: str, grid: Grid = GRID) -> np.ndarray:
    """Returns the table `[n n]` of who sees whom in one attention."""
    if over == 'time_and_space':
        return seen('time', grid) | seen('space', grid)
    table = np.zeros((math.prod(grid),) * 2, bool)
    for group in groups(over, grid):
        table[np.ix_(group, group)] = True
    return table


def after_block(attends: tuple[str, ...]) -> np.ndarray:
    """Returns the table `[n n]` of who depends on whom after several attentions, one upon the other."""
    table = np.eye(math.prod(GRID), dtype=bool)
    for over in attends:
        table = seen(over) @ table
    return table


def draw() -> Any:
    """Returns the figure: a row a model, a panel an attention, and what they make together."""
    from matplotlib import pyplot

    columns = max(len(pattern.attends) for pattern in PATTERNS.values()) + 1
    width, height = LABELS + columns * PANEL, len(ATTENTIONS) * ROW + 3.0
    figure = pyplot.figure(figsize=(width / 10, height / 10), facecolor='white')
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis('off')
    legend = [
        (0.0, INK, 'none', 'looks'),
        (7.0, COLOURS['all'], 'none', 'is seen'),
        (
            15.0,
            'white',
            PALE,
            'a cls token, left of the frames where there may be one; filled where it takes part',
        ),
    ]
    axes.text(
        1, 1.6, f'{GRID[0]} frames of {GRID[1]} x {GRID[2]} tokens', color=PALE, fontsize=10, va='center'
    )
    for x, colour, edge, text in legend:
        _cell(axes, LABELS + CLS + x, 1.1, colour, edge)
        axes.text(LABELS + CLS + x + 1.6, 1.6, text, color=PALE, fontsize=10, va='center')
    for row, attention in enumerate(ATTENTIONS):
        top = 5.6 + row * ROW
        axes.plot([1, width - 1], [top - 2.4] * 2, color=LINE, linewidth=0.8)
        axes.text(1, top + 0.4, attention, color=INK, fontsize=11, weight='bold', va='center')
        axes.text(1, top + 1.4, CAPTIONS[attention], color=PALE, fontsize=9, va='top', linespacing=1.3)
        _row(axes, attention, top, LABELS + (columns - 1) * PANEL)
    return figure


def _row(axes: Any, attention: str, top: float, last: float) -> None:
    """Draws the attentions of a model, and at `last` what a token depends on after a block."""
    pattern, query = PATTERNS[attention], int(np.ravel_multi_index(QUERY, GRID))
    if attention == 'factorised_encoder':
        frame = np.zeros(GRID, bool)
        frame[QUERY[0]] = seen('all', (1, *GRID[1:]))[0].reshape(GRID[1:])
        _panel(axes, LABELS, top, {'all': frame}, 'all of a frame', True)
        frames = seen('all', (GRID[0], 1, 1))[QUERY[0]]
        _panel(axes, LABELS + PANEL, top, {'all': frames[:, None, None]}, 'all frames', True)
        everything = np.ones(GRID, bool) & frames[:, None, None]
        _panel(axes, last, top, {'block': everything}, 'after both encoders', None)
        return
    for number, over in enumerate(pattern.attends):
        parts = ('time', 'space') if over == 'time_and_space' else (over,)
        tables = {part: seen(part)[query].reshape(GRID) for part in parts}
        cls = over in pattern.cls if pattern.cls else None
        _panel(axes, LABELS + number * PANEL, top, tables, over, cls)
    together = after_block(pattern.attends)[query].reshape(GRID)
    _panel(axes, last, top, {'block': together}, 'after one block', None)


def _panel(
    axes: Any, left: float, top: float, tables: dict[str, np.ndarray], title: str, cls: bool | None
) -> None:
    """Draws the frames of one attention.

    Args:
        axes: Where.
        left: Its left edge, in tokens.
        top: Its upper edge.
        tables: What is seen `[t h w]`, or `[t 1 1]` of whole frames, by what is looked over.
        title: Stands above it.
        cls: Whether the cls token takes part; None where there is none.
    """
    (first, *_) = tables
    for over, x in zip(tables, (0.0, 5.4), strict=False):
        words = title if len(tables) == 1 else over
        style = {'fontsize': 10, 'weight': 'bold', 'va': 'center'}
        axes.text(left + CLS + x, top - 0.8, words, color=COLOURS[over], **style)
    if cls is not None:
        _cell(axes, left, top, COLOURS[first] if cls else 'white', COLOURS[first] if cls else PALE)
    for over, table in tables.items():
        whole = table.shape[1:] == (1, 1)
        for t, y, x in np.ndindex(table.shape):
            if not table[t, y, x] and over != first:
                continue
            looks = (t, y, x) == (QUERY if not whole else (QUERY[0], 0, 0))
            colour = INK if looks else COLOURS[over] if table[t, y, x] else EMPTY
            size = (GRID[2], GRID[1]) if whole else (1, 1)
            _cell(axes, left + CLS + t * FRAME + x, top + y, colour, size=size)


def _cell(
    axes: Any, x: float, y: float, colour: str, edge: str = 'none', size: tuple[int, int] = (1, 1)
) -> None:
    from matplotlib.patches import FancyBboxPatch

    gap, corner = 0.09, 0.12
    shape = FancyBboxPatch(
        (x + gap + corner, y + gap + corner),
        size[0] - 2 * (gap + corner),
        size[1] - 2 * (gap + corner),
        boxstyle=f'round,pad={corner}',
        facecolor=colour,
        edgecolor=edge,
        linewidth=0.8,
    )
    axes.add_patch(shape)


if __name__ == '__main__':
    main()
