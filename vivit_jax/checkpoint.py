"""Saving and restoring a run with Orbax: parameters, optimiser, position, and what is needed to use them.

A checkpoint `checkpoints/<step>/` has the items `params`, `ema` (when there is one), `optimizer` and `meta`, so that
prediction reads the parameters and leaves the rest. `meta` is JSON: the whole configuration (model, preprocessing),
class names, a digest of the training data, and what had not been logged yet. `checksums.json` lists all its files.

Orbax writes into `<step>.orbax-checkpoint-tmp`; when every process has written, the first adds the checksums, and
then the folder gets its name. So whenever a run is killed, what has the name of a step has its checksums. Reading
changes nothing; only a training run (it holds the lock of the workdir) removes what is unfinished and puts aside what
is damaged.
"""

import contextlib
import dataclasses
import errno
import os
import pathlib
import warnings
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from orbax.checkpoint import checkpoint_managers

from vivit_jax import checksums, disk, nearest, orbax_s3, paths, sharding, steps
from vivit_jax.barrier import Barrier
from vivit_jax.steps import item_to_use, read_meta

__all__ = ['Checkpoints', 'NotSaved', 'Saved', 'find', 'item_to_use', 'read', 'read_arrays', 'read_meta']

UNFINISHED = '.orbax-checkpoint-tmp'  # what Orbax adds to the name of a folder until it is complete
PRUNED = '.pruned'  # where steps go that are not kept: gone at one stroke, deleted afterwards
DAMAGED = '.damaged'  # added to the name of a step that is put aside
QUIET = 1.0  # seconds without a trace of a step that is given up until it is taken for gone


class NotSaved(RuntimeError):
    """A checkpoint could not be written, because the disk is full, say; one line."""


class Checkpoints:
    """The checkpoints of a workdir: written while training goes on, the oldest removed.

    Nothing is touched before the first `recover` or `save`.

    Args:
        folder: The workdir; checkpoints are in `folder/checkpoints`.
        keep: Latest checkpoints to keep.
        best_metric: Validation metric whose best checkpoint is kept as well; '' keeps the latest only. Losses
            are best when low, everything else when high.
        policies: What else is to be kept, as Orbax's preservation policies.
    """

    def __init__(
        self, folder: str | paths.Path, *, keep: int = 2, best_metric: str = '', policies: Iterable[Any] = ()
    ):
        self._keep, self._best_metric, self._policies = keep, best_metric, policies
        self.folder = _absolute(paths.path(folder)) / 'checkpoints'
        self._manager: ocp.CheckpointManager | None = None
        self._barrier = Barrier()
        self._saving: int | None = None  # the step that is being written
        self._size = 0  # bytes of its arrays
        self._failure: NotSaved | None = None  # of the last save

    def __enter__(self) -> 'Checkpoints':
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            self.wait()
        except NotSaved as failure:
            if kind is None:
                raise
            warnings.warn(str(failure), stacklevel=2)  # what ended the run is told after it
        finally:
            self._close()

    def steps(self) -> list[int]:
        """Returns the steps that are there, in order."""
        return [int(folder.name) for folder in steps.step_folders(self.folder)]

    def latest_step(self) -> int | None:
        """Returns the last step saved, None if there is none."""
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """Returns the step that is best by the metric, else the latest one, None if there is none."""
        return next((int(folder.name) for folder in steps.by_preference(self.folder)), None)

    def best_whole_step(self) -> int | None:
        """Returns the best step, else the latest, whose parameters are undamaged; a warning names what is left out.

        Raises:
            ValueError: If all are damaged; one line.
        """
        folders = steps.by_preference(self.folder) if jax.process_index() == 0 else []
        whole, wrong = steps.first_whole(folders, steps.what_is_used)
        step = _agreed(int(whole.name) if whole else -1 if not wrong else -2)
        if step == -2:
            raise ValueError(steps.all_damaged(self.folder, wrong))
        return None if step == -1 else step

    def holds_run(self, step: int) -> bool:
        """Tells whether a step can be gone on from; converted weights have no optimiser's state."""
        return (self.folder / str(step) / 'optimizer').is_dir()

    def recover(self) -> int | None:
        """Makes the folder ready for the run that goes on in it, which alone may do so.

        What is unfinished is removed, what is damaged gets another name and is named in a warning. The latest step
        that is left is compared with its checksums to the last byte; of the others it is `meta` and `metrics`.

        Returns:
            The latest step that is whole, None if there is no checkpoint.

        Raises:
            ValueError: If all are damaged; one line.
        """
        step, wrong = -1, {}
        if jax.process_index() == 0:
            self._remove_unfinished()
            for folder in reversed(steps.step_folders(self.folder)):
                if text := steps.damage(folder, () if step == -1 else ('meta', 'metrics')):
                    wrong[folder] = text
                elif step == -1:
                    step = int(folder.name)
                    steps.say_unverified(folder)
            if wrong and step == -1:
                step = -2
            else:
                self._put_aside(wrong, step)
        step = _agreed(step)
        if step == -2:
            raise ValueError(steps.all_damaged(self.folder, wrong))
        return None if step == -1 else step

    def is_whole(self, step: int) -> bool:
        """Compares a step with its checksums to the last byte; one that is damaged is put aside, as a warning says.

        For the first process of the run that goes on in the folder; then all `look_again`.
        """
        folder = self.folder / str(step)
        if text := steps.damage(folder):
            self._put_aside({folder: text}, step)
        return not text

    def look_again(self) -> None:
        """Forgets which steps there are: some may have been put aside."""
        self._close()

    def _put_aside(self, wrong: dict[paths.Path, str], step: int) -> None:
        for folder, text in wrong.items():
            aside = folder.with_name(folder.name + DAMAGED)
            if aside.exists():
                paths.rmtree(aside)
            folder.rename(aside)
            onwards = f'going on from step {step}; ' if int(folder.name) > step else ''
            warnings.warn(
                f'{folder} is damaged ({text}): {onwards}it is now {aside.name}, to be deleted', stacklevel=3
            )

    def _remove_unfinished(self) -> None:
        for folder in list(self.folder.iterdir()) if self.folder.is_dir() else ():
            if UNFINISHED in folder.name or folder.name == PRUNED:
                paths.rmtree(folder)

    def check_space(self, state: Any, keep: int) -> None:
        """Looks whether the disk has room for the checkpoints to come.

        Args:
            state: The arrays of one, or their shapes.
            keep: Latest checkpoints that are kept; one more is there while the next is written, and the best.

        Raises:
            ValueError: If it has not.
        """
        size = _size(state)
        count = max(keep + 1 + bool(self._best_metric) - len(self.steps()), 1)
        free = disk.free(self.folder)
        if free is not None and free < count * size:
            raise ValueError(
                f'{self.folder}: {disk.mebibytes(free)} are free on this disk, {disk.mebibytes(count * size)} are '
                f'needed for checkpoints of {disk.mebibytes(size)}: make room, or choose another --workdir'
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
        evaluate, not a run to go on with. Where this one, or the one before that was still being written, cannot be
        written, that is a warning as long as there is an earlier one to go on from: the next save tries again.

        Raises:
            ValueError: If the metrics have no `best_metric`.
            NotSaved: If it could not be written, and there is no earlier one.
        """
        score = {'score': self._rate(metrics)} if self._best_metric else None
        items = {'params': ocp.args.StandardSave(params), 'meta': ocp.args.JsonSave(meta)}
        if optimizer is not None:
            items['optimizer'] = ocp.args.StandardSave(optimizer)
        if ema is not None:
            items['ema'] = ocp.args.StandardSave(ema)
        self._bear(self._settle())
        try:
            manager = self._manager = self._manager or self._open()
            if step in manager.all_steps():
                return
            self._barrier.begin()
            self._saving, self._size = step, _size((params, ema, optimizer))
            free = disk.free(self.folder)
            if _agreed(free is not None and free < self._size):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # what is left is for smaller files
            # The name of the list of checksums, in Orbax's own file: so a step that has lost it is known.
            told = {'checksums': checksums.NAME}
            manager.save(
                step, args=ocp.args.Composite(**items), metrics=score, custom_metadata=told, force=True
            )
            self._failure = None
        except Exception as error:
            self._bear(self._give_up(step, error))

    def _open(self) -> ocp.CheckpointManager:
        disk.tell_failures_once()
        policies: list[Any] = [checkpoint_managers.LatestN(n=max(self._keep, 1)), *self._policies]
        if self._best_metric:
            policies.append(checkpoint_managers.BestN(n=1, get_metric_fn=_score))
        return ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                best_fn=_score if self._best_metric else None,
                cleanup_tmp_directories=True,
                # A run that is killed while it deletes one would leave something that looks damaged.
                todelete_subdir=None if paths.is_remote(self.folder) else PRUNED,
                temporary_path_class=orbax_s3.temporary_paths(self.folder),
                async_options=ocp.options.AsyncOptions(
                    post_finalization_callback=self._seal, barrier_sync_fn=self._barrier
                ),
            ),
        )

    def _close(self) -> None:
        manager, self._manager = self._manager, None
        if manager is not None:
            manager.close()

    def _seal(self) -> None:
        """Adds the checksums; Orbax calls it on the first process, between the last byte and the step's name."""
        unfinished = self.folder / f'{self._saving}{UNFINISHED}'
        folder = unfinished if unfinished.is_dir() else self.folder / str(self._saving)
        checksums.write(folder, root=False)

    def _settle(self) -> NotSaved | None:
        """Waits until what was started is written; returns why it could not be."""
        if self._manager is None or self._saving is None:
            return None
        step = self._saving
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            return self._give_up(step, error)
        self._saving = None
        if jax.process_index() == 0:
            # What Orbax wrote after the checksums, two files of its own, is added. Nothing depends on these.
            with contextlib.suppress(OSError, checksums.Damaged):
                checksums.write(self.folder / str(step))
            if (self.folder / PRUNED).exists():
                paths.rmtree(self.folder / PRUNED)
        return None

    def _give_up(self, step: int, error: Exception) -> NotSaved:
        """Removes what there is of a step that could not be written; returns why."""
        self._saving = None
        with contextlib.suppress(Exception):  # it would say the same again
            self._barrier.fail()
            self._close()
        if jax.process_index() == 0 and self.folder.is_dir():
            with contextlib.suppress(OSError):  # what stays is removed when the run goes on
                self._remove_unfinished()
                # TensorStore goes on with what it was asked to write, and makes the folders for it anew.
                if not paths.is_remote(self.folder):
                    paths.rmtree(self.folder / f'{step}{UNFINISHED}', quiet=QUIET)
                if not any(self.folder.iterdir()):
                    paths.rmtree(self.folder)
        latest, free = self.latest_step(), disk.free(self.folder)
        room = '' if free is None else f', {disk.mebibytes(self._size)} with {disk.mebibytes(free)} free,'
        good = 'there is no other' if latest is None else f'the last good one is step {latest}'
        self._failure = NotSaved(
            f'{self.folder}: the checkpoint of step {step}{room} could not be written: {disk.why(error)}; {good}'
        )
        self._failure.__cause__ = error
        return self._failure

    def _bear(self, failure: NotSaved | None) -> None:
        """Goes on after a failure, with a warning, where there is an earlier checkpoint."""
        if failure is None:
            return
        if self.latest_step() is None:
            self._failure = None
            raise failure
        if jax.process_index() == 0:
            warnings.warn(f'{failure}; training goes on, and the next one is tried again', stacklevel=3)

    def _rate(self, metrics: dict[str, float] | None) -> float:
        """Higher is better; what was not validated is worse than all that was."""
        if metrics is None:
            return float('-inf')
        if self._best_metric not in metrics:
            raise ValueError(steps.no_such_metric(self._best_metric, metrics))
        value = metrics[self._best_metric]
        return -value if self._best_metric.endswith(('loss', 'error')) else value

    def wait(self) -> None:
        """Waits until what was started is written.

        Raises:
            NotSaved: If the last one could not be written.
        """
        self._settle()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def meta(self, step: int) -> dict[str, Any]:
        """Reads the meta of a step."""
        return read_meta(self.folder / str(step))

    def restore(self, step: int, mesh: Mesh, **like: Any) -> dict[str, Any]:
        """Reads items of a step onto the devices.

        Args:
            step: Which checkpoint.
            mesh: Where the arrays go, sharded as `sharding.state_sharding` tells, whatever they were before.
            **like: For each wanted item a tree of shapes, as `params=jax.eval_shape(…)`.

        Raises:
            ValueError: If it is damaged.
        """
        args = {}
        for item, tree in like.items():
            placed = jax.tree.map(
                lambda array, where: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where),
                tree,
                sharding.state_sharding(mesh, tree),
            )
            args[item] = ocp.args.StandardRestore(placed)
        folder = self.folder / str(step)
        try:
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
                return dict(reader.restore(folder, args=ocp.args.Composite(**args)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            others = ', '.join(str(other) for other in self.steps() if other != step) or 'none'
            raise ValueError(
                f'the checkpoint {folder} is damaged ({" ".join(str(error).split())[:120]}): delete '
                f'that folder to go on from another one (there are: {others})'
            ) from error


def _absolute(folder: paths.Path) -> Any:
    if str(folder).startswith(orbax_s3.PREFIX):
        orbax_s3.teach()
    return folder.absolute() if isinstance(folder, pathlib.Path) else folder


def _size(state: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def _agreed(number: int) -> int:
    """Returns the first process's number: what it has found on disk is what all go by."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _score(metrics: dict[str, float]) -> float:
    return metrics['score']


@dataclasses.dataclass(frozen=True)
class Saved:
    """What is read of a checkpoint to use its model: arrays on the host, and its `meta`."""

    folder: Any
    params: dict[str, Any]
    meta: dict[str, Any]


def find(path: paths.Path) -> Any | None:
    """Returns the folder of a checkpoint: `path` itself, or a workdir's best (else latest); None if there is none.

    Of a workdir it is one whose `meta` is undamaged, if there is such a one.
    """
    folders = steps.candidates(path)
    return next(
        (folder for folder in folders if not steps.damage(folder, ['meta'])), folders[0] if folders else None
    )


def read(path: str | paths.Path) -> Saved:
    """Reads the parameters to use (their moving average, where there is one) onto the host.

    Args:
        path: A workdir (its best checkpoint, else its latest; a damaged one is left out, with a warning), or one of
            its `checkpoints/<step>`.

    Raises:
        ValueError: If there is no checkpoint, or it is damaged.
    """
    path = paths.path(path)
    folders = steps.candidates(path)
    if not folders:
        raise ValueError(f'{path}: holds no checkpoint{nearest.hint(path)}')
    folder, wrong = steps.first_whole(folders, steps.what_is_used)
    if folder is None and steps.is_step(path):
        raise ValueError(f'{path}: the checkpoint is damaged ({wrong[path]}): name another one')
    if folder is None:
        raise ValueError(steps.all_damaged(folders[0].parent, wrong))
    return Saved(folder, read_arrays(folder / item_to_use(folder)), read_meta(folder))


def read_arrays(folder: paths.Path) -> Any:
    """Reads a tree that Orbax wrote, whoever asked it to, as NumPy arrays.

    Raises:
        ValueError: If it is damaged.
    """
    handler, folder = ocp.PyTreeCheckpointHandler(), _absolute(folder)
    try:
        shapes = dict(handler.metadata(folder))
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        return handler.restore(folder, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        words = ' '.join(str(error).split())[:120]
        raise ValueError(f'{folder}: the checkpoint is damaged ({words})') from error
    finally:
        handler.close()
