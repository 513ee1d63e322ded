import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import load_tool


@pytest.fixture(scope='module')
def tool():
    return load_tool('benchmark_augment')


def test_both_sides_do_the_same(tool):
    video = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 10, 3), np.uint8)
    for chain in tool.CHAINS.values():
        host, device = np.stack(tool._on_host(video, chain)()), tool._on_device(video, chain)()
        # A grey level is 1 / 127.5 of [-1, 1].
        assert np.abs(host / 127.5 - 1 - np.asarray(device)).max() < 1.01 / 127.5
        assert (host != video).any()
    np.testing.assert_allclose(tool._on_device(video, ())(), video / 127.5 - 1, atol=1e-6)


def test_ratios(tool):
    assert tool._ratios([4.0, 9.0, 8.0], [2.0, 3.0, 1.0]) == {'ratio': 3.0, 'lowest': 2.0, 'highest': 8.0}
    # What takes no time at all in some round is lost in the noise of the machine.
    assert tool._ratios([4.0, 9.0], [2.0, -0.1]) == {'ratio': None, 'lowest': None, 'highest': None}
    assert tool._a_clip([0.3, 0.1, 0.2], 4) == pytest.approx(50)


def test_the_command(tool, tmp_path):
    output = tmp_path / 'figures.json'
    command = [sys.executable, tool.__file__, '--frames=2', '--size=16', '--batch=2', '--rounds=2']
    done = subprocess.run(
        [*command, f'--json={output}'], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    assert [row['what'] for row in report['rows']] == ['flip', 'colour jitter', 'colour drop', 'all three']
    for row in report['rows']:
        assert row.keys() == {'what', 'wall', 'processor'}
        assert row['wall']['host'] > 0
    kind = jax.devices()[0].device_kind
    assert done.stdout.startswith(f'device: {kind} (cpu); host: ')
    tables = [line for line in done.stdout.splitlines() if line.startswith('|')]
    assert {line.count('|') for line in tables} == {8}
    assert len(tables) == 6


def test_an_accelerators_time_is_not_the_processors(tool, monkeypatch):
    monkeypatch.setattr(tool.jax, 'default_backend', lambda: 'gpu')
    report = tool.measure(frames=2, size=8, batch=1, rounds=1)
    assert all(row.keys() == {'what', 'wall'} for row in report['rows'])
    assert {line.count('|') for line in tool.told(report) if line.startswith('|')} == {5}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--batch=0'], '--frames, --size, --batch and --rounds must be at least 1'),
        (['--size=x'], "argument --size: invalid int value: 'x'"),
        (['--json=/no/x.json'], '--json=/no/x.json: /no is not a folder'),
    ],
)
def test_mistakes(tool, monkeypatch, capsys, options, message):
    monkeypatch.setattr(sys, 'argv', ['benchmark_augment.py', *options])
    with pytest.raises(SystemExit) as stopped:
        tool.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
