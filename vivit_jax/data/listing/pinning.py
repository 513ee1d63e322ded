"""A run's own listing: the examples that it began with, whatever its folders and tables hold later."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from vivit_jax import paths
from vivit_jax.data.listing import Entry, Listing


def as_begun(now: Listing, begun: Listing, split: str) -> Listing:
    """Returns the listing that a run began with, where it now lies.

    Examples that are gone stay listed: reading them tells. What is new is left out.

    Args:
        now: What folders or tables list now.
        begun: What they listed when the run began.
        split: The name of the split, for messages.

    Raises:
        ValueError: If classes or labels are others now; one line.
    """
    if now.class_names != begun.class_names:
        new = [name for name in now.class_names if name not in begun.class_names]
        gone = [name for name in begun.class_names if name not in now.class_names]
        raise ValueError(
            f'the classes of {split!r} are not those that the run began with (new: {_few(new)}; gone: '
            f'{_few(gone)}): choose another --workdir to start anew'
        )
    labels = {_part(entry): entry.label for entry in begun.entries}
    for entry in now.entries:
        if labels.get(_part(entry), entry.label) != entry.label:
            raise ValueError(
                f'{entry.path} of {split!r} is labelled {entry.label} now and was {labels[_part(entry)]} when the '
                'run began: choose another --workdir to start anew'
            )
    new = [entry.path for entry in now.entries if _part(entry) not in labels]
    notes = [begun.note] if begun.note else []
    if new:
        others = f' and {len(new) - 3} more' if len(new) > 3 else ''
        notes.append(
            f'{split}: {", ".join(new[:3])}{others} came in since the run began, and are left out; another --workdir '
            'starts with them'
        )
    return dataclasses.replace(begun, folder=now.folder, note='; '.join(notes))


def _few(names: Sequence[str]) -> str:
    shown = ', '.join(name[:60] for name in names[:5])
    return shown + (f' and {len(names) - 5} more' if len(names) > 5 else '') or 'none'


def _part(entry: Entry) -> tuple[Any, ...]:
    return entry.path, entry.start, entry.end, entry.first, entry.stop


def pack_listing(listing: Listing) -> dict[str, Any]:
    """Turns a listing into what JSON can hold."""
    return {
        **{name: getattr(listing, name) for name in ('class_names', 'head_sizes', 'bad', 'splits', 'note')},
        'folder': str(listing.folder),
        'entries': [list(dataclasses.astuple(entry)) for entry in listing.entries],
    }


def unpack_listing(packed: dict[str, Any]) -> Listing:
    """Turns `pack_listing`'s result back; a KeyError, TypeError or ValueError where it is none."""
    entries = []
    for path, label, *rest in packed['entries']:
        where, start, end, first, stop = rest
        label = tuple(label) if isinstance(label, list) else label
        entries.append(
            Entry(path=path, label=label, where=where, start=start, end=end, first=first, stop=stop)
        )
    return Listing(
        folder=paths.path(packed['folder']),
        class_names=packed['class_names'],
        head_sizes=tuple(packed['head_sizes']),
        entries=entries,
        bad=[(name, cause) for name, cause in packed['bad']],
        splits=tuple(packed['splits']),
        note=packed['note'],
    )
