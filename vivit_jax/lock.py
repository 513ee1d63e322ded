"""One run at a time in a workdir: a lock that beats, so that one left behind is told from one that is held.

`run.lock` names the process that trains there; it rewrites the file every `BEAT` seconds, from a thread, so that
compilations and long evaluations do not matter. A second run is refused as long as that process is there:

- On the same machine the table of processes tells, whatever the machine is called now: its boot, the container (two
  may number their processes alike), the process's number and when it began. It counts as there while it exists, also
  suspended or busy for an hour, and as gone as soon as it does not.
- Elsewhere no age is reckoned, as clocks of machines differ: a start watches the file, and refuses as soon as there
  is another beat in it. After `PATIENCE` seconds without one the other run is gone, or suspended: it is taken over
  from. Should it come back it finds out, by its next beat and before all that it writes, and stops (`Lost`).

On file systems who takes, beats or releases does it under `flock`, so that one of two starts wins. Object stores, and
file systems of a network that lock for one machine only, know no such thing: there the last that wrote wins, as the
other reads soon after. That leaves moments in which both believe to hold it, but none in which they go on so.
"""

import contextlib
import dataclasses
import fcntl
import json
import math
import os
import pathlib
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO

import jax
import numpy as np

from vivit_jax import paths, sharding

NAME = 'run.lock'
BEAT = 10.0  # seconds from one sign of life to the next
FIRST_BEAT = 1.0  # seconds to the first, which finds out who won where nothing can be locked
PATIENCE = 60.0  # seconds without a sign after which a run elsewhere is gone
GRACE = 2.0  # seconds in which a process that was just killed may still be seen
POLL = 0.25  # seconds from one look at another run's lock to the next
SETTLE = 2.0  # seconds after which what was written to a store is read back
BUSY = 5.0  # seconds for which the file may be held while it is read or written
SIZE = 1024  # bytes of the file: each version covers the one before


class Lost(RuntimeError):
    """Another run has taken the workdir over, as this one had given no sign for long: nothing more may be written."""


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a lock, as the file has it.

    Attributes:
        run: Drawn at random.
        host: The machine's name, to tell people.
        process: Its number.
        boot: The machine's boot, '' where it does not tell.
        namespace: In which the process has its number.
        born: When it began, in ticks since the boot; 0 where that is not told.
        started: When it took the lock, in seconds since 1970 by its clock.
        signed: When it last gave a sign.
        beat: Signs given.
    """

    run: str
    host: str
    process: int
    boot: str
    namespace: str
    born: int
    started: float
    signed: float
    beat: int

    def __str__(self) -> str:
        now = time.time()
        began, signed = (_duration(now - moment) for moment in (self.started, self.signed))
        doing = 'train, suspended' if _is_suspended(self) else 'train'
        return f'process {self.process} on {self.host} ({doing}, started {began} ago, last sign {signed} ago)'


def ourselves() -> Holder:
    """Returns this process as a holder."""
    with contextlib.suppress(OSError):
        boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
        namespace = os.readlink('/proc/self/ns/pid')
        born = _born(os.getpid())
        return _fresh(boot, namespace, born)
    return _fresh('', '', 0)  # another system than Linux: only beats tell


def _fresh(boot: str, namespace: str, born: int) -> Holder:
    now = time.time()
    name = _printable(socket.gethostname())
    return Holder(secrets.token_hex(8), name, os.getpid(), boot, namespace, born, now, now, 0)


@contextlib.contextmanager
def held(folder: paths.Path, say: Callable[[str], object] = print) -> Iterator['Lock']:
    """Holds a workdir while the context lasts, however it ends; of several processes the first does, for all.

    Args:
        folder: The workdir, which is there.
        say: Told in a line when the lock was left behind, and before somebody else's is watched.

    Yields:
        What to ask, between steps and before anything is written, whether it is still held.

    Raises:
        ValueError: If another run is there, or the file cannot be written; in all processes, one line.
        Lost: If another run has taken the folder over, whatever else has come of that.
    """
    lock, refusal = Lock(folder), ''
    if jax.process_index() == 0:
        try:
            lock._take(say)
        except OSError as error:
            refusal = f'{folder / NAME} cannot be written: {error.strerror or error}'
        except ValueError as error:
            refusal = str(error)
    if refusal := _of_the_first(refusal):
        raise ValueError(refusal)
    try:
        yield lock
        lock.confirm()
    except Lost:
        raise
    except BaseException as error:
        # What another run clears away is missed here.
        if lock._lost():
            lock.check(error)
        raise
    finally:
        lock._release()


class Lock:
    """A lock on a workdir, see `held`.

    Args:
        folder: The workdir.
    """

    def __init__(self, folder: paths.Path):
        self._folder, self._path = folder, folder / NAME
        self._us = ourselves()
        self._by: Holder | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def check(self, cause: BaseException | None = None) -> None:
        """Raises `Lost` if it is known that another run has taken over; costs nothing."""
        if self._by is not None:
            raise Lost(
                f'{self._folder} was taken over by {self._by}, while this run (process {self._us.process}) was '
                f'suspended or cut off for over {PATIENCE:g} s: it ends and writes nothing more'
            ) from cause

    def confirm(self) -> None:
        """Looks into the file, before something is written; raises `Lost` if another run has taken over."""
        if not self._lost():
            return
        self.check()

    def _lost(self) -> bool:
        if self._thread is not None and self._by is None:
            with contextlib.suppress(OSError), _alone(self._path) as file:
                self._see(file.read())
        return self._by is not None

    def _see(self, found: Holder | None) -> None:
        if found is not None and found.run != self._us.run:
            self._by = found

    def _take(self, say: Callable[[str], object]) -> None:
        gone: Holder | None = None
        while True:
            with _alone(self._path) as file:
                found = file.read()
                free = found is None or found == gone or _is_there(found) is False
                if free:
                    file.write(self._us)
            if free and paths.is_remote(self._path):
                time.sleep(SETTLE)
                with _alone(self._path) as file:
                    winner = file.read()
                if winner is not None and winner.run != self._us.run:
                    found, free = winner, False
            if free:
                break
            assert found is not None
            gone = _watched(self._folder, found, say)
        if found is not None:
            say(f'{self._folder} was left by {found}, which is gone: taking it over')
        self._thread = threading.Thread(target=self._beating, name='lock', daemon=True)
        self._thread.start()

    def _beating(self) -> None:
        pause = FIRST_BEAT
        while not self._over.wait(pause) and self._by is None:
            pause = BEAT
            # A disk that is full or gone for a while is noticed by others; here the next beat will do.
            with contextlib.suppress(OSError), _alone(self._path) as file:
                self._see(file.read())
                if self._by is None:
                    self._us = dataclasses.replace(self._us, signed=time.time(), beat=self._us.beat + 1)
                    file.write(self._us)

    def _release(self) -> None:
        if self._thread is None:
            return
        self._over.set()
        self._thread.join(BUSY)
        with contextlib.suppress(OSError), _alone(self._path) as file:
            found = file.read()
            if found is None or found.run == self._us.run:
                file.remove()


def _watched(folder: paths.Path, holder: Holder, say: Callable[[str], object]) -> Holder | None:
    """Watches another run's lock until that run is gone.

    Returns:
        The lock as it was all the time; None if it has been released or changed hands meanwhile.

    Raises:
        ValueError: If the run is there.
    """
    here = _is_there(holder)
    if here is None:
        say(f'{folder} may be in use by {holder}: watching for {PATIENCE:g} s whether there is another sign')
    deadline = time.monotonic() + (PATIENCE if here is None else GRACE)
    while time.monotonic() < deadline:
        time.sleep(POLL)
        with _alone(folder / NAME) as file:
            found = file.read()
        if found is None or found.run != holder.run or (here and not _is_there(holder)):
            return None
        if here is None and found.beat != holder.beat:
            raise ValueError(_in_use(folder, found))
    if here:
        raise ValueError(_in_use(folder, holder))
    return holder


def _in_use(folder: paths.Path, holder: Holder) -> str:
    return f'{folder} is in use by {holder}: wait, stop it, or choose another --workdir'


def _is_there(holder: Holder) -> bool | None:
    """Tells whether a process of this machine is there; None where it is another machine's, or may be."""
    us = ourselves()
    if not us.boot or (us.boot, us.namespace) != (holder.boot, holder.namespace):
        return None
    try:
        os.kill(holder.process, 0)  # sends nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # another user's
    try:
        return _state(holder.process) not in 'ZX' and _born(holder.process) == holder.born
    except OSError:
        return True  # that may not be looked at


def _is_suspended(holder: Holder) -> bool:
    try:
        return bool(_is_there(holder)) and _state(holder.process) == 'T'
    except OSError:
        return False


def _stat(process: int) -> list[str]:
    """Returns the fields of /proc/PROCESS/stat, see proc(5), from the third on."""
    return pathlib.Path(f'/proc/{process}/stat').read_text(errors='replace').rpartition(')')[2].split()


def _state(process: int) -> str:
    """Returns a letter, as R running, S sleeping, T suspended, Z ended."""
    return _stat(process)[0]


def _born(process: int) -> int:
    return int(_stat(process)[19])


@dataclasses.dataclass
class _File:
    """The file of a lock, open where it is on a file system."""

    path: paths.Path
    file: IO[bytes] | None

    def read(self) -> Holder | None:
        """Returns who holds it; None where it is empty, or no such thing."""
        if self.file is not None:
            self.file.seek(0)
            return _parsed(self.file.read(SIZE))
        try:
            return _parsed(self.path.read_bytes())
        except FileNotFoundError:
            return None

    def write(self, holder: Holder) -> None:
        """Puts a holder in the place of the one before, in one piece."""
        text = json.dumps(dataclasses.asdict(holder)).encode()
        if self.file is not None:
            self.file.seek(0)
            self.file.write(text.ljust(SIZE - 1) + b'\n')
            self.file.truncate()  # only if it was no lock
        else:
            self.path.write_bytes(text + b'\n')

    def remove(self) -> None:
        """Removes it."""
        self.path.unlink(missing_ok=True)


def _parsed(text: bytes) -> Holder | None:
    try:
        values = json.loads(text)
        fields = {field.name: (field.type, values[field.name]) for field in dataclasses.fields(Holder)}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if any(type(value) is not kind for kind, value in fields.values()):
        return None
    holder = Holder(**{name: value for name, (_, value) in fields.items()})
    if holder.process < 1 or not (math.isfinite(holder.started) and math.isfinite(holder.signed)):
        return None
    return dataclasses.replace(holder, host=_printable(holder.host))


@contextlib.contextmanager
def _alone(path: paths.Path) -> Iterator[_File]:
    """Opens the file of a lock, which nobody else has open meanwhile; makes it where there is none.

    Raises:
        BlockingIOError: If somebody else has it open for long.
        OSError: If it cannot be opened.
    """
    if paths.is_remote(path):
        yield _File(path, None)
        return
    deadline = time.monotonic() + BUSY
    while True:
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), 'r+b') as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Not one that was removed since it was opened.
                mine = os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path))
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise BlockingIOError(
                        error.errno, 'another process has it open, maybe suspended'
                    ) from error
                mine = False
            except OSError:
                mine = True  # no locks on this file system: see the top
            if mine:
                yield _File(path, file)
                return
        time.sleep(0.01)


def _of_the_first(text: str) -> str:
    """Returns a text of process 0 on all processes."""
    if jax.process_count() == 1:
        return text
    ours = f' {text}'.encode() if jax.process_index() == 0 else b''
    rows = np.frombuffer(ours, np.uint8).astype(np.uint32)[:, None]
    return sharding.gather_rows(rows).astype(np.uint8).tobytes().decode()[1:]


def _printable(text: str) -> str:
    return ''.join(letter if letter.isprintable() else '?' for letter in text[:100])


def _duration(seconds: float) -> str:
    """Returns '4 s', '12 min', '3 h' or '5 days'."""
    for size, unit in ((86400, 'days'), (3600, 'h'), (60, 'min')):
        if seconds >= 2 * size:
            return f'{seconds / size:.0f} {unit}'
    return f'{max(seconds, 0):.0f} s'
