"""What a data source hands out: records, cheap to make and lazy to read."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer, Shaped

Label = int | tuple[int, ...] | tuple[float, ...]


class UnreadableExample(ValueError):
    """The pixels of an example cannot be read: its file is damaged, gone or not what it seemed to be."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a look into a file tells once and for all; kept in a manifest, so that it is looked into once.

    Attributes:
        num_frames: Frames that can be read, at least 1.
        frame_size: (height, width) of a frame in pixels, upright.
        seconds: Duration, None where there is no time.
        codec: What the pixels are stored as, as `h264`.
        index: What the reader needs to find its way, packed as text; only the reader understands it.
    """

    num_frames: int
    frame_size: tuple[int, int]
    seconds: float | None
    codec: str
    index: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One example before anything is decoded: enough to choose a clip, and the means to read it.

    Attributes:
        name: What the example is called in messages and in `predictions.csv`.
        label: A class index, one index a head, or one float (0 or 1) a class for multi-label data.
        num_frames: Frames that `read` can return, at least 1.
        frame_size: (height, width) of a frame in pixels.
        read: Maps frame indices in `[0, num_frames)`, in any order and with repetitions, to the pixels
            `[t h w c]`: uint8, or float32 scaled to [-1, 1]. Raises `UnreadableExample` where it cannot.
        seconds: Duration, None where there is no time.
        codec: What the pixels are stored as, '' where they are not stored as such.
    """

    name: str
    label: Label
    num_frames: int
    frame_size: tuple[int, int]
    read: Callable[[Integer[np.ndarray, ' t']], Shaped[np.ndarray, 't h w c']]
    seconds: float | None = None
    codec: str = ''


@runtime_checkable
class Source(Protocol):
    """Random access to records: any process can ask for any of them, in any order."""

    @property
    def class_names(self) -> Sequence[str]:
        """Names of the classes, those of several heads one after another."""

    @property
    def digest(self) -> str:
        """A text that differs where the examples, their order or labels do; a resumed run compares it."""

    @property
    def bad(self) -> Sequence[tuple[str, str]]:
        """(name, cause) of each example that was left out since it cannot be used."""

    def __len__(self) -> int:
        """Returns the number of examples."""

    def __getitem__(self, index: int) -> Record:
        """Returns the record at `index`, without reading its pixels."""
