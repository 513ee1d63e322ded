"""From a source to batches on the devices: choose, read, augment, batch, transfer.

What a batch holds is a function of the seed, the step and the source alone. Threads (Grain's) and worker processes
(ours, `workers`) only read ahead; position p of the endless training stream is computed from p wherever and whenever
it is read:

    step s, row r  ->  position s * batch_size + r  ->  epoch and place  ->  example, clip, augmentation
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import grain
import grain.experimental
import jax
import numpy as np
from jax.sharding import Mesh

from vivit_jax import sharding
from vivit_jax.data.examples import Example, Rows
from vivit_jax.data.workers import Workers

Batch = dict[str, jax.Array]


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
    rows_in_order = range(first_step * rows, last_step * rows - missing)
    read_row: Callable[[int], Any] = Rows(read, batch_size, jax.process_index(), processes)
    threads, ahead = max(threads, 1), max(2 * threads, rows)
    with contextlib.ExitStack() as open_until_the_end:
        if workers:
            read_row = open_until_the_end.enter_context(
                Workers(read_row, rows_in_order, number=workers, threads=threads, ahead=ahead)
            )
            threads = ahead = 0  # they read ahead: here is only asked for one after the other
        reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        examples = grain.MapDataset.range(rows_in_order.start, rows_in_order.stop)
        dataset = examples.map(read_row).to_iter_dataset(reading).batch(rows)
        if missing:
            dataset = dataset.map(functools.partial(_filled, rows=rows))
        dataset = dataset.map(functools.partial(sharding.to_global, mesh=mesh))
        iterator = iter(
            grain.experimental.ThreadPrefetchIterDataset(dataset, prefetch_buffer_size=max(prefetch, 1))
        )
        try:
            yield iterator
        finally:
            if isinstance(read_row, Workers):
                read_row.close()  # first, since the thread that is about to end may wait for one of them
            iterator.close()
