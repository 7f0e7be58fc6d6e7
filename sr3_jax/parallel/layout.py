"""Which array lies where: what each device of a mesh holds of a training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
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

# loss(params, rows, *rest) -> number, and its value and gradient with respect to params
Loss = Callable[..., Array]
Gradient = Callable[..., tuple[Array, Any]]
# What is not kept for the gradient under `fsdp`: gathered parameters, and what a kernel may become
# before it is used, each of which costs nothing to make again.
_MADE_AGAIN = frozenset(
    ("all_gather", "split", "slice", "reshape", "squeeze", "transpose", "broadcast_in_dim")
    + ("convert_element_type", "copy")
)
LayoutName = Literal["replicated", "zero1", "fsdp"]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How what is kept between steps, and what a step computes with, lie on a mesh.

    | name | float32 parameters, average, optimizer state | parameters in a step |
    |---|---|---|
    | `replicated` | whole on every device | whole |
    | `zero1` | split over `data` | gathered once, in the network's type |
    | `fsdp` | split over `data` | gathered where they are used, and again for the gradient |

    (Stages 1 and 3 of ZeRO, Rajbhandari et al. 2020; gradients are reduce-scattered in both.) In
    each of them a batch is split over `replica` and `data`, the height of its images over
    `spatial`, and the output channels of parameters over `model`; each axis may have one device.

    Attributes:
      mesh: the devices (`make_mesh`).
      name: see above. Arrays that no axis divides stay whole.
    """

    mesh: Mesh
    name: LayoutName = "zero1"

    @property
    def whole(self) -> NamedSharding:
        """Every device holds all of it."""
        return replicated(self.mesh)

    @property
    def rows(self) -> NamedSharding:
        """Batches: the leading axis over `replica` and `data`."""
        return split_batch(self.mesh)

    @property
    def images(self) -> NamedSharding:
        """Images `[b, h, w, c]` on the devices: rows as `rows`, height over `spatial`."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES, SPATIAL_AXIS))

    def kept(self, tree: Any) -> Any:
        """The sharding, between steps, of each array of `tree`, as a tree like it."""
        return jax.tree.map(lambda leaf: NamedSharding(self.mesh, self._spec(leaf.shape)), tree)

    def share(self, loss: Loss, differentiate: Callable[[Loss], Gradient]) -> Gradient:
        """The gradient of `loss`, with each device working on its rows, summed over all.

        Said explicitly, so that micro-batches are summed on each device before devices are, and
        each device asks for its share of the sums alone.

        Args:
          loss: `loss(params, rows, *rest) -> number`, a sum over the rows. It finds parameters
            whole.
          differentiate: makes `gradient(params, rows, *rest) -> (number, tree like params)` of it.

        Returns:
          Such a gradient, of parameters as they are kept, of the rows of all devices, and of the
          rest; the tree that it returns is laid out as parameters are.
        """
        if num_batch_parts(self.mesh) == 1:
            return differentiate(loss)

        def shared(params: Any, rows: Any, *rest: Any) -> tuple[Array, Any]:
            axes = jax.tree.map(lambda leaf: _data_axis(self._spec(leaf.shape)), params)

            def of_device(params: Any, rows: Any, *rest: Any) -> tuple[Array, Any]:
                if self.name == "fsdp":
                    # The transpose of a gathering is a sum of which each device keeps its share.
                    gradient = differentiate(_gathering(loss, axes))
                    number, sums = gradient(params, rows, *rest)
                    sums = jax.tree.map(_add_unsplit, sums, axes)
                else:
                    gathered = jax.tree.map(_gather, params, axes)
                    number, sums = differentiate(loss)(gathered, rows, *rest)
                    sums = jax.tree.map(_add_and_split, sums, axes)
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
            # The last axis is the lanes of a TPU's registers, which a slice would leave empty;
            # it is split only where no other can be.
            *others, lanes = range(len(shape))
            for axis in (*sorted(others, key=lambda axis: -shape[axis]), lanes):
                if spec[axis] is None and shape[axis] % data == 0:
                    spec[axis] = DATA_AXIS
                    break
        return PartitionSpec(*spec)


def _data_axis(spec: PartitionSpec) -> int:
    """Which axis of an array is split over `data`; -1: none."""
    return spec.index(DATA_AXIS) if DATA_AXIS in spec else -1


def _spec_of(axis: int, ndim: int) -> PartitionSpec:
    return PartitionSpec(*(DATA_AXIS if i == axis else None for i in range(ndim)))


def _gather(leaf: Array, axis: int) -> Array:
    if axis < 0:
        return leaf
    return jax.lax.all_gather(leaf, DATA_AXIS, axis=axis, tiled=True)


def _gathering(loss: Loss, axes: Any) -> Loss:
    """`loss` of split parameters, which keeps no whole ones between forward and backward pass."""

    def gather_and_lose(params: Any, *rest: Any) -> Array:
        return loss(jax.tree.map(_gather, params, axes), *rest)

    def keep(primitive: Any, *_: Any, **__: Any) -> bool:
        return primitive.name not in _MADE_AGAIN

    return jax.checkpoint(gather_and_lose, policy=keep)


def _add_unsplit(leaf: Array, axis: int) -> Array:
    return jax.lax.psum(leaf, BATCH_AXES if axis < 0 else REPLICA_AXIS)


def _add_and_split(leaf: Array, axis: int) -> Array:
    if axis < 0:
        return jax.lax.psum(leaf, BATCH_AXES)
    shares = jax.lax.psum_scatter(leaf, DATA_AXIS, scatter_dimension=axis, tiled=True)
    return jax.lax.psum(shares, REPLICA_AXIS)


def constrain(tree: T, shardings: Any) -> T:
    """Inside jit: asks the compiler to lay out `tree` as `shardings` say."""
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings)
