"""Where arrays live: batches split over all devices, parameters copied to each or shared by some.

Scenic trained with `pmap`, a program a device; here one `jit`-compiled program sees whole arrays and the compiler
places the parts, so that gradients are averaged before they are clipped and nothing is written twice.
"""

import functools
import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import UInt32

# Arrays smaller than this are copied to every device: sharing them costs more time than it saves memory.
SMALLEST_SHARED = 2**14


def make_mesh(fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of all devices (or those given) with the axes 'data' and 'fsdp'.

    Args:
        fsdp: Devices that share one copy of the parameters and the optimiser's state; 1 copies both to each.
        devices: Which devices; all by default.

    Raises:
        ValueError: If `fsdp` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise ValueError(f'sharding.fsdp={fsdp}: must divide the number of devices, {len(devices)}')
    # Automatic axes: linen modules do not know of explicitly sharded ones.
    shape = (len(devices) // fsdp, fsdp)
    return jax.make_mesh(shape, ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2, devices=devices)


def in_use(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """Returns a context in which what is traced knows its mesh; nothing changes if there is none."""
    return nullcontext() if mesh is None else jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def within(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function, to be compiled, that knows its mesh: kernels of accelerators split themselves by it."""

    @functools.wraps(function)
    def traced(*args: Any, **kwargs: Any) -> Any:
        with in_use(mesh):
            return function(*args, **kwargs)

    return traced


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that copies an array to every device."""
    return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that splits the first axis, of examples, over all devices."""
    return NamedSharding(mesh, P(('data', 'fsdp')))


def state_sharding(mesh: Mesh, tree: Any) -> Any:
    """Returns a sharding for every array of parameters and optimiser state.

    Each is split along its longest axis that the 'fsdp' axis divides; small arrays and those with no such axis
    are copied.

    Args:
        mesh: From `make_mesh`.
        tree: Arrays or their shapes.
    """
    shards = mesh.shape['fsdp']

    def one(array: Any) -> NamedSharding:
        axes = [axis for axis, size in enumerate(array.shape) if size % shards == 0]
        if shards == 1 or not axes or math.prod(array.shape) < SMALLEST_SHARED:
            return replicated(mesh)
        split = max(axes, key=lambda axis: array.shape[axis])
        return NamedSharding(mesh, P(*('fsdp' if axis == split else None for axis in range(array.ndim))))

    return jax.tree.map(one, tree)


def is_split() -> bool:
    """Tells whether the mesh in use splits parameters; without one, or with one not of `make_mesh`, it does not."""
    return bool(jax.sharding.get_abstract_mesh().shape.get('fsdp', 1) > 1)


def gathered(tree: Any, but: str = '') -> Any:
    """Brings parameters together on every device of the mesh in use, as long as what takes them computes.

    Left to itself the compiler leaves parameters split and gathers the activations of the whole batch instead, on
    every device. Where nothing `is_split`, nothing is done.

    Args:
        tree: Parameters.
        but: Those with this in their path stay as they are, if it is not empty.
    """
    if not is_split():
        return tree

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        if but and but in jax.tree_util.keystr(path):
            return leaf
        return jax.lax.with_sharding_constraint(leaf, P())

    return jax.tree_util.tree_map_with_path(one, tree)


def to_host(tree: Any) -> Any:
    """Copies arrays to the host whole, on every process, wherever their parts are."""

    def one(array: jax.Array) -> np.ndarray:
        if array.is_fully_addressable or array.is_fully_replicated:
            return np.asarray(array)
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.tree.map(one, tree)


def from_host(tree: Any, shardings: Any) -> Any:
    """Places arrays that every process has whole."""
    return jax.tree.map(
        lambda array, sharding: jax.make_array_from_callback(array.shape, sharding, lambda part: array[part]),
        tree,
        shardings,
    )


def to_global(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Joins the rows that each process read to one batch split over all devices, in order of the processes."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def gather_rows(rows: UInt32[np.ndarray, 'n c']) -> UInt32[np.ndarray, 'all c']:
    """Returns the rows of all processes, those of process 0 first; each may have another number of them."""
    if jax.process_count() == 1:
        return rows
    lengths = multihost_utils.process_allgather(np.array([len(rows)], np.int32)).ravel()
    padded = np.zeros((int(lengths.max()), rows.shape[1]), np.uint32)
    padded[: len(rows)] = rows
    gathered = multihost_utils.process_allgather(padded).reshape(len(lengths), *padded.shape)
    return np.concatenate([part[:length] for part, length in zip(gathered, lengths, strict=True)])
