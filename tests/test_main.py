"""The command line: what it accepts, and the one line it answers a mistake with."""

import errno
import json
import pathlib
import signal
import socket
import subprocess
import sys

import pytest

from tiny import DIGITS, SETTINGS, options
from vivit_jax import main as command
from vivit_jax.checkpoint import NotSaved
from vivit_jax.config import load
from vivit_jax.data.workers import WorkerLost
from vivit_jax.lock import Lost

ROOT = pathlib.Path(__file__).parent.parent
KINETICS = str(ROOT / 'configs' / 'kinetics400_fe.py')
TINY = options(SETTINGS)


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['--config.model.widht=3'], 'config.model.widht is not a key; did you mean config.model.width?'),
        (['--config.widht=3'], 'config.widht is not a key; did you mean config.model.width?'),
        (['--config.model.width=wide'], "config.model.width='wide': must be int, as 768"),
        (
            ['--config.model.attention=factorized_encoder'],
            "model.attention='factorized_encoder': choose one of",
        ),
        (['--config.data.source=digits'], "data.source='digits': choose one of video_files, frame_folders"),
        (['--config.data.train_split=trian'], "no split 'trian': choose one of train"),
        (['--config.data.num_classes=9'], "data.num_classes=(9,) but the 'train' split has 8 classes"),
        (
            ['--config.model.tubelet=5,8,8'],
            'tubelet (5, 8, 8) (t, h, w) does not divide the clip (16, 32, 32)',
        ),
        (['--config.training.epochs=0.001'], 'is not one step'),
        (['--config.optimizer.warmup_steps=99999'], 'must be shorter than the 1000 steps'),
        (['--config.training.batch_size=0'], 'training.batch_size=0: must be at least 1'),
        (['--config.training.batch_size=12'], 'training.batch_size=12 cannot be split evenly over 8 devices'),
        (['--config.training.log_every=0'], 'training.log_every=0: must be at least 1'),
        (['--config.checkpoint.every_steps=0'], 'checkpoint.every_steps=0: must be at least 1'),
        (['--config.evaluation.temporal_views=0'], 'evaluation.temporal_views=0: must be at least 1'),
        (['--config.evaluation.spatial_views=2'], 'evaluation.spatial_views=2: choose one of 1, 3'),
        (['--config.evaluation.average=mean'], "evaluation.average='mean': choose one of logits, softmax"),
        (['--config.data.short=cut'], "data.short='cut': choose one of repeat_last, loop"),
        (['--config.data.crop=32'], "config.data.crop='32': must be 2 values, as (224, 224)"),
        (['--config.data.test_splits=tset'], "no split 'tset': choose one of train"),
        (
            ['--config.data.heads=noun,verb', '--config.data.num_classes=()'],
            "does not go with data.heads=('noun'",
        ),
        (['--config.training.ema_decay=1'], 'training.ema_decay=1.0: must be in [0, 1)'),
        (
            ['--config.training.loss=sigmoid', '--config.evaluation.average=softmax'],
            "evaluation.average='softmax' does not go with training.loss='sigmoid'",
        ),
        (['--config.sharding.fsdp=3'], 'sharding.fsdp=3: must divide the number of devices, 8'),
        (['--config.optimizer.name=lion'], "optimizer 'lion' is none of"),
        (
            ['--config.training.loss=hinge'],
            "training.loss='hinge': choose one of softmax, softmax_twice, sigmoid",
        ),
        (['--distributed=here'], "--distributed='here': write HOST:PORT,N,I"),
        (['--distributed=host:1234,2,2'], '2 processes are numbered 0 to 1, this one 2'),
        (['--distributed'], '--distributed found no cluster: no TPU VM, Slurm, Open MPI or Kubernetes tells'),
        (['--mode=eval'], 'holds no checkpoints: train first'),
    ],
)
def test_a_mistake_gets_one_line(arguments, expected, capsys, tmp_path):
    code = command.main([f'--config={DIGITS}', f'--workdir={tmp_path / "run"}', *arguments])
    captured = capsys.readouterr()
    assert code == 2
    assert captured.err.startswith('error: ')
    assert captured.err.count('\n') == 1
    assert expected in captured.err


def test_a_config_without_its_data_says_what_to_get(capsys, tmp_path):
    assert command.main([f'--config={KINETICS}', f'--workdir={tmp_path / "run"}']) == 2
    line = capsys.readouterr().err
    assert line.count('\n') == 1
    assert '--config.data.root=' in line
    assert 'Kinetics-400' in line


def test_a_wrong_path_is_answered_with_the_nearest_right_one(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'runs' / 'digits' / 'checkpoints').mkdir(parents=True)
    (tmp_path / 'runs' / 'digits' / 'config.json').write_text('{}')
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'my_videos.py').write_text('')
    for arguments, expected in (
        (
            [f'--config={DIGITS}', '--mode=eval', '--workdir=runs/digit'],
            'runs/digit holds no checkpoints: train first, or choose another --workdir; did you mean runs/digits?',
        ),
        (
            [f'--config={DIGITS}', '--config.init_from.path=runs/digit'],
            "init_from.path='runs/digit': runs/digit: does not exist; did you mean runs/digits?",
        ),
        (
            [f'--config={DIGITS}', '--config.init_from.path=runs/digits'],
            "init_from.path='runs/digits': runs/digits: holds no checkpoint yet",
        ),
        (['--config=my_video'], "config file 'my_video' does not exist; did you mean configs/my_videos.py?"),
        (['--config=runs/digits'], "config 'runs/digits' is a folder; did you mean runs/digits/config.json?"),
    ):
        assert command.main(arguments) == 2
        assert capsys.readouterr().err == f'error: {expected}\n'


def test_sizes_are_arguments(capsys, tmp_path):
    assert command.main([f'--config={KINETICS}:X/16x2']) == 2
    assert "size 'X/16x2' of config 'kinetics400_fe': write SIZE/PATCHxTUBELET" in capsys.readouterr().err


@pytest.mark.parametrize('arguments', [[], ['--config'], ['--mode=fit'], ['--confg=x'], ['--config.a.b']])
def test_options_are_checked(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        command.main([*arguments, *(['--config=x'] if arguments not in ([], ['--config']) else [])])
    assert exit_info.value.code == 2
    assert 'error: ' in capsys.readouterr().err


def test_help_has_examples():
    result = subprocess.run(
        [sys.executable, '-m', 'vivit_jax.main', '--help'], capture_output=True, text=True
    )
    assert result.returncode == 0
    for word in ('examples:', 'modes:', 'exit codes:', '--config.KEY=VALUE', '--workdir'):
        assert word in result.stdout


def test_the_default_workdir_tells_what_was_overridden():
    assert command.default_workdir(DIGITS, load(DIGITS)) == 'runs/moving_digits'
    changed = load(
        DIGITS, {'model.tubelet': '2,8,8', 'model.attention': 'spatio_temporal', 'data.threads': '3'}
    )
    assert command.default_workdir(DIGITS, changed) == (
        'runs/moving_digits-attention=spatio_temporal-tubelet=2_8_8'
    )
    large = f'{KINETICS}:L/16x2'
    assert command.default_workdir(large, load(large, {'data.root': '/data'})) == 'runs/kinetics400_fe_L16x2'


def test_dry_run_needs_no_data(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ['--config.data.source=video_files', '--config.data.channels=3', '--mode=dry_run']
    assert command.main([f'--config={DIGITS}', *TINY, *arguments]) == 0
    output = capsys.readouterr().out
    assert 'compiled in' in output
    assert '  memory    predicted ' in output
    assert 'the whole run: ' not in output
    assert '; how many examples there are is not known' in output
    assert 'clips/s' in output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_command_trains_evaluates_and_repeats_its_evaluation(tmp_path):
    """As a user runs it: from another directory, in a process of its own."""
    run = [sys.executable, '-m', 'vivit_jax.main', f'--config={DIGITS}', *TINY]
    first = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    folder = tmp_path / 'runs'
    (folder,) = folder.iterdir()
    assert folder.name.startswith('moving_digits-')
    for name in (
        'config.json',
        'metrics.jsonl',
        'run.json',
        'eval.json',
        'predictions.csv',
        'checkpoints',
        'report.html',
    ):
        assert (folder / name).exists(), name
    assert json.loads((folder / 'run.json').read_text())['command'].startswith(
        'python -m vivit_jax.main --conf'
    )
    report = json.loads((folder / 'eval.json').read_text())
    assert list(report) == ['test', 'test_shuffled', 'test_still']
    for metrics in report.values():
        assert metrics['count'] == 20
        assert {'top_1', 'top_5', 'loss', 'mean_per_class', 'per_class'} <= metrics.keys()
    assert 'clips/s' in first.stdout
    assert 'data wait' in first.stdout
    assert 'ETA' in first.stdout
    predictions = (folder / 'predictions.csv').read_text()
    assert predictions.splitlines()[0] == 'split,index,name,label,top_5,scores'
    assert len(predictions.splitlines()) == 1 + 3 * 20

    for name in ('eval.json', 'predictions.csv', 'report.html'):
        (folder / name).unlink()
    subprocess.run([*run, '--mode=eval'], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads((folder / 'eval.json').read_text()) == report
    assert (folder / 'predictions.csv').read_text() == predictions
    assert (folder / 'report.html').exists()


def test_others_that_do_not_come_are_named(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv('VIVIT_JAX_JOIN_SECONDS', '1')
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    for process, line in (
        (0, 'processes 1, 2 of 3 did not come within 1 s'),
        (1, f'process 0 cannot be reached at 127.0.0.1:{port} within 1 s (Connection refused)'),
    ):
        arguments = [f'--workdir={tmp_path / "run"}', f'--distributed=127.0.0.1:{port},3,{process}']
        assert command.main([f'--config={DIGITS}', *arguments]) == 75
        assert capsys.readouterr().err == f'{line}; the same command, started on all, goes on\n'
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken_is_a_mistake(capsys, tmp_path):
    with socket.create_server(('127.0.0.1', 0)) as taken:
        where = f'127.0.0.1:{taken.getsockname()[1]}'
        assert (
            command.main([f'--config={DIGITS}', f'--workdir={tmp_path}', f'--distributed={where},2,0']) == 2
        )
    line = capsys.readouterr().err
    assert line.startswith('error: process 0 cannot listen at port ')
    assert line.endswith(': another program listens there already; choose another port\n')


@pytest.mark.parametrize('error', [NotSaved('full'), Lost('taken over'), WorkerLost('killed')])
def test_what_gives_way_outside_is_one_line(error, monkeypatch, capsys, tmp_path):
    from vivit_jax import train

    def give_way(config, workdir):
        raise error

    monkeypatch.setattr(train, 'train', give_way)
    assert command.main([f'--config={DIGITS}', f'--workdir={tmp_path}']) == 75
    assert capsys.readouterr().err == f'{error}\n'


def test_processes_that_jax_found_untold_are_refused(monkeypatch, capsys, tmp_path):
    import jax

    monkeypatch.setattr(jax, 'process_count', lambda: 4)
    assert command.main([f'--config={DIGITS}', f'--workdir={tmp_path}']) == 2
    assert capsys.readouterr().err == 'error: this is one of 4 processes: start each with --distributed\n'


def test_memory_that_runs_out_is_said_in_words(monkeypatch, capsys, tmp_path):
    import jax

    from vivit_jax import train

    def exhaust(config, workdir):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 85899345920 bytes.')

    monkeypatch.setattr(train, 'train', exhaust)
    assert command.main([f'--config={DIGITS}', f'--workdir={tmp_path}']) == 1
    line = capsys.readouterr().err
    assert line.count('\n') == 1
    for word in ('out of device memory', 'training.batch_size=32', "model.dtype='float32'", 'sharding.fsdp'):
        assert word in line


def test_an_interrupted_evaluation_ends_in_one_line(monkeypatch, capsys, tmp_path):
    from vivit_jax import evaluate

    def interrupt(config, workdir, afterwards):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, 'evaluate', interrupt)
    assert command.main([f'--config={DIGITS}', f'--workdir={tmp_path}', '--mode=eval']) == 130
    assert capsys.readouterr().err.startswith('stopped by SIGINT')


@pytest.mark.parametrize(
    ('error', 'code'),
    [
        (OSError(errno.ESTALE, 'Stale file handle', 'runs/x'), 75),
        (OSError(errno.EIO, 'Input/output error', 'runs/x'), 75),
        (ConnectionRefusedError(errno.ECONNREFUSED, 'Connection refused'), 75),
        (FileNotFoundError(errno.ENOENT, 'No such file or directory', 'runs/x'), 2),
        (PermissionError(errno.EACCES, 'Permission denied', 'runs/x'), 2),
        (OSError('a bucket that is not there'), 2),
    ],
)
def test_what_gives_way_outside_is_no_mistake(monkeypatch, capsys, tmp_path, error, code):
    from vivit_jax import train

    def fail(config, workdir):
        raise error

    monkeypatch.setattr(train, 'train', fail)
    assert command.main([f'--config={DIGITS}', f'--workdir={tmp_path}']) == code
    line = capsys.readouterr().err
    assert line.count('\n') == 1
    assert ('the same command goes on when that is mended' in line) == (code == 75)


def test_a_terminate_signal_ends_an_evaluation_in_one_line(monkeypatch, capsys, tmp_path):
    from vivit_jax import evaluate

    def told_to_end(config, workdir, afterwards):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(evaluate, 'evaluate', told_to_end)
    assert command.main([f'--config={DIGITS}', f'--workdir={tmp_path}', '--mode=eval']) == 143
    assert capsys.readouterr().err.startswith('stopped by SIGTERM')


@pytest.mark.slow
def test_a_run_goes_on_when_nobody_listens(tmp_path):
    command = [sys.executable, '-m', 'vivit_jax.main', f'--config={DIGITS}', f'--workdir={tmp_path / "run"}']
    changes = SETTINGS | {'training.steps': '20', 'training.log_every': '1'}
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE}
    with subprocess.Popen([*command, *options(changes)], **pipes, cwd=ROOT) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read().decode() == ''
        assert process.wait(300) == 0
    assert (tmp_path / 'run' / 'report.html').is_file()
