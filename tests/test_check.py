"""The check before a run: counts, everything bad by name, the exit code, and what training makes of it."""

import csv
import io
import shutil
from pathlib import Path

import pytest

from videos import FRAMES, write_sound, write_video
from vivit_jax.data.check import main

CONFIGS = Path(__file__).parent.parent / 'configs'
MY_VIDEOS, DIGITS = f'--config={CONFIGS / "my_videos.py"}', f'--config={CONFIGS / "moving_digits.py"}'


@pytest.fixture(scope='module')
def videos(tmp_path_factory):
    """Videos that differ in their content."""
    folder = tmp_path_factory.mktemp('videos')
    for number in range(6):
        write_video(folder / f'{number}.mp4', options={'g': '5'}, frames=FRAMES + number)
    return folder


@pytest.fixture
def root(tmp_path, videos):
    """Two classes, two videos of each to train on and one to validate."""
    root = tmp_path / 'data'
    for number, place in enumerate(
        ('train/run', 'train/run', 'train/wave', 'train/wave', 'validation/run', 'validation/wave')
    ):
        (root / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(videos / f'{number}.mp4', root / place)
    return root


def table(path):
    return list(csv.reader(io.StringIO(path.read_text('utf-8'), newline='')))


@pytest.fixture
def check(tmp_path, capsys):
    """Runs the command; returns the exit code, what it said and the rows of its CSV file."""

    def run(root, *options, config=MY_VIDEOS):
        output = tmp_path / 'new' / 'check.csv'
        where = [f'--config.data.root={root}'] if root else []
        cache = f'--config.data.cache={tmp_path / "cache"}'
        code = main([config, *where, cache, f'--output={output}', *options])
        told = capsys.readouterr()
        rows = table(output) if output.exists() else []
        assert not rows or rows[0] == ['split', 'name', 'cause']
        return code, told.out + told.err, rows[1:]

    return run


def classes(tmp_path):
    return table(tmp_path / 'new' / 'check_classes.csv')


def test_all_is_well(check, root, tmp_path):
    code, told, rows = check(root)
    assert (code, rows) == (0, [])
    assert classes(tmp_path) == [['class', 'train', 'validation'], ['run', '2', '1'], ['wave', '2', '1']]
    assert ['examples', '4', '2'] in [line.split() for line in told.splitlines()]
    assert 'shorter than a clip, 61 frames   1 ' in told  # the one of 60
    assert '2.4 to 2.52 (median 2.46)' in told
    assert '64x48' in told
    assert 'h264' in told
    assert told.splitlines()[-1] == 'Training goes on with all examples.'
    assert check(root, '--decode')[0] == 0


def test_bad_files_are_named_with_their_cause(check, root):
    (root / 'train' / 'run' / 'empty.mp4').touch()
    (root / 'train' / 'run' / 'folder.mp4').mkdir()
    write_sound(root / 'validation' / 'wave' / 'sound.mkv')
    code, told, rows = check(root)
    assert code == 1
    assert rows == [
        ['train', 'train/run/empty.mp4', 'is empty (0 bytes)'],
        ['train', 'train/run/folder.mp4', 'is a folder'],
        ['validation', 'validation/wave/sound.mkv', 'no video in it (audio only)'],
    ]
    for word in ('empty.mp4', 'sound.mkv', 'audio only', '3 found (2 in train, 1 in validation)'):
        assert word in told
    last = told.splitlines()[-1]
    assert last.startswith(
        "Training would stop: 2 of 6 examples of the split 'train' are bad, more than data.max_bad=0.05 allows"
    )
    assert '--config.data.max_bad=0.34 ' in last
    _, told, _ = check(root, '--config.data.max_bad=0.5')
    assert (
        'Training goes on with 4 of 6 examples of train, 2 of 3 examples of validation; '
        "data.on_bad_video='skip' leaves the others out"
    ) in told.splitlines()[-1]
    code, told, _ = check(root, '--config.data.on_bad_video=error')
    assert code == 1
    assert "are bad, data.on_bad_video='error' allows none" in told.splitlines()[-1]


def test_damage_in_the_middle_is_found_by_decoding(check, root):
    path = root / 'train' / 'wave' / '2.mp4'
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 3000] = b'\xff' * 3000
    path.write_bytes(content)
    assert check(root)[0] == 0
    code, told, rows = check(root, '--decode')
    assert code == 1
    ((split, name, cause),) = rows
    assert (split, name) == ('train', 'train/wave/2.mp4')
    assert cause.startswith('damaged: ')
    assert 'of 62 frames can be decoded, then: ' in cause
    assert 'as far as they can be decoded' in told


def test_duplicates_across_splits(check, root):
    shutil.copy(root / 'train' / 'run' / '0.mp4', root / 'validation' / 'run' / 'copy.mp4')
    (root / 'validation' / 'wave' / 'link.mp4').symlink_to(root / 'train' / 'wave' / '3.mp4')
    # As large as another, yet different: no duplicate. Twice in one split: none either.
    other = bytearray((root / 'train' / 'run' / '1.mp4').read_bytes())
    other[-1] ^= 1
    (root / 'validation' / 'wave' / 'other.mp4').write_bytes(other)
    shutil.copy(root / 'train' / 'run' / '0.mp4', root / 'train' / 'run' / 'again.mp4')
    code, told, rows = check(root)
    assert code == 1
    assert told.splitlines()[-1] == (
        'Training goes on with all examples; but 2 of 5 validation examples are in train as well.'
    )
    assert rows == [
        ['validation', 'validation/run/copy.mp4', 'the same as train/run/0.mp4 of train'],
        ['validation', 'validation/wave/link.mp4', 'the same as train/wave/3.mp4 of train'],
    ]


def test_parts_of_one_video_in_two_splits(check, root):
    shutil.copy(root / 'train/run/0.mp4', root / 'copy.mp4')
    (root / 'list.csv').write_text(
        'path,label,start,end,split\n'
        'train/run/0.mp4,run,0,1,train\n'
        'train/run/0.mp4,run,1.5,,train\n'
        'train/wave/2.mp4,wave,0,1,train\n'
        'train/wave/3.mp4,wave,,,train\n'
        'train/run/0.mp4,run,1,1.5,validation\n'
        'train/run/0.mp4,run,0,1,validation\n'
        'train/run/0.mp4,run,0.9,1.2,validation\n'
        'copy.mp4,run,2,2.2,validation\n'
        'train/wave/2.mp4,wave,1,2,validation\n'
        'train/wave/3.mp4,wave,1,,validation\n'
    )
    code, told, rows = check(root, f'--config.data.csv={root / "list.csv"}')
    assert code == 1
    assert rows == [
        ['validation', 'train/run/0.mp4#t=0,1', 'the same as train/run/0.mp4#t=0,1 of train'],
        ['validation', 'train/run/0.mp4#t=0.9,1.2', 'overlaps train/run/0.mp4#t=0,1 of train'],
        ['validation', 'copy.mp4#t=2,2.2', 'overlaps train/run/0.mp4#t=1.5 of train'],
        ['validation', 'train/wave/3.mp4#t=1', 'overlaps train/wave/3.mp4 of train'],
    ]
    assert '1 of the files have parts in several splits, not the same ones: 2.mp4' in told.splitlines()
    assert told.splitlines()[-1] == (
        'Training goes on with all examples; but 4 of 6 validation examples are in train as well (3 of them in part).'
    )


def test_parts_that_only_touch_are_no_duplicates(check, root):
    (root / 'list.csv').write_text(
        'path,label,start_frame,stop_frame,split\n'
        'train/run/0.mp4,run,0,20,train\ntrain/wave/2.mp4,wave,30,40,train\n'
        'train/run/0.mp4,run,20,40,validation\ntrain/wave/2.mp4,wave,10,31,validation\n'
    )
    code, told, rows = check(root, f'--config.data.csv={root / "list.csv"}')
    assert code == 1
    assert rows == [
        ['validation', 'train/wave/2.mp4#frames=10,31', 'overlaps train/wave/2.mp4#frames=30,40 of train']
    ]
    assert 'not the same ones: 0.mp4' in told


def test_classes_tell_their_head(check, root, tmp_path):
    (root / 'list.csv').write_text(
        'path,noun,verb,split\n'
        'train/run/0.mp4,0,1,train\ntrain/run/1.mp4,1,0,train\nvalidation/run/4.mp4,1,1,validation\n'
    )
    options = ('--config.data.heads=noun,verb', '--config.data.num_classes=(2,2)')
    best = '--config.checkpoint.best_metric=action_top_1'
    code, told, rows = check(root, f'--config.data.csv={root / "list.csv"}', *options, best)
    assert code == 1
    assert rows == [['validation', f'{head}: 0', 'a class without examples'] for head in ('noun', 'verb')]
    assert [row[0] for row in classes(tmp_path)] == ['class', 'noun: 0', 'noun: 1', 'verb: 0', 'verb: 1']
    assert 'validation has no example of noun: 0, verb: 0' in told


def test_classes_without_examples(check, root, tmp_path):
    (root / 'validation' / 'wave' / '5.mp4').unlink()
    (root / 'train' / 'jump').mkdir()
    code, told, rows = check(root)
    assert code == 1
    assert 'validation has no example of jump, wave' in told
    assert told.splitlines()[-1] == (
        'Training goes on with all examples; but 1 class has no example in train, and 2 classes have no example in '
        'validation.'
    )
    assert [row for row in rows if row[2] == 'a class without examples'] == [
        ['train', 'jump', 'a class without examples'],
        ['validation', 'jump', 'a class without examples'],
        ['validation', 'wave', 'a class without examples'],
    ]
    assert classes(tmp_path)[1:] == [['jump', '0', '0'], ['run', '2', '1'], ['wave', '2', '0']]


def test_a_label_out_of_range_and_none(check, root):
    (root / 'list.csv').write_text(
        'path,label,split\n'
        'train/run/0.mp4,0,train\ntrain/run/1.mp4,1,train\ntrain/wave/2.mp4,7,train\ntrain/wave/3.mp4,,train\n'
        'validation/run/4.mp4,0,validation\nvalidation/wave/5.mp4,1,validation\n'
    )
    code, _, rows = check(root, f'--config.data.csv={root / "list.csv"}', '--config.data.num_classes=(2,)')
    assert code == 1
    for (split, name, _), line in zip(rows, (4, 5), strict=True):
        assert split == 'train'
        assert f'line {line}' in name
    assert '7' in rows[0][2]


def test_many_bad_files_and_classes(check, root, tmp_path):
    for number in range(50):
        folder = root / 'train' / f'class{number:02}'
        folder.mkdir()
        (folder / 'x.mp4').write_text('no video')
    code, told, rows = check(root)
    assert code == 1
    assert len(classes(tmp_path)) == 53
    assert '… 42 more …' in told
    bad = [row for row in rows if row[1].endswith('.mp4')]
    assert len(bad) == 50
    assert told.count('x.mp4') == 20
    assert '50 found (50 in train), 30 more than shown' in told
    assert 'validation has no example of class00, class01, class02 and 47 more' in told


def test_another_number_of_classes_is_a_mistake(check, root):
    code, told, rows = check(root, '--config.data.num_classes=(3,)')
    assert (code, rows) == (2, [])
    assert told.startswith("error: data.num_classes=(3,) but the 'train' split has 2 classes: set ")


def test_every_source_can_be_checked(check, tmp_path):
    sizes = ('--config.data.moving_digits.train_size=80', '--config.data.moving_digits.test_size=16')
    code, told, rows = check(None, *sizes, '--decode', config=DIGITS)
    assert (code, rows) == (0, [])
    assert classes(tmp_path)[:2] == [
        ['class', 'train', 'validation', 'test', 'test_shuffled', 'test_still'],
        ['right', '10', '64', '2', '2', '2'],
    ]
    assert 'seconds' not in told


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        (['--config.data.root=/nowhere'], "error: config.data.root='/nowhere' is not a folder"),
        ([], 'error: config.data.root is not set'),
        (['--config.data.rot=x'], 'error: config.data.rot is not a key'),
        (['--output=list.txt'], 'error: --output=list.txt: write FILE.csv'),
    ],
)
def test_mistakes_are_told_in_a_line(capsys, tmp_path, monkeypatch, options, told):
    monkeypatch.chdir(tmp_path)
    assert main([MY_VIDEOS, *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(told)
    assert error.count('\n') == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_option(capsys):
    with pytest.raises(SystemExit) as caught:
        main([MY_VIDEOS, '--decoed'])
    assert caught.value.code == 2
    assert "'--decoed' is no option" in capsys.readouterr().err
