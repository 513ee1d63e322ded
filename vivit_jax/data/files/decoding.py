"""Decoding videos with PyAV: exactly the frames that decoding from the start gives, and no more than needed.

A video is a path, or the content of a file held in memory.
"""

import contextlib
import fractions
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float64, Integer, UInt8

from vivit_jax.data.files.bounds import check_clip
from vivit_jax.data.files.frame_index import FrameIndex
from vivit_jax.data.files.mp4_claims import too_many
from vivit_jax.data.files.time_limit import TimeLimit
from vivit_jax.data.files.video_container import ERRORS, cause_of, open_video, opened
from vivit_jax.data.record import Found, UnreadableExample

# One packet is one frame here, so that places counted in packets are places counted in frames.
SEEKABLE = ('h264', 'hevc', 'vp9', 'av1')
MPEG4_PICTURE = b'\x00\x00\x01\xb6'
# To leave out more frames than this between two wanted ones is worth a jump to a key frame.
FAR = 16

Size = tuple[int, int]


def probe(file: str | bytes, *, seconds: float = 0.0) -> Found | str:
    """Looks through a video; only its first frame is decoded.

    Args:
        file: A path, or the content of a file.
        seconds: Of the processor, after which it is given up; 0: never.

    Returns:
        What is needed to read it, or in a few words why it cannot be read.
    """

    def look(limit: TimeLimit) -> Found | str:
        container, stream = open_video(file, seconds)
        with container:
            return _look_through(container, stream, limit, size)

    try:
        with opened(file) as (content, size):
            if claims := too_many(content, size):
                return claims
        return _within(seconds, look)
    except ERRORS as error:
        return cause_of(error)


def read_frames(
    file: str | bytes, found: Found, indices: Integer[np.ndarray, ' t'], *, seconds: float = 0.0
) -> UInt8[np.ndarray, 't h w 3']:
    """Decodes frames, exactly those that decoding from the start gives, upright and in RGB.

    Args:
        file: What was probed. Of a damaged file, what follows the damage depends on where decoding starts;
            where fewer frames can be decoded than were found, the last is repeated.
        found: What `probe` returned. Frames of another size are resized to its.
        indices: Any order, repetitions allowed, in `[0, found.num_frames)`.
        seconds: Of the processor, after which it is given up; 0: never.

    Raises:
        UnreadableExample: If no frame can be decoded, or all of them would not go into memory; one line.
    """
    unique, order = np.unique(indices, return_inverse=True)
    wanted = unique.tolist()
    if not wanted:
        return np.empty((0, *found.frame_size, 3), np.uint8)
    name = file if isinstance(file, str) else f'a video of {len(file):,} bytes'
    if wanted[0] < 0 or wanted[-1] >= found.num_frames:
        raise IndexError(f'{name}: frames {wanted[0]} to {wanted[-1]} must be in [0, {found.num_frames})')

    def decode(limit: TimeLimit) -> UInt8[np.ndarray, 't h w 3']:
        check_clip(len(wanted), found.frame_size)
        clip = np.empty((len(wanted), *found.frame_size, 3), np.uint8)
        index = FrameIndex.unpack(found.index)
        container, stream = open_video(file, seconds)
        with container:
            done = _decode_by_time(container, stream, index, wanted, clip, limit)
        if not done:
            container, stream = open_video(file, seconds)
            with container:
                _decode_from_start(container, stream, wanted, clip, limit)
        return clip

    try:
        clip = _within(seconds, decode)
    except ERRORS as error:
        raise UnreadableExample(f'{name} cannot be read: {cause_of(error)}') from error
    return clip if len(order) == len(wanted) and (np.diff(order) > 0).all() else clip[order]


def _within(seconds: float, work: Callable[[TimeLimit], Any]) -> Any:
    """Does some work within a limit of time.

    FFmpeg counts by the clock, and is interrupted by it: where only the machine was slow, the work begins anew.
    """
    limit = TimeLimit(seconds)
    while True:
        try:
            return work(limit)
        except av.error.ExitError:
            limit.check()


def frame_times(found: Found) -> Float64[np.ndarray, ' n']:
    """Returns the time of every frame in seconds since the first; of evenly spaced ones where times mislead."""
    return FrameIndex.unpack(found.index).seconds(found.num_frames)


def _fraction(value: Any) -> fractions.Fraction:
    """Returns a rational of PyAV, which has a type of its own from 19 on, as Python's; 0 where there is none."""
    return fractions.Fraction(value.numerator, value.denominator) if value else fractions.Fraction(0)


class _Packet(NamedTuple):
    """What a packet of a stream tells without being decoded."""

    time: Any
    duration: int
    pos: int | None
    is_key: bool
    is_hidden: bool  # decoded, since others depend on it, but not shown
    is_plain: bool  # for certain one frame, which is shown as soon as it is decoded


def _look_through(
    container: av.container.InputContainer, stream: av.VideoStream, limit: TimeLimit, length: int
) -> Found | str:
    """Looks through a file of `length` bytes."""
    size = None
    packets: list[_Packet] = []
    for packet in container.demux(stream):
        limit.check()
        if len(packets) > length:
            return f'claims more frames than its {length:,} bytes can hold'
        if size is None:  # the display matrix comes with a frame only
            size = next((_upright_size(frame) for frame in packet.decode()), None)
        if packet.size:
            pos, key, hidden = packet.pos, packet.is_keyframe, packet.is_discard
            plain = _is_plain(packet, stream)
            packets.append(_Packet(packet.pts, packet.duration or 0, pos, key, hidden, plain))
    shown = [packet for packet in packets if not packet.is_hidden]
    if not shown or not size:
        return 'no frame in it'
    rate = _fraction(stream.average_rate) or _fraction(stream.base_rate)
    each = 1 / rate if rate else fractions.Fraction(0)
    ticks = keys = np.zeros(0, np.int64)
    time_base, seconds, droppable = each, len(shown) * each, False
    if stream.time_base and _times_tell_order(container, stream, packets, limit):
        time_base = _fraction(stream.time_base)
        ticks = np.array(sorted(packet.time for packet in shown), np.int64)
        keys = np.searchsorted(ticks, sorted(packet.time for packet in shown if packet.is_key))
        last = max(shown)
        seconds = (last.time - int(ticks[0])) * time_base + (last.duration * time_base or each)
        droppable = _is_droppable(stream, packets)
    index = FrameIndex(time_base=time_base, ticks=ticks, keys=keys, droppable=droppable)
    return Found(
        num_frames=len(shown),
        frame_size=size,
        seconds=float(seconds) or None,
        codec=stream.codec.canonical_name,
        index=index.pack(),
    )


def _times_tell_order(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    packets: list[_Packet],
    limit: TimeLimit,
) -> bool:
    """Tells whether frames are shown in the order of their packets' times."""
    times = {packet.time for packet in packets}
    # Frames that come before the first key frame would be counted, but never decoded.
    if None in times or len(times) < len(packets) or min(packets) != packets[0] or not packets[0].is_key:
        return False
    codec = stream.codec.canonical_name
    if codec == 'mpeg4' and not stream.codec_context.has_b_frames and all(p.is_plain for p in packets):
        return all(_is_found(container, stream, packet, limit) for packet in packets if packet.is_key)
    # Times in AVI files are made up from places, as if frames never changed them.
    return codec in SEEKABLE and container.format.name != 'avi'


def _is_found(
    container: av.container.InputContainer, stream: av.VideoStream, key: _Packet, limit: TimeLimit
) -> bool:
    """Tells whether seeking a key frame leads to it."""
    limit.check()
    container.seek(key.time, stream=stream)
    packet = next(container.demux(stream))
    return (packet.pts, packet.pos) == (key.time, key.pos)


def _is_plain(packet: av.Packet, stream: av.VideoStream) -> bool:
    """Tells whether a packet of MPEG-4 is an I or P picture, where others may be none, two or out of order.

    ISO/IEC 14496-2: a picture's start code is followed by two bits that tell its kind. One without content, shorter
    than a header and a bit for every macroblock of 16 x 16 pixels, repeats what was there and counts for none.
    """
    if stream.codec.canonical_name != 'mpeg4':
        return False
    _, *pictures = bytes(packet).split(MPEG4_PICTURE, 2)
    least = max(8, -(-stream.width // 16) * -(-stream.height // 16) / 8)
    if len(pictures) != 1 or len(pictures[0]) < least:
        return False
    return pictures[0][0] >> 6 == (0 if packet.is_keyframe else 1)


def _is_droppable(stream: av.VideoStream, packets: list[_Packet]) -> bool:
    """Tells whether the decoder knows which frames no other depends on, and whether nothing is lost with them.

    Without them it would not show that times were made up (they rise although frames are stored in another order),
    and what stands in for a frame that is missing may be made of them.
    """
    if stream.codec.canonical_name != 'h264':
        return False
    times = np.array([packet.time for packet in packets])
    steps = np.diff(np.sort(times))
    reordered = bool((np.diff(times) < 0).any())
    even = not len(steps) or bool(steps.max() < 2 * steps.min())
    return even and reordered == bool(stream.codec_context.has_b_frames)


def _decode_by_time(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    index: FrameIndex,
    wanted: list[int],
    clip: UInt8[np.ndarray, 't h w 3'],
    limit: TimeLimit,
) -> bool:
    """Fills a clip, decoding from the key frames before; False where that is impossible or may not be exact."""
    runs: list[tuple[int, list[int]]] = []
    for place in wanted:
        key = index.key(place)
        if key is None:
            return False
        if not runs or key - runs[-1][1][-1] > FAR:
            runs.append((key, []))
        runs[-1][1].append(place)
    reformatter, row = VideoReformatter(), 0
    try:
        if stream.codec.canonical_name == 'mpeg4':
            with _closing(container.demux(stream)) as packets:
                next(packets).decode()  # tells which encoder's habits are to be followed
        for key, places in runs:
            if key or stream.codec.canonical_name == 'mpeg4':
                container.seek(int(index.ticks[key]), stream=stream)
            end = row + len(places)
            for frame in _decode_run(container, stream, index, places, limit):
                _write(frame, clip[row], reformatter)
                row += 1
            if row < end:
                return False
    except av.error.ExitError:
        raise
    except av.FFmpegError:
        return False
    return True


def _closing(generator: Any) -> contextlib.closing[Any]:
    """Closes a generator of PyAV's: left in the middle, each would keep some bytes for ever."""
    return contextlib.closing(generator)


def _decode_run(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    index: FrameIndex,
    places: list[int],
    limit: TimeLimit,
) -> Iterator[av.VideoFrame]:
    """Yields the frames at `places`, from where the container stands; ends early at one that is amiss."""
    times = set(index.ticks[places].tolist())
    due = iter([*places, len(index.ticks)])
    first, before, next_ = None, -1, next(due)
    with _closing(container.demux(stream)) as packets:
        for packet in packets:
            limit.check()
            if first is None:
                first = index.place(packet.pts)
                if first is None or first > next_ or not packet.is_keyframe:
                    return
                before = first - 1
            if index.droppable:
                stream.codec_context.skip_frame = 'DEFAULT' if packet.pts in times else 'NONREF'
            for frame in packet.decode():
                place = index.place(frame.pts)
                dropping = index.droppable and before >= first
                if place is None or frame.is_corrupt or place > next_:
                    return
                if place <= before or (place > before + 1 and not dropping):
                    return
                before = place
                if place == next_:
                    yield frame
                    next_ = next(due)
                    if next_ > places[-1]:
                        return


def _decode_from_start(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    wanted: list[int],
    clip: UInt8[np.ndarray, 't h w 3'],
    limit: TimeLimit,
) -> None:
    """Fills a clip, counting frames from the start; repeats the last frame where they end early."""
    reformatter = VideoReformatter()
    last, cause, row = None, 'no frame in it', 0
    try:
        with _closing(container.decode(stream)) as frames:
            for place, frame in enumerate(frames):
                limit.check()
                last = frame
                if place == wanted[row]:
                    _write(frame, clip[row], reformatter)
                    row += 1
                if row == len(wanted):
                    return
    except av.error.ExitError:
        raise
    except av.FFmpegError as error:
        cause = cause_of(error)
    if last is None:
        raise ValueError(cause)
    _write(last, clip[row], reformatter)
    clip[row + 1 :] = clip[row]


def _turns(frame: av.VideoFrame) -> tuple[bool, int, int]:
    """Returns whether height and width of a frame change places, and the steps along y and x to set it upright."""
    matrix: Any = frame.side_data.get('DISPLAYMATRIX')
    # A point (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist() if matrix else (1, 0, 0, 0, 1)
    turned = abs(b) > abs(a)
    return turned, -1 if (b if turned else d) < 0 else 1, -1 if (c if turned else a) < 0 else 1


def _upright_size(frame: av.VideoFrame) -> Size:
    return (frame.width, frame.height) if _turns(frame)[0] else (frame.height, frame.width)


def _write(frame: av.VideoFrame, out: UInt8[np.ndarray, 'h w 3'], reformatter: VideoReformatter) -> None:
    """Writes a frame upright and in RGB, resized where its size is not that of `out`."""
    turned, down, right = _turns(frame)
    height, width = out.shape[1::-1] if turned else out.shape[:2]
    rgb = reformatter.reformat(frame, width=width, height=height, format='rgb24', threads=1).to_ndarray()
    out[:] = (rgb.swapaxes(0, 1) if turned else rgb)[::down, ::right]
