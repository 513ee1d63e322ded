"""What steps free is kept for the next step, where the CPU computes and nobody has said otherwise."""

import os
import subprocess
import sys

import pytest

from vivit_jax import host_memory

# Prints whether memory is kept, and how many pages of it a step asks for: the median of the last five of ten alike.
# Before them the heap may have to grow, where what is left of the start lies in between.
PROGRAM = """
import resource
import statistics
import jax
import jax.numpy as jnp
from vivit_jax import host_memory

kept = host_memory.keep()
x = jnp.ones((2_000, 8))

@jax.jit
def step(x):
    products = jnp.stack([x * number @ x.T for number in range(8)])  # 16 MB each
    return products @ x

pages = []
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    pages.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
assert kept == host_memory.is_kept()
print(kept, statistics.median(pages[5:]), step.lower(x).compile().memory_analysis().temp_size_in_bytes)
"""
OURS = ('JAX_', 'VIVIT_JAX_', 'MALLOC_', 'GLIBC_TUNABLES')


def start(**settings: str) -> tuple[bool, int, int]:
    """Runs the program in a process of its own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM],
        env={**env, 'JAX_PLATFORMS': 'cpu', **settings},
        capture_output=True,
        text=True,
        check=True,
    )
    kept, pages, planned = done.stdout.split()
    return kept == 'True', int(pages), int(planned)


@pytest.mark.skipif(sys.platform != 'linux', reason='other C libraries have no such settings')
def test_a_step_asks_for_no_memory_anew():
    kept, pages, planned = start()
    assert kept
    assert planned > 100e6  # bytes, of which a page has 4,096
    assert pages < 0.02 * planned / 4096


@pytest.mark.parametrize(
    'setting',
    [
        {'MALLOC_MMAP_THRESHOLD_': '131072'},
        {'GLIBC_TUNABLES': 'glibc.malloc.mmap_threshold=131072'},
        {'JAX_CPU_ENABLE_ASYNC_DISPATCH': '1'},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_what_the_user_has_set_stays(setting):
    kept, _, _ = start(**setting)
    assert not kept


def test_what_is_set_of_another_kind_changes_nothing():
    kept, _, _ = start(MALLOC_ARENA_MAX='2')
    assert kept


def test_where_an_accelerator_computes_nothing_is_kept(monkeypatch):
    for name in host_memory.OTHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(host_memory.jax, 'default_backend', lambda: 'gpu')
    monkeypatch.setattr(host_memory.jax.config, 'update', lambda *_: None)
    monkeypatch.setattr(host_memory.ctypes, 'CDLL', None)  # is not asked
    assert not host_memory.keep()
