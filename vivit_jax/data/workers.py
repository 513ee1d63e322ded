"""Worker processes that read: started, watched, replaced where they are killed, and gone when the run is.

Each is a new interpreter with two pipes of its own. Through one it is told what to read, once; that this one closes
tells it that the run has ended, however that came about, and it leaves at once. Through the other it sends what it
has read, as pickles with the arrays' bytes behind them. Nothing is shared (no memory, no semaphores, no files), so a
run that is killed leaves nothing behind, and a small /dev/shm, as containers have it, does not matter.
"""

import collections
import concurrent.futures
import contextlib
import fcntl
import io
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cloudpickle
import numpy as np

# A new interpreter finds modules where this one does, whatever has been added to its path.
PROGRAM = (
    'import json, sys; sys.path[:] = json.loads(sys.stdin.buffer.readline()); '
    'from vivit_jax.data import workers; workers.serve(int(sys.argv[1]))'
)
PIPE = 2**20  # bytes that a pipe holds, where the system grants them: a clip in few turns
GRACE = 5.0  # seconds until a worker that should end is killed
READ, FAILED = 0, 1


class WorkerLost(RuntimeError):
    """A worker process was lost, and the one in its place as well, before it had read an example."""


class Workers:
    """Processes that read rows ahead, each its share of them, in turn.

    A worker that is gone (killed, or crashed with the library that decodes) is replaced by another one that goes on
    from its place, with a warning of one line.

    Args:
        read: What reads a row; cloudpickle takes it to the workers.
        rows: What is read, in order: row i by worker i % `number`.
        number: Of processes, at least 1.
        threads: That read, in each.
        ahead: Examples that wait in each.
    """

    def __init__(
        self, read: Callable[[int], Any], rows: range, *, number: int, threads: int, ahead: int
    ) -> None:
        self._read, self._rows, self._number = read, rows, number
        self._threads, self._ahead = threads, ahead
        self._closing, self._changing = False, threading.Lock()
        self._workers: list[_Worker] = []
        try:
            for place in range(min(number, len(rows))):
                self._workers.append(self._start(rows[place]))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> 'Workers':
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __call__(self, row: int) -> Any:
        """Returns what was read of a row; rows are asked for in order, each once.

        Raises:
            WorkerLost: If the worker was lost, and the one in its place as well.
            Exception: What `read` raised, with the worker's traceback as a note.
        """
        place = (row - self._rows.start) % self._number
        for last in (False, True):
            try:
                kind, result = self._workers[place].receive()
            except EOFError:
                self._replace(place, row, last=last)
            else:
                break
        if kind == FAILED:
            raise result
        return result

    def _replace(self, place: int, row: int, *, last: bool) -> None:
        """Starts another worker from `row` on where one has ended before its time."""
        with self._changing:
            if self._closing:
                raise EOFError
            end = self._workers[place].close()
            if last:
                raise WorkerLost(
                    f'a worker process {end}, as did the one before it, and neither had read an example: where '
                    f'memory ran out, fewer data.workers (now {self._number}) or data.threads (now {self._threads}) '
                    'need less of it'
                )
            warnings.warn(f'a worker process {end}; another one goes on from its place', stacklevel=3)
            self._workers[place] = self._start(row)

    def _start(self, row: int) -> '_Worker':
        """Starts a worker with `row` and what comes after it in its share."""
        share = self._rows[row - self._rows.start :: self._number]
        return _Worker((self._read, share, self._threads, self._ahead))

    def close(self) -> None:
        """Ends the processes, whatever they are at; what they have read is lost."""
        with self._changing:
            self._closing = True
        for worker in self._workers:
            worker.leave()
        for worker in self._workers:
            worker.close()


class _Worker:
    """One process, and the pipes to it and from it."""

    def __init__(self, job: Any):
        ours, theirs = os.pipe()
        with contextlib.suppress(AttributeError, OSError):  # not on every system, nor as much as one likes
            fcntl.fcntl(ours, fcntl.F_SETPIPE_SZ, PIPE)
        self._results = open(ours, 'rb', buffering=0)  # noqa: SIM115 (closed by `close`)
        self._receiving = threading.Lock()
        try:
            self._process = subprocess.Popen(
                [sys.executable, '-c', PROGRAM, str(theirs)],
                stdin=subprocess.PIPE,
                pass_fds=(theirs,),
                process_group=0,  # Ctrl-C is for the run, which ends its workers as it sees fit
            )
        except BaseException:
            self._results.close()
            raise
        finally:
            os.close(theirs)  # with the worker's end the last one closes: its death is the end of the file
        assert self._process.stdin is not None
        self._orders = self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # gone already: that is noticed when something is awaited
            self._orders.write(json.dumps(sys.path).encode() + b'\n' + cloudpickle.dumps(job))
            self._orders.flush()

    def receive(self) -> tuple[int, Any]:
        """Returns how reading went and its result.

        Raises:
            EOFError: If the worker has ended, or ends in the middle of it.
        """
        with self._receiving:
            kind, count = _unpacked('<BI', self._results)
            sizes = _unpacked(f'<{count}Q', self._results)
            parts = [_received(size, self._results) for size in sizes]
        return kind, pickle.loads(parts[0], buffers=parts[1:])

    def leave(self) -> None:
        """Tells the process to leave, which it does at once."""
        with contextlib.suppress(BrokenPipeError):
            self._orders.close()

    def close(self) -> str:
        """Ends the process if it has not ended; returns how, for people."""
        self.leave()
        try:
            code = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        with self._receiving:  # a thread that waits in it has met the end of the file by now
            self._results.close()
        return f'died of {signal.Signals(-code).name}' if code < 0 else f'ended with exit code {code}'


def _received(size: int, file: io.FileIO) -> memoryview:
    """Reads so many bytes."""
    whole = np.empty(size, np.uint8).data
    view = whole
    while view.nbytes:
        count = file.readinto(view)
        if not count:
            raise EOFError
        view = view[count:]
    return whole


def _unpacked(form: str, file: io.FileIO) -> tuple[Any, ...]:
    return struct.unpack(form, _received(struct.calcsize(form), file))


def serve(results: int) -> None:
    """Is a worker: reads what it is told on its standard input, and sends it to a file descriptor."""
    # Ends with os._exit, here and below: threads may be in the middle of a long decoding.
    with open(results, 'wb', buffering=0) as file, contextlib.suppress(BrokenPipeError):
        try:
            orders = sys.stdin.buffer
            read, rows, threads, ahead = pickle.load(orders)
            threading.Thread(target=_leave_with, args=(orders,), daemon=True).start()
            for example in _ahead(read, rows, threads, ahead):
                _send(file, READ, example)
        except BrokenPipeError:
            raise
        except Exception as error:
            _send(file, FAILED, _travelling(error))
        # Closing the file would look like a death to whoever has not read to its end.
        threading.Event().wait()
    os._exit(0)


def _leave_with(orders: io.BufferedIOBase) -> None:
    """Ends this process when nobody is left who could give it orders."""
    orders.read(1)
    os._exit(0)


def _ahead(read: Callable[[int], Any], rows: Sequence[int], threads: int, ahead: int) -> Iterator[Any]:
    """Reads rows in several threads, and gives them in order."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        waiting: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
        for row in rows:
            waiting.append(pool.submit(read, row))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _send(file: io.FileIO, kind: int, result: Any) -> None:
    buffers: list[pickle.PickleBuffer] = []
    parts = [memoryview(cloudpickle.dumps(result, protocol=5, buffer_callback=buffers.append))]
    parts += [buffer.raw() for buffer in buffers]
    sizes = [part.nbytes for part in parts]
    for part in (memoryview(struct.pack(f'<BI{len(sizes)}Q', kind, len(sizes), *sizes)), *parts):
        while part.nbytes:
            part = part[file.write(part) or 0 :]


def _travelling(error: Exception) -> Exception:
    """Returns an exception that can be sent: this one, else one that says the same."""
    error.add_note(f'in a worker process:\n{"".join(traceback.format_exception(error))}')
    try:
        pickle.loads(cloudpickle.dumps(error))
    except Exception:
        instead = RuntimeError(f'{type(error).__name__}: {error}')
        instead.add_note(error.__notes__[-1])
        return instead
    return error
