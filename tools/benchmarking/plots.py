"""Reports as pictures."""

from typing import Any

COLOURS = ('#3b6ea8', '#d9822b')


def draw(report: dict[str, Any], path: str) -> None:
    """Draws the report of a comparison or of a search for the largest batch.

    Args:
        report: As `comparing.compare` or `find_batch.find` returns it.
        path: A file; its ending says of which kind.
    """
    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot

    draws = _batches if 'tried' in report else _steps
    figure, axes = pyplot.subplots(1, 2, figsize=(11, draws_height(report)), layout='constrained')
    draws(report, axes)
    figure.suptitle(_wrapped(report['title']), fontsize=9)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def draws_height(report: dict[str, Any]) -> float:
    """Returns the height of a picture, in inches: a comparison has a row for every contender."""
    return 4.2 if 'tried' in report else 1.6 + 0.5 * len(report['contenders'])


def _steps(report: dict[str, Any], axes: Any) -> None:
    """A row a contender: all its seconds, and the median with the quartiles."""
    rows = report['contenders'][::-1]
    for axis, what, colour in zip(axes, ('train', 'forward'), COLOURS, strict=True):
        for place, row in enumerate(rows):
            values = row[what]
            axis.barh(place, values['median'], height=0.6, color=colour, alpha=0.35)
            axis.plot(values['seconds'], [place] * len(values['seconds']), '|', color=colour, markersize=12)
            axis.hlines(place, values['low'], values['high'], color='black', linewidth=3)
            axis.text(0, place + 0.34, f' {values["median"]:.3g} s', va='bottom', fontsize=8, color='#333333')
        axis.set_yticks(
            range(len(rows)), [row['title'] for row in rows] if axis is axes[0] else [''] * len(rows)
        )
        axis.set_ylim(-0.6, len(rows) - 0.2)
        axis.set_xlim(left=0)
        axis.set_xlabel('seconds (bar: median, line: quartiles, ticks: rounds)')
        axis.set_title({'train': 'training step', 'forward': 'forward'}[what])
        axis.spines[['top', 'right']].set_visible(False)


def _batches(report: dict[str, Any], axes: Any) -> None:
    """Clips a second and memory over the batch."""
    rows = [row for row in report['tried'] if row['fits']]
    batches = [row['batch'] for row in rows]
    axes[0].plot(batches, [row['clips_per_second'] for row in rows], 'o-', color=COLOURS[0])
    axes[0].set_title('clips/s')
    known = [row for row in report['tried'] if row['planned_bytes']]
    axes[1].plot(
        [row['batch'] for row in known],
        [row['planned_bytes'] / 2**30 for row in known],
        '--',
        color=COLOURS[1],
        label='planned',
    )
    ran = [row for row in rows if row['peak_bytes']]
    axes[1].plot(
        [row['batch'] for row in ran],
        [row['peak_bytes'] / 2**30 for row in ran],
        'o',
        color=COLOURS[1],
        label='measured',
    )
    axes[1].set_title('memory of a step, GiB')
    axes[1].legend(frameon=False)
    for axis in axes:
        axis.set_xscale('log', base=2)
        axis.xaxis.set_major_formatter('{x:g}')
        axis.set_ylim(bottom=0)
        axis.set_xlabel('batch')
        axis.spines[['top', 'right']].set_visible(False)


def _wrapped(text: str) -> str:
    return text.replace('; ', '\n', 1)
