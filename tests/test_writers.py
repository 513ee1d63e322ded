"""What a run writes and says."""

import io
import json

import pytest
import rich.console

from vivit_jax import writers


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_are_one_object_a_write(tmp_path):
    with writers.MetricWriter(tmp_path) as writer:
        writer.write(10, 'train', {'loss': 0.5})
        writer.write(10, 'validation', {'top_1': 0.25, 'count': 7})
    assert lines(tmp_path / 'metrics.jsonl') == [
        {'step': 10, 'split': 'train', 'loss': 0.5},
        {'step': 10, 'split': 'validation', 'top_1': 0.25, 'count': 7},
    ]


def test_resuming_cuts_back_what_is_past_the_checkpoint(tmp_path):
    with writers.MetricWriter(tmp_path) as writer:
        for step in (5, 10, 15):
            writer.write(step, 'train', {'loss': 1.0 / step})
    with (tmp_path / 'metrics.jsonl').open('a') as file:
        file.write('{"step": 16, "spl')
    with writers.MetricWriter(tmp_path, resume_step=10) as writer:
        writer.write(15, 'train', {'loss': 7.0})
    assert [(row['step'], row['loss']) for row in lines(tmp_path / 'metrics.jsonl')] == [
        (5, 0.2),
        (10, 0.1),
        (15, 7.0),
    ]


def test_tensorflow_reads_the_events(tmp_path):
    tensorflow = pytest.importorskip('tensorflow', reason='compares with TensorFlow, which is not installed')
    with writers.MetricWriter(tmp_path) as writer:
        writer.write(10, 'train', {'loss': 0.5, 'epoch': 2.0})
    (path,) = tmp_path.glob('events.out.tfevents.*')
    found = {
        (event.step, value.tag): value.simple_value
        for event in tensorflow.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
    }
    assert found == {(10, 'train/loss'): 0.5, (10, 'train/epoch'): 2.0}


def test_progress_line():
    scalars = {'loss': 0.12345, 'learning_rate': 3e-4, 'clips_per_second': 321.04, 'data_wait': 0.031}
    text = writers.progress_text(scalars, seconds_left=3725.2)
    assert text == 'loss 0.1235  lr 3.0e-04  321 clips/s  data wait 3%  ETA 1:02:06'
    with_memory = writers.progress_text(scalars | {'device_memory': 3 * 2**30}, seconds_left=0.0)
    assert with_memory.endswith('ETA 0:00:00  memory 3.0 GiB')


def terminal_into(stream, monkeypatch, *, is_terminal, width=120):
    monkeypatch.setattr(
        writers.rich.console,
        'Console',
        lambda **options: CONSOLE(**options, file=stream, force_terminal=is_terminal, width=width),
    )
    return writers.Terminal()


CONSOLE = rich.console.Console


def test_logs_get_plain_lines(monkeypatch):
    stream = io.StringIO()
    with terminal_into(stream, monkeypatch, is_terminal=False) as terminal:
        terminal.progress(5, 100, 'loss 1.0')
        terminal.bar('validating', 1, 2)
        terminal.say('[brackets] stay')
        terminal.table({'test_shuffled': {'top_1': 0.5, 'count': 8}, 'test': {'top_1': 1.0}})
    output = stream.getvalue()
    assert output.startswith('step   5/100  loss 1.0\n[brackets] stay\n')
    assert [line.split() for line in output.splitlines() if '_' in line or 'count' in line] == [
        ['test_shuffled', 'test'],
        ['top_1', '0.5000', '1.0000'],
        ['count', '8'],
    ]
    assert '\x1b' not in output


@pytest.mark.parametrize('width', [80, 120])
def test_terminals_get_a_live_line_with_everything_in_it(monkeypatch, width):
    stream = io.StringIO()
    scalars = {'loss': 0.12345, 'learning_rate': 3e-4, 'clips_per_second': 321.04, 'data_wait': 0.031}
    text = writers.progress_text(scalars, seconds_left=3725.2)
    with terminal_into(stream, monkeypatch, is_terminal=True, width=width) as terminal:
        terminal.bar('step', 49, 100)
        terminal.progress(50, 100, text)
        terminal.bar('step', 51, 100)
        terminal._bars.refresh()
        shown = stream.getvalue()
    assert f'step 51/100  {text}' in shown
    assert ('51%' in shown) == (width == 120)


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match=r'--workdir=.*/file/run cannot be made a folder: Not a directory'):
        writers.make_folder(tmp_path / 'file' / 'run')
