"""Dry runs: any configuration is tried without its data, and says what a run would take."""

import math
import pathlib

import numpy as np
import pytest

from tiny import DIGITS
from vivit_jax import dry_run, experiment
from vivit_jax.config import load
from vivit_jax.telling import memory
from vivit_jax.telling.eta import Work
from vivit_jax.telling.terminal import Terminal

CONFIGS = pathlib.Path(DIGITS).parent
SMALL = {
    'model.width': '16',
    'model.mlp_dim': '16',
    'model.num_heads': '2',
    'model.num_layers': '1',
    'model.temporal_layers': '1',
    'training.batch_size': '8',
    'evaluation.batch_size': '8',
    'data.threads': '2',
}
VIDEOS = {'data.frames': '4', 'data.crop': '32,32', 'data.short_side': '40'}
# Two heads, float32 clips, a data set in the package, a published one.
QUICK = ('epic_kitchens_fe', 'my_volumes', 'moving_digits', 'organmnist3d')
EXAMPLES = {
    **dict.fromkeys(('kinetics400_fdp', 'kinetics400_fe', 'kinetics400_fsa'), 240_000),
    **dict.fromkeys(('kinetics400_spacetime', 'kinetics400_timesformer'), 240_000),
    'kinetics600_fe': 390_000,
    'moments_in_time_fe': 800_000,
    'epic_kitchens_fe': 67_217,
    'ssv2_fe': 168_913,
    'medmnist3d': 971,
    'organmnist3d': 971,
    'moving_digits': 16_000,
}
NAMES = sorted(path.stem for path in CONFIGS.glob('*.py'))


def small(name, **changes):
    path = str(CONFIGS / f'{name}.py')
    videos = VIDEOS if load(path).data.source == 'video_files' else {}
    cut = {'data.frames': '16', 'data.crop': '16,16'} if name == 'my_volumes' else {}
    own = {key.replace('__', '.'): str(value) for key, value in changes.items()}
    return load(path, SMALL | videos | cut | own)


@pytest.mark.parametrize(
    'name', [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_every_configuration_without_data(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = small(name)
    numbers = dry_run.dry_run(config, steps=1)
    assert all(math.isfinite(value) for value in numbers.values())
    told = capsys.readouterr().out
    assert f'{config.name}: dry run\n  model     ' in told
    assert 'GFLOPs' in told or 'MFLOPs' in told
    assert '\n  memory    predicted ' in told
    assert '\ncompiled in ' in told
    assert ' clips/s; forward alone ' in told
    assert '\nmemory measured while it stepped: ' in told
    assert ('400 classes assumed: ' in told) == (not config.data.num_classes)
    examples = EXAMPLES.get(name)
    if examples is None:
        assert 'for 1,000 steps; how many examples there are is not known' in told
        assert numbers['run_steps'] == 1_000
    else:
        steps = round(config.training.epochs * examples / 8)
        assert f'for {steps:,} steps ({config.training.epochs:.3g} epochs of {examples:,} examples)' in told
        assert numbers['run_steps'] == steps
    assert ('evaluations and all' in told) == (name in ('medmnist3d', 'organmnist3d', 'moving_digits'))
    assert numbers['run_seconds'] >= numbers['compile_seconds'] + numbers['seconds_per_step'] * (
        numbers['run_steps'] - 1
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', NAMES)
def test_noise_has_the_form_of_the_data(name):
    config = small(name)
    with Terminal() as terminal:
        known = dry_run.what_is_known(config, terminal)
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.num_classes = known.sizes
    source = dry_run.RandomClips(config, 5)
    assert (len(source), len(dry_run.RandomClips(config))) == (5, 8_000)
    record = source[3]
    pixels = record.read(np.array([1, 0, 1]))
    assert pixels.shape == (3, *experiment.clip_shape(config)[1:])
    assert pixels.dtype == (np.float32 if name == 'my_volumes' else np.uint8)
    assert record.label == ((3, 3) if name == 'epic_kitchens_fe' else 3)
    assert len(source.class_names) == sum(known.sizes)


def known(**changes):
    with Terminal() as terminal:
        return dry_run.what_is_known(small('finetune', **changes), terminal)


def test_what_is_known_of_the_data(tmp_path):
    assert known().sizes == (400,)
    assert known().counts == {}
    assert known(data__heads='noun,verb').sizes == (400, 400)
    assert known(data__heads='noun,verb').remarks[0].startswith('400 classes of each head assumed: ')
    assert known(data__num_classes='(7,)', data__train_examples='900') == dry_run.Known(
        (7,), {'train': 900}, []
    )
    # Data that is named and not there is told, in a line.
    absent = known(data__root=tmp_path / 'absent', data__num_classes='(7,)')
    assert (absent.sizes, absent.counts) == ((7,), {})
    (line,) = absent.remarks
    assert line.startswith('not looked at: ')
    assert str(tmp_path / 'absent') in line
    assert '\n' not in line


def test_labels_of_several_classes():
    config = small('finetune', training__loss='sigmoid', data__num_classes='(3,)')
    assert dry_run.RandomClips(config)[4].label == (0.0, 1.0, 0.0)


def test_the_time_of_a_whole_run():
    work = Work(
        total_steps=100,
        evaluate_every=40,
        save_every=50,
        batch_size=4,
        validation_clips=30,
        test_clips=600,
        test_views=12,
    )
    numbers = {
        'compile_seconds': 20.0,
        'seconds_per_step': 2.0,
        'compile_seconds_forward': 5.0,
        'clips_per_second_forward': 6.0,
    }
    alone = dry_run._whole_run(numbers, work, evaluates=False)
    assert alone == {'run_seconds': 20 + 100 * 2, 'run_steps': 100}
    # Validations after steps 40, 80 and 100; forward compiled for other views and for the report, besides the first.
    whole = dry_run._whole_run(numbers, work, evaluates=True)
    assert whole['run_seconds'] == pytest.approx(20 + 100 * 2 + (3 * 30 + 600) / 6 + 2 * 5)


def test_too_much_memory_is_a_warning(monkeypatch):
    monkeypatch.setattr(memory, '_of_machine', lambda: 2**20)
    with pytest.warns(
        UserWarning, match=r'^training is predicted to take .*this machine has 1\.0 MiB: .*accumulate'
    ):
        dry_run.dry_run(small('moving_digits'), steps=1)


def test_a_mistake_is_one_line():
    with pytest.raises(ValueError, match=r'^the warm-up of .* must be shorter than the .* steps') as error:
        dry_run.dry_run(small('epic_kitchens_fe', optimizer__warmup_epochs='60'))
    assert '\n' not in str(error.value)
