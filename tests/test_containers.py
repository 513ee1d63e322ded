"""Files of arrays: told by content, read without executing anything, and what is said of files that are none."""

import json
import pathlib
import pickle
import shutil
import subprocess
import sys
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from safetensors.numpy import load_file, save_file

from vivit_jax import formats
from vivit_jax.formats import containers
from vivit_jax.formats.weights import to_float32

ARRAYS = {'a/b': np.arange(6, dtype=np.float32).reshape(2, 3), 'a/c': np.ones((), np.int32)}


def write(path, sort):
    if sort == 'npz':
        with path.open('wb') as file:
            np.savez(file, **ARRAYS)
    elif sort == 'safetensors':
        save_file(ARRAYS, path)
    else:
        tree = {'a': {'b': ARRAYS['a/b'], 'c': ARRAYS['a/c']}, 'step': 3}
        path.write_bytes(msgpack_serialize(tree))
    return path


@pytest.mark.parametrize('sort', ['npz', 'safetensors', 'msgpack'])
def test_the_sort_is_told_by_content_not_by_name(tmp_path, sort):
    found, arrays = containers.read(write(tmp_path / 'weights.dat', sort))
    assert found == sort
    assert set(arrays) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], array)


@pytest.mark.parametrize('sort', ['npz', 'safetensors', 'msgpack'])
def test_a_truncated_file_is_told_with_what_it_seems_to_be(tmp_path, sort):
    path = write(tmp_path / 'weights', sort)
    path.write_bytes(path.read_bytes()[:-40])
    message = {
        'npz': 'an npz or PyTorch file, but truncated',
        'safetensors': 'a safetensors file, but truncated',
    }
    with pytest.raises(
        ValueError, match=message.get(sort, 'a msgpack checkpoint of Flax, but truncated')
    ) as error:
        containers.read(path)
    assert '\n' not in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'is empty'),
        (b'<!DOCTYPE html><html>Not found', 'a web page, as a failed download leaves'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'a Git LFS pointer'),
        (b'\x89HDF\r\n\x1a\n' + bytes(600), 'an HDF5 file, as of Keras'),
        (b'\x1f\x8b\x08' + bytes(600), 'a gzip archive: unpack it first'),
        (bytes(257) + b'ustar' + bytes(300), 'a tar archive'),
        (b'{"model_type": "vit"}', 'it seems to be JSON'),
        (b'path,label\nclip.mp4,run\n', 'it seems to be text'),
        (b'\x93NUMPY\x01\x00' + bytes(100), r'a single array \(npy\)'),
        (bytes([7, 200, 3, 9]) * 200, r'of an unknown sort \(first bytes 07 c8 03 09'),
    ],
)
def test_what_is_no_file_of_weights_is_told_in_one_line(tmp_path, content, message):
    path = tmp_path / 'vit.npz'
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        formats.load(path)
    assert '\n' not in str(error.value)
    assert str(path) in str(error.value)


def test_an_archive_of_other_files_is_none_of_weights(tmp_path):
    with zipfile.ZipFile(tmp_path / 'clips.zip', 'w') as archive:
        archive.writestr('clip.txt', 'frames')
    with pytest.raises(ValueError, match='a zip archive of other files'):
        formats.load(tmp_path / 'clips.zip')


class Trap:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return pathlib.Path.touch, (self.mark,)


def test_pickled_objects_in_an_npz_are_refused_not_executed(tmp_path):
    names = (
        'embedding/kernel',
        'Transformer/encoderblock_0/LayerNorm_0/bias',
        'Transformer/posembed_input/pos_embedding',
    )
    trap = np.array([Trap(tmp_path / 'mark')], dtype=object)
    np.savez(tmp_path / 'trap.npz', **dict.fromkeys(names, trap))
    with pytest.raises(
        ValueError,
        match=r'trap.npz: .* cannot be read \(Object arrays cannot be loaded: they are pickled',
    ):
        formats.load(tmp_path / 'trap.npz')
    assert not (tmp_path / 'mark').exists()


def test_pickled_objects_of_pytorch_are_refused_not_executed(tmp_path):
    torch = pytest.importorskip('torch', reason='reads with PyTorch, which is not installed')
    torch.save({'weight': torch.ones(2), 'trap': Trap(tmp_path / 'mark')}, tmp_path / 'trap.pth')
    (tmp_path / 'old.pth').write_bytes(pickle.dumps(Trap(tmp_path / 'mark')))
    for name in ('trap.pth', 'old.pth'):
        with pytest.raises(
            ValueError, match=r'holds Python objects besides arrays.*, which are not executed'
        ) as error:
            containers.read(tmp_path / name)
        assert '\n' not in str(error.value)
    assert not (tmp_path / 'mark').exists()


def test_a_file_of_pytorch_is_read(tmp_path):
    torch = pytest.importorskip('torch', reason='reads with PyTorch, which is not installed')
    state = {'model_state': {'w': torch.arange(3.0), 'h': torch.ones(2, dtype=torch.bfloat16)}, 'epoch': 3}
    torch.save(state, tmp_path / 'state.pyth')
    sort, arrays = containers.read(tmp_path / 'state.pyth')
    assert sort == 'torch'
    np.testing.assert_array_equal(arrays['model_state.w'], [0, 1, 2])
    assert arrays['model_state.h'].dtype == np.float32


def test_bfloat16_that_numpy_lost_is_found_again(tmp_path):
    values = np.array([1.0, -2.5, 3.140625], ml_dtypes.bfloat16)
    np.savez(tmp_path / 'half.npz', values=values)
    read = np.load(tmp_path / 'half.npz')['values']
    assert read.dtype.kind == 'V'
    np.testing.assert_array_equal(to_float32(read), [1.0, -2.5, 3.140625])


def test_folders_and_kinds(tmp_path):
    with pytest.raises(ValueError, match='nowhere: does not exist'):
        formats.load(tmp_path / 'nowhere')
    with pytest.raises(ValueError, match=r'holds no file of weights \(nothing\)'):
        formats.load(tmp_path)
    write(tmp_path / 'one.npz', 'npz')
    with pytest.raises(
        ValueError, match=r'is an npz file of NumPy, but of no known model \(it has a/b, a/c\); known'
    ):
        formats.load(tmp_path)
    with pytest.raises(ValueError, match=r"kind 'pickle' of .*: choose auto or one of vivit_jax, scenic"):
        formats.load(tmp_path, kind='pickle')
    write(tmp_path / 'two.npz', 'npz')
    with pytest.raises(ValueError, match=r'holds several files of weights \(one.npz, two.npz\): name one'):
        formats.load(tmp_path)


def test_json_beside_the_weights(tmp_path):
    assert containers.read_json(tmp_path / 'config.json') == {}
    for content, message in (('{', 'is no JSON'), ('[1]', 'holds list instead of a JSON object')):
        (tmp_path / 'config.json').write_text(content)
        with pytest.raises(ValueError, match=message):
            containers.read_json(tmp_path / 'config.json')


HUGGING_FACE = pathlib.Path(__file__).parent / 'golden' / 'formats' / 'hf_vivit_cls'


def split_over_two_files(folder):
    arrays = load_file(HUGGING_FACE / 'model.safetensors')
    where = {}
    for number, names in enumerate((list(arrays)[::2], list(arrays)[1::2]), start=1):
        part = f'model-0000{number}-of-00002.safetensors'
        save_file({name: arrays[name] for name in names}, folder / part)
        where |= dict.fromkeys(names, part)
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': where}))
    (folder / 'config.json').write_text((HUGGING_FACE / 'config.json').read_text())
    return folder


def test_weights_in_several_files_are_read_as_one(tmp_path):
    weights, whole = formats.load(split_over_two_files(tmp_path)), formats.load(HUGGING_FACE)
    jax.tree.map(np.testing.assert_array_equal, weights.params, whole.params)
    (tmp_path / 'model-00002-of-00002.safetensors').unlink()
    with pytest.raises(ValueError, match=r'model-00002-of-00002.safetensors: does not exist'):
        formats.load(tmp_path)
    (tmp_path / 'model.safetensors.index.json').write_text('{}')
    with pytest.raises(ValueError, match=r'index.json: tells no parts \(weight_map\)'):
        formats.load(tmp_path)


def test_recorded_arrays_beside_a_model_are_no_second_one(tmp_path):
    vit = pathlib.Path(__file__).parent / 'golden' / 'formats' / 'vit_npz_gap'
    for name in ('ckpt.npz', 'io.npz'):
        (tmp_path / name).write_bytes((vit / name).read_bytes())
    assert formats.load(tmp_path).path == str(tmp_path / 'ckpt.npz')


def test_broken_numbers_are_told(tmp_path):
    vit = pathlib.Path(__file__).parent / 'golden' / 'formats' / 'vit_npz_gap' / 'ckpt.npz'
    arrays = dict(np.load(vit))
    arrays['head/bias'] = arrays['head/bias'] * np.nan
    np.savez(tmp_path / 'nan.npz', **arrays)
    with pytest.raises(ValueError, match=r'1 parameters hold NaN or infinity \(output_projection/bias\)'):
        formats.load(tmp_path / 'nan.npz')


@pytest.mark.parametrize(
    'change',
    [{'layer_norm_eps': None}, {'hidden_act': ['gelu']}, {'layer_norm_eps': 'x'}, {'id2label': {'a': 'b'}}],
)
def test_settings_beside_the_weights_that_make_no_sense_end_in_one_line(tmp_path, change):
    shutil.copytree(HUGGING_FACE, tmp_path / 'model')
    settings = json.loads((tmp_path / 'model' / 'config.json').read_text())
    (tmp_path / 'model' / 'config.json').write_text(json.dumps(settings | change))
    if 'id2label' in change:  # not as many as classes: numbered
        assert formats.load(tmp_path / 'model').class_names == ()
        return
    with pytest.raises(ValueError, match=r'model.safetensors: ') as error:
        formats.load(tmp_path / 'model')
    assert '\n' not in str(error.value)


def test_modules_are_found_without_being_imported_first():
    code = 'import vivit_jax; vivit_jax.formats.load; vivit_jax.pretrained.initialise; vivit_jax.nothing'
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False)
    assert "vivit_jax has no 'nothing'" in result.stderr
