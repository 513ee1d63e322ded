"""Single encoded images, as frame folders, TFRecords and TFDS hold the frames of a video."""

import cv2
import numpy as np
from jaxtyping import UInt8

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
        Pixels in [0, 255], upright; None if it cannot be decoded to its end.
    """
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:  # nothing at all, or a header that promises more pixels than a picture has
        return None
    if image is None or size in (None, image.shape[:2]):
        return image
    shrinks = size[0] <= image.shape[0] and size[1] <= image.shape[1]
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def format_of(data: bytes | memoryview) -> str:
    """Returns what an image is stored as, by its first bytes: `jpeg`, `png`, `webp`, `bmp`; '' if none of them."""
    return next((name for magic, name in FORMATS.items() if bytes(data[: len(magic)]) == magic), '')
