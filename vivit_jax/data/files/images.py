"""Single encoded images, as frame folders, TFRecords and TFDS hold the frames of a video."""

import struct

import cv2
import numpy as np
from jaxtyping import UInt8

from vivit_jax.data.files.bounds import MAX_PIXELS

# Many images are decoded at once, by threads or processes; and what is wrong with one is said where it is named.
cv2.setNumThreads(1)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

Size = tuple[int, int]
FORMATS = {b'\xff\xd8\xff': 'jpeg', b'\x89PNG': 'png', b'RIFF': 'webp', b'BM': 'bmp'}


def decode(data: bytes | memoryview, size: Size | None = None) -> UInt8[np.ndarray, 'h w 3'] | None:
    """Decodes an image as RGB.

    Grey and palette become colours, of 16 bits the higher 8 are kept, an alpha channel is dropped (the colours
    beneath it are taken as they are stored), and what EXIF says about turning and mirroring is applied.

    Args:
        data: JPEG, PNG, WebP or BMP, whole.
        size: (height, width) in pixels that an image of another size is resized to.

    Returns:
        Pixels in [0, 255], upright; None if it cannot be decoded to its end, or is larger than a frame may be.
    """
    height, width = _claimed(data)
    if not 0 < height * width <= MAX_PIXELS:  # not believed: a few bytes can claim gigabytes
        return None
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        return None
    if image is None or size in (None, image.shape[:2]):
        return image
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def format_of(data: bytes | memoryview) -> str:
    """Returns what an image is stored as, by its first bytes: `jpeg`, `png`, `webp`, `bmp`; '' if none of them."""
    return next((name for magic, name in FORMATS.items() if bytes(data[: len(magic)]) == magic), '')


def _claimed(data: bytes | memoryview) -> Size:
    """Returns (height, width) as the header has it; (0, 0) where there is none of the formats' own.

    PNG: w3.org/TR/png, 11.2.2; JPEG: ITU-T T.81, B.2.2; WebP: RFC 9649, 2.5 to 2.7; BMP: BITMAPINFOHEADER, and
    BITMAPCOREHEADER of 12 bytes.
    """
    kind, head = format_of(data), bytes(data[:32]).ljust(32, b'\0')
    if kind == 'png':
        width, height = struct.unpack_from('>II', head, 16)
    elif kind == 'bmp':
        core = struct.unpack_from('<I', head, 14)[0] == 12
        width, height = map(abs, struct.unpack_from('<hh' if core else '<ii', head, 18))
    elif kind == 'webp' and head[12:16] == b'VP8X':
        width, height = (int.from_bytes(head[place : place + 3], 'little') + 1 for place in (24, 27))
    elif kind == 'webp' and head[12:16] == b'VP8L':
        bits = int.from_bytes(head[21:25], 'little')
        width, height = bits % 2**14 + 1, (bits >> 14) % 2**14 + 1
    elif kind == 'webp':
        width, height = (side % 2**14 for side in struct.unpack_from('<HH', head, 26))
    else:
        return _of_jpeg(data) if kind == 'jpeg' else (0, 0)
    return height, width


def _of_jpeg(data: bytes | memoryview) -> Size:
    """Returns (height, width) of the first frame header, before which there are other segments."""
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            at += 1  # as decoders do, what does not belong here is passed over
            continue
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from('>HH', data, at + 5)
            return height, width
        alone = marker in (0x01, 0xFF) or 0xD0 <= marker <= 0xD8
        at += (
            (1 if marker == 0xFF else 2)
            if alone
            else 2 + max(int.from_bytes(data[at + 2 : at + 4], 'big'), 2)
        )
    return 0, 0
