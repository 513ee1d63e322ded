"""Videos, images, scans and records that are broken or hostile: each is read, or refused with its cause."""

import functools
import gzip
import http.server
import io
import itertools
import json
import os
import pathlib
import re
import struct
import subprocess
import sys
import threading
import zipfile
import zlib

import av
import cv2
import fuzz_reading
import hostile
import numpy as np
import pytest
from fuzz_reading import PREPARATION, framed, image, voxels
from test_tfrecords import entries, feature, field

from videos import write_video
from vivit_jax.data import frame_folders, volumes
from vivit_jax.data.array_record import ArrayRecords
from vivit_jax.data.examine import Examination
from vivit_jax.data.files import shards
from vivit_jax.data.files.bounds import MAX_CLIP, MAX_PIXELS
from vivit_jax.data.files.decoding import probe, read_frames
from vivit_jax.data.given import open_given
from vivit_jax.data.record import Found, UnreadableExample
from vivit_jax.data.video_files import KIND

CASES = 150  # of each kind
VIDEOS = list(fuzz_reading.VIDEOS)
GROUPS = {
    'videos': VIDEOS[:6],
    'more videos': VIDEOS[6:],
    'images and volumes': [
        *('image.jpg', 'image.png', 'image.webp', 'image.bmp', 'a.npy', 'stored.npz', 'packed.npz'),
        *('inside.npz', 'nifti.nii', 'nifti2.nii', 'nifti.nii.gz', 'inside.nii.gz'),
    ],
    'records': ['a.tfrecord', 'inside.tfrecord', 'a.array_record', 'manifest.json.gz'],
}
SIZE = 32, 48


@pytest.mark.parametrize('group', GROUPS)
def test_broken_files(tmp_path, group):
    script = pathlib.Path(fuzz_reading.__file__)
    command = [sys.executable, str(script), str(CASES), str(tmp_path), *GROUPS[group]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert not done.returncode, f'see {tmp_path}/KIND/case\n{done.stderr[-8000:]}'
    told = json.loads(done.stdout.splitlines()[-1])
    assert list(told) == GROUPS[group]
    for kind, (refused, tried) in told.items():
        # Neither is everything refused, nor nothing: what is broken reaches what reads.
        assert tried >= CASES * hostile.MORE, kind
        assert refused > 0, kind
        assert refused < tried or kind == 'manifest.json.gz', kind


# --- videos that are none


@pytest.fixture(scope='module')
def mp4(tmp_path_factory):
    path = tmp_path_factory.mktemp('good') / 'good.mp4'
    write_video(path, frames=12, size=SIZE)
    return path


@pytest.fixture
def visits():
    """A server of this machine, and the paths that it was asked for."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(('127.0.0.1', 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield asked, f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


PLAYLISTS = {
    'hls': '#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n',
    'm3u': '#EXTM3U\n{}\n',
    'concat': "ffconcat version 1.0\nfile '{}'\n",
    'sdp': 'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\na=control:{}\n',
    'dash': '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>',
    'asx': '<asx version="3.0"><entry><ref href="{}"/></entry></asx>',
    'pls': '[playlist]\nFile1={}\nNumberOfEntries=1\n',
    'smil': '<smil><body><video src="{}"/></body></smil>',
    'rtsp': 'RTSPtext\nrtsp://{}\n',
    'redirect': '[Reference]\nRef1={}\n',
}
ENDINGS = ('.mp4', '.m3u8', '.ffconcat', '.mpd', '.sdp', '.asx', '.mkv', '')


@pytest.mark.parametrize('form', PLAYLISTS)
def test_playlists_open_no_other_file(tmp_path, mp4, visits, form):
    asked, address = visits
    here = tmp_path / 'here'
    here.mkdir()
    (here / 'beside.mp4').write_bytes(mp4.read_bytes())
    aims = (
        str(mp4),
        f'file:{mp4}',
        'beside.mp4',
        f'{address}/x.mp4',
        f'{address}/x.ts',
        'pipe:0',
        '/dev/zero',
    )
    for number, (aim, ending) in enumerate(itertools.product(aims, ENDINGS)):
        path = here / f'{number}{ending}'
        path.write_text(PLAYLISTS[form].format(aim))
        cause = hostile.survive(lambda path=path: probe(str(path)), folder=here).value
        assert isinstance(cause, str), (aim, ending)
        fuzz_reading.sane_cause(cause)
        assert isinstance(probe(path.read_bytes()), str)
    assert asked == []


@pytest.mark.parametrize(
    'name',
    [
        'concat:good.mp4',
        'file:good.mp4',
        'http:x.mp4',
        'subfile,,start,0,end,0,,:good.mp4',
        '-i.mp4',
        '%d.mp4',
    ],
)
def test_names_are_no_addresses(tmp_path, mp4, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    pathlib.Path('good.mp4').write_bytes(mp4.read_bytes())
    pathlib.Path(name).write_bytes(b'no video')
    assert probe(name) == 'Invalid data found when processing input'
    pathlib.Path(name).write_bytes(mp4.read_bytes())
    assert probe(name).num_frames == 12
    pathlib.Path(name).unlink()
    assert probe(name) == 'No such file or directory'


def box(kind, content):
    return struct.pack('>I4s', 8 + len(content), kind) + content


def claiming(content, samples):
    """An MP4 file whose tables speak of so many samples of a byte each."""
    found = bytearray(content)
    sizes, chunks, times = (found.index(kind) + 4 for kind in (b'stsz', b'stsc', b'stts'))
    struct.pack_into('>II', found, sizes + 4, 1, samples)
    struct.pack_into('>I', found, chunks + 12, samples)
    struct.pack_into('>I', found, times + 8, samples)
    return bytes(found)


def test_headers_that_claim_more_frames_than_bytes(mp4):
    content = mp4.read_bytes()
    for samples in (len(content) + 1, 3 * 10**7, 10**9, 2**32 - 1):
        claims = functools.partial(probe, claiming(content, samples))
        cause = hostile.survive(claims, mebibytes=60, seconds=1).value
        assert cause == f'claims {samples:,} frames in {len(content):,} bytes'
    run = box(b'trun', struct.pack('>II', 0, 10**8))
    fragment = box(b'moof', box(b'traf', run) * 20)
    cause = hostile.survive(lambda: probe(content + fragment), mebibytes=60, seconds=1).value
    assert cause == f'claims 2,000,000,012 frames in {len(content) + len(fragment):,} bytes'
    packed = box(b'moov', box(b'cmov', box(b'dcom', b'zlib') + box(b'cmvd', zlib.compress(bytes(10**6)))))
    assert 'compressed header' in hostile.survive(lambda: probe(packed), mebibytes=60).value


def test_ffmpeg_may_ask_for_little_memory_at_once():
    """The last line of defence: what no header of ours tells of."""
    av.VideoFrame(9_000, 9_000, 'rgb24')  # 243 MB
    with pytest.raises(MemoryError):
        av.VideoFrame(9_500, 9_500, 'rgb24')  # 271 MB


def test_large_frames(tmp_path):
    clip = MAX_CLIP // (4320 * 8192 * 3)
    assert MAX_PIXELS == 4320 * 8192
    found = Found(num_frames=clip + 1, frame_size=(4320, 8192), seconds=None, codec='h264')
    with pytest.raises(
        UnreadableExample, match=f'{clip + 1} frames of 8192x4320 pixels take more than the 2 GiB'
    ):
        read_frames(b'x', found, np.arange(clip + 1))
    for size in ((1, MAX_PIXELS + 1), (2**40, 2**40), (-1, -1), (0, 5)):
        wrong = Found(num_frames=1, frame_size=size, seconds=None, codec='h264')
        with pytest.raises(UnreadableExample, match=rf'claims frames of {size[1]}x{size[0]} pixels'):
            read_frames(b'x', wrong, np.arange(1))
    logical = struct.pack('<6sHHBBB', b'GIF89a', 65535, 65535, 0, 0, 0)
    picture = struct.pack('<BHHHHB', 0x2C, 0, 0, 65535, 65535, 0) + b'\2\2\x4c\1\0;'
    cause = hostile.survive(lambda: probe(logical + picture), mebibytes=60).value
    fuzz_reading.sane_cause(cause)


@pytest.mark.parametrize('index', ['', 'x', '====', 'eJwDAAAAAAE=', '[1]', 'A' * 1000])
def test_what_was_kept_of_a_file_is_not_believed(mp4, index):
    found = Found(num_frames=12, frame_size=SIZE, seconds=0.5, codec='h264', index=index)
    with pytest.raises(UnreadableExample, match='what is kept of its frames is damaged: look into it again'):
        read_frames(str(mp4), found, np.arange(3))


def test_an_index_that_would_fill_the_memory(mp4):
    import base64

    for runs in ([1, 10**12], [1, -5], [10**30, 1], [[1], 2], {}):
        content = json.dumps([[1, 25], runs, [0, 1], 0]).encode()
        index = base64.b64encode(zlib.compress(content)).decode()
        found = Found(num_frames=12, frame_size=SIZE, seconds=0.5, codec='h264', index=index)
        outcome = hostile.survive(
            lambda found=found: read_frames(str(mp4), found, np.arange(3)), mp4, mebibytes=60
        )
        assert outcome.refused, runs


def test_windows_of_a_clock_that_lies(tmp_path):
    path = tmp_path / 'long.mkv'
    write_video(path, times=[0, 40, 10**12], frames=3)
    given = open_given([str(path)], kinds=(KIND,), examination=Examination(), window=1)
    assert len(given) == 0
    ((name, cause),) = given.bad
    assert name == str(path)
    assert cause == 'claims 1e+09 s, more than 1,000,000 windows every 1 s'


def test_what_is_no_file_is_not_opened(tmp_path):
    """A pipe that nobody writes to would be waited for until the end of days."""
    for name in ('a.mp4', 'a.npy', 'a.nii', 'frames/1.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    assert probe(str(tmp_path / 'a.mp4')) == 'is no regular file'
    for name in ('a.npy', 'a.nii', '/dev/zero'):
        assert 'is n' in volumes.probe(os.path.join(tmp_path, name), preparation=PREPARATION)
    assert frame_folders.probe(str(tmp_path / 'frames')) == '1.png: is no regular file'


# --- images


def png(width, height, row=b''):
    def chunk(kind, content):
        return (
            struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))
        )

    head = struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', row) + chunk(b'IEND', b'')


def resized(content, places, value):
    found = bytearray(content)
    for place in places:
        found[place : place + len(value)] = value
    return bytes(found)


def bombs():
    """Images of some hundred bytes that claim to be large."""
    zeros = zlib.compressobj(9)
    rows = (
        b''.join(zeros.compress(bytes(10**6)) for _ in range(320)) + zeros.flush()
    )  # 50,000 rows of a bit a pixel
    yield 'a.png', png(50_000, 50_000, rows)
    yield 'b.png', png(2**31 - 1, 2**31 - 1)
    yield 'c.png', png(0, 5)
    jpeg = image('.jpg', None)
    place = jpeg.index(b'\xff\xc0') + 5
    yield 'a.jpg', resized(jpeg, [place], struct.pack('>HH', 65_500, 65_500))
    bmp = image('.bmp', None)
    yield 'a.bmp', resized(bmp, [18], struct.pack('<ii', 2**31 - 1, -(2**31)))
    yield 'b.bmp', resized(bmp, [18], struct.pack('<ii', 30_000, 30_000))
    webp = cv2.imencode('.webp', np.zeros((16, 24, 3), np.uint8), (cv2.IMWRITE_WEBP_QUALITY, 50))[1].tobytes()
    yield 'a.webp', resized(webp, [webp.index(b'\x9d\x01\x2a') + 3], struct.pack('<HH', 16_383, 16_383))
    yield 'a.jpeg', b'GIF89a' + struct.pack('<HH', 65_535, 65_535) + bytes(99)


@pytest.fixture(scope='module')
def images():
    return dict(bombs())


@pytest.mark.parametrize('name', ['a.png', 'b.png', 'c.png', 'a.jpg', 'a.bmp', 'b.bmp', 'a.webp', 'a.jpeg'])
def test_images_that_claim_to_be_large(tmp_path, images, name):
    assert len(images[name]) < 400_000
    (tmp_path / name).write_bytes(images[name])
    told = hostile.survive(lambda: frame_folders.probe(str(tmp_path)), mebibytes=60, seconds=2).value
    assert told == f'{name} is no whole image'


# --- volumes


def npy(shape, descr='<f8', version=1, length=None):
    header = repr({'descr': descr, 'fortran_order': False, 'shape': shape}).encode() + b'\n'
    size = struct.pack('<H' if version == 1 else '<I', len(header) if length is None else length)
    return b'\x93NUMPY' + bytes([version, 0]) + size + header


@pytest.mark.parametrize(
    ('content', 'cause'),
    [
        (npy((2**31, 2**31, 2**31)), 'claims 9,903,520,314,283,042,199,192,993,792 voxels'),
        (npy((2**15, 2**15, 1)), 'claims 1,073,741,824 voxels'),
        (npy((512, 512, 512)), 'cut off: '),
        (npy((-1, 4, 4)), 'has no voxels'),
        (npy((4, 4, 4), '|O'), 'stores the type object'),
        (npy((4, 4, 4), 'x' * 20_000), 'not an array in the format of NumPy'),
        (npy((4, 4, 4), version=2, length=2**32 - 1), 'claims a header of more than 65,536 bytes'),
        (b'\x93NUMPY\x01\x00\xff\xff' + b'(' * 65535, 'not an array in the format of NumPy'),
    ],
)
def test_arrays_that_lie(tmp_path, content, cause):
    (tmp_path / 'a.npy').write_bytes(content)
    with zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('volume.npy', content)
    for name in ('a.npy', 'a.npz'):
        path = str(tmp_path / name)
        told = hostile.survive(
            lambda path=path: volumes.probe(path, preparation=PREPARATION), mebibytes=60
        ).value
        assert cause in told
        fuzz_reading.sane_cause(told)


def test_archives_that_swell(tmp_path):
    shape = (300, 1024, 1024)
    content = npy(shape, '|u1')
    with (
        zipfile.ZipFile(tmp_path / 'a.npz', 'w', zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open('volume.npy', 'w') as member,
    ):
        member.write(content)
        for _ in range(300):
            member.write(bytes(2**20))
    header = voxels('nifti.nii', None)[:352]
    claims = bytearray(header)
    struct.pack_into('<hhhh', claims, 40, 3, 1024, 1024, 300)
    packer = zlib.compressobj(1, wbits=31)
    packed = packer.compress(bytes(claims)) + b''.join(packer.compress(bytes(2**20)) for _ in range(600))
    (tmp_path / 'a.nii.gz').write_bytes(packed + packer.flush())
    for name in ('a.npz', 'a.nii.gz'):
        path = str(tmp_path / name)
        told = hostile.survive(
            lambda path=path: volumes.probe(path, preparation=PREPARATION), mebibytes=60
        ).value
        assert 'no scan shrinks to a 200th' in told
    late = bytearray(header)
    struct.pack_into(
        '<f', late, 108, 2.0**31
    )  # where voxels begin, and before them an extension of two gigabytes
    swollen = zlib.compressobj(1, wbits=31)
    extension = b'\1\0\0\0' + struct.pack('<ii', 2**31 - 16, 6)
    content = swollen.compress(bytes(late[:348]) + extension + bytes(10**7)) + swollen.flush()
    (tmp_path / 'b.nii.gz').write_bytes(content)
    told = hostile.survive(
        lambda: volumes.probe(str(tmp_path / 'b.nii.gz'), preparation=PREPARATION), mebibytes=60
    ).value
    assert told == 'claims that voxels begin at byte 2,147,483,648, not in [352, 16,777,216]'


@pytest.mark.parametrize('slope', [1e-300, 1e300, -1e39])
def test_a_slope_that_makes_no_numbers(tmp_path, slope):
    scan = bytearray(voxels('nifti2.nii', None))
    struct.pack_into('<d', scan, 176, slope)
    path = tmp_path / 'a.nii'
    path.write_bytes(scan)
    found = volumes.probe(str(path), preparation=PREPARATION)
    with pytest.raises(
        UnreadableExample, match=re.escape(f'its slope {slope:g} and intercept 0 lead out of')
    ):
        volumes.read(str(path), found, np.arange(4), preparation=PREPARATION)


# --- records


def read_shard(path):
    return shards.probe(str(path), video='image/encoded', labels=('clip/label/index',), texts=())


def test_records_that_lie(tmp_path):
    from vivit_jax.data.files.crc32c import masked_crc32c

    path = tmp_path / 'a.tfrecord'
    for length in (10**9, 2**63, 2**64 - 1):
        head = struct.pack('<Q', length)
        path.write_bytes(head + struct.pack('<I', masked_crc32c(head)) + b'x' * 50)
        found = hostile.survive(lambda: read_shard(path), mebibytes=60).value
        ((_, cause),) = shards.unpack(found)[1]
        assert cause == f'the file is cut off: 62 of {length + 16} bytes are left'
    frame = png(50_000, 50_000)
    swollen = field(1, entries({'image/encoded': feature(frame), 'clip/label/index': feature([2**62])}))
    deep = b'\x0a\x7f' * 5_000
    endless = b'\xff' * 5_000
    path.write_bytes(framed(swollen) + framed(deep) + framed(endless))
    found = hostile.survive(lambda: read_shard(path), mebibytes=60).value
    shots, bad = shards.unpack(found)
    assert shots == []
    assert [cause.partition(':')[0] for _, cause in bad] == [
        'its first frame is no whole image',
        'no protocol buffer',
        'no protocol buffer',
    ]


@pytest.mark.parametrize('name', ['../x.array_record', '/etc/passwd', '', '.', 'a/b', 'x\0y', '..'])
def test_a_manifest_names_nothing_elsewhere(tmp_path, name):
    root = fuzz_reading.prepared(tmp_path)
    with gzip.open(root / 'manifest.json.gz') as file:
        manifest = json.load(file)
    manifest['splits']['train']['shards'][0][0] = name
    (root / 'manifest.json.gz').write_bytes(gzip.compress(json.dumps(manifest).encode()))
    outcome = hostile.survive(lambda: ArrayRecords('train', root=str(root)), root, folder=root)
    assert outcome.refused
    assert 'prepare again' in str(outcome.error)


def test_a_manifest_that_swells(tmp_path, monkeypatch):
    monkeypatch.setattr('vivit_jax.data.array_record.MOST_BYTES', 10**7)
    file = io.BytesIO()
    with gzip.open(file, 'wb', compresslevel=1) as packed:
        for _ in range(500):
            packed.write(b' ' * 10**6)
    (tmp_path / 'manifest.json.gz').write_bytes(file.getvalue())
    outcome = hostile.survive(lambda: ArrayRecords('train', root=str(tmp_path)), tmp_path, mebibytes=60)
    assert 'it is longer than 10,000,000 bytes' in str(outcome.error)
