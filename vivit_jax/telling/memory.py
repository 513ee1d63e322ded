"""How much memory training will hold: told before the first step, from what XLA plans for it.

While a step runs, a device holds parameters, optimiser and average (the state, which a step overwrites in place);
what XLA plans besides, activations and gradients above all; and batches, the one in use and those that wait. Where
the CPU is the device all that is in the memory of this process, with what it holds anyway: the interpreter,
libraries, compiled programs, lists of examples, clips that readers hold. That is measured: nobody could reckon it.
"""

import contextlib
import ctypes
import dataclasses
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

# Where Linux tells the limit of a container, versions 2 and 1 of control groups.
LIMITS = ('/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes')
STATUS = pathlib.Path('/proc/self/status')
HELPS = (
    'a smaller training.batch_size, training.accumulate, model.remat=block (on CPUs with model.scan_layers=true), '
    'fewer frames or larger tubelets, sharding.fsdp over several devices'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """What is held at the peak of a step, in bytes: of one device, or of this process where the CPU is the device.

    Attributes:
        state: Parameters, the optimiser's state and the moving average.
        step: What a step needs besides, as XLA plans it: activations, gradients.
        batches: Clips, of the batch in use and of those that wait.
        rest: What the process holds besides; on accelerators the compiled program.
        saving: A copy of the state, while a checkpoint is written of it (in the process only).
        capacity: What there is of it; None where that cannot be told.
        place: 'device' or 'process'.
    """

    state: int
    step: int
    batches: int
    rest: int
    capacity: int | None
    place: str
    saving: int = 0

    @property
    def total(self) -> int:
        """Returns all of it together."""
        return self.state + self.step + self.batches + self.rest + self.saving

    def describe(self) -> str:
        """Returns a line: how much in all, of what, and of how much."""
        parts = {
            'parameters and optimiser': self.state,
            'step': self.step,
            'batches': self.batches,
            'the rest of the process' if self.place == 'process' else 'program': self.rest,
        }
        if self.saving:
            parts['a checkpoint being written'] = self.saving
        told = ', '.join(f'{amount(size)} {name}' for name, size in parts.items())
        where = ' a device' if self.place == 'device' else ''
        owner = 'device' if self.place == 'device' else 'machine'
        there = f'; the {owner} has {amount(self.capacity)}' if self.capacity else ''
        return f'predicted {amount(self.total)}{where}: {told}{there}'

    def warning(self) -> str:
        """Returns a line that says what helps, where there is too little memory as far as known; else ''."""
        if self.capacity is None or self.total <= self.capacity:
            return ''
        owner = 'a device' if self.place == 'device' else 'this machine'
        return (
            f'training is predicted to take {amount(self.total)} of memory, {owner} has {amount(self.capacity)}: it '
            f'may run out of memory; what helps: {HELPS}'
        )


def predicted(compiled: Any, batch: Mapping[str, Any], *, ahead: int = 0, saving: int = 0) -> Memory | None:
    """Tells what running a compiled step again and again will hold at its peak.

    To be called between compilation and the first step, with the arrays that the step begins with alive. It gives
    memory back to the system that compiling has freed: that would be counted twice, as planned and as held.

    Args:
        compiled: A compiled function (`jax.jit(…).lower(…).compile()`) of a state, which it overwrites and returns,
            and of a batch; other scalars that it returns do not matter.
        batch: Its arrays, on the devices; `video` is one of them.
        ahead: Batches that wait while one is in use.
        saving: Bytes of a checkpoint: where the CPU is the device it is copied, and written while steps go on.

    Returns:
        The prediction; None where XLA tells nothing of its plan.
    """
    plan = compiled.memory_analysis()
    if plan is None:
        return None
    one_batch = sum(_on_a_device(array) for array in batch.values())
    returned = plan.output_size_in_bytes - plan.alias_size_in_bytes
    state = plan.argument_size_in_bytes - one_batch + returned
    devices: list[Any] = list(batch['video'].sharding.addressable_devices)
    first, count = devices[0], len(devices)
    if first.platform == 'cpu':
        give_back()
        rest = max(resident() - _arrays(), 0)
        return Memory(
            state=count * state,
            step=count * plan.temp_size_in_bytes,
            batches=count * (1 + ahead) * one_batch,
            rest=rest,
            capacity=_of_machine(),
            place='process',
            saving=saving,
        )
    stats = first.memory_stats() or {}
    return Memory(
        state=state,
        step=plan.temp_size_in_bytes,
        batches=(1 + ahead) * one_batch,
        rest=plan.generated_code_size_in_bytes,
        capacity=stats.get('bytes_limit'),
        place='device',
    )


def amount(size: float) -> str:
    """Returns bytes as `840 MiB` or `3.4 GiB`."""
    mebibytes = size / 2**20
    if mebibytes >= 1023.5:
        return f'{size / 2**30:,.1f} GiB'
    return f'{mebibytes:.0f} MiB' if mebibytes >= 9.95 else f'{mebibytes:.1f} MiB'


def resident() -> int:
    """Returns the memory that this process holds now, in bytes; 0 where the system does not tell (not Linux)."""
    return _status('VmRSS')


def peak_resident() -> int:
    """Returns the most that this process has held since it began, or `forget_peak`, in bytes; 0 if not on Linux."""
    return _status('VmHWM')


def forget_peak() -> None:
    """Lets `peak_resident` begin anew, where the system can do that (Linux)."""
    with contextlib.suppress(OSError):
        pathlib.Path('/proc/self/clear_refs').write_text('5', encoding='ascii')


def give_back() -> None:
    """Gives memory back to the system that was freed but kept for later, where the C library is one that keeps it."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # musl, macOS; Windows
        return


def _status(name: str) -> int:
    try:
        lines = STATUS.read_text(encoding='ascii').splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f'{name}:')), 0)


def _on_a_device(array: Any) -> int:
    """Returns the bytes of an array's part on one device."""
    return math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize


def _arrays() -> int:
    """Returns the bytes of all arrays in the memory of this process, in all their parts and copies."""
    return sum(
        _on_a_device(array) * len(array.sharding.addressable_devices)
        for array in jax.live_arrays('cpu')
        if not array.is_deleted()
    )


def _of_machine() -> int | None:
    """Returns the memory that this machine, or the container, allows; None where that cannot be told."""
    try:
        sizes = [os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')]
    except (AttributeError, OSError, ValueError):
        sizes = []
    for path in LIMITS:
        try:
            sizes.append(int(pathlib.Path(path).read_text(encoding='ascii')))
        except (OSError, ValueError):  # not there, or 'max': no limit
            continue
    return min(sizes, default=None)
