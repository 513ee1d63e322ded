"""StableHLO: what is written gives the model's logits, in batches of any size, and says all it takes to use it."""

import hashlib
import json
import pathlib
import re
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from conftest import load_tool

from videos import decode, write_video
from vivit_jax import create_model, export, formats
from vivit_jax.config import default_config
from vivit_jax.evaluate import to_float
from vivit_jax.formats import own, vivit_torch
from vivit_jax.formats.weights import RUNTIME

pytestmark = pytest.mark.usefixtures('optimised')

ROOT = pathlib.Path(__file__).parent.parent
SMALL = {
    'num_layers': 1,
    'temporal_layers': 1,
    'num_heads': 2,
    'width': 16,
    'mlp_dim': 16,
    'tubelet': (2, 16, 16),
}
CLIP = (4, 32, 32, 3)
NAMES = ('archery', 'bowling', 'cricket', 'dancing', 'éclair', 'fencing', 'golf')
MODELS = {
    'fe_token': {},
    'fdp_gap': {
        'attention': 'factorised_dot_product',
        'classifier': 'gap',
        'activation': 'gelu_exact',
        'position_embedding': 'sinusoidal_3d',
    },
    'bfloat16': {'attention': 'spatio_temporal', 'dtype': 'bfloat16'},
}


def metadata_for(model, **changes):
    values = {
        'class_names': NAMES,
        'heads': {'label': 7},
        'probabilities': 'softmax',
        'clip': CLIP,
        'stride': 2,
        'short': 'repeat_last',
        'short_side': 40,
        'crop': (32, 32),
        'temporal_views': 4,
        'spatial_views': 3,
        'average': 'logits',
        'model': export.model_settings(model),
        'source': 'here',
    }
    return export.Metadata(**{**values, **changes})


def clips(batch):
    return np.random.default_rng(batch).integers(0, 256, (batch, *CLIP), np.uint8)


def scaled(pixels):
    return (pixels / 127.5 - 1).astype(np.float32)


@pytest.fixture(scope='module')
def models(random_params):
    made = {name: create_model(7, **{**SMALL, **settings}) for name, settings in MODELS.items()}
    return {
        name: (model, random_params(model, np.zeros((1, *CLIP), np.float32))) for name, model in made.items()
    }


@pytest.fixture(scope='module')
def folder(models, tmp_path_factory):
    """The first model, exported; tests copy what they damage."""
    folder = tmp_path_factory.mktemp('exported')
    model, params = models['fe_token']
    export.save(folder, model, params, metadata_for(model))
    return folder


@pytest.mark.parametrize('name', MODELS)
def test_logits_are_the_models(name, models, tmp_path):
    model, params = models[name]
    export.save(tmp_path, model, params, metadata_for(model))
    program = export.load(tmp_path)
    # uint8 as evaluation takes it.
    apply = jax.jit(lambda params, video: model.apply({'params': params}, to_float(video))[0])
    for batch in (1, 3):
        for video in (clips(batch), scaled(clips(batch))):
            logits, expected = program(video), apply(params, video)
            assert logits.dtype == np.float32
            assert np.ptp(expected) > 0.1
            np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(program(jax.numpy.asarray(video)), logits)


def test_one_artifact_for_all_platforms_and_batches(models):
    model, params = models['fe_token']
    for pixels in ('float32', 'uint8'):
        exported = jax.export.deserialize(bytearray(export.stablehlo(model, params, CLIP, pixels=pixels)))
        assert exported.platforms == ('cpu', 'cuda', 'tpu')
        assert [str(size) for size in exported.in_avals[-1].shape] == ['b', '4', '32', '32', '3']
        assert exported.in_avals[-1].dtype == pixels
        assert [str(size) for size in exported.out_avals[0].shape] == ['b', '7']
        assert exported.disabled_safety_checks == ()
        # Nothing that only one kind of device could compute.
        assert not re.findall(r'custom_call @(?!shape_assertion)(\w+)', exported.mlir_module())


@pytest.mark.parametrize(
    'runtime',
    [
        {'attention_backend': 'cudnn', 'dtype': 'bfloat16'},
        {'attention_backend': 'flash'},
        {'attention_backend': 'blockwise', 'scan_layers': True, 'remat': 'attention'},
        {'scan_layers': False, 'remat': 'dots'},
    ],
)
def test_the_program_is_for_all_machines_however_this_one_runs_the_model(runtime, models):
    """The program is the plain model's, letter by letter; what it was trained with is not in its metadata."""
    _, params = models['fe_token']
    model = create_model(7, **SMALL, **runtime)
    plain = create_model(7, **SMALL, **RUNTIME, dtype=model.dtype)

    programs = []
    for one in (model, plain):  # from the same line, since programs tell where each operation comes from
        exported = jax.export.deserialize(bytearray(export.stablehlo(one, params, CLIP)))
        programs.append(exported.mlir_module())
    assert programs[0] == programs[1]
    assert export.model_settings(model) == export.model_settings(plain)


def test_jax_alone_runs_it(folder, models, tmp_path):
    """The three lines of the docstring, in a Python that knows neither Flax nor this package."""
    np.save(tmp_path / 'video.npy', scaled(clips(2)))
    lines = re.search(r'\n\n((?:    \w.*\n)+)\njax promises', export.__doc__)[1].replace('    ', '')
    assert lines.count('\n') == 2
    code = (
        'import sys, jax.export, numpy, safetensors.numpy\n'
        f'video = numpy.load({str(tmp_path / "video.npy")!r})\n{lines}'
        f'numpy.save({str(tmp_path / "logits.npy")!r}, logits)\n'
        "assert not {'flax', 'vivit_jax'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], cwd=folder, check=True, timeout=120)
    model, params = models['fe_token']
    expected = model.apply({'params': params}, jax.numpy.asarray(scaled(clips(2))))[0]
    np.testing.assert_allclose(np.load(tmp_path / 'logits.npy'), expected, rtol=0, atol=2e-6)


def test_metadata_tells_everything(folder):
    content = json.loads((folder / 'model.json').read_text(encoding='utf-8'))
    sizes = {file.name: file.stat().st_size for file in folder.iterdir() if file.name != 'model.json'}
    assert set(sizes) == {'model_float32.stablehlo', 'model_uint8.stablehlo', 'params.safetensors'}
    model = content.pop('model')
    assert content == {
        'class_names': list(NAMES),
        'heads': {'label': 7},
        'probabilities': 'softmax',
        'clip': [4, 32, 32, 3],
        'stride': 2,
        'short': 'repeat_last',
        'short_side': 40,
        'crop': [32, 32],
        'temporal_views': 4,
        'spatial_views': 3,
        'average': 'logits',
        'source': 'here',
        'scaling': 'float32 in [-1, 1]; uint8 p becomes p / 127.5 - 1, which model_uint8.stablehlo does itself',
        'platforms': ['cpu', 'cuda', 'tpu'],
        'jax_version': jax.__version__,
        'calling_convention_version': jax.export.maximum_supported_calling_convention_version,
        'files': sizes,
        'sha256': {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in sizes},
    }
    assert set(model) == {'num_classes', *default_config().model} - set(RUNTIME)
    assert create_model(**model) == create_model(7, **SMALL)
    loaded = export.load(folder).metadata
    assert (loaded.class_names, loaded.clip, loaded.stride, loaded.crop) == (NAMES, CLIP, 2, (32, 32))


def copied(folder, to):
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_what_cannot_be_loaded(folder, tmp_path):
    with pytest.raises(ValueError, match=r'nowhere: holds no exported model \(model.json'):
        export.load(tmp_path / 'nowhere')
    broken = copied(folder, tmp_path / 'short')
    program = broken / 'model_uint8.stablehlo'
    whole = program.read_bytes()
    program.write_bytes(whole[:1000])
    with pytest.raises(
        ValueError, match=rf'uint8.stablehlo: has 1000 bytes, but model.json tells of {len(whole)}'
    ):
        export.load(broken)
    program.write_bytes(bytes(len(whole)))
    with pytest.raises(ValueError, match=r'uint8.stablehlo: is damaged: its content is not what model.json'):
        export.load(broken)
    told = json.loads((broken / 'model.json').read_text(encoding='utf-8'))
    del told['sha256']  # as an earlier version wrote it
    (broken / 'model.json').write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r'uint8.stablehlo: is damaged, or of jax .*cannot read') as caught:
        export.load(broken)
    assert '\n' not in str(caught.value)
    program.write_bytes(whole)
    params = (broken / 'params.safetensors').read_bytes()
    (broken / 'params.safetensors').write_bytes(
        params.replace(b'output_projection/bias', b'output_projection/base')
    )
    with pytest.raises(ValueError, match=r'^1 parameters of .* are missing \(output_projection/bias\)$'):
        export.load(broken)
    (broken / 'params.safetensors').write_bytes(bytes(len(params)))
    with pytest.raises(ValueError, match=r'params.safetensors: is damaged \('):
        export.load(broken)
    (broken / 'params.safetensors').unlink()
    with pytest.raises(ValueError, match=r'params.safetensors: is missing, but'):
        export.load(broken)
    (broken / 'model.json').write_text('{"clip": [1, 2, 3, 4]}')
    with pytest.raises(
        ValueError, match=r'model.json: is of no exported model: it does not tell class_names, heads'
    ):
        export.load(broken)


def test_what_cannot_be_called(folder):
    program = export.load(folder)
    with pytest.raises(
        ValueError, match=r'^video of shape \(4, 32, 32, 3\): the model takes \(b, 4, 32, 32, 3\), axes'
    ):
        program(clips(1)[0])
    with pytest.raises(ValueError, match=r'^video of shape \(1, 3, 32, 32, 3\): the model takes \(b, 4, 32'):
        program(clips(1)[:, :3])
    with pytest.raises(ValueError, match=r'^video of shape \(0, 4, 32, 32, 3\): .*b at least 1$'):
        program(clips(1)[:0])
    with pytest.raises(ValueError, match=r'^video of int32: must be uint8, or floats in \[-1, 1\]$'):
        program(clips(1).astype(np.int32))
    np.testing.assert_array_equal(program(scaled(clips(1)).astype(np.float64)), program(scaled(clips(1))))


def test_what_cannot_be_saved(folder, models, tmp_path):
    model, params = models['fe_token']
    with pytest.raises(ValueError, match=r'holds an exported model already: choose another folder'):
        export.save(folder, model, params, metadata_for(model))
    with pytest.raises(
        ValueError, match=r'7 class names, the heads \{.noun.: 3, .verb.: 5\} and a model of 7 classes'
    ):
        metadata_for(model, heads={'noun': 3, 'verb': 5})
    with pytest.raises(ValueError, match=r"^pixels='int8': choose one of float32, uint8$"):
        export.stablehlo(model, params, CLIP, pixels='int8')
    with pytest.raises(ValueError, match=r'^clip \(32, 32, 3\): must be \(t, h, w, c\)'):
        export.stablehlo(model, params, CLIP[1:])
    with pytest.raises(
        ValueError, match=r'kernel is \(2, 16, 16, 3, 16\), but \(2, 16, 16, 1, 16\) of a model for clips'
    ):
        export.stablehlo(model, params, (4, 32, 32, 1))
    headless = create_model(0, **SMALL)
    with pytest.raises(ValueError, match=r'^2 parameters are none of a model .*output_projection'):
        export.save(tmp_path / 'new', headless, params, metadata_for(headless, class_names=(), heads={}))
    assert not (tmp_path / 'new').exists()


# --- the tools


@pytest.fixture(scope='module')
def tool():
    """Imports a program of tools/."""
    return load_tool


def config_for(model, **data):
    config = default_config()
    config.model.update(
        {name: value for name, value in export.model_settings(model).items() if name != 'num_classes'}
    )
    config.data.update(
        {'frames': 4, 'stride': 2, 'short_side': 40, 'crop': (32, 32), 'num_classes': (7,), **data}
    )
    return config.to_dict()


@pytest.fixture(scope='module')
def checkpoint(models, tmp_path_factory):
    workdir = tmp_path_factory.mktemp('run')
    model, params = models['fe_token']
    own.save(workdir, params, config_for(model), list(NAMES))
    return workdir


def test_from_a_checkpoint_to_the_classes_of_a_video(checkpoint, models, tool, tmp_path, capsys):
    exported, path = tmp_path / 'exported', tmp_path / 'video.mp4'
    assert tool('export_stablehlo').main([str(checkpoint), f'--output={exported}']) == 0
    said = capsys.readouterr().out
    size = sum(file.stat().st_size for file in exported.iterdir())
    assert f'written to {exported}, {size / 1e6:.1f} MB, for cpu, cuda, tpu:' in said
    assert float(re.search(r'largest difference of the logits .*: (\S+)', said)[1]) <= 1e-5
    assert said.endswith(f'next: python tools/run_stablehlo.py {exported} CLIP.mp4\n')
    told = json.loads((exported / 'model.json').read_text(encoding='utf-8'))
    assert (told['stride'], told['short_side'], told['source']) == (
        2,
        40,
        str(checkpoint / 'checkpoints' / '0'),
    )

    # 60 frames of 48 x 64: the central clip begins at (60 - 1 - 6) // 2; the short side of 48 becomes 40.
    write_video(path)
    frames = decode(path)[[26, 28, 30, 32]]
    resized = np.stack([cv2.resize(frame, (53, 40), interpolation=cv2.INTER_AREA) for frame in frames])
    clip = resized[:, 4:36, 10:42]
    np.save(tmp_path / 'pixels.npy', clip)
    np.save(tmp_path / 'floats.npy', scaled(clip))
    model, params = models['fe_token']
    logits = np.asarray(
        model.apply({'params': params}, jax.numpy.asarray(scaled(clip))[np.newaxis])[0][0], np.float64
    )
    probability = np.exp(logits) / np.exp(logits).sum()
    best = np.argsort(-logits)[:5]

    run = tool('run_stablehlo').main
    three = [str(path), str(tmp_path / 'pixels.npy'), str(tmp_path / 'floats.npy')]
    assert run([str(exported), *three, '--json']) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line['clip'] for line in printed] == three
    for line in printed:
        (head, found), *others = line['predictions'].items()
        assert (head, others) == ('label', [])
        assert [one['class'] for one in found] == [NAMES[k] for k in best]
        np.testing.assert_allclose(
            [one['probability'] for one in found], probability[best], rtol=0, atol=1e-6
        )

    assert run([str(exported), str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [str(path), *(f'  {probability[k]:8.2%}  {NAMES[k]}' for k in best)]


@pytest.mark.parametrize('known', [True, False], ids=['of a GPU', 'of an earlier version'])
def test_how_a_run_was_run_does_not_matter_here(known, models, tool, tmp_path, capsys):
    """Checkpoints trained with kernels of a GPU, and from before there was a choice, are read on any machine."""
    model, params = models['fe_token']
    config = config_for(model)
    for name in RUNTIME:
        del config['model'][name]
    if known:
        config['model'] |= {'attention_backend': 'cudnn', 'scan_layers': True, 'remat': 'block'}
    own.save(tmp_path / 'run', params, config, list(NAMES))
    weights = formats.load(tmp_path / 'run')
    assert not set(RUNTIME) & set(weights.model)
    assert create_model(weights.num_classes, **weights.model) == create_model(7, **SMALL)
    vivit_torch.save(tmp_path / 'torch', weights, CLIP)
    # PyTorch's module takes no other settings than these.
    content = json.loads((tmp_path / 'torch' / 'config.json').read_text())
    assert content['model'].keys() == weights.model.keys()
    assert create_model(7, **formats.load(tmp_path / 'torch').model) == create_model(7, **SMALL)
    arguments = [str(tmp_path / 'run'), f'--output={tmp_path / "exported"}']
    assert tool('export_stablehlo').main(arguments) == 0, capsys.readouterr().err
    expected = model.apply({'params': params}, jax.numpy.asarray(scaled(clips(2))))[0]
    program = export.load(tmp_path / 'exported')
    np.testing.assert_allclose(program(scaled(clips(2))), expected, rtol=0, atol=1e-6)
    assert not set(RUNTIME) & set(program.metadata.model)


def test_broken_clips_are_named_and_the_rest_goes_on(folder, tool, tmp_path, capsys):
    arrays = {
        'shape.npy': np.zeros((4, 32, 30, 3), np.uint8),
        'int.npy': np.zeros(CLIP, np.int64),
        'range.npy': np.full(CLIP, 255.0, np.float32),
        'nan.npy': np.full(CLIP, np.nan, np.float32),
        'good.npy': clips(1)[0],
    }
    for name, array in arrays.items():
        np.save(tmp_path / name, array)
    (tmp_path / 'torn.npy').write_bytes((tmp_path / 'good.npy').read_bytes()[:300])
    (tmp_path / 'text.mp4').write_text('no video')
    expected = {
        'none.mp4': 'does not exist',
        'text.mp4': 'cannot be read: Invalid data found when processing input',
        'shape.npy': 'holds an array (4, 32, 30, 3), but the model takes (4, 32, 32, 3) (t, h, w, c)',
        'int.npy': 'holds int64: must be uint8, or floats in [-1, 1]',
        'range.npy': 'holds values from 255 to 255: floats must be in [-1, 1]',
        'nan.npy': 'holds values from nan to nan: floats must be in [-1, 1]',
        'torn.npy': 'is no array of NumPy, or damaged (',
    }
    names = [str(tmp_path / name) for name in (*expected, 'good.npy')]
    run = tool('run_stablehlo').main
    assert run([str(folder), *names]) == 2
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == names[-1]
    assert len(out.splitlines()) == 6
    *errors, summary = err.splitlines()
    for line, (name, cause) in zip(errors, expected.items(), strict=True):
        assert line.startswith(f'error: {tmp_path / name}: {cause}')
    assert summary == '7 of 8 clips could not be read'
    assert run([str(folder), *names, '--json']) == 2
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(line) for line in printed] == [['clip', 'error']] * 7 + [['clip', 'predictions']]


def test_mistakes_with_the_tools_are_one_line(models, tool, tmp_path, capsys):
    export_main, run = tool('export_stablehlo').main, tool('run_stablehlo').main
    (tmp_path / 'empty').mkdir()
    for missing in ('empty', 'nowhere'):
        assert export_main([str(tmp_path / missing), f'--output={tmp_path / "out"}']) == 2
        assert re.fullmatch(rf'error: .*{missing}: .*\n', capsys.readouterr().err)
    assert run([str(tmp_path), 'clip.mp4']) == 2
    assert (
        capsys.readouterr().err == f'error: {tmp_path}: holds no exported model (model.json and its files)\n'
    )

    headless = create_model(0, **SMALL)
    params = {name: value for name, value in models['fe_token'][1].items() if name != 'output_projection'}
    features = metadata_for(headless, class_names=(), heads={})
    export.save(tmp_path / 'features', headless, params, features)
    assert export.load(tmp_path / 'features')(clips(2)).shape == (2, 16)
    assert run([str(tmp_path / 'features'), 'clip.mp4']) == 2
    assert capsys.readouterr().err.endswith('features: the model has no head, so it has no classes to tell\n')


def test_grey_models_take_arrays_only(folder, tool, tmp_path):
    write_video(tmp_path / 'video.mp4', frames=8)
    grey = metadata_for(create_model(7, **SMALL), clip=(4, 32, 32, 1))
    with pytest.raises(
        ValueError, match=r'videos have 3 channels and the model takes clips \(4, 32, 32, 1\)'
    ):
        tool('run_stablehlo').read_clip(tmp_path / 'video.mp4', grey)


def test_a_difference_fails(checkpoint, tool, tmp_path, capsys, monkeypatch):
    for difference in (2e-4, float('nan')):
        monkeypatch.setattr(export, 'largest_difference', lambda *_, found=difference: found)
        output = tmp_path / str(difference)
        assert tool('export_stablehlo').main([str(checkpoint), f'--output={output}']) == 1
        assert (
            f'its logits differ from the model by {difference:.2g}, more than 0.0001'
            in capsys.readouterr().err
        )


def test_difference_is_found(folder, models):
    model, params = models['fe_token']
    changed = {**params, 'output_projection': {**params['output_projection']}}
    changed['output_projection']['bias'] = (
        params['output_projection']['bias'] + np.eye(7, dtype=np.float32)[2] / 4
    )
    assert export.largest_difference(export.load(folder), model, changed) == pytest.approx(0.25, abs=1e-5)


def test_weights_of_others(tool, tmp_path, capsys):
    """Hugging Face's ViViT, against the logits that transformers gave."""
    vivit = ROOT / 'tests' / 'golden' / 'formats' / 'hf_vivit_cls'
    assert tool('export_stablehlo').main([str(vivit), f'--output={tmp_path}']) == 0
    said = capsys.readouterr().out
    assert 'hf_vivit) does not tell how its clips were made; assumed: frame stride 2, short side 37' in said
    program = export.load(tmp_path)
    assert (program.metadata.clip, program.metadata.crop) == ((4, 32, 32, 3), (32, 32))
    with np.load(vivit / 'io.npz') as recorded:
        logits = program(recorded['pixel_values'].transpose(0, 1, 3, 4, 2))
        np.testing.assert_allclose(logits, recorded['logits'], rtol=0, atol=1e-5)


def test_nameless_classes_of_two_heads(models, tool, tmp_path):
    model, params = models['fe_token']
    config = config_for(model, heads=('noun', 'verb'), num_classes=(4, 3))
    own.save(tmp_path, params, config, [])
    _, _, metadata, notes = tool('export_stablehlo').read(tmp_path)
    assert metadata.heads == {'noun': 4, 'verb': 3}
    assert metadata.class_names == tuple('0123456')
    assert notes == ['the names of the classes are not known: they are numbers']


def test_probabilities_of_each_head(tool):
    top = tool('run_stablehlo').top
    logits = np.log(np.array([1, 3, 4, 2, 1, 9, 30], np.float32))
    two = metadata_for(create_model(7, **SMALL), heads={'noun': 4, 'verb': 3})
    found = top(logits, two, 2)
    assert {head: [name for name, _ in best] for head, best in found.items()} == {
        'noun': ['cricket', 'bowling'],
        'verb': ['golf', 'fencing'],
    }
    assert [p for best in found.values() for _, p in best] == pytest.approx([0.4, 0.3, 0.75, 0.225])
    several = metadata_for(create_model(7, **SMALL), probabilities='sigmoid')
    assert [p for _, p in top(logits, several)['label']] == pytest.approx([30 / 31, 0.9, 0.8, 0.75, 2 / 3])


@pytest.mark.parametrize('name', ['export_stablehlo', 'run_stablehlo'])
def test_help_has_examples(name, tool, capsys):
    with pytest.raises(SystemExit) as caught:
        tool(name).main(['--help'])
    assert caught.value.code == 0
    assert capsys.readouterr().out.count(f'\n  python tools/{name}.py ') == 3


def test_a_head_of_zeros_hides_no_difference(models, tmp_path):
    model, params = models['fe_token']
    fresh = jax.tree.map(np.zeros_like, params['output_projection'])
    params = {**params, 'output_projection': fresh}
    export.save(tmp_path, model, params, metadata_for(model))
    program = export.load(tmp_path)
    assert not np.any(program(clips(1)))
    assert export.largest_difference(program, model, params) < 1e-5
    kernel = params['embedding']['kernel']
    damaged = {**params, 'embedding': {**params['embedding'], 'kernel': -kernel}}
    assert export.largest_difference(program, model, damaged) > 1e-3
