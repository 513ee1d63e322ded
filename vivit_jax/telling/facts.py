"""What a run was: `run.json` in its workdir tells by which command, code and machine it came about, and how fast."""

import datetime
import importlib.metadata
import json
import pathlib
import platform
import resource
import shlex
import socket
import subprocess
import sys
import warnings
from types import TracebackType
from typing import Any

import jax

import vivit_jax
from vivit_jax import host_memory, paths, xla_preset
from vivit_jax.lock import Lost
from vivit_jax.signals import Stopped
from vivit_jax.telling.eta import Spent
from vivit_jax.telling.memory import Memory
from vivit_jax.telling.peak_flops import Peak
from vivit_jax.telling.terminal import duration, gibibytes, rate

NAME = 'run.json'
PACKAGES = (
    'jax',
    'jaxlib',
    'flax',
    'optax',
    'orbax-checkpoint',
    'grain',
    'numpy',
    'av',
    'opencv-python-headless',
)
GIT_SECONDS = 5  # to wait for git
SUMMED = ('train_seconds', 'compile_seconds', 'evaluate_seconds', 'clips_per_second', 'data_wait')


class RunFacts:
    """Writes `run.json`: at the start, with every checkpoint, and when the run ends, however it does.

    A run that goes on where it stopped has several sessions. Seconds, rates and the peak of memory are then over all
    of them; command, code and machine are the last one's. Only the first process writes.

    Args:
        folder: The workdir.
        first_step: Steps that were done before; 0 begins a new account.
        model: `parameters`, and `multiply_adds_per_clip` of a pass forward to the logits.
        batch_size: Clips of a step.
        peak: What the devices can do.
        spent: Where the run's time goes; read at every writing.

    Attributes:
        predicted: What training was predicted to hold; None before its step is compiled.
    """

    def __init__(
        self,
        folder: paths.Path,
        *,
        first_step: int,
        model: dict[str, int],
        batch_size: int,
        peak: Peak | None,
        spent: Spent,
    ):
        self._path = folder / NAME
        self._model, self._batch_size, self._peak, self._spent = model, batch_size, peak, spent
        self.predicted: Memory | None = None
        before = _read(self._path) if first_step else {}
        self._before = before
        self._sessions: list[dict[str, Any]] = [
            # Killed: it could not tell when.
            {**session, 'exit': 'failed'} if session['exit'] == 'running' else session
            for session in before.get('sessions', [])
        ]
        self._about = about()
        self._session = {
            'started': now(),
            'ended': None,
            'first_step': first_step,
            'last_step': first_step,
            'exit': 'running',
            'command': self._about['command'],
            'host': self._about['host'],
        }

    def __enter__(self) -> 'RunFacts':
        self.write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Lost):
            return  # the file is another run's now
        stopped = isinstance(error, Stopped | KeyboardInterrupt)
        self._session['exit'] = 'done' if error is None else 'stopped' if stopped else 'failed'
        self._session['ended'] = now()
        self.write()

    def reach(self, step: int) -> None:
        """Notes how far the run has come."""
        self._session['last_step'] = step

    def facts(self) -> dict[str, Any]:
        """Returns what `run.json` holds."""
        sessions = [*self._sessions, self._session]
        first, last = sessions[0], sessions[-1]
        return {
            'version': vivit_jax.__version__,
            **self._about,
            'started': first['started'],
            'ended': last['ended'],
            'exit': last['exit'],
            **self._model,
            **self._speed(),
            **self._memory(),
            'sessions': sessions,
        }

    def summary(self) -> str:
        """Returns a line: how long the run took and how fast it was, over all its sessions."""
        facts = self.facts()
        began = datetime.datetime.fromisoformat(self._session['started'])
        seconds = (datetime.datetime.now(datetime.UTC) - began).total_seconds()
        speed = f'{facts["model_flops_per_second"] / 1e9:.4g} GFLOP/s'
        if facts['mfu'] is not None:
            speed += f' (MFU {100 * facts["mfu"]:.2g}%, {facts["peak_flops_source"]})'
        return '  '.join(
            [
                f'took {duration(seconds)}',
                rate(facts['clips_per_second']),
                f'data wait {facts["data_wait"]:.0%}',
                speed,
                f'peak memory {gibibytes(facts["peak_memory_bytes"])}',
            ]
        )

    def write(self) -> None:
        """Writes the file, whole or not at all; where that fails there is a warning, and the run goes on."""
        if jax.process_index() != 0:
            return
        try:
            paths.replace_text(self._path, json.dumps(self.facts(), indent=1) + '\n')
        except OSError as error:
            warnings.warn(f'{self._path} cannot be written: {error.strerror or error}', stacklevel=2)

    def _speed(self) -> dict[str, Any]:
        """Returns seconds and rates, over this session and those before."""
        before, spent = self._before, self._spent
        trained = sum(lap.seconds for lap in spent.laps)
        clips = sum(lap.steps for lap in spent.laps) * self._batch_size
        waited = sum(lap.waited for lap in spent.laps)
        earlier = before.get('train_seconds', 0.0)
        seconds = earlier + trained
        rate = (before.get('clips_per_second', 0.0) * earlier + clips) / seconds if seconds else 0.0
        flops = 3 * 2 * self._model['multiply_adds_per_clip'] * rate
        # A peak that was surpassed is none: it was measured while something else was using the machine.
        peak = self._peak if self._peak and flops <= self._peak.flops else None
        return {
            'train_seconds': seconds,
            'compile_seconds': before.get('compile_seconds', 0.0) + sum(spent.compiling),
            'evaluate_seconds': before.get('evaluate_seconds', 0.0) + sum(spent.validating + spent.testing),
            'clips_per_second': rate,
            'data_wait': (before.get('data_wait', 0.0) * earlier + waited) / seconds if seconds else 0.0,
            'peak_flops': peak.flops if peak else None,
            'peak_flops_source': peak.source if peak else None,
            'model_flops_per_second': flops,
            'mfu': flops / peak.flops if peak else None,
        }

    def _memory(self) -> dict[str, Any]:
        """Returns the peak of memory, of a device where it tells, else of this process; and what was predicted."""
        device = device_memory()
        kind = 'resident set' if device is None else 'device'
        peak = resident_memory() if device is None else device
        if self._before.get('peak_memory_kind') == kind:
            peak = max(peak, self._before['peak_memory_bytes'])
        predicted = self.predicted.total if self.predicted else self._before.get('predicted_memory_bytes')
        return {'peak_memory_bytes': peak, 'peak_memory_kind': kind, 'predicted_memory_bytes': predicted}


def about() -> dict[str, Any]:
    """Returns what tells code, command and machine."""
    commit, dirty = revision()
    counts: dict[tuple[str, str], int] = {}
    for device in jax.devices():
        key = (device.device_kind, device.platform)
        counts[key] = counts.get(key, 0) + 1
    return {
        'commit': commit,
        'dirty': dirty,
        'command': shlex.join(['python', *sys.orig_argv[1:]]),
        'xla_flags': xla_preset.flags(),
        'deterministic': xla_preset.is_deterministic(),
        'memory_kept': host_memory.is_kept(),
        'host': socket.gethostname(),
        'platform': platform.platform(),
        'python': platform.python_version(),
        'packages': {name: version for name in PACKAGES if (version := _version(name))},
        'devices': [{'kind': kind, 'platform': of, 'count': count} for (kind, of), count in counts.items()],
        'processes': jax.process_count(),
    }


def revision() -> tuple[str | None, bool | None]:
    """Returns the commit of the repository that the package is in, and whether its files were changed since.

    Both are None where it is in none, or git is not there.
    """
    root = pathlib.Path(vivit_jax.__file__).parent.parent
    if not (root / '.git').exists():  # a repository further up is somebody else's
        return None, None
    try:
        commit, changes = (
            subprocess.run(
                ['git', '--no-optional-locks', '-C', str(root), *command],
                capture_output=True,
                text=True,
                check=True,
                timeout=GIT_SECONDS,
            ).stdout.strip()
            for command in (('rev-parse', 'HEAD'), ('status', '--porcelain', '--untracked-files=no'))
        )
    except (OSError, subprocess.SubprocessError):
        return None, None
    return commit, bool(changes)


def device_memory() -> int | None:
    """Returns the peak memory of the first device in bytes, None where it does not tell (CPU)."""
    stats = jax.local_devices()[0].memory_stats()
    return stats.get('peak_bytes_in_use') if stats else None


def resident_memory() -> int:
    """Returns the most memory that this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak * 1024


def now() -> str:
    """Returns the time in UTC, as `2026-01-31T12:00:00+00:00`."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')


def _read(path: paths.Path) -> dict[str, Any]:
    """Returns what an earlier session wrote; nothing where that is not there, or damaged."""
    try:
        facts = json.loads(path.read_text(encoding='utf-8'))
        numbers = [facts[name] for name in SUMMED]
        whole = all(isinstance(number, int | float) for number in numbers)
        return facts if whole and all('exit' in session for session in facts['sessions']) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
