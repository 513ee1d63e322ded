"""Videos as folders of image files, a file a frame: what EPIC-Kitchens publishes and frame extraction leaves."""

import base64
import contextlib
import errno
import functools
import itertools
import json
import os
import re
import stat
import zlib

import numpy as np
from jaxtyping import Integer, UInt8

from vivit_jax import paths
from vivit_jax.data.files import images, stores
from vivit_jax.data.files.bounds import check_clip
from vivit_jax.data.files.time_limit import TimeLimit
from vivit_jax.data.listed import Kind
from vivit_jax.data.record import Found, UnreadableExample

MOST_BYTES = 2**28  # of an image's file
ENDINGS = ('.bmp', '.jpeg', '.jpg', '.png', '.webp')


def probe(path: str, *, seconds: float = 0.0) -> Found | str:
    """Looks into a folder: lists it and decodes one image.

    Frames are in the order of the numbers in their names (`frame_2.jpg` before `frame_10.jpg`), else by name. Beside
    colour images, those of optical flow (`flow_*`) are left out.

    Args:
        path: The folder.
        seconds: Of reading frames; a few are looked into here.

    Returns:
        What it holds, the size being that of the first image, or why it cannot be read.
    """
    try:
        with (
            contextlib.nullcontext(stores.entries(path))
            if paths.is_remote(path)
            else os.scandir(path) as entries
        ):
            names = [entry.name for entry in entries if not entry.name.startswith('.') and not entry.is_dir()]
    except OSError as error:
        return error.strerror or str(error)
    names = _without_flow([name for name in names if name.lower().endswith(ENDINGS)])
    if not names:
        return f'no image in it ({", ".join(ENDINGS)})'
    series = {key: len(list(group)) for key, group in itertools.groupby(sorted(map(_pattern, names)))}
    long = [f'{pattern} ({count})' for pattern, count in series.items() if count > 1]
    if len(long) > 1:
        return f'several series of images in it, of which one must stay: {", ".join(long)}'
    names.sort(key=_natural)
    cause = ''
    for name in (names[0], names[len(names) // 2], names[-1]):  # one broken frame does not spoil a video
        try:
            data = _content(os.path.join(path, name))
        except OSError as error:
            cause = cause or f'{name}: {error.strerror}'
            continue
        image = images.decode(data)
        if image is not None:
            return Found(
                num_frames=len(names),
                frame_size=image.shape[:2],
                seconds=None,
                codec=images.format_of(data),
                index=_pack(names),
            )
        cause = cause or f'{name} is no whole image'
    return cause


def read(
    path: str, found: Found, indices: Integer[np.ndarray, ' t'], *, seconds: float = 0.0
) -> UInt8[np.ndarray, 't h w 3']:
    """Reads frames, RGB, upright (see `images.decode`), those of another size than the first resized to it.

    Args:
        path: The folder.
        found: What `probe` has found in it.
        indices: Any order, repetitions allowed, in `[0, found.num_frames)`.
        seconds: See `time_limit`; 0: it is never given up.

    Raises:
        UnreadableExample: Naming the image that is missing or broken.
    """
    wanted, places = np.unique(indices, return_inverse=True)
    if not len(wanted):
        return np.zeros((0, *found.frame_size, 3), np.uint8)
    if wanted[0] < 0 or wanted[-1] >= found.num_frames:
        raise IndexError(f'{path}: frames {wanted[0]} to {wanted[-1]} must be in [0, {found.num_frames})')
    limit, frames = TimeLimit(seconds), []
    try:
        check_clip(len(wanted), found.frame_size)
        for name in _names(found.index, wanted):
            frames.append(_frame(os.path.join(path, name), found.frame_size))
            limit.check()
    except UnreadableExample:
        raise
    except ValueError as error:
        raise UnreadableExample(f'{path}: {error}') from error
    return np.stack([frames[place] for place in places])


KIND = Kind(
    name='frame_folders', endings=ENDINGS, folders=True, probe=probe, read=read
)  # images have no time


def _content(file: str) -> bytes:
    if paths.is_remote(file):
        return stores.content(file)
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):  # a pipe would be waited on for ever
        raise OSError(errno.EINVAL, 'is no regular file')
    if status.st_size > MOST_BYTES:
        raise OSError(errno.EFBIG, f'has {status.st_size:,} bytes, more than an image')
    with open(file, 'rb') as opened:
        return opened.read()


def _frame(file: str, size: images.Size) -> UInt8[np.ndarray, 'h w 3']:
    try:
        frame = images.decode(_content(file), size)
    except OSError as error:
        raise UnreadableExample(f'{file} cannot be read: {error.strerror}') from error
    if frame is None:
        raise UnreadableExample(f'{file} is no whole image')
    return frame


def _pattern(name: str) -> str:
    """Returns what all names of a series have in common: `frame_00012.JPG` is one of `frame_#.jpg`."""
    return re.sub('[0-9]+', '#', name.lower())


def _without_flow(names: list[str]) -> list[str]:
    """Leaves out `flow_x_00001.jpg` and its like, which TSN's tools write beside `img_00001.jpg`."""
    colours = [name for name in names if not name.lower().startswith('flow')]
    return colours or names


def _natural(name: str) -> tuple[list[str | int], str]:
    """Returns what sorts numbers as such: texts and numbers alternate, so that like meets like."""
    parts = re.split('([0-9]+)', name)
    return [int(part) if place % 2 else part for place, part in enumerate(parts)], name


def _pack(names: list[str]) -> str:
    """Returns names as text: an unbroken series as its pattern, others compressed."""
    parts = re.fullmatch('(.*?)([0-9]+)([^0-9]*)', names[0], re.DOTALL)
    if parts:
        before, digits, after = parts.groups()
        series = [before, len(digits), after, int(digits)]
        if all(name == _numbered(series, place) for place, name in enumerate(names)):
            return json.dumps(series)
    joined = '/'.join(names).encode('utf-8', 'surrogateescape')
    return base64.b64encode(zlib.compress(joined)).decode('ascii')


def _names(index: str, wanted: Integer[np.ndarray, ' t']) -> list[str]:
    if index.startswith('['):
        series = json.loads(index)
        return [_numbered(series, int(place)) for place in wanted]
    names = _unpack(index)
    return [names[place] for place in wanted]


def _numbered(series: list, place: int) -> str:
    before, digits, after, first = series
    return f'{before}{first + place:0{digits}d}{after}'


@functools.lru_cache(maxsize=64)  # views of a video, and videos of a worker, are read again and again
def _unpack(index: str) -> list[str]:
    return zlib.decompress(base64.b64decode(index)).decode('utf-8', 'surrogateescape').split('/')
