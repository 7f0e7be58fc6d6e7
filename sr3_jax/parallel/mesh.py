"""The device mesh, and how a batch gets onto it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

REPLICA_AXIS = "replica"
DATA_AXIS = "data"
MODEL_AXIS = "model"
SPATIAL_AXIS = "spatial"
BATCH_AXES = (REPLICA_AXIS, DATA_AXIS)
_AXES = (*BATCH_AXES, MODEL_AXIS, SPATIAL_AXIS)

# The state of the paper's largest network is 10 GB, of which a share of 32 is no burden; shares of
# fewer than four input channels cost a TPU more to gather (docs/tpu.md).
_MAX_SHARDS = 32


def make_mesh(
    devices: Sequence[jax.Device] | None = None,
    *,
    model: int = 1,
    spatial: int = 1,
    shards: int | None = None,
) -> Mesh:
    """A mesh of all devices (or of those given): axes `replica`, `data`, `model`, `spatial`.

    A batch is split over `replica` and `data`, what is kept between steps over `data` alone.
    Devices of several TPU slices, which only a data-centre network connects, are put together
    along `replica`: the other axes stay within a slice.

    Args:
      devices: default all, of all processes.
      model: devices that share the channels of one network.
      spatial: devices that share the height of one image.
      shards: length of `data`; default the largest power of two that there are devices for, which
        is what divides numbers of channels, and at most 32.

    Raises:
      ValueError: where the devices (of a slice) cannot be grouped so, or a group would lie in two
        processes, which read different images.
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    group = model * spatial
    if model < 1 or spatial < 1 or len(devices) // slices % group:
        raise ValueError(
            f"{len(devices) // slices} devices{' of a slice' if slices > 1 else ''} cannot be "
            f"grouped by {model} for `model` times {spatial} for `spatial`; use divisors"
        )
    groups = len(devices) // slices // group
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
    """Returns how many devices to use of those that are present, at most `wanted`.

    All of them, or a power of two: TPU chips that lie in a grid have no mesh of 3, 5 or 7.
    """
    return present if wanted >= present else 1 << (wanted.bit_length() - 1)


def num_batch_parts(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return mesh.shape[REPLICA_AXIS] * mesh.shape[DATA_AXIS]


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def split_batch(mesh: Mesh) -> NamedSharding:
    """The leading (batch) axis is split over `replica` and `data`."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def gather(tree: Any, mesh: Mesh) -> Any:
    """Puts arrays that are split over the mesh whole onto each of its devices."""
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))(tree)


def on_this_process(tree: Any) -> Any:
    """Of arrays that are whole on each device of all processes: one device's, of this process."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def check_batch_size(batch_size: int, mesh: Mesh, name: str) -> None:
    """Raises ValueError, naming the option `name`, where devices cannot share the batch."""
    devices = num_batch_parts(mesh)
    if batch_size % devices:
        lower, upper = batch_size // devices * devices, -(-batch_size // devices) * devices
        fits = " or ".join(str(n) for n in (lower, upper) if n)
        raise ValueError(
            f"{name} = {batch_size} cannot be split over {devices} devices; {fits} would do"
        )


def to_global(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """This process's rows of a batch to global arrays split as `split_batch` says."""
    sharding = split_batch(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }
