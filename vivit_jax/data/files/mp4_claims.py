"""What the headers of an MP4 or QuickTime file claim, before a library believes it.

FFmpeg makes an entry for every picture that a header speaks of before it reads one: a file of 10 kB that claims
thousands of millions would fill the memory. A sample takes a byte at least, so that a file has no more than bytes.

ISO/IEC 14496-12: a box is its length (4 bytes), its kind (4), where the length is 1 a longer one (8), and content.
"""

import io
import struct

# Boxes of boxes.
INSIDE = frozenset(b'dinf edts mdia minf moof moov mvex stbl tapt traf trak tref udta'.split())
# Where in its content a box counts samples: of fixed size, of 4 to 16 bits, of a fragment.
COUNTS = {b'stsz': 8, b'stz2': 8, b'trun': 4}
MOST_BOXES = 10**6


def too_many(file: io.BufferedIOBase, size: int) -> str:
    """Says what is beyond belief in a file's headers; '' where nothing is, or it is of another format.

    Args:
        file: Open.
        size: Bytes of it.
    """
    samples, boxes = 0, 0
    pending = [(0, size)]
    while pending:
        at, end = pending.pop()
        while at + 8 <= end:
            boxes += 1
            file.seek(at)
            length, kind = struct.unpack('>I4s', file.read(8).ljust(8, b'\0'))
            head = 8
            if length == 1:
                length, head = int.from_bytes(file.read(8), 'big'), 16
            length = length or end - at
            if length < head or boxes > MOST_BOXES:
                break
            if kind == b'cmov':
                return 'has a compressed header, which nobody has written for twenty years: remux it'
            if kind in INSIDE:
                pending.append((at + head, min(at + length, end)))
            if kind in COUNTS:
                file.seek(at + head + COUNTS[kind])
                samples += int.from_bytes(file.read(4), 'big')
            at += length
    return f'claims {samples:,} frames in {size:,} bytes' if samples > size else ''
