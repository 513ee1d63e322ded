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

import grain
import grain.experimental
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh

from vivit_jax import sharding
from vivit_jax.data import clips, transforms
from vivit_jax.data.bad_files import BadFiles
from vivit_jax.data.record import Label, Source, UnreadableExample
from vivit_jax.data.sampling import Order
from vivit_jax.data.views import Views

Example = dict[str, np.ndarray]
# So many examples in a row that cannot be read are no accident: the disk is gone, not a file.
ATTEMPTS = 50
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingExamples:
    """Maps a position of the endless training stream to an example.

    An example that cannot be read is named in the list of bad files, and another one, drawn from the position's
    randomness, takes its place.

    Attributes:
        source: Where records come from.
        split: Its name, for the list of bad files.
        order: Which example is where in each epoch.
        seed: Of clips and augmentation.
        frames: Frames of a clip.
        stride: Frames of the video from one to the next.
        short: What a video shorter than its clip does, see `clips.random_clip`.
        augmentation: Transforms, in order.
        on_device: Transforms after these that are left to the training step: the example brings what they draw.
        bad_files: Where examples that cannot be read are named.
    """

    source: Source
    split: str
    order: Order
    seed: int
    frames: int
    stride: int
    short: str
    augmentation: tuple[Callable[..., np.ndarray], ...]
    on_device: tuple[transforms.OnDevice, ...] = ()
    bad_files: BadFiles | None = None

    def __call__(self, position: int) -> Example:
        """Returns `video` `[t h w c]`, `label`, `mask` and `index`; and an entry for each of `on_device`."""
        epoch, place = divmod(position, len(self.source))
        index = int(self.order(epoch)[place])
        rng = np.random.default_rng((self.seed, position))
        cause = ''
        for _ in range(ATTEMPTS):
            record = self.source[index]
            chosen = clips.random_clip(
                record.num_frames, frames=self.frames, stride=self.stride, rng=rng, short=self.short
            )
            try:
                pixels = record.read(chosen)
            except UnreadableExample as error:
                cause = str(error)
                _name_bad(self.bad_files, self.split, record.name, cause, 'while training')
                index = int(self.order(epoch)[rng.integers(len(self.source))])
                continue
            video = transforms.apply(self.augmentation, pixels, rng)
            drawn = {each.entry: each.draw(video, rng) for each in self.on_device}
            return _example(video, record.label, index, mask=True) | drawn
        raise ValueError(f'{ATTEMPTS} examples of {self.split!r} in a row cannot be read, the last: {cause}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationExamples:
    """Maps an index to an example with all its views; indices past the end give masked padding.

    An example that cannot be read is named in the list of bad files and masked as well.

    Attributes:
        source: Where records come from.
        split: Its name, for the list of bad files.
        views: What is read of each.
        bad_files: Where examples that cannot be read are named.
    """

    source: Source
    split: str
    views: Views
    bad_files: BadFiles | None = None

    def __call__(self, index: int) -> Example:
        """Returns `video` `[t h w c]`, or `[v t h w c]` of several views (time outermost), and the rest."""
        within = min(index, len(self.source) - 1)
        mask = index == within
        cause = ''
        for attempt in range(min(ATTEMPTS, len(self.source))):
            # Padding is another example's pixels: that they are there is all that matters.
            record = self.source[(within + attempt) % len(self.source)]
            try:
                video = self.views(record)
            except UnreadableExample as error:
                cause = str(error)
                _name_bad(self.bad_files, self.split, record.name, cause, 'while evaluating')
                mask = False
                continue
            return _example(video, self.source[within].label, within, mask=mask)
        if attempt == 0:
            raise ValueError(f'{record.name} cannot be read: {cause}')
        raise ValueError(
            f'{attempt + 1} examples of {self.split!r} in a row cannot be read, the last: {cause}'
        )


def _name_bad(bad_files: BadFiles | None, split: str, name: str, cause: str, found: str) -> None:
    if bad_files is not None:
        bad_files.add(split, found, [(name, cause)])


def _example(video: np.ndarray, label: Label, index: int, *, mask: bool) -> Example:
    of_classes = isinstance(label, tuple) and isinstance(label[0], float)
    return {
        'video': np.ascontiguousarray(video),
        'label': np.asarray(label, np.float32 if of_classes else np.int32),
        'mask': np.asarray(mask),
        'index': np.asarray(index, np.int32),
    }


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


def _filled(batch: Example, rows: int) -> Example:
    """Returns a batch with as many rows as it should have: its first row again and again, masked."""
    lacking = rows - len(batch['mask'])
    if lacking == 0:
        return batch
    filled = {name: np.concatenate([got, np.repeat(got[:1], lacking, axis=0)]) for name, got in batch.items()}
    filled['mask'][-lacking:] = False
    return filled


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
    length: int | None = None,
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
        length: Examples in all, where these fill the last batch in part only: the rest of it is masked copies, which
            are not read. None: every row is read.

    Raises:
        ValueError: If the batch cannot be split evenly over the devices.
    """
    processes = jax.process_count()
    devices = mesh.devices.size
    if batch_size % devices or batch_size < 1:
        raise ValueError(f'a batch of {batch_size} examples cannot be split evenly over {devices} devices')
    rows = batch_size // processes
    missing = 0
    if length is not None:
        own = length - (last_step - 1) * batch_size - jax.process_index() * rows
        # A process that none is left for reads one all the same, as only that tells the shape of its padding.
        missing = rows - min(max(own, 1), rows)
    reading = grain.ReadOptions(num_threads=max(threads, 1), prefetch_buffer_size=max(2 * threads, rows))
    examples = grain.MapDataset.range(first_step * rows, last_step * rows - missing)
    dataset = examples.map(_Rows(read, batch_size, jax.process_index(), processes)).to_iter_dataset(reading)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain's workers inherit absl's flags, which only main parses
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    dataset = dataset.batch(rows)
    if missing:
        dataset = dataset.map(functools.partial(_filled, rows=rows))
    dataset = dataset.map(functools.partial(sharding.to_global, mesh=mesh))
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
