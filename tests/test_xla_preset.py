"""Flags for XLA: the user's stay, this jaxlib knows all of ours, and the command that measures them."""

import os
import subprocess
import sys

import pytest
from conftest import load_tool

from vivit_jax import main, xla_preset

KNOWN = (*xla_preset.GPU, *xla_preset.CANDIDATES)
EVERY = (*KNOWN, *xla_preset.DETERMINISTIC)


def test_none_changes_nothing(monkeypatch):
    monkeypatch.delenv('XLA_FLAGS', raising=False)
    assert xla_preset.apply('none') == ''
    assert 'XLA_FLAGS' not in os.environ


def test_the_users_flags_stay_and_win(monkeypatch):
    theirs = '--xla_dump_to=/tmp/x --xla_gpu_enable_triton_gemm=true'
    monkeypatch.setenv('XLA_FLAGS', theirs)
    told = xla_preset.apply('gpu')
    flags = os.environ['XLA_FLAGS'].split()
    assert flags == theirs.split() + [str(flag) for flag in xla_preset.GPU[1:]]
    assert (
        told
        == f'--xla-preset=gpu: {" ".join(flags[2:])} (0 of 4 with a measured gain); 1 as XLA_FLAGS has it'
    )
    assert xla_preset.apply('gpu') == '--xla-preset=gpu: nothing to add; 5 as XLA_FLAGS has it'
    assert os.environ['XLA_FLAGS'].split() == flags


def test_this_jaxlib_knows_every_flag():
    def start(flags: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, '-c', 'import jax; jax.devices()'],
            env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags},
            capture_output=True,
            text=True,
            check=False,
        )

    assert start(' '.join(map(str, EVERY))).returncode == 0
    assert start('--xla_gpu_no_such_flag=1').returncode != 0  # so that the line above says something


def test_the_command_takes_a_preset_by_name(capsys):
    with pytest.raises(SystemExit):
        main.main(['--config=configs/moving_digits.py', '--xla-preset=tpu'])
    assert "invalid choice: 'tpu'" in capsys.readouterr().err


def test_what_is_measured_and_how_gains_are_told():
    tool = load_tool('benchmark_xla')
    chosen = tool.choices(None)
    assert next(iter(chosen)) == 'none'
    assert list(chosen.values())[1:-1] == [str(flag) for flag in KNOWN]
    assert chosen['--xla-preset=gpu'] == ' '.join(map(str, xla_preset.GPU))
    assert tool.choices(['--a=1']) == {'none': '', '--a=1': '--a=1'}
    assert tool.choices(['--a=1', '--b=2'])['all of them'] == '--a=1 --b=2'
    seconds = {'none': [0.4, 0.2, 0.3], '--a=1': [0.2, 0.2, 0.9]}
    assert tool.gains(seconds) == {'none': 1.0, '--a=1': pytest.approx(1.5)}
    assert (
        tool.table(seconds, tool.gains(seconds)).splitlines()[-1]
        == '| `--a=1` | 200.0 | 200.0 to 900.0 | 1.500 |'
    )


def test_starts_are_compared_with_the_first():
    tool = load_tool('benchmark_startup')
    starts = [tool.Start(30.0, 20.0, False), tool.Start(10.0, 4.0, True), tool.Start(6.0, 5.0, True)]
    assert tool.ratios(starts) == {'wall': pytest.approx(30 / 8), 'cpu': pytest.approx(20 / 4.5)}
    assert tool.COMPILED.search('compiled in 1.7 s (from the cache)')[1]
    assert tool.COMPILED.search('compiled in 1.7 s')[1] is None
    assert tool.main(['--config=x.py', '--starts=1']) == 2


@pytest.mark.parametrize('tool', ['benchmark_startup', 'benchmark_xla'])
def test_a_file_that_cannot_be_written_is_said_at_once(tool, capsys):
    assert load_tool(tool).main(['--config=x.py', '--output=/nowhere/x.json']) == 2
    assert capsys.readouterr().err == 'error: --output=/nowhere/x.json: /nowhere is not a folder\n'


def test_a_flag_that_xla_does_not_know_is_said_at_once(capsys, monkeypatch):
    monkeypatch.delenv(xla_preset.VARIABLE, raising=False)
    assert load_tool('benchmark_xla').main(['--config=x.py', '--flags=--xla_cpu_nope=1']) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: with XLA_FLAGS='--xla_cpu_nope=1': Unknown flag")
    assert err.count('\n') == 1
    assert not out


def test_a_start_that_ends_before_its_first_step_is_said(tmp_path):
    with pytest.raises(
        ValueError, match=r"^vivit_jax\.main --config=none\.py ended before .*'none\.py' does not exist"
    ):
        load_tool('benchmark_startup').start(['--config=none.py'], tmp_path, 0)
