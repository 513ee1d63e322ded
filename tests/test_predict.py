"""The command that predicts: evaluation's numbers in every form it writes, whatever it is given."""

import csv
import io
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import cv2
import jax
import numpy as np
import pytest
from conftest import GOLDEN, load_tool

import vivit_jax
from tiny import DIGITS, SETTINGS
from videos import write_video
from vivit_jax import evaluate, experiment, formats
from vivit_jax.config import load
from vivit_jax.formats import own
from vivit_jax.models.vivit import create_model
from vivit_jax.predict import __main__ as predict

ROOT = pathlib.Path(__file__).parent.parent
FORMATS = pathlib.Path(__file__).parent / 'golden' / 'formats'
CLASSES = ['sit', 'stand', 'über uns']
FRAMES = {'sit/a.mp4': 60, 'sit/b.mp4': 31, 'stand/c.mp4': 12, 'über uns/d.mp4': 45, 'über uns/e.mp4': 20}
TINY = SETTINGS | {
    'model.tubelet': '2,16,16',
    'data.frames': '4',
    'data.stride': '2',
    'data.short_side': '36',
    'data.crop': '32,32',
    'data.test_splits': 'test',
    'evaluation.temporal_views': '2',
    'evaluation.spatial_views': '3',
    'evaluation.batch_size': '48',
}
TINY = {key: value for key, value in TINY.items() if not key.startswith('data.moving_digits')}


def write_run(folder, config, class_names, random_params):
    """Writes a run whose parameters are random: what they say matters to nobody here, but they tell videos apart."""
    model = create_model(len(class_names), **config.model)
    params = random_params(model, np.zeros((1, *experiment.clip_shape(config)), np.float32))
    own.save(folder, params, config.to_dict(), class_names)


@pytest.fixture(scope='module')
def here(tmp_path_factory):
    return tmp_path_factory.mktemp('here')


@pytest.fixture(scope='module')
def videos(here):
    for split, (name, frames) in [(split, item) for split in ('train', 'test') for item in FRAMES.items()]:
        path = here / 'videos' / split / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, frames=frames, size=(48, 64) if frames % 2 else (64, 48))
    return here / 'videos'


@pytest.fixture(scope='module')
def run(here, videos, random_params):
    """A run, and its evaluation's `predictions.csv`."""
    settings = TINY | {'data.root': str(videos), 'data.cache': str(here / 'cache')}
    config = load(str(ROOT / 'configs' / 'my_videos.py'), settings)
    write_run(here / 'run', config, CLASSES, random_params)
    evaluate.evaluate(config, here / 'run')
    return here / 'run'


@pytest.fixture(scope='module')
def digits(here, random_params):
    config = load(DIGITS, SETTINGS)
    write_run(here / 'digits', config, [f'd{k}' for k in range(8)], random_params)
    return here / 'digits'


@pytest.fixture
def command(capsys, monkeypatch, tmp_path):
    """Runs the command in an empty folder; returns the exit code, its output and what it complained of."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, checkpoint):
        code = predict.main([*map(str, arguments), f'--checkpoint={checkpoint}'])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


def shares_of(rows):
    """The probability of each class, an example a row."""
    return np.array(
        [
            [share for _, share in sorted((one['class'], one['probability']) for one in row['top']['label'])]
            for row in rows
        ]
    )


def expected_rows(run):
    """What `--mode=eval` wrote."""
    with (run / 'predictions.csv').open() as file:
        return [
            (row['name'], row['label'], row['top_5'].split('|'), row['scores'].split('|'))
            for row in csv.DictReader(file)
        ]


@pytest.mark.parametrize('names', [['test'], ['test/']], ids=['split', 'folder'])
def test_the_numbers_are_those_of_the_evaluation(names, run, videos, command, monkeypatch):
    if names == ['test/']:
        names = [f'{videos}/test/']
    code, out, err = command(*names, '--csv', checkpoint=run)
    assert (code, err) == (0, '')
    rows, expected = rows_of(out), expected_rows(run)
    assert len(expected) == len(FRAMES)
    assert [row['name'].removeprefix(f'{videos}/') for row in rows] == [name for name, *_ in expected]
    for row, (_, label, top, shares) in zip(rows, expected, strict=True):
        assert [row[f'class_{place}'] for place in (1, 2, 3)] == top
        assert [row[f'probability_{place}'] for place in (1, 2, 3)] == shares
        assert row.get('truth', label) == label
        assert ('truth' in row) == (names == ['test'])
    assert len({row['probability_1'] for row in rows}) == len(FRAMES)


def test_other_batches_and_orders_differ_by_rounding_alone(run, videos, command):
    _, out, _ = command('test', '--json', checkpoint=run)
    expected = dict(zip(FRAMES, shares_of(lines_of(out)), strict=True))
    for options in (['--batch_size=1'], ['--batch_size=13'], ['--views=2x3', '--batch_size=200']):
        code, out, _ = command('test', '--json', *options, checkpoint=run)
        assert code == 0
        np.testing.assert_allclose(shares_of(lines_of(out)), list(expected.values()), rtol=0, atol=1e-5)
    order = ['über uns/e.mp4', 'sit/b.mp4', 'über uns/e.mp4']
    code, out, _ = command(*(videos / 'test' / name for name in order), '--json', checkpoint=run)
    np.testing.assert_allclose(
        shares_of(lines_of(out)), [expected[name] for name in order], rtol=0, atol=1e-5
    )
    _, out, _ = command('test', '--json', '--views=1', checkpoint=run)
    assert np.abs(shares_of(lines_of(out)) - list(expected.values())).max() > 1e-4


def test_every_form_says_the_same(run, videos, command, tmp_path):
    files = [videos / 'test' / 'sit' / 'a.mp4', videos / 'test' / 'stand']
    _, out, err = command(*files, '--json', '--top=2', checkpoint=run)
    told = lines_of(out)
    assert [row['name'] for row in told] == [str(files[0]), str(files[1] / 'c.mp4')]
    assert told[1] == {
        'name': str(files[1] / 'c.mp4'),
        'file': str(files[1] / 'c.mp4'),
        'top': {'label': told[1]['top']['label']},
    }
    assert len(told[0]['top']['label']) == 2
    assert err == ''
    for form in ('json', 'jsonl', 'csv'):
        code, out, err = command(*files, f'--output=new/p.{form}', '--top=2', checkpoint=run)
        assert code == 0
        assert err == f'2 examples: new/p.{form}\n'
        assert out == ''
    assert json.loads((tmp_path / 'new/p.json').read_text()) == told
    assert lines_of((tmp_path / 'new/p.jsonl').read_text()) == told
    text = (tmp_path / 'new/p.csv').read_text()
    assert text.startswith('name,start,end,class_1,probability_1,class_2,probability_2\n')
    for row, other in zip(rows_of(text), told, strict=True):
        assert (row['name'], row['start'], row['end']) == (other['name'], '', '')
        for place, one in enumerate(other['top']['label'], 1):
            assert (row[f'class_{place}'], float(row[f'probability_{place}'])) == tuple(one.values())
    _, out, _ = command(*files, '--top=2', checkpoint=run)
    plain = [line.split('  ') for line in out.splitlines()]
    assert plain[0] == [str(files[0])]
    one = told[0]['top']['label'][0]
    assert out.splitlines()[1] == f'  {one["class"]:<8}  {one["probability"]:.4f}'
    assert len(plain) == 6


def test_a_terminal_gets_bars(run, videos, command, monkeypatch):
    monkeypatch.setenv('FORCE_COLOR', '1')
    monkeypatch.setenv('COLUMNS', '100')
    code, out, _ = command('test:3', 'test:0', checkpoint=run)
    assert code == 0
    assert '█' in out
    assert 'über uns/d.mp4' in out
    assert '  (is über uns)' in out
    assert ' %' in out


def test_features(run, videos, command, tmp_path):
    model = vivit_jax.load(run)
    files = [videos / 'test' / name for name in FRAMES]
    for what, shape in (('pre_logits', (16,)), ('tokens', (6, 2, 2, 2, 16)), ('encoded', (6, 2, 16))):
        options = [f'--features={tmp_path}/new/f.npz', f'--feature={what}', '--batch_size=1']
        code, out, err = command(videos / 'test', *options, checkpoint=run)
        assert (code, out) == (0, '')
        assert '5 examples' in err
        with np.load(tmp_path / 'new/f.npz', allow_pickle=False) as file:
            arrays = dict(file)
        assert arrays['names'].tolist() == list(map(str, files))
        assert arrays['features'].dtype == np.float32
        assert arrays['features'].shape[1:] == model.features(files[0], what).shape
        assert arrays['features'].shape == (5, *shape) or what == 'encoded'
        assert np.isnan(arrays['start']).all()
        expected = [model.features(file, what) for file in files[:2]]
        np.testing.assert_allclose(arrays['features'][:2], expected, rtol=0, atol=1e-5)
    assert sorted(path.name for path in (tmp_path / 'new').iterdir()) == ['f.npz']
    options = ['--features=w.npz', '--window=1', '--every=0.5']
    command(files[0], *options, checkpoint=run)
    with np.load(tmp_path / 'w.npz', allow_pickle=False) as file:
        np.testing.assert_allclose(file['start'], [0, 0.5, 1, 1.4], atol=1e-9)
        assert file['names'][1] == f'{files[0]}#t=0.5,1.5'


def test_windows_and_their_picture(run, videos, command, tmp_path):
    files = [videos / 'test' / 'sit' / 'a.mp4', videos / 'test' / 'stand' / 'c.mp4']
    options = ['--window=1', '--every=0.5', '--timeline=new/t.png', '--json', '--top=0']
    code, out, err = command(*files, *options, checkpoint=run)
    rows = lines_of(out)
    assert code == 0
    assert err == '5 examples: new/t.png\n'
    assert [(row['start'], row['end']) for row in rows] == [(0, 1), (0.5, 1.5), (1, 2), (1.4, 2.4), (0, 0.48)]
    assert [row['name'].rpartition('/')[2] for row in rows][:2] == ['a.mp4#t=0,1', 'a.mp4#t=0.5,1.5']
    assert {row['file'] for row in rows} == set(map(str, files))
    picture = cv2.imread(str(tmp_path / 'new/t.png'))
    assert picture.shape[1] == 1000
    assert picture.shape[0] > 300  # two tracks
    # A window is what a file cut to it would be.
    model = vivit_jax.load(run)
    whole = next(iter(model.predictions(model.open([str(files[1])]))))
    np.testing.assert_allclose(
        shares_of(rows)[-1],
        [share for _, share in sorted(whole.top(3))],
        rtol=0,
        atol=1e-5,
    )


def test_what_cannot_be_read_is_named(run, videos, command, tmp_path):
    (tmp_path / 'page.mp4').write_text('<html>')
    frames = tmp_path / 'frames'
    frames.mkdir()
    for place in range(7):
        cv2.imwrite(str(frames / f'{place}.png'), np.full((40, 50, 3), 30 * place, np.uint8))
    (frames / '2.png').write_bytes(b'broken')  # which is seen only when it is read
    good = videos / 'test' / 'sit' / 'a.mp4'
    code, out, err = command('page.mp4', good, 'frames', '--json', checkpoint=run)
    assert code == 1
    assert [row['name'] for row in lines_of(out)] == [str(good)]
    lines = err.splitlines()
    assert lines[0] == 'page.mp4: Invalid data found when processing input'
    assert lines[1] == 'frames: ./frames/2.png is no whole image'
    assert lines[2:] == ['2 of 3 could not be read']
    for names in (['page.mp4'], ['frames'], ['frames', 'page.mp4']):
        code, out, err = command(*names, '--json', checkpoint=run)
        assert (code, out) == (2, '')
    code, out, err = command('frames', good, '--features=f.npz', checkpoint=run)
    assert code == 1
    with np.load(tmp_path / 'f.npz', allow_pickle=False) as file:
        assert file['names'].tolist() == [str(good)]
    code, _, _ = command('frames', '--features=none.npz', checkpoint=run)
    assert code == 2
    assert not (tmp_path / 'none.npz').exists()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nothing.mp4'], 'there is no nothing.mp4'),
        (['test:9'], "'test:9': write SPLIT:INDEX or SPLIT:FIRST-LAST, from 0 to 4"),
        (['test', '--views=4x2'], '--views=4x2: write clips x crops, the crops being 1 or 3, as 4x3 or 1'),
        (['test', '--output=p.txt'], '--output=p.txt: write FILE.csv, FILE.json or FILE.jsonl'),
        (['test', '--features=f.npy'], '--features=f.npy: write FILE.npz'),
        (['test', '--timeline=t.png'], '--timeline needs a --window, as --window=2'),
        (['test', '--json', '--csv'], '--json and --csv: choose one'),
        (['test', '--window=2'], 'window=2: windows are taken of files, not of the data of a run'),
        (['list.csv', '--output=list.csv'], 'list.csv is to be read and to be written: choose another file'),
        (['test', '--top=-1'], '--top=-1, --batch_size=0: must not be below 0'),
        (
            ['test', '--config.data.workers=2'],
            '--config.data.workers=2: predict reads in this process alone; set --config.data.threads',
        ),
        (
            ['test', '--features=f.npz', '--csv'],
            '--features predicts no classes: leave out --json, --csv, --output and --timeline',
        ),
    ],
)
def test_mistakes_are_one_line(arguments, message, run, command, tmp_path):
    (tmp_path / 'list.csv').write_text('path\na.mp4\n')
    code, out, err = command(*arguments, checkpoint=run)
    assert (code, out, err) == (2, '', f'error: {message}\n')
    assert [path.name for path in tmp_path.iterdir()] == ['list.csv']


def test_names_cannot_command_the_terminal(run, videos, command, tmp_path):
    name = 'a\x1b[31m\u202eb.mp4'
    shutil.copy(videos / 'test' / 'sit' / 'a.mp4', tmp_path / name)
    (tmp_path / '\x1bbad.mp4').write_text('')
    code, out, err = command(name, '\x1bbad.mp4', checkpoint=run)
    assert code == 1
    assert '\x1b' not in out + err
    assert '\u202e' not in out
    assert out.startswith('a\ufffd[31m\ufffdb.mp4\n')
    _, out, _ = command(name, '--csv', checkpoint=run)
    assert rows_of(out)[0]['name'] == name


def test_several_heads_and_several_labels(run, command):
    heads = ['--config.data.heads=noun,verb', '--config.data.num_classes=2,1']
    _, out, _ = command('test', '--json', checkpoint=run)
    plain = lines_of(out)
    code, out, _ = command(f'{run.parent}/videos/test', '--csv', *heads, checkpoint=run)
    assert code == 0
    columns = ['noun_class_1', 'noun_probability_1', 'noun_class_2', 'noun_probability_2']
    columns += ['verb_class_1', 'verb_probability_1', 'verb_class_2', 'verb_probability_2']
    rows = rows_of(out)
    assert list(rows[0]) == ['name', 'start', 'end', *columns]
    for row, one in zip(rows, plain, strict=True):
        shares = {each['class']: each['probability'] for each in one['top']['label']}
        assert {row['noun_class_1'], row['noun_class_2']} == set(CLASSES[:2])
        assert (row['verb_class_1'], row['verb_probability_1'], row['verb_class_2']) == (CLASSES[2], '1', '')
        ratio = float(row['noun_probability_1']) / float(row['noun_probability_2'])
        expected = shares[row['noun_class_1']] / shares[row['noun_class_2']]
        assert ratio == pytest.approx(expected, rel=1e-4)
    _, out, _ = command(f'{run.parent}/videos/test/sit/a.mp4', *heads, checkpoint=run)
    assert [line.split()[0] for line in out.splitlines()[1:]] == ['noun', 'noun', 'verb']
    code, out, _ = command(
        f'{run.parent}/videos/test', '--json', '--config.training.loss=sigmoid', checkpoint=run
    )
    assert code == 0
    ones = shares_of(lines_of(out))
    odds = np.log(ones / (1 - ones))
    np.testing.assert_allclose(np.exp(odds) / np.exp(odds).sum(1, keepdims=True), shares_of(plain), atol=1e-4)


def test_volumes_and_videos_in_grey(digits, videos, command, tmp_path):
    video = videos / 'test' / 'sit' / 'a.mp4'
    options = ['--json', '--config.data.short_side=32']
    code, out, _ = command(video, 'test:0', *options, checkpoint=digits)
    assert code == 0
    assert [row['name'] for row in lines_of(out)] == [str(video), 'test/000000']
    scan = np.random.default_rng(0).normal(size=(16, 32, 32))
    np.save(tmp_path / 'scan.npy', scan)
    options = ['--top=0', '--config.data.source=volumes', '--config.data.volumes.percentiles=0,100']
    code, out, err = command('scan.npy', '--json', *options, checkpoint=digits)
    assert (code, err) == (0, '')
    scaled = (2 * (scan - scan.min()) / (scan.max() - scan.min()) - 1).astype(np.float32)
    expected = vivit_jax.load(digits).predict(scaled)
    np.testing.assert_allclose(
        shares_of(lines_of(out)), [expected.probabilities[np.argsort(expected.class_names)]], atol=1e-4
    )
    code, _, err = command(video, *options, checkpoint=digits)
    assert code == 2
    assert err == f'{video}: not a NIfTI file; the model takes volumes of 16x32x32 voxels\n'


def test_scenic_and_hugging_face(command, tmp_path, capsys):
    """Weights of others give, of frames of their size, what their model gives of these pixels (as recorded)."""
    e01 = GOLDEN / 'E01_checkpoint'
    config = json.loads((e01 / 'expected.json').read_text())['config']
    config['dataset_configs'] = {'num_classes': 5, 'num_frames': 8, 'crop_size': 16}
    (tmp_path / 'scenic.json').write_text(json.dumps(config))
    load_tool('convert_scenic').convert(
        str(e01 / 'new_layout'), tmp_path / 'scenic.json', tmp_path / 'scenic'
    )
    capsys.readouterr()
    for weights, checkpoint in (
        (formats.load(e01 / 'new_layout'), tmp_path / 'scenic'),
        (formats.load(FORMATS / 'hf_vivit_cls'), FORMATS / 'hf_vivit_cls'),
    ):
        clip = [cells * side for cells, side in zip(weights.grid, weights.model['tubelet'], strict=True)]
        frames = np.random.default_rng(0).integers(0, 256, (*clip, 3), np.uint8)
        (tmp_path / checkpoint.name).mkdir(exist_ok=True)
        for place, frame in enumerate(frames):
            cv2.imwrite(str(tmp_path / checkpoint.name / f'{place}.png'), frame[..., ::-1])
        model = create_model(weights.num_classes, **weights.model)
        pixels = frames[None].astype(np.float32) / 127.5 - 1
        logits = jax.jit(lambda p, x, model=model: model.apply({'params': p}, x)[0])(weights.params, pixels)
        options = ['--json', '--views=1', '--top=0', '--config.data.stride=1', '--config.data.short_side=0']
        code, out, err = command(tmp_path / checkpoint.name, *options, checkpoint=checkpoint)
        assert (code, err) == (0, '')
        found = {one['class']: one['probability'] for one in lines_of(out)[0]['top']['label']}
        names = weights.class_names or tuple('01234')  # Scenic's files name no classes
        assert sorted(found) == sorted(names)
        np.testing.assert_allclose(
            [found[name] for name in names], jax.nn.softmax(logits[0]), rtol=0, atol=1e-5
        )


def test_help_does_without_jax():
    code = (
        'import sys; from vivit_jax.predict import __main__ as predict\n'
        'try: predict.main(["--help"])\n'
        'finally: assert "jax" not in sys.modules'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert 'examples:\n  python -m vivit_jax.predict clip.mp4 --checkpoint=' in done.stdout
    assert 'exit codes:' in done.stdout


def test_an_interruption_leaves_what_was_done(run, videos, command, tmp_path, monkeypatch):
    from vivit_jax.inference import Predictor

    whole = Predictor.predictions

    def interrupted(self, *arguments, **options):
        for place, prediction in enumerate(whole(self, *arguments, **options)):
            if place == 2:
                raise KeyboardInterrupt
            yield prediction

    monkeypatch.setattr(Predictor, 'predictions', interrupted)
    for form in ('csv', 'json', 'jsonl'):
        code, _, err = command('test', f'--output=p.{form}', checkpoint=run)
        assert (code, err) == (130, 'stopped\n')
    assert len(rows_of((tmp_path / 'p.csv').read_text())) == 2
    assert len(json.loads((tmp_path / 'p.json').read_text())) == 2
    assert len(lines_of((tmp_path / 'p.jsonl').read_text())) == 2


def test_a_terminate_signal_leaves_what_was_done(digits, tmp_path):
    """The signal comes when some features are there, long before the last."""
    many = ['test'] * 500
    command = [sys.executable, '-m', 'vivit_jax.predict', *many, f'--checkpoint={digits}', '--batch_size=1']
    with subprocess.Popen(
        [*command, '--features=p.npz'],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    ) as process:
        while process.poll() is None and not any(path.stat().st_size for path in tmp_path.iterdir()):
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert (process.stderr.read(), process.wait()) == ('stopped\n', 130)
    assert [path.name for path in tmp_path.iterdir()] == ['p.npz']
    with np.load(tmp_path / 'p.npz', allow_pickle=False) as file:
        assert 0 < len(file['features']) == len(file['names']) < 10_000


def test_a_closed_pipe_is_quiet(run, videos):
    command = [sys.executable, '-m', 'vivit_jax.predict', f'{videos}/test', '--json', f'--checkpoint={run}']
    with subprocess.Popen(
        [*command, '--views=1'], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b''
        assert process.wait() == 141
