"""Hugging Face's ViT and ViViT: read as recorded from transformers, written so that it reads them."""

import json
import pathlib
import shutil

import jax
import numpy as np
import optax
import pytest
from safetensors.numpy import load_file, save_file

from vivit_jax import formats
from vivit_jax.formats import hugging_face, torch_names
from vivit_jax.formats.weights import flat
from vivit_jax.models.vivit import create_model

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'formats'
FOLDERS = ['hf_vit_base', 'hf_vit_cls', 'hf_vivit_base', 'hf_vivit_cls']


def recorded(folder):
    """Clips as ours, and what transformers gave for them."""
    with np.load(GOLDEN / folder / 'io.npz') as file:
        arrays = dict(file)
    video = np.moveaxis(arrays['pixel_values'], -3, -1)
    return video if video.ndim == 5 else video[:, None], arrays


def run(weights, video, quick_jit):
    model = create_model(weights.num_classes, **weights.model)
    return quick_jit(lambda params, video: model.apply({'params': params}, video))(weights.params, video)


@pytest.fixture
def edited(tmp_path):
    """Copies a folder and changes its files: a dict updates one of JSON, a function the arrays."""

    def edit(name, arrays=None, **files):
        folder = tmp_path / name
        shutil.copytree(
            GOLDEN / name, folder, ignore=shutil.ignore_patterns('io.npz', 'state_dict*', 'grads*')
        )
        for stem, changes in files.items():
            path = folder / f'{stem}.json'
            content = json.loads(path.read_text()) if path.exists() else {}
            content.update(changes)
            path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        if arrays:
            before = load_file(folder / 'model.safetensors')
            save_file(arrays(before), folder / 'model.safetensors')
        return folder

    return edit


@pytest.mark.parametrize('folder', FOLDERS)
def test_the_outputs_are_those_of_transformers(folder, quick_jit):
    weights = formats.load(GOLDEN / folder)
    video, arrays = recorded(folder)
    logits, out = run(weights, video, quick_jit)
    np.testing.assert_allclose(out['encoded'], arrays['last_hidden_state'], atol=1e-5)
    expected = arrays['pooler_output' if 'base' in folder else 'logits']
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    assert weights.kind == ('hf_vit' if '_vit_' in folder else 'hf_vivit')
    assert weights.is_image == ('_vit_' in folder)
    assert weights.grid == ((1, 4, 4) if '_vit_' in folder else (2, 4, 4))
    assert weights.unused == {}


def test_transformers_4_wrote_the_same(tmp_path):
    shutil.copy(GOLDEN / 'hf_vivit_cls' / 'model.safetensors', tmp_path)
    shutil.copy(GOLDEN / 'hf_vivit_cls_tf4' / 'config.json', tmp_path)
    found, expected = formats.load(tmp_path), formats.load(GOLDEN / 'hf_vivit_cls')
    assert (found.model, found.class_names) == (expected.model, expected.class_names)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


def test_names_that_transformers_uses_in_memory_are_the_same_arrays(tmp_path):
    shutil.copy(GOLDEN / 'hf_vivit_cls' / 'config.json', tmp_path)
    shutil.copy(GOLDEN / 'hf_vivit_cls' / 'state_dict_v5_inmemory_names.safetensors', tmp_path)
    found, expected = formats.load(tmp_path), formats.load(GOLDEN / 'hf_vivit_cls')
    assert found.model == expected.model
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    assert found.origin['Transformer/encoderblock_1/MlpBlock_0/Dense_0/kernel'].arrays == {
        'vivit.layers.1.mlp.fc1.weight': (64, 32)
    }


def test_gradients_are_those_of_transformers(quick_jit):
    folder = GOLDEN / 'hf_vivit_cls'
    weights = formats.load(folder)
    model = create_model(weights.num_classes, **weights.model)
    video, _ = recorded('hf_vivit_cls')
    with np.load(folder / 'loss.npz') as file:
        labels, expected_loss = file['labels'], file['loss']

    def loss(params, video):
        logits, _ = model.apply({'params': params}, video)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    found_loss, gradients = quick_jit(jax.value_and_grad(loss))(weights.params, video)
    np.testing.assert_allclose(found_loss, expected_loss, rtol=1e-6)
    gradients = flat(jax.device_get(gradients))
    expected = {
        torch_names.classic(name): array
        for name, array in load_file(folder / 'grads_v5names.safetensors').items()
    }
    pairs = torch_names.pairs(model)
    assert {torch_names.classic(pair.theirs) for pair in pairs} == set(expected)
    for pair in pairs:
        found = pair.to_theirs(gradients[pair.ours])
        np.testing.assert_allclose(
            found, expected[torch_names.classic(pair.theirs)], atol=1e-5, err_msg=pair.ours
        )


def test_activation_epsilon_and_labels_come_with_the_weights(edited):
    vit, vivit = formats.load(GOLDEN / 'hf_vit_cls'), formats.load(GOLDEN / 'hf_vivit_cls')
    assert (vit.model['activation'], vit.model['norm_epsilon']) == ('gelu_exact', 1e-12)
    assert (vivit.model['activation'], vivit.model['norm_epsilon']) == ('gelu_tanh', 1e-6)
    labels = {str(number): name for number, name in enumerate('gfedcba')}
    folder = edited('hf_vivit_cls', config={'hidden_act': 'gelu', 'layer_norm_eps': 1e-5, 'id2label': labels})
    other = formats.load(folder)
    assert (other.model['activation'], other.model['norm_epsilon']) == ('gelu_exact', 1e-5)
    assert other.class_names == tuple('gfedcba')


def test_without_biases_of_query_key_and_value_they_are_zeros(edited):
    def without(arrays):
        return {
            name: a
            for name, a in arrays.items()
            if not name.endswith(('query.bias', 'key.bias', 'value.bias'))
        }

    weights = formats.load(edited('hf_vivit_cls', without, config={'qkv_bias': False}))
    name = 'Transformer/encoderblock_0/MultiHeadDotProductAttention_0/query/bias'
    np.testing.assert_array_equal(flat(weights.params)[name], np.zeros((4, 8)))
    assert weights.origin[name].how == 'zeros: qkv_bias is false'
    assert weights.origin[name].arrays == {}


def test_what_has_no_place_is_said_with_the_reason(edited):
    def more(arrays):
        return {
            **arrays,
            'vit.embeddings.mask_token': np.zeros((1, 1, 32), np.float32),
            'vit.pooler.dense.weight': np.zeros((32, 32), np.float32),
        }

    unused = formats.load(edited('hf_vit_cls', more)).unused
    assert set(unused) == {'vit.embeddings.mask_token', 'vit.pooler.dense.weight'}
    assert 'pre-training' in unused['vit.embeddings.mask_token']


def test_a_non_square_image_has_its_grid(edited):
    def wide(arrays):
        name = 'vit.embeddings.position_embeddings'
        return {**arrays, name: arrays[name][:, :9]}

    weights = formats.load(edited('hf_vit_cls', wide, config={'image_size': [16, 32]}))
    assert weights.grid == (1, 2, 4)


def test_an_image_that_patches_do_not_divide_is_cropped(edited):
    weights = formats.load(edited('hf_vit_cls', config={'image_size': 37}))
    assert (weights.grid, weights.model['remainder']) == ((1, 4, 4), 'crop')


def test_without_config_the_sizes_are_read_from_the_arrays(tmp_path):
    shutil.copy(GOLDEN / 'hf_vit_cls' / 'model.safetensors', tmp_path)
    with pytest.raises(ValueError, match='no array tells: give num_heads'):
        formats.load(tmp_path)
    weights = formats.load(tmp_path, 4)
    jax.tree.map(np.testing.assert_array_equal, weights.params, formats.load(GOLDEN / 'hf_vit_cls').params)
    assert weights.model == formats.load(GOLDEN / 'hf_vit_cls').model
    assert weights.grid == (1, 4, 4)
    assert "hidden_act='gelu' and layer_norm_eps=1e-12 are assumed" in ' '.join(weights.notes)


@pytest.mark.parametrize(
    ('processor', 'mean', 'std'),
    [
        (
            {'image_mean': [0.485, 0.456, 0.406], 'image_std': [0.229, 0.224, 0.225]},
            [0.485, 0.456, 0.406],
            [0.229, 0.224, 0.225],
        ),
        ({'do_normalize': False}, [0, 0, 0], [1, 1, 1]),
        ({'do_normalize': False, 'do_rescale': False}, [0, 0, 0], [1 / 255] * 3),
        ({'rescale_factor': 1 / 127.5, 'image_mean': [1, 1, 1], 'image_std': 1}, [0.5] * 3, [0.5] * 3),
    ],
)
def test_pixels_are_normalised_as_the_processor_says(edited, quick_jit, processor, mean, std):
    pixels = np.random.default_rng(0).uniform(size=(1, 1, 32, 32, 3)).astype(np.float32)
    plain = formats.load(GOLDEN / 'hf_vit_cls')
    expected, _ = run(plain, ((pixels - mean) / std).astype(np.float32), quick_jit)
    weights = formats.load(edited('hf_vit_cls', preprocessor_config=processor))
    found, _ = run(weights, pixels * 2 - 1, quick_jit)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_processor_of_vivit_is_known_to_be_wrong(edited):
    weights = formats.load(edited('hf_vivit_cls', preprocessor_config={'do_normalize': True}))
    assert '[-3, 1]' in weights.notes[0]
    jax.tree.map(np.testing.assert_array_equal, weights.params, formats.load(GOLDEN / 'hf_vivit_cls').params)
    shutil.rmtree(pathlib.Path(weights.path).parent)
    assert formats.load(edited('hf_vivit_cls', preprocessor_config={'do_normalize': False})).notes == ()


@pytest.mark.parametrize(
    ('folder', 'config', 'message'),
    [
        (
            'hf_vit_cls',
            {'hidden_act': 'relu'},
            "hidden_act='relu' of config.json: known are gelu_fast, gelu_new",
        ),
        ('hf_vivit_base', {'pooler_act': 'relu'}, "pooler_act='relu' of config.json: only 'tanh'"),
        ('hf_vit_cls', {'model_type': 'deit'}, "model_type 'deit', whose blocks are not those of 'vit'"),
        ('hf_vit_cls', {'hidden_size': 64}, 'says hidden_size=64, but the arrays have 32'),
        ('hf_vit_cls', {'num_hidden_layers': 3}, 'says num_hidden_layers=3, but the arrays have 2'),
        ('hf_vit_cls', {'patch_size': 16}, r'says patch_size=16, but the arrays have \[8, 8\]'),
        ('hf_vivit_cls', {'tubelet_size': [4, 8, 8]}, r'but the arrays have \[2, 8, 8\]'),
        ('hf_vivit_cls', {'tubelet_size': [4, 8]}, r'tubelet_size=\[4, 8\] of config.json: must be one'),
        ('hf_vivit_cls', {'num_frames': 8}, r'for 32 tokens, but a clip of \(8, 32, 32\) .* has 64'),
        # What is left out has the default of transformers.
        ('hf_vit_cls', {'image_size': None}, r'for 16 tokens, but a clip of \(1, 224, 224\) .* has 784'),
        ('hf_vit_cls', {'num_attention_heads': None}, 'model.num_heads=12 does not divide model.width=32'),
        ('hf_vit_cls', {'num_attention_heads': 5}, 'model.num_heads=5 does not divide model.width=32'),
    ],
)
def test_mistakes_are_one_line(edited, folder, config, message):
    with pytest.raises(ValueError, match=message) as error:
        formats.load(edited(folder, config=config))
    assert '\n' not in str(error.value)
    assert 'model.safetensors' in str(error.value)


def test_heads_that_config_leaves_out_can_be_given(edited):
    weights = formats.load(edited('hf_vit_cls', config={'num_attention_heads': None}), 4)
    assert weights.model == formats.load(GOLDEN / 'hf_vit_cls').model


def test_another_number_of_heads_contradicts():
    with pytest.raises(ValueError, match=r'num_heads=8, but its config\.json says num_attention_heads=4'):
        formats.load(GOLDEN / 'hf_vit_cls', 8)


def test_missing_foreign_and_misshapen_arrays_are_one_line(edited, tmp_path):
    def damaged(arrays):
        name = 'vit.encoder.layer.1.attention.attention.key.weight'
        return {**arrays, name: arrays[name][0]}

    with pytest.raises(
        ValueError, match=r'key.weight is \(32,\), which cannot be rearranged as \(h c\) d -> d h c'
    ):
        formats.load(edited('hf_vit_cls', damaged))
    shutil.rmtree(tmp_path / 'hf_vit_cls')
    with pytest.raises(ValueError, match=r"without 'layernorm\.weight': it is incomplete"):
        formats.load(
            edited('hf_vit_cls', lambda a: {k: v for k, v in a.items() if k != 'vit.layernorm.weight'})
        )
    shutil.rmtree(tmp_path / 'hf_vit_cls')
    folder = edited('hf_vit_cls', lambda arrays: {**arrays, 'vit.extra': np.zeros(3, np.float32)})
    with pytest.raises(ValueError, match=r'1 arrays have no place in the model \(vit.extra\)'):
        formats.load(folder)
    assert formats.load(folder, allow_unused=['vit.extra']).unused == {'vit.extra': 'allowed by name'}


def test_what_is_written_is_what_was_read(tmp_path):
    weights = formats.load(GOLDEN / 'hf_vivit_cls')
    names = hugging_face.save(tmp_path / 'new', weights, (4, 32, 32, 3))
    assert {path.name for path in (tmp_path / 'new').iterdir()} == set(names)
    assert len({path.stat().st_mode for path in (tmp_path / 'new').iterdir()}) == 1
    found = load_file(tmp_path / 'new' / 'model.safetensors')
    expected = load_file(GOLDEN / 'hf_vivit_cls' / 'model.safetensors')
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    config = json.loads((GOLDEN / 'hf_vivit_cls' / 'config.json').read_text())
    del config['transformers_version']
    assert json.loads((tmp_path / 'new' / 'config.json').read_text()) == config


SETTINGS = {
    'attention': 'spatio_temporal',
    'num_layers': 1,
    'num_heads': 2,
    'width': 8,
    'mlp_dim': 12,
    'tubelet': (1, 4, 4),
}


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        (
            {'attention': 'factorised_encoder'},
            "model.attention='factorised_encoder', where .* 'spatio_temporal' only",
        ),
        ({'classifier': 'gap'}, "model.classifier='gap'"),
        ({'embedding': 'uniform_frame_sampling'}, "model.embedding='uniform_frame_sampling'"),
        ({'position_embedding': 'sinusoidal_3d'}, "model.position_embedding='sinusoidal_3d'"),
        ({'final_norm': False}, 'model.final_norm=False'),
        ({'representation_size': 4}, 'model.representation_size=4'),
        ({'num_classes': 0}, 'the model has no head'),
        ({'activation': 'geglu'}, "model.activation='geglu'"),
    ],
)
def test_a_model_without_a_counterpart_is_refused(tmp_path, changes, message):
    settings = {**SETTINGS, **changes}
    weights = formats.Weights({}, settings, settings.pop('num_classes', 3), 'scenic', 'FILE', None, {}, {})
    with pytest.raises(ValueError, match=f'^FILE: {message}'):
        hugging_face.save(tmp_path / 'new', weights, (2, 8, 8, 3))
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('clip', [(4, 8, 8, 3), (5, 9, 14, 3)])
def test_transformers_loads_every_parameter(tmp_path, random_params, quick_jit, clip):
    torch = pytest.importorskip('torch', reason='compares with PyTorch, which is not installed')
    transformers = pytest.importorskip(
        'transformers', reason='compares with transformers, which is not installed'
    )
    transformers.utils.logging.disable_progress_bar()
    settings = {
        **SETTINGS,
        'tubelet': (2, 4, 4),
        'remainder': 'crop',
        'activation': 'gelu_exact',
        'norm_epsilon': 1e-3,
    }
    model = create_model(5, **settings)
    video = np.random.default_rng(1).uniform(-1, 1, (2, *clip)).astype(np.float32)
    params = random_params(model, video)
    names = ('a', 'b', 'b', 'd', 'e')
    weights = formats.Weights(params, settings, 5, 'scenic', 'FILE', None, {}, {}, class_names=names)
    hugging_face.save(tmp_path, weights, clip)
    theirs, told = transformers.VivitForVideoClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(told.values()), told
    assert theirs.config.id2label == dict(enumerate(names))
    assert theirs.config.label2id == {'a': 0, 'b': 1, 'd': 3, 'e': 4}
    pixels = torch.from_numpy(np.moveaxis(video, -1, -3).copy())
    with torch.no_grad():
        expected = theirs(pixel_values=pixels).logits.numpy()
    found, _ = run(weights, video, quick_jit)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_processor_that_is_written_gives_our_range(tmp_path):
    pytest.importorskip('torch', reason='compares with PyTorch, which is not installed')
    transformers = pytest.importorskip(
        'transformers', reason='compares with transformers, which is not installed'
    )
    weights = formats.load(GOLDEN / 'hf_vivit_cls')
    hugging_face.save(tmp_path, weights, (4, 32, 32, 3), short_side=40)
    with np.load(GOLDEN / 'preprocess_hf.npz') as file:
        video, expected = file['video'], file['nonorm']
    processor = transformers.VivitImageProcessor.from_pretrained(tmp_path)
    found = processor(list(video), return_tensors='np')['pixel_values']
    np.testing.assert_array_equal(found, expected)
    white = processor([np.full((60, 90, 3), 255, np.uint8)], return_tensors='np')['pixel_values']
    black = processor([np.zeros((60, 90, 3), np.uint8)], return_tensors='np')['pixel_values']
    np.testing.assert_allclose(
        [black.min(), black.max(), white.min(), white.max()], [-1, -1, 1, 1], atol=1e-6
    )
