"""Examples that go bad while a run is under way: replaced, named, counted; too many of them stop it."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
from test_training import curve, parameters, tiny

from vivit_jax import bad_videos, evaluate, experiment, train
from vivit_jax.checkpoint import Checkpoints
from vivit_jax.data.bad_files import BadFiles
from vivit_jax.data.examples import TrainingExamples
from vivit_jax.data.moving_digits import MovingDigits
from vivit_jax.data.record import UnreadableExample
from vivit_jax.data.sampling import Order

CAUSE = 'its middle is gone,\nand "more"'


def unreadable(indices):
    raise UnreadableExample(CAUSE)


@dataclasses.dataclass(frozen=True)
class Damaged:
    """A source some of whose examples cannot be read, though nobody knew when it was opened."""

    inner: MovingDigits
    gone: tuple[int, ...]
    bad: tuple[tuple[str, str], ...] = ()

    @property
    def class_names(self):
        return self.inner.class_names

    @property
    def digest(self):
        return self.inner.digest

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        record = self.inner[index]
        return dataclasses.replace(record, read=unreadable) if index in self.gone else record


@pytest.fixture
def damage(monkeypatch):
    """Damages examples of splits, {split: indices}."""
    real = experiment.open_source

    def apply(gone, bad=()):
        monkeypatch.setattr(
            experiment,
            'open_source',
            lambda config, split, looking=None: Damaged(
                real(config, split, looking), gone.get(split, ()), bad
            ),
        )

    return apply


def named(folder):
    with (folder / 'bad_files.csv').open(newline='', encoding='utf-8') as file:
        return sorted(tuple(row.values()) for row in csv.DictReader(file))


def examples(gone, bad_files=None, size=20):
    source = Damaged(MovingDigits('train', size=size, frames=4, canvas=16), gone)
    return TrainingExamples(
        source=source,
        split='train',
        order=Order(size, 0),
        seed=0,
        frames=2,
        stride=1,
        short='loop',
        augmentation=(),
        bad_files=bad_files,
    )


def test_a_replacement_is_a_function_of_the_position():
    sound, damaged = examples(()), examples((3, 4))
    replaced = 0
    for position in range(40):
        one, other, again = sound(position), damaged(position), damaged(position)
        assert {name: value.shape for name, value in one.items()} == {
            name: value.shape for name, value in other.items()
        }
        np.testing.assert_equal(other, again)
        assert other['mask']
        if one['index'] in (3, 4):
            replaced += 1
            assert other['index'] not in (3, 4)
            assert other['label'] == other['index'] % 8
        else:
            np.testing.assert_equal(one, other)
    assert replaced == 4


def test_nothing_but_bad_examples_ends_in_an_error():
    with pytest.raises(
        ValueError, match=r"^50 examples of 'train' in a row cannot be read, the last: its middle"
    ):
        examples(tuple(range(20)))(0)


def test_the_list_has_each_example_once(tmp_path):
    files = BadFiles(tmp_path / 'bad_files.csv')
    assert (files.read(), files.size()) == ({}, 0)
    damaged = examples((3, 4), files)
    for position in range(60):
        damaged(position)
    names = [f'train/{number:06d}' for number in (3, 4)]
    cause = 'its middle is gone, and "more"'
    assert named(tmp_path) == [('train', name, cause, 'while training') for name in names]
    assert files.read() == {('train', name): (cause, 'while training') for name in names}


def test_a_run_goes_on_with_others(damage, tmp_path):
    damage({'train': (5,), 'validation': (2,), 'test_still': (19,)}, bad=(('a.mp4', 'is empty'),))
    config = tiny(data__max_bad=0.2)
    with pytest.warns(UserWarning, match='left out') as warned:
        report = train.train(config, tmp_path / 'run')
    assert [str(warning.message).partition(' cannot')[0] for warning in warned][:2] == [
        "1 of 61 examples of the split 'train' of data.source='moving_digits' (data.root=None)",
        "1 of 17 examples of the split 'validation' of data.source='moving_digits' (data.root=None)",
    ]
    rows = named(tmp_path / 'run')
    assert ('train', 'train/000005', 'its middle is gone, and "more"', 'while training') in rows
    assert ('validation', 'validation/000002', 'its middle is gone, and "more"', 'while evaluating') in rows
    assert ('test_still', 'a.mp4', 'is empty', 'at the start') in rows
    assert len(rows) == 5 + 3
    assert report['test_still']['count'] == 19
    assert report['test_still']['unreadable'] == 1
    assert report['test']['count'] == 20
    assert 'unreadable' not in report['test']
    predicted = list(csv.DictReader((tmp_path / 'run' / 'predictions.csv').read_text().splitlines()))
    assert [row['index'] for row in predicted if row['split'] == 'test_still'] == [str(n) for n in range(19)]
    lines = curve(tmp_path / 'run')
    assert [line['bad_videos'] for line in lines if line['split'] == 'train'][-1] >= 6
    # Again, and evaluated again: the same numbers, the same list.
    with pytest.warns(UserWarning, match='left out'):
        train.train(config, tmp_path / 'again')
    jax.tree.map(
        np.testing.assert_array_equal,
        parameters(tmp_path / 'run', config),
        parameters(tmp_path / 'again', config),
    )
    with pytest.warns(UserWarning, match='left out'):
        assert evaluate.evaluate(config, tmp_path / 'run') == report
    assert named(tmp_path / 'run') == rows


def test_too_many_stop_the_run_with_its_state_saved(damage, tmp_path):
    damage({'train': tuple(range(0, 60, 6))})
    message = (
        r"\d+ of 60 examples of the split 'train' cannot be used: .*%, more than data.max_bad=0.05 allows"
    )
    with pytest.raises(ValueError, match=message) as caught:
        train.train(tiny(), tmp_path)
    assert '\n' not in str(caught.value)
    with Checkpoints(tmp_path) as checkpoints:
        saved = checkpoints.steps()
    assert len(saved) == 1
    assert 0 < saved[0] < 20
    # Told to bear with it, the run goes on from there.
    report = train.train(tiny(data__max_bad=0.5), tmp_path)
    assert report['test']['count'] == 20
    assert len(named(tmp_path)) == 10


def test_one_stops_the_run_where_none_is_allowed(damage, tmp_path):
    damage({'train': (1,)})
    with pytest.raises(ValueError, match=r"train/000001 \(its middle.*data.on_bad_video='error' stops here"):
        train.train(tiny(data__on_bad_video='error'), tmp_path)


def test_bad_ones_at_the_start_stop_a_run_before_it_begins(damage, tmp_path):
    damage({}, bad=(('a.mp4', 'is empty'),))
    with pytest.raises(
        ValueError, match=r"1 of 61 .* a.mp4 \(is empty\); data.on_bad_video='error' stops here"
    ):
        train.train(tiny(data__on_bad_video='error'), tmp_path / 'run')
    with pytest.raises(ValueError, match=r'1 of 61 .*1.6%, more than data.max_bad=0 allows'):
        train.train(tiny(data__max_bad=0.0), tmp_path / 'run')
    assert not (tmp_path / 'run').exists()


def test_a_new_run_begins_a_new_list(damage, tmp_path):
    BadFiles(tmp_path / 'bad_files.csv').add('train', 'while training', [('old', 'of another time')])
    train.train(tiny(), tmp_path)
    assert not (tmp_path / 'bad_files.csv').exists()
    assert 'bad_videos' not in json.loads((tmp_path / 'metrics.jsonl').read_text().splitlines()[0])


def test_processes_that_see_other_data_stop(monkeypatch):
    mine = MovingDigits('train', size=8, frames=4, canvas=16)
    other = MovingDigits('train', size=7, frames=4, canvas=16)
    seen = {}

    def gather(rows):
        theirs = seen.get('other', rows)
        return np.concatenate([rows, theirs])

    monkeypatch.setattr(bad_videos.sharding, 'gather_rows', gather)
    bad_videos.check_agreement({'train': mine})
    monkeypatch.setattr(bad_videos.sharding, 'gather_rows', lambda rows: seen.setdefault('other', rows))
    bad_videos.check_agreement({'train': other})
    monkeypatch.setattr(bad_videos.sharding, 'gather_rows', gather)
    with pytest.raises(
        ValueError, match=r"^the split 'train' is not the same on all machines: process 0 has 8 exam"
    ):
        bad_videos.check_agreement({'train': mine})
