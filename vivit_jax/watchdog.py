"""Processes that watch over one another: one that is killed or hangs ends all of them, with a line that names it.

Every process keeps the connection to process 0 by which they met. Over it each gives a sign of life every `BEAT`
seconds, from a thread. A connection that closes, or `SILENCE` seconds without a sign, is a process that is gone:
process 0 says so to all, and each writes the line and ends with exit code 75, whatever its main thread does: that
waits in a collective, as a rule, which nobody will complete. Waiting for data, compiling and writing take as long as
they take, as the thread goes on meanwhile.

The same connections carry what the processes agree on: the step after which all stop, and that all are done.
"""

import contextlib
import os
import re
import selectors
import sys
import threading
import time
from collections.abc import Callable, Sequence

from vivit_jax.meeting import Link, Message
from vivit_jax.telling.printable import printable

BEAT = 2.0  # seconds between signs of life
SILENCE = 40.0  # seconds without one until a process is given up
TICK = 0.25  # seconds the thread sleeps at most
PAUSE = 5.0  # seconds a tick may be late before it was this process that did not run
GRACE = 5.0  # seconds a process has to end with its own error, when another one failed
LINGER = 10.0  # seconds process 0 stays until the others know
AHEAD = 2  # steps that a process can be beyond the one that process 0 is at, see `agreed`
OWN = 2.0  # seconds in which an error may turn out to be another process's end
OTHERS = SILENCE + 5.0  # the same for an error that looks like one
GAVE_WAY = 75  # EX_TEMPFAIL
# What a collective says whose other side is gone.
SYMPTOMS = re.compile(
    r'\bGloo\b|\bNCCL\b|UNAVAILABLE:|DEADLINE_EXCEEDED:|ABORTED:|Connection (?:reset|closed) by peer|Socket closed|'
    r'Barrier timed out|CoordinationService|heartbeat timeout'
)


class Watchdog:
    """The connections of a process with the others, and the thread that watches them.

    Args:
        process: The number of this one.
        hosts: The machine of each.
        links: Process 0: the connections by number; the others: that to 0.
        silence: Seconds without a sign after which a process is given up.
    """

    def __init__(
        self, process: int, hosts: Sequence[str], links: dict[int, Link], *, silence: float = SILENCE
    ):
        self.process, self.count = process, len(hosts)
        self._hosts, self._links, self._silence = list(hosts), links, silence
        self._changed = threading.Condition()
        self._heard = dict.fromkeys(links, time.monotonic())
        self._gone: set[int] = set()  # processes whose connection is closed
        self._done: set[int] = set()  # that have nothing more to do
        self._over = False  # all have
        self._asked: int | None = None  # the signal by which somebody asks to stop
        self._stop: tuple[int, int] | None = None  # after which boundary, by which signal
        self._knows: set[int] = set()  # processes that have heard of that
        self._at_end: dict[int, int] = {}  # processes at the end of their steps, and the signals they caught
        self._boundaries = 0
        self._stopped: int | None = None  # the signal by which all have agreed to stop
        self._ending = False  # the main thread is about to end with an error of its own
        self._last = threading.Lock()
        self._verdict: tuple[str, int] | None = None

    def start(self) -> None:
        """Begins to watch."""
        threading.Thread(target=self._watch, name='watchdog', daemon=True).start()

    # --- What the main thread asks ---

    def agreed(self, signum: int | None, *, last: bool) -> int | None:
        """Decides at the boundary after a step, with all others, whether to stop there.

        Costs nothing as long as no process was told to stop. Then process 0 chooses a boundary that nobody can have
        passed: as a process waits for step n - 1 after it began step n, and that needs all to have begun it, none is
        more than `AHEAD` - 1 boundaries beyond process 0; it goes on as soon as all know.

        Args:
            signum: The signal that this process has caught, if any.
            last: No step comes after this boundary. All wait for each other then, and stop if any was told to.

        Returns:
            The signal by which to stop here; None: to go on. The same in all processes.
        """
        self._boundaries += 1
        with self._changed:
            if signum is not None and self._asked is None:
                self._asked = signum
                if self.process:
                    self._links[0].send(stop=signum)
            if not self.process and self._asked is not None and self._stop is None:
                self._stop = (self._boundaries + AHEAD, self._asked)
                self._to_all(stop_at=self._stop)
                self._wait_until(lambda: self._knows | self._gone >= self._links.keys())
            if self._stop is not None and self._boundaries >= self._stop[0]:
                self._stopped = self._stop[1]
            elif last:
                self._stopped = self._agreed_at_end(signum or 0) or None
            return self._stopped

    def _agreed_at_end(self, signum: int) -> int:
        """Decides once all are there; they may come here again, as a run that goes back does."""
        if self.process:
            self._links[0].send(at_end=signum)
            self._wait_until(lambda: 0 in self._at_end)
            return self._at_end.pop(0)
        self._wait_until(lambda: self._at_end.keys() >= self._links.keys())
        decided = signum or self._asked or max(self._at_end.values())
        self._at_end.clear()
        self._to_all(at_end=decided)
        return decided

    def conclude(self, code: int, why: str = '') -> int:
        """Comes to the end, before the process itself ends with a code.

        Where the processes end by agreement, they wait for each other. Else a moment passes in which it may turn out
        that another process is the cause; then this does not return. If none is, the others are told, and end too.

        Args:
            code: The exit code.
            why: The line that this process is about to write, '' where it has none to write.

        Returns:
            The exit code: `GAVE_WAY` where a connection to another process broke and nobody knows why.
        """
        agreed = code == 0 or (self._stopped is not None and code == 128 + self._stopped)
        symptom = not agreed and bool(SYMPTOMS.search(why))
        with self._changed:
            if agreed:
                self._wait_for_the_end()
            else:
                self._ending = True
                self._changed.wait_for(
                    lambda: self._verdict and (symptom or self._verdict[1] == GAVE_WAY),
                    timeout=OTHERS if symptom else OWN,
                )
            verdict = self._verdict
            if not agreed and not (verdict and (symptom or verdict[1] == GAVE_WAY)):
                verdict, code = None, GAVE_WAY if symptom else code
                self._to_all(failed=why[:300], code=code)
                self._over = True
        if verdict:
            self._end(*verdict)
        if not self.process:
            self._linger()
        return code

    def _wait_for_the_end(self) -> None:
        """Waits until all have nothing more to do."""
        if self.process:
            self._links[0].send(done=True)
            self._wait_until(lambda: self._over)
        else:
            self._wait_until(lambda: self._done | self._gone >= self._links.keys())
            self._over = True
            self._to_all(over=True)

    # --- What the thread does ---

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        """Waits, for a day if need be: the thread sees to it that nobody is missing."""
        while not condition():
            self._changed.wait(TICK)

    def _to_all(self, **message: object) -> None:
        for other, link in self._links.items():
            if other not in self._gone:
                link.send(**message)

    def _watch(self) -> None:
        """Listens, gives signs of life and looks who does not."""
        signed = 0.0
        ticked = time.monotonic()
        with selectors.DefaultSelector() as waiting:
            for other, link in self._links.items():
                waiting.register(link, selectors.EVENT_READ, other)
            while True:
                ready = waiting.select(timeout=TICK)
                now = time.monotonic()
                with self._changed:
                    if now - ticked > PAUSE:
                        # It was this process that did not run: the others have had no chance to be heard.
                        self._heard = dict.fromkeys(self._heard, now)
                    ticked = now
                    for key, _ in ready:
                        self._listen(key.data, waiting)
                    if now - signed > BEAT:
                        signed = now
                        self._to_all(beat=True)
                    for other in self._links.keys() - self._gone - self._done:
                        if now - self._heard[other] > self._silence and not self._over:
                            self._lost(other, f'has given no sign of life for {self._silence:.0f} s')
                    self._changed.notify_all()
                    if self._over and (self.process or self._gone >= self._links.keys()):
                        break
        for link in self._links.values():
            link.close()

    def _listen(self, other: int, waiting: selectors.BaseSelector) -> None:
        messages = self._links[other].receive()
        if messages is None:
            waiting.unregister(self._links[other])
            known = other in self._gone
            self._gone.add(other)
            if other not in self._done and not self._over and not known:
                self._lost(other, 'is gone: killed, or its machine is')
            return
        self._heard[other] = time.monotonic()
        for message in messages:
            self._take(other, message)

    def _take(self, other: int, message: Message) -> None:
        """Acts upon a message; those of other versions, which do not meet, would be left aside."""
        match message:
            case {'stop': int(signum)}:
                self._asked = self._asked or signum
            case {'stop_at': [int(boundary), int(signum)]}:
                self._stop = (boundary, signum)
                self._links[0].send(knows=True)
            case {'knows': True}:
                self._knows.add(other)
            case {'at_end': int(signum)}:
                self._at_end[other] = signum
            case {'done': True}:
                self._done.add(other)
            case {'over': True}:
                self._over = True
            case {'failed': str(why), 'code': int(code)}:
                self._fail(other, why, code)
            case {'lost': str(line), 'code': int(code)}:
                self._judge(line, code)

    def _name(self, process: int) -> str:
        return f'process {process} of {self.count} (on {self._hosts[process]})'

    def _lost(self, other: int, what: str) -> None:
        self._gone.add(other)
        self._judge(f'{self._name(other)} {what}; the same command, started on all, goes on', GAVE_WAY)

    def _fail(self, other: int, why: str, code: int) -> None:
        """Another process ended by an error, which it tells itself; so may this one, for the same reason."""
        self._gone.add(other)
        line = f'{self._name(other)} ended: {why}'
        if not self.process:
            self._to_all(lost=line, code=code)
        self._judge(line, code, tell=False)

    def _judge(self, line: str, code: int, *, tell: bool = True) -> None:
        """Decides that this is the end, for all where it is process 0 that finds it out."""
        if self._verdict is not None or self._over:
            return
        self._verdict = (line, code)
        if not self.process and tell:
            self._to_all(lost=line, code=code)
        threading.Thread(target=self._end_soon, args=(line, code), daemon=True).start()

    def _end_soon(self, line: str, code: int) -> None:
        if code != GAVE_WAY:
            time.sleep(GRACE)
        if self._ending:
            return  # the main thread does it
        self._end(line, code)

    def _end(self, line: str, code: int) -> None:
        """Writes the line and ends the process, whatever else goes on in it."""
        self._last.acquire()  # for good: two threads may come here
        flusher = threading.Thread(target=sys.stdout.flush, daemon=True)
        flusher.start()
        flusher.join(1.0)
        with contextlib.suppress(OSError):
            # What draws on a terminal has hidden its cursor.
            shown = b'\x1b[?25h\n' if os.isatty(2) else b''
            os.write(2, shown + printable(line).encode(errors='replace') + b'\n')
        if not self.process:
            self._linger()
        os._exit(code)

    def _linger(self) -> None:
        """Lets the others hear of the end before their connections close."""
        until = time.monotonic() + LINGER
        while time.monotonic() < until and not self._gone >= self._links.keys():
            time.sleep(TICK / 5)
