"""Opening a video with FFmpeg, so that nothing but this one file is read, and no more memory taken than frames need.

A video is a path, or the content of a file held in memory.
"""

import contextlib
import ctypes
import io
import os
import stat
from collections.abc import Iterator
from typing import Any

import av

from vivit_jax.data.files.bounds import MAX_PIXELS

MAX_BLOCK = 2**28  # bytes that FFmpeg may ask for at once
# Containers that hold what they show. Playlists of every kind, which make FFmpeg open other files and addresses, are
# none; nor are texts, devices and streams from elsewhere.
FORMATS = (
    'apng,asf,av1,avi,dhav,dv,flv,gif,gxf,h261,h263,h264,hevc,ivf,live_flv,m4v,matroska,mjpeg,mov,mpeg,mpegts,'
    'mpegvideo,mxf,nut,obu,ogg,rm,roq,vc1,vvc,wtv,yuv4mpegpipe'
)
OPTIONS: dict[str, Any] = {
    'options': {
        'max_pixels': str(MAX_PIXELS),
        'format_whitelist': FORMATS,
        'protocol_whitelist': 'file',
    }
}
# Text that is not UTF-8 is an error to PyAV 18 unless told otherwise; PyAV 19 cannot be told, and needs not.
if int(av.__version__.split('.')[0]) < 19:
    OPTIONS['metadata_errors'] = 'replace'
# Where the function cannot be reached, headers are still looked at.
with contextlib.suppress(AttributeError, OSError):
    ctypes.CDLL(av.container.input.__file__).av_max_alloc(ctypes.c_size_t(MAX_BLOCK))
# What reading a damaged file can raise.
ERRORS = (av.FFmpegError, OSError, ValueError, ArithmeticError, MemoryError)


def open_video(file: str | bytes, seconds: float = 0.0) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Opens a video and its first moving picture, decoded in this thread alone.

    Opening, and each reading afterwards, is interrupted (`av.error.ExitError`) after so many seconds; 0: never.
    """
    if isinstance(file, str):
        _check_file(file)
    elif not file:
        raise ValueError('is empty (0 bytes)')
    # A name can look like an address, as `http:x.mp4` or `concat:a|b`.
    content: Any = f'file:{file}' if isinstance(file, str) else io.BytesIO(file)
    try:
        container: Any = av.open(content, 'r', timeout=seconds or None, **OPTIONS)
    except av.error.ArgumentError as error:
        raise ValueError('is damaged, or no video but a playlist or the like') from error
    covers = av.stream.Disposition.attached_pic
    stream = next((s for s in container.streams.video if not s.disposition & covers), None)
    if stream is None:
        audio = ' (audio only)' if container.streams.audio else ''
        container.close()
        raise ValueError(f'no video in it{audio}')
    stream.thread_type = av.codec.context.ThreadType.NONE
    stream.thread_count = 1  # what dav1d looks at
    return container, stream


def _check_file(path: str) -> None:
    """Raises an error where a path leads to no file with content; a pipe would be waited on for ever."""
    if os.path.islink(path) and not os.path.exists(path):
        raise ValueError('is a link to nothing')
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise ValueError('is a folder')
    if not stat.S_ISREG(status.st_mode):
        raise ValueError('is no regular file')
    if not status.st_size:
        raise ValueError('is empty (0 bytes)')


@contextlib.contextmanager
def opened(file: str | bytes) -> Iterator[tuple[io.BufferedIOBase, int]]:
    """Opens a video as bytes, and tells how many there are."""
    if isinstance(file, bytes):
        yield io.BytesIO(file), len(file)
        return
    _check_file(file)
    with open(file, 'rb') as content:
        yield content, os.fstat(content.fileno()).st_size


def cause_of(error: Exception) -> str:
    """Returns what an error says, in FFmpeg's or the system's words."""
    return getattr(error, 'strerror', None) or str(error) or type(error).__name__
