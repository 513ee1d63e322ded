"""Files that folders or tables list, as a source: videos, folders of frames, volumes."""

import bisect
import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float64, Integer, Shaped

from vivit_jax import paths
from vivit_jax.data.examine import Examination, Outcome, examine
from vivit_jax.data.files import stores
from vivit_jax.data.listing import Entry, Layout, Listing, list_examples
from vivit_jax.data.listing.pinning import as_begun, pack_listing, unpack_listing
from vivit_jax.data.record import Found, Record

# Times are fractions of whole numbers: what is asked for between two of them must not miss one by rounding.
ROUNDING = 1e-6  # seconds
MOST_FRAMES = 10**7  # of an example: a damaged clock makes more, which would fill the memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of file. Functions travel to worker processes, so they are a module's own or partial ones.

    Attributes:
        name: Tells what is found in files: another name where the same file would give something else.
        endings: Of file names, lower case with the dot.
        folders: An example is a folder of such files.
        channels: Of the pixels that are read, 3 for RGB.
        probe: Maps a full path to what is in the file, or to the reason why it cannot be used.
        read: Maps (full path, what was found, frame indices) to the pixels `[t h w c]`. Both take `seconds`, see
            `time_limit`.
        times: Maps what was found to the seconds of every frame, in order; None where there is no time.
    """

    name: str
    endings: tuple[str, ...]
    folders: bool = False
    channels: int = 3
    probe: Callable[..., Found | str]
    read: Callable[..., Shaped[np.ndarray, 't h w c']]
    times: Callable[[Found], Float64[np.ndarray, ' n']] | None = None

    def look(self, file: str) -> Found | str:
        """Looks into a file, see `probe`, wherever it is."""
        return self.probe(file) if self.folders else stores.probe(self.probe, file)

    def within(self, seconds: float) -> 'Kind':
        """Returns the kind whose files are given up after so many seconds, see `time_limit`; 0: never."""
        if not seconds:
            return self
        probe = functools.partial(self.probe, seconds=seconds)
        return dataclasses.replace(self, probe=probe, read=functools.partial(self.read, seconds=seconds))


class ListedFiles:
    """A source of listed files; every process can read any of them, in any order.

    Attributes:
        class_names: Of all splits alike, those of several heads one after another.
        head_sizes: Classes of each head.
        bad: (name, cause) of what was left out.
        splits: Names of all splits there are.
        note: How examples came into this split, where nobody said.
        digest: Of classes, names, labels and lengths.
    """

    def __init__(self, split: str, *, kind: Kind, layout: Layout, examination: Examination, fps: float = 0.0):
        """Lists the examples of a split and looks into their files.

        Args:
            split: Which split.
            kind: What the files are.
            layout: Where the examples are told.
            examination: How files are looked into.
            fps: Frames a second that a record's frames are counted in: its frame i is the one shown i / fps
                seconds after its first. 0: the frames that the file has.

        Raises:
            ValueError: If the data is not there or contradicts itself; one line.
        """
        kind = kind.within(examination.seconds)
        listing = list_examples(split, layout=layout, endings=kind.endings, folders=kind.folders)
        begun = examination.begun.get(kind.name, {}).get(split)
        examination.listed.setdefault(kind.name, {})[split] = begun or pack_listing(listing)
        if begun:
            listing = as_begun(listing, unpack_listing(begun), split)
        files = [entry.path for entry in listing.entries]
        outcomes = examine(kind.name, listing.folder, files, kind.look, examination)
        self._take(listing, outcomes, kind, fps)

    @classmethod
    def of(
        cls, listing: Listing, outcomes: Mapping[str, Outcome], *, kind: Kind, fps: float = 0.0
    ) -> 'ListedFiles':
        """Makes a source of a listing that is at hand.

        Args:
            listing: The examples.
            outcomes: What was found in each of their files, by path.
            kind: What the files are.
            fps: See `__init__`.

        Raises:
            ValueError: If frames are counted by time where there is none; one line.
        """
        files = cls.__new__(cls)
        files._take(listing, outcomes, kind, fps)
        return files

    def _take(self, listing: Listing, outcomes: Mapping[str, Outcome], kind: Kind, fps: float) -> None:
        if fps and kind.times is None:
            raise ValueError(f'config.data.fps={fps:g}: {kind.name} have no time; set it to 0')
        self.class_names, self.head_sizes = listing.class_names, listing.head_sizes
        self.splits, self.note = listing.splits, listing.note
        self._kind, self._fps, self._folder = kind, fps, str(listing.folder)
        self.bad = list(listing.bad)
        self._examples: list[tuple[Entry, Found]] = []
        for entry in listing.entries:
            found = outcomes[entry.path]
            cause = found if isinstance(found, str) else _outside(entry, found, kind, fps)
            if cause:
                self.bad.append((_name(entry), cause + (f' ({entry.where})' if entry.where else '')))
            elif not isinstance(found, str):
                self._examples.append((entry, found))
        lines = [[_name(entry), entry.label, found.num_frames] for entry, found in self._examples]
        self.digest = hashlib.sha256(json.dumps([self.class_names, lines]).encode()).hexdigest()

    def __len__(self) -> int:
        """Returns the number of examples that can be read."""
        return len(self._examples)

    def path(self, index: int) -> str:
        """Returns the full path of the file that an example is in."""
        return paths.join(self._folder, self._examples[index][0].path)

    def entry(self, index: int) -> Entry:
        """Returns how an example is listed."""
        return self._examples[index][0]

    def __getitem__(self, index: int) -> Record:
        """Returns the record at `index`."""
        if not 0 <= index < len(self._examples):
            raise IndexError(f'{self._kind.name}: index {index} must be in [0, {len(self._examples)})')
        entry, found = self._examples[index]
        frames = self._frames(entry, found)
        seconds = found.seconds
        if seconds is not None:
            seconds = len(frames) / self._fps if self._fps else seconds * len(frames) / found.num_frames
        return Record(
            name=_name(entry),
            label=entry.label,
            num_frames=len(frames),
            frame_size=found.frame_size,
            read=functools.partial(_read, self._kind, self.path(index), found, frames),
            seconds=seconds,
            codec=found.codec,
        )

    def _frames(self, entry: Entry, found: Found) -> range | Integer[np.ndarray, ' n']:
        """Returns the frames of the file that make the example, those of its time or place at the wanted rate."""
        first = entry.first
        stop = found.num_frames if entry.stop is None else min(entry.stop, found.num_frames)
        if self._kind.times is None or (not self._fps and not entry.start and entry.end == math.inf):
            return range(first, stop)
        times = self._kind.times(found)
        first = max(first, bisect.bisect_left(times, entry.start - ROUNDING))
        stop = min(stop, bisect.bisect_left(times, entry.end - ROUNDING))
        first = min(first, len(times) - 1)
        stop = max(stop, first + 1)
        return at_rate(times, first, stop, self._fps) if self._fps else range(first, stop)


def at_rate(times: Float64[np.ndarray, ' n'], first: int, stop: int, fps: float) -> Integer[np.ndarray, ' m']:
    """Returns the frames that are shown at every 1 / fps seconds, from frame `first` to before frame `stop`.

    Args:
        times: When each frame begins to be shown, in seconds, in order.
        first: Shown at the first of the times.
        stop: The frame after the last one; the last is shown as long as the frames are on average.
        fps: Times a second, above 0.
    """
    shown = times[first:stop]
    last = (shown[-1] - shown[0]) / (len(shown) - 1) if len(shown) > 1 else 1.0 / fps
    count = max(math.ceil((shown[-1] + last - shown[0] - ROUNDING) * fps), 1)
    at = shown[0] + np.arange(count) / fps
    return first + np.searchsorted(shown, at + ROUNDING, side='right') - 1


def _outside(entry: Entry, found: Found, kind: Kind, fps: float) -> str:
    """Says where an example is past the end of its file, or the file's end past belief; '' where neither is so."""
    if entry.first >= found.num_frames:
        return f'begins at frame {entry.first}, but the file has {found.num_frames}'
    timed = bool(entry.start) or entry.end != math.inf
    if timed and (kind.times is None or found.seconds is None):
        return f'begins at {entry.start:g} s, but {kind.name} have no time'
    if found.seconds is not None and entry.start >= found.seconds:
        return f'begins at {entry.start:g} s, but the file ends at {found.seconds:.3f} s'
    if found.seconds is not None and found.seconds * fps > MOST_FRAMES:
        return f'claims to last {found.seconds:.3g} s, which are more than {MOST_FRAMES:,} frames at data.fps={fps:g}'
    return ''


def _name(entry: Entry) -> str:
    """Returns the path, with the part of the file after it where that is not the whole (as in a URI)."""
    if entry.start or entry.end != math.inf:
        return f'{entry.path}#t={entry.start:g}' + ('' if entry.end == math.inf else f',{entry.end:g}')
    if entry.first or entry.stop is not None:
        return f'{entry.path}#frames={entry.first}' + ('' if entry.stop is None else f',{entry.stop}')
    return entry.path


def _read(
    kind: Kind,
    path: str,
    found: Found,
    frames: range | Integer[np.ndarray, ' n'],
    indices: Integer[np.ndarray, ' t'],
) -> Shaped[np.ndarray, 't h w c']:
    wanted = frames.start + np.asarray(indices) if isinstance(frames, range) else frames[indices]
    # Of a folder of a store only what is wanted comes here.
    return kind.read(path, found, wanted) if kind.folders else stores.read(kind.read, path, found, wanted)
