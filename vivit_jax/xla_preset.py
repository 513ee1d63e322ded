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
# The first implies the second, and has every kernel chosen without timing it, which comes out differently each time.
DETERMINISTIC = (
    Flag('xla_gpu_deterministic_ops', 'true', 'the same bits from run to run'),
    Flag('xla_gpu_exclude_nondeterministic_ops', 'true', 'an error where an operation cannot have them'),
)


def apply(preset: str) -> str:
    """Adds a preset's flags to XLA_FLAGS, before a device is used; flags that are set there already stay as they are.

    Args:
        preset: One of `PRESETS`.

    Returns:
        A line that tells what was set; '' for 'none'.
    """
    if preset == 'none':
        return ''
    added = _add(PRESETS[preset])
    measured = sum(bool(flag.gain) for flag in added)
    kept = len(PRESETS[preset]) - len(added)
    return (
        f'--xla-preset={preset}: {" ".join(map(str, added)) or "nothing to add"}'
        + (f' ({measured} of {len(added)} with a measured gain)' if added else '')
        + (f'; {kept} as {VARIABLE} has it' if kept else '')
    )


def make_deterministic() -> None:
    """Has GPUs compute the same bits in every run, before a device is used; other devices do without.

    Raises:
        ValueError: If XLA_FLAGS says otherwise.
    """
    _add(DETERMINISTIC)
    for flag, value in zip(DETERMINISTIC, _there(DETERMINISTIC), strict=True):
        if value != flag.value:
            raise ValueError(f'--deterministic: {VARIABLE} has --{flag.name}={value}: leave it out')


def flags() -> str:
    """Returns what XLA_FLAGS has."""
    return os.environ.get(VARIABLE, '')


def is_deterministic() -> bool:
    """Tells whether XLA_FLAGS asks for the same bits in every run."""
    return _there(DETERMINISTIC) == [flag.value for flag in DETERMINISTIC]


def about_determinism(platform: str) -> str:
    """Says what `--deterministic` means on a platform of JAX, as 'cpu'."""
    if platform != 'gpu':
        return (
            f'--deterministic: nothing is changed, as XLA computes the same bits in every run on a {platform}'
        )
    return f'--deterministic: {" ".join(map(str, DETERMINISTIC))}'


def _add(flags: tuple[Flag, ...]) -> list[Flag]:
    """Adds flags to XLA_FLAGS but those it has already; returns which."""
    theirs = os.environ.get(VARIABLE, '').split()
    added = [flag for flag, there in zip(flags, _there(flags), strict=True) if there is None]
    os.environ[VARIABLE] = ' '.join([*theirs, *map(str, added)])
    return added


def _there(flags: tuple[Flag, ...]) -> list[str | None]:
    """Returns the values that XLA_FLAGS has for flags, the last where one is there twice; None where it is not."""
    pairs = (text.lstrip('-').partition('=') for text in os.environ.get(VARIABLE, '').split())
    values = {name: value for name, _, value in pairs}
    return [values.get(flag.name) for flag in flags]
