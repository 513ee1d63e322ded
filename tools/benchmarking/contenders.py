"""Contenders by name, each in a process that computes only when it is its turn."""

import contextlib
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

from benchmarking import hugging_face
from benchmarking.child import BFLOAT16
from benchmarking.workload import Workload

TOOLS = pathlib.Path(__file__).parent.parent
OURS = ('ours', 'ours-loop', 'ours-plain')
JAX = (*OURS, 'reference', 'reference-kept')
TORCH = ('hf-eager', 'hf-compiled')
NAMES = (*JAX, *TORCH)
# PyTorch's threads spin while they wait for one another, which costs where other processes want the cores; whichever
# way is faster counts.
PASSIVE = {'OMP_WAIT_POLICY': 'passive', 'GOMP_SPINCOUNT': '0'}


class ContenderError(Exception):
    """A contender cannot do what it is asked; its text is a line for people."""


@dataclasses.dataclass(frozen=True)
class Contender:
    """Who takes part, and in which environment.

    Attributes:
        name: One of `NAMES`, perhaps with '-bf16' after it.
        passive: Whether its OpenMP threads sleep while they wait.
    """

    name: str
    passive: bool = False

    @property
    def title(self) -> str:
        """Returns what tables call it."""
        return f'{self.name}, OMP passive' if self.passive else self.name


def check_name(name: str) -> str:
    """Returns the name; raises a ValueError if nobody has it."""
    if name.removesuffix(BFLOAT16) not in NAMES:
        raise ValueError(
            f'contender {name!r}: choose some of {", ".join(NAMES)}, or one of them with {BFLOAT16} after it'
        )
    return name


def expanded(names: list[str]) -> tuple[list[Contender], dict[str, str]]:
    """Returns who takes part: PyTorch's twice, as OpenMP's threads wait either way; and why others do not."""
    absent = hugging_face.missing()
    found, left_out = [], {}
    for name in names:
        if name.startswith('hf-') and absent:
            left_out[name] = f'{" and ".join(absent)} not installed: pip install {" ".join(absent)}'
        elif name.startswith('hf-'):
            found += [Contender(name, passive=True), Contender(name)]
        else:
            found.append(Contender(name))
    return found, left_out


class Child:
    """The process of a contender. A context: it ends with it.

    Args:
        contender: Who it is.
        workload: What it computes.
        caches: A folder of this run for what torch.compile keeps.
    """

    def __init__(self, contender: Contender, workload: Workload, caches: str):
        self.contender = contender
        environment = {name: value for name, value in os.environ.items() if name not in PASSIVE}
        environment |= PASSIVE if contender.passive else {}
        paths = [str(TOOLS), *filter(None, [environment.get('PYTHONPATH')])]
        environment |= {
            'PYTHONPATH': os.pathsep.join(paths),
            # Compiled afresh, since it is timed.
            'JAX_ENABLE_COMPILATION_CACHE': 'false',
            'TORCHINDUCTOR_CACHE_DIR': caches,
            # Several share the device.
            'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
            'HF_HUB_OFFLINE': '1',
        }
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        asked = json.dumps({'name': contender.name, 'workload': dataclasses.asdict(workload)})
        self._process = subprocess.Popen(
            [sys.executable, '-m', 'benchmarking.child', asked],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment,
        )

    def __enter__(self) -> 'Child':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, do: str, **arguments: Any) -> Any:
        """Has it do something and returns what it answers.

        Args:
            do: A method of `child.Worker`.
            **arguments: Its arguments.

        Raises:
            ContenderError: If it cannot, or has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({'do': do, **arguments}) + '\n')
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ''
        if not line:
            raise ContenderError(f'{self.contender.title}: {self._end()}')
        answer = json.loads(line)
        if 'error' in answer:
            raise ContenderError(f'{self.contender.title}: {answer["error"]}')
        return answer['result']

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            with contextlib.suppress(OSError):  # something was still to be written
                if pipe is not None:
                    pipe.close()

    def _end(self) -> str:
        """Returns how it ended, with the last line that it said."""
        code = self._process.wait()
        if code == -9:
            return 'was killed, most likely since memory ran out'
        self._said.seek(0)
        lines = self._said.read().decode(errors='replace').strip().splitlines()
        return f'ended with {code}: {lines[-1] if lines else "without a word"}'
