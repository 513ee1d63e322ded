"""TFRecords of DMVR and MediaSequence: videos as sequences of JPEG images, sharded; Scenic's ViViT read these.

Keys: https://github.com/google-deepmind/dmvr (`examples/generate_from_file.py`) and MediaPipe's
`util/sequence/media_sequence.h`. No TensorFlow is needed.
"""

import collections
import functools
import hashlib
import itertools
import json
import os
import re
import statistics
from collections.abc import Sequence

from vivit_jax import paths
from vivit_jax.data.examine import Examination, examine
from vivit_jax.data.files import shards, stores
from vivit_jax.data.listing import Layout
from vivit_jax.data.listing.splits import SPLITS, split_name
from vivit_jax.data.record import Found, Label, Record

VIDEO = 'image/encoded'
INDEX, TEXTS = 'clip/label/index', ('clip/label/text', 'clip/label/string')  # DMVR's, MediaSequence's
FORM = 'SPLIT=NAME@SHARDS or SPLIT=FILE, with commas between, as train=train.tfrecord@1024,test=test.tfrecord'
# What `shards` says of a file whose end cannot be read.
REST = re.compile('^(?:the file is cut off: |its length is damaged: the )([0-9]+) ')

Shots = list[tuple[str, shards.Shot]]  # with the file of each, relative to the root


class TFRecords:
    """A source of examples in TFRecords; every process can read any of them, in any order.

    Attributes:
        class_names: Of all splits alike, those of several heads one after another.
        bad: (file and record, cause) of what cannot be used.
        lost: Examples that are missing for that, as near as can be told: a shard is many.
        splits: Names of all splits there are.
        note: A line for the log where classes are not numbered as the records say; else ''.
        digest: Of classes, places and labels.
    """

    def __init__(self, split: str, *, layout: Layout, examination: Examination, files: str = ''):
        """Finds the examples of all splits, once: the classes are those of all of them.

        Args:
            split: Which split.
            layout: Its `root` is the folder of the files. One head is labelled by `clip/label/index`, with
                one number, or any with `several_labels`. Of several heads, each has `HEAD/clip/label/index`; or
                all are in `clip/label/index`, counted through the heads, as Scenic does (of 300 nouns and 97
                verbs, the first verb is 300).
            examination: How files are looked into.
            files: Which files make which split, `SPLIT=NAME@SHARDS,…`; '': found by the splits' names.

        Raises:
            ValueError: If the data is not there or contradicts itself; one line.
        """
        if layout.root is None:
            raise ValueError(
                'config.data.root is not set: give the folder that holds the TFRecords; --config.data.root=ROOT'
            )
        self._seconds = examination.seconds
        self._root = paths.expanded(layout.root)
        if not self._root.is_dir():
            raise ValueError(f'config.data.root={layout.root!r} is not a folder: it must hold TFRecords')
        split = split_name(split)
        found = find_files(self._root, split, files)
        self.splits = tuple(found)
        keys = [INDEX] if len(layout.heads) == 1 else [*(f'{head}/{INDEX}' for head in layout.heads), INDEX]
        look = functools.partial(shards.probe, video=VIDEO, labels=tuple(keys), texts=TEXTS)
        probe = functools.partial(stores.probe, look)
        names = [name for group in found.values() for name in group]
        outcomes = examine(f'tfrecords {" ".join(keys)}', self._root, names, probe, examination)
        self.bad: list[tuple[str, str]] = []
        self.lost = 0
        everything: dict[str, Shots] = {}
        for each, group in found.items():
            everything[each], bad = _gather(group, outcomes)
            if each == split:
                self.bad, self.lost = bad, _lost(group, outcomes)
        sizes = _head_sizes(everything, layout)
        self.class_names, by_name, self.note = _classes(everything, sizes)
        self._examples: list[tuple[str, shards.Shot, Label]] = []
        for name, shot in everything[split]:
            label = _label(shot, sizes, layout, by_name)
            if isinstance(label, str):
                self.bad.append((f'{name}, record {shot.number}', label))
                self.lost += 1
            else:
                self._examples.append((name, shot, label))
        counts = collections.Counter(shot.name for _, shot, _ in self._examples)
        self._once = {name for name, count in counts.items() if name and count == 1}
        lines = [[name, shot.number, label, shot.num_frames] for name, shot, label in self._examples]
        self.digest = hashlib.sha256(json.dumps([self.class_names, lines]).encode()).hexdigest()

    def __len__(self) -> int:
        """Returns the number of examples that can be used."""
        return len(self._examples)

    def __getitem__(self, index: int) -> Record:
        """Returns the record at `index`, with frames uint8 `[t h w 3]`, RGB."""
        if not 0 <= index < len(self._examples):
            raise IndexError(f'TFRecords: index {index} must be in [0, {len(self._examples)})')
        name, shot, label = self._examples[index]
        where = f'{name}, record {shot.number}'
        path = os.path.join(self._root, name)
        return Record(
            name=shot.name if shot.name in self._once else f'{shot.name} ({where})' if shot.name else where,
            label=label,
            num_frames=shot.num_frames,
            frame_size=(shot.height, shot.width),
            read=functools.partial(shards.read, path, shot, VIDEO, seconds=self._seconds),
            seconds=shot.seconds,
            codec=shot.codec,
        )


def find_files(root: paths.Path, split: str, files: str) -> dict[str, list[str]]:
    """Finds the files of every split, sorted, relative to the root.

    Args:
        root: Folder that holds them.
        split: That must be there, with all its shards.
        files: `SPLIT=NAME@SHARDS,…`, or '': by the split's name (or one that stands for it, as `val`) in files called
            `…-00000-of-00016` or `….tfrecord`.

    Raises:
        ValueError: Naming what is missing or ambiguous.
    """
    if files:
        given = [part.strip().partition('=') for part in files.split(',')]
        if not all(name and value for name, _, value in given):
            raise ValueError(f'config.data.tfrecords.files={files!r} must be {FORM}')
        found = {split_name(name.strip()): _expand(root, value.strip()) for name, _, value in given}
        if split not in found:
            raise ValueError(
                f'config.data.tfrecords.files={files!r} does not tell the split {split!r}, but {", ".join(found)}'
            )
        return found
    groups = _groups(root)
    by_split = {}
    for each in dict.fromkeys((*SPLITS, split)):
        words = '|'.join(SPLITS.get(each, (re.escape(each),)))
        own = [name for name in groups if re.search(f'(?<![a-z0-9])({words})(?![a-z])', name.lower())]
        if len(own) > 1:
            raise ValueError(
                f'{root} has several files that may be the split {each!r}: {", ".join(own)}; say which with '
                f'--config.data.tfrecords.files={each}={own[0]}'
            )
        if own:
            by_split[each] = _expand(root, own[0])
    if split not in by_split:
        raise ValueError(
            f'{root} has no TFRecords of the split {split!r}: it has {", ".join(groups) or "none at all"}; files are '
            'called SPLIT.tfrecord-00000-of-00016 or SPLIT.tfrecord, others are told by config.data.tfrecords.files'
        )
    return by_split


def _groups(root: paths.Path) -> list[str]:
    """Returns what there is, shards as NAME@SHARDS."""
    found = set()
    for entry in root.iterdir():
        parts = re.fullmatch(r'(.+)-[0-9]{5,}-of-([0-9]{5,})(.*)', entry.name)
        if parts and not entry.name.startswith('.'):
            found.add(f'{parts[1]}@{int(parts[2])}{parts[3]}')
        elif re.search(r'\.tfrec(ords?)?$', entry.name) and not entry.name.startswith('.'):
            found.add(entry.name)
    return sorted(found)


def _expand(root: paths.Path, value: str) -> list[str]:
    """Returns the files of NAME@SHARDS, all of which must be there, or the one that is named."""
    parts = re.fullmatch(r'(.+)@([0-9]+)(\..*)?', value)
    if parts:
        name, count, after = parts[1], int(parts[2]), parts[3] or ''
        names = [f'{name}-{shard:05d}-of-{count:05d}{after}' for shard in range(count)]
    else:
        names = [value]
    if paths.is_remote(root):
        there = {entry.name for entry in stores.entries(str(root))}  # to ask for each takes long
        missing = [name for name in names if name not in there]
    else:
        missing = [name for name in names if not (root / name).is_file()]
    if missing or not names:
        listed = ', '.join(missing[:5]) + (', …' if len(missing) > 5 else '')
        raise ValueError(f'{len(missing)} of the {len(names)} files of {value} are not in {root}: {listed}')
    return names


def _gather(names: Sequence[str], outcomes: dict[str, Found | str]) -> tuple[Shots, list[tuple[str, str]]]:
    shots: Shots = []
    bad: list[tuple[str, str]] = []
    for name in names:
        found = outcomes[name]
        if isinstance(found, str):
            bad.append((name, found))
            continue
        good, causes = shards.unpack(found)
        shots += [(name, shot) for shot in good]
        bad += [(f'{name}, {which}', cause) for which, cause in causes]
    return shots, bad


def _lost(names: Sequence[str], outcomes: dict[str, Found | str]) -> int:
    """Returns how many examples of a split are missing: counted, or for what has no whole record estimated.

    A shard that cannot be read counts as many as the whole ones have on average, at least 1. One that ends too early
    counts the bytes of its rest in records of its mean size (where it has none, in those of the split), or what it
    lacks to that average if that is more, at least 1.
    """
    opened = {name: shards.unpack(found) for name in names if not isinstance(found := outcomes[name], str)}
    counts = {name: len(shots) + len(bad) for name, (shots, bad) in opened.items()}
    whole = [counts[name] for name, (_, bad) in opened.items() if not _rest(bad)] or list(counts.values())
    typical = statistics.mean(whole) if whole else 0.0
    of_all = [shot.length for shots, _ in opened.values() for shot in shots]
    lost = (len(names) - len(opened)) * max(round(typical), 1)
    for shots, bad in opened.values():
        lost += len(bad)
        if rest := _rest(bad):
            sizes = [shot.length for shot in shots] or of_all or [rest]
            in_rest = rest / (statistics.mean(sizes) + shards.HEADER.size + shards.FOOTER.size)
            lost += max(round(in_rest), round(typical) - len(shots) - len(bad) + 1, 1) - 1
    return lost


def _rest(bad: Sequence[tuple[str, str]]) -> int:
    """Returns the bytes after a shard's last whole record; 0 where it ends with one."""
    told = REST.search(bad[-1][1]) if bad else None
    return int(told[1]) if told else 0


def _head_sizes(everything: dict[str, Shots], layout: Layout) -> tuple[int, ...]:
    """Returns the classes of each head: those set, else as many as the records show."""
    heads = layout.heads
    if layout.num_classes:
        if len(layout.num_classes) != len(heads):
            raise ValueError(
                f'config.data.num_classes={layout.num_classes} must be one each of {", ".join(heads)}'
            )
        return layout.num_classes
    sizes = []
    for place, head in enumerate(heads):
        numbers = [
            number for shots in everything.values() for _, shot in shots for number in shot.labels[place]
        ]
        if not numbers and len(heads) == 1:
            raise ValueError(f'no record in {layout.root} has a label ({INDEX})')
        if not numbers:
            raise ValueError(
                f'no record in {layout.root} has {head}/{INDEX}: where {INDEX} counts through {", ".join(heads)}, '
                'config.data.num_classes must tell how many each has'
            )
        sizes.append(max(numbers) + 1)
    return tuple(sizes)


def _classes(everything: dict[str, Shots], sizes: Sequence[int]) -> tuple[list[str], dict[str, int], str]:
    """Returns the names of all classes; and where numbers contradict names, new numbers by name, with a note."""
    named: dict[int, str] = {}
    numbered: dict[str, int] = {}
    contradiction = ''
    shots = [(name, shot) for group in everything.values() for name, shot in group]
    for name, shot in shots:
        numbers, texts = shot.labels[-1], _texts(shot)
        if len(numbers) != len(texts):
            continue
        for number, text in zip(numbers, texts, strict=True):
            if named.setdefault(number, text) != text or numbered.setdefault(text, number) != number:
                contradiction = contradiction or f'{name}, record {shot.number}: {text!r} is {number}'
    if not contradiction:
        starts = itertools.accumulate(sizes, initial=0)
        names = [
            named.get(s + n, str(n)) for s, size in zip(starts, sizes, strict=False) for n in range(size)
        ]
        return names, {}, ''
    # DMVR's example program numbers the classes of every table afresh, in no particular order.
    if len(sizes) > 1 or any(len(shot.labels[-1]) != len(_texts(shot)) for _, shot in shots):
        raise ValueError(
            f'the records contradict each other: {contradiction}, but not in others; write them again'
        )
    names = sorted({text for _, shot in shots for text in _texts(shot)})
    note = (
        f'the records number their classes differently ({contradiction}, but not in others): numbered by name'
    )
    return names, {text: number for number, text in enumerate(names)}, note


def _texts(shot: shards.Shot) -> list[str]:
    return next((texts for texts in shot.texts if texts), [])


def _label(shot: shards.Shot, sizes: Sequence[int], layout: Layout, by_name: dict[str, int]) -> Label | str:
    """Returns the label, or what is wrong with it."""
    if any(shot.labels[:-1]):  # each head has its own feature
        for head, size, numbers in zip(layout.heads, sizes, shot.labels, strict=False):
            if len(numbers) != 1 or not 0 <= numbers[0] < size:
                return f'{head} {_shown(numbers)}: it must be one number in [0, {size})'
        return tuple(numbers[0] for numbers in shot.labels[:-1])
    numbers = [by_name[text] for text in _texts(shot)] if by_name else sorted(shot.labels[-1])
    if not numbers:
        return f'no label ({INDEX})'
    total = len(by_name) or sum(sizes)
    if numbers[0] < 0 or numbers[-1] >= total:
        return f'label {_shown(numbers)}: it must be in [0, {total})'
    if layout.several_labels:
        return tuple(float(number in numbers) for number in range(total))
    if by_name or len(sizes) == 1:
        several = "one is needed (several go with training.loss='sigmoid')"
        return numbers[0] if len(numbers) == 1 else f'labels {_shown(numbers)}: {several}'
    starts = list(itertools.accumulate(sizes, initial=0))
    within = [number - start for number, start in zip(numbers, starts, strict=False)]
    if len(numbers) != len(sizes) or not all(0 <= a < size for a, size in zip(within, sizes, strict=True)):
        return f'labels {_shown(numbers)}: one is needed of {", ".join(layout.heads)}, counted through them'
    return tuple(within)


def _shown(numbers: Sequence[int]) -> str:
    return ', '.join(map(str, numbers)) or 'nothing'
