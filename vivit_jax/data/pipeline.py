"""From a source to batches on the devices: choose, read, augment, batch, transfer.

What a batch holds is a function of the seed, the step and the source alone. Grain only reads ahead, in threads or
worker processes; position p of the endless training stream is computed from p wherever and whenever it is read:

    step s, row r  ->  position s * batch_size + r  ->  epoch and place  ->  example, clip, augmentation
"""

import contextlib
import dataclasses
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

import grain
import grain.experimental
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from vivit_jax import sharding
from vivit_jax.data import clips, transforms
from vivit_jax.data.record import Label, Source

SOURCES = ('moving_digits', 'video_files', 'medmnist')

Example = dict[str, np.ndarray]
# Evaluation draws nothing, but transforms are called with a generator.
_NO_RANDOMNESS = np.random.default_rng(0)
Batch = dict[str, jax.Array]


def make_source(
    name: str,
    split: str,
    *,
    root: str | None,
    heads: tuple[str, ...],
    num_classes: tuple[int, ...],
    frames: int,
    seed: int,
    options: dict[str, Any],
) -> Source:
    """Opens one split of a data set.

    Args:
        name: One of `SOURCES`.
        split: Which split; the source tells which it has.
        root: Folder that holds the data, for those that read files.
        heads: Names of the heads.
        num_classes: Classes of each head, where the data may not show all of them; () as the data tells.
        frames: Frames of a generated clip.
        seed: Of generated clips.
        options: Further settings of this source, as `config.data.<name>`.

    Raises:
        ValueError: If the source or the split is unknown, or the data is not there; one line.
    """
    if name == 'moving_digits':
        from vivit_jax.data.moving_digits import MovingDigits

        kind = 'test' if split.startswith('test') else split
        size = options.get(f'{kind}_size', 1)
        return MovingDigits(split, size=size, seed=seed, frames=frames, canvas=options['canvas'])
    if name not in SOURCES:
        raise ValueError(f'data.source={name!r}: choose one of {", ".join(SOURCES)}')
    if name == 'medmnist':
        from vivit_jax.data.medmnist import MedMNIST

        return MedMNIST(split, root=root, **options)
    from vivit_jax.data.video_files import VideoFiles

    return VideoFiles(split, root=root, heads=heads, num_classes=num_classes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingExamples:
    """Maps a position of the endless training stream to an example.

    Attributes:
        source: Where records come from; every epoch has each of them once, in an order of its own.
        seed: Of order, clips and augmentation.
        frames: Frames of a clip.
        stride: Frames of the video from one to the next.
        short: What a video shorter than its clip does, see `clips.random_clip`.
        augmentation: Transforms, in order.
    """

    source: Source
    seed: int
    frames: int
    stride: int
    short: str
    augmentation: tuple[Callable[..., np.ndarray], ...]

    def __call__(self, position: int) -> Example:
        """Returns `video` `[t h w c]`, `label`, `mask` and `index`."""
        epoch, place = divmod(position, len(self.source))
        index = int(_order(len(self.source), self.seed, epoch)[place])
        rng = np.random.default_rng((self.seed, position))
        record = self.source[index]
        chosen = clips.random_clip(
            record.num_frames, frames=self.frames, stride=self.stride, rng=rng, short=self.short
        )
        video = transforms.apply(self.augmentation, record.read(chosen), rng)
        return _example(video, record.label, index, mask=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationExamples:
    """Maps an index to an example with all its views; indices past the end give masked padding.

    Attributes:
        source: Where records come from.
        frames: Frames of a clip.
        stride: Frames of the video from one to the next.
        short: What a video shorter than its clip does.
        short_side: Pixels to which the shorter side is resized; 0 leaves it.
        crop: (height, width) of a view in pixels.
        temporal_views: Clips, evenly spaced.
        spatial_views: Crops of each clip.
    """

    source: Source
    frames: int
    stride: int
    short: str
    short_side: int
    crop: tuple[int, int]
    temporal_views: int
    spatial_views: int

    def __call__(self, index: int) -> Example:
        """Returns `video` `[t h w c]`, or `[v t h w c]` of several views (time outermost), and the rest."""
        within = min(index, len(self.source) - 1)
        record = self.source[within]
        chosen = clips.clip_views(
            record.num_frames,
            frames=self.frames,
            stride=self.stride,
            views=self.temporal_views,
            short=self.short,
        )
        # Views overlap: each frame is read once.
        wanted, places = np.unique(chosen, return_inverse=True)
        frames = record.read(wanted)
        if self.short_side:
            frames = transforms.ResizeShortSide(size=self.short_side, minimum=self.crop)(
                frames, _NO_RANDOMNESS
            )
        crops = transforms.spatial_views(frames, size=self.crop, views=self.spatial_views)
        views = crops[:, places.reshape(chosen.shape)].swapaxes(0, 1)
        video = views.reshape(-1, *views.shape[2:])
        video = video[0] if len(video) == 1 else video
        return _example(video, record.label, within, mask=index == within)


def _example(video: np.ndarray, label: Label, index: int, *, mask: bool) -> Example:
    of_classes = isinstance(label, tuple) and isinstance(label[0], float)
    return {
        'video': np.ascontiguousarray(video),
        'label': np.asarray(label, np.float32 if of_classes else np.int32),
        'mask': np.asarray(mask),
        'index': np.asarray(index, np.int32),
    }


@functools.lru_cache(maxsize=8)
def _order(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of one epoch; some are kept, as a batch may straddle them."""
    return np.random.default_rng((seed, epoch, length)).permutation(length)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Reads the rows of each batch that belong to one process."""

    read: Callable[[int], Example]
    batch_size: int
    process: int
    processes: int

    def __call__(self, row: int) -> Example:
        step, place = divmod(row, self.batch_size // self.processes)
        return self.read(step * self.batch_size + self.process * (self.batch_size // self.processes) + place)


@contextlib.contextmanager
def batches(
    read: Callable[[int], Example],
    *,
    batch_size: int,
    first_step: int,
    last_step: int,
    mesh: Mesh,
    threads: int,
    workers: int,
    prefetch: int,
) -> Iterator[Iterator[Batch]]:
    """Iterates over the batches of steps `first_step` to `last_step - 1`, read ahead and put on the devices.

    A context manager, so that threads and worker processes end with it.

    Args:
        read: `TrainingExamples` or `EvaluationExamples`.
        batch_size: Examples of a batch, over all processes.
        first_step: Steps to leave out: where a resumed run goes on.
        last_step: Steps in all.
        mesh: Over which batches are split.
        threads: That read, in each worker.
        workers: Processes that read; 0 reads in threads of this one.
        prefetch: Batches that wait on the device.

    Raises:
        ValueError: If the batch cannot be split evenly over the devices.
    """
    processes = jax.process_count()
    devices = mesh.devices.size
    if batch_size % devices or batch_size < 1:
        raise ValueError(f'a batch of {batch_size} examples cannot be split evenly over {devices} devices')
    rows = batch_size // processes
    reading = grain.ReadOptions(num_threads=max(threads, 1), prefetch_buffer_size=max(2 * threads, rows))
    examples = grain.MapDataset.range(first_step * rows, last_step * rows)
    dataset = examples.map(_Rows(read, batch_size, jax.process_index(), processes)).to_iter_dataset(reading)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers inherit absl's flags, which only main parses
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    dataset = dataset.batch(rows).map(functools.partial(sharding.to_global, mesh=mesh))
    iterator = iter(
        grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=max(prefetch, 1))
    )
    try:
        yield iterator
    finally:
        iterator.close()
        del iterator, dataset
        if workers:
            gc.collect()  # memory shared with workers hangs in cycles, and would be called leaked at exit
