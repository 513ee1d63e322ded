"""CRC-32C (Castagnoli), the checksum of TFRecords, at a few hundred MB/s without a library: RFC 3720, appendix B.4.

The checksum is linear: of two halves it is that of the first, shifted by the length of the second, xor that of the
second. So neighbouring words are joined, then pairs, then fours: a tree whose every level is a few numpy calls.
"""

import functools

import numpy as np
from jaxtyping import UInt32

POLYNOMIAL = np.uint32(0x82F63B78)  # bits reversed, as the checksum is computed
MASK = 0xA282EAD8  # a constant of the TFRecord format
ALL = 0xFFFFFFFF

Words = UInt32[np.ndarray, ' n']


def masked_crc32c(data: bytes | memoryview) -> int:
    """Returns the checksum as TFRecords hold it: turned and offset, since data may itself contain checksums."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + MASK) & ALL


def crc32c(data: bytes | memoryview) -> int:
    """Returns the checksum of some bytes, in [0, 2**32)."""
    padding = -len(data) % 4 + 4  # zeros in front change nothing
    octets = np.zeros(padding + len(data), np.uint8)
    octets[padding:] = np.frombuffer(data, np.uint8)
    # The register starts with ones: they meet the first four bytes, or what follows fewer of them.
    octets[padding : padding + 4] ^= 0xFF
    words = octets.view('<u4')
    level = 0
    while len(words) > 1:
        if len(words) % 2:
            words = np.concatenate([np.zeros(1, np.uint32), words])
        words = _shift(words[::2], level) ^ words[1::2]
        level += 1
    crc = int(_shift(words, 0)[0]) ^ ALL
    return crc if len(data) >= 4 else crc ^ (ALL >> 8 * len(data))


def _shift(words: Words, level: int) -> Words:
    """Returns the registers after another 4 * 2**level zero bytes."""
    low, high = _tables(level)
    return low[words & 0xFFFF] ^ high[words >> 16]


@functools.cache
def _tables(level: int) -> tuple[Words, Words]:
    """Returns what becomes of every lower and of every upper half of a register."""
    if level:
        low, high = _tables(level - 1)
        return _shift(low, level - 1), _shift(high, level - 1)
    low = np.arange(1 << 16, dtype=np.uint32)
    high = low << 16
    for _ in range(32):
        low, high = (words >> 1 ^ POLYNOMIAL * (words & 1) for words in (low, high))
    return low, high
