"""The largest batch that the device takes: doubled while it fits, then the gap is halved."""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarking import measuring
from benchmarking.comparing import too_large
from benchmarking.contenders import Child, Contender, ContenderError
from benchmarking.workload import Workload

Row = dict[str, Any]


def find(
    workload: Workload,
    contender: Contender,
    *,
    steps: int,
    seconds: float,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Looks for the largest batch of a training step, each try in a process of its own.

    What is predicted not to fit is not run.

    Args:
        workload: What is computed; its batch is where the search begins.
        contender: Who computes it.
        steps: Steps that are timed with each batch.
        seconds: After so many no further batch is tried.
        tell: Told of what is going on.

    Returns:
        `largest`, 0 if none fitted; `tried`, a row for each batch in order of size, see `attempt`; and `exact`,
        whether the next larger one is known not to fit.
    """
    end = time.perf_counter() + seconds

    def try_(batch: int) -> Row:
        tell(f'batch {batch}')
        return attempt(dataclasses.replace(workload, batch=batch), contender, steps)

    rows, exact = search(try_, workload.batch, lambda: time.perf_counter() < end)
    fits = [row['batch'] for row in rows if row['fits']]
    return {
        'workload': dataclasses.asdict(workload),
        'title': str(workload).replace(f'batch {workload.batch} of', 'batches of clips of'),
        'contender': contender.title,
        'largest': max(fits, default=0),
        'exact': exact,
        'tried': sorted(rows, key=lambda row: row['batch']),
    }


def search(attempt: Callable[[int], Row], start: int, goes_on: Callable[[], bool]) -> tuple[list[Row], bool]:
    """Doubles a batch while it fits, then halves the gap between what fits and what does not.

    Args:
        attempt: Tries a batch; its row tells whether it `fits`.
        start: First batch; where it does not fit smaller ones are tried.
        goes_on: Whether there is time for another.

    Returns:
        The rows in order of trying, and whether the search got to its end.
    """
    rows: list[Row] = []
    fits, too_many = 0, 0
    while goes_on() and (not too_many or too_many - fits > 1):
        batch = (fits + too_many) // 2 if too_many else max(start, 2 * fits)
        rows.append(attempt(batch))
        if rows[-1]['fits']:
            fits = batch
        else:
            too_many = batch
    return rows, bool(too_many) and too_many - fits == 1


def attempt(workload: Workload, contender: Contender, steps: int) -> Row:
    """Tries one batch.

    Returns:
        `batch`, `fits`, `why` not, `planned_bytes`, and where it ran `peak_bytes`, `seconds_per_step` (median) and
        `clips_per_second`.
    """
    row: Row = {'batch': workload.batch, 'fits': False, 'why': '', 'planned_bytes': None}
    with tempfile.TemporaryDirectory() as caches, Child(contender, workload, caches) as child:
        try:
            facts = child.ask('compile', runs=True, forward=False)
            row['planned_bytes'] = facts['planned'] and facts['planned']['total']
            if problem := too_large(child, facts['planned']):
                return row | {'why': problem}
            started = child.ask('start', forward=False)
            taken = [child.ask('train') for _ in range(steps)]
        except ContenderError as error:
            return row | {'why': str(error)}
    median = measuring.spread(taken)['median']
    return row | {
        'fits': True,
        'peak_bytes': started['peak_bytes'],
        'seconds_per_step': median,
        'clips_per_second': workload.batch / median,
    }
