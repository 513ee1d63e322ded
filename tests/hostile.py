"""Hostile input: how files and values are broken, and what reading them must come to.

`@fuzz(200)` runs a test on so many drawn cases, the same ones each time; the environment variable VIVIT_JAX_FUZZ=10
draws ten times as many, others at every start. `survive` runs one case and judges it.
"""

import contextlib
import copy
import dataclasses
import faulthandler
import json
import os
import pathlib
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import hypothesis
from hypothesis import configuration
from hypothesis import strategies as st

# Hypothesis keeps tables of letters, for which there is no place in the working tree.
configuration.set_hypothesis_home_dir(pathlib.Path(tempfile.gettempdir()) / 'vivit_jax-hypothesis')

MORE = int(os.environ.get('VIVIT_JAX_FUZZ', '1'))
SECONDS = 5.0  # of processor time for a case; a clock on the wall stops it after HANGS
HANGS = 20.0
MEBIBYTES = 200  # that a small file may make a process grow by
LONGEST = 2_000  # letters of a message
FOREIGN = ('/etc/', '/root/.ssh', '/dev/zero', '/dev/random', '/dev/stdin', '/dev/mem')


def fuzz(cases: int) -> Callable[[Any], Any]:
    """Runs a test of hypothesis on so many cases, times VIVIT_JAX_FUZZ."""
    return hypothesis.settings(
        max_examples=cases * MORE,
        derandomize=MORE == 1,
        deadline=None,  # `survive` has one, in time of the processor
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink),
    )


# --- what a case must come to


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a call gave: a value, or the mistake that it was refused with."""

    value: Any
    error: Exception | None

    @property
    def refused(self) -> bool:
        """Tells whether it was refused."""
        return self.error is not None


class Hung(BaseException):
    """A case that takes too long; no code under test catches it."""


class Forbidden(BaseException):
    """A case that does what no input may make a program do."""


def survive(
    call: Callable[[], Any],
    *names: object,
    folder: pathlib.Path | None = None,
    seconds: float = SECONDS,
    mebibytes: int = MEBIBYTES,
) -> Outcome:
    """Runs a call on hostile input: it succeeds, or fails with one clear line; nothing else happens.

    Args:
        call: What is tried.
        *names: One of them, usually the file's, must stand in the line; without any, none must.
        folder: The only one that is written to; beside it, in its parent, nothing is read.
        seconds: Time of the processor that it may take.
        mebibytes: Address space that it may take beyond what the process has.

    Returns:
        What it came to. A failed assertion tells what was wrong: another kind of exception, a message of several
        lines or without the name, a file opened elsewhere, something started or unpickled, too much time or memory.
    """
    began = time.process_time()
    outcome = Outcome(None, None)
    with _bounded_memory(mebibytes), _bounded_time(), _watched(folder) as seen:
        try:
            outcome = Outcome(call(), None)
        except Exception as error:  # judged below, outside the bounds
            outcome = Outcome(None, error)
    taken = time.process_time() - began
    assert not seen, f'did what it must not: {seen}'
    if outcome.error is not None:
        judge(outcome.error, *names)
    assert taken < seconds, f'took {taken:.1f} s of the processor'
    return outcome


def judge(error: Exception, *names: object) -> None:
    """Asserts that an exception is a mistake told in one clear line."""
    kind = type(error)
    ours = kind.__module__.startswith('vivit_jax')
    if not (kind in (ValueError, ImportError, ModuleNotFoundError) or isinstance(error, OSError) or ours):
        raise AssertionError(f'{kind.__name__} instead of one of our own errors: {error}') from error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            raise AssertionError(f'asked for too much memory: {error}') from error
        cause = cause.__cause__ or cause.__context__
    message = str(error)
    if not message.strip() or len(message) > LONGEST or '\n' in message or '\r' in message:
        raise AssertionError(f'not one line of at most {LONGEST} letters: {message[:300]!r}') from error
    if names and not any(str(name) in message for name in names):
        raise AssertionError(f'does not name {names[0]}: {message}') from error


@contextlib.contextmanager
def _bounded_memory(mebibytes: int) -> Iterator[None]:
    """Lets allocations fail that take the process this far beyond what it has now."""
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) if sys.platform == 'linux' else 0
    before = resource.getrlimit(resource.RLIMIT_AS)
    if pages:
        limit = pages * resource.getpagesize() + mebibytes * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextlib.contextmanager
def _bounded_time() -> Iterator[None]:
    """Interrupts Python that does not come to an end, and ends the process where that does not help."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Hung(f'nothing came of it within {HANGS:g} s')

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, HANGS)
    faulthandler.dump_traceback_later(2 * HANGS, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- what a case must not do: Python itself tells of every file that is opened and every program that is started

_folder: pathlib.Path | None = None
_seen: list[str] | None = None
_STARTS = (
    'subprocess.Popen', 'os.system', 'os.exec', 'os.posix_spawn', 'os.spawn', 'os.fork', 'pty.spawn',
    'pickle.find_class', 'socket.connect', 'socket.getaddrinfo', 'socket.bind',
)  # fmt: skip
_CHANGES = (
    'os.mkdir', 'os.remove', 'os.rename', 'os.rmdir', 'os.symlink', 'os.link', 'os.truncate', 'os.chmod',
    'os.chown', 'shutil.rmtree', 'shutil.move', 'shutil.copyfile', 'shutil.unpack_archive',
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    seen = _seen
    if seen is None or not (event == 'open' or event in _STARTS or event in _CHANGES):
        return
    wrong = ''
    if event in _STARTS:
        wrong = f'{event}{arguments!r:.200}'
    elif event == 'open':
        path, mode, flags = arguments
        writes = bool(flags & _WRITING) if isinstance(flags, int) else bool(set(mode or '') & set('wax+'))
        wrong = _wrong(path, writes)
    else:
        paths = (
            arguments[:2] if event in ('os.rename', 'os.symlink', 'os.link', 'shutil.move') else arguments[:1]
        )
        wrong = next(filter(None, (_wrong(path, True) for path in paths)), '')
    if wrong:
        seen.append(f'{event}: {wrong}')
        raise Forbidden(seen[-1])


def _wrong(path: Any, writes: bool) -> str:
    """Says what is wrong with opening a file; '' if nothing is."""
    if isinstance(path, int) or path is None:
        return ''
    name = os.path.realpath(os.fsdecode(path))
    inside = _folder is None or name == str(_folder) or name.startswith(f'{_folder}/')
    beside = _folder is not None and name.startswith(f'{_folder.parent}/') and not inside
    if writes and not inside and name != '/dev/null' and '__pycache__' not in name:
        return f'writes {name}'
    return f'reads {name}' if beside or name.startswith(FOREIGN) else ''


@contextlib.contextmanager
def _watched(folder: pathlib.Path | None) -> Iterator[list[str]]:
    global _folder, _seen
    _install()
    _folder, _seen = (None if folder is None else folder.resolve()), []
    try:
        yield _seen
    except Forbidden as error:
        raise AssertionError(str(error)) from error
    finally:
        _folder, _seen = None, None


_installed: list[bool] = []


def _install() -> None:
    # A hook cannot be taken away again, so there is one for all cases.
    if not _installed:
        sys.addaudithook(_hook)
        _installed.append(True)


class Held:
    """A large value, of which hypothesis tells in few words; of a dataclass it tells every field."""

    def __init__(self, value: Any, told: str = ''):
        self.value, self.told = value, told

    def __repr__(self) -> str:
        return self.told[:400] or '…'


# --- broken bytes

_SIZES = (1, 2, 4, 8)
_NUMBERS = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    10**9,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**64 - 1,
)
_TOKENS = (
    b'\x00', b'\n', b'\r\n', b'"', b'{', b'}', b'[', b']', b'<', b'../', b'/etc/passwd', b'PK\x05\x06',
    b'\x93NUMPY', b"'descr': '|O'", b'NaN', b'-1', b'9999999999', b'\x80\x04', b'cos\nsystem\n',
    b'\xff\xfe', b'\xc0\x80', b'\xed\xa0\x80',
)  # fmt: skip


def _places(size: int) -> st.SearchStrategy[int]:
    """Draws a place in a file, as often near its ends, where headers and tables are, as anywhere."""
    last, ends = max(size - 1, 0), 600
    return st.one_of(
        st.integers(0, min(ends, last)), st.integers(max(last - ends, 0), last), st.integers(0, last)
    )


@st.composite
def broken(draw: st.DrawFn, content: bytes, *others: bytes) -> bytes:
    """Draws a valid file's content with a few things wrong in it.

    Args:
        draw: Given by hypothesis.
        content: Of the valid file.
        *others: Of other files, pieces of which are put in.
    """
    found = bytearray(content)
    kinds = ['flip', 'number', 'cut', 'take', 'repeat', 'token'] + (['splice'] if others else [])
    for _ in range(draw(st.integers(1, 3))):
        place = draw(_places(len(found)))
        kind = draw(st.sampled_from(kinds))
        if kind == 'flip' and found:
            found[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == 'number':
            size = draw(st.sampled_from(_SIZES))
            number = draw(st.sampled_from(_NUMBERS)) % 256**size
            found[place : place + size] = number.to_bytes(size, draw(st.sampled_from(('little', 'big'))))
        elif kind == 'cut':
            del found[place:]
        elif kind == 'take':
            del found[place : place + draw(st.integers(1, 64))]
        elif kind == 'repeat':
            piece = found[place : place + draw(st.integers(1, 200))]
            found[place:place] = piece * draw(st.integers(1, 4))
        elif kind == 'token':
            token = draw(st.sampled_from(_TOKENS))
            end = place + (len(token) if draw(st.booleans()) else 0)
            found[place:end] = token
        elif kind == 'splice':
            other = draw(st.sampled_from(others))
            start = draw(_places(len(other)))
            found[place:] = other[start:]
    return bytes(found)


# --- hostile text

NAMES = (
    '', ' ', '.', '..', '../../x', '/etc/passwd', 'a/../../b', '..\\..\\x', 'C:\\x', 'x\0y', 'a\nb',
    'a\r\nb', '\x1b[31mred', '\x1b]0;title\x07', '<script>alert(1)</script>',
    '"><img src=x onerror=alert(1)>', "' onload='alert(1)", '</script>', '</title><script>',
    '</svg><script>', ']]>', '<!--', '-->', '&lt;', '&#60;', '%00', '\u202eevil', '\ud800', '\uffff',
    '\u2028', '|', ' + ', 'a|b', 'a + b', '=cmd()', '__proto__', '__class__', '{0.__class__}', '%s%n', '{}',
    '$HOME', '~/x', 'javascript:alert(1)', 'file:///etc/passwd', 'gs://bucket/x', 's3://bucket/x',
    'http://x/', 'NaN', 'None', 'nul', 'test', 'train', '0', '-1', '1e999', '١٢', '²', 'İ', 'ß', 'e\u0301',
    '$x^2$', '\\frac{',
)  # fmt: skip
TEXT = st.one_of(
    st.sampled_from(NAMES),
    st.text(max_size=12),
    st.sampled_from([300, 70_000]).map(lambda length: 'x' * length),
)
NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2, 3, 2**31, 2**63, -(2**63), 10**9, 10**30, 10**400]),
    st.sampled_from([0.0, -0.0, 0.5, 1e-320, 1e308, -1e308]),
    st.sampled_from([float('nan'), float('inf'), -float('inf')]),
    st.integers(-100, 100_000),
    st.floats(),
)
PLAIN = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
VALUES = st.one_of(
    PLAIN,
    st.lists(PLAIN, max_size=4),
    st.dictionaries(TEXT, PLAIN, max_size=3),
    st.recursive(
        PLAIN,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
        max_leaves=8,
    ),
)

DEEP = 100_000
# Files that are to be JSON, and no writer of JSON gives.
NO_JSON = (
    b'', b'\n', b'{', b'[', b'nul', b'{}{}', b'{"a": 1,}', b"{'a': 1}", b'\xff\xfe{\x00}\x00',
    b'\xef\xbb\xbf{}', b'\x00', b'"\xed\xa0\x80"', b'[' * DEEP, b'{"a":' * DEEP, b'[' * DEEP + b']' * DEEP,
    b'{"a":' * DEEP + b'1' + b'}' * DEEP, b'9' * 5_000, b'-' + b'9' * 5_000,
    b'{"a": ' + b'9' * 5_000 + b'}', b'1e99999', b'[NaN]', b'null', b'true', b'3', b'"text"', b'[]',
    b'[[]]', b'{"": {}}', b'{"a": 1, "a": 2}', b'{"a": "\\ud800"}', b'{"a": "\\u0000"}', b'<html>',
    b'#!/bin/sh\n', b'\x80\x04\x95',
)  # fmt: skip


def _spots(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the place of everything within a value of JSON."""
    items: Sequence[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, inner in items:
        yield (*place, key)
        yield from _spots(inner, (*place, key))


@st.composite
def spoilt(draw: st.DrawFn, value: Any, most: int = 2) -> Any:
    """Draws a value of JSON with a few parts replaced, left out, moved or added."""
    found = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, most))):
        spots = list(_spots(found))
        if not spots:
            return draw(VALUES)
        *way, key = draw(st.sampled_from(spots))
        node = found
        for step in way:
            node = node[step]
        kind = draw(st.sampled_from(('replace', 'replace', 'replace', 'remove', 'add', 'swap', 'rename')))
        if kind == 'replace':
            node[key] = draw(VALUES)
        elif kind == 'remove':
            del node[key]
        elif kind == 'add' or isinstance(node, list):
            if isinstance(node, dict):
                node[draw(TEXT)] = draw(VALUES)
            else:
                node.insert(key, draw(VALUES))
        elif kind == 'swap':
            other = draw(st.sampled_from(list(node)))
            node[key], node[other] = node[other], node[key]
        else:
            node[draw(TEXT)] = node.pop(key)
    return found


def json_bytes(value: Any) -> bytes:
    """Writes JSON, numbers that are none and halves of letters included."""
    return json.dumps(value).encode()


def no_json() -> st.SearchStrategy[bytes]:
    """Draws what is no JSON, or none of a file's; by number, since some of it is long."""
    return st.integers(0, len(NO_JSON) - 1).map(NO_JSON.__getitem__)


def json_files(value: Any) -> st.SearchStrategy[bytes]:
    """Draws the content of a JSON file: spoilt values of a valid one, its bytes broken, or what is none."""
    valid = json_bytes(value)
    return st.one_of(spoilt(value).map(json_bytes), spoilt(value).map(json_bytes), broken(valid), no_json())
