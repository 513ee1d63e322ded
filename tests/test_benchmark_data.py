import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from conftest import load_tool

from videos import write_video
from vivit_jax import config as config_module
from vivit_jax.data import transforms
from vivit_jax.data.files import decoding

TOOL = pathlib.Path(__file__).parent.parent / 'tools' / 'benchmark_data.py'
sys.path.append(str(TOOL.parent))  # where programs of tools/ find what they share

from benchmarking import readers  # noqa: E402

B_FRAMES = {'x264-params': 'keyint=20:bframes=3:b-adapt=0:scenecut=0'}
SMALL = {'data.frames': '4', 'data.short_side': '40', 'data.crop': '(32, 36)'}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('benchmark')
    (folder / 'inside').mkdir()
    write_video(folder / 'a.mp4', options=B_FRAMES)
    write_video(folder / 'inside' / 'b.avi', 'mpeg4', {'g': '12', 'bf': '2'})
    (folder / 'notes.txt').write_text('no video')
    return folder


@pytest.fixture(scope='module')
def tool():
    return load_tool('benchmark_data')


@pytest.fixture
def config(tool):
    return config_module.load(str(tool.BASE), tool.OF_VIDEOS | SMALL)


def test_the_plain_loop_ends_with_the_pixels_of_the_transforms(tool, config, folder):
    path = str(folder / 'a.mp4')
    found = decoding.probe(path)
    indices = np.array([22, 24, 26, 28])
    frames = decoding.read_frames(path, found, indices)
    np.testing.assert_array_equal(readers.plain_loop(path, found, indices), frames)
    np.testing.assert_array_equal(readers.from_start(path, found, indices), frames)
    mirrored = 0
    for seed in range(20):
        expected = transforms.apply(readers.geometry(config), frames, np.random.default_rng(seed))
        np.testing.assert_array_equal(
            readers.plain_pixels(frames, config, np.random.default_rng(seed)), expected
        )
        mirrored += np.random.default_rng(seed).random() < 0.5
    assert 0 < mirrored < 20


def test_what_is_no_video_is_said_and_left_out(tool, folder, capsys):
    source = tool._videos(folder)
    assert [pathlib.Path(source.path(i)).name for i in range(len(source))] == ['a.mp4', 'b.avi']
    assert source[1].read(np.array([3, 3])).shape == (2, 48, 64, 3)
    assert (
        capsys.readouterr().err
        == f'left out: {folder / "notes.txt"}: Invalid data found when processing input\n'
    )


def test_readers_take_turns(tool):
    calls = []
    variants = {name: lambda clip, seed, name=name: calls.append((name, clip, seed)) for name in 'abc'}
    seconds = readers.take_turns(variants, ['x', 'y', 'z'], 1)
    assert [name for name, _, _ in calls] == list('bcacababc')
    assert [clip for _, clip, _ in calls] == list('xxxyyyzzz')
    assert {name: len(values) for name, values in seconds.items()} == {'a': 1, 'b': 1, 'c': 1}


def run(*options):
    command = [sys.executable, str(TOOL), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_the_command(folder, tmp_path):
    options = [f'--config.{key}={value}' for key, value in SMALL.items()]
    output = tmp_path / 'figures.json'
    done = run(
        *(f'--videos={folder}', '--clips=4', '--rounds=2', '--threads=1', '--workers=0', f'--json={output}'),
        *options,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(output.read_text())
    rows = {(row['what'], row['reader']): row for row in report['readers']}
    for what in ('clips', 'frames'):
        assert rows[what, 'plain PyAV loop']['of_plain'] == 1
        assert (rows[what, 'vivit_jax']['right'], rows[what, 'vivit_jax']['clips']) == (4, 4)
        assert rows[what, 'vivit_jax']['clips_per_cpu_second'] > 0
    assert list(report['stages'])[:4] == ['open', 'seek and decode', 'convert', 'resize']
    (in_all,) = report['in_all']
    assert (in_all['workers'], in_all['threads']) == (0, 1)
    assert in_all['clips_per_second'] > 0
    # Read and waiting 8; put together, waiting, on the device and on the way 5 times 8 clips; and one being made.
    frame = 48 * 64 * 3 * (1 + (40 / 48 * 1.33) ** 2)
    assert in_all['estimate'] == pytest.approx((48 * 4 * 32 * 36 * 3 + 4 * frame) / 2**20)
    assert '| clips | vivit_jax |' in done.stdout
    tables = [line for line in done.stdout.splitlines() if line.startswith('|')]
    assert {line.count('|') for line in tables} == {8, 3}


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--videos=NOWHERE'], 'error: --videos=NOWHERE is not a folder'),
        (['--videos=EMPTY'], 'none of its 0 files is a video'),
        (['--videos=EMPTY', '--nonsense'], "'--nonsense' is no option; keys of the configuration are"),
        (['--videos=EMPTY', '--clips=0'], '--clips, --rounds and --threads must be at least 1'),
        (
            ['--videos=EMPTY', '--threads=a'],
            "argument --threads: 'a' must be whole numbers with commas between",
        ),
        (
            ['--videos=EMPTY', '--workers='],
            "argument --workers: '' must be whole numbers with commas between",
        ),
        (['--videos=EMPTY', '--json=/no/x.json'], 'error: --json=/no/x.json: /no is not a folder'),
        (['--videos=EMPTY', '--json=EMPTY'], 'error: --json=EMPTY cannot be written'),
        (['--config=EMPTY', '--threads=1'], 'error: '),
    ],
)
def test_mistakes(tool, tmp_path, monkeypatch, capsys, options, message):
    options = [option.replace('EMPTY', str(tmp_path)) for option in options]
    monkeypatch.setattr(sys, 'argv', ['benchmark_data.py', *options])
    with pytest.raises(SystemExit) as stopped:
        tool.main()
    said = str(stopped.value.code) if isinstance(stopped.value.code, str) else capsys.readouterr().err
    assert message.replace('EMPTY', str(tmp_path)) in said
