import builtins
import multiprocessing
import pickle
import re
import shutil
import sys

import numpy as np
import pytest

from vivit_jax.data.examine import Examination
from vivit_jax.data.listing import Layout
from vivit_jax.data.record import Source, UnreadableExample
from vivit_jax.data.tfds import TFDS

SIZE = (6, 8)
COUNTS = {'train': 7, 'val': 3}


def frames(seed, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (2 + seed, *SIZE, channels), np.uint8)


def seeds(split):
    return range(7) if split == 'train' else range(7, 10)


def builder(tfds, **options):
    """Makes a data set whose program TFDS does not know later: it knows what lies in the folder."""

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version('1.2.3')

        def _info(self):
            sport = tfds.features.ClassLabel(names=['run', 'walk'])
            features = {
                'video': tfds.features.Video(shape=(None, *SIZE, 3)),
                'parts': {'grey': tfds.features.Video(shape=(None, *SIZE, 1))},
                'label': sport,
                'verb': tfds.features.ClassLabel(num_classes=3),
                'tags': tfds.features.Sequence(sport),
                'still': tfds.features.Image(shape=(*SIZE, 3)),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {split: self._generate_examples(split) for split in COUNTS}

        def _generate_examples(self, split):
            for seed in seeds(split):
                example = {
                    'video': frames(seed),
                    'parts': {'grey': frames(seed, 1)},
                    'label': seed % 2,
                    'verb': seed % 3,
                    'tags': [[], [1], [0, 1]][seed % 3],
                    'still': frames(seed)[0],
                }
                yield seed, example

    return Tiny(**options)


@pytest.fixture(scope='session', params=['array_record', 'tfrecord'])
def prepared(request, tmp_path_factory):
    """A folder with a small set prepared by TFDS itself: several videos of each, two splits, two shards."""
    tfds = pytest.importorskip('tensorflow_datasets')
    pytest.importorskip('tensorflow')

    folder = tmp_path_factory.mktemp(request.param)
    shards = tfds.download.DownloadConfig(num_shards=2)
    builder(tfds, data_dir=folder, file_format=request.param).download_and_prepare(download_config=shards)
    return folder


def source(folder, split='train', name='tiny', video='video', label='label', **layout):
    layout = Layout(root=str(folder), **layout)
    return TFDS(split, layout=layout, examination=Examination(), name=name, video=video, label=label)


def lengths(opened):
    """The order is TFDS's own; the lengths tell which is which."""
    return [opened[index].num_frames - 2 for index in range(len(opened))]


def test_every_video_of_a_split(prepared):
    train, validation = source(prepared), source(prepared, 'validation', name='tiny:1.2.3')
    assert isinstance(train, Source)
    assert (train.class_names, train.bad, train.splits) == (['run', 'walk'], [], ('train', 'val'))
    assert sorted(lengths(train)) == list(seeds('train'))
    assert sorted(lengths(validation)) == list(seeds('val'))
    assert len({train[index].name for index in range(7)}) == 7
    for index, seed in enumerate(lengths(train)):
        record = train[index]
        assert (record.label, record.frame_size, record.codec) == (seed % 2, SIZE, 'png')
        np.testing.assert_array_equal(record.read(np.array([seed + 1, 0])), frames(seed)[[seed + 1, 0]])
    with pytest.raises(IndexError, match=r'index 7 must be in \[0, 7\)'):
        train[7]
    assert source(prepared, 'val').digest == validation.digest != train.digest


def test_the_order_is_that_of_tfds(prepared):
    tfds = pytest.importorskip('tensorflow_datasets')
    if prepared.name.startswith('array_record'):
        examples = tfds.data_source('tiny', data_dir=prepared, split='train')
    else:
        in_order = tfds.ReadConfig(interleave_cycle_length=1)
        loaded = tfds.load(
            'tiny', data_dir=prepared, split='train', shuffle_files=False, read_config=in_order
        )
        examples = tfds.as_numpy(loaded)
    expected = [(len(example['video']) - 2, int(example['label'])) for example in examples]
    train = source(prepared)
    assert [(seed, train[index].label) for index, seed in enumerate(lengths(train))] == expected


def test_slices(prepared):
    everything = lengths(source(prepared))
    assert lengths(source(prepared, 'train[:2]')) == everything[:2]
    assert lengths(source(prepared, 'train[1:-1]')) == everything[1:-1]
    assert lengths(source(prepared, 'train[50%:]')) == everything[round(3.5) :]
    assert lengths(source(prepared, 'train[:1]+val')) == everything[:1] + lengths(source(prepared, 'val'))


def test_other_features(prepared):
    opened = source(prepared, video='parts/grey', heads=('verb', 'label'))
    assert opened.class_names == ['0', '1', '2', 'run', 'walk']
    for index, seed in enumerate(lengths(opened)):
        assert opened[index].label == (seed % 3, seed % 2)
        np.testing.assert_array_equal(
            opened[index].read(np.arange(2)), np.broadcast_to(frames(seed, 1)[:2], (2, *SIZE, 3))
        )
    opened = source(prepared, label='tags', several_labels=True)
    labels = [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)]
    assert [opened[i].label for i in range(7)] == [labels[seed % 3] for seed in lengths(opened)]


def _read_without_tensorflow(packed, index):
    record = pickle.loads(packed)[index]
    return record.read(np.array([1])), {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)


def test_worker_processes_need_no_tensorflow(prepared):
    train = source(prepared)
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        pixels, loaded = pool.apply(_read_without_tensorflow, (pickle.dumps(train), 3))
    np.testing.assert_array_equal(pixels, frames(lengths(train)[3])[[1]])
    assert loaded == set()


def test_data_that_is_not_there(prepared):
    def message(*arguments, **options):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            source(prepared, *arguments, **options)
        assert '\n' not in str(caught.value)
        return str(caught.value).replace(str(prepared), 'ROOT')

    assert message(name='').startswith(
        "config.data.tfds.name='': it must be NAME, NAME/CONFIG or NAME/CONFIG:VER"
    )
    assert message(name='hub:x/y').startswith("config.data.tfds.name='hub:x/y': it must be NAME")
    assert message(name='nope') == (
        "config.data.tfds.name='nope' with config.data.root='ROOT': Dataset nope not found."
    )
    assert message(name='tiny:9.9.9').endswith('Dataset tiny not found.')
    assert message(name='ucf101/ucf101_1:2.0.0') == (
        'ucf101/ucf101_1/2.0.0 is not prepared in ROOT/ucf101/ucf101_1/2.0.0: python -c "import '
        "tensorflow_datasets as tfds; tfds.builder('ucf101/ucf101_1:2.0.0', "
        "data_dir='ROOT').download_and_prepare()\" downloads and prepares it"
    )
    for split in ('test', 'train[bad'):
        assert message(split) == (
            f"tiny/1.2.3 has no split {split!r}: choose one of train, val, or a slice as 'train[:90%]', with "
            'config.data.train_split, validation_split and test_splits'
        )
    assert message(video='film') == (
        "tiny/1.2.3 has no feature 'film', but label, parts, still, tags, verb, video"
    )
    for video in ('still', 'label', 'tags', 'parts'):
        assert message(video=video).startswith(
            f'config.data.tfds.video={video!r} of tiny/1.2.3 is no video, but '
        )
    assert message(label='tags').startswith(
        "feature 'tags' of tiny/1.2.3 is no class label, but Sequence(ClassLabel"
    )
    assert message(several_labels=True).startswith(
        "feature 'label' of tiny/1.2.3 is no sequence of class labels, but"
    )


def test_damaged_files(prepared, tmp_path):
    folder = tmp_path / 'copy'
    shutil.copytree(prepared, folder)
    whole = source(folder)
    paths = sorted((folder / 'tiny/1.2.3').glob('tiny-train.*'))
    assert len(paths) == 2
    paths[0].write_bytes(paths[0].read_bytes()[:300])
    with pytest.raises(UnreadableExample, match=re.escape(f'{paths[0]}, record 0: ')):
        whole[0].read(np.array([0]))
    left = source(folder)
    assert lengths(left) == [
        seed for index, seed in enumerate(lengths(whole)) if paths[1].name in whole[index].name
    ]
    assert {name.partition(',')[0] for name, _ in left.bad} == {paths[0].name}
    assert left.lost == 7 - len(left) > 0
    # Of a slice only what it asks for is missing.
    assert source(folder, 'train[:1]').lost == 1
    assert source(folder, 'train[-1:]').lost == 0
    paths[0].unlink()
    assert source(folder).bad == [(paths[0].name, 'no such file')]
    assert source(folder).lost == left.lost


def test_the_extra_is_named(tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith('tensorflow'):
            raise ImportError(f'No module named {name!r}')
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(
        ValueError, match=r"TensorFlow: pip install 'vivit_jax\[tfds\]' \(No module"
    ) as caught:
        source(tmp_path, name='ucf101')
    assert '\n' not in str(caught.value)
