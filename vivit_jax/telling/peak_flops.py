"""How fast a device could compute: published figures, and a matrix product where there are none."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

# Dense matrix products in bfloat16, 10^12 operations a second on one device, as its maker publishes them; and in
# float32 as jax computes it there by default: in TF32 on these GPUs, in bfloat16 on TPUs. Names are the beginnings of
# jax's device_kind, the longest that fits counts.
# H100, H200: NVIDIA's data sheets, half of the figures with sparsity. A100: NVIDIA's data sheet. TPUs: Google Cloud's
# "TPU architecture" pages, peak compute per chip; v2 and v3 are left out, as jax's devices there are half a chip.
# V100: NVIDIA's data sheet; it has no bfloat16, which is measured.
PUBLISHED: dict[str, tuple[str, float | None, float]] = {
    'NVIDIA H100 80GB HBM3': ('H100 SXM', 989.4, 494.7),
    'NVIDIA H100 PCIe': ('H100 PCIe', 756.0, 378.0),
    'NVIDIA H100 NVL': ('H100 NVL', 835.5, 417.5),
    'NVIDIA H200': ('H200 SXM', 989.4, 494.7),
    'NVIDIA A100': ('A100', 312.0, 156.0),
    'Tesla V100-SXM2': ('V100 SXM2', None, 15.7),
    'TPU v4': ('TPU v4', 275.0, 275.0),
    'TPU v5 lite': ('TPU v5e', 197.0, 197.0),
    'TPU v5e': ('TPU v5e', 197.0, 197.0),
    'TPU v5': ('TPU v5p', 459.0, 459.0),
    'TPU v5p': ('TPU v5p', 459.0, 459.0),
    'TPU v6 lite': ('TPU v6e', 918.0, 918.0),
    'TPU v6e': ('TPU v6e', 918.0, 918.0),
}
# Rows and columns of the product that is timed: on a CPU some milliseconds, elsewhere enough to fill the device.
CPU_SIZE, SIZE = 1024, 8192
SECONDS = 0.25  # to spend on timing


@dataclasses.dataclass(frozen=True)
class Peak:
    """Operations a second, of all devices together, and where the figure is from."""

    flops: float
    source: str


def peak_flops(devices: Sequence[Any], dtype: str) -> Peak | None:
    """Returns what the devices could compute at most; None where that cannot be told.

    Args:
        devices: All devices of a run (jax.Device), of one kind.
        dtype: Of the computation, 'float32' or 'bfloat16'.
    """
    kind = devices[0].device_kind
    # A slice of a GPU (MIG) is not the whole.
    names = [name for name in PUBLISHED if kind.startswith(name) and 'MIG' not in kind]
    title, bfloat16, float32 = PUBLISHED[max(names, key=len)] if names else ('', None, None)
    if per_device := bfloat16 if dtype == 'bfloat16' else float32:
        return Peak(len(devices) * per_device * 1e12, f'published: {title} {dtype}')
    try:
        measured = measure(dtype)
    except (jax.errors.JaxRuntimeError, ValueError):  # out of memory
        return None
    # The cores of a machine are one CPU, into however many devices it is divided.
    units = len({d.process_index for d in devices}) if devices[0].platform == 'cpu' else len(devices)
    return Peak(units * measured, 'measured matmul')


def measure(dtype: str) -> float:
    """Times a large matrix product on one device; returns operations a second, in the best of several runs."""
    device = jax.local_devices()[0]
    size = CPU_SIZE if device.platform == 'cpu' else SIZE
    with jax.default_device(device):
        matrix = jnp.ones((size, size), dtype)
        product = jax.jit(jnp.matmul)
        product(matrix, matrix).block_until_ready()
        best, end = float('inf'), time.perf_counter() + SECONDS
        while True:
            began = time.perf_counter()
            product(matrix, matrix).block_until_ready()
            now = time.perf_counter()
            best = min(best, now - began)
            if now > end:
                return 2 * size**3 / best
