"""The sheets of clips: they show what the model gets, and are told apart by what is written over them."""

import dataclasses
import itertools
from pathlib import Path

import cv2
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import load_tool

from vivit_jax import drawing, experiment, feeding
from vivit_jax.config import load
from vivit_jax.data.moving_digits import MovingDigits
from vivit_jax.data.record import UnreadableExample
from vivit_jax.train_step import TrainState, train_step

DIGITS = str(Path(__file__).parent.parent / 'configs' / 'moving_digits.py')
# Clips that augmentation changes: resized, cropped, mirrored.
AUGMENTED = {
    'data.short_side': '40',
    'data.scale_jitter': '0.9,1.3',
    'data.flip': '0.5',
    'training.batch_size': '8',
    'data.moving_digits.train_size': '20',
}


@pytest.fixture(scope='module')
def tool():
    return load_tool('show_batches')


def test_clips_are_those_that_training_gets(tool):
    config = load(DIGITS, AUGMENTED)
    source = experiment.make_source(config, 'train')
    blocks = tool.training_blocks(config, source, 5, step=3, blend=False)
    examples = feeding.training_examples(config, source)
    assert len(blocks) == 5
    for position, block in enumerate(blocks, start=24):
        example = examples(position)
        record = source[int(example['index'])]
        before, after = (strip for row in block.rows for strip in row)
        np.testing.assert_array_equal(after.frames, example['video'])
        np.testing.assert_array_equal(before.frames, record.read(np.arange(16)))
        assert block.name == record.name
        assert block.label == source.class_names[example['label']]
        assert before.caption == 'as decoded: 32 x 32, frames 0 to 15 of 16'
    assert any(not np.array_equal(b.rows[0][0].frames, b.rows[1][0].frames) for b in blocks)


class Watcher:
    """Stands in for a model and keeps what it gets."""

    def apply(self, variables, video, train, rngs):
        self.video = np.asarray(video)
        return jnp.zeros((len(video), 8)) + variables['params'].sum(), {}


def test_blended_clips_are_those_that_the_training_step_makes(tool, unchecked):
    config = load(DIGITS, AUGMENTED | {'training.mixup_alpha': '0.8'})
    source = experiment.make_source(config, 'train')
    blocks = tool.training_blocks(config, source, 4, step=2, blend=True)
    examples = feeding.training_examples(config, source)
    batch = [examples(position) for position in range(16, 24)]
    optimizer = optax.sgd(0.1)
    params, model = jnp.zeros(1), Watcher()
    train_step(
        TrainState(jnp.int32(2), params, optimizer.init(params), None),
        {name: jnp.stack([example[name] for example in batch]) for name in batch[0]},
        model=model,
        optimizer=optimizer,
        loss='softmax',
        head_sizes=(8,),
        label_smoothing=0.0,
        mixup_alpha=0.8,
        ema_decay=0.0,
        seed=config.seed,
    )
    for row, block in enumerate(blocks):
        np.testing.assert_allclose(block.rows[1][0].frames, model.video[row], rtol=0, atol=1e-6)
        own, other = (source.class_names[int(batch[place]['label'])] for place in (row, 7 - row))
        shares = dict(part.split(' ')[::-1] for part in block.label.split(' + '))
        assert set(shares) == {own, other}
        assert sum(map(float, shares.values())) == pytest.approx(1)


def test_views_are_those_that_evaluation_gets(tool):
    views = {'evaluation.temporal_views': '2', 'evaluation.spatial_views': '3', 'data.crop': '24,24'}
    config = load(DIGITS, AUGMENTED | views)
    source = experiment.make_source(config, 'test')
    blocks = tool.view_blocks(config, source, 3)
    examples = feeding.evaluation_examples(config, source, temporal_views=2, spatial_views=3)
    assert [block.name for block in blocks] == ['test/000000', 'test/001024', 'test/002047']
    for index, block in zip((0, 1024, 2047), blocks, strict=True):
        strips = list(itertools.chain(*block.rows))
        np.testing.assert_array_equal([strip.frames for strip in strips], examples(index)['video'])
        places = [f'view {t}/2, crop {place}' for t in (1, 2) for place in ('left', 'centre', 'right')]
        assert [strip.caption for strip in strips] == places


@dataclasses.dataclass
class Tall:
    """Digits on frames that are higher than wide, the first of which cannot be read."""

    inner: MovingDigits

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, index):
        record = self.inner[index]

        def read(indices):
            if index == 0:
                raise UnreadableExample('gone')
            return np.concatenate([record.read(indices)] * 2, axis=1)

        return dataclasses.replace(record, read=read, frame_size=(64, 32))


def test_tall_frames_and_one_that_cannot_be_read(tool):
    config = load(DIGITS, {'evaluation.spatial_views': '3'})
    source = Tall(MovingDigits('test', size=4))
    bad, good = tool.view_blocks(config, source, 2)
    assert (bad.label, bad.name, bad.rows) == ('cannot be read, left out', 'test/000000', [])
    assert good.name == 'test/000003'
    assert [strip.caption[-6:] for strip in good.rows[0]] == ['op top', 'centre', 'bottom']
    tool.draw([bad], 'all bad', 'and still a picture', tool.ALONE)
    # In training another example takes its place, which the label is of.
    source = Tall(MovingDigits('train', size=2))
    for block in tool.training_blocks(load(DIGITS), source, 6, step=0, blend=False):
        assert (block.name, block.label) == ('train/000001', source.class_names[1])


def test_labels(tool):
    config = load(DIGITS, {'data.heads': 'noun,verb', 'data.num_classes': '(3, 5)'})
    source = MovingDigits('train', size=1)
    assert tool.describe(config, source, 2) == 'down'
    assert tool.describe(config, source, (1, 3)) == 'down-right + up'
    assert tool.describe(config, source, (0.0, 1.0, 0, 0, 0, 0, 1.0, 0)) == 'down-right | up'
    assert tool.describe(config, source, (0.0,) * 8) == 'no label'


@pytest.mark.parametrize('clips', [1, 3])
def test_pictures_hold_the_frames(tool, tmp_path, capsys, clips):
    path = tmp_path / 'new' / 'sheet.png'
    assert tool.main([f'--config={DIGITS}', f'--output={path}', f'--clips={clips}']) == 0
    told = capsys.readouterr().out
    config = load(DIGITS)
    source = experiment.make_source(config, 'train')
    sheet = cv2.imread(str(path))
    video = feeding.training_examples(config, source)(clips - 1)['video']
    for frame in video[[0, -1]]:
        # 32 pixels in cells of 96 points, 2 pixels each.
        large = frame.repeat(6, 0).repeat(6, 1).repeat(3, 2)
        _, _, (x, y), _ = cv2.minMaxLoc(cv2.matchTemplate(sheet, large, cv2.TM_SQDIFF))
        np.testing.assert_array_equal(sheet[y : y + 192, x : x + 192], large)
    assert cv2.imread(str(path.with_name('sheet_views.png'))) is not None
    assert source[15842].name in told  # the first of the epoch
    assert len(told.splitlines()) == 2 * (clips + 1)


def test_slices_lie_in_two_lines(tool, tmp_path):
    rng = np.random.default_rng(0)
    few, many = (rng.integers(0, 256, (side, side, side, 1), np.uint8) for side in (28, 64))
    path = tmp_path / 'sheet.png'
    tool._write(path, [tool.Block('ill', 'scan', [[tool.Strip('seen', few)]])], 'one', 'two', tool.SLICE)
    sheet = cv2.imread(str(path))
    places = []
    for frame in few:
        # 28 pixels in cells of 48 points, 2 pixels each.
        larger = frame.repeat(3, 0).repeat(3, 1).repeat(3, 2)
        _, _, (x, y), _ = cv2.minMaxLoc(cv2.matchTemplate(sheet, larger, cv2.TM_SQDIFF))
        np.testing.assert_array_equal(sheet[y : y + 84, x : x + 84], larger)
        places.append((x, y))
    first, second = places[:14], places[14:]
    assert [y for _, y in first] == [first[0][1]] * 14
    assert {y for _, y in second} == {first[0][1] + 84 + 2 * tool.GAP}
    assert [x for x, _ in first] == [x for x, _ in second] == sorted({x for x, _ in places})
    # Of more than there is room for some are shown, and how many is said.
    sheet = tool.draw([tool.Block('ill', 'scan', [[tool.Strip('seen', many)]])], 'one', 'two', tool.SLICE)
    assert 'seen, 24 shown' in [text.get_text() for text in sheet.figure.texts]


def test_any_name_fits_on_the_sheet(tool, tmp_path):
    strip = tool.Strip('as decoded', np.zeros((2, 40, 60, 3), np.uint8))
    names = ['字' * 300, 'a $x^2$ b_{' * 40, 'line\nbreak\x1b[31m', '', 'ä' * 500 + '.mp4']
    blocks = [tool.Block(name[:90], name, [[strip]]) for name in names]
    path = tmp_path / 'names.png'
    tool._write(path, blocks, 'x' * 900, 'y' * 900, tool.ALONE)
    sheet = tool.draw(blocks[-1:], 'one', 'two', tool.ALONE)
    figure = sheet.figure
    texts = {text.get_text(): text for text in figure.texts}
    (name,) = (text for text in texts if text.endswith('.mp4'))
    assert name.startswith('ää')
    assert '…' in name
    end = texts[name].get_window_extent(figure.canvas.get_renderer()).x1 / drawing.SCALE
    assert end <= sheet.width - tool.MARGIN + 1
    height, wide, _ = cv2.imread(str(path)).shape
    assert wide < 3000
    assert height > 500


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        (['--mixup'], 'error: --mixup: training.mixup_alpha=0.0'),
        (['--clips=0'], 'error: --output=runs/moving_digits_batches.png --clips=0'),
        (['--output=sheet.jpg'], 'error: --output=sheet.jpg'),
        (['--split=nowhere'], "error: moving digits have no split 'nowhere'"),
        (['--config.data.crp=1'], 'error: config.data.crp is not a key'),
    ],
)
def test_mistakes_are_told_in_a_line(tool, capsys, tmp_path, monkeypatch, options, told):
    monkeypatch.chdir(tmp_path)
    assert tool.main([f'--config={DIGITS}', *options]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(told)
    assert err.count('\n') == 1
    assert not out
