"""Reads broken files of some kinds, as a program of its own, since a library that crashes takes its process along.

    python tests/fuzz_reading.py CASES FOLDER KIND…

The content of the case under way lies in FOLDER/KIND/case, should the process not live to tell of it. Prints how many
of the cases of each kind were refused, how many read.
"""

import functools
import gzip
import io
import itertools
import json
import math
import pathlib
import struct
import sys
import zipfile

import av
import cv2
import hostile
import hypothesis
import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from test_tfrecords import entries, feature, field

from videos import write_video
from vivit_jax.data import frame_folders, volumes
from vivit_jax.data.array_record import ArrayRecords, Split, write_manifest, write_shard
from vivit_jax.data.files import shards
from vivit_jax.data.files.crc32c import masked_crc32c
from vivit_jax.data.files.decoding import frame_times, probe, read_frames
from vivit_jax.data.record import Found, UnreadableExample

SECONDS = 3.0  # data.file_seconds here
MEBIBYTES = 700  # beyond what there is: a frame of 8K, as FFmpeg's, as RGB and in a clip
READ = 'read'  # what there is to say of a file that could be read
VP9 = {'deadline': 'realtime', 'cpu-used': '8', 'g': '8'}
VIDEOS = {
    'h264.mp4': {'options': {'g': '8', 'bf': '2'}},
    'fragments.mp4': {'options': {'g': '8', 'movflags': 'frag_keyframe+empty_moov'}},
    'mpeg4.avi': {'codec': 'mpeg4', 'options': {'g': '8'}},
    'jpeg.avi': {'codec': 'mjpeg', 'pix_fmt': 'yuvj420p'},
    'h264.mkv': {'options': {'g': '8'}},
    'vp9.webm': {'codec': 'libvpx-vp9', 'options': VP9},
    'stream.ts': {'options': {'g': '8'}},
    'mpeg2.mpg': {'codec': 'mpeg2video'},
    'h264.flv': {'options': {'g': '8'}},
    'wmv2.wmv': {'codec': 'wmv2'},
    'vp8.ogv': {'codec': 'libvpx', 'options': VP9},
    'moving.gif': {'codec': 'gif', 'pix_fmt': 'rgb8'},
}
FRAMES, SIZE = 12, (32, 48)
PREPARATION = volumes.Preparation(size=(4, 4, 4))


def sane_cause(cause):
    """Asserts that a cause is one line."""
    assert cause.strip()
    assert len(cause) <= hostile.LONGEST
    assert '\n' not in cause
    assert '\r' not in cause


def sane(found, most):
    """Asserts that what was found can be: at most so many frames."""
    assert isinstance(found, Found)
    assert 0 < found.num_frames <= most
    assert min(found.frame_size) > 0
    assert found.seconds is None or 0 <= found.seconds < math.inf


def unreadable(read, name):
    """Reads; what cannot be read must be told as such, naming the file."""
    try:
        return read()
    except UnreadableExample as error:
        hostile.judge(error, name)
        return None


# --- kinds: what makes a valid file, and what is done with a broken one


def video(name, folder):
    write_video(folder / name, frames=FRAMES, size=SIZE, **VIDEOS[name])
    return (folder / name).read_bytes()


def use_video(path, content):
    path.write_bytes(content)
    found = probe(str(path), seconds=SECONDS)
    if isinstance(found, str):
        return sane_cause(found)
    sane(found, len(content))
    times = frame_times(found)
    assert len(times) == found.num_frames
    assert np.isfinite(times).all()
    places = np.unique(np.linspace(0, found.num_frames - 1, 3).astype(int))
    frames = unreadable(lambda: read_frames(str(path), found, places, seconds=SECONDS), path)
    assert frames is None or frames.shape == (len(places), *found.frame_size, 3)
    return READ


def image(ending, folder):
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    return cv2.imencode(ending, cv2.GaussianBlur(noise, (0, 0), 2))[1].tobytes()


def use_image(path, content):
    place = path.with_suffix('')
    place.mkdir(exist_ok=True)
    for number in range(2):
        (place / f'frame_{number}{path.suffix}').write_bytes(content)
    found = frame_folders.probe(str(place), seconds=SECONDS)
    if isinstance(found, str):
        return sane_cause(found)
    sane(found, 2)
    frames = unreadable(lambda: frame_folders.read(str(place), found, np.array([1, 0])), place)
    assert frames is None or frames.shape == (2, *found.frame_size, 3)
    return READ


def voxels(name, folder):
    scan = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
    if name.startswith('nifti'):
        import nibabel

        kind = nibabel.Nifti2Image if '2' in name else nibabel.Nifti1Image
        made = kind(scan, np.diag([1, 1, 2, 1])).to_bytes()
        return gzip.compress(made, mtime=0) if name.endswith('.gz') else made
    file = io.BytesIO()
    if name.endswith('.npy'):
        np.save(file, scan)
    elif name.startswith('packed'):
        np.savez_compressed(file, volume=scan, other=scan[0])
    else:
        np.savez(file, image=scan)
    return file.getvalue()


def use_voxels(path, content):
    path.write_bytes(content)
    found = volumes.probe(str(path), preparation=PREPARATION, seconds=SECONDS)
    if isinstance(found, str):
        return sane_cause(found)
    places = np.arange(4)
    try:
        slices = volumes.read(str(path), found, places, preparation=PREPARATION, seconds=SECONDS)
    except UnreadableExample as error:
        return sane_cause(str(error))
    assert slices.shape == (4, 4, 4, 1)
    assert np.abs(slices).max() <= 1
    return READ


def example():
    """A SequenceExample of two frames."""
    jpeg = image('.jpg', None)
    context = {
        'clip/label/index': feature([3]),
        'clip/label/text': feature('three'),
        'clip/media_id': feature('x'),
    }
    frames = field(1, feature(jpeg)) * 2
    return field(1, entries(context)) + field(2, field(1, field(1, b'image/encoded') + field(2, frames)))


def framed(payload):
    length = struct.pack('<Q', len(payload))
    return b''.join(
        (length, struct.pack('<I', masked_crc32c(length)), payload, struct.pack('<I', masked_crc32c(payload)))
    )


def use_shard(path, content):
    path.write_bytes(content)
    video, keys, texts = 'image/encoded', ('clip/label/index',), ('clip/label/text',)
    found = shards.probe(str(path), video=video, labels=keys, texts=texts)
    if isinstance(found, str):
        return sane_cause(found)
    shots, bad = shards.unpack(found)
    for _, cause in bad:
        sane_cause(cause)
    for shot in shots[:3]:
        assert shot.num_frames <= len(content)
        frames = unreadable(functools.partial(shards.read, str(path), shot, video, np.array([0])), path)
        assert frames is None or frames.shape == (1, shot.height, shot.width, 3)
    return READ if shots and not bad else None


def use_payload(path, content):
    return use_shard(path, framed(content) + framed(example()))


def prepared(folder):
    """What tools/prepare_videos.py leaves, of two videos."""
    root = folder / 'prepared'
    root.mkdir()
    content = video('h264.mp4', folder)
    shard = write_shard(root / 'train-00000-of-00001.array_record', [(content, probe(content))] * 2)
    split = Split(
        examples=[('a.mp4', 0), ('b.mp4', 1)],
        shards=[('train-00000-of-00001.array_record', shard)],
        bad=[('c', 'x')],
    )
    write_manifest(root, class_names=['p', 'q'], heads={'label': 2}, settings={}, splits={'train': split})
    return root


def array_record(folder):
    path = str(folder / 'valid.array_record')
    writer = ArrayRecordWriter(path, 'group_size:1')
    for _ in range(3):
        writer.write(example())
    writer.close()
    return pathlib.Path(path).read_bytes()


def use_prepared(root, manifest):
    (root / 'manifest.json.gz').write_bytes(gzip.compress(manifest, 1, mtime=0))
    source = ArrayRecords('train', root=str(root), seconds=SECONDS)
    for name, cause in source.bad:
        assert isinstance(name, str)
        sane_cause(cause)
    for index in range(len(source)):
        one = source[index]
        assert one.num_frames > 0
        frames = unreadable(functools.partial(one.read, np.array([0])), '')
        assert frames is None or frames.shape == (1, *one.frame_size, 3)
    return READ


def packed(content):
    """What is in an archive, as the archive of what is broken: else its checksums hide what is behind them."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('volume.npy', content)
    return file.getvalue()


def cases(kind, folder):
    """Returns what draws the broken contents of a kind, and what is done with one."""
    if kind in VIDEOS:
        others = [video(name, folder) for name in itertools.islice(VIDEOS, 3)]
        return hostile.broken(video(kind, folder), *others), functools.partial(
            use_video, folder / 'in' / kind
        )
    if kind.startswith('image'):
        valid = [image(ending, folder) for ending in ('.jpg', '.png', '.webp', '.bmp')]
        mine = image(pathlib.Path(kind).suffix, folder)
        return hostile.broken(mine, *valid), functools.partial(use_image, folder / 'in' / kind)
    if kind == 'inside.npz':
        drawn = hostile.broken(voxels('a.npy', folder)).map(packed)
        return drawn, functools.partial(use_voxels, folder / 'in' / kind)
    if kind == 'inside.nii.gz':
        drawn = hostile.broken(voxels('nifti.nii', folder)).map(
            lambda content: gzip.compress(content, 1, mtime=0)
        )
        return drawn, functools.partial(use_voxels, folder / 'in' / kind)
    if kind.endswith(('.npy', '.npz', '.nii', '.nii.gz')):
        return hostile.broken(voxels(kind, folder)), functools.partial(use_voxels, folder / 'in' / kind)
    if kind == 'a.tfrecord':
        return hostile.broken(framed(example()) * 2), functools.partial(use_shard, folder / 'in' / kind)
    if kind == 'inside.tfrecord':
        return hostile.broken(example()), functools.partial(use_payload, folder / 'in' / kind)
    root = prepared(folder)
    if kind == 'a.array_record':
        return hostile.broken(array_record(folder)), functools.partial(use_shard, folder / 'in' / kind)
    assert kind == 'manifest.json.gz'
    drawn = hostile.json_files(json.loads(gzip.decompress((root / 'manifest.json.gz').read_bytes())))
    (root / 'inside').symlink_to(folder / 'in')
    return drawn, functools.partial(use_prepared, root)


def main(kind, number, folder):
    """Tries as many cases of a kind; returns how many were refused, and how many in all."""
    (folder / 'in').mkdir(parents=True)
    drawn, use = cases(kind, folder)
    read = []

    @hostile.fuzz(number)
    @hypothesis.given(drawn)
    def one(content):
        (folder / 'case').write_bytes(content)
        outcome = hostile.survive(lambda: use(content), seconds=2 * SECONDS, mebibytes=MEBIBYTES)
        read.append(not outcome.refused and outcome.value is READ)

    one()
    return read.count(False), len(read)


if __name__ == '__main__':
    av.logging.set_level(None)
    told = {}
    for each in sys.argv[3:]:
        print(each, file=sys.stderr, flush=True)
        told[each] = main(each, int(sys.argv[1]), pathlib.Path(sys.argv[2], each))
    print(json.dumps(told))
