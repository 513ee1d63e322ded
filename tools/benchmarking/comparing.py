"""Contenders side by side: they take turns, step by step, and only one computes at any time."""

import contextlib
import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarking import measuring
from benchmarking.child import BFLOAT16, asked_of
from benchmarking.contenders import Child, Contender, ContenderError
from benchmarking.workload import Workload
from vivit_jax.telling import memory

WHAT = ('train', 'forward')
FEWEST = 3  # rounds, however short the time

Tell = Callable[[str], None]


@dataclasses.dataclass
class Turns:
    """What was measured of a contender."""

    child: Child
    facts: dict[str, Any]
    seconds: dict[str, list[float]] = dataclasses.field(default_factory=lambda: {what: [] for what in WHAT})


def compare(
    workload: Workload,
    contenders: Sequence[Contender],
    *,
    rounds: int,
    seconds: float,
    peak_flops: float | None,
    tell: Tell,
) -> dict[str, Any]:
    """Measures contenders in turn.

    Args:
        workload: What they compute.
        contenders: Who takes part; the first is the one that the others are compared with.
        rounds: At most so many; in each everyone takes a training step and one forward.
        seconds: After so many no round begins, once there were `FEWEST`.
        peak_flops: Operations a second that the device could do; None measures them by a large product, in the
            type that the first computes in.
        tell: Told of what is going on.

    Returns:
        `workload`, `device`, `peak`, `contenders` (see `_row`), `ratios` (see `ratios`) and `left_out`, by title,
        with the cause.

    Raises:
        ContenderError: If nobody is left.
    """
    left_out: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        caches = stack.enter_context(tempfile.TemporaryDirectory())
        running: list[Turns] = []
        for contender in contenders:
            tell(f'compiling {contender.title}')
            child = stack.enter_context(Child(contender, workload, caches))
            with _leaving_out(left_out, contender, child):
                running.append(Turns(child, _prepared(child, workload)))
        if not running:
            raise ContenderError('; '.join(left_out.values()) or 'there are no contenders')
        device = running[0].child.ask('device')
        peaks = [] if peak_flops else [running[0].child.ask('peak')]
        running = _rounds(running, rounds, seconds, left_out, tell)
        if not running:
            raise ContenderError('; '.join(left_out.values()))
        peaks += [] if peak_flops else [running[0].child.ask('peak')]
    peak = {'flops': peak_flops, 'source': '--peak-flops'} if peak_flops else _best(peaks)
    flops = workload.flops()
    rows = [_row(turns, workload, flops, peak) for turns in running]
    return {
        'workload': dataclasses.asdict(workload),
        'title': str(workload),
        'device': device,
        'peak': peak,
        'contenders': rows,
        'ratios': ratios(rows),
        'left_out': left_out,
    }


@contextlib.contextmanager
def _leaving_out(left_out: dict[str, str], contender: Contender, child: Child) -> Any:
    """Notes why a contender cannot go on and ends its process; the others do go on."""
    try:
        yield
    except ContenderError as error:
        left_out[contender.title] = str(error)
        child.close()


def _prepared(child: Child, workload: Workload) -> dict[str, Any]:
    """Compiles, and starts if the memory is there for it; returns what was found out on the way."""
    title = child.contender.title
    facts = child.ask('compile', runs=True, forward=True)
    if facts['parameters'] != workload.parameters():
        raise ContenderError(
            f'{title} has {facts["parameters"]:,} parameters, not {workload.parameters():,}: it is another model'
        )
    if problem := too_large(child, facts['planned']):
        raise ContenderError(f'{title} {problem}')
    return facts | child.ask('start', forward=True)


def too_large(child: Child, planned: dict[str, int] | None, of: str = 'total') -> str:
    """Returns why there is too little memory for a training step, as it is planned; '' if there is enough.

    Args:
        child: A contender that has compiled.
        planned: What compiling told of memory, see `jax_contender.planned`.
        of: Which of it is still to be found: 'temporary' where the arguments are there already.
    """
    if planned is None:
        return ''
    device = child.ask('device')
    free = measuring.available() if device['platform'] == 'cpu' else device['bytes']
    wanted = planned[of]
    if free is None or wanted <= free:
        return ''
    return f'is predicted to take {memory.amount(wanted)} where {memory.amount(free)} can be had'


def _rounds(
    running: list[Turns], rounds: int, seconds: float, left_out: dict[str, str], tell: Tell
) -> list[Turns]:
    """Has everyone take steps in turn; returns those who got to the end."""
    end = time.perf_counter() + seconds
    for number in range(rounds):
        if number >= FEWEST and time.perf_counter() > end:
            break
        tell(f'round {number + 1} of at most {rounds}')
        for what in WHAT:
            first = number % max(1, len(running))  # everyone comes first as often as the others
            for turns in running[first:] + running[:first]:
                if turns.child.contender.title in left_out:  # it ended while another wanted room
                    continue
                with _leaving_out(left_out, turns.child.contender, turns.child):
                    if what == 'train':
                        _make_room(turns, running, left_out)
                    turns.seconds[what].append(turns.child.ask(what))
            running = [turns for turns in running if turns.child.contender.title not in left_out]
    return running


def _make_room(turns: Turns, running: list[Turns], left_out: dict[str, str]) -> None:
    """Has the others give back memory that they keep, where a training step wants it: their next one is slower."""
    if not too_large(turns.child, turns.facts['planned'], 'temporary'):
        return
    for other in running:
        if other is not turns and other.child.contender.title not in left_out:
            with _leaving_out(left_out, other.child.contender, other.child):
                other.child.ask('rest')


def _best(peaks: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    return max((peak for peak in peaks if peak), key=lambda peak: peak['flops'], default=None)


def _row(
    turns: Turns, workload: Workload, flops: dict[str, float], peak: dict[str, Any] | None
) -> dict[str, Any]:
    """Returns the figures of a contender.

    `train` and `forward` are `{seconds (all of them), median, low, high (quartiles), flops_per_second, mfu}`; beside
    them `clips_per_second` of training and what preparing it told. There is no MFU where the peak was measured in
    another type than this one computes in.
    """
    contender = turns.child.contender
    dtype = asked_of(contender.name, workload).dtype
    of_type = peak if peak and peak.get('dtype', dtype) == dtype else None
    row: dict[str, Any] = {'name': contender.name, 'title': contender.title}
    for what, seconds in turns.seconds.items():
        rate = flops[what] / measuring.spread(seconds)['median']
        row[what] = {
            'seconds': seconds,
            **measuring.spread(seconds),
            'flops_per_second': rate,
            'mfu': rate / of_type['flops'] if of_type else None,
        }
    return row | {'clips_per_second': workload.batch / row['train']['median']} | turns.facts


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns how much slower others are than the first, and how much more memory they take.

    Those that compute in bfloat16 are compared with the first in bfloat16, where that took part. Of those that took
    part twice under a name (with OpenMP's threads waiting either way) the faster counts, in training and forward each
    for itself.
    """
    same = next((row for row in rows if row['name'] == rows[0]['name'] + BFLOAT16), rows[0])
    result = []
    for name in dict.fromkeys(row['name'] for row in rows[1:]):
        first = same if name.endswith(BFLOAT16) and name != same['name'] else rows[0]
        of_name = [row for row in rows[1:] if row['name'] == name]
        entry: dict[str, Any] = {'name': name, 'of': first['name']}
        for what in WHAT:
            best = min(of_name, key=lambda row: row[what]['median'])
            entry[what] = {
                **measuring.ratio(best[what]['seconds'], first[what]['seconds']),
                'title': best['title'],
            }
        peaks = [row['peak_bytes'] for row in of_name]
        both = first['peak_bytes'] and all(peaks)
        entry['memory'] = min(peaks) / first['peak_bytes'] if both else None
        result.append(entry)
    return result
