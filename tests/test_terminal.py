"""What a person sees of a run, on terminals of some widths and in logs."""

import io
import re
import time

import pytest
import rich.console

from vivit_jax.telling import terminal as module
from vivit_jax.telling.terminal import Terminal, duration, gibibytes, progress_text, rate

SCALARS = {'loss': 0.12345, 'learning_rate': 3e-4, 'clips_per_second': 321.04, 'data_wait': 0.031}
CONSOLE = rich.console.Console


@pytest.fixture
def onto(monkeypatch):
    """Makes a Terminal that speaks into a stream."""

    def make(stream, *, is_terminal, width=120):
        monkeypatch.setattr(
            module.rich.console,
            'Console',
            lambda **options: CONSOLE(**options, file=stream, force_terminal=is_terminal, width=width),
        )
        return Terminal()

    return make


def drawn(terminal, width):
    """What is at the lower edge now, as lines."""
    console = CONSOLE(width=width, file=io.StringIO(), record=True)
    console.print(terminal._draw())
    return [line.rstrip() for line in console.export_text().splitlines()]


def progress(terminal, step=50, *, score='top_1 0.98', scalars=SCALARS):
    terminal.progress(step, 100, scalars, seconds_left=3725.2, score=score, memory=3 * 2**30)


def test_progress_line():
    text = progress_text(SCALARS, seconds_left=3725.2)
    assert text == 'loss 0.1235  lr 3.0e-04  321 clips/s  data wait 3%  ETA 1:02:06'
    with_memory = progress_text(SCALARS | {'device_memory': 3 * 2**30}, seconds_left=0.0)
    assert with_memory.endswith('ETA 0:00:00  memory 3.0 GiB')


def test_logs_get_plain_lines(onto):
    stream = io.StringIO()
    with onto(stream, is_terminal=False) as terminal:
        progress(terminal, 5)
        terminal.bar('validating', 1, 2)
        with terminal.phase('compiling'):
            terminal.say('[brackets] stay')
        terminal.table({'test_shuffled': {'top_1': 0.5, 'count': 8}, 'test': {'top_1': 1.0}})
    output = stream.getvalue()
    line = 'loss 0.1235  lr 3.0e-04  321 clips/s  data wait 3%  ETA 1:02:06'
    assert output.startswith(f'step   5/100  {line}\n[brackets] stay\n')
    assert [line.split() for line in output.splitlines() if '_' in line or 'count' in line] == [
        ['test_shuffled', 'test'],
        ['top_1', '0.5000', '1.0000'],
        ['count', '8'],
    ]
    assert '\x1b' not in output


@pytest.mark.parametrize('width', [60, 80, 120])
def test_a_terminal_shows_every_phase_and_all_numbers(onto, width):
    terminal = onto(io.StringIO(), is_terminal=True, width=width)
    terminal.bar('training', 51_000, 100_000, 3725.2)
    progress(terminal)
    terminal.bar('evaluating test_shuffled', 3, 16, 12.0)
    lines = drawn(terminal, width)
    assert all(len(line) <= width for line in lines)
    assert re.fullmatch(r'training +━+╸? *━* +51,000/100,000 +51% +ETA 1:02:06', lines[0])
    name = 'evaluating test_shuffled' if width >= 80 else 'evaluating'
    assert re.fullmatch(name + r' +━+╸? *━* +3/16 +19% +ETA 0:00:12', lines[1])
    below = ' '.join(lines[2:])
    numbers = ' '.join(below.removeprefix('test_shuffled').split())
    assert numbers == 'loss 0.1235 validation top_1 0.98 321 clips/s data wait 3% memory 3.0 GiB'
    assert len(lines) == (3 if width >= 80 else 5)


def test_a_spinner_counts_the_seconds(onto, monkeypatch):
    now = time.monotonic()
    terminal = onto(io.StringIO(), is_terminal=True)
    monkeypatch.setattr(module.time, 'monotonic', lambda: now)
    with terminal.phase('compiling'):
        now += 12.3
        (line,) = drawn(terminal, 80)
        assert re.fullmatch(r'compiling  \S 12 s', line)
    assert drawn(terminal, 80) == []


def test_a_phase_goes_away_when_it_is_done_or_fails(onto):
    terminal = onto(io.StringIO(), is_terminal=True)
    terminal.bar('validating', 1, 2)
    assert len(drawn(terminal, 80)) == 1
    terminal.bar('validating', 2, 2)
    with pytest.raises(KeyError), terminal.phase('compiling'):
        raise KeyError
    assert drawn(terminal, 80) == []


def test_the_time_of_a_phase_is_reckoned_from_what_was_done(onto, monkeypatch):
    now = time.monotonic()
    terminal = onto(io.StringIO(), is_terminal=True)
    monkeypatch.setattr(module.time, 'monotonic', lambda: now)
    terminal.bar('validating', 0, 4)
    assert 'ETA' not in drawn(terminal, 80)[0]
    now += 10.0
    terminal.bar('validating', 1, 4)
    assert drawn(terminal, 80)[0].endswith('25%  ETA 0:00:30')


def test_the_time_of_a_phase_is_not_known_when_it_is_first_heard_of(onto, monkeypatch):
    now = time.monotonic()
    terminal = onto(io.StringIO(), is_terminal=True)
    monkeypatch.setattr(module.time, 'monotonic', lambda: now)
    terminal.bar('validating', 1, 4)
    assert drawn(terminal, 80)[0].endswith('25%')
    now += 10.0
    terminal.bar('validating', 2, 4)
    assert drawn(terminal, 80)[0].endswith('50%  ETA 0:00:20')


def test_what_is_said_stays_and_the_live_lines_go(onto):
    stream = io.StringIO()
    with onto(stream, is_terminal=True, width=80) as terminal:
        terminal.bar('training', 1, 2)
        progress(terminal)
        terminal.say('compiled in 3.0 s')
        terminal._live.refresh()
    output = stream.getvalue()
    assert 'compiled in 3.0 s\n' in output
    assert '321 clips/s' in output
    # The two lines drawn last are erased, and the cursor is back.
    assert output.endswith('\r\x1b[2K\x1b[1A\x1b[2K\x1b[?25h\r')


def test_before_any_score_there_is_none(onto):
    terminal = onto(io.StringIO(), is_terminal=True)
    terminal.bar('training', 1, 2)
    progress(terminal, score='')
    assert drawn(terminal, 120)[-1].split('  ') == [
        '',
        'loss 0.1235',
        '321 clips/s',
        'data wait 3%',
        'memory 3.0 GiB',
    ]


def test_the_numbers_go_with_training(onto):
    terminal = onto(io.StringIO(), is_terminal=True)
    terminal.bar('training', 1, 2)
    progress(terminal)
    terminal.bar('training', 2, 2)
    terminal.bar('evaluating test', 1, 2)
    assert len(drawn(terminal, 120)) == 1


def test_long_lines_are_broken_between_words_unless_they_are_commands(onto):
    stream = io.StringIO()
    terminal = onto(stream, is_terminal=True, width=30)
    terminal.say('  model     a factorised encoder, 3 blocks\nnext', indent=12)
    terminal.say('python -m vivit_jax.predict VIDEO --checkpoint=runs/a', is_command=True)
    assert stream.getvalue().splitlines() == [
        '  model     a factorised',
        '            encoder, 3 blocks',
        'next',
        'python -m vivit_jax.predict VIDEO --checkpoint=runs/a',
    ]


def test_durations_and_sizes():
    assert [duration(seconds) for seconds in (0.0, 59.1, 3725.2, 90061)] == [
        '0:00:00',
        '0:01:00',
        '1:02:06',
        '1 day, 1:01:01',
    ]
    assert duration(float('nan')) == '?'
    assert gibibytes(1.5 * 2**30) == '1.5 GiB'
    assert [rate(number) for number in (0.01234, 321.04, 999.7, 1437.0)] == [
        '0.0123 clips/s',
        '321 clips/s',
        '1,000 clips/s',
        '1,437 clips/s',
    ]
