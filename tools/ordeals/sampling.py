"""What a run holds, sample by sample, and whether it grows."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import scipy.stats

SHARED = pathlib.Path('/dev/shm')
OF_PYTHON = ('psm_', 'sem.')  # names of multiprocessing's memory and semaphores
CERTAINTY = 0.95
FEWEST = 8  # samples that a growth is told from


@dataclasses.dataclass(frozen=True)
class Sample:
    """What a run holds at a moment.

    Attributes:
        seconds: Since its first steps.
        step: The last that it has told of.
        memory: Of all its processes, in MiB: what is their own in main memory. Pages of files come and go.
        main_memory: Of its first process alone, in MiB.
        files: Open files of all processes.
        threads: Of all processes.
        children: Processes beside the first.
        zombies: Of these, such as have ended and were not taken leave of.
        shared: Blocks of shared memory and semaphores in /dev/shm that its processes use.
        disk: Of its folder, in MiB.
    """

    seconds: float
    step: int
    memory: float
    main_memory: float
    files: int
    threads: int
    children: int
    zombies: int
    shared: int
    disk: float


@dataclasses.dataclass(frozen=True)
class Growth:
    """How a quantity grows: Theil and Sen's slope, the median over all pairs of samples.

    Attributes:
        per_1000_steps: The slope.
        lowest: The least that it is with a certainty of 95 %.
        highest: The most.
        allowed: What it may be.
    """

    per_1000_steps: float
    lowest: float
    highest: float
    allowed: float

    @property
    def level(self) -> bool:
        """Tells whether the quantity stays within what is allowed, as far as noise lets one say."""
        return self.lowest <= self.allowed


def growth(steps: Sequence[float], values: Sequence[float], allowed: float) -> Growth:
    """Fits a line that single samples, however far off, do not bend.

    Args:
        steps: Of each sample.
        values: At them.
        allowed: Growth per 1000 steps.

    Raises:
        ValueError: If there are too few samples, or no step was made between them.
    """
    if len(steps) < FEWEST or min(steps) == max(steps):
        raise ValueError(
            f'{len(steps)} samples, of steps {min(steps, default=0)} to {max(steps, default=0)}, tell no growth: '
            'let it run for longer'
        )
    if min(values) == max(values):
        return Growth(0.0, 0.0, 0.0, allowed)
    slope, _, low, high = scipy.stats.theilslopes(values, np.asarray(steps) / 1000, CERTAINTY)
    return Growth(float(slope), float(low), float(high), allowed)


def take(processes: Sequence[int], first: int, folder: pathlib.Path) -> Sample:
    """Samples a run; what ends meanwhile counts as nothing.

    Args:
        processes: All of them, zombies too.
        first: The one that was started.
        folder: The workdir.

    Returns:
        The sample, with seconds and step 0.
    """
    totals = dict.fromkeys(('RssAnon', 'Threads', 'files', 'zombies'), 0)
    main_memory = 0
    for process in processes:
        here = pathlib.Path('/proc') / str(process)
        try:
            lines = dict(line.split(':', 1) for line in (here / 'status').read_text().splitlines())
            zombie = lines['State'].split()[0] in 'ZX'
            memory = 0 if zombie else int(lines.get('RssAnon', '0').split()[0])
            totals['files'] += 0 if zombie else len(os.listdir(here / 'fd'))
        except (FileNotFoundError, ProcessLookupError):
            continue
        totals['RssAnon'] += memory
        totals['Threads'] += 0 if zombie else int(lines['Threads'])
        totals['zombies'] += zombie
        main_memory = memory if process == first else main_memory
    return Sample(
        seconds=0.0,
        step=0,
        memory=totals['RssAnon'] / 1024,
        main_memory=main_memory / 1024,
        files=totals['files'],
        threads=totals['Threads'],
        children=len(processes) - (first in processes),
        zombies=totals['zombies'],
        shared=len(set().union(*map(used_by, processes))),
        disk=_bytes_in(folder) / 2**20,
    )


def shared() -> set[str]:
    """Returns the names of Python's shared memory and semaphores."""
    return {name for name in os.listdir(SHARED) if name.startswith(OF_PYTHON)} if SHARED.is_dir() else set()


def ownerless(names: set[str]) -> set[str]:
    """Returns those of the names in /dev/shm that no living process has in use."""
    processes = [int(path.name) for path in pathlib.Path('/proc').glob('[0-9]*')]
    return (names & shared()).difference(*map(used_by, processes))


def used_by(process: int) -> set[str]:
    """Returns the names of Python's shared memory and semaphores that a process uses."""
    try:
        lines = pathlib.Path(f'/proc/{process}/maps').read_text().splitlines()
    except OSError:  # has ended, or is another user's
        return set()
    names = {line.rpartition('/')[2] for line in lines if f' {SHARED}/' in line}
    return {name for name in names if name.startswith(OF_PYTHON)}


def _bytes_in(folder: pathlib.Path) -> int:
    total = 0
    for where, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(where, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total
