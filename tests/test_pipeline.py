"""Batches: a function of seed, step and source alone; every example of an evaluation once."""

import collections
import dataclasses
import os
import pathlib
import signal

import jax
import numpy as np
import pytest

from vivit_jax import sharding
from vivit_jax.data import pipeline, transforms
from vivit_jax.data.examples import EvaluationExamples, Rows, TrainingExamples
from vivit_jax.data.moving_digits import MovingDigits
from vivit_jax.data.record import Record
from vivit_jax.data.sampling import Order
from vivit_jax.data.views import Views

MESH = sharding.make_mesh(devices=jax.devices()[:1])
READING = {'mesh': MESH, 'threads': 2, 'workers': 0, 'prefetch': 2}


@dataclasses.dataclass(frozen=True)
class Numbered:
    """Videos whose frame t is filled with t, in columns that differ; what was read is noted."""

    lengths: tuple[int, ...]
    labels: tuple = ()
    reads: list = dataclasses.field(default_factory=list)
    class_names: tuple[str, ...] = ('a', 'b')
    digest: str = 'numbered'
    bad: tuple = ()

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        def read(chosen):
            self.reads.append((index, tuple(chosen.tolist())))
            frames = chosen[:, None, None, None] + 100 + np.arange(12)[:, None]
            return np.repeat(frames, 8, axis=1).astype(np.uint8)

        label = self.labels[index] if self.labels else index % 2
        return Record(
            name=f'v{index}', label=label, num_frames=self.lengths[index], frame_size=(8, 12), read=read
        )


def training(source, **changes):
    settings = {'split': 'train', 'seed': 3, 'frames': 4, 'stride': 2, 'short': 'repeat_last'}
    settings |= {'order': Order(len(source), changes.get('seed', 3))}
    augmentation = (transforms.RandomCrop(size=(8, 8)),)
    return TrainingExamples(source=source, augmentation=augmentation, **settings | changes)


def evaluation(source, **changes):
    settings = {
        'frames': 4,
        'stride': 1,
        'short': 'repeat_last',
        'short_side': 0,
        'crop': (8, 8),
        'temporal_views': 1,
        'spatial_views': 1,
    }
    return EvaluationExamples(source=source, split='validation', views=Views(**settings | changes))


def collect(read, **changes):
    settings = {'batch_size': 4, 'first_step': 0, 'last_step': 6} | READING | changes
    with pipeline.batches(read, **settings) as batches:
        return [jax.device_get(batch) for batch in batches]


def assert_same(ones, others):
    assert len(ones) == len(others) > 0
    for one, other in zip(ones, others, strict=True):
        assert one.keys() == other.keys() == {'video', 'label', 'mask', 'index'}
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def started_by(process):
    """The processes that one has started."""
    lists = pathlib.Path(f'/proc/{process}/task').glob('*/children')
    return {int(child) for children in lists for child in children.read_text().split()}


@pytest.fixture(scope='module')
def stream():
    """Six batches of the training stream of ten videos."""
    return collect(training(Numbered(lengths=(9,) * 10)))


def test_contract(stream):
    batch = stream[0]
    assert {name: (rows.shape, str(rows.dtype)) for name, rows in batch.items()} == {
        'video': ((4, 4, 8, 8, 1), 'uint8'),
        'label': ((4,), 'int32'),
        'mask': ((4,), 'bool'),
        'index': ((4,), 'int32'),
    }
    assert batch['mask'].all()
    np.testing.assert_array_equal(batch['label'], batch['index'] % 2)
    # Frame stride 2, all frames cropped alike.
    np.testing.assert_array_equal(np.diff(batch['video'].astype(int), axis=1), 2)


def test_every_epoch_has_every_example_once(stream):
    order = np.concatenate([batch['index'] for batch in stream])[:20]
    np.testing.assert_array_equal(np.sort(order[:10]), np.arange(10))
    np.testing.assert_array_equal(np.sort(order[10:]), np.arange(10))
    assert list(order[:10]) != list(order[10:])


@pytest.mark.parametrize('first', [1, 4])
def test_resuming_gives_the_rest(stream, first):
    assert_same(collect(training(Numbered(lengths=(9,) * 10)), first_step=first), stream[first:])


def test_threads_do_not_matter(stream):
    assert_same(collect(training(Numbered(lengths=(9,) * 10)), threads=7, prefetch=1), stream)


@pytest.mark.slow
@pytest.mark.parametrize('workers', [1, 2])
def test_workers_do_not_matter(workers):
    source = MovingDigits('train', size=10, frames=4, canvas=12)
    read = training(source)
    assert_same(collect(read, workers=workers), collect(read))


@pytest.mark.slow
def test_a_killed_worker_does_not_change_a_batch():
    """As the system kills one where memory runs out; the run is told of it and goes on."""
    # Clips of 256 KiB, of which a pipe holds few: there is much left to read when it happens.
    source = MovingDigits('train', size=10, frames=64, canvas=64)
    read = dataclasses.replace(training(source), augmentation=(), frames=64, stride=1)
    settings = {'batch_size': 4, 'first_step': 0, 'last_step': 25}
    message = 'a worker process died of SIGKILL; another one goes on from its place'
    before = started_by(os.getpid())  # Python's tracker of what other tests have shared
    with (  # noqa: PT031 (who knows when it is noticed)
        pytest.warns(UserWarning, match=message),
        pipeline.batches(read, **settings, **READING | {'workers': 2}) as batches,
    ):
        next(batches)
        os.kill(min(started_by(os.getpid()) - before), signal.SIGKILL)
        got = [jax.device_get(batch) for batch in batches]
    assert_same(got, collect(read, first_step=1, last_step=25))
    assert started_by(os.getpid()) == before


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_processes_split_each_batch_in_order(processes):
    def read(position):
        return {'index': np.asarray(position)}

    rows = [Rows(read, 8, process, processes) for process in range(processes)]
    share = 8 // processes
    for step in range(3):
        batch = [int(one(step * share + row)['index']) for one in rows for row in range(share)]
        assert batch == list(range(step * 8, step * 8 + 8))


def test_the_seed_matters(stream):
    other = collect(training(Numbered(lengths=(9,) * 10), seed=4))
    assert [list(batch['index']) for batch in other] != [list(batch['index']) for batch in stream]


def test_evaluation_counts_every_example_once():
    batches = collect(evaluation(Numbered(lengths=(5,) * 10)), last_step=3)
    counted = np.concatenate([batch['index'][batch['mask']] for batch in batches])
    np.testing.assert_array_equal(counted, np.arange(10))
    assert [list(batch['mask']) for batch in batches][2] == [True, True, False, False]
    assert {batch['video'].shape for batch in batches} == {(4, 4, 8, 8, 1)}


def test_views_of_an_evaluation():
    # 10 frames hold clips of 4 starting at 0 to 6: views start at 0, 3 and 6. The 12 columns hold crops of 8 that
    # start at 0, 2 and 4.
    source = Numbered(lengths=(10,))
    batch = collect(
        evaluation(source, temporal_views=3, spatial_views=3), batch_size=1, first_step=0, last_step=1
    )[0]
    assert batch['video'].shape == (1, 9, 4, 8, 8, 1)
    starts = batch['video'][0, :, 0, 0, 0, 0].astype(int) - 100
    assert list(starts) == [start + left for start in (0, 3, 6) for left in (0, 2, 4)]
    # One read of each frame that any view wants.
    assert source.reads == [(0, tuple(range(10)))]


@pytest.mark.parametrize(
    ('labels', 'shape', 'dtype'),
    [
        ((1, 0), (2,), 'int32'),
        (((1, 5), (0, 2)), (2, 2), 'int32'),
        (((1.0, 0.0), (0.0, 1.0)), (2, 2), 'float32'),
    ],
)
def test_forms_of_labels(labels, shape, dtype):
    batch = collect(evaluation(Numbered(lengths=(5, 5), labels=labels)), batch_size=2, last_step=1)[0]
    assert (batch['label'].shape, str(batch['label'].dtype)) == (shape, dtype)
    np.testing.assert_array_equal(batch['label'], np.array(labels))


def test_batches_are_split_over_the_devices():
    mesh = sharding.make_mesh()
    settings = READING | {'mesh': mesh}
    read = evaluation(Numbered(lengths=(5,) * 16))
    with pipeline.batches(read, batch_size=16, first_step=0, last_step=1, **settings) as batches:
        video = next(batches)['video']
    assert collections.Counter(shard.data.shape[0] for shard in video.addressable_shards) == {2: 8}
    with (
        pytest.raises(ValueError, match='batch of 12 examples cannot be split evenly over 8 devices'),
        pipeline.batches(read, batch_size=12, first_step=0, last_step=1, **settings),
    ):
        pass
