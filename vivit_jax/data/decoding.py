"""Decoding video files with PyAV: exactly the frames that decoding from the start gives, and no more than needed."""

from typing import Any

import av
import numpy as np
from jaxtyping import Integer, UInt8

# One packet is one frame here, so that places counted in packets are places counted in frames.
SEEKABLE = ('h264', 'hevc', 'vp9', 'av1')
# Text that is not UTF-8 is an error to PyAV 18 unless told otherwise; PyAV 19 cannot be told, and needs not.
TOLERANT: dict[str, Any] = {'metadata_errors': 'replace'} if int(av.__version__.split('.')[0]) < 19 else {}

Size = tuple[int, int]


def _open(path: str) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Opens a file and its first moving picture, decoded in this thread alone."""
    container: Any = av.open(path, 'r', **TOLERANT)
    covers = av.stream.Disposition.attached_pic
    stream = next((s for s in container.streams.video if not s.disposition & covers), None)
    if stream is None:
        container.close()
        raise ValueError('no video in it')
    stream.thread_type = av.codec.context.ThreadType.NONE
    stream.thread_count = 1  # what dav1d looks at
    return container, stream


def probe(path: str) -> tuple[int, Size] | str:
    """Returns frames and (height, width), or why the file cannot be read; only the first frame is decoded."""
    num_frames, size = 0, None
    try:
        container, stream = _open(path)
        with container:
            for packet in container.demux(stream):
                num_frames += _is_shown(packet)
                if size is None:  # the display matrix comes with a frame only
                    size = next((_pixels(frame, None).shape[:2] for frame in packet.decode()), None)
    except (av.FFmpegError, OSError, ValueError) as error:
        return _cause(error)
    return (num_frames, size) if num_frames and size else 'no frame in it'


def _cause(error: Exception) -> str:
    return getattr(error, 'strerror', None) or str(error)


def _is_shown(packet: av.Packet) -> bool:
    return packet.size > 0 and not packet.is_discard


def read_frames(
    path: str, num_frames: int, size: Size, indices: Integer[np.ndarray, ' t']
) -> UInt8[np.ndarray, 't h w 3']:
    """Decodes frames, exactly those that decoding from the start gives.

    Args:
        path: A video file. Of a damaged one, what follows the damage depends on where decoding starts.
        num_frames: That the container promises; where fewer can be decoded, the last is repeated.
        size: (height, width), to which frames of another size are resized.
        indices: Any order, repetitions allowed, in `[0, num_frames)`.

    Raises:
        ValueError: If no frame can be decoded.
    """
    wanted, places = np.unique(indices, return_inverse=True)
    if not len(wanted):
        return np.zeros((0, *size, 3), np.uint8)
    if wanted[0] < 0 or wanted[-1] >= num_frames:
        raise IndexError(f'{path}: frames {wanted[0]} to {wanted[-1]} must be in [0, {num_frames})')
    try:
        frames = _from_key_frame(path, size, wanted) or _from_start(path, size, wanted)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ValueError(f'{path} cannot be read: {_cause(error)}') from error
    return np.stack([frames[place] for place in places])


def _from_start(path: str, size: Size, wanted: np.ndarray) -> list[np.ndarray]:
    frames: list[np.ndarray] = []
    last, cause = None, 'no frame in it'
    container, stream = _open(path)
    with container:
        try:
            for place, frame in enumerate(container.decode(stream)):
                last = frame
                if place == wanted[len(frames)]:
                    frames.append(_pixels(frame, size))
                if len(frames) == len(wanted):
                    return frames
        except av.FFmpegError as error:
            cause = _cause(error)
    if last is None:
        raise ValueError(cause)
    return frames + [_pixels(last, size)] * (len(wanted) - len(frames))


def _from_key_frame(path: str, size: Size, wanted: np.ndarray) -> list[np.ndarray] | None:
    """Decodes from the last key frame before the clip; None where that would be no gain or may not be exact."""
    container, stream = _open(path)
    with container:
        if container.format.name == 'avi' or stream.codec.canonical_name not in SEEKABLE:
            return None
        try:
            times, keys = _index(container, stream)
            before = [time for time in keys if time <= times[wanted[0]]] if wanted[-1] < len(times) else []
            if not before or max(before) == times[0]:
                return None
            container.seek(max(before), stream=stream)
            return _decode_from(container, stream, times, size, wanted)
        except av.FFmpegError:
            return None


def _index(container: av.container.InputContainer, stream: av.VideoStream) -> tuple[list[int], list[int]]:
    """Returns the times of all frames and of the key frames, sorted; none where they do not tell the order."""
    packets = [packet for packet in container.demux(stream) if packet.size]
    times = {packet.pts: packet for packet in packets if packet.pts is not None}
    # Frames that come before the first key frame would be counted, but never decoded.
    if len(times) < len(packets) or not packets[0].is_keyframe or packets[0].pts != min(times):
        return [], []
    shown = sorted(time for time, packet in times.items() if not packet.is_discard)
    return shown, [time for time in shown if times[time].is_keyframe]


def _decode_from(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    times: list[int],
    size: Size,
    wanted: np.ndarray,
) -> list[np.ndarray] | None:
    """Decodes from where the container stands; None unless every frame from the key frame on is there, sound."""
    places: dict[int | None, int] = {time: place for place, time in enumerate(times)}
    frames: list[np.ndarray] = []
    place = -1
    for packet in container.demux(stream):
        if place < 0:
            place = places.get(packet.pts, len(times))
            if not packet.is_keyframe or place > wanted[0]:
                return None
        for frame in packet.decode():
            if places.get(frame.pts) != place or frame.is_corrupt:
                return None
            if place == wanted[len(frames)]:
                frames.append(_pixels(frame, size))
            if len(frames) == len(wanted):
                return frames
            place += 1
    return None


def _pixels(frame: av.VideoFrame, size: Size | None) -> np.ndarray:
    """Returns a frame upright, RGB, resized where it has another size than (height, width)."""
    matrix: Any = frame.side_data.get('DISPLAYMATRIX')
    # A point (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist() if matrix else (1, 0, 0, 0, 1)
    turned = abs(b) > abs(a)
    height, width = (size[::-1] if turned else size) if size else (frame.height, frame.width)
    pixels = frame.to_ndarray(format='rgb24', height=height, width=width, threads=1)
    if turned:
        pixels = pixels.swapaxes(0, 1)
    return pixels[:: -1 if (b if turned else d) < 0 else 1, :: -1 if (c if turned else a) < 0 else 1]
