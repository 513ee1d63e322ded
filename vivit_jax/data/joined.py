"""Several sources as one, some examples of a source, one record as a source."""

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Sequence

from vivit_jax.data.record import Record, Source


@dataclasses.dataclass(frozen=True)
class Joined:
    """The examples of several sources, one after another.

    Attributes:
        parts: The sources, of the same classes.
    """

    parts: tuple[Source, ...]

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(map(len, self.parts)))

    @property
    def class_names(self) -> Sequence[str]:
        """Returns the names of the classes."""
        return self.parts[0].class_names

    @property
    def digest(self) -> str:
        """Returns the digests of the parts."""
        return ' '.join(part.digest for part in self.parts)

    @property
    def bad(self) -> Sequence[tuple[str, str]]:
        """Returns what is bad in any part."""
        return [one for part in self.parts for one in part.bad]

    def __len__(self) -> int:
        """Returns the number of examples of all parts."""
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        """Returns the record at `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f'index {index} must be in [0, {len(self)})')
        part = bisect.bisect_right(self._ends, index)
        return self.parts[part][index - (self._ends[part - 1] if part else 0)]


@dataclasses.dataclass(frozen=True)
class Some:
    """A range of the examples of a source.

    Attributes:
        source: The source.
        indices: Which of its examples, all within it.
    """

    source: Source
    indices: range
    bad = ()

    @property
    def class_names(self) -> Sequence[str]:
        """Returns the names of the classes."""
        return self.source.class_names

    @property
    def digest(self) -> str:
        """Returns the digest of the source and the range."""
        return f'{self.source.digest}{self.indices}'

    def __len__(self) -> int:
        """Returns the number of examples."""
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        """Returns the record at `index`."""
        return self.source[self.indices[index]]


@dataclasses.dataclass(frozen=True)
class One:
    """A source of one record.

    Attributes:
        record: The record.
    """

    record: Record
    class_names = ()
    bad = ()
    digest = ''

    def __len__(self) -> int:
        """Returns 1."""
        return 1

    def __getitem__(self, index: int) -> Record:
        """Returns the record."""
        return self.record
