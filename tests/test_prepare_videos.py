"""Preparing videos: what becomes of a video, and of a folder of them, whatever happens meanwhile."""

import csv
import dataclasses
import fcntl
import fractions
import functools
import hashlib
import io
import os
import pathlib
import signal
import subprocess
import sys
import time

import av
import numpy as np
import pytest
from conftest import load_tool

from videos import decode, write_video
from vivit_jax.data.array_record import ArrayRecords
from vivit_jax.data.files.decoding import read_frames
from vivit_jax.data.files.frame_index import FrameIndex
from vivit_jax.data.files.preparing import Settings, prepare
from vivit_jax.data.record import Found, Record, UnreadableExample

TOOL = pathlib.Path(__file__).parent.parent / 'tools' / 'prepare_videos.py'
CONFIG = pathlib.Path(__file__).parent.parent / 'configs' / 'my_videos.py'
NONE = FrameIndex(time_base=fractions.Fraction(0), ticks=np.zeros(0, np.int64), keys=np.zeros(0, np.int64))
FOUND = Found(num_frames=90, frame_size=(48, 64), seconds=None, codec='', index=NONE.pack())
HALF_TURN = [-1 << 16, 0, 0, 0, -1 << 16, 0, 0, 0, 1 << 30]


@pytest.fixture(scope='module')
def tool():
    return load_tool('prepare_videos')


def scene(frames, height, width):
    """A bright square that moves over a smooth ground, each frame another."""
    y, x = np.mgrid[:height, :width]
    clip = (
        np.stack([x * 100 // width, y * 100 // height, 0 * x + 60], -1)
        .astype(np.uint8)[None]
        .repeat(frames, 0)
    )
    for i, frame in enumerate(clip):
        frame[height // 4 : height // 2, i * (width - width // 4) // frames :][:, : width // 4] = (
            250,
            200,
            30,
        )
    return clip


def record(clip, seconds=None, size=None):
    return Record(
        name='x', label=0, num_frames=len(clip), frame_size=size or clip.shape[1:3], seconds=seconds,
        read=lambda indices: clip[indices],
    )  # fmt: skip


def packets(video):
    with av.open(io.BytesIO(video)) as container:
        stream = container.streams.video[0]
        assert (stream.codec.name, stream.pix_fmt, len(container.streams)) == ('h264', 'yuv420p', 1)
        return [(p.pts, p.dts, p.is_keyframe, p.time_base) for p in container.demux(stream) if p.size]


def test_frames_stay_what_they_are():
    clip = scene(30, 64, 96)
    video, found = prepare(record(clip, seconds=2.0), Settings())
    assert (found.num_frames, found.frame_size, found.seconds) == (30, (64, 96), 2.0)
    read = read_frames(video, found, np.arange(30)).astype(int)
    np.testing.assert_array_equal(read, decode(io.BytesIO(video)))
    # Frame i is the nearest to frame i, and colours are the same to the eye.
    distance = np.abs(read[:, None] - clip[None].astype(int)).mean((2, 3, 4))
    np.testing.assert_array_equal(distance.argmin(1), np.arange(30))
    assert distance.diagonal().max() < 3
    np.testing.assert_allclose(read.mean((0, 1, 2)), clip.mean((0, 1, 2)), atol=2)


@pytest.mark.parametrize(('gop', 'keys'), [(16, [0, 16, 32]), (1, list(range(40))), (50, [0])])
def test_key_frames_come_often_and_no_frame_waits_for_a_later_one(gop, keys):
    video, _ = prepare(record(scene(40, 48, 64), seconds=40 / 30), Settings(gop=gop))
    listed = packets(video)
    assert [place for place, (*_, key, _) in enumerate(listed) if key] == keys
    assert [pts * base for pts, _, _, base in listed] == [
        fractions.Fraction(place, 30) for place in range(40)
    ]
    assert all(pts == dts for pts, dts, _, _ in listed)


@pytest.mark.parametrize(
    ('size', 'short_side', 'expected'),
    [
        ((96, 128), 48, (48, 64)),
        ((128, 96), 48, (64, 48)),
        ((90, 160), 60, (60, 106)),  # 106.67, rounded down to even
        ((64, 64), 64, (64, 64)),
        ((48, 64), 256, (48, 64)),  # none is enlarged
        ((49, 65), 256, (48, 64)),
        ((49, 65), 0, (48, 64)),
        ((200, 20), 0, (200, 20)),
    ],
)
def test_sizes(size, short_side, expected):
    _, found = prepare(record(scene(3, *size)), Settings(short_side=short_side))
    assert (found.num_frames, found.frame_size) == (3, expected)


def test_resizing_takes_the_mean_of_what_falls_together():
    clip = scene(2, 96, 128)
    video, found = prepare(record(clip), Settings(short_side=48, crf=1))
    expected = clip.reshape(2, 48, 2, 64, 2, 3).mean((2, 4))
    # Luma; chroma is stored for four pixels together.
    weights = [0.299, 0.587, 0.114]
    luma = read_frames(video, found, np.arange(2)) @ weights
    assert np.abs(luma - expected @ weights).mean() < 2.5


def test_a_single_frame_and_none_of_it_timed():
    _, found = prepare(record(scene(1, 32, 32)), Settings())
    assert (found.num_frames, found.seconds) == (1, 1 / 25)


def test_long_ones_are_held_a_part_at_a_time(monkeypatch):
    clip, asked = scene(10, 32, 32), []
    monkeypatch.setattr('vivit_jax.data.files.preparing.HELD', 4 * 32 * 32 * 3)
    whole = prepare(record(clip), Settings())

    def read(indices):
        asked.append(indices.tolist())
        return clip[indices]

    one = Record(name='x', label=0, num_frames=10, frame_size=(32, 32), read=read)
    assert prepare(one, Settings()) == whole
    assert asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_causes():
    def broken(indices):
        raise UnreadableExample('the tape is torn')

    one = Record(name='x', label=0, num_frames=10, frame_size=(32, 32), read=broken)
    assert prepare(one, Settings()) == 'the tape is torn'
    scan = np.zeros((2, 32, 32, 1), np.float32)
    assert prepare(record(scan), Settings()) == 'its frames are float32 of 1 channels, not RGB in bytes'


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ({'short_side': 7}, 'short_side=7 must be an even number'),
        ({'gop': 0}, 'gop=0 must be at least 1'),
        ({'crf': 52}, r'crf=52 must be in \[0, 51\]'),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Settings(**settings)


ENCODED = """
import hashlib, numpy as np
from vivit_jax.data.files.preparing import Settings, prepare
from vivit_jax.data.record import Record
noise = np.kron(np.random.default_rng(0).integers(0, 256, (36, 44, 3)), np.ones((4, 4, 1))).astype(np.uint8)
clip = np.stack([np.roll(noise, (t, 2 * t), (0, 1)) for t in range(40)])
record = Record(name='x', label=0, num_frames=40, frame_size=(144, 176), read=lambda indices: clip[indices])
print(hashlib.sha256(prepare(record, Settings())[0]).hexdigest())
"""


def test_the_same_bytes_whatever_memory_held_before():
    encoded = {
        subprocess.run(
            [sys.executable, '-c', ENCODED],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, 'MALLOC_PERTURB_': value},
        ).stdout
        for value in ('0', '1')
    }
    assert len(encoded) == 1


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    """Two classes, ten videos and one that cannot be read."""
    root = tmp_path_factory.mktemp('videos')
    for label, lengths in (('a', (20, 30, 25, 12)), ('b', (9, 40, 33))):
        (root / 'train' / label).mkdir(parents=True)
        for frames in lengths:
            turn = HALF_TURN if frames == 40 else None
            write_video(root / 'train' / label / f'{frames} ü.mp4', frames=frames, matrix=turn)
        (root / 'validation' / label).mkdir(parents=True)
        write_video(root / 'validation' / label / '1.mp4', frames=15)
    (root / 'validation' / 'a' / '2.avi').write_bytes((root / 'validation' / 'a' / '1.mp4').read_bytes())
    (root / 'train' / 'b' / 'text.mp4').write_text('not a video')
    return root


@pytest.fixture
def run(tool, videos, tmp_path, capsys):
    """Runs the command; returns its exit code, and what it said."""

    def main(*options, output=tmp_path / 'out', root=videos):
        own = (f'--config={CONFIG}', f'--config.data.root={root}', f'--output={output}')
        cache = f'--config.data.cache={tmp_path / "cache"}'
        code = tool.main([*own, cache, '--config.data.max_bad=0.2', *options])
        said = capsys.readouterr()
        return code, said.out, said.err

    return main


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob('*')
        if path.is_file()
    }


def test_a_folder_is_prepared_and_read(run, videos, tmp_path):
    code, said, errors = run('--shards=3', '--short_side=32')
    assert (code, errors) == (0, '')
    out = tmp_path / 'out'
    assert {path.name for path in out.iterdir()} == {
        *(f'train-0000{i}-of-00003.array_record' for i in range(3)),
        *(f'validation-0000{i}-of-00003.array_record' for i in range(3)),
        *('manifest.json.gz', 'settings.json', 'bad_files.csv', 'facts'),
    }
    assert 'prepared: train 7, validation 3; left out: 1; ' in said
    assert f'--config.data.source=array_record --config.data.root={out}' in said
    train = ArrayRecords('train', root=str(out))
    assert train.class_names == ['a', 'b']
    assert train.splits == ('train', 'validation')
    assert len(train.bad) == 1
    assert train.bad[0][0] == 'train/b/text.mp4'
    expected = {f'train/a/{n} ü.mp4': (0, n) for n in (20, 30, 25, 12)}
    expected |= {f'train/b/{n} ü.mp4': (1, n) for n in (9, 40, 33)}
    records = [train[i] for i in range(len(train))]
    assert {one.name: (one.label, one.num_frames) for one in records} == expected
    for one in records:
        assert (one.frame_size, one.seconds) == ((32, 42), one.num_frames / 25)
    with (out / 'bad_files.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [(row['split'], row['name'], row['found']) for row in rows] == [
        ('train', 'train/b/text.mp4', 'at the start')
    ]


def test_videos_are_upright(run, tmp_path, videos):
    assert run('--crf=1')[0] == 0
    train = ArrayRecords('train', root=str(tmp_path / 'out'))
    (turned,) = (train[i] for i in range(len(train)) if train[i].num_frames == 40)
    original = decode(videos / turned.name)[20].astype(int)
    read = turned.read(np.array([20]))[0]
    assert np.abs(read - original[::-1, ::-1]).mean() < 5 < 20 < np.abs(read - original).mean()


def test_parts_of_videos_at_another_rate(run, tmp_path, videos):
    table = tmp_path / 'parts.csv'
    table.write_text(
        'path,label,start,end,split\n'
        'train/a/30 ü.mp4,x,0.2,0.8,train\ntrain/a/30 ü.mp4,y,0.4,1.2,train\ntrain/b/33 ü.mp4,y,0,1,validation\n'
    )
    options = (f'--config.data.csv={table}', '--fps=12.5', '--crf=1')
    assert run(*options)[0] == 0
    train = ArrayRecords('train', root=str(tmp_path / 'out'))
    assert [(train[i].label, train[i].num_frames, train[i].seconds) for i in range(2)] == [
        (0, 8, 0.64),
        (1, 10, 0.8),
    ]
    original = decode(videos / 'train/a/30 ü.mp4').astype(int)
    for one, frames in ((train[0], range(5, 20, 2)), (train[1], range(10, 30, 2))):
        distance = np.abs(one.read(np.arange(one.num_frames))[:, None] - original).mean((2, 3, 4))
        np.testing.assert_array_equal(distance.argmin(1), frames)


def test_nothing_depends_on_the_processes_and_whole_shards_are_kept(run, tmp_path):
    assert run('--shards=2', '--workers=1')[0] == 0
    expected = contents(tmp_path / 'out')
    assert run('--shards=2', '--workers=3', output=tmp_path / 'other')[0] == 0
    assert contents(tmp_path / 'other') == expected
    # One shard is gone, one is not whole, one was never told to be whole; of a killed process something is left.
    out = tmp_path / 'out'
    kept = (out / 'validation-00001-of-00002.array_record').stat().st_ino
    (out / 'train-00000-of-00002.array_record').unlink()
    cut = out / 'train-00001-of-00002.array_record'
    cut.write_bytes(cut.read_bytes()[:70_000])
    (out / 'facts' / 'validation-00000-of-00002.json').unlink()
    (out / 'manifest.json.gz').unlink()
    (out / 'train-00000-of-00002.array_record.0123.tmp').write_bytes(b'half')
    code, said, _ = run('--shards=2')
    assert code == 0
    assert '4 shards now (1 of them were there)' in said
    assert contents(out) == expected
    assert (out / 'validation-00001-of-00002.array_record').stat().st_ino == kept


def test_going_on_after_a_kill(run, tmp_path, videos):
    out = tmp_path / 'out'
    options = [
        '--shards=4',
        '--workers=1',
        '--config.data.max_bad=0.2',
        f'--config.data.cache={tmp_path / "cache"}',
    ]
    command = [
        sys.executable,
        str(TOOL),
        f'--config={CONFIG}',
        f'--config.data.root={videos}',
        f'--output={out}',
    ]
    process = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (out / 'facts' / 'train-00000-of-00004.json').exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = contents(out)
    assert 'manifest.json.gz' not in before
    with pytest.raises(ValueError, match='started again, it goes on where it was'):
        ArrayRecords('train', root=str(out))
    assert run('--shards=4')[0] == 0
    after = contents(out)
    first = 'train-00000-of-00004.array_record'
    assert after[first] == before[first]
    assert run('--shards=4', output=tmp_path / 'at once')[0] == 0
    assert contents(tmp_path / 'at once') == after


def test_interruption_leaves_only_whole_shards(run, tool, tmp_path, monkeypatch):
    class Interrupted(tool.Telling):
        def __call__(self, *arguments):
            super().__call__(*arguments)
            if self.done == 5:
                raise KeyboardInterrupt

    monkeypatch.setattr(tool, 'Telling', Interrupted)
    code, _, errors = run('--shards=2')
    assert (code, errors) == (
        130,
        'interrupted; what is whole is kept: the same command goes on from there\n',
    )
    shards = sorted(path.name for path in (tmp_path / 'out').glob('*array_record*'))
    assert shards == ['train-00000-of-00002.array_record']


def test_other_work_in_the_same_folder(run, tmp_path):
    assert run('--shards=2')[0] == 0
    before = contents(tmp_path / 'out')
    for options, message in (
        (['--shards=2', '--crf=20'], 'begun with crf=18, not 20: give another --output, or empty it'),
        (
            ['--shards=1'],
            "begun with shards={'train': 2, 'validation': 2}, not {'train': 1, 'validation': 1}: ",
        ),
        (['--shards=2', '--fps=5'], 'begun with fps=0.0, not 5.0: '),
        (['--shards=2', '--config.data.validation_split=x', '--config.seed=1'], ''),
    ):
        code, _, errors = run(*options)
        assert (code, errors.count('\n')) == ((2, 1) if message else (0, 0))
        assert message in errors
    folder = os.open(tmp_path / 'out', os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    assert 'out is being written by another process: wait, or give another --output' in run('--shards=2')[2]
    os.close(folder)
    assert contents(tmp_path / 'out') == before


def test_other_examples_in_the_same_folder(run, tmp_path, videos):
    table = tmp_path / 'table.csv'
    for label, code in (('x', 0), ('y', 2)):
        table.write_text(f'path,label,split\ntrain/a/20 ü.mp4,{label},train\ntrain/b/9 ü.mp4,z,validation\n')
        got, _, errors = run(f'--config.data.csv={table}')
        assert got == code
    assert 'out was begun with other examples or labels: give another --output' in errors


def test_too_many_bad_ones(run, tmp_path):
    code, _, errors = run('--config.data.max_bad=0')
    assert (code, errors.count('\n')) == (2, 1)
    assert "error: 1 of 8 examples of the split 'train' cannot be used: train/b/text.mp4 (" in errors
    assert 'train/b/text.mp4' in (tmp_path / 'out' / 'bad_files.csv').read_text()
    assert not list((tmp_path / 'out').glob('*array_record*'))
    assert "data.on_bad_video='error' stops here" in run('--config.data.on_bad_video=error')[2]


def test_what_goes_bad_while_preparing(run, tool, tmp_path, monkeypatch):
    jobs = tool._jobs

    def torn(*arguments):
        first, *others = jobs(*arguments)
        record = dataclasses.replace(
            first.records[1], read=functools.partial(read_frames, 'nowhere.mp4', FOUND)
        )
        return [dataclasses.replace(first, records=(first.records[0], record, *first.records[2:])), *others]

    monkeypatch.setattr(tool, '_jobs', torn)
    code, said, _ = run('--config.data.max_bad=0.5')
    assert code == 0
    assert 'prepared: train 6, validation 2; left out: 3; ' in said
    rows = (tmp_path / 'out' / 'bad_files.csv').read_text().splitlines()
    assert [row.endswith(',while preparing') for row in rows] == [False, False, True, True]
    assert 'nowhere.mp4 cannot be read: No such file' in rows[2]
    train = ArrayRecords('train', root=str(tmp_path / 'out'))
    assert len(train) == 6
    assert train.bad[1] == (rows[2].split(',')[1], 'nowhere.mp4 cannot be read: No such file or directory')
    code, _, errors = run('--config.data.max_bad=0.2')
    assert code == 2
    assert "2 of 8 examples of the split 'train' cannot be used" in errors


def test_beam_writes_the_same(run, tmp_path):
    pytest.importorskip('apache_beam')
    assert run('--shards=2')[0] == 0
    assert run('--shards=2', '--beam', '--', '--runner=DirectRunner', output=tmp_path / 'beam')[0] == 0
    assert contents(tmp_path / 'beam') == contents(tmp_path / 'out')


def test_without_beam(run, monkeypatch):
    monkeypatch.setitem(sys.modules, 'apache_beam', None)
    assert "--beam needs Apache Beam: pip install 'vivit_jax[beam]'" in run('--beam')[2]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--gpo=3'], "'--gpo=3' is no option; keys of the configuration are --config.KEY=VALUE"),
        (['--workers=0'], '--workers=0 --shards=0: must be at least 1 and 0'),
        (['--', '--runner=x'], "'--runner=x' after -- is for Beam: add --beam"),
    ],
)
def test_options_with_mistakes(run, capsys, options, message):
    with pytest.raises(SystemExit, match='2'):
        run(*options)
    assert message in capsys.readouterr().err


def test_what_is_no_video_cannot_be_prepared(run):
    message = "error: data.source='medmnist' cannot be prepared: choose one of video_files, frame_folders"
    assert message in run('--config.data.source=medmnist')[2]
