"""From a file of weights to a trained model, by the commands that people type."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from conftest import load_tool

import tiny
from vivit_jax import checkpoint, formats, init_from, main, train
from vivit_jax import config as config_module
from vivit_jax.formats import own
from vivit_jax.formats.weights import flat
from vivit_jax.models.vivit import create_model

ROOT = pathlib.Path(__file__).parent.parent
FORMATS = ROOT / 'tests' / 'golden' / 'formats'
VIT = FORMATS / 'vit_npz_head' / 'ckpt.npz'
TIMM = FORMATS / 'timm_vit_token'

# Moving digits at the size of the recorded ViTs: patches of 8 x 8 of 32 x 32 pixels, width 32.
SETTINGS = tiny.SETTINGS | {
    'model.width': '32',
    'model.mlp_dim': '64',
    'model.num_heads': '4',
    'model.num_layers': '2',
    'model.classifier': 'token',
    'training.steps': '4',
    'training.ema_decay': '0.5',
    'evaluation.every_steps': '4',
}


@pytest.fixture(scope='module')
def convert_vit():
    return load_tool('convert_vit')


def options(**changes):
    return [f'--config={tiny.DIGITS}', *tiny.options(SETTINGS | changes)]


def converted(convert_vit, path, folder, **changes):
    assert convert_vit.main([str(path), *options(**changes), f'--output={folder}']) == 0
    return folder


def test_a_vit_is_converted_and_training_starts_from_it(tmp_path, convert_vit, capsys):
    folder = converted(convert_vit, VIT, tmp_path / 'start')
    told = capsys.readouterr().out
    assert 'summed and inflated' in told
    assert 'model.activation' in told
    account = json.loads((folder / 'conversion.json').read_text())
    assert account['parameters']['cls_SpatialTransformer']['action'] == 'copied'
    assert account['unused'] == {
        'head/kernel': {'shape': [32, 7], 'reason': 'of the image classes'},
        'head/bias': {'shape': [7], 'reason': 'of the image classes'},
    }
    weights = formats.load(folder)
    image = flat(formats.load(VIT).params)
    for name, array in flat(weights.params).items():
        if name.startswith('SpatialTransformer/'):
            np.testing.assert_array_equal(array, image[name.replace('Spatial', '')], err_msg=name)
    assert weights.notes[0].startswith(f'converted from vit_npz {VIT}: of 60 parameter arrays')
    start = {'init_from.path': str(folder), 'optimizer.learning_rate': '0.0', 'optimizer.weight_decay': '0.0'}
    workdir = tmp_path / 'run'
    assert main.main([*options(**start), f'--workdir={workdir}']) == 0
    told = capsys.readouterr().out
    assert f'starting from vivit_jax {folder}/checkpoints/0: of 60 parameter arrays 60 copied' in told
    assert f'converted from vit_npz {VIT}' in told
    # With a learning rate of zero the run ends where it began; the average of the parameters but for its rounding.
    for item, tolerance in (('params', 0.0), ('ema', 1e-6)):
        ended = flat(checkpoint.read_arrays(workdir / 'checkpoints' / '4' / item))
        for name, array in flat(weights.params).items():
            np.testing.assert_allclose(ended[name], array, rtol=tolerance, atol=tolerance, err_msg=name)


def test_a_file_needs_no_conversion_first(tmp_path, convert_vit):
    """What the run starts from is what the converter writes, for the same seed."""
    folder = converted(convert_vit, VIT, tmp_path / 'start')
    config = config_module.load(tiny.DIGITS, SETTINGS | {'init_from.path': str(VIT)})
    config, weights = init_from.prepare(config, tmp_path / 'run')
    model = create_model(8, **config.model)
    fresh = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 16, 32, 32, 1), np.float32))['params']
    params, _ = init_from.initialise(config, fresh, weights)
    for name, array in flat(formats.load(folder).params).items():
        np.testing.assert_allclose(flat(params)[name], array, atol=1e-7, err_msg=name)


def test_activation_and_epsilon_come_with_the_weights(tmp_path, capsys):
    """A run from timm weights computes with their activation, is gone on with, and is evaluated with it."""
    start = {'init_from.path': str(TIMM), 'init_from.num_heads': '4'}
    workdir = tmp_path / 'run'
    assert main.main([*options(**start), f'--workdir={workdir}']) == 0
    told = capsys.readouterr().out
    assert "with the weights come model.activation='gelu_exact', model.norm_epsilon=1e-06" in told
    resolved = json.loads((workdir / 'config.json').read_text())
    assert resolved['model']['activation'] == 'gelu_exact'
    assert formats.load(workdir).model['activation'] == 'gelu_exact'
    # The same command: its own checkpoint wins over the weights, and says so.
    assert main.main([*options(**start), f'--workdir={workdir}']) == 0
    told = capsys.readouterr().out
    assert 'already trained to step 4' in told
    assert f"its own checkpoint, not init_from.path='{TIMM}', where it began" in told
    assert main.main([*options(), f'--workdir={workdir}', '--mode=eval']) == 0


def test_going_on_from_a_checkpoint_needs_the_weights_no_more(tmp_path, capsys):
    """Stopped in the middle, with the file gone: the run goes on as if nothing had happened."""
    file = tmp_path / 'vit.npz'
    file.write_bytes(VIT.read_bytes())
    changes = {'init_from.path': str(file), 'checkpoint.every_steps': '2', 'checkpoint.keep': '9'}
    whole = config_module.load(tiny.DIGITS, SETTINGS | changes)
    train.train(whole, tmp_path / 'whole')
    train.train(whole, tmp_path / 'halved')
    shutil.rmtree(tmp_path / 'halved' / 'checkpoints' / '4')
    file.unlink()
    train.train(whole, tmp_path / 'halved')
    assert 'going on from step 2' in capsys.readouterr().out
    one, other = (flat(formats.load(tmp_path / name).params) for name in ('whole', 'halved'))
    for name, array in one.items():
        np.testing.assert_array_equal(other[name], array, err_msg=name)


def test_converted_weights_are_evaluated_but_not_gone_on_with(tmp_path, convert_vit, capsys):
    folder = converted(convert_vit, VIT, tmp_path / 'start')
    command = [f'--config={folder / "config.json"}', f'--workdir={folder}']
    assert main.main([*command, '--mode=eval']) == 0
    report = json.loads((folder / 'eval.json').read_text())
    assert report['test']['count'] == 20
    capsys.readouterr()
    assert main.main([*options(), f'--workdir={folder}']) == 2
    assert (
        f'start from them with --config.init_from.path={folder} and another --workdir'
        in capsys.readouterr().err
    )
    assert convert_vit.main([str(VIT), *options(), f'--output={folder}']) == 2
    assert 'holds checkpoints already: choose another folder' in capsys.readouterr().err


def test_without_a_config_weights_stay_the_model_that_they_are(tmp_path, convert_vit, capsys):
    assert convert_vit.main([str(VIT), f'--output={tmp_path / "vit"}']) == 0
    told = capsys.readouterr().out
    assert 'copied  Transformer/encoderblock_*/MlpBlock_0/Dense_0/kernel' in told
    there, here = formats.load(VIT), formats.load(tmp_path / 'vit')
    jax.tree.map(np.testing.assert_array_equal, there.params, here.params)
    assert here.num_classes == there.num_classes == 7
    assert here.grid == there.grid == (1, 4, 4)
    io = np.load(VIT.parent / 'io.npz')
    logits, _ = create_model(here.num_classes, **here.model).apply(
        {'params': here.params}, jax.numpy.asarray(io['image'])[:, None]
    )
    np.testing.assert_allclose(logits, io['logits'], atol=1e-5)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'init_from.path': 'nowhere.npz'}, "init_from.path='nowhere.npz': nowhere.npz: does not exist"),
        ({'init_from.path': tiny.DIGITS}, 'is no file of weights: it seems to be text'),
        ({'init_from.format': 'timm'}, 'is vit_npz, not timm'),
        ({'init_from.format': 'keras'}, "init_from.format='keras': choose one of auto, vivit_jax"),
        ({'init_from.kernel': 'inflate'}, "init_from.kernel='inflate': choose one of central_frame"),
        (
            {'init_from.temporal_attention': 'off'},
            "init_from.temporal_attention='off': choose one of zero_output",
        ),
        ({'init_from.num_heads': '-1'}, 'init_from.num_heads=-1: must be at least 0'),
        ({'init_from.fresh': 'head/*'}, "fresh='head/*' matches no parameter"),
        ({'model.num_layers': '3'}, 'num_layers is 2 in the file and 3 in the model'),
        ({'model.width': '64'}, 'width is 32 in the file and 64 in the model'),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, capsys, changes, message):
    changes = {'init_from.path': str(VIT)} | changes
    assert main.main([*options(**changes), f'--workdir={tmp_path / "run"}']) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count('\n') == 1


def test_fresh_patterns_and_the_average_kernel(tmp_path, convert_vit):
    changes = {'init_from.fresh': '*/pos_embedding, cls*', 'init_from.kernel': 'average'}
    folder = converted(convert_vit, VIT, tmp_path / 'start', **changes)
    parameters = json.loads((folder / 'conversion.json').read_text())['parameters']
    assert parameters['SpatialTransformer/posembed_input/pos_embedding']['note'] == 'as asked'
    assert parameters['cls_SpatialTransformer']['action'] == 'fresh'
    kernel = flat(formats.load(folder).params)['embedding/kernel']
    image = flat(formats.load(VIT).params)['embedding/kernel'].sum(3, keepdims=True)
    np.testing.assert_allclose(kernel, np.repeat(image, 4, axis=0) / 4, atol=1e-7)


def test_weights_start_a_model_that_is_split_over_devices(tmp_path):
    changes = {'init_from.path': str(VIT), 'optimizer.learning_rate': '0.0', 'optimizer.weight_decay': '0.0'}
    ended = []
    for fsdp in ('1', '4'):
        config = config_module.load(tiny.DIGITS, SETTINGS | changes | {'sharding.fsdp': fsdp})
        train.train(config, tmp_path / fsdp)
        ended.append(flat(formats.load(tmp_path / fsdp).params))
    for name, array in ended[0].items():
        np.testing.assert_array_equal(ended[1][name], array, err_msg=name)


def test_own_checkpoints_are_read_as_weights(tmp_path):
    config = config_module.load(tiny.DIGITS, SETTINGS | {'training.ema_decay': '0.0'})
    train.train(config, tmp_path)
    step = tmp_path / 'checkpoints' / '4'
    for path in (tmp_path, tmp_path / 'checkpoints', step):
        weights = formats.load(path)
        assert (weights.kind, weights.grid, weights.num_classes) == ('vivit_jax', (4, 4, 4), 8)
        assert weights.path == str(step)
        assert weights.class_names[0] == 'right'
    assert not own.is_checkpoint(tmp_path / 'runs')
    (step / 'meta' / 'metadata').write_text('{')
    with pytest.raises(ValueError, match='the checkpoint is damaged'):
        formats.load(step)


def test_a_dry_run_starts_from_the_weights_too(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    start = {'init_from.path': str(TIMM), 'init_from.num_heads': '4'}
    assert main.main([*options(**start), '--mode=dry_run']) == 0
    told = capsys.readouterr().out
    assert f'starting from timm {TIMM}' in told
    assert "model.activation='gelu_exact'" in told
    assert not list(tmp_path.iterdir())
    for path, message in (
        ('nowhere', 'nowhere: does not exist'),
        (str(VIT), 'width is 32 in the file and 64'),
    ):
        wrong = {'init_from.path': path, 'model.width': '64'}
        assert main.main([*options(**wrong), '--mode=dry_run']) == 2
        assert message in capsys.readouterr().err


def test_the_converter_says_how_to_go_on(tmp_path, convert_vit, capsys):
    converted(convert_vit, VIT, tmp_path / 'start')
    last = capsys.readouterr().out.splitlines()[-1]
    assert '--config.model.width=32' in last
    assert f'--config.init_from.path={tmp_path / "start"}' in last
    assert convert_vit.main([str(VIT), f'--output={tmp_path / "as_is"}', '--config.model.width=5']) == 2
    assert (
        '--config.model.width is for a model to put the weights into: give --config=FILE'
        in capsys.readouterr().err
    )


def test_weights_of_another_model_with_the_same_parameters_say_so(tmp_path):
    """Models 1 and 4 cannot be told apart by their arrays, but a checkpoint's configuration tells."""
    first = {'model.attention': 'spatio_temporal', 'model.classifier': 'gap', 'training.steps': '4'}
    train.train(config_module.load(tiny.DIGITS, SETTINGS | first), tmp_path / 'one')
    start = first | {'model.attention': 'factorised_dot_product', 'init_from.path': str(tmp_path / 'one')}
    config = config_module.load(tiny.DIGITS, SETTINGS | start)
    weights = init_from.read(config)
    _, account = init_from.initialise(config, weights.params, weights)
    assert account.notes[-1] == (
        'the weights are of spatio_temporal, which has the parameters of factorised_dot_product and computes '
        'something else'
    )
    same = config_module.load(tiny.DIGITS, SETTINGS | first | {'init_from.path': str(tmp_path / 'one')})
    assert not init_from.initialise(same, weights.params, weights)[1].notes
