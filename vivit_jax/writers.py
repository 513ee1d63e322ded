"""What a run tells: a progress line for people, `metrics.jsonl` and TensorBoard events for programs."""

import datetime
import json
import math
import pathlib
import time
from collections.abc import Callable

import jax
import rich.box
import rich.console
import rich.progress
import rich.table

SECONDS_A_LINE = 20.0  # of a long phase, where there is no terminal


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
        # Not at the top: it imports PyTorch wherever that is installed.
        import tensorboardX

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


class Terminal:
    """Lines and a live progress bar on a terminal; plain lines where the output is a file or a pipe.

    Only the first process speaks.
    """

    def __init__(self) -> None:
        self._console = rich.console.Console(
            highlight=False, soft_wrap=True, quiet=jax.process_index() != 0, emoji=False
        )
        text = rich.progress.TextColumn('{task.description} {task.completed}/{task.total}{task.fields[text]}')
        bar = (rich.progress.BarColumn(bar_width=20), rich.progress.TaskProgressColumn())
        # The numbers matter more than the bar where there is not room for both.
        columns = (text, *bar) if self._console.width >= 110 else (text,)
        self._bars = rich.progress.Progress(
            *columns, console=self._console, transient=True, disable=not self._console.is_terminal
        )
        self._tasks: dict[str, rich.progress.TaskID] = {}

    def __enter__(self) -> 'Terminal':
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def say(self, text: str = '', style: str | None = None) -> None:
        """Prints a line."""
        self._console.print(text, style=style, markup=False)

    def table(self, rows: dict[str, dict[str, float]]) -> None:
        """Prints numbers by name, a column for each split."""
        table = rich.table.Table('', box=rich.box.SIMPLE_HEAD)
        for split in rows:
            table.add_column(split, no_wrap=True, justify='right')
        for name in dict.fromkeys(name for values in rows.values() for name in values):
            cells = (values.get(name, '') for values in rows.values())
            table.add_row(name, *(f'{cell:.4f}' if isinstance(cell, float) else str(cell) for cell in cells))
        self._console.print(table)

    def bar(self, phase: str, done: int, total: int, text: str | None = None) -> None:
        """Moves the bar of a phase (terminal only), with new text after it or as it was; at the end it goes away."""
        if phase not in self._tasks:
            self._tasks[phase] = self._bars.add_task(phase, total=total, text='')
        if text is not None:
            self._bars.update(self._tasks[phase], text=f'  {text}')
        self._bars.update(self._tasks[phase], completed=done, total=total)
        if done >= total:
            self._bars.remove_task(self._tasks.pop(phase))

    def counter(self, phase: str) -> Callable[[int, int], None]:
        """Returns what tells of a long phase: a bar, or a line now and then where there is no terminal."""
        began = told = time.monotonic()

        def count(done: int, total: int) -> None:
            nonlocal told
            self.bar(phase, done, total)
            now = time.monotonic()
            if not self._console.is_terminal and now - told > SECONDS_A_LINE:
                told = now
                left = duration((now - began) / done * (total - done))
                self.say(f'{phase}: {done:,} of {total:,}, ETA {left}')

        return count

    def progress(self, done: int, total: int, text: str) -> None:
        """Reports training: beside the bar, or as a line where there is no terminal."""
        if self._console.is_terminal:
            self.bar('step', done, total, text)
        else:
            self.say(f'step {done:>{len(str(total))}}/{total}  {text}')


def progress_text(scalars: dict[str, float], *, seconds_left: float) -> str:
    """Formats the numbers of a progress line."""
    parts = [f'loss {scalars["loss"]:.4f}', f'lr {scalars["learning_rate"]:.1e}']
    parts.append(f'{scalars["clips_per_second"]:.3g} clips/s')
    parts.append(f'data wait {scalars["data_wait"]:.0%}')
    parts.append(f'ETA {duration(seconds_left)}')
    if 'device_memory' in scalars:
        parts.append(f'memory {scalars["device_memory"] / 2**30:.1f} GiB')
    return '  '.join(parts)


def duration(seconds: float) -> str:
    """Returns seconds as `1:02:03`, with days before where there are any."""
    return str(datetime.timedelta(seconds=math.ceil(seconds)))


def make_folder(folder: pathlib.Path) -> None:
    """Creates a workdir; a ValueError of one line says why that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'checkpoints').mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(f'--workdir={folder} cannot be made a folder: {error.strerror}') from error


def device_memory() -> int | None:
    """Returns the peak memory of the first device in bytes, None where it does not tell (CPU)."""
    stats = jax.local_devices()[0].memory_stats()
    return stats.get('peak_bytes_in_use') if stats else None
