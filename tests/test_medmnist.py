import dataclasses
import hashlib
import pickle
import sys

import numpy as np
import pytest

from vivit_jax.data import medmnist
from vivit_jax.data.medmnist import SETS, MedMNIST

COUNTS = {
    'organ': (971, 161, 610),
    'nodule': (1158, 165, 310),
    'adrenal': (1188, 98, 298),
    'fracture': (1027, 103, 240),
    'vessel': (1335, 191, 382),
    'synapse': (1230, 177, 352),
}
CLASSES = {'organ': 11, 'nodule': 2, 'adrenal': 2, 'fracture': 3, 'vessel': 2, 'synapse': 2}


def voxels(count, size):
    """Volumes in which a voxel tells its place: the product of all but the last axis, and the volume."""
    place = np.arange(size, dtype=np.uint8)
    pattern = (2 * place[:, None, None] + 3 * place[:, None] + 5 * place).astype(np.uint8)
    return pattern + np.arange(count, dtype=np.uint8)[:, None, None, None]


def write(path, name, size, counts=None, **replaced):
    """Writes a stand-in for a published file; labels count up through the classes."""
    arrays = {}
    for split, count in zip(('train', 'val', 'test'), counts or COUNTS[name], strict=True):
        arrays[f'{split}_images'] = voxels(count, size)
        arrays[f'{split}_labels'] = (np.arange(count, dtype=np.uint8) % CLASSES[name])[:, None]
    np.savez(path, **(arrays | replaced))
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def publish(monkeypatch, name, size, md5, counts=None):
    """Makes a stand-in the published file."""
    known = SETS[name]
    stand_in = dataclasses.replace(known, md5=known.md5 | {size: md5}, counts=counts or known.counts)
    monkeypatch.setitem(SETS, name, stand_in)


@pytest.fixture(scope='module')
def stand_in(tmp_path_factory):
    path = tmp_path_factory.mktemp('medmnist') / 'organmnist3d.npz'
    return path, write(path, 'organ', 28)


def test_the_table():
    assert {name: published.counts for name, published in SETS.items()} == COUNTS
    assert {name: len(published.class_names) for name, published in SETS.items()} == CLASSES
    assert SETS['organ'].class_names[1:3] == ('kidney-right', 'kidney-left')
    sums = [md5 for published in SETS.values() for md5 in published.md5.values()]
    assert len(set(sums)) == 12
    assert {len(bytes.fromhex(md5)) for md5 in sums} == {16}
    assert SETS['organ'].md5[28] == 'a0c5a1ff56af4f155c46d46fbb45a2fe'


@pytest.mark.parametrize(('split', 'count'), [('train', 971), ('validation', 161), ('test', 610)])
def test_records(stand_in, monkeypatch, split, count):
    path, md5 = stand_in
    publish(monkeypatch, 'organ', 28, md5)
    source = MedMNIST(split, root=str(path.parent), name='organ', size=28)
    assert len(source) == count
    assert source.class_names[0] == 'liver'
    assert source.digest == f'organmnist3d.npz {md5}, {split}'
    record = source[100]
    assert (record.name, record.label) == (f'{split}/000100', 1)
    assert (record.num_frames, record.frame_size) == (28, (28, 28))
    slices = record.read(np.array([27, 3, 3]))
    assert (slices.dtype, slices.shape) == (np.uint8, (3, 28, 28, 1))
    # Frames are places along the first axis of a volume: 2 * 27 + 3 * 1 + 5 * 2 + 100, and so on.
    assert slices[:, 1, 2, 0].tolist() == [167, 119, 119]
    for wrong in (-1, count):
        with pytest.raises(IndexError, match=f'index {wrong} must be in \\[0, {count}\\)'):
            source[wrong]


def test_size_64(tmp_path, monkeypatch):
    counts = (3, 2, 1)
    md5 = write(tmp_path / 'vesselmnist3d_64.npz', 'vessel', 64, counts)
    publish(monkeypatch, 'vessel', 64, md5, counts)
    source = MedMNIST('train', root=str(tmp_path), name='vessel', size=64)
    assert (len(source), [source[i].label for i in range(3)]) == (3, [0, 1, 0])
    assert (source[2].num_frames, source[2].frame_size) == (64, (64, 64))
    np.testing.assert_array_equal(source[2].read(np.arange(64))[..., 0], voxels(3, 64)[2])


def test_volumes_are_loaded_once_and_do_not_travel(stand_in, monkeypatch):
    path, md5 = stand_in
    publish(monkeypatch, 'organ', 28, md5)
    medmnist._load.cache_clear()
    source = MedMNIST('test', root=str(path.parent), name='organ', size=28)
    assert medmnist._load.cache_info().misses == 0
    expected = source[5].read(np.array([1]))
    sent = pickle.dumps((source, source[5]))
    assert len(sent) < 10_000  # the labels
    received, record = pickle.loads(sent)
    np.testing.assert_array_equal(record.read(np.array([1])), expected)
    np.testing.assert_array_equal(received[5].read(np.array([1])), expected)
    assert medmnist._load.cache_info().misses == 1
    expected[:] = 0  # a copy
    assert received[5].read(np.array([1])).any()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'split': 'val'}, "MedMNIST has no split 'val': choose one of train, validation, test"),
        ({'name': 'brain'}, "config.data.medmnist.name='brain': choose one of organ, nodule, adrenal, "),
        ({'size': 32}, 'config.data.medmnist.size=32: choose 28 or 64 voxels'),
        (
            {'root': None},
            'config.data.root is not set, and ~/.medmnist does not hold organmnist3d.npz of MedMNIST v2 '
            '(https://zenodo.org/records/10519652/files/organmnist3d.npz, '
            'MD5 a0c5a1ff56af4f155c46d46fbb45a2fe): '
            'curl -LO https://zenodo.org/records/10519652/files/organmnist3d.npz there, or give its folder with '
            "--config.data.root=FOLDER, or pip install --no-deps medmnist and it is downloaded",
        ),
        ({'size': 64}, "config.data.root='no' is not a folder: it must hold organmnist3d_64.npz of MedMNIST v2 "
         '(https://zenodo.org/records/10519652/files/organmnist3d_64.npz, MD5 58a2205adf14a9d0a189cb06dc78bf10); '
         'curl -LO https://zenodo.org/records/10519652/files/organmnist3d_64.npz'),
        ({'root': '.'}, "config.data.root='.' does not hold organmnist3d.npz of MedMNIST v2 ("),
    ],
)  # fmt: skip
def test_what_is_not_there(options, message, monkeypatch, tmp_path):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(medmnist, '_package_table', lambda: None)
    arguments = {'split': 'train', 'root': 'no', 'name': 'organ', 'size': 28} | options
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared as plain text below
        MedMNIST(arguments.pop('split'), **arguments)
    assert str(caught.value).startswith(message)
    assert '\n' not in str(caught.value)
    assert not list(tmp_path.iterdir())


# --- Downloads, from a stand-in of the package's record ---


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose table tells files on this machine; importing it would be noticed."""
    remote, package, home = (tmp_path / name for name in ('remote', 'site/medmnist', 'home'))
    for folder in (remote, package, home):
        folder.mkdir(parents=True)
    (package / '__init__.py').write_text("raise AssertionError('imported')\n")
    urls = {f'url{size}': (remote / f'adrenalmnist3d{size}.npz').as_uri() for size in ('', '_64')}
    (package / 'info.py').write_text(f'INFO = {{"adrenalmnist3d": {urls}}}\n')
    monkeypatch.setenv('HOME', str(home))
    for name in [name for name in sys.modules if name.partition('.')[0] == 'medmnist']:
        monkeypatch.delitem(sys.modules, name)  # the real one, where another test compares with it
    monkeypatch.syspath_prepend(str(package.parent))
    return remote, home


@pytest.mark.parametrize('size', [28, 64])
def test_a_missing_file_is_downloaded(package, tmp_path, monkeypatch, capsys, size):
    remote, home = package
    file = 'adrenalmnist3d.npz' if size == 28 else 'adrenalmnist3d_64.npz'
    publish(monkeypatch, 'adrenal', size, write(remote / file, 'adrenal', size, (3, 2, 1)), (3, 2, 1))
    root = tmp_path / 'mine'
    root.mkdir()
    assert len(MedMNIST('train', root=str(root), name='adrenal', size=size)) == 3
    assert [entry.name for entry in root.iterdir()] == [file]
    told = capsys.readouterr().err
    assert told == f'downloading {(remote / file).as_uri()} to {root / file}\n'
    (remote / file).unlink()
    assert len(MedMNIST('test', root=str(root), name='adrenal', size=size)) == 1  # not again
    assert not list(home.iterdir())


def test_without_a_root_the_packages_folder(package, monkeypatch):
    remote, home = package
    md5 = write(remote / 'adrenalmnist3d.npz', 'adrenal', 28, (3, 2, 1))
    publish(monkeypatch, 'adrenal', 28, md5, (3, 2, 1))
    assert len(MedMNIST('validation', root=None, name='adrenal', size=28)) == 2
    assert [str(file.relative_to(home)) for file in home.rglob('*.npz')] == ['.medmnist/adrenalmnist3d.npz']


@pytest.mark.parametrize('there', [True, False])
def test_a_failed_download_leaves_nothing(package, tmp_path, there):
    remote, _ = package
    md5 = write(remote / 'adrenalmnist3d.npz', 'adrenal', 28, (3, 2, 1)) if there else ''
    root = tmp_path / 'mine'
    root.mkdir()
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared as plain text below
        MedMNIST('train', root=str(root), name='adrenal', size=28)
    message = str(caught.value)
    assert message.startswith('adrenalmnist3d.npz of MedMNIST v2 (https://zenodo.org/records/10519652/files/')
    assert (f'what came has the MD5 {md5}' if there else 'No such file') in message
    assert message.endswith('curl -LO https://zenodo.org/records/10519652/files/adrenalmnist3d.npz')
    assert '\n' not in message
    assert not list(root.iterdir())


def test_another_file_of_that_name(stand_in):
    path, md5 = stand_in
    message = (
        f'organmnist3d.npz: its MD5 is {md5}, but that of MedMNIST v2 is a0c5a1ff56af4f155c46d46fbb45a2fe: '
        'delete it and get it again, curl -LO https://zenodo.org/records/10519652/files/organmnist3d.npz'
    )
    with pytest.raises(ValueError, match=message):
        MedMNIST('train', root=str(path.parent), name='organ', size=28)


@pytest.mark.parametrize(
    ('replaced', 'message'),
    [
        ({'val_images': np.zeros((97, 28, 28, 28), np.uint8)}, 'val_images has the shape (97, 28, 28, 28), '
         'but must have (98, 28, 28, 28)'),
        ({'val_labels': np.zeros((98, 2), np.uint8)}, 'val_labels has the shape (98, 2), but must have (98, 1)'),
    ],
)  # fmt: skip
def test_counts_other_than_published(tmp_path, monkeypatch, replaced, message):
    path = tmp_path / 'adrenalmnist3d.npz'
    publish(monkeypatch, 'adrenal', 28, write(path, 'adrenal', 28, (1, 98, 1), **replaced))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - compared as plain text below
        MedMNIST('validation', root=str(tmp_path), name='adrenal', size=28)
    assert str(caught.value) == f'{path}: {message}'


@pytest.mark.parametrize('name', SETS)
def test_what_is_published_is_what_the_package_says(name):
    package = pytest.importorskip(
        'medmnist', reason='compares with the package medmnist, which is not installed'
    )
    info = package.INFO[f'{name}mnist3d']
    assert SETS[name].counts == tuple(info['n_samples'][split] for split in ('train', 'val', 'test'))
    assert SETS[name].md5 == {28: info['MD5'], 64: info['MD5_64']}
    assert SETS[name].class_names == tuple(info['label'][str(k)] for k in range(len(info['label'])))
