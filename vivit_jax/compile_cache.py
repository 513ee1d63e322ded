"""Compiled programs kept on disk: the same command starts several times faster when it starts again.

jax does the keeping, and tells programs apart by all that they depend on: the computation, versions, devices, flags.
Here is where they are kept, how much of them, and that nothing about it can stop a run. Commands call `enable`;
importing the package and calling its functions change no setting of jax.
"""

import contextlib
import dataclasses
import hashlib
import os
import pathlib
import platform
import re
import warnings
from collections.abc import Iterator
from typing import Any

import filelock
import jax

from vivit_jax.data.examine import default_cache

SWITCH = 'VIVIT_JAX_COMPILE_CACHE'
SETTINGS = {
    # Bytes; what was not used for longest goes first. The training step of a large model is some tens of megabytes.
    'jax_compilation_cache_max_size': 2**30,
    # All programs: on a second start the small ones together take as long as the large one.
    'jax_persistent_cache_min_compile_time_secs': 0.0,
    'jax_persistent_cache_min_entry_size_bytes': -1,
}
# jax's words for an entry that it could not read or write; its name is the beginning of that of its file.
TROUBLE = re.compile(
    r"Error (reading|writing) persistent compilation cache entry for '(\w+)': (.*)", re.DOTALL
)
LOCK = '.lockfile'  # jax's own
PATIENCE = 5.0  # seconds to wait for another process that writes


def folder() -> pathlib.Path:
    """Returns where programs of this machine are kept.

    One compiled for another kind of CPU may use instructions that this one has not, and jax does not look: each kind
    has a folder of its own.
    """
    try:
        facts = pathlib.Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace').split('\n\n')[0]
        kind = re.findall(r'^(?:model name|flags|Features|CPU \w+)\s*:.*', facts, re.MULTILINE)
    except OSError:
        kind = [platform.processor()]
    name = hashlib.sha256('\n'.join([platform.machine(), *kind]).encode()).hexdigest()[:16]
    return default_cache() / 'compiled' / name


def enable() -> pathlib.Path | None:
    """Keeps compiled programs from now on, unless the user has said otherwise; before the first one is compiled.

    Nothing is changed where jax already has a folder (JAX_COMPILATION_CACHE_DIR), where its cache is switched off
    (JAX_ENABLE_COMPILATION_CACHE=false), and with VIVIT_JAX_COMPILE_CACHE=0. A folder that cannot be written costs a
    warning of one line; so does the first entry that cannot be read, which is then made anew.

    Returns:
        Where they are kept; None where nothing was changed.
    """
    if os.environ.get(SWITCH) == '0' or not jax.config.values['jax_enable_compilation_cache']:
        return None
    if jax.config.values['jax_compilation_cache_dir'] is not None:
        return None
    try:
        where = folder()
        # Whoever may write here may run programs as this user.
        where.mkdir(mode=0o700, parents=True, exist_ok=True)
        tidy(where)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        cause = getattr(error, 'strerror', None) or error
        warnings.warn(
            f'compiled programs are not kept for the next start: {getattr(error, "filename", None) or "folder"}: '
            f'{cause}; JAX_COMPILATION_CACHE_DIR=FOLDER keeps them elsewhere, {SWITCH}=0 none',
            stacklevel=2,
        )
        return None
    jax.config.update('jax_compilation_cache_dir', str(where))
    for name, value in SETTINGS.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
    _listen(where)
    return where


def tidy(where: pathlib.Path, damaged: str = '') -> None:
    """Removes what jax cannot use: entries that were not written to their end, and those of a damaged program.

    jax writes an entry, then the time of its use; where the second is missing the first may be a part of it, and jax
    would keep nothing any more.

    Args:
        where: The folder.
        damaged: Name of the program, as `jit_train_step`; entries do not tell more.
    """
    with contextlib.suppress(filelock.Timeout), filelock.FileLock(where / LOCK, timeout=PATIENCE):
        names = {path.name for path in where.iterdir()}
        for name in names:
            key, _, kind = name.rpartition('-')
            other = {'cache': f'{key}-atime', 'atime': f'{key}-cache'}.get(kind, name)
            if other not in names or (damaged and key.rpartition('-')[0] == damaged):
                (where / name).unlink(missing_ok=True)


def _listen(where: pathlib.Path) -> None:
    """Turns jax's warnings about entries into one line in all, and removes what could not be read."""
    show = warnings.showwarning
    told: list[str] = []

    def instead(message: Any, category: Any, *place: Any, **more: Any) -> None:
        trouble = TROUBLE.match(str(message))
        if trouble is None:
            show(message, category, *place, **more)
            return
        doing, program, cause = trouble.groups()
        with contextlib.suppress(OSError):
            tidy(where, damaged=program if doing == 'reading' else '')
        if not told:
            told.append(program)
            short = ' '.join(cause.split())[:120]
            line = f'{doing} a compiled program in {where} failed, it is compiled anew ({short})'
            show(UserWarning(line), category, *place, **more)

    warnings.showwarning = instead


@dataclasses.dataclass
class Watched:
    """How many programs were needed, and how many of them came from the disk."""

    needed: int = 0
    loaded: int = 0

    def __str__(self) -> str:
        """Returns what goes behind 'compiled in 2 s'."""
        return ' (from the cache)' if self.needed and self.needed == self.loaded else ''


@contextlib.contextmanager
def watched() -> Iterator[Watched]:
    """Counts the programs that are compiled within, and those of them that are loaded instead."""
    seen = Watched()

    def count(event: str, **_: Any) -> None:
        seen.needed += event == '/jax/compilation_cache/compile_requests_use_cache'
        seen.loaded += event == '/jax/compilation_cache/cache_hits'

    jax.monitoring.register_event_listener(count)
    try:
        yield seen
    finally:
        jax.monitoring.unregister_event_listener(count)
