"""Saving and restoring a run with Orbax: parameters, optimiser, position, and what is needed to use them.

A checkpoint `checkpoints/<step>/` has the items `params`, `ema` (when there is one), `optimizer` and `meta`, so that
prediction reads the parameters and leaves the rest. `meta` is JSON: the whole configuration (model, preprocessing),
class names, a digest of the training data, and what had not been logged yet.
"""

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers

from vivit_jax import nearest, sharding


class Checkpoints:
    """The checkpoints of a workdir: written while training goes on, the oldest removed.

    Args:
        folder: The workdir; checkpoints are in `folder/checkpoints`.
        keep: Latest checkpoints to keep.
        best_metric: Validation metric whose best checkpoint is kept as well; '' keeps the latest only. Losses
            are best when low, everything else when high.
    """

    def __init__(self, folder: str | pathlib.Path, *, keep: int = 1, best_metric: str = ''):
        policies: list[Any] = [checkpoint_managers.LatestN(n=max(keep, 1))]
        if best_metric:
            policies.append(checkpoint_managers.BestN(n=1, get_metric_fn=_score))
        self._best_metric = best_metric
        self.folder = pathlib.Path(folder).absolute() / 'checkpoints'
        self._manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                best_fn=_score if best_metric else None,
            ),
        )

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def steps(self) -> list[int]:
        """Returns the steps that are there, in order."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        """Returns the last step saved, None if there is none."""
        return self._manager.latest_step()

    def best_step(self) -> int | None:
        """Returns the step that is best by the metric, else the latest one, None if there is none."""
        steps = self.steps()
        return max(steps, key=lambda step: (self._score_of(step), step)) if steps else None

    def holds_run(self, step: int) -> bool:
        """Tells whether a step can be gone on from; converted weights have no optimiser's state."""
        return (self.folder / str(step) / 'optimizer').is_dir()

    def _score_of(self, step: int) -> float:
        metrics = self._manager.metrics(step)
        return _score(metrics) if metrics else float('-inf')

    def check_space(self, state: Any, keep: int) -> None:
        """Looks whether the disk has room for the checkpoints to come.

        Args:
            state: The arrays of one, or their shapes.
            keep: Latest checkpoints that are kept; one more is there while the next is written, and the best.

        Raises:
            ValueError: If it has not.
        """
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
        count = max(keep + 1 + bool(self._best_metric) - len(self.steps()), 1)
        free = shutil.disk_usage(self.folder).free
        if free < count * size:
            raise ValueError(
                f'{self.folder}: {_mebibytes(free)} are free on this disk, {_mebibytes(count * size)} are needed for '
                f'checkpoints of {_mebibytes(size)}: make room, or choose another --workdir'
            )

    def save(
        self,
        step: int,
        *,
        params: Any,
        ema: Any | None,
        optimizer: Any | None,
        meta: dict[str, Any],
        metrics: dict[str, float] | None,
    ) -> None:
        """Starts writing a checkpoint; returns once the arrays may be overwritten.

        A step that is there already is left as it is. Without an optimiser it holds weights to start from or to
        evaluate, not a run to go on with.

        Raises:
            ValueError: If the metrics have no `best_metric`.
        """
        if step in self._manager.all_steps():
            return
        items = {
            'params': ocp.args.StandardSave(params),
            'meta': ocp.args.JsonSave(meta),
        }
        if optimizer is not None:
            items['optimizer'] = ocp.args.StandardSave(optimizer)
        if ema is not None:
            items['ema'] = ocp.args.StandardSave(ema)
        score = {'score': self._rate(metrics)} if self._best_metric else None
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=score)

    def _rate(self, metrics: dict[str, float] | None) -> float:
        """Higher is better; what was not validated is worse than all that was."""
        if metrics is None:
            return float('-inf')
        if self._best_metric not in metrics:
            raise ValueError(no_such_metric(self._best_metric, metrics))
        value = metrics[self._best_metric]
        return -value if self._best_metric.endswith(('loss', 'error')) else value

    def wait(self) -> None:
        """Waits until what was started is written."""
        self._manager.wait_until_finished()

    def meta(self, step: int) -> dict[str, Any]:
        """Reads the meta of a step."""
        return self._read(step, {'meta': ocp.args.JsonRestore()})['meta']

    def restore(self, step: int, mesh: Mesh, **like: Any) -> dict[str, Any]:
        """Reads items of a step onto the devices.

        Args:
            step: Which checkpoint.
            mesh: Where the arrays go, sharded as `sharding.state_sharding` tells, whatever they were before.
            **like: For each wanted item a tree of shapes, as `params=jax.eval_shape(…)`.
        """
        args = {}
        for item, tree in like.items():
            placed = jax.tree.map(
                lambda array, where: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where),
                tree,
                sharding.state_sharding(mesh, tree),
            )
            args[item] = ocp.args.StandardRestore(placed)
        return self._read(step, args)

    def _read(self, step: int, args: dict[str, Any]) -> dict[str, Any]:
        try:
            return dict(self._manager.restore(step, args=ocp.args.Composite(**args)))
        except (KeyError, ValueError, OSError) as error:
            others = ', '.join(str(other) for other in self.steps() if other != step) or 'none'
            raise ValueError(
                f'the checkpoint {self.folder / str(step)} is damaged ({" ".join(str(error).split())[:120]}): delete '
                f'that folder to go on from another one (there are: {others})'
            ) from error


def _mebibytes(size: int) -> str:
    return f'{size / 2**20:,.1f} MiB'


def no_such_metric(name: str, metrics: Iterable[str]) -> str:
    """Says that the best checkpoint cannot be told by a metric that there is none of."""
    return (
        f'checkpoint.best_metric={name!r} is no validation metric: choose one of '
        f"{', '.join(metrics)}, or '' for the latest"
    )


def _score(metrics: dict[str, float]) -> float:
    return metrics['score']


@dataclasses.dataclass(frozen=True)
class Saved:
    """What is read of a checkpoint to use its model: arrays on the host, and its `meta`."""

    folder: pathlib.Path
    params: dict[str, Any]
    meta: dict[str, Any]


def find(path: pathlib.Path) -> pathlib.Path | None:
    """Returns the folder of a checkpoint: `path` itself, or a workdir's best (else latest); None if there is none."""
    if (path / 'meta').is_dir() and (path / 'params').is_dir():
        return path
    workdir = path.parent if path.name == 'checkpoints' else path
    if not (workdir / 'checkpoints').is_dir():
        return None
    with Checkpoints(workdir) as checkpoints:
        step = checkpoints.best_step()
    return None if step is None else workdir / 'checkpoints' / str(step)


def read(path: str | pathlib.Path) -> Saved:
    """Reads the parameters to use (their moving average, where there is one) onto the host.

    Args:
        path: A workdir (its best checkpoint, else its latest), or one of its `checkpoints/<step>`.

    Raises:
        ValueError: If there is no checkpoint, or it is damaged.
    """
    folder = find(pathlib.Path(path))
    if folder is None:
        raise ValueError(f'{path}: holds no checkpoint{nearest.hint(pathlib.Path(path))}')
    return Saved(folder, read_arrays(folder / item_to_use(folder)), read_meta(folder))


def item_to_use(folder: pathlib.Path) -> str:
    """Returns which item of a checkpoint holds the parameters to use: their moving average where there is one."""
    return 'ema' if (folder / 'ema').is_dir() else 'params'


def read_meta(folder: pathlib.Path) -> dict[str, Any]:
    """Reads the `meta` of a checkpoint's folder.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        return json.loads((folder / 'meta' / 'metadata').read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise ValueError(f'{folder}: the checkpoint is damaged ({error})') from error


def read_arrays(folder: pathlib.Path) -> Any:
    """Reads a tree that Orbax wrote, whoever asked it to, as NumPy arrays.

    Raises:
        ValueError: If it is damaged.
    """
    handler = ocp.PyTreeCheckpointHandler()
    try:
        shapes = dict(handler.metadata(folder.absolute()))
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        return handler.restore(folder.absolute(), args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except (KeyError, TypeError, ValueError, OSError) as error:
        words = ' '.join(str(error).split())[:120]
        raise ValueError(f'{folder}: the checkpoint is damaged ({words})') from error
    finally:
        handler.close()
