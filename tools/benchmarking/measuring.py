"""Seconds, and the memory that a process holds."""

import gc
import pathlib
import time
from collections.abc import Callable

import numpy as np

from vivit_jax.telling import memory

DRAWS = 2_000  # of the bootstrap


def seconds(step: Callable[[], None]) -> float:
    """Returns how long a step takes, wall time."""
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def settle() -> None:
    """Gives memory that was freed back to the system."""
    gc.collect()
    memory.give_back()


def peak_over(step: Callable[[], None]) -> int | None:
    """Returns the most that this process holds during a step, in bytes; None where the system does not tell."""
    settle()
    try:
        memory.forget_peak()
    except OSError:
        return None
    step()
    return memory.peak_resident() or None


def available() -> int | None:
    """Returns the memory of the machine that can still be had, in bytes; None where the system does not tell.

    A limit set on a group of processes (a container) counts too.
    """
    try:
        lines = pathlib.Path('/proc/meminfo').read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable'))
    except (OSError, StopIteration):
        return None
    group = pathlib.Path('/sys/fs/cgroup')
    try:
        limit, used = ((group / name).read_text().strip() for name in ('memory.max', 'memory.current'))
        return free if limit == 'max' else min(free, int(limit) - int(used))
    except (OSError, ValueError):
        return free


def spread(values: list[float]) -> dict[str, float]:
    """Returns the median and both quartiles."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return {'median': median, 'low': low, 'high': high}


def ratio(slower: list[float], faster: list[float]) -> dict[str, float]:
    """Returns how often the median of one goes into that of the other, and where 95 % of bootstrap draws lie.

    Args:
        slower: Seconds, one of each round.
        faster: Seconds of the same rounds; rounds are drawn together, since both had the same machine in them.
    """
    pairs = np.array([slower, faster])
    drawn = np.random.default_rng(0).integers(pairs.shape[1], size=(DRAWS, pairs.shape[1]))
    medians = np.median(pairs[:, drawn], axis=-1)
    low, high = np.quantile(medians[0] / medians[1], (0.025, 0.975)).tolist()
    return {'ratio': float(np.median(slower) / np.median(faster)), 'low': low, 'high': high}
