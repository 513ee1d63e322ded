"""Compiled programs on disk: found again, bounded, mended, and never in the way."""

import os
import pathlib
import subprocess
import sys

import jax
import pytest

from vivit_jax import compile_cache

# Compiles one program, and prints what it computes to the last bit and whether it was loaded.
PROGRAM = """
import warnings
warnings.formatwarning = lambda message, *_, **__: f'warning: {message}\\n'
import jax
import jax.numpy as jnp
from vivit_jax import compile_cache

compile_cache.enable()
x = jnp.linspace(0.0, 1.0, 64).reshape(8, 8)
with compile_cache.watched() as kept:
    program = jax.jit(lambda x: jnp.tanh(x @ x) / jnp.linalg.norm(x)).lower(x).compile()
print(program(x).tobytes().hex(), f'<{kept}>')
"""


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """Takes the tests' own cache away for a while; nothing is compiled in it."""
    names = ('jax_compilation_cache_dir', 'jax_enable_compilation_cache', *compile_cache.SETTINGS)
    before = {name: jax.config.values[name] for name in names}
    monkeypatch.setattr(compile_cache.warnings, 'showwarning', compile_cache.warnings.showwarning)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    for name in ('JAX_COMPILATION_CACHE_DIR', 'JAX_COMPILATION_CACHE_MAX_SIZE', compile_cache.SWITCH):
        monkeypatch.delenv(name, raising=False)
    jax.config.update('jax_compilation_cache_dir', None)
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)


def start(home: pathlib.Path) -> tuple[list[str], str]:
    """Runs the program in a process of its own; returns the words that it prints, and its stderr."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(('JAX_', 'VIVIT_JAX_'))}
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM],
        env={**kept, 'JAX_PLATFORMS': 'cpu', 'XDG_CACHE_HOME': str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split(maxsplit=1), done.stderr


def test_a_second_start_loads_the_same_program_and_mends_a_damaged_one(tmp_path):
    (numbers, told), errors = start(tmp_path)
    assert (told.strip(), errors) == ('<>', '')
    again = start(tmp_path)
    assert again == ([numbers, '< (from the cache)>\n'], '')

    (entry,) = (tmp_path / 'vivit_jax' / 'compiled').glob('*/jit__lambda*-cache')
    assert entry.parent.stat().st_mode & 0o777 == 0o700
    entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    found, errors = start(tmp_path)
    assert found == [numbers, '<>\n']
    assert errors.startswith('warning: reading a compiled program in ')
    assert errors.count('\n') == 1
    assert start(tmp_path) == again


def test_what_was_not_written_to_its_end_is_removed(tmp_path):
    names = ('a-1-cache', 'a-1-atime', 'a-2-cache', 'b-3-atime', 'note.txt', 'a_b-1-cache', 'a_b-1-atime')
    for name in names:
        (tmp_path / name).touch()
    compile_cache.tidy(tmp_path)
    left = {'a-1-cache', 'a-1-atime', 'a_b-1-cache', 'a_b-1-atime', 'note.txt', compile_cache.LOCK}
    assert {path.name for path in tmp_path.iterdir()} == left
    compile_cache.tidy(tmp_path, damaged='a')
    assert {path.name for path in tmp_path.iterdir()} == left - {'a-1-cache', 'a-1-atime'}


def test_it_is_bounded_and_the_users_settings_stay(unset, monkeypatch):
    monkeypatch.setenv('JAX_COMPILATION_CACHE_MAX_SIZE', '5000000')
    before = jax.config.values['jax_compilation_cache_max_size']
    where = compile_cache.enable()
    assert where == compile_cache.folder()
    assert where.parent == unset / 'vivit_jax' / 'compiled'
    assert jax.config.values['jax_compilation_cache_dir'] == str(where)
    assert jax.config.values['jax_compilation_cache_max_size'] == before
    assert jax.config.values['jax_persistent_cache_min_compile_time_secs'] == 0.0
    assert compile_cache.enable() is None  # there is one already
    jax.config.update('jax_compilation_cache_dir', None)
    monkeypatch.delenv('JAX_COMPILATION_CACHE_MAX_SIZE')
    compile_cache.enable()
    assert jax.config.values['jax_compilation_cache_max_size'] == 2**30


@pytest.mark.parametrize('how', ['switch', 'of jax', 'folder of theirs'])
def test_it_can_be_switched_off(unset, monkeypatch, how):
    theirs = None
    if how == 'switch':
        monkeypatch.setenv('VIVIT_JAX_COMPILE_CACHE', '0')
    elif how == 'of jax':
        jax.config.update('jax_enable_compilation_cache', False)
    else:
        theirs = str(unset / 'theirs')
        jax.config.update('jax_compilation_cache_dir', theirs)
    size = jax.config.values['jax_compilation_cache_max_size']
    assert compile_cache.enable() is None
    assert jax.config.values['jax_compilation_cache_dir'] == theirs
    assert jax.config.values['jax_compilation_cache_max_size'] == size
    assert list(unset.iterdir()) == []


def test_a_folder_that_cannot_be_costs_a_line(unset):
    (unset / 'vivit_jax').write_text('a file where the folder would be')
    with pytest.warns(UserWarning, match='compiled programs are not kept for the next start: ') as told:
        assert compile_cache.enable() is None
    assert len(told) == 1
    assert '\n' not in str(told[0].message)
    assert jax.config.values['jax_compilation_cache_dir'] is None


def test_another_kind_of_cpu_has_a_folder_of_its_own(monkeypatch):
    text = 'processor : 0\nmodel name : One\ncpu MHz : {}\nflags : fpu {}\n\nprocessor : 1\n'

    def folder(*facts: str) -> pathlib.Path:
        monkeypatch.setattr(pathlib.Path, 'read_text', lambda *_, **__: text.format(*facts))
        return compile_cache.folder()

    assert folder('2100', 'avx2') == folder('3000', 'avx2')
    assert folder('2100', 'avx2') != folder('2100', 'avx512f')
