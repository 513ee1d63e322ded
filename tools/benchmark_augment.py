"""Measures what a flip and colours cost on the host and inside the training step: data.augment_on=host or device.

The same draws on the same clips, each of which is changed: by numpy and OpenCV in one thread, as in a thread that
reads; and by the compiled program, as what it takes longer than turning the clips into floats alone, which a step
does anyway. All take turns in one run; times are medians over its rounds, with the lowest and highest ratio.

A reading thread is spared the time of the host, and a step of b clips takes b times that of the device longer. That
is worth it where steps wait for data (data_wait of metrics.jsonl above 0). Where the device is the host's own
processor, the same cores do either, and the ratio of processor times counts. The host leaves clips alone that
data.colour_jitter=0.8 does not draw, so that its share is 0.8 of what stands here; the device computes every clip.

examples:
  python tools/benchmark_augment.py
  python tools/benchmark_augment.py --frames=16 --size=112 --batch=32 --rounds=20 --json=augment.json
"""

import json
import os
import pathlib
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import jax
import numpy as np

from vivit_jax import augment, evaluate, help_text
from vivit_jax.data import transforms

CHAINS: dict[str, tuple[transforms.OnDevice, ...]] = {
    'flip': (transforms.RandomFlip(probability=1.0),),
    'colour jitter': (transforms.ColourJitter(probability=1.0),),
    'colour drop': (transforms.ColourDrop(probability=1.0),),
}
CHAINS['all three'] = tuple(transform for chain in CHAINS.values() for transform in chain)
ALONE = 'floats alone'
CLOCKS = ('wall', 'processor')
Seconds = tuple[float, float]  # by each of them


def main() -> None:
    """Runs the command line."""
    parser = help_text.parser(__doc__)
    parser.add_argument('--frames', type=int, default=32, metavar='N', help='of a clip (32)')
    parser.add_argument(
        '--size', type=int, default=224, metavar='N', help='pixels of a frame, either way (224)'
    )
    parser.add_argument('--batch', type=int, default=4, metavar='N', help='clips (4)')
    parser.add_argument('--rounds', type=int, default=10, metavar='N', help='10')
    parser.add_argument('--json', metavar='FILE', help='also write all figures there')
    parsed = parser.parse_args()
    if min(parsed.frames, parsed.size, parsed.batch, parsed.rounds) < 1:
        parser.error('--frames, --size, --batch and --rounds must be at least 1')
    if parsed.json and not pathlib.Path(parsed.json).parent.is_dir():
        parser.error(f'--json={parsed.json}: {pathlib.Path(parsed.json).parent} is not a folder')
    report = measure(parsed.frames, parsed.size, parsed.batch, parsed.rounds)
    print('\n'.join(told(report)))
    if parsed.json:
        try:
            pathlib.Path(parsed.json).write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
        except OSError as error:
            sys.exit(f'error: --json={parsed.json} cannot be written: {error.strerror}')


def measure(frames: int, size: int, batch: int, rounds: int) -> dict[str, Any]:
    """Returns milliseconds a clip on the host and added on the device, by each clock, and their ratios."""
    video = np.random.default_rng(0).integers(0, 256, (batch, frames, size, size, 3), np.uint8)
    programs: dict[tuple[str, str], Callable[[], Any]] = {('device', ALONE): _on_device(video, ())}
    for name, chain in CHAINS.items():
        programs['host', name] = _on_host(video, chain)
        programs['device', name] = _on_device(video, chain)
    for program in programs.values():
        program()
    seconds: dict[tuple[str, str], list[Seconds]] = {which: [] for which in programs}
    order = list(programs)
    for _ in range(rounds):
        order.append(order.pop(0))  # each goes first in turn
        for which in order:
            seconds[which].append(_timed(programs[which]))
    alone = seconds['device', ALONE]
    # Of another device the processor's time is none of its work.
    clocks = CLOCKS if jax.default_backend() == 'cpu' else CLOCKS[:1]
    rows = []
    for name in CHAINS:
        row: dict[str, Any] = {'what': name}
        for clock in clocks:
            place = CLOCKS.index(clock)
            host = [times[place] for times in seconds['host', name]]
            both = zip(seconds['device', name], alone, strict=True)
            device = [times[place] - less[place] for times, less in both]
            row[clock] = {
                'host': _a_clip(host, batch),
                'device': _a_clip(device, batch),
                **_ratios(host, device),
            }
        rows.append(row)
    return {
        'command': ' '.join(sys.argv),
        'device': f'{jax.devices()[0].device_kind} ({jax.default_backend()})',
        'host': f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores, OpenCV {cv2.__version__}, '
        f'jax {jax.__version__}',
        'clips': f'{batch} of {frames} x {size} x {size} x 3, {rounds} rounds',
        'floats_alone': _a_clip([each[0] for each in alone], batch),
        'rows': rows,
    }


def _on_host(video: np.ndarray, chain: tuple[transforms.OnDevice, ...]) -> Callable[[], Any]:
    return lambda: [
        transforms.apply(chain, clip, np.random.default_rng(number)) for number, clip in enumerate(video)
    ]


def _on_device(video: np.ndarray, chain: tuple[transforms.OnDevice, ...]) -> Callable[[], Any]:
    """Returns the program whose draws are those of `_on_host`, its data on the device already."""
    generators = [np.random.default_rng(number) for number in range(len(video))]
    batch = {'video': video}
    for each in chain:
        batch[each.entry] = np.stack(
            [each.draw(clip, rng) for clip, rng in zip(video, generators, strict=True)]
        )
    placed = jax.device_put(batch, jax.devices()[0])
    program = jax.jit(lambda batch: evaluate.to_float(augment.augment(batch)))
    return lambda: jax.block_until_ready(program(placed))


def _timed(program: Callable[[], Any]) -> Seconds:
    began, processor = time.perf_counter(), time.process_time()
    program()
    return time.perf_counter() - began, time.process_time() - processor


def _a_clip(seconds: list[float], batch: int) -> float:
    return 1000 * statistics.median(seconds) / batch


def _ratios(host: list[float], device: list[float]) -> dict[str, float | None]:
    """Returns how many times the device's time the host's is; None where some round sees no time on the device."""
    if min(device) <= 0:
        return {'ratio': None, 'lowest': None, 'highest': None}
    ratios = [one / other for one, other in zip(host, device, strict=True)]
    return {'ratio': statistics.median(ratios), 'lowest': min(ratios), 'highest': max(ratios)}


def told(report: dict[str, Any]) -> Iterator[str]:
    """Writes the figures down for people."""
    clocks = [clock for clock in CLOCKS if clock in report['rows'][0]]
    yield f'device: {report["device"]}; host: {report["host"]}'
    yield f'clips: {report["clips"]}; floats alone take the device {report["floats_alone"]:.2f} ms a clip'
    yield ''
    header = [f'| host, {clock} ms a clip | device, {clock} ms a clip | host / device' for clock in clocks]
    yield f'| what {" ".join(header)} |'
    yield f'| --- {"| --- | --- | --- " * len(clocks)}|'
    for row in report['rows']:
        cells = [row['what']]
        for clock in clocks:
            figures = row[clock]
            cells += [f'{figures["host"]:.2f}', f'{max(figures["device"], 0):.2f}', _ratio(figures)]
        yield f'| {" | ".join(cells)} |'


def _ratio(figures: dict[str, float | None]) -> str:
    if figures['ratio'] is None:
        return 'below noise'
    return f'{figures["ratio"]:.2f} ({figures["lowest"]:.2f} to {figures["highest"]:.2f})'


if __name__ == '__main__':
    main()
