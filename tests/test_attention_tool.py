"""The command that shows what a prediction draws on, from checkpoint to pictures; and what is measured on digits."""

import dataclasses

import av
import cv2
import numpy as np
import pytest
from conftest import load_tool

import vivit_jax
from tiny import DIGITS, SETTINGS
from videos import write_video
from vivit_jax import attention_sheet, experiment
from vivit_jax.config import load
from vivit_jax.train import train


@pytest.fixture(scope='module')
def tool():
    return load_tool('attention')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A run of hardly any training."""
    folder = tmp_path_factory.mktemp('run')
    settings = SETTINGS | {'training.steps': '3', 'evaluation.every_steps': '3', 'data.test_splits': 'test,'}
    train(load(DIGITS, settings), folder)
    return folder


def picture(path):
    return cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


def frames_of(path):
    with av.open(path) as container:
        return [frame.to_ndarray(format='rgb24') for frame in container.decode(video=0)]


def test_sheets_and_animations_of_a_run(tool, run, tmp_path, capsys):
    options = [f'--checkpoint={run}', f'--output={tmp_path}']
    assert tool.main(['test:3', 'test:4', *options, '--animation=gif']) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.partition(':')[0] for line in printed] == [
        f'{tmp_path}/{name}' for name in ('000003.png', '000003.gif', '000004.png', '000004.gif')
    ]
    assert len(frames_of(tmp_path / '000003.gif')) == 16
    # The first row of the sheet is the clip: four tokens of four frames, two of each shown, six times as large.
    source = experiment.make_source(load(DIGITS, SETTINGS), 'test')
    sheet = picture(tmp_path / '000003.png')
    frames = source[3].read(np.array([1, 3, 5, 7, 9, 11, 13, 15])).repeat(6, 1).repeat(6, 2).repeat(3, 3)
    top = 2 * (attention_sheet.MARGIN + attention_sheet.HEADING + attention_sheet.TITLE)
    left = 2 * (2 * attention_sheet.MARGIN + attention_sheet.ANSWERS)
    for number, frame in enumerate(frames):
        x = left + number * (192 + 2 * attention_sheet.GAP)
        np.testing.assert_array_equal(sheet[top : top + 192, x : x + 192], frame)


def test_a_video_file(tool, run, tmp_path, monkeypatch):
    """A longer, larger video in colour, of which a grey model gets one clip."""
    write_video(tmp_path / 'clip.avi', 'mpeg4')
    monkeypatch.chdir(tmp_path)
    arguments = ['clip.avi', f'--checkpoint={run}', '--output=a.png', '--animation=b.mp4', '--class=up']
    assert tool.main([*arguments, '--view=2/2,3/3']) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.png', 'b.mp4', 'clip.avi']
    assert len(frames_of('b.mp4')) == 16
    first, last = (
        tool.examine(
            vivit_jax.load(run), record_of(run, 'clip.avi'), '', fusion='mean', which=None, view=view
        )
        for view in ('1/2,1/3', '2/2,3/3')
    )
    np.testing.assert_array_equal(first.numbers, np.arange(16))
    np.testing.assert_array_equal(last.numbers, np.arange(44, 60))
    assert first.frames.shape == (16, 32, 32, 1)


def test_ctrl_c_is_told_in_a_word(tool, run, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, 'examine', interrupted)
    assert tool.main(['test:3', f'--checkpoint={run}', f'--output={tmp_path / "sheets"}']) == 130
    assert capsys.readouterr() == ('', 'stopped\n')
    assert not list(tmp_path.iterdir())


def record_of(run, name):
    return vivit_jax.load(run).open([name])[0]


def test_what_is_shown(tool, run):
    model = vivit_jax.load(run)
    record = model.open(['test:5'])[0]
    look = tool.examine(model, record, 'left', fusion='max', which=None, view='1/1')
    (head, top), prediction = look.answers[0], model.predictions(model.open(['test:5']))
    expected = next(iter(prediction)).top(5)
    assert (head, [name for name, _ in top]) == ('Prediction', [name for name, _ in expected])
    np.testing.assert_allclose([p for _, p in top], [p for _, p in expected], rtol=1e-5)
    np.testing.assert_array_equal(look.frames, record.read(np.arange(16)))
    assert look.shares.shape == (4, 4, 4)
    np.testing.assert_allclose(look.shares, look.time[:, None, None] * look.space, rtol=1e-5)
    assert look.explanation == (
        f'factorised_encoder of {model.folder}, strongest head; frames 0 to 15 of 16, 32 x 32'
    )
    assert tool._label(model, record) == 'up-left'


@pytest.mark.parametrize(
    ('arguments', 'told'),
    [
        (['test:0', '--class=upp'], '--class=upp: the model has no such class; it has up'),
        (['test:0', '--class=up', '--head-fusion=max'], 'only gradients tell'),
        (['test:0', '--view=3/2'], '--view=3/2: write N/OF'),
        (['test:0', '--view=1/1,4/3'], '--view=1/1,4/3: write N/OF'),
        (['test:0', 'test:1', '--output=one.png'], '--output=one.png: one file for 2 clips'),
        (['test:0', '--animation=clip.webm'], '--animation=clip.webm: write gif or mp4'),
        (['nowhere.mp4'], 'nowhere.mp4'),
        (['no\x1bwhere.mp4'], 'there is no no\ufffdwhere.mp4'),
    ],
)
def test_mistakes_are_told_in_a_line(tool, run, tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert tool.main([*arguments, f'--checkpoint={run}']) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith('error: ')
    assert captured.err.count('\n') == 1
    assert told in captured.err
    assert not list(tmp_path.iterdir())


def test_heat_begins_at_the_even_share():
    shares = np.array([1, 2, 4, 9]).reshape(1, 2, 2) / 16
    heat, peak = attention_sheet.heat(shares, 1 / 4)
    np.testing.assert_allclose(heat, np.array([0, 0, 0, 1]).reshape(1, 2, 2))
    assert peak == 2.25
    # What is nearly even stays pale.
    heat, peak = attention_sheet.heat(np.array([0.9, 1.1]).reshape(1, 1, 2) / 2, 1 / 2)
    np.testing.assert_allclose(heat, np.array([0, 0.1]).reshape(1, 1, 2))
    assert peak == 2


@pytest.mark.parametrize(
    ('moments', 'length', 'expected'),
    [
        (4, 4, [1, 3, 5, 7, 9, 11, 13, 15]),
        (8, 2, [1, 3, 5, 7, 9, 11, 13, 15]),
        (16, 1, [1, 3, 5, 7, 9, 11, 13, 15]),
        (1, 3, [0, 1, 2]),
        (12, 1, [1, 3, 5, 7, 9, 11]),
        (13, 1, [0, 2, 4, 5, 7, 8, 10, 12]),
    ],
)
def test_frames_stand_above_their_moments(moments, length, expected):
    np.testing.assert_array_equal(attention_sheet._shown(moments, length), expected)


def test_rollout_share(run, capsys):
    """Written out by pixels, for shares known beforehand."""
    tool = load_tool('rollout_share')
    clips = np.zeros((1, 2, 4, 4, 1), np.uint8)
    clips[0, 0, 0, :2], clips[0, 1, 3, 3] = 9, 200
    lit = tool.lit_pixels(clips, (2, 2, 2))
    np.testing.assert_array_equal(lit[0], [[[0.5, 0], [0, 0]], [[0, 0], [0, 0.25]]])
    even, all_there = np.full((1, 2, 2, 2), 1 / 8), np.zeros((1, 2, 2, 2))
    all_there[0, 0, 0, 0] = 1
    np.testing.assert_allclose(tool.ratio(even, lit), 1)
    np.testing.assert_allclose(tool.ratio(all_there, lit), 0.5 / (3 / 32))
    assert tool.main([str(run), '--untrained']) == 0
    header, _, row, fresh = capsys.readouterr().out.splitlines()
    assert header == '| run | model | clips | accuracy | mean | max | gradient | at most |'
    assert row.startswith(f'| {run} | `factorised_encoder` | 20 | ')
    # A hardly trained model does not know yet where to look; the head of a fresh one is zero.
    assert fresh.startswith(f'| {run}, untrained | `factorised_encoder` | 20 | ')
    assert fresh.split(' | ')[6] == '–'
    for cells in (row, fresh):
        assert 0.5 < float(cells.split(' | ')[4].split()[0]) < 2


def test_rollout_share_needs_digits(run):
    tool = load_tool('rollout_share')
    config = load(DIGITS, SETTINGS | {'data.source': 'video_files'})
    model = dataclasses.replace(vivit_jax.load(run), config=config)
    with pytest.raises(
        ValueError, match=r"data\.source='video_files', which does not tell where its subject is"
    ):
        tool.measure(model, 'test')
