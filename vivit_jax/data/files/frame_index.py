"""Where the frames of a video file are in time, as one pass over its packets tells, packed into a short text.

Kept beside what else is known of a file, it spares every later reading that pass.
"""

import base64
import dataclasses
import fractions
import json
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, Integer

# What is kept may have been made by others: it must not fill the memory.
MOST_BYTES = 2**28
MOST_FRAMES = 2**26


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameIndex:
    """Times of a file's frames, in the order that they are shown in.

    Attributes:
        time_base: Seconds of one tick; of one frame on average where `ticks` is empty, 0 if that is unknown too.
        ticks: Time of every frame, strictly rising; empty where times do not tell the order of frames, so that
            places can only be counted from the start.
        keys: Places of the key frames: decoding can begin there.
        droppable: Whether frames that no other depends on may be left undecoded.
    """

    time_base: fractions.Fraction
    ticks: Int64[np.ndarray, ' n']
    keys: Int64[np.ndarray, ' k']
    droppable: bool = False

    def pack(self) -> str:
        """Returns the index as text: some dozens of letters where frames are evenly spaced."""
        parts = (self.time_base.as_integer_ratio(), _runs(self.ticks), _runs(self.keys), int(self.droppable))
        content = json.dumps(parts, separators=(',', ':')).encode()
        return base64.b64encode(zlib.compress(content, 9)).decode()

    @classmethod
    def unpack(cls, text: str) -> 'FrameIndex':
        """Returns the index that `pack` made `text` of; a ValueError where it is none."""
        try:
            content = zlib.decompressobj().decompress(base64.b64decode(text), MOST_BYTES)
            time_base, ticks, keys, droppable = json.loads(content)
            return cls(
                time_base=fractions.Fraction(*time_base),
                ticks=_from_runs(ticks),
                keys=_from_runs(keys),
                droppable=bool(droppable),
            )
        except (ValueError, TypeError, ArithmeticError, RecursionError, zlib.error) as error:
            raise ValueError('what is kept of its frames is damaged: look into it again') from error

    def seconds(self, num_frames: int) -> np.ndarray:
        """Returns the seconds from the first frame to each of `num_frames`, evenly spaced where times are unknown."""
        ticks = self.ticks - self.ticks[0] if len(self.ticks) else np.arange(num_frames)
        return ticks * self.time_base.numerator / self.time_base.denominator

    def place(self, ticks: int | None) -> int | None:
        """Returns the place of the frame at this time, None if there is none."""
        place = int(np.searchsorted(self.ticks, -1 if ticks is None else ticks))
        return place if place < len(self.ticks) and self.ticks[place] == ticks else None

    def key(self, place: int) -> int | None:
        """Returns the place of the last key frame up to `place`, None if there is none."""
        keys = int(np.searchsorted(self.keys, place, 'right'))
        return int(self.keys[keys - 1]) if keys else None


def _runs(values: Integer[np.ndarray, ' n']) -> list[int]:
    """Returns steps and how often each is repeated, one after another; the first step leads from 0."""
    steps = np.diff(values, prepend=0)
    starts = np.flatnonzero(np.diff(steps, prepend=steps[:1] - 1))
    counts = np.diff(starts, append=len(steps))
    return np.stack([steps[starts], counts], axis=1).ravel().tolist()


def _from_runs(runs: Sequence[int]) -> Int64[np.ndarray, ' n']:
    steps, counts = np.array(runs, np.int64).reshape(-1, 2).T
    if len(counts) and (counts.min() < 0 or counts.astype(float).sum() > MOST_FRAMES):
        raise ValueError(f'more than {MOST_FRAMES:,} frames')
    return np.cumsum(np.repeat(steps, counts))
