import fractions
import io
import os
import struct

import av
import numpy as np
import pytest

from videos import FRAMES, HEIGHT, WIDTH, decode, write_sound, write_video
from vivit_jax.data.files import decoding
from vivit_jax.data.files.decoding import frame_times, probe, read_frames
from vivit_jax.data.files.frame_index import FrameIndex
from vivit_jax.data.record import UnreadableExample

IRREGULAR = np.cumsum(np.random.default_rng(0).integers(5, 90, FRAMES)).tolist()  # milliseconds
B_FRAMES = {'x264-params': 'keyint=20:bframes=3:b-adapt=0:scenecut=0'}
OPEN_GOP = {'x264-params': 'open-gop=1:keyint=20:bframes=3:b-adapt=0:scenecut=0'}
HEVC_OPEN_GOP = {'x265-params': 'open-gop=1:keyint=20:bframes=3:log-level=none:pools=none'}
VP9 = {'g': '20', 'deadline': 'realtime', 'cpu-used': '8'}
VP8 = {'g': '20', 'auto-alt-ref': '1', 'lag-in-frames': '10', 'cpu-used': '8'}
INTERLACED = {'x264-params': 'keyint=20:bframes=2:scenecut=0:tff=1'}
# What containers and codecs do to the order of frames: those that are read by time, and those that are counted.
BY_TIME = {
    'b_frames.mp4': {'options': B_FRAMES},
    'pyramid.mkv': {'options': {'g': '250', 'preset': 'veryslow'}},
    'irregular.mkv': {'options': B_FRAMES, 'times': IRREGULAR},
    'low_delay.mp4': {'options': {'g': '20', 'bf': '0'}},
    'long_gop.mp4': {'options': {'g': '250'}},
    'interlaced.mp4': {'options': INTERLACED},
    'ten_bit.mp4': {'options': {'g': '20'}, 'pix_fmt': 'yuv422p10le'},
    'rgb.mkv': {'codec': 'libx264rgb', 'options': {'g': '20'}, 'pix_fmt': 'rgb24'},
    'vp9.webm': {'codec': 'libvpx-vp9', 'options': VP9},
    'mpeg4.avi': {'codec': 'mpeg4', 'options': {'g': '12', 'bf': '0'}},
    'mpeg4.mp4': {'codec': 'mpeg4', 'options': {'g': '12', 'bf': '0'}},
}
PARTLY_BY_TIME = {  # what follows a key frame may need what was before
    'open_gop.mp4': {'options': OPEN_GOP},
    'hevc_open_gop.mp4': {'codec': 'libx265', 'options': HEVC_OPEN_GOP},
    'transport.mpg': {'options': OPEN_GOP},
    'intra_refresh.mkv': {'options': {'x264-params': 'intra-refresh=1:keyint=20'}},
}
COUNTED = {
    'vp8.webm': {'codec': 'libvpx', 'options': VP8},
    'h264.avi': {'options': {'g': '20', 'bf': '0'}},
    'without_times.mp4': {'options': {'g': '20'}},
    'mpeg4_b_frames.avi': {'codec': 'mpeg4', 'options': {'g': '12', 'bf': '2'}},
    'mpeg2.mpg': {'codec': 'mpeg2video', 'options': {'g': '12', 'bf': '2'}},
    'grey.mkv': {'codec': 'ffv1', 'pix_fmt': 'gray'},
}
CUT_OFF = ('Invalid data found when processing input', 'End of file', 'no video in it', 'no frame in it')
KINDS = BY_TIME | PARTLY_BY_TIME | COUNTED


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('videos')
    for name, settings in KINDS.items():
        write_video(folder / name, **settings)
    return folder


@pytest.fixture
def counted(monkeypatch):
    """The wanted frames of every call that counted from the start."""
    calls = []
    original = decoding._decode_from_start
    monkeypatch.setattr(
        decoding, '_decode_from_start', lambda *args: calls.append(args[2]) or original(*args)
    )
    return calls


def indices_of(length):
    """A clip at every tenth frame, sets in any order with repetitions, and frames far apart."""
    rng = np.random.default_rng(0)
    for start in range(0, length, 10):
        yield np.minimum(start + 2 * np.arange(6), length - 1)
        yield rng.integers(start, length, 5)
    yield np.array([0, length - 1])
    yield np.arange(length)


def remux(source, path, change=lambda packets: packets, options=None):
    """Copies the packets of a video, changed, into another file."""
    with av.open(source) as whole, av.open(path, 'w', options=options or {}) as copy:
        packets = [packet for packet in whole.demux(video=0) if packet.size]
        stream = copy.add_stream_from_template(whole.streams.video[0])
        for packet in change(packets):
            packet.stream = stream
            copy.mux(packet)


@pytest.mark.parametrize('name', KINDS)
def test_frames_are_those_of_decoding_from_the_start(videos, name, counted):
    path = str(videos / name)
    content = (videos / name).read_bytes()
    expected = decode(path)
    found = probe(path)
    assert probe(content) == found
    assert (found.num_frames, found.frame_size) == (FRAMES, (HEIGHT, WIDTH))
    assert len(np.unique(expected, axis=0)) == len(expected) == FRAMES
    calls = 0
    for indices in indices_of(FRAMES):
        np.testing.assert_array_equal(read_frames(path, found, indices), expected[indices])
        np.testing.assert_array_equal(read_frames(content, found, indices), expected[indices])
        calls += 2
    share = len(counted) / calls
    assert share == 0 if name in BY_TIME else share == 1 if name in COUNTED else 0 <= share < 1


@pytest.mark.parametrize('name', ['b_frames.mp4', 'irregular.mkv', 'mpeg4.avi', 'without_times.mp4'])
def test_what_is_found(videos, name):
    found = probe(str(videos / name))
    codecs = {'mpeg4.avi': 'mpeg4'}
    times = (np.array(IRREGULAR) - IRREGULAR[0]) / 1000 if name == 'irregular.mkv' else np.arange(FRAMES) / 25
    assert found.codec == codecs.get(name, 'h264')
    np.testing.assert_allclose(frame_times(found), times, rtol=0, atol=1e-9)
    if name != 'irregular.mkv':
        assert found.seconds == FRAMES / 25
        assert len(found.index) < 60


def test_an_index_is_small_whatever_the_length():
    ticks = 1024 + 512 * np.arange(216_000)  # two hours
    index = FrameIndex(time_base=fractions.Fraction(1, 15360), ticks=ticks, keys=np.arange(0, 216_000, 250))
    text = index.pack()
    assert len(text) < 70
    copy = FrameIndex.unpack(text)
    np.testing.assert_array_equal(copy.ticks, ticks)
    np.testing.assert_array_equal(copy.keys, index.keys)
    assert (copy.time_base, copy.droppable) == (index.time_base, False)
    np.testing.assert_array_equal(copy.seconds(216_000)[[0, 30, -1]], [0, 1, 215_999 / 30])
    assert [copy.place(time) for time in (None, 1023, 1024, 1025, 1536, 10**9)] == [
        None,
        None,
        0,
        None,
        1,
        None,
    ]
    assert [copy.key(place) for place in (0, 249, 250, 600)] == [0, 0, 250, 500]


def test_an_index_without_times():
    none = np.zeros(0, np.int64)
    copy = FrameIndex.unpack(FrameIndex(time_base=fractions.Fraction(1, 25), ticks=none, keys=none).pack())
    np.testing.assert_array_equal(copy.seconds(3), [0, 1 / 25, 2 / 25])
    assert (copy.place(0), copy.key(0)) == (None, None)


def test_only_what_is_needed_is_decoded(videos, monkeypatch):
    runs = []
    original = decoding._decode_run
    monkeypatch.setattr(decoding, '_decode_run', lambda *args: runs.append(args[3]) or original(*args))
    path = str(videos / 'b_frames.mp4')
    found = probe(path)  # key frames at 0, 20, 40
    # From 5 to 40 lie 35 frames, of which a jump spares 34; from 38 to 41 only one.
    read_frames(path, found, np.array([3, 5, 41, 59]))
    read_frames(path, found, np.array([38, 41]))
    assert runs == [[3, 5], [41, 59], [38, 41]]


def test_times_that_were_made_up(videos, tmp_path, counted):
    def in_order_of_packets(packets):
        for place, packet in enumerate(packets):
            packet.pts = packet.dts = place * packet.duration
        return packets

    path = str(tmp_path / 'made_up.mp4')
    remux(videos / 'b_frames.mp4', path, in_order_of_packets)
    expected, found = decode(path), probe(path)
    for start in range(5):  # every fourth frame is no B-frame: their times rise, but lie
        indices = np.arange(start, FRAMES, 4)
        np.testing.assert_array_equal(read_frames(path, found, indices), expected[indices])
    assert counted


def test_a_picture_that_repeats_the_one_before_counts_for_none(videos, tmp_path, counted):
    def without_content(packets):
        # MPEG-4: P picture, the same second, its time in 5 bits between markers, not coded, stuffing.
        bits = f'0101{30 % 25:05b}1001111'
        content = b'\x00\x00\x01\xb6' + int(bits, 2).to_bytes(2)
        empty = av.Packet(content)
        empty.pts, empty.dts, empty.time_base = packets[30].pts, packets[30].dts, packets[30].time_base
        return [*packets[:30], empty, *packets[31:]]

    path = str(tmp_path / 'repeats.avi')
    remux(videos / 'mpeg4.avi', path, without_content)
    expected, found = decode(path), probe(path)
    assert (found.num_frames, len(expected)) == (FRAMES, FRAMES - 1)
    for indices in indices_of(FRAMES):
        frames = read_frames(path, found, indices)
        np.testing.assert_array_equal(frames, expected[np.minimum(indices, FRAMES - 2)])
    assert len(counted) == len(list(indices_of(FRAMES)))


@pytest.mark.parametrize('ending', ['mkv', 'mp4'])
@pytest.mark.parametrize(
    'case', ['no key frame first', 'open GOP first', 'no second key frame', 'starts within']
)
def test_streams_that_were_cut(videos, tmp_path, case, ending):
    def cut(packets):
        second = [packet.is_keyframe for packet in packets].index(True, 1)
        if case == 'no key frame first':
            del packets[:5]
        elif case == 'open GOP first':
            del packets[:second]
        elif case == 'no second key frame':
            del packets[second]
        earlier = 10 if case == 'starts within' else 0
        for packet in packets:
            packet.pts -= earlier * packet.duration  # what comes before 0 is not shown
            packet.dts -= earlier * packet.duration
        return packets

    path = str(tmp_path / f'cut.{ending}')
    source = videos / ('low_delay.mp4' if case == 'no key frame first' else 'open_gop.mp4')
    remux(source, path, cut, {'avoid_negative_ts': 'disabled'})
    found = probe(path)
    expected = decode(path)
    if case == 'starts within' and ending == 'mp4':
        assert found.num_frames == len(expected) == FRAMES - 10
        assert found.seconds == (FRAMES - 10) / 25
    assert len(expected) <= found.num_frames <= FRAMES
    for indices in indices_of(found.num_frames):
        frames = read_frames(path, found, indices)
        np.testing.assert_array_equal(frames, expected[np.minimum(indices, len(expected) - 1)])


def test_frames_that_cannot_be_decoded_repeat_the_last_one(videos, tmp_path):
    path = tmp_path / 'damaged.mp4'
    content = bytearray((videos / 'long_gop.mp4').read_bytes())
    with av.open(videos / 'long_gop.mp4') as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for start, size in places[30:]:
        content[start : start + size] = bytes([255]) * size
    path.write_bytes(content)
    expected, found = decode(path), probe(str(path))
    assert found.num_frames == FRAMES
    assert 20 < len(expected) < 40
    frames = read_frames(str(path), found, np.array([59, 10, len(expected) - 1, 58]))
    np.testing.assert_array_equal(frames, expected[[-1, 10, -1, -1]])


@pytest.mark.parametrize('name', ['vp9.webm', 'faststart.mp4', 'without_times.mp4', 'mpeg4.avi'])
def test_a_file_truncated_at_every_tenth_has_the_frames_that_are_left(videos, tmp_path, name):
    path = tmp_path / name
    if name == 'faststart.mp4':  # what tells where frames lie stands before them
        remux(videos / 'long_gop.mp4', path, options={'movflags': 'faststart'})
    content = (path if path.exists() else videos / name).read_bytes()
    lengths = []
    for tenths in range(1, 10):
        path.write_bytes(content[: len(content) * tenths // 10])
        found = probe(str(path))
        if isinstance(found, str):
            assert found in CUT_OFF
            lengths.append(0)
            continue
        expected = decode(path)
        frames = read_frames(str(path), found, np.arange(found.num_frames))
        kept = min(found.num_frames, len(expected))
        np.testing.assert_array_equal(frames[:kept], expected[:kept])
        assert kept >= found.num_frames - 3  # those that the decoder holds back are lost with the error
        lengths.append(found.num_frames)
    assert lengths == sorted(lengths)
    assert 10 < lengths[-1] <= FRAMES


@pytest.mark.parametrize('d', [1, -1])
@pytest.mark.parametrize('a', [1, -1])
@pytest.mark.parametrize('turned', [False, True])
def test_the_display_matrix_is_applied(tmp_path, turned, a, d):
    path = tmp_path / 'video.mp4'
    (xx, xy), (yx, yy) = ((0, a), (d, 0)) if turned else ((a, 0), (0, d))
    matrix = [xx << 16, xy << 16, 0, yx << 16, yy << 16, 0, 0, 0, 1 << 30]
    write_video(path, options={'g': '20'}, frames=3, matrix=matrix)
    stored = decode(path)[1]
    # Where the point (x, y) goes, by the definition of the matrix; shifted to start at 0.
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    right, down = xx * x + yx * y, xy * x + yy * y
    upright = np.zeros((WIDTH, HEIGHT, 3) if turned else (HEIGHT, WIDTH, 3), np.uint8)
    upright[down - down.min(), right - right.min()] = stored
    found = probe(str(path))
    assert (found.num_frames, found.frame_size) == (3, upright.shape[:2])
    frames = read_frames(str(path), found, np.array([1]))
    np.testing.assert_array_equal(frames[0], upright)
    assert not np.array_equal(frames[0], stored) or (turned, a, d) == (False, 1, 1)


def test_frames_of_another_size_are_resized(videos, tmp_path):
    path = str(tmp_path / 'vp9.webm')
    write_video(tmp_path / 'vp9.webm', 'libvpx-vp9', VP9, size=(30, 32))
    found = probe(path)
    (tmp_path / 'vp9.webm').write_bytes((videos / 'vp9.webm').read_bytes())  # replaced since
    with av.open(path) as container:
        frame = next(container.decode(video=0)).to_ndarray(format='rgb24', width=32, height=30)
    np.testing.assert_array_equal(read_frames(path, found, np.array([0, 0])), [frame, frame])


def test_reading_outside_and_nothing(videos):
    path = str(videos / 'vp9.webm')
    found = probe(path)
    assert read_frames(path, found, np.array([], np.int64)).shape == (0, HEIGHT, WIDTH, 3)
    for wrong in (-1, FRAMES):
        with pytest.raises(IndexError, match=f'frames {wrong} to {wrong} must be in \\[0, 60\\)'):
            read_frames(path, found, np.array([wrong]))


def test_a_video_of_one_frame(tmp_path):
    write_video(tmp_path / 'one.mp4', frames=1)
    found = probe(str(tmp_path / 'one.mp4'))
    assert (found.num_frames, found.seconds, frame_times(found).tolist()) == (1, 1 / 25, [0])
    frames = read_frames(str(tmp_path / 'one.mp4'), found, np.zeros(4, np.int64))
    np.testing.assert_array_equal(frames, np.repeat(decode(tmp_path / 'one.mp4'), 4, axis=0))


def test_a_header_that_promises_more(videos):
    content = bytearray((videos / 'b_frames.mp4').read_bytes())
    good = probe(bytes(content))
    header = content.index(b'mvhd') + 4
    (scale,) = struct.unpack_from('>I', content, header + 12)
    struct.pack_into('>I', content, header + 16, 7200 * scale)  # two hours
    struct.pack_into('>I', content, content.index(b'mdhd') + 4 + 16, 2**31)
    assert probe(bytes(content)) == good
    sizes = content.index(b'stsz') + 4
    struct.pack_into('>II', content, sizes + 4, 1, 10**9)  # a thousand million frames of one byte
    assert probe(bytes(content)) == f'claims 1,000,000,000 frames in {len(content):,} bytes'


def test_frames_of_absurd_size_are_refused(tmp_path):
    write_video(tmp_path / 'raw.avi', 'rawvideo')
    write_video(tmp_path / 'jpeg.avi', 'mjpeg', pix_fmt='yuvj420p')
    raw, jpeg = (bytearray((tmp_path / name).read_bytes()) for name in ('raw.avi', 'jpeg.avi'))
    assert [probe(bytes(content)).num_frames for content in (raw, jpeg)] == [FRAMES, FRAMES]
    for height, width in ((10_000, 12_000), (2**31 - 1, 2**31 - 1)):
        struct.pack_into('<II', raw, raw.index(b'strf') + 12, width, height)
        assert probe(bytes(raw)) == 'Invalid data found when processing input'
    size = struct.pack('>HH', HEIGHT, WIDTH)  # in every picture
    large = jpeg.replace(size, struct.pack('>HH', 9_000, 9_000))
    assert probe(bytes(large)) == 'Invalid data found when processing input'


def test_files_that_are_no_videos(tmp_path, videos):
    (tmp_path / 'empty.mp4').touch()
    (tmp_path / 'text.mp4').write_text('not a video at all')
    (tmp_path / 'folder.mp4').mkdir()
    (tmp_path / 'link.mp4').symlink_to('nowhere.mp4')
    os.mkfifo(tmp_path / 'pipe.mp4')
    write_sound(tmp_path / 'sound.mkv')
    with av.open(tmp_path / 'cover.mp4', 'w') as container:
        cover = container.add_stream('mjpeg', rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, 'yuvj420p'
        cover.disposition = av.stream.Disposition.attached_pic
        container.add_stream('aac', rate=8000, layout='mono')
        container.mux(cover.encode(av.VideoFrame(16, 16, 'yuvj420p')))
        container.mux(cover.encode())
    causes = {
        'empty.mp4': 'is empty (0 bytes)',
        'text.mp4': 'Invalid data found when processing input',
        'folder.mp4': 'is a folder',
        'link.mp4': 'is a link to nothing',
        'pipe.mp4': 'is no regular file',
        'sound.mkv': 'no video in it (audio only)',
        'cover.mp4': 'no video in it',
        'gone.mp4': 'No such file or directory',
    }
    found = probe(str(videos / 'vp9.webm'))
    for name, cause in causes.items():
        path = str(tmp_path / name)
        assert probe(path) == cause
        with pytest.raises(UnreadableExample) as caught:
            read_frames(path, found, np.arange(3))
        assert str(caught.value) == f'{path} cannot be read: {cause}'
    with pytest.raises(UnreadableExample, match=r'^a video of 0 bytes cannot be read: is empty'):
        read_frames(b'', found, np.arange(3))
    assert probe(b'') == 'is empty (0 bytes)'


def test_a_file_that_may_not_be_read(videos, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(av, 'open', refuse)
    assert probe(str(videos / 'vp9.webm')) == 'Permission denied'


def test_names_and_titles_in_any_writing(tmp_path, videos):
    path = tmp_path / 'ä b, 100%d.avi'
    with av.open(videos / 'mpeg4.avi') as whole, av.open(path, 'w') as copy:
        copy.metadata['title'] = 'TITLE'
        stream = copy.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                packet.stream = stream
                copy.mux(packet)
    content = path.read_bytes()
    assert b'TITLE' in content
    path.write_bytes(content.replace(b'TITLE', b'\xff\xfe\xe9\xe8\xe0'))  # no UTF-8
    found = probe(str(path))
    frames = read_frames(str(path), found, np.array([7, 3]))
    np.testing.assert_array_equal(frames, decode(io.BytesIO(content))[[7, 3]])
