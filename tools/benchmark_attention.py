"""Times attention by each backend over the number of tokens, forward and with the backward pass, side by side.

All take turns in one process, on the same numbers. Milliseconds are medians, with quartiles. Memory is what XLA plans
for temporary arrays, and behind it, on CPUs, what the process was seen to take: libraries that XLA calls take some of
their own, which it does not plan. "differs" is the largest difference from the first in the table, as a share of its
largest number. What would need more than the memory limit is planned, not run. At the end stand the powers of the
number of tokens with which time and memory (the larger of the two) grow, fitted from --fit-from tokens on: shorter
sequences may be one block, which takes memory like the matrix of all weights.

patterns:
  all     every token attends to every other: a backend each, and "linen", linen's own function in its own layout
          (heads behind tokens)
  space   within each of --frames frames, in three ways: frames folded into the batch (as the models do, by each
          backend), as one more batch axis, and by vmap
  time    the same between the same places of all frames

examples:
  python tools/benchmark_attention.py
  python tools/benchmark_attention.py --tokens=197,785,3137 --dtype=bfloat16 --output=attention.json
  python tools/benchmark_attention.py --pattern=space --tokens=3136 --frames=16
  python tools/benchmark_attention.py --planned --backends xla blockwise --plot=memory.png
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from benchmark_train import about
from benchmarking import exponents, files, measuring, tables
from benchmarking.jax_contender import planned
from benchmarking.workload import at_least_one
from einops import rearrange

from vivit_jax import help_text, sharding
from vivit_jax.models.attention import BACKENDS, FOLDS, choose_backend, dot_product_attention
from vivit_jax.telling.memory import amount, resident

TOKENS = (197, 393, 785, 1569, 3137, 6272, 12544)
PATTERNS = ('all', 'space', 'time')
WHAT = {'forward': 'forward', 'train': 'forward + backward'}
LINEN = 'linen'
# Share of the memory that can be had, if no limit is given.
SHARE = 0.7
# Backends that never hold the matrix of all weights.
WEIGHTLESS = ('blockwise', 'cudnn', 'flash')
# A power of the tokens up to which memory counts as linear.
LINEAR = 1.1
COSTS = {'forward_seconds': 'forward, s', 'train_seconds': 'forward + backward, s'}
COSTS |= {'forward_memory': 'memory, forward, bytes', 'train_memory': 'memory, with backward, bytes'}
Attention = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Way:
    """A way to compute an attention.

    Attributes:
        name: Of it, in tables.
        attention: From queries, keys and values to what is mixed, all in one layout.
        tokens_first: Whether that is `[b n heads c]`, instead of `[b heads n c]`.
    """

    name: str
    attention: Attention
    tokens_first: bool = False

    def run(self, train: bool) -> Callable[..., Any]:
        """Returns a function of queries, keys, values and the gradient by what comes out."""

        def forward(query: Any, key: Any, value: Any, _: Any) -> Any:
            return self.attention(query, key, value)

        def both(query: Any, key: Any, value: Any, gradient: Any) -> Any:
            mixed, backward = jax.vjp(self.attention, query, key, value)
            return mixed, backward(gradient)

        return both if train else forward


def main() -> None:
    """Runs the command line."""
    parser = _parser()
    options = parser.parse_args()
    try:
        _check(options)
        one = sharding.make_mesh(devices=jax.local_devices()[:1])  # of perhaps several
        with sharding.in_use(one):
            report = measure(options)
        found = _curves(report)
        print('\n'.join(_text(report, found)))
        report |= {'fits': exponents.as_json(found), 'linear': _linear(found)}
        if options.output:
            pathlib.Path(options.output).write_text(json.dumps(about() | report, indent=1) + '\n')
        if options.plot:
            exponents.draw(found, report['title'], options.plot)
    except (ValueError, OSError) as error:
        parser.exit(2, f'error: {error}\n')


def _parser() -> argparse.ArgumentParser:
    parser = help_text.parser(__doc__)
    what = parser.add_argument_group('what is computed')
    what.add_argument('--pattern', choices=PATTERNS, default='all', help='who attends to whom (all)')
    what.add_argument('--tokens', type=_numbers, default=TOKENS, metavar='N,N', help='of a clip')
    what.add_argument(
        '--frames', type=at_least_one, default=16, metavar='N', help='space and time: of a clip (16)'
    )
    what.add_argument('--batch', type=at_least_one, default=1, metavar='N', help='clips (1)')
    what.add_argument('--heads', type=at_least_one, default=12, metavar='N', help='12')
    what.add_argument('--per-head', type=at_least_one, default=64, metavar='N', help='numbers of a head (64)')
    what.add_argument(
        '--dtype', choices=('float32', 'bfloat16', 'float16'), default='float32', help='float32'
    )
    names = ', '.join((*BACKENDS, LINEN))
    what.add_argument('--backends', nargs='+', metavar='NAME', help=f'some of {names}; all that run here')
    much = parser.add_argument_group('how much is measured')
    much.add_argument('--rounds', type=at_least_one, default=7, metavar='N', help='turns of each (7)')
    much.add_argument('--planned', action='store_true', help='memory as planned; nothing is run')
    much.add_argument(
        '--memory-limit',
        type=float,
        metavar='GIB',
        help=f'what one may take ({SHARE:.0%}% of what can be had)',
    )
    much.add_argument(
        '--fit-from', type=at_least_one, default=1024, metavar='N', help='fewest tokens of fits (1024)'
    )
    much.add_argument('--output', metavar='FILE.json', help='all figures')
    much.add_argument('--plot', metavar='FILE.png', help='the curves, with both axes logarithmic')
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raises, before anything is measured, where options do not go together or files cannot be written."""
    files.check(options)
    if options.memory_limit is not None and not 0 < options.memory_limit < math.inf:
        raise ValueError(f'--memory-limit={options.memory_limit:g}: GiB, more than 0')
    known = (*BACKENDS, LINEN)
    if unknown := [name for name in options.backends or () if name not in known]:
        raise ValueError(f'--backends {unknown[0]}: choose some of {", ".join(known)}')
    if options.pattern == 'all':
        return
    if LINEN in (options.backends or ()):
        raise ValueError('--backends linen has no frames: it goes with --pattern=all')
    if uneven := [tokens for tokens in options.tokens if tokens % options.frames]:
        raise ValueError(f'--tokens={uneven[0]}: {options.frames} frames (--frames) do not divide them')


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Returns a row for every way at every number of tokens, and how it was measured."""
    device = jax.devices()[0]
    limit = _limit(options)
    rows: list[dict[str, Any]] = []
    for tokens in options.tokens:
        rows += _measure(options, tokens, limit)
    across = '' if options.pattern == 'all' else f' over {options.pattern} in {options.frames} frames'
    return {
        'title': f'attention{across}, batch {options.batch}, {options.heads} heads of {options.per_head}, '
        f'{options.dtype}; {device.device_kind} ({device.platform})',
        'settings': vars(options),
        'device': {'kind': device.device_kind, 'platform': device.platform},
        'memory_limit': finite(limit),
        'rows': rows,
    }


def _limit(options: argparse.Namespace) -> float:
    """Returns how many bytes a way may take."""
    if options.memory_limit is not None:
        return options.memory_limit * 2**30
    stats = jax.devices()[0].memory_stats() or {}
    had = stats.get('bytes_limit') or measuring.available()
    return math.inf if had is None else SHARE * had


def finite(limit: float) -> float | None:
    """Returns a limit for a file: None where there is none."""
    return limit if limit < math.inf else None


def _measure(options: argparse.Namespace, tokens: int, limit: float) -> list[dict[str, Any]]:
    """Compiles all ways at one number of tokens, then has those that fit take turns."""
    shape = (options.batch, options.heads, tokens, options.per_head)
    rows, programs = [], {}
    for way in ways(options, shape):
        row: dict[str, Any] = {'name': way.name, 'tokens': tokens, 'why': ''}
        _tell(f'{tokens} tokens, {way.name}: compiling')
        part = jax.ShapeDtypeStruct(_laid(shape, way), options.dtype)
        for what in WHAT:
            program = jax.jit(way.run(what == 'train')).lower(part, part, part, part).compile()
            plan = planned(program)
            row[f'{what}_planned'] = plan and plan['temporary']
            if plan and plan['total'] > limit:
                row['why'] = f'needs {amount(plan["total"])} of {amount(limit)}'
            programs[way.name, what] = program
        rows.append(row)
    if not options.planned:
        running = [way for way, row in zip(ways(options, shape), rows, strict=True) if not row['why']]
        _tell(f'{tokens} tokens: {options.rounds} rounds')
        found = _take_turns(running, programs, shape, options)
        for row in rows:
            row |= found.get(row['name'], {})
    for row, what in itertools.product(rows, WHAT):
        known = [size for size in (row[f'{what}_planned'], row.get(f'{what}_seen')) if size is not None]
        row[f'{what}_memory'] = max(known, default=None)
    return rows


def _take_turns(
    running: Sequence[Way], programs: dict[Any, Any], shape: tuple[int, ...], options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Returns the seconds of each way, and how far it is from the first."""
    random = np.random.default_rng(0)
    drawn = [jnp.asarray(random.normal(size=shape), options.dtype) for _ in range(4)]
    other = [part.swapaxes(1, 2) for part in drawn] if any(way.tokens_first for way in running) else []
    inputs = {way.name: other if way.tokens_first else drawn for way in running}
    found: dict[str, dict[str, Any]] = {way.name: {} for way in running}
    right = None
    for way in running:
        mixed = programs[way.name, 'forward'](*inputs[way.name])
        mixed = np.asarray(mixed.swapaxes(1, 2) if way.tokens_first else mixed, np.float32)
        right = mixed if right is None else right
        found[way.name]['differs'] = float(np.abs(mixed - right).max() / np.abs(right).max())
    for what in WHAT:
        seconds: dict[str, list[float]] = {way.name: [] for way in running}
        order = list(seconds)
        for number in range(options.rounds + 1):
            for name in order:
                step = functools.partial(_finish, programs[name, what], inputs[name])
                seconds[name].append(measuring.seconds(step))
            order = order[1:] + order[:1]  # each goes first as often as the others
            if number == 0:  # to get warm
                seconds = {name: [] for name in seconds}
        for name, values in seconds.items():
            found[name] |= {f'{what}_seconds': float(np.median(values)), what: measuring.spread(values)}
            found[name][f'{what}_seen'] = _seen(
                functools.partial(_finish, programs[name, what], inputs[name])
            )
    return found


def _seen(step: Callable[[], None]) -> int | None:
    """Returns what the process takes for a step beside what it holds, in bytes; None where arrays are elsewhere."""
    if jax.default_backend() != 'cpu':
        return None
    measuring.settle()
    before = resident()
    peak = measuring.peak_over(step)
    return None if peak is None else max(0, peak - before)


def _finish(program: Callable[..., Any], inputs: Sequence[jax.Array]) -> None:
    jax.block_until_ready(program(*inputs))


def ways(options: argparse.Namespace, shape: tuple[int, ...]) -> list[Way]:
    """Returns how an attention is computed: by those backends asked for, or all that can do it here.

    Raises:
        ValueError: If one that is asked for cannot do it here.
    """
    backends = [name for name in options.backends or _possible(options, shape) if name != LINEN]
    for name in backends:
        choose_backend(name, shape, options.dtype)
    by_backend = {name: functools.partial(dot_product_attention, backend=name) for name in backends}
    if options.pattern == 'all':
        found = [Way(name, attention) for name, attention in by_backend.items()]
        if LINEN in (options.backends or [LINEN]):
            found.append(Way(LINEN, nn.dot_product_attention, tokens_first=True))
        return found
    sizes = {'t': options.frames, 'h': shape[2] // options.frames, 'w': 1}
    fold = functools.partial(_folded, pattern=options.pattern, sizes=sizes)
    apart = functools.partial(_apart, pattern=options.pattern, frames=options.frames)
    by_name: dict[str, Attention] = {f'folded, {name}': functools.partial(fold, name) for name in backends}
    by_name |= {'batch axes': apart(_formula), 'vmap': apart(_vmapped)}
    return [Way(name, attention, tokens_first=True) for name, attention in by_name.items()]


def _possible(options: argparse.Namespace, shape: tuple[int, ...]) -> list[str]:
    """Returns the backends that can do it here."""
    found = []
    for name in BACKENDS[1:]:
        with contextlib.suppress(ValueError):
            found.append(choose_backend(name, shape, options.dtype))
    return found


def _folded(backend: str, *parts: jax.Array, pattern: str, sizes: dict[str, int]) -> jax.Array:
    """Attends as the models do: what does not attend to one another goes into the batch."""
    tokens, folded = FOLDS[pattern].split(' -> ')
    mixed = dot_product_attention(
        *(rearrange(part, f'{tokens} -> {folded}', **sizes) for part in parts), backend=backend
    )
    return rearrange(mixed, f'{folded} -> {tokens}', **sizes)


def _apart(attention: Attention, *, pattern: str, frames: int) -> Attention:
    """Returns an attention over the last but one of five axes, with frames or places as an axis before it."""
    split = 'b heads t s c' if pattern == 'space' else 'b heads s t c'

    def attend(*parts: jax.Array) -> jax.Array:
        mixed = attention(*(rearrange(part, f'b (t s) heads c -> {split}', t=frames) for part in parts))
        return rearrange(mixed, f'{split} -> b (t s) heads c')

    return attend


def _formula(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    scores = jnp.einsum('bhgqc,bhgkc->bhgqk', query / math.sqrt(query.shape[-1]), key)
    return jnp.einsum(
        'bhgqk,bhgkc->bhgqc', jax.nn.softmax(scores.astype(jnp.float32)).astype(value.dtype), value
    )


def _vmapped(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    attention = functools.partial(dot_product_attention, backend='xla')
    return jax.vmap(attention, in_axes=2, out_axes=2)(query, key, value)


def _laid(shape: tuple[int, ...], way: Way) -> tuple[int, ...]:
    batch, heads, tokens, per_head = shape
    return (batch, tokens, heads, per_head) if way.tokens_first else shape


def _curves(report: dict[str, Any]) -> list[exponents.Curve]:
    return exponents.curves(report['rows'], 'tokens', COSTS, report['settings']['fit_from'])


def _linear(found: Sequence[exponents.Curve]) -> dict[str, bool]:
    """Returns whether the memory of each backend without the weights grows no faster than the tokens."""
    verdicts: dict[str, bool] = {}
    for curve in found:
        if curve.cost.endswith('bytes') and curve.name in WEIGHTLESS and (law := curve.fit()):
            verdicts[curve.name] = verdicts.get(curve.name, True) and law.exponent <= LINEAR
    return verdicts


def _text(report: dict[str, Any], found: Sequence[exponents.Curve]) -> Iterator[str]:
    yield from (report['title'], '')
    memory = [f'{title}, memory' for title in WHAT.values()]
    yield from tables.table(
        'tokens', '', *(f'{title}, ms' for title in WHAT.values()), *memory, 'differs', ''
    )
    for row in report['rows']:
        times = [_milliseconds(row.get(what)) for what in WHAT]
        plans = [_amounts(row[f'{what}_planned'], row.get(f'{what}_seen')) for what in WHAT]
        differs = f'{row["differs"]:.0e}' if 'differs' in row else ''
        yield tables.line(row['tokens'], row['name'], *times, *plans, differs, row['why'])
    yield from ('', *exponents.of_fits(found), '')
    for name, linear in _linear(found).items():
        yield f'{name}: memory is {"linear" if linear else "NOT linear"} in the tokens (power at most {LINEAR:g})'


def _milliseconds(values: dict[str, float] | None) -> str:
    if values is None:
        return ''
    median, low, high = (f'{1000 * values[name]:.3g}' for name in ('median', 'low', 'high'))
    return f'{median} ({low} to {high})'


def _amounts(plan: float | None, seen: float | None) -> str:
    """Returns the memory that is planned, and that was seen."""
    shown = '' if plan is None else amount(plan)
    return shown if seen is None else f'{shown} ({amount(seen)})'


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(at_least_one(number) for number in text.split(','))


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == '__main__':
    main()
