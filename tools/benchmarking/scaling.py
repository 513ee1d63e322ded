"""Training steps of whole models over frames, tokens, batch, layers and devices."""

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarking import exponents, measuring, sharded, tables
from benchmarking.contenders import Child, Contender, ContenderError
from benchmarking.workload import Workload, checked
from vivit_jax.telling.memory import amount

Row = dict[str, Any]
Sizes = Sequence[Any]

OVER = ('frames', 'tokens', 'batch', 'layers', 'devices')
COSTS = {'seconds': 'train step, s', 'planned_bytes': 'planned memory, bytes'}
DEFAULTS: dict[str, Sizes] = {
    'frames': (8, 16, 32, 64, 128),
    # Frames and pixels high and wide: with tubelets of 2x16x16 and a cls token 197, 785, 3137 and 12545 tokens.
    'tokens': ((2, 224), (8, 224), (32, 224), (128, 224)),
    'batch': (1, 2, 4, 8),
    'layers': (3, 6, 12, 24),
    'devices': (1, 2, 4, 8),
}
QUICK: dict[str, Sizes] = {
    'frames': (2, 4),
    'tokens': ((2, 32), (4, 32), (4, 64)),
    'batch': (1, 2),
    'layers': (1, 2),
    'devices': (1, 2),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How steps are measured.

    Attributes:
        contenders: Names of `contenders.JAX`; over devices, ours alone.
        steps: That are timed at every size.
        planned: Whether programs are only compiled, and nothing is run.
        limit: Bytes that a step may take as planned, or it is not run.
        fsdp: Whether devices share the parameters too, besides the batch.
    """

    contenders: tuple[str, ...]
    steps: int
    planned: bool
    limit: float
    fsdp: bool


def tokens_of(workload: Workload) -> int:
    """Returns how many tokens the model makes of a clip, cls token included."""
    grid = math.prod(
        size // part for size, part in zip(workload.clip, workload.model['tubelet'], strict=False)
    )
    return grid + (workload.model['classifier'] == 'token')


def resized(workload: Workload, over: str, size: Any) -> Workload:
    """Returns a workload with another size.

    Args:
        workload: What is computed otherwise.
        over: One of `OVER`; over devices the whole batch stays as it is.
        size: A number; for 'tokens' a pair, frames and pixels high and wide.

    Raises:
        ValueError: If the model cannot take it.
    """
    _, height, width, channels = workload.clip
    if over == 'frames':
        return checked(dataclasses.replace(workload, clip=(size, height, width, channels)))
    if over == 'tokens':
        frames, pixels = size
        return checked(dataclasses.replace(workload, clip=(frames, pixels, pixels, channels)))
    if over == 'batch':
        return dataclasses.replace(workload, batch=size)
    if over == 'layers':
        return workload.changed(num_layers=size)
    return workload


def sweep(
    workload: Workload, over: str, sizes: Sizes, settings: Settings, tell: Callable[[str], None]
) -> list[Row]:
    """Measures a training step at every size, each in a process of its own.

    Args:
        workload: What is computed at sizes that are not swept.
        over: One of `OVER`.
        sizes: See `resized`.
        settings: How.
        tell: Told of what is going on.

    Returns:
        A row for every size and contender: `name`, the size under the key `over`, `clip`, `seconds` (median), `step`
        with the quartiles, `planned_bytes` of a device; and `why` it was not run, if so.

    Raises:
        ValueError: If the model cannot take one of the sizes.
    """
    work = [(size, resized(workload, over, size)) for size in sizes]
    rows = []
    for size, one in work:
        for name in settings.contenders if over != 'devices' else ('ours',):
            tell(f'{over} {_shown(size)}: {name}')
            row = {
                'name': name,
                over: tokens_of(one) if over == 'tokens' else size,
                'clip': 'x'.join(map(str, one.clip[:3])),
                'seconds': None,
                'planned_bytes': None,
                'why': '',
            }
            try:
                row |= _sharded(one, size, settings) if over == 'devices' else _alone(one, name, settings)
            except (ContenderError, ValueError) as error:
                row['why'] = str(error)
            rows.append(row)
    return rows


def _alone(workload: Workload, name: str, settings: Settings) -> Row:
    """Measures on one device."""
    with tempfile.TemporaryDirectory() as caches, Child(Contender(name), workload, caches) as child:
        plan = child.ask('compile', runs=not settings.planned, forward=False)['planned']
        row: Row = {'planned_bytes': plan and plan['total']}
        if settings.planned:
            return row
        if plan and plan['total'] > settings.limit:
            return row | {'why': f'needs {amount(plan["total"])} of {amount(settings.limit)}'}
        child.ask('start', forward=False)
        return row | _timed([child.ask('train') for _ in range(settings.steps)])


def _sharded(workload: Workload, devices: int, settings: Settings) -> Row:
    """Measures on several devices, simulated ones where they are CPUs."""
    steps = 0 if settings.planned else settings.steps
    found = sharded.run(dataclasses.asdict(workload), devices, settings.fsdp, steps)
    plan = found['planned']
    return {'planned_bytes': plan and plan['total']} | (_timed(found['seconds']) if steps else {})


def _timed(seconds: list[float]) -> Row:
    spread = measuring.spread(seconds)
    return {'seconds': spread['median'], 'step': spread}


def curves(sweeps: dict[str, list[Row]]) -> list[exponents.Curve]:
    """Returns the costs over every size that was swept."""
    return [curve for over, rows in sweeps.items() for curve in exponents.curves(rows, over, COSTS)]


def text(title: str, sweeps: dict[str, list[Row]]) -> Iterator[str]:
    """Writes all sweeps as tables, and the powers with which costs grow."""
    yield title
    for over, rows in sweeps.items():
        yield from ('', *tables.table(over, 'clip', 'contender', 'train step, s', 'planned memory', ''))
        for row in rows:
            step = row.get('step')
            shown = '' if step is None else f'{step["median"]:.3g} ({step["low"]:.3g} to {step["high"]:.3g})'
            plan = '' if row['planned_bytes'] is None else amount(row['planned_bytes'])
            yield tables.line(row[over], row['clip'], row['name'], shown, plan, row['why'])
    yield from ('', *exponents.of_fits(curves(sweeps)))


def _shown(size: Any) -> str:
    return 'x'.join(map(str, size)) if isinstance(size, tuple) else str(size)
