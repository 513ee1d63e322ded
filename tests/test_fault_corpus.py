"""Files as people have them: nothing crashes, and whatever is left out or replaced is named."""

import csv
import io
import os
from pathlib import Path

import av
import jax
import numpy as np
import pytest

from videos import FRAMES, HEIGHT, WIDTH, decode, write_sound, write_video
from vivit_jax import experiment, feeding
from vivit_jax.config import load
from vivit_jax.data import check, pipeline
from vivit_jax.data.bad_files import BadFiles
from vivit_jax.data.files import decoding
from vivit_jax.sharding import make_mesh

CONFIG = str(Path(__file__).parent.parent / 'configs' / 'my_videos.py')
SMALL = {
    'data.frames': '4',
    'data.short_side': '36',
    'data.crop': '32,32',
    'data.max_bad': '1.0',
    'model.width': '12',
    'training.batch_size': '8',
}
TENTHS = range(1, 10)
LOCKED = 'run/locked.mp4'
# What of the corpus cannot be read, and words of its cause.
UNREADABLE = {
    'run/empty.mp4': 'empty',
    'run/text.mp4': 'Invalid data',
    'run/sound.mkv': 'audio only',
    'run/link.mp4': 'link',
    LOCKED: 'Permission denied',
    **{f'run/index last, cut at {tenth}.mp4': '' for tenth in TENTHS},
}
STRANGE = 'wave/Ärger  \N{EM DASH} 日本語 🎬 100% #t=1 (1).mp4'
READABLE = {
    'run/sound.mp4': FRAMES,
    'wave/one frame.mp4': 1,
    STRANGE: FRAMES,
    'wave/UPPER.MP4': FRAMES,
}


def write_two_hours(path):
    """Writes a video of two hours, whose header comes first, and keeps a hundredth of what follows it."""
    with av.open(path, 'w', options={'movflags': 'faststart'}) as container:
        stream = container.add_stream('mpeg4', rate=1, options={'g': '1'})
        stream.width = stream.height = 64
        frame = av.VideoFrame.from_ndarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
        for second in range(7200):
            frame.pts = second
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    content = path.read_bytes()
    start = content.index(b'mdat')
    path.write_bytes(content[: start + (len(content) - start) // 100])


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
    """Two classes of bad and good files."""
    root = tmp_path_factory.mktemp('corpus')
    run, wave = root / 'run', root / 'wave'
    run.mkdir()
    wave.mkdir()
    write_video(run / 'sound.mp4')
    whole = (run / 'sound.mp4').read_bytes()
    write_video(wave / 'good.mkv', options={'g': '10'})
    streamed = (wave / 'good.mkv').read_bytes()
    for tenth in TENTHS:
        (run / f'index last, cut at {tenth}.mp4').write_bytes(whole[: len(whole) * tenth // 10])
        (wave / f'cut at {tenth}.mkv').write_bytes(streamed[: len(streamed) * tenth // 10])
    (run / 'empty.mp4').touch()
    (run / 'text.mp4').write_text('This is no video.\n' * 100)
    write_sound(run / 'sound.mkv')
    (run / 'folder.mp4').mkdir()
    (run / 'link.mp4').symlink_to(root / 'nowhere.mp4')
    (root / LOCKED).write_bytes(whole)
    (root / LOCKED).chmod(0)
    write_video(wave / 'one frame.mp4', frames=1)
    write_two_hours(wave / 'two hours.mp4')
    (root / STRANGE).write_bytes(whole)
    (wave / 'UPPER.MP4').write_bytes(whole)
    (wave / 'notes.txt').write_text('not for us')
    return root


@pytest.fixture
def locked(monkeypatch):
    """Lets nobody read the locked file, not even root, whom permissions do not concern."""
    if os.geteuid():
        return
    real = av.open

    def open_unless_locked(file, *arguments, **options):
        if str(file).endswith(LOCKED):
            raise PermissionError(13, 'Permission denied', file)
        return real(file, *arguments, **options)

    monkeypatch.setattr(decoding.av, 'open', open_unless_locked)


@pytest.fixture
def config(corpus, tmp_path):
    return load(CONFIG, SMALL | {'data.root': str(corpus), 'data.cache': str(tmp_path / 'cache')})


def splits_of(config):
    with pytest.warns(UserWarning, match='cannot be used'):
        return {split: experiment.make_source(config, split) for split in ('train', 'validation')}


def test_every_file_is_an_example_or_named(config, corpus, locked):
    sources = splits_of(config)
    bad = dict(bad for source in sources.values() for bad in source.bad)
    good = {source[index].name: source[index] for source in sources.values() for index in range(len(source))}
    assert not set(good) & set(bad)
    files = {f'{path.parent.name}/{path.name}' for path in corpus.glob('*/*') if path.suffix != '.txt'}
    assert set(good) | set(bad) >= files - {'run/folder.mp4'}
    for name, words in UNREADABLE.items():
        assert words in bad[name], name
    for name, frames in READABLE.items():
        assert good[name].num_frames == frames
    # Of what was cut off, as much as plain decoding gives is there, and the last frame stands for the rest.
    for tenth in TENTHS:
        name = f'wave/cut at {tenth}.mkv'
        if tenth == 1:  # not even the first frame is whole
            assert bad[name] == 'no frame in it'
            continue
        expected = decode(str(corpus / name))
        frames = good[name].read(np.arange(good[name].num_frames))
        np.testing.assert_array_equal(frames[: len(expected)], expected)
        assert (frames[len(expected) :] == expected[-1]).all()
    assert good['wave/two hours.mp4'].frame_size == (64, 64)


def test_clips_of_all_of_them_come_through(config, locked, tmp_path):
    named = BadFiles(tmp_path / 'bad_files.csv')
    for split, source in splits_of(config).items():
        bad = {name for name, _ in source.bad}
        training = feeding.training_examples(config, source, named)
        evaluation = feeding.evaluation_examples(
            config, source, temporal_views=4, spatial_views=3, split=split, bad_files=named
        )
        for position in range(2 * len(source)):
            example = training(position)
            assert example['video'].shape == (4, 32, 32, 3)
            assert source[int(example['index'])].name not in bad
        for index in range(len(source)):
            example = evaluation(index)
            assert example['video'].shape == (12, 4, 32, 32, 3)
            assert example['mask']
    # What could be opened could be read, up to the end.
    assert named.read() == {}


def test_batches_of_all_of_them(config, locked, tmp_path):
    source = splits_of(config)['train']
    mesh = make_mesh(1)
    examples = feeding.training_examples(config, source, BadFiles(tmp_path / 'bad_files.csv'))
    steps = 3
    with pipeline.batches(
        examples, batch_size=8, first_step=0, last_step=steps, mesh=mesh, threads=4, workers=0, prefetch=1
    ) as batches:
        shapes = [jax.tree.map(np.shape, batch) for batch in batches]
    assert [shape['video'] for shape in shapes] == [(8, 4, 32, 32, 3)] * steps


def test_the_check_names_all_of_them(corpus, locked, tmp_path, capsys):
    output = tmp_path / 'check.csv'
    options = [f'--config.{key}={value}' for key, value in SMALL.items()]
    options += [f'--config.data.root={corpus}', f'--config.data.cache={tmp_path / "cache"}', '--decode']
    assert check.main([f'--config={CONFIG}', f'--output={output}', *options]) == 1
    told = capsys.readouterr()
    assert 'Training goes on with ' in told.out
    assert not told.err
    rows = list(csv.reader(io.StringIO(output.read_text('utf-8'), newline='')))[1:]
    causes = {name: cause for _, name, cause in rows}
    for name, words in UNREADABLE.items():
        assert words in causes[name], name
    assert causes['wave/two hours.mp4'].startswith('damaged: ')
    assert not causes.keys() & READABLE.keys() - {'run/sound.mp4', STRANGE, 'wave/UPPER.MP4'}


def test_a_table_of_them(corpus, locked, tmp_path):
    listed = [*UNREADABLE, 'run/folder.mp4', 'run/not there.mp4', *READABLE]
    table = tmp_path / 'list.csv'
    with table.open('w', newline='', encoding='utf-8') as file:
        csv.writer(file).writerows([('path', 'label'), *((name, 'a') for name in listed)])
    settings = {'data.root': str(corpus), 'data.csv': str(table), 'data.cache': str(tmp_path / 'cache')}
    sources = splits_of(load(CONFIG, SMALL | settings)).values()
    lines = {name: line for line, name in enumerate(listed, start=2)}
    words = UNREADABLE | {'run/folder.mp4': 'folder', 'run/not there.mp4': 'no such file'}
    bad = dict(bad for source in sources for bad in source.bad)
    assert set(bad) == set(words)
    for name, cause in words.items():
        assert cause in bad[name]
        assert bad[name].endswith(f' (list.csv, line {lines[name]})')
    good = {source[index].name for source in sources for index in range(len(source))}
    assert good == READABLE.keys()


def test_a_long_table_with_one_bad_row(corpus, tmp_path):
    rows = [
        f'{("run/sound.mp4", "wave/UPPER.MP4")[number % 2]},run,{number / 10_000},2'
        for number in range(10_000)
    ]
    rows[7_319] = 'run/sound.mp4,run,soon,2'
    table = tmp_path / 'list.csv'
    table.write_text('path,label,start,end\n' + '\n'.join(rows) + '\n')
    settings = {'data.root': str(corpus), 'data.csv': str(table), 'data.cache': str(tmp_path / 'cache')}
    config = load(CONFIG, settings)
    with pytest.warns(UserWarning, match='list.csv, line 7321'):
        sources = [experiment.make_source(config, split) for split in ('train', 'validation')]
    ((name, cause),) = (bad for source in sources for bad in source.bad)
    assert 'list.csv, line 7321' in name
    assert 'soon' in cause
    assert sum(map(len, sources)) == 9_999
    assert sources[0][0].frame_size == (HEIGHT, WIDTH)
