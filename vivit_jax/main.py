"""Train or evaluate a video transformer.

examples:
  python -m vivit_jax.main --config=configs/moving_digits.py
  python -m vivit_jax.main --config=configs/moving_digits.py --config.model.attention=spatio_temporal
  python -m vivit_jax.main --config=configs/kinetics400_fe.py:L/16x2 --config.data.root=/data/k400 --workdir=runs/l
  python -m vivit_jax.main --config=configs/moving_digits.py --mode=eval
  python -m vivit_jax.main --config=configs/kinetics400_fe.py --mode=dry_run

Every key of the configuration (vivit_jax/config.py) is an option, --config.KEY=VALUE.

modes:
  train     train, and evaluate at the end; the same command goes on where an earlier one stopped
  eval      evaluate the best (else the latest) checkpoint of the workdir again
  dry_run   try it on random clips: memory, speed, the whole run's time; needs no data, writes nothing

exit codes:
  0         done
  1         the loss became NaN or infinite, or memory ran out
  2         a mistake in the command, the configuration or the data: one line on stderr says which
  130, 143  stopped by Ctrl-C or a terminate signal, after saving: the same command goes on

Compiled programs are kept in the user's cache folder, for a quicker next start; VIVIT_JAX_COMPILE_CACHE=0 keeps none,
JAX_COMPILATION_CACHE_DIR=FOLDER keeps them there. VIVIT_JAX_TRACEBACK=1 shows where an error arose.
"""

import argparse
import os
import re
import sys
import warnings
import zlib
from collections.abc import Sequence

from ml_collections import ConfigDict

from vivit_jax import command_line, xla_preset
from vivit_jax import config as config_module
from vivit_jax.help_text import laid_out
from vivit_jax.signals import lasting_interrupts

MODES = ('train', 'eval', 'dry_run')


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    # What is worth a warning is told in a line, as an error is.
    warnings.formatwarning = lambda message, *_, **__: f'warning: {message}\n'
    parsed, overrides = _parse(sys.argv[1:] if arguments is None else list(arguments))
    traced = os.environ.get('VIVIT_JAX_TRACEBACK')
    try:
        config = config_module.load(parsed.config, overrides)
        if told := xla_preset.apply(parsed.xla_preset):
            print(told)
        if parsed.distributed:
            _join(parsed.distributed)
        with lasting_interrupts():
            return _run(
                parsed.mode, config, parsed.workdir or default_workdir(parsed.config, config, parsed.mode)
            )
    except KeyboardInterrupt:
        return _fail('stopped by SIGINT; a run goes on from its last checkpoint by the same command', 130)
    except (ValueError, OSError, ImportError) as error:
        if traced or '\n' in str(error):
            raise
        return _fail(str(error), 2)


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """Splits the command line into its three options and the configuration's overrides."""
    parser = argparse.ArgumentParser(
        prog='python -m vivit_jax.main',
        description=laid_out(__doc__),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('--config', required=True, metavar='FILE[:ARGUMENT]', help='a file of configs/')
    parser.add_argument('--workdir', metavar='DIR', help='folder of the run; default: runs/NAME-OVERRIDES')
    parser.add_argument(
        '--distributed',
        nargs='?',
        const='auto',
        metavar='HOST:PORT,N,I',
        help='train as one of several processes, the same command on each: found by itself on TPU pods, with Slurm '
        'and Open MPI; elsewhere tell where process 0 listens, how many there are, and which this is (from 0)',
    )
    parser.add_argument('--mode', choices=MODES, default='train', help='default: train')
    parser.add_argument(
        '--xla-preset',
        choices=tuple(xla_preset.PRESETS),
        default='none',
        help="flags for XLA's compiler, beside those of XLA_FLAGS; default: none. gpu: for NVIDIA GPUs, not measured "
        'yet on one; tools/benchmark_xla.py measures them',
    )
    parsed, rest = parser.parse_known_args(arguments)
    return parsed, command_line.overrides(parser, rest)


def _join(where: str) -> None:
    """Joins the other processes."""
    import jax

    if where == 'auto':
        jax.distributed.initialize()
        return
    match = re.fullmatch(r'(\S+:\d+),(\d+),(\d+)', where)
    if not match:
        raise ValueError(f'--distributed={where!r}: write HOST:PORT,N,I, as --distributed=10.0.0.1:1234,2,0')
    jax.distributed.initialize(match[1], num_processes=int(match[2]), process_id=int(match[3]))


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


def _run(mode: str, config: ConfigDict, workdir: str) -> int:
    # Not before the command line is understood: importing jax takes a while.
    import jax

    from vivit_jax import closing, compile_cache, dry_run, evaluate, train
    from vivit_jax.signals import Stopped

    compile_cache.enable()
    try:
        if mode == 'dry_run':
            dry_run.dry_run(config)
        elif mode == 'eval':
            evaluate.evaluate(config, workdir, afterwards=closing.report_evaluation)
        else:
            train.train(config, workdir)
    except Stopped as stop:
        return _fail(str(stop), stop.exit_code)
    except train.NonFiniteLoss as error:
        return _fail(str(error), 1)
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        return _fail(
            f'out of device memory with training.batch_size={config.training.batch_size}, '
            f'evaluation.batch_size={config.evaluation.batch_size}, clips of {config.data.frames} x '
            f"{tuple(config.data.crop)} and model.dtype='{config.model.dtype}'. Try a smaller batch, "
            "training.accumulate=4, model.remat=block, model.dtype='bfloat16', fewer frames, larger tubelets, "
            'sharding.fsdp over several devices, or '
            'model.attention=factorised_encoder in place of spatio_temporal',
            1,
        )
    return 0


def _fail(message: str, code: int) -> int:
    print(message if code > 2 else f'error: {message}', file=sys.stderr)
    return code


def _leave(code: int) -> None:
    """Ends the process: at once where it was interrupted alone, as threads left behind can crash the interpreter."""
    sys.stdout.flush()
    sys.stderr.flush()
    if code == 130 and not any(argument.startswith('--distributed') for argument in sys.argv):
        os._exit(code)
    sys.exit(code)


if __name__ == '__main__':
    _leave(main())
