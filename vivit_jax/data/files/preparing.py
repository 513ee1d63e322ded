"""Preparing videos once, so that they are read fast ever after: cut out, small, a key frame every few frames.

What a clip costs to decode is mostly the way to it from the key frame before, and the pixels that resizing throws
away. An example is therefore encoded anew: H.264 without B-frames, so that a clip needs at most one short group of
frames before it, and without the loop filter and arithmetic coding, which take half of the decoder's time.
"""

import dataclasses
import fractions
import io
import os
import pathlib
import signal
import threading
from collections.abc import Iterator
from multiprocessing import parent_process

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from vivit_jax.data.array_record import Prepared, Shard, write_shard
from vivit_jax.data.files.decoding import probe
from vivit_jax.data.record import Record, UnreadableExample

CLOCK = 90_000  # ticks a second
UNTIMED = 25  # frames a second of what has no time, as folders of frames
HELD = 2**29  # bytes of decoded frames that are held at a time
# No B-frames. Of x264's macroblock tree and assembly together, memory that was never written decides, and of some
# functions the processor: without them the same pixels are the same bytes, everywhere.
ENCODER = {
    'bf': '0',
    'preset': 'veryfast',
    'tune': 'fastdecode',
    'x264-params': 'mbtree=0:cpu-independent=1',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What prepared videos are like.

    Attributes:
        short_side: Pixels, even: frames with a longer short side are resized to it, none is enlarged; 0: none is
            resized. An odd number of pixels is rounded down, since chroma is stored for two by two of them.
        gop: Frames from one key frame to the next, at most.
        crf: Quality, 0 (lossless) to 51 (worst); 18 is hard to tell from the original.
    """

    short_side: int = 256
    gop: int = 16
    crf: int = 18

    def __post_init__(self):
        if self.short_side < 0 or self.short_side % 2:
            raise ValueError(f'short_side={self.short_side} must be an even number of pixels, or 0')
        if self.gop < 1:
            raise ValueError(f'gop={self.gop} must be at least 1 frame')
        if not 0 <= self.crf <= 51:
            raise ValueError(f'crf={self.crf} must be in [0, 51]')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One shard to prepare.

    Attributes:
        split: Whose it is.
        path: Where it goes.
        records: Its examples, in order.
        settings: What they become.
    """

    split: str
    path: pathlib.Path
    records: tuple[Record, ...]
    settings: Settings


def prepare(record: Record, settings: Settings) -> Prepared | str:
    """Encodes an example anew.

    Args:
        record: Of which all frames are read, some hundred megabytes at a time. They are spaced evenly over its
            time.
        settings: What it becomes.

    Returns:
        The content of an MP4 file, the same for the same pixels, and what `decoding.probe` finds in it; or why
        there is none.
    """
    try:
        video = _encode(record, settings)
    except UnreadableExample as error:
        return str(error)
    except av.FFmpegError as error:
        return f'cannot be encoded: {error.strerror}'
    found = probe(video)
    if isinstance(found, str):
        return f'cannot be read once encoded: {found}'
    if found.num_frames != record.num_frames:
        return f'has {found.num_frames} instead of {record.num_frames} frames once encoded'
    return video, found


def prepare_shard(job: Job) -> Shard:
    """Prepares the examples of a shard, one after another, and writes it; an OSError where it cannot be written."""
    return write_shard(job.path, (prepare(record, job.settings) for record in job.records))


def _encode(record: Record, settings: Settings) -> bytes:
    file = io.BytesIO()
    rate = fractions.Fraction(record.num_frames / (record.seconds or record.num_frames / UNTIMED))
    # 'bitexact': neither the time nor the library's version is written down.
    with av.open(file, 'w', format='mp4', options={'fflags': '+bitexact'}) as container:
        options = {'crf': str(settings.crf), 'g': str(settings.gop), **ENCODER}
        stream = container.add_stream('libx264', rate=rate.limit_denominator(CLOCK), options=options)
        stream.pix_fmt = 'yuv420p'
        stream.thread_count = 1  # other videos keep the other cores busy
        stream.codec_context.time_base = fractions.Fraction(1, CLOCK)
        reformatter = VideoReformatter()
        for place, pixels in enumerate(_frames(record)):
            if not place:
                stream.height, stream.width = _fit(pixels.shape[:2], settings.short_side)
            frame = reformatter.reformat(
                av.VideoFrame.from_ndarray(pixels, format='rgb24'),
                width=stream.width,
                height=stream.height,
                format='yuv420p',
                interpolation='AREA',
                threads=1,
            )
            frame.pts, frame.time_base = round(place * CLOCK / rate), fractions.Fraction(1, CLOCK)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def _frames(record: Record) -> Iterator[UInt8[np.ndarray, 'h w 3']]:
    """Yields all frames of a record, of which few are held at a time."""
    height, width = record.frame_size
    step = max(1, HELD // (height * width * 3))
    for start in range(0, record.num_frames, step):
        clip = record.read(np.arange(start, min(start + step, record.num_frames)))
        if clip.dtype != np.uint8 or clip.shape[-1] != 3:
            raise UnreadableExample(
                f'its frames are {clip.dtype} of {clip.shape[-1]} channels, not RGB in bytes'
            )
        yield from clip


def _fit(size: tuple[int, int], short_side: int) -> tuple[int, int]:
    """Returns the (height, width) that frames of a size become."""
    scale = min(1.0, short_side / min(size)) if short_side else 1.0
    # A hair more than the product, so that a whole number is not rounded down to the one below.
    height, width = (max(2, 2 * int(side * scale / 2 + 1e-6)) for side in size)
    return height, width


def start_worker() -> None:
    """Makes a process leave Ctrl-C to its parent, and end when that ends, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
