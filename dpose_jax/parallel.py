"""The one place that knows meshes and shardings."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"


def make_mesh() -> Mesh:
    """All devices of all hosts on one data axis.

    The axis is Auto: an Explicit one, the default of `make_mesh`, refuses `gamma[t]` and the scanned sampler.
    """
    return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def check_batch_size(field: str, size: int, mesh: Mesh) -> None:
    """Raises ValueError, naming `field`, if the devices do not divide a global batch of `size`."""
    if size < 1 or size % mesh.size:
        raise ValueError(f"{field}={size}: must be a positive multiple of the number of devices, {mesh.size}")


def put_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This host's rows of a global batch -> global arrays, sharded over the leading axis."""
    sharding = batch_sharding(mesh)
    return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}
