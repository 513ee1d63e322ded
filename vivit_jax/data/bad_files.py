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

_ADDING = threading.Lock()
COLUMNS = ('split', 'name', 'cause', 'found')


@dataclasses.dataclass(frozen=True)
class BadFiles:
    """The list of a run.

    Attributes:
        path: The file; it need not be there.
    """

    path: pathlib.Path

    def add(self, split: str, name: str, cause: str, found: str) -> None:
        """Adds a line, unless the example is in the list already.

        Args:
            split: Which split the example is of.
            name: Of the example.
            cause: Why it cannot be used.
            found: When that was met: `at the start`, `while training` or `while evaluating`.
        """
        text = io.StringIO()
        with _ADDING:
            if (split, name) in self.read():
                return
            if not self.size():
                csv.writer(text).writerow(COLUMNS)
            csv.writer(text).writerow([split, name, ' '.join(cause.split()), found])
            with self.path.open('ab', buffering=0) as file:
                file.write(text.getvalue().encode('utf-8', 'surrogateescape'))

    def size(self) -> int:
        """Returns the bytes written so far: whoever watches need not read."""
        try:
            return os.stat(self.path).st_size
        except FileNotFoundError:
            return 0

    def read(self) -> dict[tuple[str, str], tuple[str, str]]:
        """Returns (cause, found) by (split, name), in the order in which they were met."""
        if not self.size():
            return {}
        with self.path.open(newline='', encoding='utf-8', errors='replace') as file:
            rows = [row for row in csv.reader(file) if len(row) == len(COLUMNS) and tuple(row) != COLUMNS]
        known: dict[tuple[str, str], tuple[str, str]] = {}
        for split, name, cause, found in rows:
            known.setdefault((split, name), (cause, found))
        return known
