"""Files of arrays: told by content, read without executing anything, and what is said of files that are none."""

import pathlib
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
from flax.serialization import msgpack_serialize
from safetensors.numpy import save_file

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
        match=r'trap.npz: .* cannot be read \(Object arrays cannot be loaded when allow_pickle=False',
    ):
        formats.load(tmp_path / 'trap.npz')
    assert not (tmp_path / 'mark').exists()


def test_pickled_objects_of_pytorch_are_refused_not_executed(tmp_path):
    torch = pytest.importorskip('torch', reason='reads with PyTorch, which is not installed')
    torch.save({'weight': torch.ones(2), 'trap': Trap(tmp_path / 'mark')}, tmp_path / 'trap.pth')
    (tmp_path / 'old.pth').write_bytes(pickle.dumps(Trap(tmp_path / 'mark')))
    for name in ('trap.pth', 'old.pth'):
        with pytest.raises(ValueError, match='seems to be a file of PyTorch, but'):
            containers.read(tmp_path / name)
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
