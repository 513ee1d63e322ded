"""The PyTorch model against ours: outputs, gradients, names, the way back; and the command that writes it."""

import dataclasses
import json
import pathlib
import re
import runpy
import sys

import jax
import numpy as np
import pytest
from conftest import load_tool
from safetensors.numpy import load_file

from vivit_jax import formats
from vivit_jax.config import default_config
from vivit_jax.formats import own, torch_names, vivit_torch
from vivit_jax.formats.weights import flat
from vivit_jax.models.embed import POSITION_EMBEDDINGS
from vivit_jax.models.encoder import ACTIVATIONS
from vivit_jax.models.vivit import ATTENTIONS, CLASSIFIERS, create_model

torch = pytest.importorskip('torch', reason='compares with PyTorch, which is not installed')

ROOT = pathlib.Path(__file__).parent.parent
BASE = {
    'num_layers': 2,
    'num_heads': 4,
    'width': 24,
    'mlp_dim': 20,
    'tubelet': (2, 4, 4),
    'temporal_layers': 1,
}
CLIP = (4, 8, 12, 3)

CASES = {
    'spatio_temporal': {'attention': 'spatio_temporal'},
    'spatio_temporal_gmp': {
        'attention': 'spatio_temporal',
        'classifier': 'gmp',
        'representation_size': 10,
        'position_embedding': 'sinusoidal_3d',
        'activation': 'gelu_exact',
        'norm_epsilon': 1e-3,
    },
    'factorised_encoder': {'attention': 'factorised_encoder'},
    'factorised_encoder_gsp': {
        'attention': 'factorised_encoder',
        'classifier': 'gsp',
        'position_embedding': 'sinusoidal_1d',
        'final_norm': False,
    },
    'averaged_frames': {'attention': 'factorised_encoder', 'temporal_layers': 0, 'classifier': 'gmp'},
    'space_time': {'attention': 'factorised_self_attention', 'classifier': 'gap'},
    'time_space': {
        'attention': 'factorised_self_attention',
        'attention_order': 'time_space',
        'classifier': 'first_token',
        'position_embedding': 'none',
    },
    'factorised_dot_product': {'attention': 'factorised_dot_product', 'classifier': 'gap'},
    'divided': {
        'attention': 'divided',
        'position_embedding': 'learned_space_time',
        'activation': 'gelu_exact',
    },
    'divided_gap': {'attention': 'divided', 'classifier': 'gap'},
    'space_only': {'attention': 'space_only', 'classifier': 'gap', 'activation': 'geglu'},
    'axial': {'attention': 'axial', 'classifier': 'gap', 'position_embedding': 'learned_space_time'},
    'local_global': {'attention': 'local_global', 'classifier': 'gmp', 'clip': (8, 8, 16, 3)},
    'factorised_encoder_space_time': {
        'attention': 'factorised_encoder',
        'position_embedding': 'learned_space_time',
        'activation': 'geglu',
    },
    'sampled_frames': {
        'attention': 'factorised_dot_product',
        'classifier': 'gap',
        'embedding': 'uniform_frame_sampling',
        'tubelet': (1, 4, 4),
        'sampled_frames': 3,
        'position_embedding': 'sinusoidal_2d',
    },
    'cropped': {
        'attention': 'factorised_encoder',
        'position_embedding': 'sinusoidal_3d',  # with a class token, which has no place
        'remainder': 'crop',
        'num_classes': 0,
        'clip': (5, 9, 14, 1),
    },
}


def weights_of(case, random_params):
    """A model of random parameters, and clips for it."""
    settings = {**BASE, **CASES[case]}
    num_classes = settings.pop('num_classes', 5)
    clip = settings.pop('clip', CLIP)
    video = np.random.default_rng(1).uniform(-1, 1, (2, *clip)).astype(np.float32)
    model = create_model(num_classes, **settings)
    params = random_params(model, video)
    names = tuple(f'class {number}' for number in range(num_classes))
    return formats.Weights(
        params, settings, num_classes, 'scenic', 'FILE', None, {}, {}, class_names=names
    ), video


def loaded(folder):
    """What the folder's own file makes of it."""
    return runpy.run_path(str(folder / 'vivit_torch.py'))['load'](folder)


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_the_cases_leave_no_choice_out():
    used = []
    for case in CASES.values():
        settings = {'num_classes': 5, **BASE, **case}
        settings.pop('clip', None)
        used.append(create_model(**settings))
    assert {model.attention for model in used} == set(ATTENTIONS)
    assert {model.classifier for model in used} == set(CLASSIFIERS)
    assert {model.position_embedding for model in used} == set(POSITION_EMBEDDINGS)
    assert {model.activation for model in used} == set(ACTIVATIONS)


@pytest.mark.parametrize('case', CASES)
def test_outputs_and_gradients_are_ours_and_the_way_back_is_exact(case, tmp_path, random_params, quick_jit):
    weights, video = weights_of(case, random_params)
    vivit_torch.save(tmp_path, weights, video.shape[1:])
    theirs = loaded(tmp_path)
    assert not theirs.training
    model = create_model(weights.num_classes, **weights.model)
    direction = np.random.default_rng(2).normal(size=(2, weights.num_classes or 24)).astype(np.float32)

    def along(params, video):
        logits, _ = model.apply({'params': params}, video)
        return (logits * direction).sum(), logits

    (_, logits), gradients = quick_jit(jax.value_and_grad(along, has_aux=True))(weights.params, video)
    found = theirs(torch.from_numpy(video))
    np.testing.assert_allclose(found.detach(), logits, atol=1e-5 * max(1, np.abs(logits).max()))

    (found * torch.from_numpy(direction)).sum().backward()
    gradients = flat(jax.device_get(gradients))
    largest = max(np.abs(array).max() for array in gradients.values())
    parameters = dict(theirs.named_parameters())
    pairs = torch_names.pairs(model)
    assert {pair.theirs for pair in pairs} == set(parameters) == set(theirs.state_dict())
    for pair in pairs:
        found = parameters[pair.theirs].grad.numpy()
        np.testing.assert_allclose(found, pair.to_theirs(gradients[pair.ours]), atol=1e-5 * max(1, largest))

    back = formats.load(tmp_path)
    assert (back.kind, back.num_classes, back.class_names) == (
        'vivit_jax',
        weights.num_classes,
        weights.class_names,
    )
    assert create_model(back.num_classes, **back.model) == model
    assert_equal(flat(back.params), flat(weights.params))


@pytest.mark.parametrize(
    'case', ['spatio_temporal', 'factorised_encoder', 'space_time', 'factorised_dot_product', 'divided']
)
def test_what_pytorch_trained_comes_back(case, tmp_path, random_params, quick_jit):
    weights, video = weights_of(case, random_params)
    weights.model.update(dropout_rate=0.1, attention_dropout_rate=0.1, drop_path_rate=0.2)
    vivit_torch.save(tmp_path, weights, CLIP)
    theirs = loaded(tmp_path).train()
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        logits = theirs(torch.from_numpy(video))
        torch.nn.functional.cross_entropy(logits, torch.tensor([1, 4])).backward()
        optimizer.step()
    from safetensors.torch import save_file

    save_file(theirs.state_dict(), tmp_path / 'model.safetensors')
    back = formats.load(tmp_path)
    before = flat(weights.params)
    for name, array in flat(back.params).items():
        # A key's bias changes no softmax, so nothing moves it.
        assert np.any(array != before[name]) or name.endswith('key/bias'), name
    model = create_model(back.num_classes, **back.model)
    expected, _ = quick_jit(lambda params, video: model.apply({'params': params}, video))(back.params, video)
    with torch.no_grad():
        found = theirs.eval()(torch.from_numpy(video)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    vivit_torch.save(tmp_path / 'again', back, CLIP)
    assert_equal(
        load_file(tmp_path / 'again' / 'model.safetensors'),
        {name: tensor.numpy() for name, tensor in theirs.state_dict().items()},
    )


def test_names_are_those_of_hugging_face_encoder_by_encoder(tmp_path, random_params):
    weights, _ = weights_of('factorised_encoder', random_params)
    vivit_torch.save(tmp_path, weights, CLIP)
    shapes = {name: array.shape for name, array in load_file(tmp_path / 'model.safetensors').items()}
    assert shapes['spatial.embeddings.patch_embeddings.projection.weight'] == (24, 3, 2, 4, 4)
    assert shapes['spatial.embeddings.position_embeddings'] == (1, 7, 24)
    assert shapes['temporal.embeddings.position_embeddings'] == (1, 3, 24)
    assert shapes['spatial.encoder.layer.1.attention.attention.query.weight'] == (24, 24)
    assert shapes['temporal.encoder.layer.0.intermediate.dense.weight'] == (20, 24)
    assert shapes['classifier.weight'] == (5, 24)
    assert len(shapes) == 2 + 3 * 16 + 2 * 4 + 2
    weights, _ = weights_of('space_time', random_params)
    vivit_torch.save(tmp_path, weights, CLIP)
    names = set(load_file(tmp_path / 'model.safetensors'))
    assert {
        f'vivit.encoder.layer.0.{name}.weight'
        for name in ('layernorm_space', 'attention_time.attention.key', 'attention_space.output.dense')
    } <= names


def test_model_1_is_hugging_faces_array_by_array(tmp_path):
    folder = ROOT / 'tests' / 'golden' / 'formats' / 'hf_vivit_cls'
    vivit_torch.save(tmp_path, formats.load(folder), (4, 32, 32, 3))
    assert_equal(load_file(tmp_path / 'model.safetensors'), load_file(folder / 'model.safetensors'))
    with np.load(folder / 'io.npz') as file, torch.no_grad():
        found = loaded(tmp_path)(torch.from_numpy(file['pixel_values']).movedim(2, -1))
        np.testing.assert_allclose(found.numpy(), file['logits'], atol=1e-5)


def test_dropping_a_path_scales_the_others_up(tmp_path, random_params):
    weights, _ = weights_of('spatio_temporal', random_params)
    weights.model.update(drop_path_rate=0.5)
    vivit_torch.save(tmp_path, weights, CLIP)
    blocks = loaded(tmp_path).vivit.encoder['layer']
    assert [block.drop_path_rate for block in blocks] == [0.25, 0.5]
    torch.manual_seed(0)
    branch = torch.ones(4000, 2, 3)
    assert torch.equal(blocks[0]._drop_path(branch), branch)
    dropped = blocks[0].train()._drop_path(branch)
    assert torch.equal(dropped.unique(), torch.tensor([0, 1 / 0.75]))
    # Whole examples, a quarter of them: four standard deviations of 4,000 draws.
    assert torch.equal(dropped.amin(dim=(1, 2)), dropped.amax(dim=(1, 2)))
    assert abs(dropped[:, 0, 0].eq(0).float().mean() - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5


def test_dropout_is_where_ours_is_and_only_while_training(tmp_path, random_params, monkeypatch):
    weights, video = weights_of('space_time', random_params)
    weights.model.update(dropout_rate=0.1, attention_dropout_rate=0.2)
    vivit_torch.save(tmp_path, weights, CLIP)
    model = loaded(tmp_path)
    calls, rates = [], []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            assert module.p == 0.1
            module.register_forward_hook(lambda *_: calls.append(1))
    attend = torch.nn.functional.scaled_dot_product_attention

    def recorded(*args, dropout_p):
        rates.append(dropout_p)
        return attend(*args, dropout_p=dropout_p)

    monkeypatch.setattr(torch.nn.functional, 'scaled_dot_product_attention', recorded)
    with torch.no_grad():
        model.train()(torch.from_numpy(video))
    # The tokens; in each block both attentions, the hidden layer and the output of the MLP.
    assert len(calls) == 1 + 2 * (2 + 2)
    assert rates == [0.2] * 4
    with torch.no_grad():
        once, again = (model.eval()(torch.from_numpy(video)) for _ in range(2))
    assert torch.equal(once, again)
    assert rates[4:] == [0.0] * 8


def test_clips_of_other_sizes_are_refused_by_the_model(tmp_path, random_params):
    weights, _ = weights_of('sampled_frames', random_params)
    vivit_torch.save(tmp_path, weights, CLIP)
    model = loaded(tmp_path)
    assert model(torch.zeros(1, 32, 8, 12, 3)).shape == (1, 5)
    with pytest.raises(ValueError, match='clips have 2 frames, but the model samples 3'):
        model(torch.zeros(1, 2, 8, 12, 3))
    with pytest.raises(ValueError, match=r'do not divide clips of \(3, 9, 12\)'):
        model(torch.zeros(1, 4, 9, 12, 3))
    with pytest.raises(ValueError, match=r'have \(3, 3, 3\) tubelets, but the model is for \(3, 2, 3\)'):
        model(torch.zeros(1, 4, 12, 12, 3))


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'clip': None}, 'its config.json lacks clip'),
        ({'num_classes': 4}, r'output_projection/bias is \(5,\) in the file and \(4,\) in the model'),
        ({'model': {'wdith': 3}}, "is of no model here: .*unexpected keyword argument 'wdith'"),
        ({'model': {**BASE, 'num_layers': 3}}, "without 'spatial.encoder.layer.2.layernorm_before.weight'"),
        ({'model': {**BASE, 'num_layers': 1}}, 'have no place in the model'),
        ({'clip': [4, 9, 12, 3]}, 'does not divide the clip'),
    ],
)
def test_a_config_that_contradicts_the_arrays_is_one_line(tmp_path, random_params, changes, message):
    weights, _ = weights_of('factorised_encoder', random_params)
    vivit_torch.save(tmp_path, weights, CLIP)
    config = {**json.loads((tmp_path / 'config.json').read_text()), **changes}
    kept = {key: value for key, value in config.items() if value is not None}
    (tmp_path / 'config.json').write_text(json.dumps(kept))
    with pytest.raises(ValueError, match=message) as error:
        formats.load(tmp_path)
    assert '\n' not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_another_number_of_heads_contradicts(tmp_path, random_params):
    vivit_torch.save(tmp_path, weights_of('factorised_encoder', random_params)[0], CLIP)
    with pytest.raises(ValueError, match=r'num_heads=3, but its config\.json says 4'):
        formats.load(tmp_path, 3)


@pytest.fixture(scope='module')
def tool():
    """The command's module."""
    return load_tool('convert_to_pytorch')


@pytest.fixture
def checkpoint(tmp_path, random_params):
    """Writes a checkpoint of this package of one of the cases."""

    def write(case):
        weights, video = weights_of(case, random_params)
        config = default_config()
        config.model.update(weights.model)
        config.data.frames, config.data.crop, config.data.channels = (
            video.shape[1],
            video.shape[2:4],
            video.shape[4],
        )
        config.data.short_side = 16
        own.save(tmp_path / 'run', weights.params, config.to_dict(), list(weights.class_names))
        return str(tmp_path / 'run'), weights

    return write


def test_the_command_writes_what_fits_and_checks_it(tool, checkpoint, tmp_path, capsys):
    run, weights = checkpoint('sampled_frames')
    output = tmp_path / 'out'
    assert tool.main([run, f'--output={output}']) == 0
    told = capsys.readouterr().out
    assert "format vivit_torch: model.attention='factorised_dot_product'" in told
    assert f'written to {output}: config.json, model.safetensors, vivit_torch.py' in told
    assert 'checked: largest difference ' in told
    # All frames of a clip, of which the model samples some.
    assert json.loads((output / 'config.json').read_text())['clip'] == [4, 8, 12, 3]
    assert_equal(flat(formats.load(output).params), flat(weights.params))
    # The lines that it prints work, from anywhere.
    lines = told[told.index('import sys') : told.index('\n\nchecked')]
    scope = {}
    exec(lines, scope)
    sys.path.remove(str(output))
    sys.modules.pop('vivit_torch')
    assert scope['model'](torch.zeros(1, *CLIP)).shape == (1, 5)
    # What it wrote itself it replaces.
    assert tool.main([run, f'--output={output}', '--no-check']) == 0
    assert 'checked' not in capsys.readouterr().out


def test_the_command_writes_hugging_faces_format_where_it_fits(tool, checkpoint, tmp_path, capsys):
    pytest.importorskip('transformers', reason='compares with transformers, which is not installed')
    run, weights = checkpoint('spatio_temporal')
    output = tmp_path / 'out'
    assert tool.main([run, f'--output={output}']) == 0
    told = capsys.readouterr().out
    assert 'checked: largest difference ' in told
    assert 'needs transformers 5' in told  # the frames are not square
    processor = json.loads((output / 'preprocessor_config.json').read_text())
    assert processor['size'] == {'shortest_edge': 16}
    assert processor['crop_size'] == {'height': 8, 'width': 12}
    assert_equal(flat(formats.load(output).params), flat(weights.params))
    scope = {}
    exec(told[told.index('from transformers') : told.index('\n\nchecked')], scope)
    assert scope['model'].config.id2label[4] == 'class 4'


def test_the_command_fails_where_the_outputs_differ(tool, checkpoint, tmp_path, capsys, monkeypatch):
    run, _ = checkpoint('factorised_encoder')
    monkeypatch.setattr(tool, 'vivit_torch_model', lambda folder, head: lambda video: np.float32(np.nan))
    assert tool.main([run, f'--output={tmp_path / "out"}']) == 1
    assert 'PyTorch computes something else: largest difference nan' in capsys.readouterr().err
    monkeypatch.undo()
    true_model = tool.vivit_torch_model
    monkeypatch.setattr(
        tool,
        'vivit_torch_model',
        lambda folder, head: lambda video: true_model(folder, head)(video) + np.float32(2e-3),
    )
    assert tool.main([run, f'--output={tmp_path / "out"}']) == 1


@pytest.mark.parametrize('form', ['vivit_torch', 'hugging_face'])
def test_a_head_of_zeros_hides_no_difference(tool, checkpoint, tmp_path, capsys, monkeypatch, form):
    """An untrained head gives zeros whatever the encoder does: a random one stands in for it."""
    if form == 'hugging_face':
        pytest.importorskip('transformers', reason='compares with transformers, which is not installed')
    run, weights = checkpoint('spatio_temporal')
    head = jax.tree.map(np.zeros_like, weights.params['output_projection'])
    params = {**weights.params, 'output_projection': head}
    fresh = dataclasses.replace(weights, params=params, path=formats.load(run).path)
    monkeypatch.setattr(tool, 'load', lambda path, num_heads: fresh)
    command = [run, f'--output={tmp_path / "out"}', f'--format={form}']
    assert tool.main(command) == 0
    assert 'of outputs of a random head in place of zeros up to' in capsys.readouterr().out
    embedding = {**weights.params['embedding'], 'kernel': -weights.params['embedding']['kernel']}
    damaged = dataclasses.replace(fresh, params={**fresh.params, 'embedding': embedding})
    true_write = tool.write
    monkeypatch.setattr(
        tool, 'write', lambda chosen, folder, _, *rest: true_write(chosen, folder, damaged, *rest)
    )
    assert tool.main(command) == 1
    assert 'PyTorch computes something else' in capsys.readouterr().err


def test_without_pytorch_the_command_writes_and_says_that_it_did_not_check(
    tool, checkpoint, tmp_path, capsys, monkeypatch
):
    run, weights = checkpoint('factorised_encoder')
    monkeypatch.setitem(sys.modules, 'torch', None)
    assert tool.main([run, f'--output={tmp_path / "out"}']) == 0
    assert "not checked: torch not installed: pip install 'vivit_jax[torch]'" in capsys.readouterr().out
    assert_equal(flat(formats.load(tmp_path / 'out').params), flat(weights.params))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            ['--format=hugging_face', '--output=out'],
            r"--format=hugging_face does not fit .*: model.attention='factorised_encoder', .*--format=vivit_torch",
        ),
        (['--output=full'], r'--output=full holds other files \(notes.txt\)'),
        (['--output=run'], r'--output=run is where the weights come from'),
        (['--output=full/notes.txt'], 'is a file: give a folder'),
        (
            ['--output=out', '--clip=4x16x12'],
            r'is not for clips of \(4, 16, 12, 3\) \(t, h, w, c\): .*pos_embedding',
        ),
        (['--output=out', '--clip=4x9x12'], 'does not divide the clip'),
    ],
)
def test_mistakes_are_one_line(tool, checkpoint, tmp_path, capsys, monkeypatch, options, message):
    checkpoint('factorised_encoder')
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'notes.txt').write_text('mine')
    assert tool.main(['run', *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: ')
    assert error.count('\n') == 1
    assert re.search(message, error), error
    assert not (tmp_path / 'out').exists()


def test_a_file_that_does_not_tell_the_clip_is_asked_for_it(tool, random_params):
    weights, _ = weights_of('time_space', random_params)
    with pytest.raises(
        ValueError, match='FILE: does not tell the size of its clips: give it, as --clip=32x224x224'
    ):
        tool.clip_of(weights, None)
    assert tool.clip_of(weights, (8, 16, 16)) == ((8, 16, 16, 3), None)


def test_misspelt_options_are_refused(tool, capsys):
    for wrong in (['--format=onnx'], ['--clip=4x8'], []):
        with pytest.raises(SystemExit) as error:
            tool.main(['run', *wrong])
        assert error.value.code == 2
    assert 'write frames, height and width as 32x224x224' in capsys.readouterr().err
