"""Room on a disk, and what is said where there is none."""

import logging
import shutil
import sys
import traceback
from typing import Any

from vivit_jax import paths

FULL = {  # the operating system's words, whichever library passes them on
    'No space left': 'no space is left on the disk',
    'Disk quota exceeded': 'the disk quota is used up',
    'File too large': 'files may not become that large',
}


def free(folder: paths.Path) -> int | None:
    """Returns the bytes that are free on the disk of a folder, which need not be there; None for an object store."""
    if paths.is_remote(folder):
        return None
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def mebibytes(size: int) -> str:
    """Writes bytes for people to read."""
    return f'{size / 2**20:,.1f} MiB'


def why(error: BaseException) -> str:
    """Says in a few words why something could not be written."""
    told = ' '.join(f'{error} {error.__cause__ or ""}'.split())
    known = [ours for theirs, ours in FULL.items() if theirs in told]
    return known[0] if known else f'{type(error).__name__}: {told[:160]}'


def tell_failures_once() -> None:
    """Keeps quiet what Orbax, asyncio and TensorStore print where a write fails: traces of what is raised as well."""
    for name in ('absl', 'asyncio'):
        logging.getLogger(name).addFilter(_is_news)
    if getattr(sys.unraisablehook, '__module__', '') != __name__:
        before = sys.unraisablehook

        def hook(raised: Any) -> None:
            # Of writes that end after another one has failed, and with that one the loop that they report to.
            if str(raised.exc_value) != 'Event loop is closed':
                before(raised)

        sys.unraisablehook = hook


def _is_news(record: logging.LogRecord) -> bool:
    """Tells whether to show what is logged: not the traces of exceptions in Orbax, which raises one of them."""
    if not record.exc_info:
        return True
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(record.exc_info[2])]
    return not any('orbax' in text for text in (record.pathname, record.getMessage(), *files))
