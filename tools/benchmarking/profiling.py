"""Where the time of a step goes: operations that jax's profiler saw, added up by what they are for."""

import collections
import dataclasses
import gzip
import json
import pathlib
import re
import tempfile
from collections.abc import Iterable
from typing import Any

import jax

from benchmarking import measuring

STEP = 'benchmark_step'
WARM = 2
PRODUCTS = ('dot_general', 'conv_general_dilated')
MICRO = 1e6  # the trace counts in microseconds
# An instruction of a compiled program, and what of the source it was made for.
INSTRUCTION = re.compile(
    r'^\s*(?:ROOT )?%?(?P<op>[\w.-]+) = .*?metadata=\{[^\n]*?op_name="(?P<of>[^"]*)"', re.M
)


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that a line of the trace (a thread, a stream) was doing.

    Attributes:
        line: Which of them.
        name: The operation, as the compiled program names it.
        start: Microseconds.
        end: Microseconds.
    """

    line: tuple[int, int]
    name: str
    start: float
    end: float


def profile(contender: Any, of: str, steps: int) -> dict[str, Any]:
    """Traces steps of a contender in JAX that has been started.

    Args:
        contender: A `JaxContender`.
        of: Which steps, 'train' or 'forward'.
        steps: How many.

    Returns:
        `operations`, the longest first, each `{what, pass, seconds (a step), share (of all operations), events (a
        step)}`; `products_share`, of products among them; `idle_share`, of the time of the steps in which no line did
        anything; `seconds_per_step` while traced and `untraced_seconds_per_step`; `lines`, which had operations.

    Raises:
        ValueError: If the contender is not in JAX, or the trace holds no operations.
    """
    if not hasattr(contender, 'train_program'):
        raise ValueError('--profile reads traces of jax: choose a contender in JAX')
    step, program = getattr(contender, of), getattr(contender, f'{of}_program')
    plain = [measuring.seconds(step) for _ in range(WARM + steps)][WARM:]
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for number in range(steps):
                with jax.profiler.StepTraceAnnotation(STEP, step_num=number):
                    step()
        windows, events = read(pathlib.Path(folder))
    if not events or not windows:
        raise ValueError('the trace of jax.profiler holds no operations: this device does not tell them')
    purposes = purpose_by_operation(program.as_text())
    wall = sum(end - start for start, end in windows)
    found = operations(events, purposes, len(windows))
    return {
        'of': of,
        'operations': found,
        'products_share': sum(row['share'] for row in found if row['what'].endswith(PRODUCTS)),
        'idle_share': 1 - busy(events, windows) / wall,
        'seconds_per_step': wall / MICRO / len(windows),
        'untraced_seconds_per_step': measuring.spread(plain)['median'],
        'lines': len({event.line for event in events}),
        'steps': len(windows),
    }


def read(folder: pathlib.Path) -> tuple[list[tuple[float, float]], list[Event]]:
    """Reads the trace in a folder: the steps, from and to, and the operations of compiled programs in all lines."""
    windows, events = [], []
    for path in sorted(folder.rglob('*.trace.json.gz')):
        with gzip.open(path) as file:
            entries = json.load(file).get('traceEvents', [])
        for entry in entries:
            if entry.get('ph') != 'X':
                continue
            start, arguments = float(entry['ts']), entry.get('args') or {}
            end = start + float(entry.get('dur', 0))
            if entry.get('name') == STEP:
                windows.append((start, end))
            elif name := arguments.get('hlo_op'):
                events.append(Event((entry['pid'], entry['tid']), name, start, end))
    return windows, events


def purpose_by_operation(text: str) -> dict[str, tuple[str, str]]:
    """Returns what each instruction of a compiled program is for, and in which pass, as its text tells."""
    return {match['op']: purpose(match['of']) for match in INSTRUCTION.finditer(text)}


def purpose(name: str) -> tuple[str, str]:
    """Says in short what an operation's long name tells.

    Args:
        name: As 'jit(step)/transpose(jvp(ViViT))/Transformer/encoderblock_3/MlpBlock_0/Dense_0/dot_general'.

    Returns:
        The end of the path, as 'MlpBlock_0/Dense_0/dot_general', with blocks of all layers together; and 'forward',
        'backward', 'recomputed' or '' (neither: the optimiser, and what the batch is made into).
    """
    name = name.split(';')[0]
    of = ''
    if 'jvp(' in name:
        of = 'backward' if 'transpose(' in name else 'forward'
        of = 'recomputed' if 'rematted_computation' in name else of
    parts = [
        part
        for part in name.split('/')
        if not re.search(r'[(\[]|^(while|body|cond|branch_\d+_fun|checkpoint|closed_call)$', part)
    ]
    parts = [part for part in parts if part != 'rematted_computation' and '.' not in part.replace('...', '')]
    for place, part in enumerate(parts):
        if part.lower().startswith('encoderblock'):
            parts = parts[place + 1 :]
            break
    return '/'.join(parts[-4:]) or name.rsplit('/', 1)[-1], of


def operations(
    events: Iterable[Event], purposes: dict[str, tuple[str, str]], steps: int
) -> list[dict[str, Any]]:
    """Adds up what operations took, without those inside of them, by what they are for; the longest first."""
    total: dict[tuple[str, str], float] = collections.defaultdict(float)
    count: collections.Counter[tuple[str, str]] = collections.Counter()
    for name, own in own_time(events):
        # Of what the program does not tell, the kind: names of the same kind differ by a number at the end.
        what = purposes.get(name, (re.sub(r'[.\d]+$', '', name), ''))
        total[what] += own
        count[what] += 1
    whole = sum(total.values()) or 1.0
    return [
        {
            'what': what,
            'pass': of,
            'seconds': own / MICRO / steps,
            'share': own / whole,
            'events': count[what, of] / steps,
        }
        for (what, of), own in sorted(total.items(), key=lambda item: -item[1])
    ]


def own_time(events: Iterable[Event]) -> list[tuple[str, float]]:
    """Returns the time of each event without that of others inside of it in its line (the body of a loop)."""
    result = []
    by_line = collections.defaultdict(list)
    for event in events:
        by_line[event.line].append(event)
    for line in by_line.values():
        open_: list[list[Any]] = []  # event and its own time, the outermost first
        for event in sorted(line, key=lambda event: (event.start, -event.end)):
            while open_ and open_[-1][0].end <= event.start:
                result.append((open_[-1][0].name, open_.pop()[1]))
            if open_:
                open_[-1][1] -= min(event.end, open_[-1][0].end) - event.start
            open_.append([event, event.end - event.start])
        result += [(event.name, own) for event, own in open_]
    return result


def busy(events: Iterable[Event], windows: Iterable[tuple[float, float]]) -> float:
    """Returns for how long, within the windows, at least one line had an operation under way, in microseconds."""
    spans: list[list[float]] = []
    for event in sorted(events, key=lambda event: event.start):
        if spans and event.start <= spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], event.end)
        else:
            spans.append([event.start, event.end])
    return sum(max(0.0, min(end, to) - max(start, from_)) for start, end in spans for from_, to in windows)
