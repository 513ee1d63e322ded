"""The folders of checkpoints: which there are, which is best, whether they are whole. Nothing is changed here."""

import json
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from vivit_jax import checksums, json_files, paths

COMMITTED = 'commit_success.txt'  # tells that a folder is complete where one cannot be renamed (gs://, s3://)


def step_folders(folder: paths.Path) -> list[Any]:
    """Returns the folders of the steps that are complete, in order."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.name.isdecimal() and path.is_dir()]
    if paths.is_remote(folder):
        found = [path for path in found if (path / COMMITTED).exists()]
    return sorted(found, key=lambda path: int(path.name))


def by_preference(folder: paths.Path) -> list[Any]:
    """Returns the folders of the steps, the best by the metric before others, later ones before earlier ones."""
    return sorted(step_folders(folder), key=lambda path: (_score_of(path), int(path.name)), reverse=True)


def _score_of(folder: paths.Path) -> float:
    try:
        score = float(json.loads((folder / 'metrics' / 'metrics').read_text(encoding='utf-8'))['score'])
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return -math.inf  # there is none, or it is damaged, which comes to light where the step is used
    return -math.inf if math.isnan(score) else score


def damage(folder: paths.Path, items: Iterable[str] = ()) -> str:
    """Says what is wrong with the folder of a checkpoint, as far as its checksums tell; '' if nothing is.

    Args:
        folder: The folder `checkpoints/<step>`.
        items: What is looked at, as `params`; none: all files.
    """
    if (folder / checksums.NAME).exists():
        wrong = checksums.damage(folder, items)
        more = f', and {len(wrong) - 1} more' if len(wrong) > 1 else ''
        return wrong[0] + more if wrong else ''
    try:
        if checksums.NAME in paths.read_text(folder / '_CHECKPOINT_METADATA', errors='replace'):
            return f'{checksums.NAME}: is missing'
    except OSError:
        pass  # very old ones have none
    for name in ('meta/metadata', 'metrics/metrics'):
        try:
            if name.startswith('meta/') or (folder / name).exists():
                json.loads((folder / name).read_text(encoding='utf-8'))
        except (OSError, ValueError, RecursionError) as error:
            return f'{name}: {error}'
    return ''


def say_unverified(folder: paths.Path) -> None:
    """Warns of a checkpoint that nobody can tell to be whole, since it has no checksums."""
    if not (folder / checksums.NAME).exists():
        warnings.warn(
            f'{folder} has no {checksums.NAME}, as an earlier version wrote it: used unchecked', stacklevel=4
        )


def what_is_used(folder: paths.Path) -> tuple[str, str]:
    """Returns the items that prediction and evaluation read."""
    return 'meta', item_to_use(folder)


def first_whole(
    folders: Iterable[Any], items: Callable[[paths.Path], Iterable[str]]
) -> tuple[Any | None, dict[paths.Path, str]]:
    """Returns the first undamaged folder, and what is wrong with those before it, which a warning names."""
    wrong: dict[paths.Path, str] = {}
    for folder in folders:
        text = damage(folder, items(folder))
        if not text:
            say_unverified(folder)
            for other, reason in wrong.items():
                warnings.warn(
                    f'{other} is damaged ({reason}): using step {folder.name} instead', stacklevel=4
                )
            return folder, wrong
        if folder.is_dir():  # else a run under way has removed it meanwhile
            wrong[folder] = text
    return None, wrong


def all_damaged(folder: paths.Path, wrong: dict[paths.Path, str]) -> str:
    """Says that there is no checkpoint to use, and what is wrong with each."""
    each = ', '.join(f'{path.name} ({text})' for path, text in wrong.items())
    return (
        f'{folder}: every checkpoint is damaged{": " if each else ""}{each}: choose another --workdir, or delete '
        'that folder to start anew'
    )


def is_step(path: paths.Path) -> bool:
    """Tells whether a path is the folder of one checkpoint."""
    return (path / checksums.NAME).exists() or ((path / 'meta').is_dir() and (path / 'params').is_dir())


def candidates(path: paths.Path) -> list[Any]:
    """Returns the folders of checkpoints that a path stands for: itself, or a workdir's, best first."""
    if is_step(path):
        return [path]
    return by_preference(path if path.name == 'checkpoints' else path / 'checkpoints')


def item_to_use(folder: paths.Path) -> str:
    """Returns which item of a checkpoint holds the parameters to use: their moving average where there is one."""
    try:
        listed = checksums.read(folder)
    except (OSError, checksums.Damaged):
        listed = {}  # of an earlier version; or told where the step is checked
    # Where it has been lost, that is damage.
    lost = any(name.startswith('ema/') for name in listed)
    return 'ema' if lost or (folder / 'ema').is_dir() else 'params'


def read_meta(folder: paths.Path) -> dict[str, Any]:
    """Reads the `meta` of a checkpoint's folder.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        return json_files.read_object(folder / 'meta' / 'metadata')
    except (OSError, ValueError) as error:
        raise ValueError(f'{folder}: the checkpoint is damaged ({error})') from error


def no_such_metric(name: str, metrics: Iterable[str]) -> str:
    """Says that the best checkpoint cannot be told by a metric that there is none of."""
    return (
        f'checkpoint.best_metric={name!r} is no validation metric: choose one of '
        f"{', '.join(metrics)}, or '' for the latest"
    )
