"""Memory where the CPU computes: kept from step to step, instead of given back and asked for anew.

XLA takes the temporary memory of a step from the C library, and returns it when the step is done. The C library
(glibc) hands so large a piece back to the system, which at the next step gives it page by page, each filled with
zeros first: up to a sixth of a step's time. Commands call `keep`; importing the package and calling its functions
change nothing.
"""

import ctypes
import os

import jax

DISPATCH = 'jax_cpu_enable_async_dispatch'
# What the environment says of the same; variables of glibc, but for the first.
OTHERS = (
    DISPATCH.upper(),
    'GLIBC_TUNABLES',
    'MALLOC_TRIM_THRESHOLD_',
    'MALLOC_MMAP_MAX_',
    'MALLOC_MMAP_THRESHOLD_',
    'MALLOC_TOP_PAD_',
)
# Parameters of mallopt(3), and what keeps memory.
SETTINGS = {
    -1: -1,  # M_TRIM_THRESHOLD: never give back what is free at the end of the heap.
    -4: 0,  # M_MMAP_MAX: take nothing from the system piece by piece.
}


_kept = False


def keep() -> bool:
    """Keeps what steps free for the next step; to be called before jax first computes.

    The heap of the main thread alone grows to any size, so programs have to run in it: jax then waits for a step
    instead of going on while it runs, which costs nothing where the CPU computes.

    Nothing is kept where an accelerator computes (jax waits for what the CPU beside it does, though: that is set
    before devices are known), without glibc, and where the user has set one of `OTHERS`.

    Returns:
        Whether memory is kept.
    """
    global _kept
    _kept = _keep()
    return _kept


def is_kept() -> bool:
    """Tells whether this process keeps memory."""
    return _kept


def _keep() -> bool:
    if any(name in os.environ for name in OTHERS):
        return False
    jax.config.update(DISPATCH, False)
    if jax.default_backend() != 'cpu':
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows
        return False
    return all([mallopt(name, value) for name, value in SETTINGS.items()])
