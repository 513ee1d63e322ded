"""What happened to every array on the way from a file into a model: to be printed, and kept as JSON."""

import collections
import dataclasses
import re
from typing import Any

from vivit_jax.formats.weights import Origin, Weights, flat

# A layer's number in a name, in any format's spelling.
LAYER = re.compile(r'(encoderblock_|blocks\.|layers?\.)\d+')
# So many fresh or unused arrays under one root are listed by name.
MOST_OF_A_ROOT = 8


@dataclasses.dataclass(frozen=True)
class Change:
    """What a parameter of the model was made of.

    Attributes:
        action: 'copied', 'inflated', 'repeated', 'resized', 'summed', 'computed' or 'zeroed', several of them joined
            by ' and ', or 'fresh': as the model started.
        shape: Its shape in the model.
        arrays: The file's arrays that it came from, names and shapes.
        note: More about it, may be empty.
    """

    action: str
    shape: tuple[int, ...]
    arrays: dict[str, tuple[int, ...]]
    note: str


@dataclasses.dataclass(frozen=True)
class Unused:
    """An array of the file that was left out: its shape, and why."""

    shape: tuple[int, ...]
    reason: str


@dataclasses.dataclass(frozen=True)
class Account:
    """Every parameter of the model and every array of the file.

    Attributes:
        path: The file.
        kind: Its format.
        changes: Every parameter of the model, by its name with slashes.
        unused: The file's arrays that were left out.
        notes: What else is to be known.
    """

    path: str
    kind: str
    changes: dict[str, Change]
    unused: dict[str, Unused]
    notes: tuple[str, ...]

    def summary(self) -> str:
        """Returns one line of counts."""
        counts = collections.Counter(change.action for change in self.changes.values())
        # What was left as it was stands last: it is what people look for.
        actions = sorted(counts, key=lambda action: (action == 'fresh', action == 'zeroed', -counts[action]))
        told = ', '.join(f'{counts[action]} {action}' for action in actions)
        return (
            f'{self.kind} {self.path}: of {len(self.changes)} parameter arrays {told}; {len(self.unused)} of the '
            f"file's arrays left unused"
        )

    def lines(self) -> list[str]:
        """Returns a table of every array, layers that were treated alike in one row, and the summary at its end."""
        rows: dict[tuple[str, ...], int] = collections.Counter()
        fresh = collections.Counter(_group(name, change) for name, change in self.changes.items())
        for name, change in self.changes.items():
            if fresh[_group(name, change)] > MOST_OF_A_ROOT and change.action == 'fresh':
                rows['fresh', f'{_root(name)}*', '', f'({change.note})'] += 1
                continue
            arrays = ' + '.join(
                f'{array} {_size(shape)}' if shape != change.shape else array
                for array, shape in change.arrays.items()
            )
            note = f'({change.note})' if change.note else ''
            source = ' '.join(filter(None, (arrays, note)))
            rows[_alike(change.action, name, _size(change.shape), source)] += 1
        roots = collections.Counter((_root(name), left.reason) for name, left in self.unused.items())
        for name, left in self.unused.items():
            # An optimiser's state is as large as the model: one row for all that was left for the same reason.
            if roots[_root(name), left.reason] > MOST_OF_A_ROOT:
                name, shape = f'{_root(name)}*', ''
            else:
                shape = _size(left.shape)
            rows[_alike('unused', name, shape, f'({left.reason})')] += 1
        titles = ('action', 'array', 'shape', 'from')
        widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(3)]
        table = []
        for row, times in [(titles, 1), *rows.items()]:
            cells = '  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
            table.append(f'{cells}  {f"{times} x " if times > 1 else ""}{row[3]}'.rstrip())
        return [*table, *(f'note: {note}' for note in self.notes), self.summary()]

    def to_json(self) -> dict[str, Any]:
        """Returns the same, array by array, for `json.dump`."""
        return {
            'path': self.path,
            'kind': self.kind,
            'summary': self.summary(),
            'notes': list(self.notes),
            'parameters': {name: dataclasses.asdict(change) for name, change in self.changes.items()},
            'unused': {name: dataclasses.asdict(left) for name, left in self.unused.items()},
        }


def as_is(weights: Weights) -> Account:
    """Returns the account of weights that become a model of their own, without any other to go into."""
    arrays = flat(weights.params)
    changes = {
        name: Change(
            'copied' if origin.arrays else 'computed', arrays[name].shape, origin.arrays, told(origin)
        )
        for name, origin in weights.origin.items()
    }
    return Account(weights.path, weights.kind, changes, left_out(weights), weights.notes)


def left_out(weights: Weights) -> dict[str, Unused]:
    """Returns the arrays that a file's reader had no use for."""
    return {name: Unused(weights.unused_shapes[name], reason) for name, reason in weights.unused.items()}


def told(origin: Origin, note: str = '') -> str:
    """Returns what was done to an array on its way out of the file, and after it."""
    return ', '.join(filter(None, ('' if origin.how == 'copied' else origin.how, note)))


def _group(name: str, change: Change) -> tuple[str, str, str]:
    return change.action, _root(name), change.note


def _root(name: str) -> str:
    """Returns a name up to its first slash or dot."""
    return re.split(r'(?<=[/.])', name, maxsplit=1)[0]


def _alike(*cells: str) -> tuple[str, ...]:
    """Takes the numbers of layers out of a row."""
    return tuple(LAYER.sub(r'\g<1>*', cell) for cell in cells)


def _size(shape: tuple[int, ...]) -> str:
    return 'x'.join(map(str, shape)) or 'scalar'
