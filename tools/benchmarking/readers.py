"""Readers of clips out of video files, ours beside others, and turns that they take."""

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import av
import cv2
import numpy as np
from ml_collections import ConfigDict

from vivit_jax.data import clips, transforms
from vivit_jax.data.files import decoding
from vivit_jax.data.files.time_limit import TimeLimit
from vivit_jax.data.files.video_container import OPTIONS
from vivit_jax.data.record import Found, Source

OURS, PLAIN, DECORD = 'vivit_jax', 'plain PyAV loop', 'decord'
Drawn = tuple[str, Found, np.ndarray]  # a file, what was found in it, and the frames of a clip
Reader = Callable[[str, Found, np.ndarray], np.ndarray]


def draw(config: ConfigDict, source: Source, number: int) -> list[Drawn]:
    """Draws training clips, as many of each file; none where a source does not read video files."""
    rng = np.random.default_rng(0)
    order = rng.permutation(len(source))[:number].tolist()
    paths = [source.path(index) for index in order] if hasattr(source, 'path') else []
    outcomes = [(path, decoding.probe(path)) for path in paths if os.path.isfile(path)]
    files = [(path, found) for path, found in outcomes if not isinstance(found, str)]
    settings = {'frames': config.data.frames, 'stride': config.data.stride, 'short': config.data.short}
    chosen = itertools.islice(itertools.cycle(files), number)
    return [(path, found, clips.random_clip(found.num_frames, rng=rng, **settings)) for path, found in chosen]


def plain_loop(path: str, found: Found, indices: np.ndarray) -> np.ndarray:
    """Reads a clip as one would at first: by time, as if frames were evenly spaced."""
    wanted = set(indices.tolist())
    frames = {}
    with av.open(path, **OPTIONS) as container:
        stream = container.streams.video[0]
        stream.thread_type = av.codec.context.ThreadType.NONE  # or it would be more than one core's
        stream.thread_count = 1
        rate = stream.average_rate
        container.seek(int(indices.min() / float(rate) / float(stream.time_base)), stream=stream)
        for frame in container.decode(stream):
            place = round(frame.time * rate)
            if place in wanted:
                frames[place] = frame.to_ndarray(format='rgb24')
            if place >= indices.max():
                break
    # A frame that is missing is replaced by the nearest.
    return np.stack([frames[min(frames, key=lambda place: abs(place - i))] for i in indices.tolist()])


def from_start(path: str, found: Found, indices: np.ndarray) -> np.ndarray:
    """Decodes everything up to the last frame: slow, and right."""
    wanted, order = np.unique(indices, return_inverse=True)
    clip = np.empty((len(wanted), *found.frame_size, 3), np.uint8)
    container, stream = decoding.open_video(path)
    with container:
        decoding._decode_from_start(container, stream, wanted.tolist(), clip, TimeLimit(0))
    return clip[order]


def _decord(path: str, found: Found, indices: np.ndarray) -> np.ndarray:
    import decord

    return decord.VideoReader(path, num_threads=1).get_batch(indices.tolist()).asnumpy()


def plain_pixels(frames: np.ndarray, config: ConfigDict, rng: np.random.Generator) -> np.ndarray:
    """Resizes, crops and mirrors a clip frame by frame, to the pixels that the transforms make of it."""
    data = config.data
    old, crop = frames.shape[1:3], tuple(data.crop)
    new = list(old)
    if data.short_side:
        scale = max(data.short_side / min(old), crop[0] / old[0], crop[1] / old[1])
        jitter = tuple(data.scale_jitter)
        factors = (1.0, 1.0) if jitter == (1.0, 1.0) else rng.uniform(jitter[0], jitter[1], size=2)
        new = [max(int(o * scale * f + 1e-6), c) for o, f, c in zip(old, factors, crop, strict=True)]
    shrinks = new[0] <= old[0] and new[1] <= old[1]
    filter_ = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    top, left = (int(rng.integers(n - c + 1)) for n, c in zip(new, crop, strict=True))
    mirrored = rng.random() < data.flip if data.flip else False
    made = []
    for frame in frames:
        window = cv2.resize(frame, (new[1], new[0]), interpolation=filter_) if data.short_side else frame
        window = window[top : top + crop[0], left : left + crop[1]]
        made.append(window[:, ::-1] if mirrored else window)
    return np.stack(made)


def geometry(config: ConfigDict) -> tuple[transforms.Transform, ...]:
    """Returns what training does to a clip's frames, but for its colours."""
    data = config.data
    return transforms.training_transforms(
        short_side=data.short_side,
        crop=tuple(data.crop),
        scale_jitter=tuple(data.scale_jitter),
        flip=data.flip,
        colour_jitter=0.0,
        colour_drop=0.0,
        randaugment_layers=0,
        randaugment_magnitude=0.0,
    )


def compare(
    config: ConfigDict, drawn: Sequence[Drawn], rounds: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Returns a row of the table of readers each, and why files were left out."""
    readers: dict[str, Reader] = {OURS: decoding.read_frames, PLAIN: plain_loop}
    with contextlib.suppress(ImportError):
        import decord

        decord.logging.set_level(decord.logging.FATAL)
        readers[DECORD] = _decord
    failing: dict[str, str] = {}
    for (name, read), clip in itertools.product(readers.items(), drawn):
        try:
            if clip[0] not in failing:
                read(*clip)
        except Exception as error:  # of others' code, which may fail in any way
            failing[clip[0]] = f'{name}: {str(error).splitlines()[0][:100]}'
    drawn = [clip for clip in drawn if clip[0] not in failing]
    if not drawn:
        return [], failing
    chain = geometry(config)
    right = dict.fromkeys(readers, 0)
    for clip in drawn:
        frames = from_start(*clip)
        for name in (OURS, PLAIN):  # others may turn the same pixels into other colours
            right[name] += np.array_equal(readers[name](*clip), frames)

    def whole(read: Reader, clip: Drawn, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        frames = read(*clip)
        return (
            transforms.apply(chain, frames, rng)
            if read is decoding.read_frames
            else plain_pixels(frames, config, rng)
        )

    variants: dict[tuple[str, str], Callable[..., np.ndarray]] = {}
    for name, read in readers.items():
        variants['clips', name] = functools.partial(whole, read)
        variants['frames', name] = lambda clip, seed, read=read: read(*clip)
    seconds = take_turns(variants, drawn, rounds)
    rows = []
    for (what, name), times in sorted(seconds.items()):
        low, middle, high = np.quantile(np.array(seconds[what, PLAIN]) / times, (0, 0.5, 1)).tolist()
        row = {'what': what, 'reader': name, 'clips_per_cpu_second': len(drawn) / float(np.median(times))}
        row |= {'of_plain': middle, 'lowest': low, 'highest': high, 'clips': len(drawn)}
        rows.append(row if name == DECORD else row | {'right': right[name]})
    return rows, failing


def take_turns(
    variants: dict[Any, Callable[..., Any]], drawn: Sequence[Any], rounds: int
) -> dict[Any, list[float]]:
    """Returns the processor time of each variant in each round, all taking turns clip by clip."""
    order = list(variants)
    seconds: dict[Any, list[float]] = {name: [] for name in order}
    for turn in range(rounds):
        total = dict.fromkeys(order, 0.0)
        for seed, clip in enumerate(drawn):
            order.append(order.pop(0))  # each goes first as often as the others
            for name in order:
                began = time.process_time()
                variants[name](clip, seed + turn)
                total[name] += time.process_time() - began
        for name in order:
            seconds[name].append(total[name])
    return seconds
