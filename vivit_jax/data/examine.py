"""Looking into many files once: in parallel, with progress, and remembered until a file changes.

What was found in the files of a folder is kept in one manifest, gzipped JSON lines, in a cache folder. A file is
looked into again only when its size or one of its times has changed, so that the second start on a large data set
costs one `stat` a file. A run keeps a manifest of its own as well: going on, it takes the files as they were when it
began, and meets what has become unreadable since as it meets any file that goes bad while it trains.
"""

import dataclasses
import gzip
import hashlib
import json
import math
import os
import pathlib
import stat
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import Any

from vivit_jax import paths
from vivit_jax.data.files import stores, time_limit
from vivit_jax.data.record import Found

VERSION = 2  # of the manifests; others are not read
SAVE_EVERY = 30.0  # seconds: what a long look has found is safe from interruptions

Outcome = Found | str  # what is in a file, or why it cannot be used
Stamp = tuple[int, int, int]  # bytes, modified, changed (nanoseconds)


def default_cache() -> pathlib.Path:
    """Returns the folder of the user's caches, `$XDG_CACHE_HOME` or `~/.cache`, with our name."""
    return pathlib.Path(os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache') / 'vivit_jax'


@dataclasses.dataclass(kw_only=True)
class Examination:
    """How files are looked into, and what has been found so far.

    Attributes:
        cache: Folder of manifests; None keeps none.
        known: Outcomes that hold whatever the files are now, by kind and path: the manifest of a run.
        on_progress: Told of the files done and in all.
        threads: That look.
        seconds: After which a file is given up, see `time_limit`; 0: never.
        seen: Outcomes of everything that was asked for, by kind and path.
        begun: Listings that a run began with, as JSON holds them, by kind and split; they hold whatever is there now.
        listed: Listings that are in use, in the same form.
    """

    cache: pathlib.Path | None = None
    known: dict[str, dict[str, Outcome]] = dataclasses.field(default_factory=dict)
    on_progress: Callable[[int, int], None] = lambda done, total: None
    threads: int = 16
    seconds: float = 0.0
    seen: dict[str, dict[str, Outcome]] = dataclasses.field(default_factory=dict)
    begun: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    listed: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


def examine(
    kind: str,
    folder: paths.Path,
    files: Iterable[str],
    probe: Callable[[str], Outcome],
    examination: Examination,
) -> dict[str, Outcome]:
    """Looks into files.

    Args:
        kind: What is looked for; outcomes of one kind are not taken for those of another.
        folder: What the files' paths are relative to.
        files: Each looked into once however often it is listed.
        probe: Maps a full path to the outcome; raises nothing.
        examination: How.

    Returns:
        The outcome of each path.
    """
    known = examination.known.setdefault(kind, {})
    outcomes = {path: known[path] for path in dict.fromkeys(files) if path in known}
    asked = [path for path in dict.fromkeys(files) if path not in outcomes]
    if asked:
        manifest = None
        if examination.cache is not None:
            where = hashlib.sha256(
                f'{kind} {paths.absolute(folder)}'.encode('utf-8', 'surrogateescape')
            ).hexdigest()[:20]
            manifest = examination.cache / f'manifest-{where}.jsonl.gz'
        outcomes |= _examine(folder, asked, probe, manifest, examination)
    examination.seen.setdefault(kind, {}).update(outcomes)
    return outcomes


def _examine(
    folder: paths.Path,
    names: list[str],
    probe: Callable[[str], Outcome],
    manifest: pathlib.Path | None,
    examination: Examination,
) -> dict[str, Outcome]:
    remembered = _read(manifest) if manifest is not None else {}
    base = str(folder)
    with futures.ThreadPoolExecutor(examination.threads) as pool:
        stamps: dict[str, Stamp | str] = {}
        if paths.is_remote(base):
            stamps = stores.stamps(base, [name for name in names if not os.path.isabs(name)])
        each = [name for name in names if name not in stamps]
        stamps |= zip(each, pool.map(_stamp, [paths.join(base, name) for name in each]), strict=True)
        outcomes: dict[str, Outcome] = {}
        left: dict[str, Stamp] = {}
        for path, stamp in stamps.items():
            if isinstance(stamp, str):
                outcomes[path] = stamp
            elif path in remembered and remembered[path][0] == stamp:
                outcomes[path] = remembered[path][1]
            else:
                left[path] = stamp

        def look(path: str) -> None:
            outcomes[path] = probe(paths.join(base, path))
            if not time_limit.is_one(outcomes[path]):  # it may be read on another day
                remembered[path] = (left[path], outcomes[path])

        saved = time.monotonic()
        running = [pool.submit(look, path) for path in left]
        try:
            for done, future in enumerate(futures.as_completed(running), start=1):
                future.result()
                examination.on_progress(done, len(left))
                if manifest is not None and time.monotonic() - saved > SAVE_EVERY:
                    _write(manifest, dict(remembered))
                    saved = time.monotonic()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            if manifest is not None and left:
                _write(manifest, remembered)
    return outcomes


def _stamp(path: str) -> Stamp | str:
    """Returns what changes when a file does, or why there is nothing to look into."""
    if paths.is_remote(path):
        return stores.stamp(path)
    try:
        found = os.stat(path)
    except (OSError, ValueError) as error:
        if os.path.islink(path):
            return f'a link to {os.readlink(path)}, which is not there'
        return 'no such file' if isinstance(error, FileNotFoundError) else _cause(error)
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        return 'neither a file nor a folder'  # reading a pipe would never end
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _cause(error: Exception) -> str:
    return getattr(error, 'strerror', None) or str(error)


def _read(manifest: pathlib.Path) -> dict[str, tuple[Stamp, Outcome]]:
    """Reads a manifest; one that is not there, of another version or damaged is as good as none."""
    remembered = {}
    try:
        with gzip.open(manifest, 'rt', encoding='utf-8', errors='surrogateescape') as lines:
            if json.loads(next(lines)) != {'version': VERSION}:
                return {}
            for line in lines:
                path, stamp, outcome = json.loads(line)
                remembered[path] = (tuple(stamp), unpack(outcome))
    except (OSError, EOFError, ValueError, TypeError, StopIteration, zlib.error):
        pass
    return remembered


def _write(manifest: pathlib.Path, remembered: dict[str, tuple[Stamp, Outcome]]) -> None:
    """Writes a manifest whole or not at all; a cache that cannot be written is done without."""
    rows = ([path, stamp, pack(outcome)] for path, (stamp, outcome) in remembered.items())
    try:
        manifest.parent.mkdir(parents=True, exist_ok=True)
        _write_lines(manifest, rows)
    except OSError:
        pass


def _write_lines(path: pathlib.Path, rows: Iterable[object]) -> None:
    unfinished = path.with_name(f'{path.name}.{os.getpid()}.tmp')
    try:
        with gzip.open(unfinished, 'wt', compresslevel=1, encoding='utf-8', errors='surrogateescape') as file:
            file.write(json.dumps({'version': VERSION}) + '\n')
            file.writelines(json.dumps(row) + '\n' for row in rows)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def pack(outcome: Outcome) -> object:
    """Turns an outcome into what JSON can hold."""
    if isinstance(outcome, str):
        return outcome
    return [outcome.num_frames, *outcome.frame_size, outcome.seconds, outcome.codec, outcome.index]


def unpack(packed: Any) -> Outcome:
    """Turns `pack`'s result back; a ValueError or TypeError where it is none."""
    if isinstance(packed, str):
        return packed
    num_frames, height, width, seconds, codec, index = packed
    whole = all(type(one) is int and one > 0 for one in (num_frames, height, width))
    timed = seconds is None or (type(seconds) is float and 0 <= seconds < math.inf)
    if not whole or not timed or not isinstance(codec, str) or not isinstance(index, str):
        raise ValueError('what is told of a file is damaged')
    return Found(num_frames=num_frames, frame_size=(height, width), seconds=seconds, codec=codec, index=index)


def write_known(path: paths.Path, examination: Examination) -> None:
    """Writes everything that was listed and seen, for `read_known`: the manifest of a run."""
    rows: list[object] = [
        ['listing', kind, split, listing]
        for kind, listings in examination.listed.items()
        for split, listing in listings.items()
    ]
    rows += [
        ['file', kind, name, pack(outcome)]
        for kind, outcomes in examination.seen.items()
        for name, outcome in outcomes.items()
    ]
    with paths.written(path) as file:
        _write_lines(file, rows)


def read_known(path: paths.Path, examination: Examination) -> None:
    """Reads what `write_known` wrote into `known` and `begun`.

    A run without a manifest, or with a damaged one, lists and looks again.
    """
    known: dict[str, dict[str, Outcome]] = {}
    begun: dict[str, dict[str, Any]] = {}
    try:
        with (
            paths.local(path) as file,
            gzip.open(file, 'rt', encoding='utf-8', errors='surrogateescape') as lines,
        ):
            if json.loads(next(lines)) != {'version': VERSION}:
                return
            for line in lines:
                what, kind, name, content = json.loads(line)
                if what == 'listing':
                    begun.setdefault(kind, {})[name] = content
                else:
                    known.setdefault(kind, {})[name] = unpack(content)
    except (OSError, EOFError, ValueError, TypeError, StopIteration, zlib.error):
        return
    examination.known, examination.begun = known, begun
