"""A source watched over while its examples are used one by one: what cannot be read is noted and stops nothing."""

import dataclasses
import functools
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Integer, Shaped

from vivit_jax.data.given import Given, Span
from vivit_jax.data.joined import Joined, Some
from vivit_jax.data.record import Label, Record, Source, UnreadableExample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watched:
    """A source whose examples are called by their numbers; those that cannot be read are noted and stop nothing.

    Attributes:
        source: The source.
        channels: Of its pixels.
        as_float: uint8 pixels are scaled to [-1, 1] here, not on the device.
        unreadable: Causes by number.
    """

    source: Source
    channels: int
    as_float: bool = False
    unreadable: dict[int, str] = dataclasses.field(default_factory=dict)
    bad = ()
    digest = ''

    @property
    def class_names(self) -> Sequence[str]:
        """Returns those of the source."""
        return self.source.class_names

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        """Returns the record at `index`."""
        record = self.source[index]
        return dataclasses.replace(record, name=str(index), read=functools.partial(self._read, index, record))

    def _read(
        self, index: int, record: Record, indices: Integer[np.ndarray, ' t']
    ) -> Shaped[np.ndarray, 't h w c']:
        try:
            pixels = record.read(indices)
        except UnreadableExample as error:
            self.unreadable[index] = ' '.join(str(error).split())
            pixels = np.zeros((len(indices), *record.frame_size, self.channels), np.uint8)
        return pixels.astype(np.float32) / 127.5 - 1 if self.as_float and pixels.dtype == np.uint8 else pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of an example besides its pixels.

    Attributes:
        file: Full path of its file; None where it is in none of its own.
        span: Where in the file it begins and ends, in seconds; None where it is all of it.
        label: Its label; None where nobody knows.
    """

    file: str | None
    span: Span | None
    label: Label | None


def facts(source: Source, index: int) -> Facts:
    """Returns what is known of an example."""
    if isinstance(source, Joined):
        for part in source.parts:
            if index < len(part):
                return facts(part, index)
            index -= len(part)
    if isinstance(source, Some):
        return facts(source.source, source.indices[index])
    if isinstance(source, Given):
        return Facts(file=source.files[index], span=source.spans[index], label=None)
    path = getattr(source, 'path', None)
    file = os.path.abspath(path(index)) if path else None
    return Facts(file=file, span=None, label=source[index].label)
