"""What a run writes for programs to read: `metrics.jsonl`, and TensorBoard events."""

import json
import pathlib
import sys
from types import ModuleType

import jax


class MetricWriter:
    """Writes scalars to `metrics.jsonl` and TensorBoard; only the first process does.

    Args:
        folder: The workdir.
        resume_step: What was written after this step, by a run that ended before its next checkpoint, is
            removed. 0 starts afresh.
    """

    def __init__(self, folder: pathlib.Path, resume_step: int = 0):
        self._active = jax.process_index() == 0
        if not self._active:
            return
        tensorboardX = _tensorboard()
        path = folder / 'metrics.jsonl'
        cut_back(path, resume_step)
        self._file = path.open('a', encoding='utf-8')
        self._events = tensorboardX.SummaryWriter(str(folder), purge_step=resume_step + 1)

    def __enter__(self) -> 'MetricWriter':
        return self

    def __exit__(self, *exception: object) -> None:
        if self._active:
            self._file.close()
            self._events.close()

    def write(self, step: int, split: str, scalars: dict[str, float]) -> None:
        """Writes one JSON object, `{"step": …, "split": …, **scalars}`, and the events."""
        if not self._active:
            return
        self._file.write(json.dumps({'step': step, 'split': split, **scalars}) + '\n')
        self._file.flush()
        for name, value in scalars.items():
            self._events.add_scalar(f'{split}/{name}', value, step)


def _tensorboard() -> ModuleType:
    """Imports tensorboardX, which imports PyTorch wherever that is installed, to no use here: it takes seconds."""
    hidden = 'torch' not in sys.modules
    if hidden:
        sys.modules['torch'] = None  # type: ignore[assignment]  # Python's way to say that there is none
    try:
        import tensorboardX
    finally:
        if hidden:
            del sys.modules['torch']
    return tensorboardX


def cut_back(path: pathlib.Path, step: int) -> None:
    """Removes the lines of `metrics.jsonl` that are past `step`, and a line that was not written to its end."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding='utf-8').splitlines():
        try:
            within = json.loads(line)['step'] <= step
        except (json.JSONDecodeError, KeyError):
            within = False
        if within:
            kept.append(line + '\n')
    path.write_text(''.join(kept), encoding='utf-8')


def make_folder(folder: pathlib.Path) -> None:
    """Creates a workdir; a ValueError of one line says why that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'checkpoints').mkdir(exist_ok=True)
    except FileExistsError as error:
        raise ValueError(f'--workdir={folder} cannot be made a folder: it is a file') from error
    except OSError as error:
        raise ValueError(f'--workdir={folder} cannot be made a folder: {error.strerror}') from error
