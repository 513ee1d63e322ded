"""TimeSformer's files: read as recorded from both implementations, written so that transformers reads them."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from conftest import load_tool
from safetensors.numpy import load_file, save_file

from vivit_jax import formats
from vivit_jax.formats import timesformer
from vivit_jax.formats.weights import flat
from vivit_jax.models.vivit import create_model

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'formats'
ROOT = pathlib.Path(__file__).parent.parent
HF, ORIGINAL = 'hf_timesformer', 'fb_timesformer'
CLIPS = {HF: ('pixel_values', 2), ORIGINAL: ('video_bcthw', 1)}  # and which axis has the channels


def recorded(folder):
    """Clips as ours, and what the implementation gave for them."""
    key, channels = CLIPS[folder]
    with np.load(GOLDEN / folder / 'io.npz') as file:
        return np.moveaxis(file[key], channels, -1), file['logits']


def run(weights, video, quick_jit):
    model = create_model(weights.num_classes, **weights.model)
    return quick_jit(lambda params, video: model.apply({'params': params}, video)[0])(weights.params, video)


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.fixture
def edited(tmp_path):
    """Copies a folder and changes its files: a dict updates JSON (None leaves a key out), a function the arrays."""

    def edit(name, arrays=None, **files):
        folder = tmp_path / name
        shutil.copytree(GOLDEN / name, folder, ignore=shutil.ignore_patterns('io.npz'))
        for stem, changes in files.items():
            path = folder / f'{stem}.json'
            content = {**(json.loads(path.read_text()) if path.exists() else {}), **changes}
            path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        if arrays:
            save_file(arrays(load_file(folder / 'model.safetensors')), folder / 'model.safetensors')
        return folder

    return edit


@pytest.mark.parametrize('folder', [HF, ORIGINAL])
def test_the_logits_are_as_recorded(folder, quick_jit):
    weights = formats.load(GOLDEN / folder)
    video, logits = recorded(folder)
    np.testing.assert_allclose(run(weights, video, quick_jit), logits, rtol=0, atol=1e-5)
    assert weights.kind == {HF: 'hf_timesformer', ORIGINAL: 'timesformer'}[folder]
    assert (weights.grid, weights.is_image, weights.unused) == ((4, 4, 4), False, {})
    assert weights.model['attention'] == 'divided'
    # Nothing is assumed about pixels but our range; the published ones were trained on another.
    assert len(weights.notes) == 1
    assert 'mean 0.45 and standard deviation 0.225' in weights.notes[0]


def test_both_layouts_are_the_same_arrays():
    found, expected = formats.load(GOLDEN / ORIGINAL), formats.load(GOLDEN / HF)
    assert found.model == expected.model
    assert_equal(flat(found.params), flat(expected.params))
    origin = found.origin['Transformer/encoderblock_1/MultiHeadDotProductAttention_time/value/kernel']
    assert origin.arrays == {'blocks.1.temporal_attn.qkv.weight': (96, 32)}
    assert origin.how == 'rows 64 to 95, transposed (h c) d -> d h c'


def test_a_pyth_file_is_read_with_what_else_training_saves(tmp_path):
    torch = pytest.importorskip('torch', reason="writes a file of PyTorch's, which is not installed")
    arrays = load_file(GOLDEN / ORIGINAL / 'model.safetensors')
    state = {f'model.{name}': torch.from_numpy(array) for name, array in arrays.items()}
    momentum = {0: {'momentum_buffer': torch.zeros(1, 1, 32)}}
    optimizer = {'state': momentum, 'param_groups': [{'lr': 0.005, 'params': [0]}]}
    checkpoint = {'epoch': 14, 'model_state': state, 'optimizer_state': optimizer, 'cfg': 'DATA: {}'}
    torch.save(checkpoint, tmp_path / 'TimeSformer_divST_8x32_224_K400.pyth')
    weights = formats.load(tmp_path / 'TimeSformer_divST_8x32_224_K400.pyth', 4)
    assert weights.kind == 'timesformer'
    assert_equal(flat(weights.params), flat(formats.load(GOLDEN / HF).params))
    assert set(weights.unused) == {'optimizer_state.state.0.momentum_buffer'}
    with pytest.raises(ValueError, match='does not tell the number of attention heads: give num_heads'):
        formats.load(tmp_path)


@pytest.mark.parametrize('folder', [HF, ORIGINAL])
@pytest.mark.parametrize('values', [(0.45, 0.225), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
def test_pixels_are_normalised_as_a_processor_beside_the_file_says(edited, quick_jit, folder, values):
    mean, std = values
    weights = formats.load(edited(folder, preprocessor_config={'image_mean': mean, 'image_std': std}))
    pixels = np.random.default_rng(0).uniform(size=(1, 4, 32, 32, 3)).astype(np.float32)
    normalised = ((pixels - mean) / std).astype(np.float32)
    expected = run(formats.load(GOLDEN / folder), normalised, quick_jit)
    np.testing.assert_allclose(run(weights, 2 * pixels - 1, quick_jit), expected, rtol=0, atol=1e-5)
    assert 'the embedding now takes them in [-1, 1]' in weights.notes[0]


def test_without_config_the_sizes_are_read_from_the_arrays(tmp_path):
    shutil.copy(GOLDEN / HF / 'model.safetensors', tmp_path)
    with pytest.raises(ValueError, match='does not tell the number of attention heads: give num_heads'):
        formats.load(tmp_path)
    found, expected = formats.load(tmp_path, 4), formats.load(GOLDEN / HF)
    assert (found.model, found.grid) == (expected.model, expected.grid)
    assert_equal(flat(found.params), flat(expected.params))


def test_the_sizes_of_a_named_model_tell_the_heads(tmp_path):
    arrays = load_file(GOLDEN / ORIGINAL / 'model.safetensors')
    random = np.random.default_rng(0)
    larger = {32: 192, 96: 576, 64: 768}  # ViT-Ti/16's, of twelve layers

    def grown(array):
        shape = tuple(larger.get(size, size) for size in array.shape)
        return random.normal(size=shape).astype(np.float32)

    ti = {name: grown(array) for name, array in arrays.items() if '.1.' not in name}
    first = {name: array for name, array in ti.items() if name.startswith('blocks.0.')}
    for layer in range(1, 12):
        ti |= {name.replace('.0.', f'.{layer}.', 1): array for name, array in first.items()}
    save_file(ti, tmp_path / 'model.safetensors')
    weights = formats.load(tmp_path)
    assert weights.model['num_heads'] == 3
    assert 'num_heads=3 is assumed' in weights.notes[0]


@pytest.mark.parametrize('folder', [HF, ORIGINAL])
def test_without_biases_of_queries_keys_and_values_they_are_zeros(edited, folder):
    def without(arrays):
        return {name: array for name, array in arrays.items() if not name.endswith('qkv.bias')}

    weights = formats.load(edited(folder, without, config={'qkv_bias': False}))
    name = 'Transformer/encoderblock_0/MultiHeadDotProductAttention_time/query/bias'
    np.testing.assert_array_equal(flat(weights.params)[name], np.zeros((4, 8)))
    assert weights.origin[name].how == 'zeros: the file has none (qkv_bias is false)'


def only_space(arrays):
    return {
        name: array for name, array in arrays.items() if 'temporal' not in name and 'time_emb' not in name
    }


def one_short(arrays):
    name = 'timesformer.encoder.layer.1.attention.attention.qkv.weight'
    return {**arrays, name: arrays[name][:-1]}


@pytest.mark.parametrize(
    ('arrays', 'config', 'message'),
    [
        (
            only_space,
            {'attention_type': 'space_only'},
            "attention_type='space_only': every frame has a cls token of its own there, and these are averaged",
        ),
        (
            None,
            {'attention_type': 'joint_space_time'},
            "says attention_type='joint_space_time', but the arrays are of 'divided_space_time'",
        ),
        (one_short, {}, r'qkv.weight is \(95, 32\), which for width 32 must have 96 rows'),
        (None, {'num_frames': 8}, 'says num_frames=8, but the arrays have 4'),
        (None, {'image_size': 64}, r'are for 16 patches a frame, but \(64, 64\) pixels, .* have \(8, 8\)'),
        (None, {'patch_size': 16}, r'says patch_size=16, but the arrays have \[8, 8\]'),
        (None, {'hidden_act': 'relu'}, "hidden_act='relu' of config.json: known are"),
        (None, {'num_attention_heads': 5}, 'model.num_heads=5 does not divide model.width=32'),
        (None, {'model_type': 'vit'}, "model_type 'vit', whose blocks are not those of 'timesformer'"),
        (
            lambda arrays: {**arrays, 'timesformer.extra': np.zeros(3, np.float32)},
            {},
            r'1 arrays have no place in the model \(timesformer.extra\)',
        ),
        (
            lambda arrays: {name: a for name, a in arrays.items() if 'temporal_dense.bias' not in name},
            {},
            "without 'encoder.layer.0.temporal_dense.bias': it is incomplete",
        ),
    ],
)
def test_mistakes_are_one_line(edited, arrays, config, message):
    with pytest.raises(ValueError, match=message) as error:
        formats.load(edited(HF, arrays, config=config))
    assert '\n' not in str(error.value)
    assert 'model.safetensors' in str(error.value)


def test_what_is_written_is_what_was_read(tmp_path):
    weights = formats.load(GOLDEN / HF)
    names = timesformer.save(tmp_path / 'new', weights, (4, 32, 32, 3))
    assert {path.name for path in (tmp_path / 'new').iterdir()} == set(names)
    found, expected = (load_file(path / 'model.safetensors') for path in (tmp_path / 'new', GOLDEN / HF))
    assert_equal(found, expected)
    config = json.loads((GOLDEN / HF / 'config.json').read_text())
    del config['transformers_version']
    assert json.loads((tmp_path / 'new' / 'config.json').read_text()) == config


SETTINGS = {
    'attention': 'divided',
    'num_layers': 1,
    'num_heads': 2,
    'width': 8,
    'mlp_dim': 12,
    'tubelet': (1, 4, 4),
    'position_embedding': 'learned_space_time',
}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'attention': 'axial', 'classifier': 'gap'},
            "model.attention='axial', .* 'divided' or 'spatio_temporal'",
        ),
        ({'classifier': 'gap'}, "model.classifier='gap', where .* has 'token' only"),
        ({'embedding': 'uniform_frame_sampling'}, "model.embedding='uniform_frame_sampling'"),
        ({'position_embedding': 'learned'}, "model.position_embedding='learned', where"),
        ({'activation': 'geglu'}, "model.activation='geglu', where .* has 'gelu_tanh' or 'gelu_exact' only"),
        ({'final_norm': False}, 'model.final_norm=False'),
        ({'representation_size': 4}, 'model.representation_size=4'),
        ({'tubelet': (2, 4, 4)}, r'model.tubelet=\(2, 4, 4\), where .* square patches of one frame'),
        ({'tubelet': (1, 4, 8)}, r'model.tubelet=\(1, 4, 8\)'),
        ({'clip': (2, 8, 16, 3)}, 'clips are 8 x 16 pixels, where .* has square ones'),
        ({'num_classes': 0}, 'the model has no head'),
    ],
)
def test_a_model_without_a_counterpart_is_refused(tmp_path, changes, message):
    settings = {**SETTINGS, **changes}
    clip = settings.pop('clip', (2, 8, 8, 3))
    weights = formats.Weights({}, settings, settings.pop('num_classes', 3), 'scenic', 'FILE', None, {}, {})
    with pytest.raises(ValueError, match=f'^FILE: {message}'):
        timesformer.save(tmp_path / 'new', weights, clip)
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('attention', ['divided', 'spatio_temporal'])
def test_transformers_loads_every_parameter_and_we_read_it_back(
    tmp_path, random_params, quick_jit, attention
):
    torch = pytest.importorskip('torch', reason='compares with PyTorch, which is not installed')
    transformers = pytest.importorskip(
        'transformers', reason='compares with transformers, which is not installed'
    )
    transformers.utils.logging.disable_progress_bar()
    settings = {
        **SETTINGS,
        'attention': attention,
        'num_layers': 2,
        'activation': 'gelu_exact',
        'norm_epsilon': 1e-3,
        'drop_path_rate': 0.1,
        'dropout_rate': 0.1,
    }
    clip = (3, 12, 12, 3)
    model = create_model(5, **settings)
    video = np.random.default_rng(1).uniform(-1, 1, (2, *clip)).astype(np.float32)
    params = random_params(model, video)
    weights = formats.Weights(params, settings, 5, 'scenic', 'FILE', None, {}, {}, class_names=tuple('abbde'))
    timesformer.save(tmp_path, weights, clip)
    theirs, told = transformers.TimesformerForVideoClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(told.values()), told
    assert theirs.config.id2label == dict(enumerate('abbde'))
    with torch.no_grad():
        expected = theirs(pixel_values=torch.from_numpy(np.moveaxis(video, -1, -3).copy())).logits.numpy()
    np.testing.assert_allclose(run(weights, video, quick_jit), expected, rtol=0, atol=1e-5)
    back = formats.load(tmp_path)
    assert (back.kind, back.model['attention'], back.grid) == ('hf_timesformer', attention, (3, 3, 3))
    assert (back.class_names, back.notes) == (tuple('abbde'), ())
    assert_equal(flat(back.params), flat(params))


def test_the_processor_that_is_written_gives_our_range(tmp_path):
    pytest.importorskip('torch', reason='compares with PyTorch, which is not installed')
    transformers = pytest.importorskip(
        'transformers', reason='compares with transformers, which is not installed'
    )
    timesformer.save(tmp_path, formats.load(GOLDEN / HF), (4, 32, 32, 3))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    for level in (0, 255):
        flat_frame = np.full((60, 90, 3), level, np.uint8)
        found = processor([flat_frame], return_tensors='np')['pixel_values']
        assert found.shape == (1, 1, 3, 32, 32)
        np.testing.assert_allclose(found, level / 127.5 - 1, atol=1e-6)
    found = processor([frame], do_resize=False, return_tensors='np')['pixel_values']
    np.testing.assert_allclose(np.moveaxis(found[0, 0], 0, -1), frame / 127.5 - 1, atol=1e-6)


@pytest.fixture(scope='module')
def tool():
    """The command's module."""
    return load_tool('convert_to_pytorch')


def test_the_command_writes_a_timesformer_and_checks_it(tool, tmp_path, capsys):
    pytest.importorskip('torch', reason='compares with PyTorch, which is not installed')
    pytest.importorskip('transformers', reason='compares with transformers, which is not installed')
    output = tmp_path / 'out'
    assert tool.main([str(GOLDEN / ORIGINAL), f'--output={output}']) == 0
    told = capsys.readouterr().out
    assert 'checked: largest difference ' in told
    assert 'from transformers import TimesformerForVideoClassification, VideoMAEImageProcessor' in told
    scope = {}
    exec(told[told.index('from transformers') : told.index('\n\nchecked')], scope)
    assert scope['model'].config.num_frames == 4
    assert_equal(load_file(output / 'model.safetensors'), load_file(GOLDEN / HF / 'model.safetensors'))


def test_the_command_tells_what_does_not_fit(tool, tmp_path, capsys):
    pytest.importorskip('torch', reason='compares with PyTorch, which is not installed')
    folder = tmp_path / 'wide'
    arguments = [str(GOLDEN / HF), f'--output={folder}', '--format=vivit_torch']
    assert tool.main(arguments) == 0
    config = json.loads((folder / 'config.json').read_text())
    config['model']['classifier'] = 'gap'
    (folder / 'config.json').write_text(json.dumps(config))
    arrays = load_file(folder / 'model.safetensors')
    del arrays['vivit.embeddings.cls_token']
    name = 'vivit.embeddings.position_embeddings'
    save_file({**arrays, name: arrays[name][:, 1:]}, folder / 'model.safetensors')
    capsys.readouterr()
    assert tool.main([str(folder), f'--output={tmp_path / "out"}', '--format=hugging_face']) == 2
    error = capsys.readouterr().err
    assert re.search(r"does not fit .*: model.classifier='gap', where .* TimeSformer has 'token' only", error)
    assert tool.main([str(folder), f'--output={tmp_path / "out"}']) == 0
    assert "format vivit_torch: model.classifier='gap'" in capsys.readouterr().out
