"""What a run writes for programs to read: `metrics.jsonl`, and TensorBoard events.

A row has `step` (done so far), `split`, and numbers. Those of 'validation' are the metrics of an evaluation. Those of
'train' are means over the steps since the row before, as far as they were finite:

    loss                 with label smoothing and mixup, where these are on
    grad_norm            of the gradient, before clipping
    update_norm          of what was added to the parameters
    update_ratio         that, over the norm of the parameters that learn; 1e-3 is usual, much more is too fast
    clips_per_second     over all devices
    data_wait            share of the time that the devices waited for clips

and, of the last of them: `learning_rate`, `epoch`, `device_memory` (the most in use so far, in bytes, where it is
known), `bad_videos`, `skipped_steps` and `rewinds` (so far, where there are any: `nan_guard`).
"""

import json
import pathlib

import jax

from vivit_jax import paths
from vivit_jax.mirror import Mirror
from vivit_jax.telling.events import Events
from vivit_jax.telling.growing import Growing

TRIED = '.can_be_written'


class MetricWriter:
    """Writes scalars to `metrics.jsonl` and TensorBoard; only the first process does.

    To an object store they go twice a minute, and before every checkpoint: `push`.

    Args:
        folder: The workdir.
        resume_step: What was written after this step, by a run that ended before its next checkpoint, is
            removed. 0 starts afresh.
    """

    def __init__(self, folder: paths.Path, resume_step: int = 0):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._mirror = Mirror(folder)
        path = self._mirror.here / 'metrics.jsonl'
        self._mirror.fetch(path.name)
        cut_back(path, resume_step)
        self._file = Growing(path)
        self._events = Events(self._mirror.here, purge_step=resume_step + 1)

    def __enter__(self) -> 'MetricWriter':
        return self

    def __exit__(self, *exception: object) -> None:
        if self._active:
            self._file.close()
            self._events.close()
            self._mirror.close()

    def write(self, step: int, split: str, scalars: dict[str, float]) -> None:
        """Writes one JSON object, `{"step": …, "split": …, **scalars}`, and the events."""
        if not self._active:
            return
        self._file.add((json.dumps({'step': step, 'split': split, **scalars}) + '\n').encode())
        self._events.add(step, {f'{split}/{name}': value for name, value in scalars.items()})
        if self._mirror.is_due():
            self.push()

    def push(self) -> None:
        """Lets an object store have what was written, or a disk that was full; a killed run goes on from there."""
        if self._active:
            self._file.flush()
            self._events.flush()
            self._mirror.push()


def cut_back(path: pathlib.Path, step: int) -> None:
    """Removes the lines of `metrics.jsonl` that are past `step`, and a line that was not written to its end."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding='utf-8', errors='replace').splitlines():
        try:
            within = int(json.loads(line)['step']) <= step
        except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError):
            within = False
        if within:
            kept.append(line + '\n')
    paths.replace_text(path, ''.join(kept))  # whole, or as it was


def make_folder(folder: paths.Path) -> None:
    """Creates a workdir; a ValueError of one line says why that cannot be."""
    try:
        with paths.said_as_one(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if paths.is_remote(folder):  # which says nothing of a bucket that is not there, or not one's own
                (folder / TRIED).write_text('')
                (folder / TRIED).unlink()
    except FileExistsError as error:
        raise ValueError(f'--workdir={folder} cannot be made a folder: it is a file') from error
    except OSError as error:
        raise ValueError(f'--workdir={folder} cannot be made a folder: {error.strerror or error}') from error
