"""The device mesh, and shardings and transfers of whole arrays and batches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sr3_jax.sizes import SPATIAL_AXIS

REPLICA_AXIS = "replica"
DATA_AXIS = "data"
MODEL_AXIS = "model"
BATCH_AXES = (REPLICA_AXIS, DATA_AXIS)
_AXES = (*BATCH_AXES, MODEL_AXIS, SPATIAL_AXIS)

# Split 32 ways, the 10 GB state of the paper's largest network is small on each device; a finer
# split leaves fewer than four input channels a device, which TPUs gather slowly (docs/tpu.md).
_MAX_SHARDS = 32


def make_mesh(
    devices: Sequence[jax.Device] | None = None,
    *,
    model: int = 1,
    spatial: int = 1,
    shards: int | None = None,
) -> Mesh:
    """Makes a mesh with the axes `replica`, `data`, `model` and `spatial`.

    A batch is split over `replica` and `data`, the training state over `data` alone. TPU slices,
    which only a data-centre network connects, are joined along `replica`: the other axes stay
    within a slice.

    Args:
      devices: default: all devices of all processes.
      model: number of devices that share the channels of one network.
      spatial: number of devices that share the height of one image.
      shards: length of `data`; default: the largest power of two that the devices allow, at most
        32. (Powers of two divide the numbers of channels.)

    Raises:
      ValueError: the devices (of a slice) cannot be grouped so, or a group would span two
        processes, which read different images.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    of_slice, group = len(devices) // slices, model * spatial
    if model < 1 or spatial < 1 or of_slice % group:
        raise ValueError(
            f"{of_slice} devices{' of a slice' if slices > 1 else ''} cannot be grouped by "
            f"{model} for `model` times {spatial} for `spatial`; use divisors"
        )
    groups = of_slice // group
    shards = math.gcd(groups, _MAX_SHARDS) if shards is None else shards
    if shards < 1 or groups % shards:
        raise ValueError(f"shards = {shards} does not divide {groups} groups of devices")
    shape = (groups // shards, shards, model, spatial)
    if slices > 1:
        grid = mesh_utils.create_hybrid_device_mesh(shape, (slices, 1, 1, 1), devices)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    for shared in grid.reshape(-1, group):
        if len({device.process_index for device in shared}) > 1:
            raise ValueError(
                f"{model} for `model` times {spatial} for `spatial` are more devices than a "
                f"process has ({sum(d.process_index == 0 for d in devices)}); use fewer"
            )
    return Mesh(grid, _AXES, axis_types=(AxisType.Auto,) * len(_AXES))


def usable(wanted: int, present: int) -> int:
    """Returns the number of devices to use of those present, at most `wanted`.

    It is all of them, or a power of two: a grid of TPU chips has no mesh of 3, 5 or 7.
    """
    return present if wanted >= present else 1 << (wanted.bit_length() - 1)


def num_batch_parts(mesh: Mesh) -> int:
    """Returns the number of parts that a batch is split into."""
    return mesh.shape[REPLICA_AXIS] * mesh.shape[DATA_AXIS]


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding under which every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its leading axis over `replica` and `data`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def gather(tree: Any, mesh: Mesh) -> Any:
    """Gathers sharded arrays, so that each device of the mesh holds them whole."""
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)


def on_this_process(tree: Any) -> Any:
    """Returns this process's copy, on one device, of arrays that are replicated everywhere."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def check_batch_size(batch_size: int, mesh: Mesh, name: str) -> None:
    """Raises ValueError, naming the option `name`, if the devices do not divide the batch."""
    devices = num_batch_parts(mesh)
    if batch_size % devices:
        lower, upper = batch_size // devices * devices, -(-batch_size // devices) * devices
        fits = " or ".join(str(n) for n in (lower, upper) if n)
        raise ValueError(
            f"{name} = {batch_size} cannot be split over {devices} devices; {fits} would do"
        )


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Makes global arrays, sharded by `split_batch`, from this process's rows of a batch."""
    sharding = split_batch(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }
