"""Meshes and shardings."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"
# Scalars from which FSDP splits an array: the many short vectors of a network cost more to gather than they free.
MIN_SPLIT = 4096


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """`devices`, by default all devices of all hosts, on one data axis.

    The axis is Auto: an Explicit one, the default of `make_mesh`, refuses `gamma[t]` and the scanned sampler.
    """
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def state_sharding(mesh: Mesh, state: Any, *, fsdp: bool) -> Any:
    """Where each array of a train state lies: whole on every device, or with `fsdp` split over the data axis.

    FSDP splits parameters, their averages and the optimizer's moments alike, each along its longest axis that the
    devices divide; what no axis divides, or is shorter than MIN_SPLIT, stays whole. A step begins with `unshard`.
    `state` is a tree of arrays or shapes; the result is the same tree of NamedSharding.
    """

    def place(leaf):
        whole, count = replicated(mesh), mesh.size
        if not fsdp or count == 1 or np.prod(leaf.shape) < MIN_SPLIT:
            return whole
        fitting = [(size, axis) for axis, size in enumerate(leaf.shape) if size % count == 0]
        return NamedSharding(mesh, PartitionSpec(*[None] * max(fitting)[1], DATA_AXIS)) if fitting else whole

    return jax.tree.map(place, state)


def unshard(mesh: Mesh) -> Callable[[Any], Any]:
    """The function that makes the arrays of a tree whole on every device, inside of a jitted one.

    Left to itself XLA carries the parameters' splits over to activations, and moves those between devices instead.
    """
    return lambda tree: jax.lax.with_sharding_constraint(tree, replicated(mesh))


def each_nth(rows: jax.Array, n: int) -> jax.Array:
    """Rows 0, n, 2 n, ... of (B, ...), B a multiple of n: (B / n, ...).

    Where n divides the rows of a device, each device keeps some of its own, and no row moves.
    """
    return rows.reshape(-1, n, *rows.shape[1:])[:, 0]


def check_batch_size(field: str, size: int, mesh: Mesh, parts: int = 1, every: int = 1) -> None:
    """Raises ValueError, naming `field`, if devices x `parts` x `every` do not divide a global batch of `size`."""
    if size < 1 or size % (mesh.size * parts * every):
        times = f" x train.accumulate, {parts}" if parts > 1 else ""
        times += f" x diffusion.every, {every}" if every > 1 else ""
        raise ValueError(f"{field}={size}: must be a positive multiple of the number of devices, {mesh.size}{times}")


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows of a global batch -> global arrays, sharded over the leading axis."""
    sharding = batch_sharding(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}


def local_rows(array: jax.Array) -> np.ndarray:
    """This host's rows of an array that is split over its leading axis, in their order."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
