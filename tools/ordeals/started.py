"""The real command as a process of its own, and how far it is: told by what it prints and what it has written."""

import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

# In the order of a run. That it saves is told by an unfinished checkpoint, the others by what is printed.
PHASES = ('starting', 'compiling', 'training', 'validating', 'saving', 'testing', 'reporting', 'ending')
BEGINS = {
    re.compile(r'  settings  '): 'compiling',
    re.compile(r'compiled in '): 'training',
    re.compile(r'evaluating step \d'): 'testing',
    re.compile(r'also there: '): 'reporting',
    re.compile(r'report: '): 'ending',
}
STEP = re.compile(r'step +(\d+)/(\d+) ')
VALIDATED = re.compile(r'step +\d+  validation ')
GOES_ON = re.compile(r'(?:going on from|already trained to) step (\d+)')
UNFINISHED = '.orbax-checkpoint-tmp'  # Orbax's, in the name of a folder until it is complete
PEACE = 5.0  # seconds until all processes of a run that has ended are gone


class RunFailed(RuntimeError):
    """A run did what it should not do; the message says what, and where its output is."""


def command(config: str, workdir: pathlib.Path, overrides: Mapping[str, str]) -> list[str]:
    """Returns the command of a training run."""
    options = [f'--config.{key}={value}' for key, value in overrides.items()]
    return [
        sys.executable,
        '-m',
        'vivit_jax.main',
        f'--config={config}',
        f'--workdir={workdir}',
        *options,
    ]


@dataclasses.dataclass(frozen=True)
class Folder:
    """What is among the checkpoints of a workdir: steps that are whole, in order, and names of unfinished ones."""

    whole: tuple[int, ...]
    unfinished: tuple[str, ...]


def look(workdir: pathlib.Path) -> Folder:
    """Looks at the checkpoints of a workdir."""
    try:
        names = os.listdir(workdir / 'checkpoints')
    except FileNotFoundError:
        names = []
    whole = sorted(int(name) for name in names if name.isdecimal())
    return Folder(tuple(whole), tuple(sorted(name for name in names if UNFINISHED in name)))


class Started:
    """A run that was started.

    Args:
        arguments: Its command line.
        workdir: Its folder.
        log: File for what it prints.
        validate_every: Steps between validations, where the caller knows; 0 where not.

    Attributes:
        step: The last one that it has told of.
        total: Steps in all, as it says; 0 before it does.
        goes_on_from: The step that it says to go on from; None of a run that began anew.
        lasted: Seconds that each phase took that is over, by name.
    """

    def __init__(
        self, arguments: Sequence[str], workdir: pathlib.Path, log: pathlib.Path, validate_every: int = 0
    ):
        self.workdir, self.log = workdir, log
        self.step = self.total = 0
        self.goes_on_from: int | None = None
        self.lasted: dict[str, list[float]] = {}
        self._validate_every = validate_every
        self._said = 'starting'
        self._rest = ''
        self._written = log.open('wb')
        self._read = log.open('rb')
        self.began = time.monotonic()
        self._phase, self._since = 'starting', self.began
        self.process = subprocess.Popen(
            arguments,
            stdout=self._written,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # so that all of its processes can be told
            env=os.environ | {'PYTHONUNBUFFERED': '1'},
        )

    def __enter__(self) -> 'Started':
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._read.close()
        self._written.close()

    def phase(self) -> str:
        """Looks how far the run is."""
        for line in self._new_lines():
            self._take(line)
        phase = self._said
        if phase in ('training', 'validating') and look(self.workdir).unfinished:
            phase = 'saving'
        if phase != self._phase:
            now = time.monotonic()
            self.lasted.setdefault(self._phase, []).append(now - self._since)
            self._phase, self._since = phase, now
        return phase

    def _new_lines(self) -> list[str]:
        *lines, self._rest = (self._rest + self._read.read().decode(errors='replace')).split('\n')
        return lines

    def _take(self, line: str) -> None:
        for pattern, phase in BEGINS.items():
            if pattern.match(line):
                self._said = phase
        if found := GOES_ON.match(line):
            self.step = self.goes_on_from = int(found[1])
        if found := STEP.match(line):
            self.step, self.total = int(found[1]), int(found[2])
            if self._validate_every and self.step % self._validate_every == 0:
                self._said = 'validating'
        if VALIDATED.match(line):
            self._said = 'training'

    def freeze(self) -> str:
        """Stops the run where it is, and returns its phase."""
        self.process.send_signal(signal.SIGSTOP)
        status = pathlib.Path(f'/proc/{self.process.pid}/stat')
        while status.read_text().rpartition(')')[2].split()[0] not in 'TZ':
            time.sleep(0.001)
        return self.phase()

    def printed(self) -> str:
        """Returns all that the run has printed."""
        return self.log.read_text(encoding='utf-8', errors='replace')

    def left_behind(self) -> list[int]:
        """Returns the processes that the run has started and that are still there some seconds after its end."""
        deadline = time.monotonic() + PEACE
        while (left := of_session(self.process.pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left


def of_session(session: int, *, zombies: bool = False) -> list[int]:
    """Returns the processes of a session: the living ones, or also those that have ended unnoticed."""
    found = []
    for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = path.read_text().rpartition(')')[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session and (zombies or fields[0] not in 'ZX'):
            found.append(int(path.parent.name))
    return found


def new_folder(told: str | None, prefix: str) -> pathlib.Path:
    """Returns the empty folder that was told, made if need be, or a temporary one.

    Raises:
        ValueError: If it is not empty.
    """
    folder = pathlib.Path(told or tempfile.mkdtemp(prefix=prefix))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f'--folder={folder} is not empty')
    return folder
