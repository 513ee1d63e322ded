"""Prepared videos in ArrayRecord files, as `tools/prepare_videos.py` writes them, read in any order.

ROOT/manifest.json.gz                      classes, and of each example its label, its place and what is in it
ROOT/train-00000-of-00008.array_record     a shard: videos, a whole file in each record
ROOT/facts/train-00000-of-00008.json       what is in a shard that is whole
"""

import dataclasses
import functools
import gzip
import hashlib
import json
import os
import pathlib
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from jaxtyping import Integer, UInt8

from vivit_jax import paths
from vivit_jax.data.examine import Outcome, pack, unpack
from vivit_jax.data.files.decoding import read_frames
from vivit_jax.data.record import Found, Label, Record, UnreadableExample

MANIFEST = 'manifest.json.gz'
VERSION = 1  # of the manifest
MOST_BYTES = 2**30  # of it, unpacked: some millions of examples
# One record a group can be read alone; videos do not compress further.
WRITING = 'group_size:1,uncompressed'
READING = 'readahead_buffer_size:0,max_parallelism:0'
OPEN_SHARDS = 64  # at a time, in each process; opening one takes half a millisecond

Prepared = tuple[bytes, Found]  # a video, and what is in it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shard:
    """A whole shard.

    Attributes:
        size: Of the file, in bytes.
        sha256: Of the file.
        outcomes: What became of each example meant for it, in order; those that are a cause are not in it.
    """

    size: int
    sha256: str
    outcomes: tuple[Outcome, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """A split as it was prepared.

    Attributes:
        examples: (name, label) of each, in order.
        shards: (file name, shard) of each; together they have an outcome for every example.
        bad: (name, cause) of what was left out before.
    """

    examples: Sequence[tuple[str, Label]]
    shards: Sequence[tuple[str, Shard]]
    bad: Sequence[tuple[str, str]]

    def all_bad(self) -> list[tuple[str, str]]:
        """Returns (name, cause) of what was left out, before and while preparing."""
        outcomes = [outcome for _, shard in self.shards for outcome in shard.outcomes]
        pairs = zip(self.examples, outcomes, strict=True)
        return [*self.bad, *((name, cause) for (name, _), cause in pairs if isinstance(cause, str))]


class ArrayRecords:
    """A source of prepared videos; every thread and process can read any of them, in any order.

    Attributes:
        class_names: Of all splits alike, those of several heads one after another.
        heads: Names of the heads.
        head_sizes: Classes of each head.
        splits: Names of all splits there are.
        bad: (name, cause) of what was left out when it was prepared, and of what is in a shard that is not whole.
        digest: Of classes, names, labels and lengths.
    """

    def __init__(self, split: str, *, root: str | None, seconds: float = 0.0):
        """Reads the manifest; of the shards no more than their sizes.

        Args:
            split: Which split.
            root: Folder that `tools/prepare_videos.py` wrote.
            seconds: Of reading a clip, see `time_limit`; 0: it is never given up.

        Raises:
            ValueError: If there is no such split, or the manifest or a shard is missing or damaged; one line.
        """
        if root is None:
            raise ValueError(
                'config.data.root is not set: give the folder that tools/prepare_videos.py wrote; '
                '--config.data.root=ROOT'
            )
        self._root = paths.here(root, 'config.data.root')
        path = self._root / MANIFEST
        manifest = _read_manifest(path)
        self.splits = tuple(manifest['splits'])
        if split not in self.splits:
            raise ValueError(f'{self._root} has no split {split!r}; it has {", ".join(self.splits)}')
        self.class_names: list[str] = manifest['class_names']
        self.heads = tuple(manifest['heads'])
        self.head_sizes = tuple(manifest['heads'].values())
        self._seconds = seconds
        content = manifest['splits'][split]
        self._shards = [name for name, _, _ in content['shards']]
        damaged = [self._damage(name, size) for name, size, _ in content['shards']]
        self.bad = [(name, cause) for name, cause in content['bad']]
        self._examples: list[tuple[str, Label, int, int, Found]] = []
        for name, label, shard, place, outcome in content['examples']:
            found = unpack(outcome)
            label = tuple(label) if isinstance(label, list) else label
            if damaged[shard]:
                self.bad.append((name, damaged[shard]))
            elif isinstance(found, Found):
                self._examples.append((name, label, shard, place, found))
        if not self._examples and any(damaged):
            raise ValueError(f'{self._root}: {next(filter(None, damaged))}')
        lines = [[name, label, found.num_frames] for name, label, _, _, found in self._examples]
        self.digest = hashlib.sha256(json.dumps([self.class_names, lines]).encode()).hexdigest()

    def _damage(self, name: str, size: int) -> str:
        """Says what a look at a shard's size tells: why it cannot be whole, or ''."""
        try:
            found = (self._root / name).stat().st_size
        except OSError as error:
            raise ValueError(
                f'{self._root / name} is missing ({error.strerror}): copy it there, or prepare again'
            ) from error
        if found == size:
            return ''
        return f'its shard {name} has {found} of {size} bytes: copy it again, or prepare again'

    def __len__(self) -> int:
        """Returns the number of examples that can be read."""
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        """Returns the record at `index`, with frames uint8 `[t h w 3]`, RGB."""
        if not 0 <= index < len(self._examples):
            raise IndexError(f'prepared videos: index {index} must be in [0, {len(self._examples)})')
        name, label, shard, place, found = self._examples[index]
        return Record(
            name=name,
            label=label,
            num_frames=found.num_frames,
            frame_size=found.frame_size,
            read=functools.partial(
                _read, str(self._root / self._shards[shard]), place, found, seconds=self._seconds
            ),
            seconds=found.seconds,
            codec=found.codec,
        )


def _read_manifest(path: pathlib.Path) -> Any:
    """Reads a manifest, which may be another's: whatever is in it is looked at before it is used."""
    try:
        with gzip.open(path, 'rb') as file:
            text = bytearray()
            while block := file.read(2**20):
                text += block
                if len(text) > MOST_BYTES:
                    raise ValueError(f'it is longer than {MOST_BYTES:,} bytes')
        manifest = json.loads(text)
        known = isinstance(manifest, dict) and manifest.get('version') == VERSION
        if known:
            _check(manifest)
    except FileNotFoundError as error:
        raise ValueError(
            f'{path} is missing: config.data.root must be a folder that tools/prepare_videos.py wrote to its end; '
            'started again, it goes on where it was'
        ) from error
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        zlib.error,
    ) as error:
        cause = f'{type(error).__name__}: {error}' if isinstance(error, KeyError) else str(error)
        raise ValueError(f'{path} is damaged ({" ".join(cause.split())[:300]}): prepare again') from error
    if not known:
        raise ValueError(f'{path} is no manifest of version {VERSION}: prepare again')
    return manifest


def _check(manifest: dict[str, Any]) -> None:
    """Raises where a manifest is not as `write_manifest` makes it: one of several errors."""
    names, heads = manifest['class_names'], manifest['heads']
    sizes = list(heads.values())
    if not all(type(size) is int and size > 0 for size in sizes) or sum(sizes) != len(names):
        raise ValueError('its heads do not go with its classes')
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError('its classes have no names')
    '\n'.join(names).encode()  # a ValueError where one holds half a letter
    for split in manifest['splits'].values():
        for name, size, _ in split['shards']:
            # Shards lie beside the manifest; a name that leads elsewhere was not written here.
            plain = pathlib.PurePath(name).name == name and name not in ('', '.', '..') and name.isprintable()
            if not plain or type(size) is not int:
                raise ValueError(f'the shard {name!r}, of {size!r} bytes, is not beside it')
        if not all(isinstance(text, str) for pair in split['bad'] for text in pair):
            raise ValueError('what was left out has no names')
        for name, label, shard, place, outcome in split['examples']:
            unpack(outcome)
            str(name).encode('utf-8', 'surrogateescape')  # names of files are of any bytes
            there = (
                type(shard) is int and 0 <= shard < len(split['shards']) and type(place) is int and place >= 0
            )
            if not isinstance(name, str) or not there or not _is_label(label, sizes):
                raise ValueError(
                    f'the example {name!r} has the label {label!r}, is in shard {shard!r} at {place!r}'
                )


def _is_label(label: Any, sizes: Sequence[int]) -> bool:
    """Tells whether a label goes with the classes of the heads."""
    if isinstance(label, list) and label and type(label[0]) is float:
        return len(label) == sum(sizes) and all(one in (0.0, 1.0) for one in label)
    labels = label if isinstance(label, list) else [label]
    return len(labels) == len(sizes) and all(
        type(one) is int and 0 <= one < size for one, size in zip(labels, sizes, strict=True)
    )


@functools.lru_cache(maxsize=OPEN_SHARDS)
def _reader(path: str) -> ArrayRecordReader:
    """Opens a shard; threads share it."""
    return ArrayRecordReader(path, READING, file_reader_buffer_size=2**15)


def _read(
    path: str, place: int, found: Found, indices: Integer[np.ndarray, ' t'], *, seconds: float = 0.0
) -> UInt8[np.ndarray, 't h w 3']:
    try:
        (video,) = _reader(path).read([place])
    except (RuntimeError, IndexError, ValueError) as error:  # the first is the package's own
        raise UnreadableExample(f'record {place} of {path} cannot be read: {_line(error)}') from error
    return read_frames(video, found, indices, seconds=seconds)


def _line(error: Exception) -> str:
    return ' '.join(str(error).split())


def write_shard(path: pathlib.Path, prepared: Iterable[Prepared | str]) -> Shard:
    """Writes a shard and what is in it: both whole, or nothing.

    Args:
        path: Its name, in a folder that is there.
        prepared: Its videos, in order; a text says why there is none.

    Raises:
        OSError: If it cannot be written; one line.
    """
    unfinished = path.with_name(f'{path.name}.{uuid.uuid4().hex}.tmp')
    try:
        outcomes = _write_records(unfinished, prepared)
        shard = Shard(size=unfinished.stat().st_size, sha256=_sha256(unfinished), outcomes=tuple(outcomes))
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    _facts(path).parent.mkdir(exist_ok=True)
    write_whole(
        _facts(path), json.dumps([shard.size, shard.sha256, [pack(one) for one in outcomes]]).encode()
    )
    return shard


def _write_records(path: pathlib.Path, prepared: Iterable[Prepared | str]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    try:
        writer = ArrayRecordWriter(str(path), WRITING)
    except RuntimeError as error:
        raise OSError(_line(error)) from error
    try:
        for one in prepared:
            if isinstance(one, str):
                outcomes.append(one)
                continue
            video, found = one
            writer.write(video)
            outcomes.append(found)
    finally:
        # Records are written behind our back: a full disk comes to light here.
        try:
            writer.close()
        except RuntimeError as error:
            raise OSError(_line(error)) from error
    reader = ArrayRecordReader(str(path), READING)
    written = sum(isinstance(outcome, Found) for outcome in outcomes)
    if not reader.ok() or reader.num_records() != written:
        raise OSError(f'{path}: {written} videos were written, but {reader.num_records()} are in it')
    reader.close()
    return outcomes


def read_shard(path: pathlib.Path) -> Shard | None:
    """Returns what is in a shard, None where it is not whole; all of it is read."""
    try:
        size, sha256, outcomes = json.loads(_facts(path).read_bytes())
        if path.stat().st_size == size and _sha256(path) == sha256:
            return Shard(size=size, sha256=sha256, outcomes=tuple(map(unpack, outcomes)))
    except (OSError, ValueError, TypeError):
        pass
    return None


def _facts(path: pathlib.Path) -> pathlib.Path:
    return path.parent / 'facts' / f'{path.stem}.json'


def _sha256(path: pathlib.Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    unfinished = path.with_name(f'{path.name}.{uuid.uuid4().hex}.tmp')
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_manifest(
    root: pathlib.Path,
    *,
    class_names: Sequence[str],
    heads: Mapping[str, int],
    settings: Mapping[str, object],
    splits: Mapping[str, Split],
) -> None:
    """Writes what `ArrayRecords` opens.

    Args:
        root: The folder of the shards.
        class_names: Of all splits alike.
        heads: The classes of each head, by name.
        settings: How the videos were prepared, to be looked up.
        splits: By name.

    Raises:
        OSError: If it cannot be written.
    """
    content = {
        'version': VERSION,
        'class_names': list(class_names),
        'heads': dict(heads),
        'settings': dict(settings),
        'splits': {name: _split(split) for name, split in splits.items()},
    }
    text = json.dumps(content, separators=(',', ':')).encode()
    write_whole(root / MANIFEST, gzip.compress(text, compresslevel=6, mtime=0))


def _split(split: Split) -> dict[str, object]:
    """Returns a split as the manifest has it; an example is [name, label, shard, record, what is in it]."""
    examples, names = [], iter(split.examples)
    for number, (_, shard) in enumerate(split.shards):
        record = 0
        for outcome in shard.outcomes:
            name, label = next(names)
            if isinstance(outcome, Found):
                examples.append([name, label, number, record, pack(outcome)])
                record += 1
    return {
        'shards': [[name, shard.size, shard.sha256] for name, shard in split.shards],
        'examples': examples,
        'bad': split.all_bad(),
    }
