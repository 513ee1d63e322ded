"""What a person watches: the phases of a run as they go on, and plain lines where the output is a file or a pipe."""

import contextlib
import dataclasses
import datetime
import math
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterator

import jax
import rich.box
import rich.console
import rich.live
import rich.padding
import rich.progress_bar
import rich.spinner
import rich.table
import rich.text

from vivit_jax.telling.printable import printable, printable_lines

SECONDS_A_LINE = 20.0  # of a long phase, where there is no terminal
REFRESHES = 8  # a second; a spinner needs some
BAR = (10, 40)  # narrowest and widest, in characters
BESIDE_BAR = 60  # characters: the longest phase, its counts, share and time
COLOUR = 'cyan'
TRAINING = 'training'  # the phase that has numbers


@dataclasses.dataclass
class _Phase:
    """A phase that goes on: how much of it is done, or nothing of that where nobody can tell."""

    began: float
    begun_with: int = 0  # done already when it was first heard of
    done: int = 0
    total: int | None = None
    seconds_left: float = math.nan
    spinner: rich.spinner.Spinner = dataclasses.field(
        default_factory=lambda: rich.spinner.Spinner('dots', style=COLOUR)
    )


class Terminal:
    """Tells of a run.

    On a terminal the phases under way are drawn at its lower edge, a bar or a spinner each, and go away when they are
    done; what is said stays above them. Elsewhere there are lines only. Of several processes only the first speaks.
    """

    def __init__(self) -> None:
        self._console = rich.console.Console(
            highlight=False, soft_wrap=True, quiet=jax.process_index() != 0, emoji=False
        )
        # Whoever listened is gone (a pipe into `head`, a connection): that is no reason to end.
        self._console.on_broken_pipe = self._fall_silent  # type: ignore[method-assign]
        self._phases: dict[str, _Phase] = {}
        self._numbers = ''
        self._live = rich.live.Live(
            get_renderable=self._draw,
            console=self._console,
            transient=True,
            refresh_per_second=REFRESHES,
        )

    def __enter__(self) -> 'Terminal':
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._phases.clear()
        self._live.stop()

    def _fall_silent(self) -> None:
        self._console.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)

    def say(
        self, text: str = '', style: str | None = None, *, indent: int = 2, is_command: bool = False
    ) -> None:
        """Prints lines; on a terminal too narrow for one it goes on below.

        Args:
            text: What is said.
            style: See rich.
            indent: Spaces before what goes on below.
            is_command: To be copied as it is: the terminal itself breaks it then, and takes it for one line.
        """
        text = printable_lines(text)
        if self._console.is_terminal and not is_command:
            text = '\n'.join(
                textwrap.fill(
                    line,
                    self._console.width,
                    subsequent_indent=' ' * indent,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
                for line in text.split('\n')
            )
        self._console.print(text, style=style, markup=False)

    def table(self, rows: dict[str, dict[str, float]]) -> None:
        """Prints numbers by name, a column for each split."""
        table = rich.table.Table('', box=rich.box.SIMPLE_HEAD)
        for split in rows:
            table.add_column(split, no_wrap=True, justify='right')
        for name in dict.fromkeys(name for values in rows.values() for name in values):
            cells = (values.get(name, '') for values in rows.values())
            table.add_row(
                printable(name), *(f'{cell:.4f}' if isinstance(cell, float) else str(cell) for cell in cells)
            )
        self._console.print(table)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Shows that something goes on of which nobody can tell how far it is, and since when (terminal only)."""
        self._phases[name] = _Phase(time.monotonic())
        try:
            yield
        finally:
            del self._phases[name]

    def bar(self, phase: str, done: int, total: int, seconds_left: float | None = None) -> None:
        """Moves the bar of a phase (terminal only); at the end it goes away.

        Args:
            phase: Its name.
            done: Of it.
            total: In all.
            seconds_left: Told beside the bar; None reckons with what was done so far.
        """
        now = time.monotonic()
        state = self._phases.setdefault(phase, _Phase(now, done))
        if seconds_left is None:
            since = done - state.begun_with
            seconds_left = (now - state.began) / since * (total - done) if since else math.nan
        state.done, state.total, state.seconds_left = done, total, seconds_left
        if done >= total:
            del self._phases[phase]

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

    def progress(
        self,
        step: int,
        total: int,
        scalars: dict[str, float],
        *,
        seconds_left: float,
        score: str,
        memory: int,
    ) -> None:
        """Reports training: below its bar, or as a line where there is no terminal.

        Args:
            step: Steps done.
            total: In all.
            scalars: Of the steps lately: `loss`, `learning_rate`, `clips_per_second`, `data_wait`, and
                `device_memory` where that is known.
            seconds_left: Of the whole run.
            score: What the last validation gave, as 'top_1 0.98'; '' before there was one.
            memory: The most in use so far, in bytes.
        """
        if not self._console.is_terminal:
            text = progress_text(scalars, seconds_left=seconds_left)
            self.say(f'step {step:>{len(str(total))}}/{total}  {text}')
            return
        self._numbers = '  '.join(
            [
                f'loss {scalars["loss"]:.4f}',
                *([f'validation {score}'] if score else []),
                rate(scalars['clips_per_second']),
                f'data wait {scalars["data_wait"]:.0%}',
                f'memory {gibibytes(memory)}',
            ]
        )

    def _draw(self) -> rich.console.RenderableType:
        """Draws the phases under way, and the numbers of training below."""
        width = min(max(self._console.width - BESIDE_BAR, BAR[0]), BAR[1])
        rows = rich.table.Table.grid(padding=(0, 2, 0, 0))
        rows.add_column(style='bold')
        rows.add_column(width=width)
        for _ in range(3):
            rows.add_column(justify='right', no_wrap=True)
        for name, state in list(self._phases.items()):
            if state.total is None:
                state.spinner.update(text=f'{time.monotonic() - state.began:.0f} s')
                rows.add_row(name, state.spinner)
                continue
            share = state.done / max(state.total, 1)
            bar = rich.progress_bar.ProgressBar(
                total=state.total, completed=state.done, width=width, complete_style=COLOUR
            )
            left = '' if math.isnan(state.seconds_left) else f'ETA {duration(state.seconds_left)}'
            rows.add_row(name, bar, f'{state.done:,}/{state.total:,}', f'{share:.0%}', left)
        if TRAINING not in self._phases or not self._numbers:
            return rows
        return rich.console.Group(
            rows, rich.padding.Padding(rich.text.Text(self._numbers), (0, 0, 0, 2), expand=False)
        )


def progress_text(scalars: dict[str, float], *, seconds_left: float) -> str:
    """Formats the numbers of a progress line."""
    parts = [f'loss {scalars["loss"]:.4f}', f'lr {scalars["learning_rate"]:.1e}']
    parts.append(rate(scalars['clips_per_second']))
    parts.append(f'data wait {scalars["data_wait"]:.0%}')
    parts.append(f'ETA {duration(seconds_left)}')
    if 'device_memory' in scalars:
        parts.append(f'memory {gibibytes(scalars["device_memory"])}')
    return '  '.join(parts)


def rate(clips_per_second: float) -> str:
    """Returns clips a second with three digits, as `0.512 clips/s` or `1,230 clips/s`."""
    return (
        f'{clips_per_second:,.0f} clips/s' if clips_per_second >= 999.5 else f'{clips_per_second:.3g} clips/s'
    )


def duration(seconds: float) -> str:
    """Returns seconds as `1:02:03`, with days before where there are any; `?` for NaN."""
    return '?' if math.isnan(seconds) else str(datetime.timedelta(seconds=math.ceil(seconds)))


def gibibytes(size: float) -> str:
    """Returns bytes as `1.5 GiB`."""
    return f'{size / 2**30:.1f} GiB'
