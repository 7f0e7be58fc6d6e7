"""Sharding of the arrays of a training step over a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sr3_jax.parallel.mesh import (
    BATCH_AXES,
    DATA_AXIS,
    MODEL_AXIS,
    REPLICA_AXIS,
    SPATIAL_AXIS,
    num_batch_parts,
    replicated,
    split_batch,
)

# loss(params, rows, *rest) -> number; Gradient returns that number and its gradient in params.
Loss = Callable[..., Array]
Gradient = Callable[..., tuple[Array, Any]]
# Operations that `fsdp` repeats in the backward pass, so that no gathered parameter is kept: the
# gathering, and cheap changes of a kernel before it is used.
_RECOMPUTED = frozenset(
    ("all_gather", "split", "slice", "reshape", "squeeze", "transpose", "broadcast_in_dim")
    + ("convert_element_type", "copy")
)
# collective(leaf, axis): `axis` is the one that is split over `data`; -1 if none is.
Collective = Callable[[Array, int], Array]
LayoutName = Literal["replicated", "zero1", "fsdp"]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Shardings of the training state, and of parameters and batches within a step.

    | name | float32 parameters, moving average, optimizer state | parameters within a step |
    |---|---|---|
    | `replicated` | replicated | replicated |
    | `zero1` | sharded over `data` | gathered once, in the network's type |
    | `fsdp` | sharded over `data` | gathered at each use, in both passes |

    (`zero1` and `fsdp` are stages 1 and 3 of ZeRO, Rajbhandari et al. 2020; both reduce-scatter
    gradients.) Every layout splits a batch over `replica` and `data`, the height of its images
    over `spatial`, and the output channels of parameters over `model`; an axis may have one device.

    Attributes:
      mesh: the devices (`make_mesh`).
      name: see above. Arrays whose axes do not divide are replicated.
    """

    mesh: Mesh
    name: LayoutName = "zero1"

    @property
    def whole(self) -> NamedSharding:
        """The replicated sharding: every device holds the whole array."""
        return replicated(self.mesh)

    @property
    def rows(self) -> NamedSharding:
        """The sharding of batches: the leading axis over `replica` and `data`."""
        return split_batch(self.mesh)

    @property
    def images(self) -> NamedSharding:
        """The sharding of images `[b, h, w, c]`: batch as `rows`, height over `spatial`."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES, SPATIAL_AXIS))

    def kept(self, tree: Any) -> Any:
        """Returns the sharding between steps of each array of `tree`, as a tree like it."""
        return jax.tree.map(lambda leaf: NamedSharding(self.mesh, self._spec(leaf.shape)), tree)

    def share(self, loss: Loss, differentiate: Callable[[Loss], Gradient]) -> Gradient:
        """Returns the gradient of `loss`, computed by each device on its rows and summed.

        It is written with collectives, so that each device sums its micro-batches before the sum
        over devices, and receives only its share of that sum.

        Args:
          loss: `loss(params, rows, *rest) -> number`, a sum over the rows, of whole parameters.
          differentiate: turns a loss into `gradient(params, rows, *rest) -> (number, tree)`.

        Returns:
          Such a gradient, of sharded parameters (`kept`) and the rows of all devices; its tree is
          sharded as the parameters are.
        """
        if num_batch_parts(self.mesh) == 1:
            return differentiate(loss)

        is_cpu = self.mesh.devices.flat[0].platform == "cpu"
        through = _through_float32 if is_cpu else lambda collective: collective

        def shared(params: Any, rows: Any, *rest: Any) -> tuple[Array, Any]:
            axes = jax.tree.map(lambda leaf: _data_axis(self._spec(leaf.shape)), params)

            def of_device(params: Any, rows: Any, *rest: Any) -> tuple[Array, Any]:
                if self.name == "fsdp":
                    # The transpose of all_gather is psum_scatter: sums over `data` are done.
                    gradient = differentiate(_gathering(loss, axes, through(_gather)))
                    number, sums = gradient(params, rows, *rest)
                    sums = jax.tree.map(through(_add_unsplit), sums, axes)
                else:
                    gathered = jax.tree.map(_gather, params, axes)
                    number, sums = differentiate(loss)(gathered, rows, *rest)
                    sums = jax.tree.map(through(_add_and_split), sums, axes)
                return jax.lax.psum(number, BATCH_AXES), sums

            specs = jax.tree.map(lambda leaf, axis: _spec_of(axis, leaf.ndim), params, axes)
            return jax.shard_map(
                of_device,
                mesh=self.mesh,
                in_specs=(specs, PartitionSpec(BATCH_AXES), *(PartitionSpec() for _ in rest)),
                out_specs=(PartitionSpec(), specs),
                axis_names=set(BATCH_AXES),
                check_vma=False,
            )(params, rows, *rest)

        return shared

    def _spec(self, shape: tuple[int, ...]) -> PartitionSpec:
        spec: list[str | None] = [None] * len(shape)
        model, data = self.mesh.shape[MODEL_AXIS], self.mesh.shape[DATA_AXIS]
        if model > 1 and len(shape) > 1 and shape[-1] % model == 0:
            spec[-1] = MODEL_AXIS
        if self.name != "replicated" and data > 1 and shape:
            # The last axis fills the lanes of a TPU's registers, so it is split last.
            *others, last = range(len(shape))
            for axis in (*sorted(others, key=lambda axis: -shape[axis]), last):
                if spec[axis] is None and shape[axis] % data == 0:
                    spec[axis] = DATA_AXIS
                    break
        return PartitionSpec(*spec)


def _data_axis(spec: PartitionSpec) -> int:
    """Returns the axis that is split over `data`; -1 if none is."""
    return spec.index(DATA_AXIS) if DATA_AXIS in spec else -1


def _spec_of(axis: int, ndim: int) -> PartitionSpec:
    return PartitionSpec(*(DATA_AXIS if i == axis else None for i in range(ndim)))


def _through_float32(collective: Collective) -> Collective:
    """Returns the collective, run in float32: XLA for CPUs ends the process at bfloat16 sums."""

    def converted(leaf: Array, axis: int) -> Array:
        return collective(leaf.astype(jnp.float32), axis).astype(leaf.dtype)

    return converted


def _gather(leaf: Array, axis: int) -> Array:
    if axis < 0:
        return leaf
    return jax.lax.all_gather(leaf, DATA_AXIS, axis=axis, tiled=True)


def _gathering(loss: Loss, axes: Any, gather: Collective) -> Loss:
    """Returns the loss of sharded parameters, which keeps no whole ones for the backward pass."""

    def gather_and_lose(params: Any, *rest: Any) -> Array:
        return loss(jax.tree.map(gather, params, axes), *rest)

    def keep(primitive: Any, *_: Any, **__: Any) -> bool:
        return primitive.name not in _RECOMPUTED

    return jax.checkpoint(gather_and_lose, policy=keep)


def _add_unsplit(leaf: Array, axis: int) -> Array:
    return jax.lax.psum(leaf, BATCH_AXES if axis < 0 else REPLICA_AXIS)


def _add_and_split(leaf: Array, axis: int) -> Array:
    if axis < 0:
        return jax.lax.psum(leaf, BATCH_AXES)
    shares = jax.lax.psum_scatter(leaf, DATA_AXIS, scatter_dimension=axis, tiled=True)
    return jax.lax.psum(shares, REPLICA_AXIS)
