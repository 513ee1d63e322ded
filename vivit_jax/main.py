"""Train or evaluate a video transformer.

examples:
  python -m vivit_jax.main --config=configs/moving_digits.py
  python -m vivit_jax.main --config=configs/moving_digits.py --config.model.attention=spatio_temporal
  python -m vivit_jax.main --config=configs/kinetics400_fe.py:L/16x2 --config.data.root=/data/k400 --workdir=runs/l
  python -m vivit_jax.main --config=configs/moving_digits.py --mode=eval
  python -m vivit_jax.main --config=configs/kinetics400_fe.py --mode=dry_run
  python -m vivit_jax.main --config=configs/kinetics400_fe.py --workdir=/nfs/runs/fe --distributed

Every key of the configuration (vivit_jax/config.py) is an option, --config.KEY=VALUE.

modes:
  train     train, and evaluate at the end; the same command goes on where an earlier one stopped
  eval      evaluate the best (else the latest) checkpoint of the workdir again
  dry_run   try it on random clips: memory, speed, the whole run's time; needs no data, writes nothing

exit codes:
  0         done
  1         the loss became NaN or infinite, or memory ran out
  2         a mistake in the command, the configuration or the data: one line on stderr says which
  75        something outside gave way, as another process or the disk: the same command goes on when that is mended
  129, 130, 143  stopped: the terminal was closed, Ctrl-C, a terminate signal; while training after saving: the same
            command goes on

Compiled programs are kept in the user's cache folder, for a quicker next start; VIVIT_JAX_COMPILE_CACHE=0 keeps none,
JAX_COMPILATION_CACHE_DIR=FOLDER keeps them there. VIVIT_JAX_TRACEBACK=1 shows where an error arose. Several processes
wait for each other for VIVIT_JAX_JOIN_SECONDS=300 at the start.
"""

import argparse
import errno
import importlib.metadata
import os
import re
import signal
import sys
import traceback
import warnings
import zlib
from collections.abc import Sequence

from ml_collections import ConfigDict

import vivit_jax
from vivit_jax import command_line, distributed, help_text, meeting, xla_preset
from vivit_jax import config as config_module
from vivit_jax.signals import Interrupted, interruptible
from vivit_jax.telling.printable import printable, warning_line
from vivit_jax.watchdog import GAVE_WAY

MODES = ('train', 'eval', 'dry_run')
# Settings that may differ from one process of a run to another: where its data is, and how it reads them.
OF_A_MACHINE = ('data.root', 'data.csv', 'data.threads', 'data.workers', 'data.prefetch', 'data.cache')
# No mistakes: the disk is full, broken or far away, the network is gone, too much is open. (No system has them all.)
OUTSIDE = [
    getattr(errno, name, None)
    for names in (
        'ENOSPC EDQUOT EIO EROFS ENODEV ESTALE EREMOTEIO EMFILE ENFILE ENOMEM EAGAIN',
        'ETIMEDOUT ECONNREFUSED ECONNRESET ECONNABORTED ENOTCONN EHOSTUNREACH EHOSTDOWN ENETUNREACH ENETDOWN',
    )
    for name in names.split()
]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    # What is worth a warning is told in a line, as an error is.
    warnings.formatwarning = warning_line
    parsed, overrides = _parse(sys.argv[1:] if arguments is None else list(arguments))
    try:
        code, line = _outcome(parsed, overrides)
    except BaseException as error:
        # A fault of ours is told with its trace, unless another process turns out to be the cause.
        if not distributed.several():
            raise
        code = distributed.conclude(1, f'{type(error).__name__}: {error}')
        traceback.print_exc()
        return code
    code = distributed.conclude(code, line)
    if line:
        print(printable(line if code > 2 else f'error: {line}'), file=sys.stderr)
    return code


def _outcome(parsed: argparse.Namespace, overrides: dict[str, str]) -> tuple[int, str]:
    """Does what the command asks for; returns the exit code, and the line that says why where it is not 0."""
    traced = os.environ.get('VIVIT_JAX_TRACEBACK')
    try:
        config = config_module.load(parsed.config, overrides)
        workdir = parsed.workdir or default_workdir(parsed.config, config, parsed.mode)
        if told := xla_preset.apply(parsed.xla_preset):
            print(told)
        if parsed.deterministic:
            xla_preset.make_deterministic()
        if parsed.distributed:
            distributed.join(parsed.distributed, _common(parsed, config, workdir))
        with interruptible():
            return _run(parsed.mode, config, workdir)
    except KeyboardInterrupt as error:
        signum = error.signum if isinstance(error, Interrupted) else signal.SIGINT
        name = signal.Signals(signum).name
        return 128 + signum, f'stopped by {name}; a run goes on from its last checkpoint by the same command'
    except meeting.Absent as error:
        return GAVE_WAY, f'{error}; the same command, started on all, goes on'
    except (ValueError, OSError, ImportError) as error:
        if traced or '\n' in str(error):
            raise
        if isinstance(error, OSError) and error.errno and error.errno in OUTSIDE:
            return GAVE_WAY, f'{error}; the same command goes on when that is mended'
        return 2, str(error)


def _common(parsed: argparse.Namespace, config: ConfigDict, workdir: str) -> dict[str, str]:
    """Returns what must be the same in all processes of a run, for people to read."""
    return {
        'vivit_jax': vivit_jax.__version__,
        'jax': importlib.metadata.version('jax'),
        '--mode': parsed.mode,
        '--workdir': workdir,
        '--xla-preset': parsed.xla_preset,
        '--deterministic': str(parsed.deterministic),
        **{
            f'config.{key}': str(value)
            for key, value in config_module.flatten(config).items()
            if key not in OF_A_MACHINE
        },
    }


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Splits the command line into its three options and the configuration's overrides."""
    parser = help_text.parser(__doc__, prog='python -m vivit_jax.main')
    parser.add_argument('--config', required=True, metavar='FILE[:ARGUMENT]', help='a file of configs/')
    parser.add_argument('--workdir', metavar='DIR', help='folder of the run; default: runs/NAME-OVERRIDES')
    parser.add_argument(
        '--distributed',
        nargs='?',
        const='auto',
        metavar='HOST:PORT,N,I',
        help='train as one of several processes, with the same command on each; alone it asks the TPU VM, Slurm, '
        'Open MPI or Kubernetes about the others. Elsewhere tell where process 0 listens, how many there are and '
        'which this is (from 0): --distributed=10.0.0.1:1234,2,0 and, on the other machine, '
        '--distributed=10.0.0.1:1234,2,1. See docs/pods.md',
    )
    parser.add_argument('--mode', choices=MODES, default='train', help='default: train')
    parser.add_argument(
        '--xla-preset',
        choices=tuple(xla_preset.PRESETS),
        default='none',
        help="flags for XLA's compiler, beside those of XLA_FLAGS; default: none. gpu: for NVIDIA GPUs, not measured "
        'yet on one; tools/benchmark_xla.py measures them',
    )
    parser.add_argument(
        '--deterministic',
        action='store_true',
        help='on GPUs: the same bits from the same command on the same machine, which CPUs and TPUs give anyhow; '
        'slower, as kernels are not chosen by timing them and sums keep their order (not tried on a GPU yet)',
    )
    parsed, rest = parser.parse_known_args(arguments)
    return parsed, command_line.overrides(parser, rest)


def default_workdir(spec: str, config: ConfigDict, mode: str = 'train') -> str:
    """Returns runs/NAME, with what was overridden after it, so that runs with other settings do not meet.

    An evaluation may compute in another type than the training did.
    """
    changed = config_module.differences(config_module.load(spec), config)
    parts = [
        f'{key.rpartition(".")[2]}=' + re.sub(r'[^\w.]+', '_', str(value)).strip('_')
        for key, (_, value) in changed.items()
        if key not in config_module.FREE_TO_CHANGE and (mode, key) != ('eval', 'model.dtype')
    ]
    name = '-'.join([config_module.load(spec).name, *parts])
    # File systems end at 255 bytes.
    return f'runs/{name}' if len(name) <= 200 else f'runs/{name[:190]}-{zlib.crc32(name.encode()):08x}'


def _run(mode: str, config: ConfigDict, workdir: str) -> tuple[int, str]:
    """Trains, evaluates or tries; returns as `_outcome` does."""
    # Not before the command line is understood: importing jax takes a while.
    import jax

    from vivit_jax import closing, compile_cache, dry_run, evaluate, host_memory, lock, train
    from vivit_jax.checkpoint import NotSaved
    from vivit_jax.data.workers import WorkerLost
    from vivit_jax.signals import Stopped

    compile_cache.enable()
    host_memory.keep()
    distributed.check()
    if xla_preset.is_deterministic() and jax.process_index() == 0:
        print(xla_preset.about_determinism(jax.default_backend()))
    try:
        if mode == 'dry_run':
            dry_run.dry_run(config)
        elif mode == 'eval':
            evaluate.evaluate(config, workdir, afterwards=closing.report_evaluation)
        else:
            train.train(config, workdir)
    except Stopped as stop:
        return stop.exit_code, str(stop)
    except train.NonFiniteLoss as error:
        return 1, str(error)
    except (NotSaved, WorkerLost, lock.Lost) as error:
        return GAVE_WAY, str(error)
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        return (
            1,
            f'out of device memory with training.batch_size={config.training.batch_size}, '
            f'evaluation.batch_size={config.evaluation.batch_size}, clips of {config.data.frames} x '
            f"{tuple(config.data.crop)} and model.dtype='{config.model.dtype}'. Try a smaller batch, "
            "training.accumulate=4, model.remat=block (on CPUs with model.scan_layers=true), model.dtype='bfloat16', "
            'fewer frames, larger tubelets, sharding.fsdp over several devices, or '
            'model.attention=factorised_encoder in place of spatio_temporal',
        )
    return 0, ''


def _leave(code: int) -> None:
    """Ends the process: at once where it was interrupted, as threads left behind can crash the interpreter.

    So it does as one of several: the others have been waited for, and jax would wait for them once more.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if code > 128 or distributed.several():
        os._exit(code)
    sys.exit(code)


if __name__ == '__main__':
    _leave(main())
