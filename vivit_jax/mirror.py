"""A folder here that stands for an object store's, whose files cannot grow: what has changed is uploaded whole."""

import pathlib
import shutil
import tempfile
import time
import warnings
import weakref
from types import TracebackType

from vivit_jax import paths

EVERY = 30.0  # seconds from one upload to the next


class Mirror:
    """Files that grow, of a folder that may be a store's; of this machine it is the folder itself, and does nothing.

    Args:
        folder: Where the files are to be.

    Attributes:
        here: Where they are written.
    """

    def __init__(self, folder: paths.Path):
        self._folder, self.here = folder, folder
        self._remove: weakref.finalize | None = None
        if paths.is_remote(folder):
            self.here = pathlib.Path(tempfile.mkdtemp(prefix='vivit_jax_'))
            # With the object at the latest, whoever has it.
            self._remove = weakref.finalize(self, shutil.rmtree, self.here, ignore_errors=True)
        self._uploaded: dict[str, tuple[int, int]] = {}
        self._last = time.monotonic()

    def __enter__(self) -> 'Mirror':
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_copy(self) -> bool:
        """Tells whether the files here stand for others."""
        return self._remove is not None

    def fetch(self, name: str) -> None:
        """Copies a file here, where there is one."""
        if self.is_copy and (self._folder / name).is_file():
            paths.download(self._folder / name, self.here / name)
            self._uploaded[name] = _stamp(self.here / name)

    def is_due(self) -> bool:
        """Tells whether it is time for an upload."""
        return self.is_copy and time.monotonic() - self._last > EVERY

    def push(self) -> None:
        """Uploads what has changed; where the store does not answer there is a warning, and the next time will do."""
        if not self.is_copy:
            return
        self._last = time.monotonic()
        for file in sorted(self.here.iterdir()):
            stamp = _stamp(file)
            if self._uploaded.get(file.name) == stamp:
                continue
            try:
                paths.upload(file, self._folder / file.name)
            except OSError as error:
                warnings.warn(f'{self._folder / file.name} was not written: {error}', stacklevel=2)
                return
            self._uploaded[file.name] = stamp

    def close(self) -> None:
        """Uploads the last changes, and removes the files here where these were copies."""
        if self._remove is not None:
            self.push()
            self._remove()
            self._remove = None


def _stamp(file: pathlib.Path) -> tuple[int, int]:
    found = file.stat()
    return found.st_size, found.st_mtime_ns
