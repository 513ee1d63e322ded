"""Moving digits: a small video data set made on the spot, in which only motion tells the class.

A handwritten 8x8 digit moves over a black torus (what leaves on one side enters on the other) in one of 8
directions, the class, at 1 or 2 pixels a frame. It starts anywhere with equal probability, so a single frame
says nothing about the class, and a model that cannot order frames stays near one half. Two more splits show
that: the test clips with their frames shuffled, and with one frame standing still.

The digits are real: the UCI "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998,
https://doi.org/10.24432/C50P49, CC BY 4.0), kept beside this file; see DIGITS_LICENSE.md.
"""

import functools
import pathlib

import numpy as np
from jaxtyping import Int64, Integer, UInt8

from vivit_jax.data.record import Record

# (down, right) in pixels, clockwise from the right; y grows downwards. The order is that of the labels.
DIRECTIONS = {
    'right': (0, 1),
    'down-right': (1, 1),
    'down': (1, 0),
    'down-left': (1, -1),
    'left': (0, -1),
    'up-left': (-1, -1),
    'up': (-1, 0),
    'up-right': (-1, 1),
}
# The digits of each split: blocks of the file, since its neighbours tend to come from the same writers.
DIGITS = {'train': range(1197), 'validation': range(1197, 1497), 'test': range(1497, 1797)}
SPLITS = (*DIGITS, 'test_shuffled', 'test_still')
DIGIT_SIZE = 8


class MovingDigits:
    """A source of moving digits: the same clip for the same (seed, split, index), whoever asks, in any order.

    Attributes:
        class_names: The 8 directions, each equally frequent.
        digest: What the clips depend on.
        bad: Nothing: there are no files.
    """

    bad = ()

    def __init__(self, split: str, *, size: int, seed: int = 0, frames: int = 16, canvas: int = 32):
        """Makes the source; clips are made when they are read.

        Args:
            split: `train`, `validation` or `test`, which share no digit; `test_shuffled`, the clips of `test`
                with their frames in a random order; `test_still`, one random frame of each of them, repeated.
            size: Number of clips, at least 1.
            seed: Another number, another data set; at least 0.
            frames: Frames in a clip, at least 1.
            canvas: Height and width of a frame in pixels, at least 8, the size of a digit.

        Raises:
            ValueError: If the split is none of the above or a number is too small.
        """
        if split not in SPLITS:
            raise ValueError(f'moving digits have no split {split!r}: choose one of {", ".join(SPLITS)}')
        limits = {'size': (size, 1), 'seed': (seed, 0), 'frames': (frames, 1), 'canvas': (canvas, DIGIT_SIZE)}
        for name, (value, lowest) in limits.items():
            if value < lowest:
                raise ValueError(f'moving digits: {name}={value} must be at least {lowest}')
        self.class_names = list(DIRECTIONS)
        self._split, self._size, self._seed = split, size, seed
        self._frames, self._canvas = frames, canvas
        self.digest = f'moving digits {split}, {size} clips, seed {seed}, {frames} frames of {canvas} pixels'

    def __len__(self) -> int:
        """Returns the number of clips."""
        return self._size

    def __getitem__(self, index: int) -> Record:
        """Returns the record at `index`, with frames uint8 `[t canvas canvas 1]`."""
        if not 0 <= index < self._size:
            raise IndexError(f'moving digits: index {index} must be in [0, {self._size})')
        # The motion is drawn when it is read: every run lists all records of its splits.
        return Record(
            name=f'{self._split}/{index:06d}',
            label=index % len(DIRECTIONS),
            num_frames=self._frames,
            frame_size=(self._canvas, self._canvas),
            read=functools.partial(self._read, index),
        )

    def _read(self, index: int, indices: Integer[np.ndarray, ' t']) -> UInt8[np.ndarray, 't h w 1']:
        """Draws the frames `indices` of a clip."""
        base = self._split.split('_')[0]
        rng = np.random.default_rng((self._seed, list(DIGITS).index(base), index))
        digit = DIGITS[base][rng.integers(len(DIGITS[base]))]
        speed = rng.integers(1, 2, endpoint=True)
        start = rng.integers(self._canvas, size=2)
        # Drawn after the motion, which is therefore the same in all three test splits.
        times = np.arange(self._frames)
        if self._split == 'test_shuffled':
            times = rng.permutation(times)
        elif self._split == 'test_still':
            times = np.full_like(times, rng.integers(self._frames))
        direction = list(DIRECTIONS.values())[index % len(DIRECTIONS)]
        corners = start + times[:, np.newaxis] * speed * direction
        return _draw_frames(digit, corners, self._canvas, indices)


@functools.cache
def load_digits() -> UInt8[np.ndarray, '1797 8 8']:
    """Returns all digits, white on black, in the file's order, scaled from 0..16 to 0..255."""
    table = np.loadtxt(pathlib.Path(__file__).with_name('digits.csv.gz'), delimiter=',', dtype=np.int64)
    images = table[:, :-1].reshape(-1, DIGIT_SIZE, DIGIT_SIZE)
    return ((images * 255 + 8) // 16).astype(np.uint8)


def _draw_frames(
    digit: int, corners: Int64[np.ndarray, 'all 2'], canvas: int, indices: Integer[np.ndarray, ' t']
) -> UInt8[np.ndarray, 't h w 1']:
    """Draws the digit with its top left corner at `corners[indices]`, (y, x), on a torus."""
    within = np.arange(DIGIT_SIZE)
    rows, columns = ((corners[indices, axis, np.newaxis] + within) % canvas for axis in (0, 1))
    frames = np.zeros((len(indices), canvas, canvas, 1), np.uint8)
    frame = np.arange(len(indices))[:, np.newaxis, np.newaxis]
    frames[frame, rows[:, :, np.newaxis], columns[:, np.newaxis, :], 0] = load_digits()[digit]
    return frames
