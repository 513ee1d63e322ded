"""Predictions as a person reads them, and how far they have come."""

import contextlib
import datetime
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import rich.console
import rich.progress
import rich.text

from vivit_jax.predict.files import Row
from vivit_jax.telling.printable import printable, printable_lines

SECONDS_A_LINE = 20.0  # of progress, where there is no terminal
BAR = 24  # characters of a probability of 1
NAME = 40  # characters of a class name on a terminal
EIGHTHS = ' ▏▎▍▌▋▊▉'


class Printed:
    """A terminal that is written to as to a file, but takes no commands from what is written."""

    def __init__(self, terminal: Any):
        self._terminal = terminal

    def write(self, text: str) -> None:
        """Writes lines."""
        self._terminal.write(printable_lines(text))

    def flush(self) -> None:
        """Shows what was written."""
        self._terminal.flush()


def show(row: Row, out: rich.console.Console, class_names: Sequence[str]) -> None:
    """Prints a row: with bars on a terminal, else as lines of aligned columns.

    Args:
        row: The row.
        out: Where to.
        class_names: Of all heads, which tell how wide the columns are.
    """
    pretty = out.is_terminal
    width = max(len(printable(name)) for name in class_names)
    width = min(width, NAME) if pretty else width
    heads = max(map(len, row.top))
    lines = [_title(row)]
    for head, best in row.top.items():
        for place, (name, share) in enumerate(best):
            name = printable(name)
            line = rich.text.Text('  ')
            if len(row.top) > 1:
                line.append(f'{"" if pretty and place else head:<{heads}}  ', 'bold')
            line.append(f'{name if len(name) <= width else name[: width - 1] + "…":<{width}}  ')
            if pretty:
                drawn = bar(share, plain='utf' not in out.encoding)
                line.append(f'{drawn:<{BAR}} ', 'dim cyan' if place else 'cyan')
            line.append(f'{100 * share:5.1f} %' if pretty else f'{share:.4f}')
            lines.append(line)
    if pretty:
        out.print(rich.text.Text('\n').join(lines))
    else:
        print('\n'.join(line.plain for line in lines), flush=True)


def _title(row: Row) -> rich.text.Text:
    """Returns the name, with the true class where it is known, in green where it is what was predicted."""
    line = rich.text.Text(printable(row.name), 'bold')
    if row.truth is None:
        return line
    right = ' + '.join(best[0][0] for best in row.top.values()) == row.truth
    return line.append(f'  (is {printable(row.truth)})', 'green' if right else 'red')


def bar(share: float, plain: bool = False) -> str:
    """Returns a bar of `BAR` characters for 1, drawn in eighths of them."""
    whole, rest = divmod(round(8 * BAR * share), 8)
    return '#' * round(BAR * share) if plain else '█' * whole + (EIGHTHS[rest] if rest else '')


class Progress:
    """Bars while something goes on, on a terminal; elsewhere a line now and then."""

    def __init__(self, console: rich.console.Console):
        self._console = console
        columns = (
            '{task.description}',
            rich.progress.BarColumn(30),
            '{task.fields[count]}',
            '{task.fields[text]}',
        )
        self._bars = rich.progress.Progress(
            *columns,
            console=console,
            transient=True,
            disable=not console.is_terminal,
            # What is piped elsewhere must go there.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )

    def __enter__(self) -> 'Progress':
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Shows that something goes on of which nobody can tell how far it is (terminal only)."""
        task = self._bars.add_task(name, total=None, text='', count='')
        try:
            yield
        finally:
            self._bars.remove_task(task)

    def counter(self, phase: str, *, examples: int = 0, clips: int = 0) -> Callable[[int, int], None]:
        """Returns what is to be called with the parts done and in all, and tells of them.

        Args:
            phase: What is done.
            examples: In all parts, which are batches then; 0: the parts themselves are counted.
            clips: In all parts, whose rate is told; 0: none.
        """
        # The first part takes longer, for compiling, and time is measured from its end.
        task = self._bars.add_task(phase, total=None, text='', count='', visible=examples > 0)
        first, first_done, told = 0.0, 0, time.monotonic()

        def count(done: int, total: int) -> None:
            nonlocal first, first_done, told
            now = time.monotonic()
            if not first:
                first, first_done = now, done
            text = ''
            if done > first_done and now > first:
                rate = (done - first_done) / (now - first)
                left = datetime.timedelta(seconds=math.ceil((total - done) / rate))
                text = (f'{rate * clips / total:.3g} clips/s  ' if clips else '') + f'ETA {left}'
            items = examples or total
            counted = f'{items * done // total:,}/{items:,}'
            self._bars.update(
                task, completed=done, total=total, text=text, count=counted, visible=done < total
            )
            if not self._console.is_terminal and now - told > SECONDS_A_LINE:
                told = now
                self._console.print(f'{phase}: {counted}  {text}')

        return count
