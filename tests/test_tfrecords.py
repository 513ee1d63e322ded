import json
import multiprocessing
import pickle
import struct

import cv2
import numpy as np
import pytest
from tensorboardX.crc32c import crc32c as independent_crc32c

from vivit_jax.data.examine import Examination
from vivit_jax.data.files import shards
from vivit_jax.data.files.crc32c import crc32c, masked_crc32c
from vivit_jax.data.files.sequence_example import parse
from vivit_jax.data.listing import Layout
from vivit_jax.data.record import Record, Source, UnreadableExample
from vivit_jax.data.tfrecords import TFRecords

SIZE = (24, 32)


# What is written here: protocol buffers and TFRecords, by their definitions.
def varint(value):
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def field(number, payload):
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def feature(values, packed=True):
    values = [values] if isinstance(values, (int, float, str, bytes)) else values
    if isinstance(values[0], (str, bytes)):
        octets = (value.encode() if isinstance(value, str) else value for value in values)
        return field(1, b''.join(field(1, each) for each in octets))
    if isinstance(values[0], float):
        return field(2, field(1, struct.pack(f'<{len(values)}f', *values)))
    if not packed:
        return field(3, b''.join(varint(1 << 3) + varint(value) for value in values))
    return field(3, field(1, b''.join(map(varint, values))))


def entries(features):
    return b''.join(field(1, field(1, key.encode()) + field(2, value)) for key, value in features.items())


def pixels(seed):
    """Smooth, so that JPEG keeps it."""
    noise = np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


def jpeg(seed):
    return cv2.imencode('.jpg', pixels(seed)[..., ::-1], (cv2.IMWRITE_JPEG_QUALITY, 100))[1].tobytes()


def decoded(seed):
    return cv2.imdecode(np.frombuffer(jpeg(seed), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def sequence_example(seeds, **context):
    """What DMVR writes: `frames` images, and what describes them."""
    context = {key.replace('__', '/'): feature(value) for key, value in context.items()}
    frames = b''.join(field(1, feature(jpeg(seed))) for seed in seeds)
    sound = field(1, feature([0.5] * 100))
    lists = entries({'WAVEFORM/feature/floats': sound, 'image/encoded': frames})
    return field(1, entries(context)) + field(2, lists)


def labelled(seeds, label, text=None, **context):
    texts = {} if text is None else {'clip__label__text': text}
    return sequence_example(seeds, clip__label__index=label, **texts, **context)


def masked(data):
    crc = independent_crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def framed(data):
    length = struct.pack('<Q', len(data))
    return length + struct.pack('<I', masked(length)) + data + struct.pack('<I', masked(data))


def write(path, *examples):
    path.write_bytes(b''.join(map(framed, examples)))


@pytest.fixture
def root(tmp_path):
    """Two shards to train on, one file that validates."""
    write(
        tmp_path / 'train.tfrecord-00000-of-00002',
        labelled(range(5), 0, 'run', video__filename='a.mp4', image__frame_rate=10.0),
        labelled(range(3, 6), 2, 'walk', video__filename='b.mp4'),
    )
    write(tmp_path / 'train.tfrecord-00001-of-00002', labelled([9], 0, 'run', clip__media_id='c'))
    write(tmp_path / 'val.tfrecord', labelled([4, 5], 1, 'sit'))
    return tmp_path


def source(root, split='train', files='', examination=None, **layout):
    layout = Layout(root=str(root), **layout)
    return TFRecords(split, layout=layout, examination=examination or Examination(), files=files)


def test_crc32c_equals_an_independent_one():
    assert crc32c(b'123456789') == 0xE3069283  # RFC 3720
    assert crc32c(bytes(32)) == 0x8A9136AA
    random = np.random.default_rng(0)
    for length in (*range(20), 255, 1000, 4097, 12_345):
        data = random.bytes(length)
        assert crc32c(data) == independent_crc32c(data), length
        assert masked_crc32c(data) == masked(data)


def test_records(root):
    train, validation = source(root), source(root, 'validation')
    assert isinstance(train, Source)
    assert train.class_names == validation.class_names == ['run', 'sit', 'walk']
    assert (train.bad, train.splits, train.note) == ([], ('train', 'validation'), '')
    records = [train[index] for index in range(len(train))]
    assert [(r.name, r.label, r.num_frames, r.frame_size, r.seconds, r.codec) for r in records] == [
        ('a.mp4', 0, 5, SIZE, 0.5, 'jpeg'),
        ('b.mp4', 2, 3, SIZE, None, 'jpeg'),
        ('c', 0, 1, SIZE, None, 'jpeg'),
    ]
    assert [(validation[0].name, validation[0].label)] == [('val.tfrecord, record 0', 1)]
    np.testing.assert_array_equal(records[1].read(np.array([2, 0, 2])), [decoded(5), decoded(3), decoded(5)])
    np.testing.assert_array_equal(records[2].read(np.array([0])), [decoded(9)])
    assert records[0].read(np.array([], np.int64)).shape == (0, *SIZE, 3)
    for wrong in (-1, 5):
        with pytest.raises(IndexError, match=f'frames {wrong} to {wrong} must be in \\[0, 5\\)'):
            records[0].read(np.array([wrong]))
    with pytest.raises(IndexError, match=r'index 3 must be in \[0, 3\)'):
        train[3]


def _read_in_a_process(packed, index):
    return pickle.loads(packed)[index].read(np.array([1]))


def test_any_process_reads_any_record(root):
    train = source(root)
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        frames = pool.apply(_read_in_a_process, (pickle.dumps(train), 0))
    np.testing.assert_array_equal(frames, [decoded(1)])


def test_what_was_found_is_kept(root, tmp_path, monkeypatch):
    progress = []
    examination = Examination(cache=tmp_path / 'cache', on_progress=lambda *counts: progress.append(counts))
    first = source(root, examination=examination)
    assert progress == [(1, 3), (2, 3), (3, 3)]
    monkeypatch.setattr(shards, '_describe', None)  # nothing is looked into again
    again = source(root, examination=Examination(cache=tmp_path / 'cache'))
    assert again.digest == first.digest
    np.testing.assert_array_equal(again[0].read(np.array([3])), [decoded(3)])


def test_the_digest_tells_examples_apart(root):
    digests = {source(root).digest, source(root).digest, source(root, 'validation').digest}
    write(root / 'train.tfrecord-00001-of-00002', labelled([9], 2, 'walk', clip__media_id='c'))
    digests.add(source(root).digest)
    write(root / 'train.tfrecord-00001-of-00002', labelled([9, 9], 2, 'walk', clip__media_id='c'))
    digests.add(source(root).digest)
    assert len(digests) == 4


def test_names_that_occur_twice_tell_where_they_are(root):
    write(root / 'val.tfrecord', *[labelled([seed], 1, clip__data_path='v.mp4') for seed in (1, 2)])
    validation = source(root, 'validation')
    assert [validation[index].name for index in (0, 1)] == [
        'v.mp4 (val.tfrecord, record 0)',
        'v.mp4 (val.tfrecord, record 1)',
    ]


def test_durations(root):
    times = {'clip__start__timestamp': 2_000_000, 'clip__end__timestamp': 5_500_000}
    write(
        root / 'val.tfrecord', labelled([1], 0, **times), labelled([1, 2], 0, image__frame_rate=4.0, **times)
    )
    validation = source(root, 'validation')
    assert [validation[index].seconds for index in (0, 1)] == [3.5, 0.5]


def test_single_images_and_frames_in_an_example(root):
    """`tf.train.Example` instead, as DMVR reads for images."""
    context = {'image/encoded': feature([jpeg(1), jpeg(2)]), 'clip/label/index': feature(1)}
    write(root / 'val.tfrecord', field(1, entries(context)))
    record = source(root, 'validation')[0]
    assert record.num_frames == 2
    np.testing.assert_array_equal(record.read(np.array([0, 1])), [decoded(1), decoded(2)])


def test_several_labels(root):
    write(root / 'val.tfrecord', labelled([1], [2, 0], ['walk', 'run']), labelled([1], 1))
    validation = source(root, 'validation', several_labels=True, num_classes=(4,))
    assert [validation[index].label for index in (0, 1)] == [(1.0, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0, 0.0)]
    assert validation.class_names == ['run', '1', 'walk', '3']
    assert source(root, 'validation').bad == [
        ('val.tfrecord, record 0', "labels 0, 2: one is needed (several go with training.loss='sigmoid')")
    ]


def test_two_heads_counted_through(root):
    """As Scenic has EPIC-Kitchens: 300 nouns, then the verbs."""
    write(root / 'val.tfrecord', labelled([1], [3, 301]), labelled([1], [300, 0]), labelled([1], [1, 2]))
    for name in ('train.tfrecord-00000-of-00002', 'train.tfrecord-00001-of-00002'):
        (root / name).unlink()
    heads = {'heads': ('noun', 'verb'), 'num_classes': (300, 97)}
    validation = source(root, 'validation', **heads)
    assert [validation[index].label for index in range(2)] == [(3, 1), (0, 0)]
    assert validation.class_names == [*map(str, range(300)), *map(str, range(97))]
    assert validation.bad == [
        ('val.tfrecord, record 2', 'labels 1, 2: one is needed of noun, verb, counted through them')
    ]
    with pytest.raises(
        ValueError, match=r'has noun/clip/label/index: where .* config.data.num_classes must tell'
    ):
        source(root, 'validation', heads=('noun', 'verb'))


def test_two_heads_with_features_of_their_own(tmp_path):
    labels = [(3, 1), (0, 0), (2, 9)]
    examples = [
        sequence_example([1], **{'noun/clip/label/index': noun, 'verb/clip/label/index': verb})
        for noun, verb in labels
    ]
    write(tmp_path / 'train.tfrecord', *examples)
    train = source(tmp_path, heads=('noun', 'verb'))
    assert [train[index].label for index in range(3)] == labels
    assert train.class_names == ['0', '1', '2', '3', *map(str, range(10))]
    train = source(tmp_path, heads=('noun', 'verb'), num_classes=(4, 9))
    assert train.bad == [('train.tfrecord, record 2', 'verb 9: it must be one number in [0, 9)')]


def test_classes_that_are_numbered_afresh_in_each_split(root):
    """DMVR's own program does so; MediaSequence calls the texts `string`."""
    write(
        root / 'val.tfrecord',
        sequence_example([1], clip__label__index=0, clip__label__string='walk'),
        sequence_example([1], clip__label__index=1, clip__label__string='run'),
    )
    train, validation = source(root), source(root, 'validation')
    assert train.class_names == validation.class_names == ['run', 'walk']
    assert [train[index].label for index in range(3)] == [0, 1, 0]
    assert [validation[index].label for index in range(2)] == [1, 0]
    assert (
        train.note
        == validation.note
        == (
            "the records number their classes differently (val.tfrecord, record 0: 'walk' is 0, but not in others): "
            'numbered by name'
        )
    )
    write(root / 'val.tfrecord', labelled([1], 0, 'walk'), labelled([1], 1))
    with pytest.raises(
        ValueError, match=r"contradict each other: val.tfrecord, record 0: 'walk' is 0, but not"
    ):
        source(root)


def test_labels_that_cannot_be_used(root):
    write(root / 'val.tfrecord', labelled([1], -1), sequence_example([1]), labelled([1], 5), labelled([1], 2))
    validation = source(root, 'validation', num_classes=(3,))
    assert len(validation) == 1
    assert validation.bad == [
        ('val.tfrecord, record 0', 'label -1: it must be in [0, 3)'),
        ('val.tfrecord, record 1', 'no label (clip/label/index)'),
        ('val.tfrecord, record 2', 'label 5: it must be in [0, 3)'),
    ]


def test_damaged_records_are_named_and_left_out(root):
    good = labelled([1], 0)
    content = bytearray(framed(good) * 4)
    whole = len(framed(good))
    content[whole + 200] ^= 1  # in the second's bytes
    content[3 * whole - 1] ^= 1  # the third's checksum
    (root / 'val.tfrecord').write_bytes(content)
    validation = source(root, 'validation')
    assert len(validation) == 2
    assert validation.bad == [
        (f'val.tfrecord, record 1 (byte {whole})', 'its bytes do not agree with their checksum'),
        (f'val.tfrecord, record 2 (byte {2 * whole})', 'its bytes do not agree with their checksum'),
    ]
    np.testing.assert_array_equal(validation[1].read(np.array([0])), [decoded(1)])
    content[whole] ^= 1  # its length: where the next begins is not known
    (root / 'val.tfrecord').write_bytes(content)
    cause = f'its length is damaged: the {3 * whole} bytes from there on cannot be read'
    assert source(root, 'validation').bad == [(f'val.tfrecord, record 1 (byte {whole})', cause)]


def test_a_file_that_is_cut_off_has_the_records_before_the_cut(root):
    content = framed(labelled([1], 0)) + framed(labelled([2], 0)) + framed(labelled([3], 0))
    ends = np.cumsum([len(framed(labelled([seed], 0))) for seed in (1, 2, 3)])
    for cut in (*(len(content) * np.arange(10) // 10), ends[0] + 5, ends[0] + 12, ends[1] - 1):
        (root / 'val.tfrecord').write_bytes(content[:cut])
        validation = source(root, 'validation')
        count = int(np.searchsorted(ends, cut, side='right'))
        assert len(validation) == count
        for index in range(count):
            np.testing.assert_array_equal(validation[index].read(np.array([0])), [decoded(index + 1)])
        start = [0, *ends][count]
        names = [name for name, _ in validation.bad]
        assert names == ([f'val.tfrecord, record {count} (byte {start})'] if cut > start else [])
        assert all(f'the file is cut off: {cut - start} ' in cause for _, cause in validation.bad)


def test_a_lost_shard_counts_its_examples(tmp_path):
    def shard(number):
        return tmp_path / f'train-{number:05d}-of-00004'

    record = framed(labelled([1], 0))  # all are alike
    for number, count in enumerate((10, 8, 9, 9)):
        shard(number).write_bytes(record * count)
    assert source(tmp_path).lost == 0
    shard(0).write_bytes(b'no record, but text')
    train = source(tmp_path)
    assert (len(train), len(train.bad), train.lost) == (26, 1, 9)  # as many as the others have on average
    damaged = bytearray(record * 8)
    damaged[len(record) + 200] ^= 1  # the second's bytes: one is lost
    shard(1).write_bytes(damaged)
    assert (len(source(tmp_path)), source(tmp_path).lost) == (25, 10)
    damaged[4 * len(record)] ^= 1  # the fifth's length: four that are left cannot be found
    shard(1).write_bytes(damaged)
    train = source(tmp_path)
    assert (len(train), len(train.bad), train.lost) == (
        21,
        3,
        9 + 1 + 4 + 1,
    )  # 9 on average: it lacks one more
    shard(1).write_bytes(record * 2 + record[:30])  # cut off: where others have 9, it lacks 7
    assert (len(source(tmp_path)), source(tmp_path).lost) == (20, 9 + 7)
    write(shard(2), *[labelled([1], 0)] * 8, sequence_example([1]))  # a record without a label
    assert source(tmp_path).lost == 9 + 7 + 1


def test_what_a_file_of_its_own_has_lost(root):
    record = framed(labelled([1], 0))
    for content, lost in {
        record * 3 + record[:20]: 1,
        record[:-1]: 1,
        record + bytes(4 * len(record)): 4,  # a length that is damaged, and all after it
    }.items():
        (root / 'val.tfrecord').write_bytes(content)
        assert source(root, 'validation').lost == lost
        assert source(root).lost == 0  # another split's


def test_files_that_are_no_tfrecords(root):
    cases = {
        b'no record, but text': 'not a TFRecord: the first length does not agree with its checksum',
        b'\x1f\x8b\x08'
        + bytes(40): 'compressed with gzip, so that its examples cannot be read one by one: gunzip it',
    }
    for content, cause in cases.items():
        (root / 'val.tfrecord').write_bytes(content)
        assert source(root, 'validation').bad == [('val.tfrecord', cause)]
    (root / 'val.tfrecord').write_bytes(b'')
    assert (len(source(root, 'validation')), source(root, 'validation').bad) == (0, [])


def test_records_that_are_no_videos(root):
    def bad(example):
        write(root / 'val.tfrecord', example)
        ((name, cause),) = source(root, 'validation').bad
        assert name.startswith('val.tfrecord, record 0')
        return cause

    assert bad(b'\x0a\x05garbage') == 'no protocol buffer: a value is stored as 7'
    assert bad(b'\x0a\x50short') == 'no protocol buffer: 80 bytes are promised where 5 are left'
    assert bad(b'\xff' * 30) == 'no protocol buffer: a number does not end'
    empty = field(1, entries({'clip/label/index': feature(1)}))
    assert bad(empty) == "no frames in 'image/encoded'; it has clip/label/index"
    assert bad(b'') == "no frames in 'image/encoded'; it has nothing else"
    text = field(1, entries({'image/encoded': feature('text'), 'clip/label/index': feature(1)}))
    assert bad(text) == 'its first frame is no whole image'


def test_garbage_ends_in_a_value_error():
    random = np.random.default_rng(0)
    good = labelled(range(2), [1, 2], ['a', 'b'], image__frame_rate=25.0)
    outcomes = {True: 0, False: 0}
    for trial in range(1500):
        data = bytearray(good)
        for place in random.integers(0, 200, 3) if trial % 2 else random.integers(0, len(data), 20):
            data[place] = random.integers(256)
        data = bytes(data[: random.integers(1, len(data) + 1)]) if trial % 3 == 0 else bytes(data)
        try:
            example = parse(data)
            for key in ('clip/label/index', 'image/frame_rate', 'image/encoded', 'clip/label/text'):
                example.integers(key), example.floats(key), example.texts(key)
            outcomes[True] += 1
        except ValueError:
            outcomes[False] += 1
    assert min(outcomes.values()) > 100


def test_numbers_in_every_encoding():
    values = [0, 1, 127, 128, 300, -1, -(2**63), 2**63 - 1]
    for packed in (True, False):
        example = parse(field(1, entries({'x': feature(values, packed)})))
        assert example.integers('x') == values
    floats = b''.join(varint(1 << 3 | 5) + struct.pack('<f', value) for value in (0.5, -2.0))
    assert parse(field(1, entries({'x': field(2, floats)}))).floats('x') == [0.5, -2.0]
    # Fields of later versions are passed over, whatever they hold; a message in two parts is one.
    unknown = varint(9 << 3) + varint(5) + varint(10 << 3 | 1) + bytes(8) + varint(11 << 3 | 5) + bytes(4)
    halves = [field(1, entries({key: feature(number)})) for key, number in (('x', 1), ('y', 2))]
    example = parse(unknown + halves[0] + field(12, b'abc') + halves[1])
    assert (example.integers('x'), example.integers('y'), example.integers('z')) == ([1], [2], [])


def test_a_file_that_changes_while_it_is_read_from(root):
    train = source(root)
    write(root / 'train.tfrecord-00000-of-00002', labelled([1, 2], 0, 'run'), labelled([1], 2, 'walk'))
    for index in (0, 1):
        with pytest.raises(
            UnreadableExample, match=rf'-00000-of-00002, record {index}: the file has changed'
        ):
            train[index].read(np.array([0]))
    (root / 'train.tfrecord-00000-of-00002').unlink()
    with pytest.raises(UnreadableExample, match=r'record 0: No such file or directory'):
        train[0].read(np.array([0]))


def test_a_frame_that_is_broken(root):
    frames = b''.join(field(1, feature(content)) for content in (jpeg(1), jpeg(2)[:-30], jpeg(3)))
    context = field(1, entries({'clip/label/index': feature(0)}))
    write(root / 'val.tfrecord', context + field(2, entries({'image/encoded': frames})))
    record = source(root, 'validation')[0]
    np.testing.assert_array_equal(record.read(np.array([2, 0])), [decoded(3), decoded(1)])
    with pytest.raises(UnreadableExample, match=r'val.tfrecord, record 0, frame 1 is no whole image'):
        record.read(np.array([0, 1]))


def test_files_by_name(root):
    for old, new in (('train', 'kinetics_rgb'), ('val', 'held_out')):
        for path in root.glob(f'{old}.tfrecord*'):
            path.rename(root / path.name.replace(old, new))
    files = 'train=kinetics_rgb.tfrecord@2, val=held_out.tfrecord'
    assert [len(source(root, split, files)) for split in ('train', 'validation')] == [3, 1]
    (root / 'sub').mkdir()
    (root / 'held_out.tfrecord').rename(root / 'sub/x-00000-of-00001.tfrecord')
    assert len(source(root, 'mine', 'mine=sub/x@1.tfrecord')) == 1


@pytest.mark.parametrize(
    ('name', 'split'),
    [
        ('train-00000-of-00001', 'train'),  # as DMVR's program calls them
        ('val-00000-of-00001', 'validation'),
        ('Validation.tfrecords', 'val'),
        ('ucf101-test.tfrecord-00000-of-00001', 'test'),
        ('hmdb_train_1-00000-of-00001.tfrecord', 'train'),
        ('mine.tfrecord', 'mine'),
    ],
)
def test_files_found_by_their_splits(tmp_path, name, split):
    write(tmp_path / name, labelled([1], 0))
    (tmp_path / '.train.tfrecord').write_text('hidden')
    (tmp_path / 'training_log.txt').write_text('no records')
    assert len(source(tmp_path, split)) == 1


def test_data_that_is_not_there(root):
    def message(split='train', folder=root, files='', **layout):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            source(folder, split, files, **layout)
        assert '\n' not in str(caught.value)
        return str(caught.value).replace(str(root), 'ROOT')

    assert message('test') == (
        "ROOT has no TFRecords of the split 'test': it has train.tfrecord@2, val.tfrecord; files are called "
        'SPLIT.tfrecord-00000-of-00016 or SPLIT.tfrecord, others are told by config.data.tfrecords.files'
    )
    assert message('test', files='train=train.tfrecord@2') == (
        "config.data.tfrecords.files='train=train.tfrecord@2' does not tell the split 'test', but train"
    )
    assert message(files='train.tfrecord@2') == (
        "config.data.tfrecords.files='train.tfrecord@2' must be SPLIT=NAME@SHARDS or SPLIT=FILE, with commas "
        'between, as train=train.tfrecord@1024,test=test.tfrecord'
    )
    assert message(files='train=train.tfrecord@9') == (
        '9 of the 9 files of train.tfrecord@9 are not in ROOT: train.tfrecord-00000-of-00009, '
        'train.tfrecord-00001-of-00009, train.tfrecord-00002-of-00009, train.tfrecord-00003-of-00009, '
        'train.tfrecord-00004-of-00009, …'
    )
    assert message(num_classes=(3, 4)) == 'config.data.num_classes=(3, 4) must be one each of label'
    assert message(folder=root / 'gone').endswith("gone' is not a folder: it must hold TFRecords")
    (root / 'train.tfrecord-00000-of-00002').unlink()
    missing = '1 of the 2 files of train.tfrecord@2 are not in ROOT: train.tfrecord-00000-of-00002'
    assert message() == message('validation') == missing
    write(root / 'train_2.tfrecord', labelled([1], 0))
    assert message() == (
        "ROOT has several files that may be the split 'train': train.tfrecord@2, train_2.tfrecord; say which with "
        '--config.data.tfrecords.files=train=train.tfrecord@2'
    )
    write(root / 'val.tfrecord', sequence_example([1]))
    assert (
        message('validation', files='validation=val.tfrecord')
        == 'no record in ROOT has a label (clip/label/index)'
    )
    with pytest.raises(ValueError, match=r'config.data.root is not set: .* --config.data.root=ROOT'):
        TFRecords('train', layout=Layout(), examination=Examination())


def test_tensorflow_writes_and_reads_the_same(tmp_path):
    tf = pytest.importorskip('tensorflow')
    example = tf.train.SequenceExample()
    example.context.feature['clip/label/index'].int64_list.value[:] = [2]
    example.context.feature['clip/label/text'].bytes_list.value[:] = ['été'.encode()]
    example.context.feature['image/frame_rate'].float_list.value[:] = [25.0]
    for seed in range(3):
        example.feature_lists.feature_list['image/encoded'].feature.add().bytes_list.value[:] = [jpeg(seed)]
    path = tmp_path / 'train-00000-of-00001'
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(example.SerializeToString())
        writer.write(example.SerializeToString())
    train = source(tmp_path)
    record = train[1]
    assert isinstance(record, Record)
    assert (len(train), train.class_names) == (2, ['0', '1', 'été'])
    assert (record.label, record.num_frames, record.seconds) == (2, 3, 3 / 25)
    np.testing.assert_array_equal(record.read(np.arange(3)), [decoded(seed) for seed in range(3)])
    # And what the tests above read is what TensorFlow reads.
    ours = labelled(range(2), [7, -1], ['a', 'b'], image__frame_rate=12.5)
    write(path, ours)
    (theirs,) = tf.data.TFRecordDataset([str(path)]).as_numpy_iterator()
    assert theirs == ours
    read = tf.train.SequenceExample.FromString(theirs)
    assert list(read.context.feature['clip/label/index'].int64_list.value) == [7, -1]
    assert [
        each.bytes_list.value[0] for each in read.feature_lists.feature_list['image/encoded'].feature
    ] == [
        jpeg(0),
        jpeg(1),
    ]
    # TensorFlow's default is a quicker, less exact transform.
    image = tf.io.decode_jpeg(jpeg(0), dct_method='INTEGER_ACCURATE')
    np.testing.assert_array_equal(image, decoded(0))


def test_what_is_kept_is_small(root):
    (found,) = (shards.probe(str(root / 'val.tfrecord'), video='image/encoded', labels=('x',), texts=()),)
    assert len(json.dumps(found.index)) < 400
