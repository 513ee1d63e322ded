"""Scenic's checkpoints: what the file tells, what its configuration adds, and the tool that takes both over."""

import json
import pathlib

import flax.serialization
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import GOLDEN, load_tool

from vivit_jax import formats
from vivit_jax.formats import scenic
from vivit_jax.formats.weights import Conversion, flat, nested
from vivit_jax.models.vivit import create_model

ROOT = pathlib.Path(__file__).parent.parent
E01 = GOLDEN / 'E01_checkpoint'
CASES = sorted(path.stem for path in GOLDEN.glob('A*.json'))
# A clip of the recorded cases: 8 frames of 16x16.
CLIP = {'dataset_configs': {'num_frames': 8, 'crop_size': 16}}


def converted(arrays, root='params/', num_heads=None, **options):
    named = {f'{root}{name}': np.asarray(array) for name, array in arrays.items()}
    return scenic.convert(Conversion('file', 'scenic', named, **options), {}, num_heads)


def logits(weights, video, quick_jit):
    model = create_model(weights.num_classes, **weights.model)
    return np.asarray(
        quick_jit(lambda params, x: model.apply({'params': params}, x)[0])(weights.params, video)
    )


@pytest.fixture(scope='module')
def e01():
    return np.load(E01 / 'expected.npz'), json.loads((E01 / 'expected.json').read_text())


@pytest.mark.parametrize('layout', ['old_layout', 'new_layout'])
def test_checkpoints_of_both_layouts_give_the_recorded_logits(layout, e01, quick_jit):
    arrays, _ = e01
    weights = formats.load(E01 / layout)
    assert weights.kind == 'scenic'
    assert weights.path == str(E01 / layout / 'checkpoint')
    assert weights.grid == (4, 4, 4)
    assert weights.num_classes == 5
    assert weights.notes == ()
    ours = logits(weights, arrays['inputs/video'], quick_jit)
    np.testing.assert_allclose(ours, arrays['outputs/logits'], atol=1e-5, rtol=0)
    for name, array in flat(weights.params).items():
        np.testing.assert_array_equal(array, arrays[f'params/{name}'])
        assert weights.origin[name].how == 'copied'
    # 44 parameters, their 44 momenta, the step and the random numbers.
    assert len(weights.origin) == 44
    assert len(weights.unused) == 46
    assert weights.unused['rng'] == 'the state of the random numbers'
    reasons = {reason.split(':')[0] for name, reason in weights.unused.items() if name != 'rng'}
    assert reasons == {"the optimiser's state"}


@pytest.mark.parametrize('case', CASES)
def test_the_configuration_settles_what_the_file_leaves_open(case, golden):
    record = golden(case)
    weights = converted(flat(record.arrays['params']))
    settled = scenic.with_config(weights, {**record.record['config'], **CLIP})
    assert create_model(weights.num_classes, **settled.weights.model) == record.model
    assert create_model(weights.num_classes, **settled.config.model) == record.model
    assert settled.weights.grid == (4, 4, 4)
    assert settled.weights.notes == ()
    assert settled.unknown == ()
    assert (settled.config.data.frames, settled.config.data.crop) == (8, (16, 16))
    assert settled.config.data.num_classes == (5,)


@pytest.mark.parametrize('case', ['A07_fsa_time_space_gap', 'A08_fdp_gap', 'A10_sampling_fe_token'])
def test_settled_weights_give_the_recorded_logits(case, golden, quick_jit):
    record = golden(case)
    weights = scenic.with_config(
        converted(flat(record.arrays['params'])), {**record.record['config'], **CLIP}
    ).weights
    ours = logits(weights, record.arrays['inputs']['video'], quick_jit)
    np.testing.assert_allclose(ours, record.arrays['outputs']['logits'], atol=1e-5, rtol=1e-5)


def test_what_is_assumed_without_a_configuration_is_said(golden):
    def read(case):
        weights = converted(flat(golden(case).arrays['params']))
        return weights.model, weights.grid, ' '.join(weights.notes)

    model, grid, notes = read('A07_fsa_time_space_gap')
    assert model['attention'] == 'factorised_self_attention'
    assert grid is None
    assert "attention_order='space_time' is assumed" in notes
    model, grid, notes = read('A08_fdp_gap')
    assert model['attention'] == 'spatio_temporal'
    assert model['classifier'] == 'gap'
    assert grid is None
    assert "attention='spatio_temporal' is assumed" in notes
    assert "classifier='gap' is assumed" in notes
    model, grid, notes = read('A01_spacetime_token')
    assert model['classifier'] == 'token'
    assert grid is None
    assert notes == ''
    model, grid, _ = read('A05_fe_spatial_only')
    assert model['temporal_layers'] == 0
    assert grid is None
    model, grid, notes = read('A10_sampling_fe_token')
    assert model['tubelet'] == (1, 4, 4)
    assert grid == (4, 4, 4)
    assert 'embedding has no time' in notes
    model, grid, _ = read('A11_representation_size_fe')
    assert model['representation_size'] == golden('A11_representation_size_fe').model.representation_size > 0


@pytest.mark.parametrize('root', scenic.ROOTS)
def test_parameters_are_found_below_every_root(root, golden):
    arrays = flat(golden('A03_fe_token').arrays['params'])
    others = {
        'optimizer/state/param_states/embedding/kernel/momentum': np.zeros(2),
        'opt_state/0/trace/embedding/kernel': np.zeros(2),
        'model_state/batch_stats/mean': np.zeros(2),
        'rng': np.zeros(2),
        'global_step': np.zeros(()),
        'ema_params/embedding/kernel': np.zeros(2),
        'metadata/lr': np.zeros(()),
    }
    named = {f'{root}{name}': array for name, array in arrays.items()} | others
    weights = scenic.convert(Conversion('file', 'scenic', named), {}, 4)
    assert set(weights.unused) == set(others)
    assert set(weights.origin) == set(arrays)
    assert weights.origin['embedding/kernel'].arrays == {f'{root}embedding/kernel': (2, 4, 4, 3, 32)}
    with pytest.raises(ValueError, match=r'file: num_heads=8, but its arrays have 4$'):
        scenic.convert(Conversion('file', 'scenic', named), {}, 8)
    with pytest.raises(
        ValueError, match=r"1 arrays have no place in the model \(strange\).*allow_unused='strange'"
    ):
        scenic.convert(Conversion('file', 'scenic', {**named, 'strange': np.zeros(2)}), {}, None)


def test_an_image_model_is_one_frame(golden, quick_jit):
    arrays = flat(golden('A09_sampling_spacetime_token').arrays['params'])
    image = arrays | {'Transformer/posembed_input/pos_embedding': np.zeros((1, 17, 32), np.float32)}
    weights = converted(image)
    assert weights.is_image
    assert weights.grid == (1, 4, 4)
    assert weights.model['tubelet'] == (1, 4, 4)
    assert weights.params['embedding']['kernel'].shape == (1, 4, 4, 3, 32)
    assert weights.origin['embedding/kernel'].how == 'time axis added'
    assert logits(weights, np.zeros((2, 1, 16, 16, 3), np.float32), quick_jit).shape == (2, 5)
    odd = arrays | {'Transformer/posembed_input/pos_embedding': np.zeros((1, 13, 32), np.float32)}
    assert converted(odd).grid is None


def test_sizes_come_from_the_file(golden):
    """A published factorised encoder has 12 temporal layers where its configuration says 4."""
    record = golden('A03_fe_token')
    arrays = flat(record.arrays['params'])
    first = {name: a for name, a in arrays.items() if name.startswith('TemporalTransformer/encoderblock_0')}
    for layer in range(1, 12):
        arrays |= {name.replace('block_0', f'block_{layer}'): a for name, a in first.items()}
    config = {
        **record.record['config'],
        'dataset_configs': {'num_frames': 16, 'crop_size': 16, 'num_classes': 9},
    }
    settled = scenic.with_config(converted(arrays), config)
    assert settled.weights.model['temporal_layers'] == settled.config.model.temporal_layers == 12
    assert settled.weights.notes == (
        'model.temporal_layers is 12 in the file and 1 in the configuration: the file is right',
        'data.frames is 8 in the file and 16 in the configuration: the file is right',
        'data.num_classes is (5,) in the file and (9,) in the configuration: the file is right',
    )
    assert settled.config.data.frames == 8
    assert settled.config.data.num_classes == (5,)
    missing = {name: a for name, a in arrays.items() if '_7/' not in name}
    with pytest.raises(ValueError, match='has 11 layers, but none with the number 7: it is incomplete'):
        converted(missing)


def test_a_clip_of_other_sizes(golden):
    record = golden('A01_spacetime_token')
    weights = converted(flat(record.arrays['params']))
    config = record.record['config']

    def clip(**data):
        settled = scenic.with_config(weights, {**config, 'dataset_configs': data})
        assert settled.weights.grid is not None
        return settled.config.data.frames, settled.config.data.crop, settled.weights.model['remainder']

    assert clip(crop_size=16) == (8, (16, 16), 'error')
    assert clip(num_frames=8) == (8, (16, 16), 'error')
    assert clip(num_frames=9, crop_size=18) == (9, (18, 18), 'crop')
    with pytest.raises(ValueError, match=r'has positions for 64 tokens, but clips of \(32, 224, 224\)'):
        clip()


def test_pixels_from_zero_to_one(golden, quick_jit):
    record = golden('A03_fe_token')
    weights = converted(flat(record.arrays['params']))
    config = {
        **record.record['config'],
        'dataset_configs': {**CLIP['dataset_configs'], 'zero_centering': False},
    }
    settled = scenic.with_config(weights, config).weights
    assert 'pixels in [-1, 1] instead of [0, 1]' in settled.notes[-1]
    video = np.random.default_rng(0).uniform(0, 1, (1, 8, 16, 16, 3)).astype(np.float32)
    there, here = logits(weights, video, quick_jit), logits(settled, 2 * video - 1, quick_jit)
    np.testing.assert_allclose(here, there, atol=1e-5, rtol=1e-5)


def test_what_is_none_of_scenics(golden):
    arrays = flat(golden('A03_fe_token').arrays['params'])
    with pytest.raises(
        ValueError, match=r"^file: seems to be of Scenic's, but has no embedding/kernel at optimizer"
    ):
        converted({name: a for name, a in arrays.items() if name != 'embedding/kernel'})
    blocks = {
        name.replace('encoderblock_0/', 'encoderblock_0/encoderblock_space/'): a for name, a in arrays.items()
    }
    with pytest.raises(ValueError, match='none of the four ViViTs, or incomplete'):
        converted(blocks)


@pytest.mark.parametrize('named', [True, False])
def test_folders_that_orbax_wrote(named, golden, tmp_path):
    params = golden('A03_fe_token').arrays['params']
    with ocp.PyTreeCheckpointer() as checkpointer:
        for step, factor in [(900, 0), (1000, 1)]:
            state = {
                'params': jax.tree.map(lambda array, factor=factor: array * factor, params),
                'opt_state': [{'trace': {'embedding': {'bias': np.ones(3)}}}, {'count': np.int32(step)}],
                'global_step': step,
            }
            checkpointer.save(tmp_path / f'checkpoint_{step}', state)
    path = tmp_path / 'checkpoint_1000' if named else tmp_path
    assert scenic.is_orbax(path)
    assert not scenic.is_orbax(tmp_path / 'none')
    weights = formats.load(path)
    assert weights.kind == 'scenic'
    for name, array in flat(weights.params).items():
        np.testing.assert_array_equal(array, flat(params)[name])
    assert 'opt_state/0/trace/embedding/bias' in weights.unused
    with pytest.raises(ValueError, match='holds no checkpoint that Orbax wrote'):
        scenic.read_orbax(tmp_path / 'none')


@pytest.mark.parametrize('layout', ['old_layout', 'new_layout'])
def test_the_tool_makes_one_of_our_checkpoints(layout, e01, tmp_path, capsys, quick_jit):
    arrays, record = e01
    config = {
        **record['config'],
        'strange': 1,
        'dataset_configs': {'num_classes': 7, 'num_frames': 8, 'crop_size': 16},
    }
    if layout == 'old_layout':
        file = tmp_path / 'config.json'
        file.write_text(json.dumps(config))
    else:
        file = tmp_path / 'config.py'
        file.write_text(
            f'import ml_collections\ndef get_config():\n  return ml_collections.ConfigDict({config!r})\n'
        )
    folder = tmp_path / 'out'
    arguments = [f'--checkpoint={E01 / layout}', f'--config={file}', f'--output={folder}']
    assert load_tool('convert_scenic').main(arguments) == 0
    printed = capsys.readouterr().out
    assert 'data.num_classes is (5,) in the file and (7,) in the configuration: the file is right' in printed
    assert 'and left out: strange\n' in printed
    assert '44 parameter arrays 44 copied; 46 of' in printed
    assert f'--config={folder / "config.json"} --workdir={folder} --mode=eval' in printed
    account = json.loads((folder / 'conversion.json').read_text())
    assert len(account['parameters']) == 44
    assert len(account['unused']) == 46
    saved = json.loads((folder / 'config.json').read_text())
    assert saved['data']['num_classes'] == [5]
    assert saved['init_from']['path'] == ''
    assert saved['data']['source'] == 'video_files'
    weights = formats.load(folder)
    assert weights.kind == 'vivit_jax'
    assert weights.grid == (4, 4, 4)
    ours = logits(weights, arrays['inputs/video'], quick_jit)
    np.testing.assert_allclose(ours, arrays['outputs/logits'], atol=1e-5, rtol=0)
    assert load_tool('convert_scenic').main(arguments) == 2
    assert 'holds checkpoints already' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('a.py', 'from scenic.projects import vivit\n', 'imports scenic, which is not installed'),
        ('a.py', 'x = 1\n', 'defines no get_config()'),
        ('a.py', 'def get_config():\n  Use a checkpoint\n', 'line 2: invalid syntax: Use a checkpoint'),
        ('a.py', 'def get_config():\n  return {}[\n    1]\n', 'line 2: 1'),
        ('a.py', 'def get_config():\n  return 3\n', 'gives a int instead of a configuration'),
        ('a.json', '{', 'is no JSON'),
        ('b.py', '', 'does not exist'),
    ],
)
def test_the_tool_says_in_one_line_what_is_wrong(name, text, message, tmp_path, capsys):
    (tmp_path / name).write_text(text)
    path = tmp_path / ('missing.py' if name == 'b.py' else name)
    arguments = [f'--checkpoint={E01 / "old_layout"}', f'--config={path}', f'--output={tmp_path / "out"}']
    assert load_tool('convert_scenic').main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f'error: {path}')
    assert message in error
    assert error.count('\n') == 1


def test_a_file_in_their_format_with_weights_in_half_precision(golden, tmp_path):
    """bfloat16 arrays, one root, nothing else: as people publish them."""
    arrays = flat(golden('A03_fe_token').arrays['params'])
    half = {name: array.astype(jax.numpy.bfloat16) for name, array in arrays.items()}
    file = tmp_path / 'published'
    file.write_bytes(flax.serialization.msgpack_serialize({'params': nested(half)}))
    weights = formats.load(file)
    assert weights.kind == 'scenic'
    for name, array in flat(weights.params).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, half[name].astype(np.float32))
