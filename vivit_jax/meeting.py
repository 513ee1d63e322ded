"""How the processes of a run meet: process 0 listens, the others report to it, and who is missing is named.

They speak in lines of JSON over connections that stay open for as long as the run goes on (`watchdog`). Nothing of
what arrives is executed, and a line has an end: who does not speak so is sent away. A process that does, but was
started with other settings or numbers, ends all of them with a line that says so.
"""

import contextlib
import errno
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

FIRST_WORD = 10.0  # seconds in which who connects says who it is
TOLD_AFTER = 10.0  # seconds of waiting until it is told, and then from one line to the next
RETRY = 0.5  # seconds between attempts to reach process 0
SEND_SECONDS = 5.0
LONGEST = 1 << 20  # bytes of a line: the names of thousands of machines
LOOPBACK = ('localhost', '127.0.0.1', '::1')

Message = dict[str, Any]


class Absent(RuntimeError):
    """Other processes did not come, or are gone; the same command goes on when they are back."""


class Link:
    """A connection that carries messages, a JSON object a line.

    Args:
        connection: A socket that is connected.
    """

    def __init__(self, connection: socket.socket):
        connection.settimeout(SEND_SECONDS)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connection, self._begun, self._turn = connection, b'', threading.Lock()
        self.host = '?'
        self.unread: list[Message] = []  # messages that are to be received again

    def fileno(self) -> int:
        """Returns what selectors wait for; -1 once it is closed."""
        return self._connection.fileno()

    def send(self, **message: Any) -> bool:
        """Sends a message; tells whether it could. May be called from any thread."""
        try:
            with self._turn:
                self._connection.sendall(json.dumps(message).encode() + b'\n')
        except OSError:
            return False
        return True

    def receive(self) -> list[Message] | None:
        """Returns the messages that are complete, after a selector said that there is something; None at the end.

        What is no message ends it too.
        """
        if self.unread:
            messages, self.unread = self.unread, []
            return messages
        try:
            got = self._connection.recv(1 << 16)
        except TimeoutError:
            return []
        except OSError:
            return None
        *lines, self._begun = (self._begun + got).split(b'\n')
        if not got or len(self._begun) > LONGEST:
            return None
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            return None
        return messages if all(isinstance(message, dict) for message in messages) else None

    def close(self) -> None:
        """Ends it."""
        self._connection.close()


def listen(host: str, port: int) -> socket.socket:
    """Opens the door of process 0, on all interfaces unless `host` is this machine's own name for itself.

    Raises:
        ValueError: If the port is taken or not to be had; one line.
    """
    try:
        if host in LOOPBACK:
            return socket.create_server((host, port), family=_family(host))
        if socket.has_dualstack_ipv6():
            return socket.create_server(('', port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(('', port))
    except OSError as error:
        why = {
            errno.EADDRINUSE: 'another program listens there already',
            errno.EACCES: 'it is not allowed to',
        }
        cause = why.get(error.errno or 0, error.strerror or str(error))
        raise ValueError(
            f'process 0 cannot listen at port {port} of {socket.gethostname()}: {cause}; choose another port'
        ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ':' in host else socket.AF_INET


class Reception:
    """Where the others report to process 0.

    Args:
        door: From `listen`; stays open.
        count: Processes, this one included.
        settings: What must be the same in all.
        tell: Told who is missing, now and then.
    """

    def __init__(
        self, door: socket.socket, count: int, settings: dict[str, str], tell: Callable[[str], None]
    ):
        self._door, self._count, self._settings, self._tell = door, count, settings, tell
        self._links: dict[int, Link] = {}
        self._strangers: dict[Link, float] = {}  # who has not said who it is, and since when it is there
        self._waiting = selectors.DefaultSelector()
        self._waiting.register(door, selectors.EVENT_READ)

    def gather(self, seconds: float) -> dict[int, Link]:
        """Waits until all others have reported.

        Args:
            seconds: To wait at most.

        Returns:
            The connections by process number.

        Raises:
            Absent: If not all came in time, naming those who did not.
            ValueError: If one came that does not fit the others, in that one and in all others as well.
        """
        began = told = time.monotonic()
        try:
            while missing := [process for process in range(1, self._count) if process not in self._links]:
                now = time.monotonic()
                if now - began > seconds:
                    raise Absent(f'{_named(missing)} of {self._count} did not come within {seconds:.0f} s')
                if now - told > TOLD_AFTER:
                    told = now
                    waited = f'{now - began:.0f} s, at most {seconds:.0f} s'
                    self._tell(f'waiting for {_named(missing)} of {self._count} ({waited})')
                for key, _ in self._waiting.select(timeout=RETRY):
                    if isinstance(key.fileobj, Link):
                        self._listen(key.fileobj)
                    else:
                        self._let_in()
                for link in [link for link, since in self._strangers.items() if now - since > FIRST_WORD]:
                    self._forget(link)
        except (Absent, ValueError) as error:
            for link in (*self._links.values(), *self._strangers):
                link.send(refused=str(error), absent=isinstance(error, Absent))
                link.close()
            raise
        finally:
            self._waiting.close()
        for link in self._strangers:
            link.close()
        return self._links

    def _let_in(self) -> None:
        with contextlib.suppress(OSError):
            link = Link(self._door.accept()[0])
            self._strangers[link] = time.monotonic()
            self._waiting.register(link, selectors.EVENT_READ)

    def _listen(self, link: Link) -> None:
        messages = link.receive()
        if messages is None or (messages and link in self._strangers and not _is_hello(messages[0])):
            self._forget(link)  # ended, and may come again; or nobody of ours
        elif messages and link in self._strangers:
            hello = messages[0]
            if refusal := self._refusal(hello):
                raise ValueError(refusal)
            link.host = hello['host']
            self._links[hello['process']] = link
            link.send(noted=True)
            del self._strangers[link]

    def _forget(self, link: Link) -> None:
        self._waiting.unregister(link)
        self._strangers.pop(link, None)
        self._links = {process: known for process, known in self._links.items() if known is not link}
        link.close()

    def _refusal(self, hello: Message) -> str:
        """Says why a process cannot take part, '' if it can."""
        process, theirs, ours = hello['process'], hello['settings'], self._settings
        who = f'process {process} on {hello["host"]}'
        if hello['count'] != self._count:
            return (
                f'{who} was started as one of {hello["count"]} processes, process 0 as one of {self._count}'
            )
        if not 0 < process < self._count:
            return f'{who}: the others are numbered 1 to {self._count - 1}'
        if process in self._links:
            return f'{who} is there already, on {self._links[process].host}: each needs another number'
        differing = [key for key in {**ours, **theirs} if theirs.get(key) != ours.get(key)]
        if differing:
            key = differing[0]
            more = f', and {len(differing) - 1} more differ' if len(differing) > 1 else ''
            there, here = (str(each.get(key, 'none'))[:80] for each in (theirs, ours))
            return f'{who} was started with {key}={there}, process 0 with {here}{more}: start all alike'
        return ''


def _is_hello(message: Message) -> bool:
    match message:
        case {'process': int(), 'count': int(), 'host': str(), 'settings': dict()}:
            return True
    return False


def report_to(
    host: str,
    port: int,
    hello: Message,
    *,
    seconds: float,
    tell: Callable[[str], None],
) -> tuple[Link, Message]:
    """Reports to process 0 and waits until all are there.

    Args:
        host: Where process 0 listens.
        port: Its port.
        hello: `process`, `count`, `host` and `settings` of this one.
        seconds: To wait at most.
        tell: Told now and then that it waits.

    Returns:
        The connection, and what process 0 says as soon as all are there.

    Raises:
        ValueError: If this process is sent away, or somebody else listens there; one line.
        Absent: If process 0 cannot be reached in time.
    """
    began = told = time.monotonic()
    cause = 'no answer'
    while True:
        now = time.monotonic()
        if now - began > seconds:
            raise Absent(f'process 0 cannot be reached at {host}:{port} within {seconds:.0f} s ({cause})')
        if now - told > TOLD_AFTER:
            told = now
            tell(
                f'waiting for process 0 at {host}:{port} ({cause}; {now - began:.0f} s, at most {seconds:.0f} s)'
            )
        try:
            link = Link(socket.create_connection((host, port), timeout=SEND_SECONDS))
        except OSError as error:
            cause = error.strerror or str(error)
            time.sleep(RETRY)
            continue
        link.host = host
        link.send(**hello)
        answer = _answer(link, now + FIRST_WORD)
        if answer == {'noted': True}:
            # From here on process 0 tells who is missing, and gives up by itself.
            answer = _answer(link, began + seconds + 2 * SEND_SECONDS)
        match answer:
            case {'welcome': int(), 'hosts': list()} if answer is not None:
                return link, answer
            case {'refused': str(why), 'absent': bool(absent)}:
                link.close()
                raise Absent(why) if absent else ValueError(why)
        link.close()
        cause = 'what answers is no process 0 that waits for others'
        time.sleep(RETRY)


def _answer(link: Link, until: float) -> Message | None:
    """Returns the next message on a link; None if it ends before, or time does."""
    with selectors.DefaultSelector() as waiting:
        waiting.register(link, selectors.EVENT_READ)
        while time.monotonic() < until:
            if link.unread or waiting.select(timeout=RETRY):
                messages = link.receive()
                if messages is None:
                    return None
                if messages:
                    link.unread = messages[1:]
                    return messages[0]
    return None


def _named(processes: Sequence[int]) -> str:
    """Says which processes, at most eight of them by number."""
    some = ', '.join(str(process) for process in processes[:8])
    more = f' and {len(processes) - 8} more' if len(processes) > 8 else ''
    return f'process{"es" if len(processes) > 1 else ""} {some}{more}'
