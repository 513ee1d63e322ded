"""Videos in folders and tables, from the listing to the batch: the right frames of the right file, always."""

import dataclasses
import itertools
import pickle
import re
import shutil

import jax
import numpy as np
import pytest

from videos import FRAMES, HEIGHT, WIDTH, decode, write_video
from vivit_jax import sharding
from vivit_jax.data import examples as examples_module
from vivit_jax.data import pipeline, transforms, video_files
from vivit_jax.data.examine import Examination
from vivit_jax.data.listed import ListedFiles
from vivit_jax.data.listing import Layout
from vivit_jax.data.opening import SOURCES, open_source
from vivit_jax.data.record import UnreadableExample
from vivit_jax.data.sampling import Order
from vivit_jax.data.views import Views

SHORT_GOP = {'x264-params': 'keyint=20:bframes=3:b-adapt=0:scenecut=0'}


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    """Two classes, four videos to train on and one each to validate on; their frame rate is 25."""
    folder = tmp_path_factory.mktemp('videos')
    write_video(folder / 'x.mp4', options=SHORT_GOP)
    write_video(folder / 'y.avi', 'mpeg4', {'g': '12', 'bf': '2'}, frames=30)
    for split, number, (name, file) in itertools.product(
        ('train', 'validation'), (0, 1), (('waving', 'x.mp4'), ('über uns', 'y.avi'))
    ):
        if split == 'train' or not number:
            place = folder / 'data' / split / name
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / file, place / f'{number} {file}')
    return folder / 'data'


def opened(root, split='train', fps=0.0, **layout):
    return ListedFiles(
        split,
        kind=video_files.KIND,
        layout=Layout(root=str(root), **layout),
        examination=Examination(),
        fps=fps,
    )


def test_folders(root):
    source = opened(root)
    assert source.class_names == ['waving', 'über uns']
    assert [source[index].name for index in range(len(source))] == [
        'train/waving/0 x.mp4',
        'train/waving/1 x.mp4',
        'train/über uns/0 y.avi',
        'train/über uns/1 y.avi',
    ]
    assert [source[index].label for index in range(4)] == [0, 0, 1, 1]
    assert source.bad == []
    record = source[1]
    assert (record.num_frames, record.frame_size, record.codec) == (FRAMES, (HEIGHT, WIDTH), 'h264')
    assert record.seconds == pytest.approx(FRAMES / 25)
    for index in (1, 2):
        frames = decode(source.path(index))
        chosen = np.array([7, 29, 8, 29])
        np.testing.assert_array_equal(source[index].read(chosen), frames[chosen])


def test_seconds_of_a_video(root, tmp_path):
    table = tmp_path / 'parts.csv'
    table.write_text(
        'path,label,start,end,split\n'
        'train/waving/0 x.mp4,a,0.4,0.8,train\n'
        'train/waving/0 x.mp4,b,2,9,train\n'
        'train/über uns/0 y.avi,b,0.5,0.7,train\n'
        'train/waving/0 x.mp4,a,,,validation\n'
    )
    source = opened(root, csv=str(table))
    assert source.bad == []
    x, y = decode(source.path(0)), decode(source.path(2))
    for index, expected in enumerate((x[10:20], x[50:60], y[13:18])):
        record = source[index]
        np.testing.assert_array_equal(record.read(np.arange(record.num_frames)), expected)
    assert source[1].name == 'train/waving/0 x.mp4#t=2,9'
    assert opened(root, 'validation', csv=str(table))[0].num_frames == FRAMES


def test_frames_by_time(root):
    source = opened(root, fps=10.0)
    for index, file_frames in ((0, FRAMES), (2, 30)):
        record = source[index]
        frames = decode(source.path(index))
        assert record.num_frames == file_frames * 10 // 25
        expected = [number * 25 // 10 for number in range(record.num_frames)]
        np.testing.assert_array_equal(record.read(np.arange(record.num_frames)), frames[expected])


def test_a_file_that_has_become_unreadable(root, tmp_path):
    shutil.copytree(root, tmp_path / 'data')
    source = opened(tmp_path / 'data')
    (tmp_path / 'data' / 'train' / 'waving' / '1 x.mp4').write_bytes(b'something else')
    (tmp_path / 'data' / 'train' / 'waving' / '0 x.mp4').unlink()
    for index in (0, 1):
        with pytest.raises(UnreadableExample, match=r'x\.mp4 cannot be read: \w'):
            source[index].read(np.array([3]))
    assert source[2].read(np.array([3])).shape == (1, HEIGHT, WIDTH, 3)


def test_records_travel_to_worker_processes(root):
    source = pickle.loads(pickle.dumps(opened(root)))
    record = pickle.loads(pickle.dumps(source[0]))
    np.testing.assert_array_equal(record.read(np.array([5]))[0], decode(source.path(0))[5])


@pytest.mark.parametrize(
    ('name', 'fps', 'message'),
    [
        ('kinetics', 0.0, "data.source='kinetics': choose one of " + ', '.join(SOURCES)),
        (
            'moving_digits',
            8.0,
            "data.fps=8: clips of data.source='moving_digits' are counted in frames; set it to 0",
        ),
    ],
)
def test_a_source_that_there_is_not_and_a_rate_without_a_clock(name, fps, message):
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        open_source(
            name,
            'train',
            layout=Layout(),
            examination=Examination(),
            frames=4,
            fps=fps,
            seed=0,
            options={},
        )


# --- Batches ---


@pytest.fixture(scope='module')
def examples(root):
    source = opened(root)
    return examples_module.TrainingExamples(
        source=source,
        split='train',
        order=Order(len(source), 5),
        seed=5,
        frames=8,
        stride=2,
        short='loop',
        augmentation=transforms.training_transforms(
            short_side=40,
            crop=(32, 32),
            scale_jitter=(0.9, 1.33),
            flip=0.5,
            colour_jitter=0.8,
            colour_drop=0.1,
            randaugment_layers=2,
            randaugment_magnitude=15.0,
        ),
    )


def read_batches(read, process=0, processes=1, workers=0, threads=2):
    """The batches of six steps of four clips, one and a half epochs a step: those of one of the processes."""
    rows = examples_module.Rows(read, 4, process, processes)
    if processes > 1:
        return [rows(row) for row in range(6 * 4 // processes)]
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    settings = {'mesh': mesh, 'threads': threads, 'workers': workers, 'prefetch': 2}
    with pipeline.batches(read, batch_size=4, first_step=0, last_step=6, **settings) as batches:
        joined = [jax.device_get(batch) for batch in batches]
    return [{name: batch[name][row] for name in batch} for batch in joined for row in range(4)]


@pytest.fixture(scope='module')
def expected(examples):
    return [examples(position) for position in range(24)]


@pytest.mark.slow
@pytest.mark.parametrize('workers', [0, 1, 2, 8])
def test_workers_do_not_change_a_clip(examples, expected, workers):
    np.testing.assert_equal(read_batches(examples, workers=workers), expected)


@pytest.mark.parametrize('processes', [2, 4])
def test_processes_share_the_batches(examples, expected, processes):
    parts = [read_batches(examples, process, processes) for process in range(processes)]
    rows = 4 // processes
    joined = [row for step in range(6) for part in parts for row in part[step * rows : (step + 1) * rows]]
    np.testing.assert_equal(joined, expected)
    # An epoch is four clips here, a step: every video once, none twice over the processes.
    for step in range(6):
        assert sorted(int(row['index']) for row in joined[step * 4 : (step + 1) * 4]) == [0, 1, 2, 3]


def test_all_frames_of_a_view_are_read_at_once(root, monkeypatch):
    """One look into the file gives all views of a video."""
    source = opened(root, 'validation')
    calls = []
    real = video_files.KIND.read

    def noting(path, found, indices):
        calls.append(len(indices))
        return real(path, found, indices)

    monkeypatch.setattr(source, '_kind', dataclasses.replace(video_files.KIND, read=noting))
    views = Views(
        frames=8,
        stride=2,
        short='repeat_last',
        short_side=40,
        crop=(32, 32),
        temporal_views=4,
        spatial_views=3,
    )(source[0])
    assert views.shape == (12, 8, 32, 32, 3)
    assert len(calls) == 1
    # Starts 0, 15, 30, 45 of the four views, every second frame: two of them even, two odd.
    assert calls[0] == len({start + 2 * step for start in (0, 15, 30, 45) for step in range(8)})
