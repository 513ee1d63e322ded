"""Flags for XLA by name, `--xla-preset=gpu`: what each is for, and the gain that was measured with it.

XLA reads the environment variable XLA_FLAGS once, when a device is first used, and ends the process where it does not
know a flag; those below are known to jaxlib 0.10. `tools/benchmark_xla.py` measures what they bring on a device.
"""

import dataclasses
import os

VARIABLE = 'XLA_FLAGS'
MOST_BYTES = 128 * 2**20  # to be sent together


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag of XLA.

    Attributes:
        name: Without `--`.
        value: As XLA takes it.
        why: What it is to bring.
        gain: The measured gain, with model and device; '' where none has been measured yet.
    """

    name: str
    value: str
    why: str
    gain: str = ''

    def __str__(self) -> str:
        """Returns it as it stands in XLA_FLAGS."""
        return f'--{self.name}={self.value}'


GPU = (
    Flag(
        'xla_gpu_enable_triton_gemm',
        'false',
        "products by cuBLAS alone: large ones are the library's best case",
    ),
    Flag('xla_gpu_enable_latency_hiding_scheduler', 'true', 'several GPUs: sends while it computes'),
    Flag('xla_gpu_all_gather_combine_threshold_bytes', str(MOST_BYTES), 'several GPUs: fewer, larger sends'),
    Flag(
        'xla_gpu_reduce_scatter_combine_threshold_bytes', str(MOST_BYTES), 'several GPUs: fewer, larger sends'
    ),
    Flag('xla_gpu_all_reduce_combine_threshold_bytes', str(MOST_BYTES), 'several GPUs: fewer, larger sends'),
)
# Measured beside them, one at a time. The first has no meaning without Triton's products.
CANDIDATES = (
    Flag('xla_gpu_cudnn_gemm_fusion_level', '2', 'products with what follows them fused by cuDNN'),
    Flag(
        'xla_gpu_exhaustive_tiling_search',
        'true',
        "all tilings of Triton's products are tried: compiles for long",
    ),
)
PRESETS: dict[str, tuple[Flag, ...]] = {'none': (), 'gpu': GPU}


def apply(preset: str) -> str:
    """Adds a preset's flags to XLA_FLAGS, before a device is used; flags that are set there already stay as they are.

    Args:
        preset: One of `PRESETS`.

    Returns:
        A line that tells what was set; '' for 'none'.
    """
    if preset == 'none':
        return ''
    theirs = os.environ.get(VARIABLE, '').split()
    named = {flag.lstrip('-').partition('=')[0] for flag in theirs}
    added = [flag for flag in PRESETS[preset] if flag.name not in named]
    os.environ[VARIABLE] = ' '.join([*theirs, *map(str, added)])
    measured = sum(bool(flag.gain) for flag in added)
    kept = len(PRESETS[preset]) - len(added)
    return (
        f'--xla-preset={preset}: {" ".join(map(str, added)) or "nothing to add"}'
        + (f' ({measured} of {len(added)} with a measured gain)' if added else '')
        + (f'; {kept} as {VARIABLE} has it' if kept else '')
    )
