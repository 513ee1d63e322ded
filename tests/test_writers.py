"""What a run writes for programs to read."""

import json

import pytest

from vivit_jax.telling import writers


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


@pytest.mark.parametrize(
    'line',
    [b'\xff\xfe', b'null', b'[1]', b'{"step": "x"}', b'{"step": null}', b'{"step": 1e999}', b'[' * 9999],
)
def test_what_is_no_row_is_left_out(tmp_path, line):
    path = tmp_path / 'metrics.jsonl'
    path.write_bytes(b'{"step": 5}\n' + line + b'\n{"step": 7}\n')
    writers.cut_back(path, 6)
    assert path.read_bytes() == b'{"step": 5}\n'


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


def test_a_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match=r'--workdir=.*/file/run cannot be made a folder: Not a directory'):
        writers.make_folder(tmp_path / 'file' / 'run')
    with pytest.raises(ValueError, match=r'--workdir=.*/file cannot be made a folder: it is a file'):
        writers.make_folder(tmp_path / 'file')
