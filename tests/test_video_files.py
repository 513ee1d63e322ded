import fractions
import pickle
import shutil
import warnings

import av
import numpy as np
import pytest

from vivit_jax.data import decoding
from vivit_jax.data.decoding import read_frames
from vivit_jax.data.video_files import VideoFiles

FRAMES, HEIGHT, WIDTH = 60, 48, 64
# Name, codec, encoder's options, time of frame i in milliseconds: what containers and codecs do to frame order.
IRREGULAR = np.cumsum(np.random.default_rng(0).integers(5, 90, FRAMES)).tolist()
KINDS = {
    'b_frames.mp4': ('libx264', {'x264-params': 'keyint=20:bframes=3:b-adapt=0:scenecut=0'}, None),
    'open_gop.mp4': ('libx264', {'x264-params': 'open-gop=1:keyint=20:bframes=3:b-adapt=0:scenecut=0'}, None),
    'irregular.mkv': ('libx264', {'x264-params': 'keyint=20:bframes=3:b-adapt=0:scenecut=0'}, IRREGULAR),
    'hevc_open_gop.mp4': (
        'libx265',
        {'x265-params': 'open-gop=1:keyint=20:bframes=3:log-level=none:pools=none'},
        None,
    ),
    'low_delay.mp4': ('libx264', {'g': '20', 'bf': '0'}, None),
    'long_gop.mp4': ('libx264', {'g': '250'}, None),
    'intra_refresh.mkv': ('libx264', {'x264-params': 'intra-refresh=1:keyint=20'}, None),
    'vp9.webm': ('libvpx-vp9', {'g': '20', 'deadline': 'realtime', 'cpu-used': '8'}, None),
    'vp8.webm': ('libvpx', {'g': '20', 'auto-alt-ref': '1', 'lag-in-frames': '10', 'cpu-used': '8'}, None),
    'h264.avi': ('libx264', {'g': '20', 'bf': '0'}, None),
    'transport.mpg': (
        'libx264',
        {'x264-params': 'open-gop=1:keyint=20:bframes=3:b-adapt=0:scenecut=0'},
        None,
    ),
    'without_times.mp4': ('libx264', {'g': '20'}, None),
    'mpeg4.avi': ('mpeg4', {'g': '12', 'bf': '2'}, None),
    'mpeg2.mpg': ('mpeg2video', {'g': '12', 'bf': '2'}, None),
}
FORMATS = {'transport.mpg': 'mpegts', 'without_times.mp4': 'h264'}  # where the ending tells another
SOUGHT = ('b_frames.mp4', 'low_delay.mp4', 'open_gop.mp4', 'irregular.mkv', 'hevc_open_gop.mp4', 'vp9.webm')


def write_video(path, codec='libx264', options=None, times=None, frames=FRAMES, matrix=None):
    """Encodes noise with a bright square that moves over it, so that no two frames are alike."""
    noise = np.random.default_rng(0).integers(0, 100, (HEIGHT, WIDTH, 3), np.uint8)
    with av.open(path, 'w', format=FORMATS.get(path.name)) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, 'yuv420p'
        stream.thread_count = 1
        if matrix:
            stream.set_display_matrix(matrix)
        if times:
            stream.codec_context.time_base = fractions.Fraction(1, 1000)
        for i in range(frames):
            pixels = noise.copy()
            pixels[i * 3 % 40 :, i * 5 % 56 :][:8, :8] = 250
            frame = av.VideoFrame.from_ndarray(pixels)
            if times:
                frame.pts, frame.time_base = times[i], fractions.Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def decode(path):
    """All frames that plain decoding gives, up to an error."""
    frames = []
    with av.open(path) as container:
        container.streams.video[0].thread_count = 1  # several threads guess differently what damage has left
        try:
            for frame in container.decode(video=0):
                frames.append(frame.to_ndarray(format='rgb24'))
        except av.FFmpegError:
            assert frames
    return np.stack(frames)


def indices_of(length):
    """A clip at every tenth frame, and sets in any order with repetitions."""
    rng = np.random.default_rng(0)
    for start in range(0, length, 10):
        yield np.minimum(start + 2 * np.arange(6), length - 1)
        yield rng.integers(start, length, 5)


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('videos')
    for name, (codec, options, times) in KINDS.items():
        write_video(folder / name, codec, options, times)
    return folder


@pytest.fixture
def root(tmp_path, videos):
    """Two classes, three training videos and one to validate."""
    for split, label, name in (
        ('train', 'b', 'vp9.webm'),
        ('train', 'b', 'b_frames.mp4'),
        ('train', 'a', 'mpeg4.avi'),
        ('validation', 'b', 'long_gop.mp4'),
    ):
        folder = tmp_path / split / label
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(videos / name, folder)
    return tmp_path


def tables(root, **texts):
    """Replaces the folders' classes by tables."""
    for split, text in texts.items():
        (root / f'{split}.csv').write_text(text, 'utf-8')
    return root


@pytest.mark.parametrize('name', KINDS)
def test_frames_are_those_of_decoding_from_the_start(videos, name, monkeypatch):
    path = str(videos / name)
    expected = decode(path)
    assert decoding.probe(path) == (FRAMES, (HEIGHT, WIDTH))
    assert len(np.unique(expected, axis=0)) == len(expected) == FRAMES
    from_start = []
    decoder = decoding._from_start
    monkeypatch.setattr(
        decoding, '_from_start', lambda *args: from_start.append(args[2][0]) or decoder(*args)
    )
    for indices in indices_of(FRAMES):
        frames = read_frames(path, FRAMES, (HEIGHT, WIDTH), indices)
        np.testing.assert_array_equal(frames, expected[indices])
    if name in SOUGHT:  # a key frame every 20 frames, at the latest
        assert max(from_start) < 20
    else:
        assert max(from_start) > 40


@pytest.mark.parametrize('ending', ['mkv', 'mp4'])
@pytest.mark.parametrize(
    'case', ['no key frame first', 'open GOP first', 'no second key frame', 'starts within']
)
def test_streams_that_were_cut(videos, tmp_path, case, ending):
    path = str(tmp_path / f'cut.{ending}')
    keep_times = {'avoid_negative_ts': 'disabled'}
    source = videos / ('low_delay.mp4' if case == 'no key frame first' else 'open_gop.mp4')
    with av.open(source) as whole, av.open(path, 'w', options=keep_times) as cut:
        packets = [packet for packet in whole.demux(video=0) if packet.size]
        second = [packet.is_keyframe for packet in packets].index(True, 1)
        if case == 'no key frame first':
            del packets[:5]
        elif case == 'open GOP first':
            del packets[:second]
        elif case == 'no second key frame':
            del packets[second]
        stream = cut.add_stream_from_template(whole.streams.video[0])
        earlier = 10 if case == 'starts within' else 0
        for packet in packets:
            packet.pts -= earlier * packet.duration  # what comes before 0 is not shown
            packet.dts -= earlier * packet.duration
            packet.stream = stream
            cut.mux(packet)
    num_frames, size = decoding.probe(path)
    expected = decode(path)
    if case == 'starts within' and ending == 'mp4':
        assert num_frames == len(expected) == FRAMES - 10
    assert len(expected) <= num_frames <= len(packets)
    for indices in indices_of(num_frames):
        frames = read_frames(path, num_frames, size, indices)
        np.testing.assert_array_equal(frames, expected[np.minimum(indices, len(expected) - 1)])


def test_frames_that_cannot_be_decoded_repeat_the_last_one(videos, tmp_path):
    path = tmp_path / 'damaged.mp4'
    content = bytearray((videos / 'long_gop.mp4').read_bytes())
    with av.open(videos / 'long_gop.mp4') as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for start, size in places[30:]:
        content[start : start + size] = bytes([255]) * size
    path.write_bytes(content)
    expected = decode(path)
    assert decoding.probe(str(path)) == (FRAMES, (HEIGHT, WIDTH))
    assert 20 < len(expected) < 40
    frames = read_frames(str(path), FRAMES, (HEIGHT, WIDTH), np.array([59, 10, len(expected) - 1, 58]))
    np.testing.assert_array_equal(frames, expected[[-1, 10, -1, -1]])


@pytest.mark.parametrize('name', ['vp9.webm', 'faststart.mp4', 'without_times.mp4'])
def test_a_truncated_file_has_the_frames_that_are_left(videos, tmp_path, name):
    path = tmp_path / name
    if name == 'faststart.mp4':  # what tells where frames lie stands before them
        with (
            av.open(videos / 'long_gop.mp4') as whole,
            av.open(path, 'w', options={'movflags': 'faststart'}) as container,
        ):
            stream = container.add_stream_from_template(whole.streams.video[0])
            for packet in whole.demux(video=0):
                if packet.size:
                    packet.stream = stream
                    container.mux(packet)
        content = path.read_bytes()
    else:
        content = (videos / name).read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    num_frames, size = decoding.probe(str(path))
    expected = decode(path)
    assert 10 < num_frames < FRAMES
    frames = read_frames(str(path), num_frames, size, np.arange(num_frames))
    kept = min(num_frames, len(expected))
    np.testing.assert_array_equal(frames[:kept], expected[:kept])
    assert kept >= num_frames - 3  # those that the decoder holds back for B-frames are lost with the error


@pytest.mark.parametrize('d', [1, -1])
@pytest.mark.parametrize('a', [1, -1])
@pytest.mark.parametrize('turned', [False, True])
def test_the_display_matrix_is_applied(tmp_path, turned, a, d):
    path = tmp_path / 'video.mp4'
    (xx, xy), (yx, yy) = ((0, a), (d, 0)) if turned else ((a, 0), (0, d))
    write_video(
        path,
        options={'g': '20'},
        frames=3,
        matrix=[xx << 16, xy << 16, 0, yx << 16, yy << 16, 0, 0, 0, 1 << 30],
    )
    stored = decode(path)[1]
    # Where the point (x, y) goes, by the definition of the matrix; shifted to start at 0.
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    right, down = xx * x + yx * y, xy * x + yy * y
    upright = np.zeros((WIDTH, HEIGHT, 3) if turned else (HEIGHT, WIDTH, 3), np.uint8)
    upright[down - down.min(), right - right.min()] = stored
    assert decoding.probe(str(path)) == (3, upright.shape[:2])
    frames = read_frames(str(path), 3, upright.shape[:2], np.array([1]))
    np.testing.assert_array_equal(frames[0], upright)
    assert not np.array_equal(frames[0], stored) or (turned, a, d) == (False, 1, 1)


def test_frames_of_another_size_are_resized(videos):
    with av.open(videos / 'vp9.webm') as container:
        frame = next(container.decode(video=0)).to_ndarray(format='rgb24', width=32, height=30)
    frames = read_frames(str(videos / 'vp9.webm'), FRAMES, (30, 32), np.array([0, 0]))
    np.testing.assert_array_equal(frames, [frame, frame])


def test_reading_outside_and_nothing(videos):
    path = str(videos / 'vp9.webm')
    assert read_frames(path, FRAMES, (HEIGHT, WIDTH), np.array([], np.int64)).shape == (0, HEIGHT, WIDTH, 3)
    for wrong in (-1, FRAMES):
        with pytest.raises(IndexError, match=f'frames {wrong} to {wrong} must be in \\[0, 60\\)'):
            read_frames(path, FRAMES, (HEIGHT, WIDTH), np.array([wrong]))


def test_a_file_that_has_become_unreadable(root):
    source = VideoFiles('validation', root=str(root))
    (root / 'validation/b/long_gop.mp4').write_bytes(b'no video')
    with pytest.raises(ValueError, match=r'validation/b/long_gop.mp4 cannot be read: Invalid data'):
        source[0].read(np.arange(3))
    (root / 'validation/b/long_gop.mp4').unlink()
    with pytest.raises(ValueError, match=r'validation/b/long_gop.mp4 cannot be read: No such file'):
        source[0].read(np.arange(3))


def test_folders(root, videos):
    (root / 'train/a/._vp9.webm').write_text('what macOS leaves')
    (root / 'train/a/notes.txt').write_text('no video')
    (root / 'train/été sec').mkdir()
    shutil.copy(videos / 'mpeg4.avi', root / 'train/été sec/ä b, 100%d.AVI')
    train, validation = VideoFiles('train', root=str(root)), VideoFiles('validation', root=str(root))
    assert train.class_names == validation.class_names == ['a', 'b', 'été sec']
    assert [(train[i].name, train[i].label) for i in range(len(train))] == [
        ('train/a/mpeg4.avi', 0),
        ('train/b/b_frames.mp4', 1),
        ('train/b/vp9.webm', 1),
        ('train/été sec/ä b, 100%d.AVI', 2),
    ]
    assert [validation[0].label, len(validation)] == [1, 1]
    assert train.bad == []
    record = train[3]
    assert (record.num_frames, record.frame_size) == (FRAMES, (HEIGHT, WIDTH))
    np.testing.assert_array_equal(record.read(np.array([7, 3])), decode(videos / 'mpeg4.avi')[[7, 3]])
    with pytest.raises(IndexError, match=r'index 4 must be in \[0, 4\)'):
        train[4]


def test_a_split_without_train(root):
    shutil.rmtree(root / 'train')
    source = VideoFiles('validation', root=str(root))
    assert (source.class_names, source[0].label) == (['b'], 0)


def test_records_travel_to_worker_processes(root):
    source = VideoFiles('train', root=str(root))
    copy = pickle.loads(pickle.dumps(source))
    assert copy.digest == source.digest
    frames = pickle.loads(pickle.dumps(copy[1])).read(np.array([5]))
    np.testing.assert_array_equal(frames, source[1].read(np.array([5])))


def test_the_digest_tells_examples_apart(root):
    digests = {VideoFiles('train', root=str(root)).digest, VideoFiles('validation', root=str(root)).digest}
    assert digests == {VideoFiles(split, root=str(root)).digest for split in ('validation', 'train')}
    write_video(root / 'train/b/vp9.webm', 'libvpx-vp9', {'cpu-used': '8', 'deadline': 'realtime'}, frames=9)
    digests.add(VideoFiles('train', root=str(root)).digest)
    (root / 'train/c').mkdir()
    digests.add(VideoFiles('train', root=str(root)).digest)
    (root / 'train/b/vp9.webm').rename(root / 'train/a/vp9.webm')
    digests.add(VideoFiles('train', root=str(root)).digest)
    assert len(digests) == 5


def test_files_that_cannot_be_read_are_left_out_and_said(root, videos):
    folder = root / 'train/a'
    (folder / 'empty.mp4').touch()
    (folder / 'text.mp4').write_text('not a video at all')
    content = (videos / 'long_gop.mp4').read_bytes()
    (folder / 'truncated.mp4').write_bytes(content[: len(content) // 2])
    with av.open(folder / 'sound.mkv', 'w') as container:
        stream = container.add_stream('pcm_s16le', rate=8000, layout='mono')
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), 's16', 'mono')
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    with pytest.warns(UserWarning, match=r"4 of 7 files of 'train' in .* left out: train/a/empty.mp4 \(Inv"):
        source = VideoFiles('train', root=str(root))
    assert source.bad == [
        ('train/a/empty.mp4', 'Invalid data found when processing input'),
        ('train/a/sound.mkv', 'no video in it'),
        ('train/a/text.mp4', 'Invalid data found when processing input'),
        ('train/a/truncated.mp4', 'Invalid data found when processing input'),
    ]
    names = ['train/a/mpeg4.avi', 'train/b/b_frames.mp4', 'train/b/vp9.webm']
    assert [source[i].name for i in range(len(source))] == names


def test_no_file_can_be_read(root):
    (root / 'validation/b/long_gop.mp4').write_bytes(b'')
    with pytest.raises(ValueError, match=r"none of the 1 files of 'validation' .*: validation/b/long_gop"):
        VideoFiles('validation', root=str(root))


def test_a_cover_picture_is_no_video(root):
    with av.open(root / 'validation/b/song.mp4', 'w') as container:
        cover = container.add_stream('mjpeg', rate=1)
        cover.width, cover.height, cover.pix_fmt = 16, 16, 'yuvj420p'
        cover.disposition = av.stream.Disposition.attached_pic
        container.add_stream('aac', rate=8000, layout='mono')
        container.mux(cover.encode(av.VideoFrame(16, 16, 'yuvj420p')))
        container.mux(cover.encode())
    with av.open(root / 'validation/b/song.mp4') as container:
        assert len(container.streams.video) == 1
    with pytest.warns(UserWarning, match='1 of 2 files'):
        source = VideoFiles('validation', root=str(root))
    assert source.bad == [('validation/b/song.mp4', 'no video in it')]


def test_a_table_of_class_numbers(root):
    tables(
        root,
        train='path,label\ntrain/b/vp9.webm,7\ntrain/a/mpeg4.avi,2\n\n',
        validation='path,label\ntrain/b/vp9.webm,3\n',
        others='file;class\nx;y;z\n',
    )
    source = VideoFiles('train', root=str(root))
    assert source.class_names == ['0', '1', '2', '3', '4', '5', '6', '7']
    assert [(source[i].name, source[i].label) for i in range(2)] == [
        ('train/b/vp9.webm', 7),
        ('train/a/mpeg4.avi', 2),
    ]
    assert VideoFiles('train', root=str(root), num_classes=(9,)).class_names[-1] == '8'


def test_columns_in_any_order(root):
    (root / 'train').rename(root / 'videos')
    tables(root, test='\ufefflabel, path\nrun, videos/b/vp9.webm\n')
    source = VideoFiles('test', root=str(root))
    assert (source.class_names, source[0].name, source[0].label) == (['run'], 'videos/b/vp9.webm', 0)


def test_a_table_of_class_names(root):
    tables(
        root,
        train='path,label\ntrain/b/vp9.webm,"run, fast"\n',
        validation='path,label\ntrain/b/vp9.webm,run\ntrain/a/mpeg4.avi,jump\n',
    )
    train, validation = (VideoFiles(split, root=str(root)) for split in ('train', 'validation'))
    assert train.class_names == validation.class_names == ['jump', 'run', 'run, fast']
    assert [train[0].label, validation[0].label, validation[1].label] == [2, 1, 0]


def test_two_heads(root):
    tables(root, train='path,noun,verb\ntrain/b/vp9.webm,2,cut\ntrain/a/mpeg4.avi,0,add\n')
    shutil.rmtree(root / 'validation')
    source = VideoFiles('train', root=str(root))
    assert source.class_names == ['0', '1', '2', 'add', 'cut']
    assert [source[0].label, source[1].label] == [(2, 1), (0, 0)]
    source = VideoFiles('train', root=str(root), num_classes=(4, 2))
    assert source.class_names == ['0', '1', '2', '3', 'add', 'cut']


def test_a_listed_file_that_is_missing(root):
    tables(root, train='path,label\ntrain/b/vp9.webm,0\ntrain/gone.mp4,0\n')
    with pytest.warns(UserWarning, match=r'1 of 2 files .*: train/gone.mp4 \(No such file or directory\)'):
        source = VideoFiles('train', root=str(root))
    assert len(source) == 1


@pytest.mark.parametrize(
    ('text', 'num_classes', 'message'),
    [
        ('path\nx.mp4\n', (), r"train.csv: 1 rows under the header 'path'; it must be path,label or"),
        ('file,label\nx.mp4,0\n', (), r"train.csv: 0 rows under the header 'file,label'; it must be path,label"),
        ('path,label\n', (), r"train.csv: 0 rows under the header 'path,label'"),
        ('', (), r"train.csv: 0 rows under the header ''"),
        ('path,label\nx.mp4,0\ny.mp4\n', (), r"train.csv, line 3: 'y.mp4' must give path,label"),
        ('path,label\nx.mp4,\n', (), r"train.csv, line 2: 'x.mp4,' must give path,label"),
        ('path,label\nx.mp4,0\ny.mp4,run\n', (), r"train.csv, line 3: label='run' must be a number in \[0, inf"),
        ('path,label\nx.mp4,0\ny.mp4,-1\n', (), r"train.csv, line 3: label='-1' must be a number"),
        ('path,label\nx.mp4,0\ny.mp4,4\n', (4,), r"train.csv, line 3: label='4' must be a number in \[0, 4\)"),
        ('path,noun,verb\nx.mp4,0,1\n', (4,), r'train.csv: num_classes=\(4,\) must be one each of noun, verb'),
    ],
)  # fmt: skip
def test_tables_with_mistakes(tmp_path, text, num_classes, message):
    tables(tmp_path, train=text)
    with pytest.raises(ValueError, match=message) as caught:
        VideoFiles('train', root=str(tmp_path), num_classes=num_classes)
    assert '\n' not in str(caught.value)


def test_tables_that_contradict_each_other(tmp_path):
    tables(tmp_path, train='path,noun,verb\nx.mp4,0,1\n', validation='path,noun\nx.mp4,0\n')
    with pytest.raises(ValueError, match=r"validation.csv: header 'path,noun' must be 'path,noun,verb'"):
        VideoFiles('train', root=str(tmp_path))


def test_tables_that_are_not_text(tmp_path):
    (tmp_path / 'train.csv').write_bytes(b'path,label\n\xff.mp4,0\n')
    with pytest.raises(ValueError, match=r'train.csv is not a table in UTF-8: .*0xff'):
        VideoFiles('train', root=str(tmp_path))


def test_data_that_is_not_there(root, tmp_path):
    cases = {
        (None, 'train'): r'config.data.root is not set: give the folder .* --config.data.root=ROOT',
        (
            str(root / 'no'),
            'train',
        ): r"config.data.root='.*no' is not a folder: it must hold ROOT/train/CLASS",
        (str(root), 'test'): r"has no split 'test', neither test/ nor test.csv; it has train, validation$",
        (str(root / 'train/a'), 'test'): r'it has neither folders nor tables$',
        (str(root / 'train'), 'a'): r'train/a has no videos in CLASS/\*: endings are .3gp, .avi',
    }
    for (folder, split), message in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            VideoFiles(split, root=folder)
        assert '\n' not in str(caught.value)


def test_splits_that_do_not_fit_together(root):
    (root / 'validation/c').mkdir()
    with pytest.raises(ValueError, match=r'class folder .*validation/c is not among the 2 of train'):
        VideoFiles('validation', root=str(root))
    tables(root, train='path,label\ntrain/b/vp9.webm,0\n')
    with pytest.raises(ValueError, match=r'has train.csv but not validation.csv: give all splits as tables'):
        VideoFiles('validation', root=str(root))
    (root / 'train.csv').rename(root / 'validation.csv')
    with pytest.raises(ValueError, match=r'has validation.csv but not train.csv'):
        VideoFiles('validation', root=str(root))


def test_nothing_is_said_of_good_files(root):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(VideoFiles('train', root=str(root))) == 3
