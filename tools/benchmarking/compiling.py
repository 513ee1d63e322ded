"""How long contenders compile, in turn, and the memory that XLA plans for them; nothing is run."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

from benchmarking import measuring
from benchmarking.contenders import Child, Contender
from benchmarking.workload import Workload

# What a start waits for: the step is traced, then compiled.
PARTS = ('trace_seconds', 'compile_seconds')


def compile_times(
    workload: Workload, contenders: Sequence[Contender], *, rounds: int, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Compiles the training step of each contender, taking turns.

    Args:
        workload: What they compute.
        contenders: Who takes part, in JAX; the first is the one that the others are compared with.
        rounds: How often each compiles.
        tell: Told of what is going on.

    Returns:
        `contenders`, each `{name, trace_seconds, compile_seconds, planned}` with all seconds in lists; `ratios`, how
        much longer the others take to trace and compile, and to compile alone, than the first.

    Raises:
        ContenderError: If one cannot be compiled.
    """
    rows: list[dict[str, Any]] = [
        {'name': contender.name, **{part: [] for part in PARTS}} for contender in contenders
    ]
    with contextlib.ExitStack() as stack:
        caches = stack.enter_context(tempfile.TemporaryDirectory())
        children = [stack.enter_context(Child(contender, workload, caches)) for contender in contenders]
        for number in range(rounds):
            for child, row in zip(children, rows, strict=True):
                tell(f'compiling {row["name"]}, {number + 1} of {rounds}')
                facts = child.ask('compile', runs=False, forward=False)
                for part in PARTS:
                    row[part].append(facts[part])
                row['planned'] = facts['planned']
    for row in rows:
        row['seconds'] = [sum(parts) for parts in zip(*(row[part] for part in PARTS), strict=True)]
    first = rows[0]
    ratios = [
        {'name': row['name'], 'of': first['name']}
        | {part: measuring.ratio(row[part], first[part]) for part in ('seconds', 'compile_seconds')}
        for row in rows[1:]
    ]
    title = str(workload)
    return {
        'workload': dataclasses.asdict(workload),
        'title': title,
        'contenders': rows,
        'ratios': ratios,
    }
