"""How fast devices could compute."""

import types

import jax
import numpy as np
import pytest

from vivit_jax.telling import peak_flops as module
from vivit_jax.telling.peak_flops import Peak, measure, peak_flops


def devices(kind, platform, count=1, processes=1):
    return [
        types.SimpleNamespace(device_kind=kind, platform=platform, process_index=index % processes)
        for index in range(count)
    ]


@pytest.mark.parametrize(
    ('kind', 'dtype', 'expected'),
    [
        ('NVIDIA H100 80GB HBM3', 'bfloat16', Peak(2 * 989.4e12, 'published: H100 SXM bfloat16')),
        ('NVIDIA H100 80GB HBM3', 'float32', Peak(2 * 494.7e12, 'published: H100 SXM float32')),
        ('NVIDIA H100 PCIe', 'bfloat16', Peak(2 * 756e12, 'published: H100 PCIe bfloat16')),
        ('NVIDIA H200', 'bfloat16', Peak(2 * 989.4e12, 'published: H200 SXM bfloat16')),
        ('NVIDIA A100-SXM4-40GB', 'bfloat16', Peak(2 * 312e12, 'published: A100 bfloat16')),
        ('Tesla V100-SXM2-16GB', 'float32', Peak(2 * 15.7e12, 'published: V100 SXM2 float32')),
        ('TPU v4', 'bfloat16', Peak(2 * 275e12, 'published: TPU v4 bfloat16')),
        ('TPU v5 lite', 'bfloat16', Peak(2 * 197e12, 'published: TPU v5e bfloat16')),
        ('TPU v5', 'bfloat16', Peak(2 * 459e12, 'published: TPU v5p bfloat16')),
        ('TPU v5p', 'bfloat16', Peak(2 * 459e12, 'published: TPU v5p bfloat16')),
        ('TPU v6 lite', 'bfloat16', Peak(2 * 918e12, 'published: TPU v6e bfloat16')),
    ],
)
def test_published_figures_are_of_the_longest_name_that_fits(kind, dtype, expected):
    assert peak_flops(devices(kind, 'gpu', 2), dtype) == expected


@pytest.mark.parametrize(
    ('kind', 'platform', 'count', 'processes', 'units'),
    [
        ('NVIDIA GeForce RTX 3090', 'gpu', 4, 1, 4),
        ('Tesla V100-SXM2-16GB', 'gpu', 1, 1, 1),  # no bfloat16
        ('NVIDIA H100 80GB HBM3 MIG 1g.10gb', 'gpu', 1, 1, 1),
        ('cpu', 'cpu', 8, 1, 1),  # the same cores, however many devices they stand for
        ('cpu', 'cpu', 8, 2, 2),
    ],
)
def test_others_are_measured(kind, platform, count, processes, units, monkeypatch):
    monkeypatch.setattr(module, 'measure', lambda dtype: 5e9)
    found = peak_flops(devices(kind, platform, count, processes), 'bfloat16')
    assert found == Peak(units * 5e9, 'measured matmul')


def test_what_cannot_be_measured_is_left_out(monkeypatch):
    def exhaust(dtype):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED')

    monkeypatch.setattr(module, 'measure', exhaust)
    assert peak_flops(devices('cpu', 'cpu'), 'float32') is None


def test_a_measurement_counts_two_operations_a_product(monkeypatch):
    """A clock that ticks once a look: every product takes one second."""
    ticks = iter(range(1000))
    monkeypatch.setattr(module.time, 'perf_counter', lambda: float(next(ticks)))
    monkeypatch.setattr(module, 'CPU_SIZE', 16)
    assert measure('float32') == 2 * 16**3


def test_this_machine_is_measured():
    speed = measure('float32')
    assert np.isfinite(speed)
    assert 1e8 < speed < 1e15
