"""A file that grows by whole records, whatever room there is on the disk: what finds none waits for it."""

import pathlib
import warnings


class Growing:
    """Appends records to a file. One that cannot be written, or only half, is held back and tried with the next.

    Args:
        path: The file; what it has is kept.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._file = path.open('ab', buffering=0)
        self._held: list[bytes] = []
        self._told = False

    def add(self, record: bytes) -> None:
        """Appends a record, and those that were held back before it; a warning says where there is no room."""
        self._held.append(record)
        self.flush()

    def flush(self) -> None:
        """Tries again what was held back."""
        while self._held:
            end = self._file.seek(0, 2)
            rest = memoryview(self._held[0])
            try:
                while rest:
                    rest = rest[self._file.write(rest) :]
            except OSError as error:
                self._file.truncate(end)
                if not self._told:
                    reason = f'{self._path} cannot be written now: {error.strerror}; held back until it can'
                    warnings.warn(reason, stacklevel=4)
                self._told = True
                return
            self._held.pop(0)
        self._told = False

    def close(self) -> None:
        """Tries once more what was held back; what still finds no room is lost, which a warning says."""
        self.flush()
        if self._held:
            warnings.warn(
                f'{self._path}: its last {len(self._held)} records could not be written', stacklevel=2
            )
        self._file.close()
