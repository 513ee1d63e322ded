"""A trained model in use: evaluation's numbers, from files, pixels and the run's own data."""

import csv
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest

import vivit_jax
from tiny import DIGITS, SETTINGS
from vivit_jax import evaluate, train
from vivit_jax.config import load
from vivit_jax.data.examine import Examination
from vivit_jax.data.joined import Joined, Some
from vivit_jax.data.record import Record
from vivit_jax.formats import own

FORMATS = pathlib.Path(__file__).parent / 'golden' / 'formats'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    """A finished run, evaluated with two views of clips a little longer than the model's."""
    folder = tmp_path_factory.mktemp('runs') / 'digits'
    settings = SETTINGS | {'model.classifier': 'token', 'training.ema_decay': '0.9', 'training.steps': '10'}
    train.train(load(DIGITS, settings), folder)
    return folder


@pytest.fixture(scope='module')
def model(run):
    return vivit_jax.load(run)


def test_predictions_are_those_of_the_evaluation(run, model):
    with (run / 'predictions.csv').open() as file:
        rows = list(csv.DictReader(file))
    for split in ('test', 'test_still'):
        source = model.open([split])
        expected = [(row['name'], row['top_5'], row['scores']) for row in rows if row['split'] == split]
        found = list(model.predictions(source))
        told = [
            (
                one.name,
                '|'.join(name for name, _ in one.top(5)),
                '|'.join(f'{share:.6g}' for _, share in one.top(5)),
            )
            for one in found
        ]
        assert told == expected, split
        for one, other in zip(found, model.predictions(source, batch_size=3), strict=True):
            np.testing.assert_allclose(other.scores, one.scores, rtol=0, atol=1e-5)
            np.testing.assert_allclose(one.probabilities.sum(), 1, rtol=1e-6)


def test_pixels_bytes_and_floats(model):
    source = model.open(['test'])
    record = source[2]
    pixels = record.read(np.arange(record.num_frames))
    expected = list(model.predictions(source))[2].scores
    for video in (pixels, pixels[..., 0], pixels.astype(np.float32) / 127.5 - 1):
        np.testing.assert_allclose(model.predict(video).scores, expected, rtol=0, atol=1e-5)
    larger = np.pad(pixels, ((0, 0), (4, 4), (6, 6), (0, 0)))  # of which the central crop is seen
    np.testing.assert_allclose(model.predict(larger).scores, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(model.clip(larger), pixels)


@pytest.mark.parametrize(
    ('video', 'message'),
    [
        (np.zeros((4, 32, 32, 3), np.uint8), r'must be \[t h w c\] with c=1'),
        (np.zeros((32, 32), np.uint8), r'shape \(32, 32\): must be \[t h w c\]'),
        (np.zeros((0, 32, 32), np.uint8), 'must be'),
        (np.full((4, 32, 32), 255.0), r'from 255 to 255: must be uint8, or float in \[-1, 1\]'),
        (np.full((4, 32, 32), np.nan), r'must be uint8, or float in \[-1, 1\]'),
        (np.zeros((4, 32, 32), np.int64), 'video of int64'),
    ],
)
def test_pixels_that_are_none(model, video, message):
    with pytest.raises(ValueError, match=message):
        model.predict(video)


def test_views_are_averaged(model):
    """Of a clip twice as long two views are its halves: the scores are the mean of theirs."""
    source = model.open(['test:0-1'])
    halves = [source[i].read(np.arange(16)) for i in range(2)]
    both = model.predict(np.concatenate(halves), views=(2, 1))
    each = [model.predict(half).scores for half in halves]
    np.testing.assert_allclose(both.scores, np.mean(each, axis=0), rtol=0, atol=1e-5)
    features = [model.features(half) for half in halves]
    np.testing.assert_allclose(
        model.features(np.concatenate(halves), views=(2, 1)), np.mean(features, axis=0), rtol=0, atol=1e-5
    )


def test_features_and_attention(model):
    clip = model.clip(model.open(['test:3'])[0])
    params = jax.device_get(model.params)
    video = jax.numpy.asarray(clip, np.float32)[None] / 127.5 - 1
    logits, out = model.model.apply({'params': params}, video, capture_attention=True)
    np.testing.assert_allclose(model.predict(clip).scores, logits[0], rtol=0, atol=1e-5)
    assert model.features(clip).shape == (16,)
    np.testing.assert_allclose(model.features(clip), out['pre_logits'][0], rtol=0, atol=1e-5)
    for what in ('encoded', 'tokens'):
        np.testing.assert_allclose(model.features(clip, what), out[what], rtol=0, atol=1e-5)
    weights = model.attention(clip)
    assert weights['SpatialTransformer'][0]['space'].shape == (1, 4, 2, 17, 17)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), weights, out['attention'])
    with pytest.raises(ValueError, match=r"feature 'logits': choose one of pre_logits, encoded, tokens"):
        model.features(clip, 'logits')


def test_the_runs_own_data(model):
    source = model.open(['test:2-4', 'validation:0', 'test:19'])
    names = [source[i].name for i in range(len(source))]
    test, validation = model.open(['test']), model.open(['validation'])
    assert names == [test[2].name, test[3].name, test[4].name, validation[0].name, test[19].name]
    assert list(source.class_names) == list(model.class_names)
    with pytest.raises(IndexError):
        source[5]
    for name in ('test:20', 'test:4-2', 'test:x', 'test:'):
        with pytest.raises(
            ValueError, match=rf'{name!r}: write SPLIT:INDEX or SPLIT:FIRST-LAST, from 0 to 19'
        ):
            model.open([name])
    with pytest.raises(ValueError, match=r'there is no nothing\.mp4'):
        model.open(['nothing.mp4'])
    with pytest.raises(ValueError, match=r'no videos are named'):
        model.open([])


def test_of_nothing_readable_there_is_nothing(model, tmp_path):
    (tmp_path / 'empty.mp4').write_bytes(b'')
    source = model.open([str(tmp_path / 'empty.mp4')])
    assert len(source) == 0
    assert list(model.predictions(source)) == list(model.featured(source)) == []
    with pytest.raises(ValueError, match=r'empty\.mp4: is empty \(0 bytes\)'):
        model.predict(tmp_path / 'empty.mp4')


def test_there_is_at_least_one_view(model):
    with pytest.raises(ValueError, match=r'views=\(0, 1\): at least one clip and one crop make a view'):
        model.predict(np.zeros((20, 32, 32, 1), np.uint8), views=(0, 1))


def test_from_anywhere(run, model, tmp_path, monkeypatch):
    """The folder of one checkpoint is enough, wherever it was copied to, and wherever one is."""
    step = next(path for path in (run / 'checkpoints').iterdir() if path.name == '10')
    shutil.copytree(step, tmp_path / 'alone')
    monkeypatch.chdir(tmp_path)
    alone = vivit_jax.load('alone')
    clip = model.clip(model.open(['test:0'])[0])
    for path in (run / 'checkpoints', step):
        assert vivit_jax.load(path).step == 10
    np.testing.assert_array_equal(alone.predict(clip).scores, model.predict(clip).scores)
    assert os.listdir(tmp_path) == ['alone']
    half = vivit_jax.load(tmp_path / 'alone', {'model.dtype': 'bfloat16'})
    np.testing.assert_allclose(half.predict(clip).scores, model.predict(clip).scores, rtol=0, atol=0.1)
    assert half.predict(clip).scores.tolist() != model.predict(clip).scores.tolist()
    with pytest.raises(ValueError, match=r'model\.dtipe'):
        vivit_jax.load('alone', {'model.dtipe': 'bfloat16'})


def test_a_run_of_another_machine_is_computed_as_this_one_can(model, tmp_path):
    config = model.config.to_dict()
    config['model']['attention_backend'] = 'flash'
    own.save(tmp_path, jax.device_get(model.params), config, list(model.class_names))
    clip = model.clip(model.open(['test:0'])[0])
    found = vivit_jax.load(tmp_path).predict(clip).scores
    np.testing.assert_array_equal(found, model.predict(clip).scores)
    with pytest.raises(
        ValueError, match=r"^model\.attention_backend='flash': it needs a TPU, .*; choose auto"
    ):
        vivit_jax.load(tmp_path, {'model.attention_backend': 'flash'}).predict(clip)


def test_heads_and_labels(run):
    model = vivit_jax.load(run)
    heads = {'data.heads': 'noun,verb', 'data.num_classes': '5,3', 'training.loss': 'sigmoid'}
    two = vivit_jax.load(run, {key: heads[key] for key in ('data.heads', 'data.num_classes')})
    prediction = two.predict(model.clip(model.open(['test:0'])[0]))
    assert prediction.heads == {'noun': slice(0, 5), 'verb': slice(5, 8)}
    names = [name for name, _ in prediction.top(9)], [name for name, _ in prediction.top(9, 'verb')]
    assert [sorted(part) for part in names] == [
        sorted(model.class_names[:5]),
        sorted(model.class_names[5:]),
    ]
    for part in prediction.heads.values():
        np.testing.assert_allclose(prediction.probabilities[part].sum(), 1, rtol=1e-6)
    with pytest.raises(ValueError, match=r"head 'adverb': choose one of noun, verb"):
        prediction.top(1, 'adverb')
    several = vivit_jax.load(run, {'training.loss': 'sigmoid'})
    prediction = several.predict(model.clip(model.open(['test:0'])[0]))
    np.testing.assert_allclose(prediction.probabilities, 1 / (1 + np.exp(-prediction.scores)), rtol=1e-6)


def test_weights_of_others():
    """Hugging Face's ViViT: the clip is its own, and at that size the logits are those it was recorded with."""
    folder = FORMATS / 'hf_vivit_cls'
    recorded = np.load(folder / 'io.npz')
    model = vivit_jax.load(folder)
    video = np.moveaxis(recorded['pixel_values'], -3, -1)[0]
    assert model.step is None
    assert (model.config.data.frames, *model.config.data.crop, model.config.data.channels) == video.shape
    model = vivit_jax.load(folder, {'data.stride': '1', 'data.short_side': '0'})
    np.testing.assert_allclose(model.predict(video).scores, recorded['logits'][0], rtol=0, atol=1e-5)
    without = vivit_jax.load(FORMATS / 'hf_vivit_base')
    with pytest.raises(ValueError, match='has no head to predict classes with; it gives features'):
        without.predict(video)
    with pytest.raises(ValueError, match=r'is an image model \(hf_vit\): make a video model of it'):
        vivit_jax.load(FORMATS / 'hf_vit_cls')


def test_joined_sources():
    class Numbers:
        class_names, bad, digest = ('a',), (('gone', 'why'),), 'numbers'

        def __init__(self, *numbers):
            self.numbers = numbers

        def __len__(self):
            return len(self.numbers)

        def __getitem__(self, index):
            number = self.numbers[index]
            return Record(
                name=str(number), label=0, num_frames=1, frame_size=(1, 1), read=lambda indices: indices
            )

    joined = Joined((Numbers(0, 1), Numbers(), Some(Numbers(10, 11, 12), range(1, 3))))
    assert [joined[i].name for i in range(len(joined))] == ['0', '1', '11', '12']
    assert joined.bad == [('gone', 'why')] * 2
    for index in (-1, 4):
        with pytest.raises(IndexError):
            joined[index]


def test_a_drawn_split_is_the_runs(run, monkeypatch):
    """Splits that were drawn for a run hold when its data is opened again."""
    asked = []
    monkeypatch.setattr(evaluate, 'keep_drawn', lambda folder, looking: asked.append((folder, looking)))
    looking = Examination()
    vivit_jax.load(run).open(['test:0'], looking=looking)
    # From inside the folder as well, where the name of a step says nothing of it.
    monkeypatch.chdir(run / 'checkpoints')
    vivit_jax.load('10').open(['test:0'], looking=looking)
    assert asked == [(run, looking)] * 2
