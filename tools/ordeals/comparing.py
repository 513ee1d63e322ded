"""Whether two runs have come to the same end, bit for bit."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

ITEMS = ('params', 'ema', 'optimizer')
FILES = ('eval.json', 'predictions.csv')
CLOCK = (
    'clips_per_second',
    'data_wait',
    'device_memory',
)  # of a row of metrics.jsonl: differ from run to run


def rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns what `metrics.jsonl` has, without what the clock says."""
    lines = (workdir / 'metrics.jsonl').read_text(encoding='utf-8').splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in CLOCK} for line in lines]


def arrays(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Reads all arrays of a checkpoint, by item and name."""
    folder = workdir / 'checkpoints' / str(step)
    found = {}
    handler = ocp.PyTreeCheckpointHandler()
    for item in (name for name in ITEMS if (folder / name).is_dir()):
        where = (folder / item).absolute()
        as_numpy = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray), handler.metadata(where).tree
        )
        read = handler.restore(where, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
        for path, leaf in jax.tree.flatten_with_path(read)[0]:
            found[f'{item}/{jax.tree_util.keystr(path, simple=True, separator="/")}'] = np.asarray(leaf)
    handler.close()
    return found


def difference(one: pathlib.Path, other: pathlib.Path, step: int) -> tuple[str, int]:
    """Compares two finished runs.

    Args:
        one: Workdir of the undisturbed run.
        other: Workdir of the other one.
        step: Their last.

    Returns:
        The first difference in a line, '' where there is none; and how many parameters were compared.
    """
    left, right = arrays(one, step), arrays(other, step)
    count = sum(array.size for name, array in left.items() if name.startswith('params/'))
    if left.keys() != right.keys():
        return f'checkpoints/{step} holds other arrays: {sorted(left.keys() ^ right.keys())[:3]}', count
    for name, array in left.items():
        # As bytes: NaN equals itself, and 0 is not -0.
        if (array.dtype, array.shape) != (right[name].dtype, right[name].shape):
            return f'checkpoints/{step}: {name} has another form', count
        if array.tobytes() != right[name].tobytes():
            places = np.flatnonzero(np.ravel(array != right[name]))
            first = places[0] if places.size else 0
            return (
                f'checkpoints/{step}: {name} differs in {places.size:,} of {array.size:,} numbers, the first '
                f'{array.ravel()[first]!r} and {right[name].ravel()[first]!r}'
            ), count
    for number, (mine, theirs) in enumerate(zip(rows(one), rows(other), strict=False), 1):
        if mine != theirs:
            return f'metrics.jsonl, line {number}: {mine} and {theirs}', count
    if len(rows(one)) != len(rows(other)):
        return f'metrics.jsonl has {len(rows(one))} and {len(rows(other))} lines', count
    for name in FILES:
        if (one / name).read_bytes() != (other / name).read_bytes():
            return f'{name} differs', count
    return '', count
