"""Data in object stores: listed and read as if it were here."""

import dataclasses
import hashlib
import os
import pathlib

import cv2
import numpy as np
import object_store
import pytest
import test_tfrecords as tfrecords

from videos import write_video
from vivit_jax import config, experiment, feeding, inputs, sharding
from vivit_jax.data import medmnist, pipeline
from vivit_jax.data.bad_files import BadFiles
from vivit_jax.data.examine import Examination
from vivit_jax.data.listing import Layout
from vivit_jax.data.record import UnreadableExample
from vivit_jax.data.tfrecords import TFRecords

BASE = str(pathlib.Path(__file__).parent.parent / 'configs' / 'base.py')
KINDS = ('gs', 's3')


@pytest.fixture(scope='module')
def store():
    return object_store.serve()


@pytest.fixture(scope='module')
def data(tmp_path_factory, store):
    """The same data here and in the store: videos in folders, a table of them, frames, volumes."""
    root = tmp_path_factory.mktemp('data')
    for split, count in (('train', 3), ('validation', 2)):
        for name in ('sit', 'stand up'):
            (root / 'videos' / split / name).mkdir(parents=True)
            for number in range(count):
                write_video(root / 'videos' / split / name / f'{number}.mp4', frames=12 + number)
            folder = root / 'frames' / split / name
            for number in range(count):
                (folder / str(number)).mkdir(parents=True)
                for frame in range(5):
                    pixels = np.full((24, 32, 3), 10 * frame + number, np.uint8)
                    cv2.imwrite(str(folder / str(number) / f'img_{frame:03d}.png'), pixels)
            (root / 'volumes' / split / name).mkdir(parents=True)
            for number in range(count):
                volume = np.random.default_rng(number).normal(size=(8, 16, 16)).astype(np.float32)
                np.savez(root / 'volumes' / split / name / f'{number}.npz', volume=volume)
    (root / 'videos' / 'train' / 'sit' / 'broken.mp4').write_bytes(b'no video')
    rows = [
        'path,label',
        'train/sit/0.mp4,a',
        './train/sit//1.mp4,b',
        'train/none.mp4,a',
        'train/sit/2.mp4,a',
    ]
    (root / 'videos' / 'table.csv').write_text('\n'.join(rows))
    for folder, _, files in os.walk(root):
        for file in files:
            path = os.path.join(folder, file)
            with open(path, 'rb') as opened:
                store.put(f'bucket/data/{os.path.relpath(path, root)}', opened.read())
    return root


def opened(root, source, split='train', **changes):
    values = {
        'data.source': source,
        'data.root': str(root),
        'data.frames': '4',
        'data.crop': '16,16',
        **changes,
    }
    if source == 'volumes':
        values |= {'data.channels': '1'}
    settings = config.load(BASE, values)
    return settings, experiment.open_source(settings, split, Examination())


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
    ('source', 'folder'), [('video_files', 'videos'), ('frame_folders', 'frames'), ('volumes', 'volumes')]
)
def test_data_in_a_store_is_the_data_here(data, kind, source, folder):
    for split in ('train', 'validation'):
        _, here = opened(data / folder, source, split)
        _, there = opened(f'{kind}://bucket/data/{folder}', source, split)
        assert there.digest == here.digest
        assert len(there) == len(here) >= 4
        assert there.class_names == here.class_names == ['sit', 'stand up']
        assert [(name, cause.replace(str(data), '')) for name, cause in there.bad] == here.bad
        for index in (0, len(here) - 1):
            wanted = np.arange(there[index].num_frames)[::2]
            np.testing.assert_array_equal(there[index].read(wanted), here[index].read(wanted))


def test_tables_in_a_store(data):
    root, table = 'gs://bucket/data/videos', {'data.csv': 'gs://bucket/data/videos/table.csv'}
    _, here = opened(data / 'videos', 'video_files', **{'data.csv': str(data / 'videos' / 'table.csv')})
    _, there = opened(root, 'video_files', **table)
    assert there.digest == here.digest
    assert there.bad == here.bad
    _, relative = opened(root, 'video_files', **{'data.csv': 'table.csv'})
    assert relative.digest == here.digest
    rows = ['path,label', 's3://bucket/data/videos/train/sit/0.mp4,a', f'{data}/videos/train/sit/1.mp4,b']
    (data / 'mixed.csv').write_text('\n'.join([*rows, 'gs://bucket/data/videos/train/sit/2.mp4,a']))
    settings, mixed = opened(data, 'video_files', **{'data.csv': str(data / 'mixed.csv')})
    everything = [mixed[index] for index in range(len(mixed))]
    assert (
        len(everything) + len(opened(data, 'video_files', 'validation', **{'data.csv': settings.data.csv})[1])
        == 3
    )
    for record in everything:
        assert record.read(np.arange(3)).shape == (3, 48, 64, 3)


def test_what_has_changed_is_looked_into_again(data, store, tmp_path):
    changes = {'data.cache': str(tmp_path / 'cache')}

    settings = config.load(
        BASE, {'data.source': 'video_files', 'data.root': 'gs://bucket/data/videos', **changes}
    )
    lengths = [len(experiment.open_source(settings, 'train'))]
    asked = len(store.asked)
    lengths.append(len(experiment.open_source(settings, 'train')))
    assert not [path for method, path in store.asked[asked:] if path.endswith('.mp4')]
    store.put('bucket/data/videos/train/sit/broken.mp4', store.objects['bucket/data/videos/train/sit/0.mp4'])
    lengths.append(len(experiment.open_source(settings, 'train')))
    store.put('bucket/data/videos/train/sit/broken.mp4', b'no video')
    assert lengths == [6, 6, 7]


def test_threads_and_worker_processes_read_from_a_store(data, tmp_path):
    clips = {}
    for root, workers in ((data / 'videos', 0), ('s3://bucket/data/videos', 1)):
        settings, source = opened(root, 'video_files')
        examples = feeding.training_examples(settings, source, BadFiles(tmp_path / 'bad_files.csv'))
        with pipeline.batches(
            examples,
            batch_size=8,
            first_step=0,
            last_step=1,
            mesh=sharding.make_mesh(),
            workers=workers,
            threads=2,
            prefetch=1,
        ) as batches:
            clips[workers] = np.asarray(next(batches)['video'])
    np.testing.assert_array_equal(clips[0], clips[1])


def test_a_file_that_goes_bad_in_a_store(data, store):
    _, source = opened('s3://bucket/data/videos', 'video_files')
    name = f'bucket/data/videos/{source[0].name}'
    content = store.objects[name]
    for change in (lambda: store.put(name, b'now broken'), lambda: store.delete(name)):
        change()
        with pytest.raises(UnreadableExample, match='cannot be read') as caught:
            source[0].read(np.arange(2))
        assert f's3://{name}' in str(caught.value)
        assert '/tmp' not in str(caught.value)
    store.put(name, content)


@pytest.mark.parametrize('kind', KINDS)
def test_what_may_be_named_to_predict(data, kind):
    """A file, a folder, a pattern, a table."""
    root = f'{kind}://bucket/data/videos'
    settings = config.load(BASE, {'data.num_classes': '(2,)'})

    def opened(names):
        return inputs.open_inputs(settings, names)

    named = (
        [f'{root}/train/sit/0.mp4'],
        [f'{root}/train/sit'],
        [f'{root}/validation/*/*.mp4'],
        [f'{root}/table.csv'],
    )
    counts = [(len(source), len(source.bad)) for source in map(opened, named)]
    assert counts == [(1, 0), (3, 1), (4, 0), (3, 1)]
    source = opened(named[2])
    assert next(str(path).partition(root)[2] for path in source.files) == '/validation/sit/0.mp4'
    with pytest.raises(ValueError, match=rf'^there is no {root}/none\.mp4$'):
        opened([f'{root}/none.mp4'])
    with pytest.raises(ValueError, match=r'^nothing matches '):
        opened([f'{root}/*.avi'])


@pytest.mark.parametrize('kind', KINDS)
def test_tfrecords_in_a_store(kind, store, tmp_path):
    names = ('train-00000-of-00002.tfrecord', 'train-00001-of-00002.tfrecord')
    for number, name in enumerate(names):
        examples = [tfrecords.labelled([number, 5, place], place) for place in range(2)]
        tfrecords.write(tmp_path / name, *examples)
        store.put(f'bucket/records/{name}', (tmp_path / name).read_bytes())
    roots = (str(tmp_path), f'{kind}://bucket/records')
    here, there = (TFRecords('train', layout=Layout(root=root), examination=Examination()) for root in roots)
    assert there.digest == here.digest
    assert len(there) == len(here) == 4
    before = len(store.asked)
    for index in (3, 0):
        np.testing.assert_array_equal(there[index].read(np.array([2, 0])), here[index].read(np.array([2, 0])))
    assert [method for method, _ in store.asked[before:]] == ['GET', 'GET'], (
        'a record is not asked for at once'
    )


@pytest.mark.parametrize('kind', KINDS)
def test_medmnist_in_a_store(kind, store, tmp_path, monkeypatch):
    volumes = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 28), np.uint8)
    arrays = {f'{split}_images': volumes for split in ('train', 'val', 'test')}
    labels = {f'{split}_labels': np.array([[0], [1]], np.uint8) for split in ('train', 'val', 'test')}
    np.savez(tmp_path / 'adrenalmnist3d.npz', **arrays, **labels)
    content = (tmp_path / 'adrenalmnist3d.npz').read_bytes()
    store.put('bucket/medmnist/adrenalmnist3d.npz', content)
    md5 = hashlib.md5(content, usedforsecurity=False).hexdigest()
    known = dataclasses.replace(medmnist.SETS['adrenal'], md5={28: md5}, counts=(2, 2, 2))
    monkeypatch.setitem(medmnist.SETS, 'adrenal', known)
    source = medmnist.MedMNIST('train', root=f'{kind}://bucket/medmnist', name='adrenal', size=28)
    np.testing.assert_array_equal(source[1].read(np.arange(28))[..., 0], volumes[1])
    with pytest.raises(ValueError, match=rf'^{kind}://bucket/none/adrenalmnist3d\.npz is not there: curl '):
        medmnist.MedMNIST('train', root=f'{kind}://bucket/none', name='adrenal', size=28)
