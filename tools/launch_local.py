"""Runs the main command as several processes on this machine, each with CPU devices of its own.

Meant to try out what several machines do, as they find each other, split batches, save and stop the same way. One
process drives all GPUs of a machine; for these it is not needed.

Every line that a process writes has its number before it. Ctrl-C and a terminate signal go to all of them. The exit
code is that of the first process that failed, 128 + N if by signal N; those that have not ended within 75 seconds
after it are killed.

examples:
  python tools/launch_local.py -n 2 -- --config=configs/moving_digits.py
  python tools/launch_local.py -n 4 --devices=2 -- --config=configs/moving_digits.py --config.sharding.fsdp=2
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import IO

from vivit_jax import help_text

PROGRAM = (sys.executable, '-m', 'vivit_jax.main')
PATIENCE = 75.0  # seconds for the others to end when one has failed; they need 60 at most
POLL = 0.1


def main() -> int:
    """Runs the command line; returns the exit code."""
    parser = help_text.parser(__doc__)
    parser.add_argument('-n', '--processes', type=int, default=2, metavar='N', help='default: 2')
    parser.add_argument(
        '--devices', type=int, default=1, metavar='N', help='CPU devices of each process; default: 1'
    )
    parser.add_argument(
        '--port', type=int, default=0, metavar='PORT', help='of process 0; default: a free one'
    )
    parser.add_argument('options', nargs='+', metavar='-- OPTION', help='of python -m vivit_jax.main')
    parsed = parser.parse_args()
    for name in ('processes', 'devices'):
        if not 1 <= getattr(parsed, name) <= 256:
            parser.error(f'--{name}={getattr(parsed, name)}: must be in [1, 256]')
    if any(option.startswith('--distributed') for option in parsed.options):
        parser.error('--distributed is what this program says to each process')
    return launch(parsed.options, parsed.processes, parsed.devices, parsed.port)


def launch(
    options: Sequence[str], count: int, devices: int = 1, port: int = 0, program: Sequence[str] = PROGRAM
) -> int:
    """Runs the processes to their ends.

    Args:
        options: Of the program.
        count: Processes.
        devices: CPU devices of each.
        port: Where process 0 listens; 0: a free one.
        program: What is run, with `--distributed=HOST:PORT,N,I` after the options.

    Returns:
        The exit code of the first that failed, else 0.
    """
    environment = os.environ | {
        'JAX_PLATFORMS': 'cpu',
        'JAX_NUM_CPU_DEVICES': str(devices),
        'PYTHONUNBUFFERED': '1',
    }
    where = f'127.0.0.1:{port or free_port()},{count}'
    running: list[subprocess.Popen[bytes]] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        for process in running:
            if process.poll() is None:
                process.send_signal(signum)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in range(count):
            # A session of its own: Ctrl-C of the terminal would come twice.
            running.append(
                subprocess.Popen(
                    [*program, *options, f'--distributed={where},{number}'],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                )
            )
        readers = [
            threading.Thread(target=_prefix, args=(number, source, sink), daemon=True)
            for number, process in enumerate(running)
            for source, sink in ((process.stdout, sys.stdout), (process.stderr, sys.stderr))
        ]
        for reader in readers:
            reader.start()
        code = _wait(running)
        for reader in readers:
            reader.join(5.0)  # a program that a process has left behind may hold on to it
        return code
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> int:
    """Waits until all have ended, and kills those that stay when one has failed; returns the exit code."""
    code, failed_at = 0, 0.0
    while any(process.poll() is None for process in running):
        if not code and (code := _failure(running)):
            failed_at = time.monotonic()
        if code and time.monotonic() - failed_at > PATIENCE:
            for number, process in enumerate(running):
                if process.poll() is None:
                    print(f'process {number} did not end: killed', file=sys.stderr)
                    process.kill()
            break
        time.sleep(POLL)
    for process in running:
        process.wait()
    return code or _failure(running)


def _failure(running: Sequence[subprocess.Popen[bytes]]) -> int:
    """Returns the exit code of a process that has failed, 0 if there is none.

    One that was killed is the cause, where others have noticed before anybody looked.
    """
    codes = sorted(process.poll() or 0 for process in running)
    return next((code if code > 0 else 128 - code for code in codes if code), 0)


def _prefix(number: int, source: IO[bytes], sink: IO[str]) -> None:
    """Copies lines, with the number of the process before each."""
    with source:
        for line in source:
            sink.write(f'[{number}] {line.decode(errors="replace").rstrip()}\n')
            sink.flush()


def free_port() -> int:
    """Returns a port of this machine at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


if __name__ == '__main__':
    sys.exit(main())
