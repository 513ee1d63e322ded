"""Files that hold many serialised examples, TFRecord and ArrayRecord, and how a video lies in such an example.

A file is read through once, to find out where its examples are, how long they are and what they are labelled; that is
packed as text, for a manifest to keep. Afterwards an example is read alone, from its place.

TFRecord (https://www.tensorflow.org/tutorials/load_data/tfrecord): for each example its length (8 bytes), a checksum
of that (4), the bytes, and a checksum of them (4).
"""

import base64
import functools
import json
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, UInt8

from vivit_jax import paths
from vivit_jax.data.files import images, stores
from vivit_jax.data.files.bounds import check_clip
from vivit_jax.data.files.crc32c import masked_crc32c
from vivit_jax.data.files.sequence_example import SequenceExample, parse
from vivit_jax.data.files.time_limit import TakesTooLong, TimeLimit
from vivit_jax.data.record import Found, UnreadableExample

HEADER, FOOTER = struct.Struct('<QI'), struct.Struct('<I')
# What MediaSequence and DMVR call an example, the best first.
NAMES = ('clip/media_id', 'clip/data_path', 'video/filename')
LONGEST = 1_000  # letters of a name
RATE = 'image/frame_rate'  # frames a second
START, END = 'clip/start/timestamp', 'clip/end/timestamp'  # microseconds


class Shot(NamedTuple):
    """An example in a file; a plain tuple, as there may be hundreds of thousands.

    Attributes:
        number: Which of the file's examples, counted from 0.
        place: Where it begins: the byte in a TFRecord, the number in an ArrayRecord.
        length: In bytes.
        num_frames: Frames it has, at least 1.
        height: Of the first of them, in pixels.
        width: Of the first of them, in pixels.
        seconds: Duration, None where it is not told.
        codec: What the frames are stored as, as `jpeg`.
        name: What it is called in itself; '' if it is not.
        labels: The integers of each feature that was asked for.
        texts: The texts of each feature that was asked for.
    """

    number: int
    place: int
    length: int
    num_frames: int
    height: int
    width: int
    seconds: float | None
    codec: str
    name: str
    labels: list[list[int]]
    texts: list[list[str]]


def probe(path: str, *, video: str, labels: tuple[str, ...], texts: tuple[str, ...]) -> Found | str:
    """Reads a file through.

    Args:
        path: A TFRecord, or an ArrayRecord by its name.
        video: Feature that holds the frames, as encoded images.
        labels: Features that hold integers.
        texts: Features that hold texts.

    Returns:
        What `unpack` takes, or why nothing in the file can be read.
    """
    shots: list[Shot] = []
    bad: list[tuple[str, str]] = []
    array_record = is_array_record(path)
    try:
        for number, (place, data) in enumerate(_array_record(path) if array_record else _tfrecord(path)):
            shot = data if isinstance(data, str) else _describe(number, place, data, video, labels, texts)
            if isinstance(shot, str):
                bad.append((f'record {number}' + ('' if array_record else f' (byte {place})'), shot))
            else:
                shots.append(shot)
    except (OSError, ValueError, RuntimeError) as error:
        return ' '.join((getattr(error, 'strerror', None) or str(error)).split())
    packed = base64.b64encode(zlib.compress(json.dumps([shots, bad]).encode())).decode('ascii')
    size = (shots[0].height, shots[0].width) if shots else (0, 0)
    return Found(num_frames=len(shots), frame_size=size, seconds=None, codec='records', index=packed)


def unpack(found: Found) -> tuple[list[Shot], list[tuple[str, str]]]:
    """Returns the examples of a file, and (which, cause) of each that cannot be used."""
    shots, bad = json.loads(zlib.decompress(base64.b64decode(found.index)))
    return [Shot._make(shot) for shot in shots], [(which, cause) for which, cause in bad]


def read(
    path: str, shot: Shot, video: str, indices: Integer[np.ndarray, ' t'], *, seconds: float = 0.0
) -> UInt8[np.ndarray, 't h w 3']:
    """Reads frames of an example, RGB (see `images.decode`), those of another size than the first resized to it.

    Args:
        path: The file.
        shot: The example.
        video: Feature that holds the frames.
        indices: Any order, repetitions allowed, in `[0, shot.num_frames)`.
        seconds: See `time_limit`; 0: it is never given up.

    Raises:
        UnreadableExample: Naming the file, the record and the frame.
    """
    wanted, places = np.unique(indices, return_inverse=True)
    size = (shot.height, shot.width)
    if not len(wanted):
        return np.zeros((0, *size, 3), np.uint8)
    if wanted[0] < 0 or wanted[-1] >= shot.num_frames:
        raise IndexError(f'{path}: frames {wanted[0]} to {wanted[-1]} must be in [0, {shot.num_frames})')
    where = f'{path}, record {shot.number}'
    try:
        data = _at(path, shot)
        encoded = parse(data).octets(video)
    except (OSError, ValueError, RuntimeError) as error:
        raise UnreadableExample(f'{where}: {getattr(error, "strerror", None) or error}') from error
    if len(encoded) != shot.num_frames:
        raise UnreadableExample(f'{where}: it has {len(encoded)} frames, but had {shot.num_frames}')
    limit = TimeLimit(seconds)
    decoded = []
    try:
        check_clip(len(wanted), size)
    except ValueError as error:
        raise UnreadableExample(f'{where}: {error}') from error
    for frame in wanted.tolist():
        image = images.decode(encoded[frame], size)
        if image is None:
            raise UnreadableExample(f'{where}, frame {frame} is no whole image')
        decoded.append(image)
        try:
            limit.check()
        except TakesTooLong as error:
            raise UnreadableExample(f'{where}: {error}') from error
    return np.stack([decoded[place] for place in places])


def is_array_record(path: str) -> bool:
    """Tells ArrayRecords from TFRecords."""
    return '.array_record' in os.path.basename(path)


def _tfrecord(path: str) -> Iterator[tuple[int, bytes | str]]:
    """Yields (place, bytes) of every example, or what is wrong with it; nothing follows a length that is wrong."""
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        place = 0
        while place < size:
            head = file.read(HEADER.size)
            if place == 0 and head[:2] == b'\x1f\x8b':
                raise ValueError(
                    'compressed with gzip, so that its examples cannot be read one by one: gunzip it'
                )
            after = size - place
            if len(head) < HEADER.size:
                yield place, f'the file is cut off: {after} bytes are left'
                return
            length, checksum = HEADER.unpack(head)
            if masked_crc32c(head[:8]) != checksum:
                if place == 0:
                    raise ValueError('not a TFRecord: the first length does not agree with its checksum')
                yield place, f'its length is damaged: the {after} bytes from there on cannot be read'
                return
            whole = HEADER.size + length + FOOTER.size
            if whole > after:
                yield place, f'the file is cut off: {after} of {whole} bytes are left'
                return
            data, (checksum,) = file.read(length), FOOTER.unpack(file.read(FOOTER.size))
            damaged = masked_crc32c(data) != checksum
            yield place, 'its bytes do not agree with their checksum' if damaged else data
            place += whole


def _array_record(path: str) -> Iterator[tuple[int, bytes | str]]:
    reader = _open(path)
    for number in range(reader.num_records()):
        try:
            yield number, reader.read([number])[0]
        except (RuntimeError, ValueError) as error:
            yield number, ' '.join(str(error).split())


def _open(path: str) -> Any:
    """Opens an ArrayRecord, which several threads may read from."""
    paths.here(path, 'an ArrayRecord')
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(path, options='readahead_buffer_size:0,max_parallelism:0')


_opened = functools.lru_cache(maxsize=256)(_open)  # each with a file of the system and an index in memory


def _at(path: str, shot: Shot) -> bytes:
    """Reads an example; its checksum was looked at when the file was read through."""
    if is_array_record(path):
        return _opened(path).read([shot.place])[0]
    both = stores.part(path, shot.place, HEADER.size + shot.length)
    head, data = both[: HEADER.size], both[HEADER.size :]
    if len(data) < shot.length or HEADER.unpack(head)[0] != shot.length:
        raise ValueError('the file has changed since it was looked into')
    return data


def _describe(
    number: int, place: int, data: bytes, video: str, labels: tuple[str, ...], texts: tuple[str, ...]
) -> Shot | str:
    try:
        example = parse(data)
        frames = example.octets(video)
        if not frames:
            others = ', '.join(sorted({*example.context, *example.lists} - {video})) or 'nothing else'
            return f'no frames in {video!r}; it has {others}'
        first = images.decode(frames[0])
        if first is None:
            return 'its first frame is no whole image'
        return Shot(
            number=number,
            place=place,
            length=len(data),
            num_frames=len(frames),
            height=first.shape[0],
            width=first.shape[1],
            seconds=_seconds(example, len(frames)),
            codec=images.format_of(frames[0]),
            name=next((text for key in NAMES for text in example.texts(key)[:1] if text), '')[:LONGEST],
            labels=[example.integers(key) for key in labels],
            texts=[example.texts(key) for key in texts],
        )
    except ValueError as error:
        return str(error)


def _seconds(example: SequenceExample, num_frames: int) -> float | None:
    rate = example.floats(RATE)
    if rate and rate[0] > 0:
        return num_frames / rate[0]
    start, end = example.integers(START), example.integers(END)
    return (end[0] - start[0]) / 1e6 if start and end and end[0] > start[0] else None
