"""Reports as Markdown tables."""

from collections.abc import Iterator
from typing import Any

from vivit_jax.telling.memory import amount

TOP = 15  # operations of a profile

Report = dict[str, Any]


def of_comparison(report: Report) -> Iterator[str]:
    """Writes what contenders took, and the ratios of their medians."""
    yield from (report['title'], _device(report), '')
    yield from table(
        'contender',
        'compile s',
        'train step s',
        'clips/s',
        'GFLOP/s',
        'MFU',
        'forward s',
        'peak memory',
        'predicted',
    )
    for row in report['contenders']:
        train, forward = row['train'], row['forward']
        yield line(
            row['title'],
            f'{row["compile_seconds"]:.1f}',
            _spread(train),
            f'{row["clips_per_second"]:.3g}',
            f'{train["flops_per_second"] / 1e9:.4g}',
            _percent(train['mfu']),
            _spread(forward),
            _bytes(row['peak_bytes']),
            _against(row),
        )
    yield from ('', 'seconds: median (quartiles); memory: ' + report['contenders'][0]['peak_of'])
    if report['ratios']:
        first = report['ratios'][0]['of']
        yield from ('', *table(f'against {first}', 'train step', 'forward', 'peak memory'))
    for entry in report['ratios']:
        memory = '' if entry['memory'] is None else f'{entry["memory"]:.2f}'
        name = entry['name'] if entry['of'] == first else f'{entry["name"]}, against {entry["of"]}'
        yield line(name, *(ratio(entry[what]) for what in ('train', 'forward')), memory)
    if report['ratios']:
        yield from (
            '',
            'ratios of medians, and 95 % of bootstrap draws over rounds; more than 1: slower, or larger',
        )
    for title, cause in report['left_out'].items():
        yield f'left out: {cause}' if cause.startswith(title) else f'left out: {title}: {cause}'
    if wait := report.get('data_wait'):
        yield (
            f'fed by the pipeline: {wait["seconds_per_step"]:.3g} s a step, {wait["wait_seconds"]:.3g} s of it '
            f'waiting for clips ({wait["data_wait"]:.1%})'
        )


def of_compile_times(report: Report) -> Iterator[str]:
    """Writes how long contenders compile, and their memory as planned."""
    yield from (report['title'], '')
    yield from table('contender', 'trace s', 'compile s', 'planned memory', 'of it temporary')
    for row in report['contenders']:
        planned = row['planned'] or {}
        times = [f'{_median(row[part]):.1f}' for part in ('trace_seconds', 'compile_seconds')]
        yield line(row['name'], *times, _bytes(planned.get('total')), _bytes(planned.get('temporary')))
    if report['ratios']:
        first = report['ratios'][0]['of']
        yield from ('', *table(f'against {first}', 'trace and compile', 'compile alone'))
    for entry in report['ratios']:
        yield line(entry['name'], ratio(entry['seconds']), ratio(entry['compile_seconds']))


def of_batches(report: Report) -> Iterator[str]:
    """Writes which batches fit, and how fast they are."""
    yield from (report['title'], '')
    yield from table('batch', 'planned', 'peak memory', 'step s', 'clips/s', '')
    for row in report['tried']:
        cells = [_bytes(row.get('planned_bytes')), _bytes(row.get('peak_bytes'))]
        cells += [
            f'{row[name]:.3g}' if name in row else '' for name in ('seconds_per_step', 'clips_per_second')
        ]
        yield line(row['batch'], *cells, row['why'])
    exact = '' if report['exact'] else ', as far as the time allowed to look'
    yield from ('', f'largest batch: {report["largest"]}{exact}')


def of_profile(report: Report) -> Iterator[str]:
    """Writes where the time of a step goes."""
    yield from (report['title'], '')
    traced, plain = report['seconds_per_step'], report['untraced_seconds_per_step']
    yield (
        f'{report["of"]}: {traced:.3g} s a step while traced ({plain:.3g} s not traced), '
        f'idle {report["idle_share"]:.1%}; {report["lines"]} line(s) of operations, '
        f'of whose time products take {report["products_share"]:.1%}'
    )
    yield from ('', *table('operation, all layers together', 'pass', 'ms a step', 'share', 'times a step'))
    for row in report['operations'][:TOP]:
        yield line(
            f'`{row["what"]}`',
            row['pass'],
            f'{1000 * row["seconds"]:.2f}',
            f'{row["share"]:.1%}',
            f'{row["events"]:g}',
        )
    rest = sum(row['share'] for row in report['operations'][TOP:])
    yield line(f'{max(0, len(report["operations"]) - TOP)} others', '', '', f'{rest:.1%}', '')


def of_bars(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Writes bars: what is wanted, what was measured, by which command."""
    yield from table('bar', 'wanted', 'measured', '', 'command')
    for row in rows:
        yield line(row['bar'], row['wanted'], row['measured'], row['verdict'], f'`{row["command"]}`')


def table(*header: str) -> Iterator[str]:
    """Begins a table."""
    yield from (line(*header), line(*['---'] * len(header)))


def line(*cells: Any) -> str:
    """Returns a row of a table."""
    return f'| {" | ".join(str(cell).replace("|", "/") for cell in cells)} |'


def ratio(values: dict[str, Any]) -> str:
    """Returns a ratio and its interval."""
    title = values.get('title', '')
    passive = ' (OMP passive)' if title.endswith('passive') else ''
    return f'{values["ratio"]:.2f} ({values["low"]:.2f} to {values["high"]:.2f}){passive}'


def _device(report: Report) -> str:
    peak = report['peak']
    told = f'; peak {peak["flops"] / 1e12:.4g} TFLOP/s ({peak["source"]})' if peak else ''
    return f'{report["device"]["kind"]} ({report["device"]["platform"]}){told}'


def _against(row: dict[str, Any]) -> str:
    """Returns the predicted memory, and the measured as a share of it."""
    if not row['predicted_bytes'] or not row['peak_bytes']:
        return ''
    return f'{_bytes(row["predicted_bytes"])} ({row["peak_bytes"] / row["predicted_bytes"]:.0%})'


def _spread(values: dict[str, float]) -> str:
    return f'{values["median"]:.3g} ({values["low"]:.3g} to {values["high"]:.3g})'


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _percent(share: float | None) -> str:
    return '' if share is None else f'{share:.1%}'


def _bytes(size: float | None) -> str:
    return '' if size is None else amount(size)
