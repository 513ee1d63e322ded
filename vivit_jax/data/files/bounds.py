"""How large pictures may be: a header of a few bytes can claim what no memory holds."""

MAX_PIXELS = 8192 * 4320  # of a frame: 8K
MAX_CLIP = 2**31  # bytes of the frames that are read at once


def check_clip(frames: int, size: tuple[int, int]) -> None:
    """Raises where frames of RGB are more than is read at once.

    Args:
        frames: How many.
        size: (height, width) in pixels.

    Raises:
        ValueError: One line.
    """
    height, width = size
    if min(height, width) < 1 or height * width > MAX_PIXELS:
        raise ValueError(f'claims frames of {width}x{height} pixels, which are not from 1 to {MAX_PIXELS:,}')
    if frames * height * width * 3 > MAX_CLIP:
        raise ValueError(
            f'{frames} frames of {width}x{height} pixels take more than the {MAX_CLIP / 2**30:g} GiB of a clip: '
            'prepare smaller ones (tools/prepare_videos.py)'
        )
