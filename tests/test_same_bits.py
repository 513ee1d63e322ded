"""The same command gives the same bits, whatever reads its clips; and what is asked of a GPU for that."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from tiny import DIGITS, SETTINGS, options
from vivit_jax import main, xla_preset
from vivit_jax.checkpoint import read_arrays

TINY = SETTINGS | {
    'model.dropout_rate': '0.1',
    'model.drop_path_rate': '0.1',
    'training.mixup_alpha': '0.2',
    'training.ema_decay': '0.9',
    'data.test_splits': 'test',
}
BOTH = [str(flag) for flag in xla_preset.DETERMINISTIC]


@pytest.mark.slow
def test_two_processes_one_after_the_other_train_the_same_model(tmp_path):
    """Bit for bit: parameters, their average, curve, results; one of them asks for it."""
    folders = {'one': ['--config.data.threads=1', '--deterministic'], 'other': ['--config.data.workers=2']}
    running = {
        name: subprocess.Popen(
            [
                sys.executable,
                '-m',
                'vivit_jax.main',
                f'--config={DIGITS}',
                f'--workdir={tmp_path / name}',
                *options(TINY),
                *own,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Each compiles for itself, as users' runs do.
            env=os.environ | {'JAX_PLATFORMS': 'cpu', 'VIVIT_JAX_COMPILE_CACHE': '0'},
        )
        for name, own in folders.items()
    }
    said = {name: process.communicate(timeout=300)[0] for name, process in running.items()}
    assert [process.returncode for process in running.values()] == [0, 0], said
    one, other = (tmp_path / name for name in folders)
    for item in ('params', 'ema'):
        first, second = (read_arrays(folder / 'checkpoints' / '20' / item) for folder in (one, other))
        jax.tree.map(np.testing.assert_array_equal, first, second)
        assert len(jax.tree.leaves(first)) > 20
    assert curve(one) == curve(other)
    assert len(curve(one)) == 5
    for name in ('eval.json', 'predictions.csv', 'confusion_test.csv'):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    line = '--deterministic: nothing is changed, as XLA computes the same bits in every run on a cpu'
    assert [line in text for text in said.values()] == [True, False]
    facts = [json.loads((folder / 'run.json').read_text()) for folder in (one, other)]
    assert [each['deterministic'] for each in facts] == [True, False]
    assert facts[0]['xla_flags'].split()[-2:] == BOTH


def curve(folder):
    rows = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if key not in ('clips_per_second', 'data_wait')}
        for row in rows
    ]


# --- The flags ---


def test_flags_are_added_to_the_users_and_to_a_presets(monkeypatch):
    monkeypatch.setenv('XLA_FLAGS', '--xla_dump_to=/tmp/x')
    xla_preset.apply('gpu')
    assert not xla_preset.is_deterministic()
    xla_preset.make_deterministic()
    assert xla_preset.flags().split() == ['--xla_dump_to=/tmp/x', *map(str, xla_preset.GPU), *BOTH]
    assert xla_preset.is_deterministic()
    xla_preset.make_deterministic()  # once is enough
    assert xla_preset.flags().split()[-2:] == BOTH
    assert len(xla_preset.flags().split()) == 3 + len(xla_preset.GPU)


@pytest.mark.parametrize('value', ['false', '0'])
def test_flags_that_say_otherwise_are_refused(monkeypatch, capsys, value):
    monkeypatch.setenv('XLA_FLAGS', f'--xla_gpu_deterministic_ops={value}')
    assert main.main([f'--config={DIGITS}', '--deterministic']) == 2
    assert capsys.readouterr().err == (
        f'error: --deterministic: XLA_FLAGS has --xla_gpu_deterministic_ops={value}: leave it out\n'
    )


def test_what_it_means_is_said():
    assert xla_preset.about_determinism('gpu') == f'--deterministic: {" ".join(BOTH)}'
    assert 'nothing is changed' in xla_preset.about_determinism('tpu')
