"""`bad_files.csv`: every example that was left out or replaced, with its cause.

Threads and worker processes meet it while they read, so each of them appends lines of its own: a line is written by
one call, which the system does not tear apart. Two processes that meet the same example at once may both name it.
"""

import csv
import dataclasses
import io
import os
import pathlib
import threading
from collections.abc import Iterable

_READING = threading.Lock()
# How far each list was read by this process, and what was in it.
_KNOWN: dict[pathlib.Path, tuple[int, dict[tuple[str, str], tuple[str, str]]]] = {}
COLUMNS = ('split', 'name', 'cause', 'found')


@dataclasses.dataclass(frozen=True)
class BadFiles:
    """The list of a run.

    Attributes:
        path: The file; it need not be there.
    """

    path: pathlib.Path

    def add(self, split: str, found: str, bad: Iterable[tuple[str, str]]) -> None:
        """Adds a line for each example that is not in the list already.

        Args:
            split: Which split the examples are of.
            found: When they were met: `at the start`, `while training` or `while evaluating`.
            bad: (name, cause) of each.
        """
        text = io.StringIO()
        with _READING:
            known = self._known()
            if not self.size():
                csv.writer(text).writerow(COLUMNS)
            for name, cause in bad:
                if (split, name) not in known:
                    csv.writer(text).writerow([split, name, ' '.join(cause.split()), found])
            if text.tell():
                with self.path.open('ab', buffering=0) as file:
                    file.write(text.getvalue().encode('utf-8', 'surrogateescape'))

    def clear(self) -> None:
        """Begins anew, without a file."""
        with _READING:
            self.path.unlink(missing_ok=True)
            _KNOWN.pop(self.path, None)

    def size(self) -> int:
        """Returns the bytes written so far: whoever watches need not read."""
        try:
            return os.stat(self.path).st_size
        except FileNotFoundError:
            return 0

    def read(self) -> dict[tuple[str, str], tuple[str, str]]:
        """Returns (cause, found) by (split, name), in the order in which they were met."""
        with _READING:
            return dict(self._known())

    def _known(self) -> dict[tuple[str, str], tuple[str, str]]:
        """Reads what the file has grown by since this process read it last."""
        size = self.size()
        end, known = _KNOWN.get(self.path, (0, {}))
        if size < end:
            end, known = 0, {}  # another run's list
        if size > end:
            with self.path.open('rb') as file:
                file.seek(end)
                grown = file.read(size - end)
            grown = grown[: grown.rfind(b'\n') + 1]
            for row in csv.reader(io.StringIO(grown.decode('utf-8', 'surrogateescape'))):
                if len(row) == len(COLUMNS) and tuple(row) != COLUMNS:
                    known.setdefault((row[0], row[1]), (row[2], row[3]))
            end += len(grown)
        _KNOWN[self.path] = end, known
        return known
