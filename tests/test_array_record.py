"""Prepared videos: what is written is read, and damage is named."""

import concurrent.futures
import gzip
import io
import json
import pickle

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from videos import decode, write_video
from vivit_jax.data.array_record import (
    ArrayRecords,
    Split,
    read_shard,
    write_manifest,
    write_shard,
    write_whole,
)
from vivit_jax.data.files.decoding import probe
from vivit_jax.data.record import UnreadableExample

SHARDS = ('train-00000-of-00002.array_record', 'train-00001-of-00002.array_record')
# Two shards of three and two examples; the second one could not be prepared.
NAMES = ('a/1.mp4', 'a/2.mp4', 'b/ü \udcff.mp4', 'b/4.mp4', 'b/5.mp4')
LABELS = (0, 1, 1, 0, 1)
LENGTHS = (20, None, 12, 9, 30)


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('videos')
    contents = {}
    for frames in filter(None, LENGTHS):
        write_video(folder / f'{frames}.mp4', options={'g': '8', 'bf': '0'}, frames=frames)
        contents[frames] = (folder / f'{frames}.mp4').read_bytes()
    return contents


def write(root, videos, labels=LABELS, heads=('label',)):
    prepared = [(videos[n], probe(videos[n])) if n else 'its disk is full of sand' for n in LENGTHS]
    parts = [write_shard(root / SHARDS[0], prepared[:3]), write_shard(root / SHARDS[1], prepared[3:])]
    split = Split(
        examples=list(zip(NAMES, labels, strict=True)),
        shards=list(zip(SHARDS, parts, strict=True)),
        bad=[('c.mp4', 'is empty')],
    )
    sizes = dict(zip(heads, (2, 2), strict=False))
    names = ['a', 'b', 'c', 'd'][: sum(sizes.values())]
    write_manifest(root, class_names=names, heads=sizes, settings={'gop': 8}, splits={'train': split})
    return str(root)


@pytest.fixture
def root(tmp_path, videos):
    return write(tmp_path, videos)


def test_what_is_written_is_read(root, videos):
    source = ArrayRecords('train', root=root)
    assert (source.class_names, source.heads, source.splits) == (['a', 'b'], ('label',), ('train',))
    assert source.bad == [('c.mp4', 'is empty'), ('a/2.mp4', 'its disk is full of sand')]
    assert [source[i].name for i in range(len(source))] == [NAMES[i] for i in (0, 2, 3, 4)]
    assert [source[i].label for i in range(len(source))] == [0, 1, 0, 1]
    for i, frames in enumerate((20, 12, 9, 30)):
        record = source[i]
        assert (record.num_frames, record.frame_size, record.codec) == (frames, (48, 64), 'h264')
        assert record.seconds == frames / 25
        indices = np.array([frames - 1, 0, 5, 5])
        np.testing.assert_array_equal(record.read(indices), decode(io.BytesIO(videos[frames]))[indices])
    for outside in (-1, 4):
        with pytest.raises(IndexError, match=rf'index {outside} must be in \[0, 4\)'):
            source[outside]


def test_a_record_is_a_whole_file(root, videos):
    reader = ArrayRecordReader(f'{root}/{SHARDS[0]}')
    assert [reader.read([i])[0] for i in range(reader.num_records())] == [videos[20], videos[12]]
    assert 'group_size:1' in reader.writer_options_string()


@pytest.mark.parametrize(
    'labels',
    [
        [(0, 1), (1, 0), (1, 1), (0, 0), (0, 1)],
        [(0.0, 1.0, 0.0, 1.0)] * 4 + [(1.0, 1.0, 0.0, 0.0)],
    ],
)
def test_labels_of_several_heads_and_of_several_classes(tmp_path, videos, labels):
    source = ArrayRecords('train', root=write(tmp_path, videos, labels, ('noun', 'verb')))
    assert source.heads == ('noun', 'verb')
    assert source.head_sizes == (2, 2)
    assert [source[i].label for i in range(4)] == [labels[i] for i in (0, 2, 3, 4)]
    assert type(source[0].label[0]) is type(labels[0][0])


def test_the_digest_tells_labels(tmp_path, videos):
    digests = set()
    for i, labels in enumerate([LABELS, LABELS, (1, 1, 1, 0, 1)]):
        (tmp_path / str(i)).mkdir()
        digests.add(ArrayRecords('train', root=write(tmp_path / str(i), videos, labels)).digest)
    assert len(digests) == 2


def test_threads_and_processes_read_alike(root):
    source = ArrayRecords('train', root=root)
    expected = [source[i].read(np.arange(9)) for i in range(4)]
    copy = pickle.loads(pickle.dumps(source))  # as it goes to worker processes
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        read = pool.map(lambda i: copy[i].read(np.arange(9)), [*range(4)] * 8)
        for i, frames in enumerate(read):
            np.testing.assert_array_equal(frames, expected[i % 4])


def test_a_shard_cut_off_is_told_at_the_start(root, tmp_path):
    size = (tmp_path / SHARDS[0]).stat().st_size
    (tmp_path / SHARDS[0]).write_bytes((tmp_path / SHARDS[0]).read_bytes()[:-1000])
    source = ArrayRecords('train', root=root)
    assert [source[i].name for i in range(len(source))] == ['b/4.mp4', 'b/5.mp4']
    cause = f'its shard {SHARDS[0]} has {size - 1000} of {size} bytes: copy it again, or prepare again'
    assert source.bad[2:] == [('a/1.mp4', cause), ('b/ü \udcff.mp4', cause)]
    assert read_shard(tmp_path / SHARDS[0]) is None
    (tmp_path / SHARDS[1]).write_bytes(b'')
    with pytest.raises(ValueError, match=rf'{SHARDS[0]} has \d+ of \d+ bytes'):
        ArrayRecords('train', root=root)


def test_damage_that_only_reading_meets(root, tmp_path, videos):
    path = tmp_path / SHARDS[0]
    content = bytearray(path.read_bytes())
    place = content.index(videos[12][200:300], content.index(videos[20]) + len(videos[20]))
    content[place : place + 100] = bytes(100)
    path.write_bytes(content)
    source = ArrayRecords('train', root=root)
    assert len(source) == 4
    np.testing.assert_array_equal(source[0].read(np.arange(20)), decode(io.BytesIO(videos[20])))
    with pytest.raises(
        UnreadableExample, match=rf'record 1 of .*{SHARDS[0]} cannot be read: .*hash'
    ) as caught:
        source[1].read(np.arange(2))
    assert '\n' not in str(caught.value)
    assert read_shard(path) is None


def test_a_shard_that_goes_away(root, tmp_path):
    source = ArrayRecords('train', root=root)
    (tmp_path / SHARDS[1]).unlink()
    with pytest.raises(UnreadableExample, match=rf'record 0 of .*{SHARDS[1]} cannot be read: .*No such file'):
        source[2].read(np.arange(2))
    with pytest.raises(ValueError, match=rf'{SHARDS[1]} is missing \(No such file or directory\): copy it'):
        ArrayRecords('train', root=root)


def manifest(change):
    def damage(path):
        content = json.loads(gzip.decompress(path.read_bytes()))
        change(content)
        path.write_bytes(gzip.compress(json.dumps(content).encode()))

    return damage


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (lambda path: path.unlink(), r'manifest.json.gz is missing: config.data.root must be a folder that tools/'),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), r'manifest.json.gz is damaged \(.*\): prepare'),
        (lambda path: path.write_bytes(b'{}'), r'manifest.json.gz is damaged \(Not a gzipped file'),
        (lambda path: path.write_bytes(gzip.compress(b'{"a')), r'manifest.json.gz is damaged \(Unterminated'),
        (lambda path: path.write_bytes(gzip.compress(b'[]')), r'manifest.json.gz is no manifest of version 1'),
        (manifest(lambda m: m.update(version=2)), r'manifest.json.gz is no manifest of version 1: prepare again'),
        (manifest(lambda m: m.pop('heads')), r"manifest.json.gz is damaged \(KeyError: 'heads'\): prepare again"),
        (manifest(lambda m: m['splits'].update(test=m['splits'].pop('train'))), r"no split 'train'; it has test$"),
    ],
)  # fmt: skip
def test_manifests_with_mistakes(root, tmp_path, damage, message):
    damage(tmp_path / 'manifest.json.gz')
    with pytest.raises(ValueError, match=message) as caught:
        ArrayRecords('train', root=root)
    assert '\n' not in str(caught.value)


def test_no_root():
    with pytest.raises(ValueError, match=r'config.data.root is not set: give the folder that tools/prepare_'):
        ArrayRecords('train', root=None)


def test_half_a_shard_is_none(tmp_path, videos):
    def breaks_off():
        yield videos[20], probe(videos[20])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path / SHARDS[0], breaks_off())
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match='No such file or directory'):
        write_shard(tmp_path / 'nowhere' / SHARDS[0], [])


def test_a_shard_is_whole_or_not(tmp_path, videos):
    path = tmp_path / SHARDS[0]
    shard = write_shard(path, [(videos[20], probe(videos[20])), 'gone'])
    assert read_shard(path) == shard
    assert shard.size == path.stat().st_size
    assert shard.outcomes == (probe(videos[20]), 'gone')
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert read_shard(path) is None
    assert write_shard(path, [(videos[20], probe(videos[20])), 'gone']) == shard
    (tmp_path / 'facts' / f'{path.stem}.json').write_text('[1')
    assert read_shard(path) is None


def test_a_file_is_written_whole(tmp_path):
    write_whole(tmp_path / 'a', b'1')
    write_whole(tmp_path / 'a', b'2')
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [('a', b'2')]
