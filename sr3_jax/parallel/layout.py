"""Which array lies where: what each device of a mesh holds of a training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sr3_jax.parallel.mesh import (
    DATA_AXIS,
    MODEL_AXIS,
    SPATIAL_AXIS,
    replicated,
    split_batch,
)

# gradient(params, rows, *rest) -> (number, tree like params)
Gradient = Callable[..., tuple[Array, Any]]
LayoutName = Literal["replicated", "zero1"]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Layout:
    """How what is kept between steps, and what a step computes with, lie on a mesh.

    | name | float32 parameters, average, optimizer state | parameters in a step |
    |---|---|---|
    | `replicated` | whole on every device | whole |
    | `zero1` | split over `data` | gathered once, in the network's type |

    (Stage 1 of ZeRO, Rajbhandari et al. 2020, with gradients that are reduce-scattered.) In each of
    them a batch is split over `data`, the height of its images over `spatial`, and the
    output channels of parameters over `model`; all three axes may have one device.

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
        """Batches: the leading axis over `data`."""
        return split_batch(self.mesh)

    @property
    def images(self) -> NamedSharding:
        """Images `[b, h, w, c]` on the devices: rows over `data`, height over `spatial`."""
        return NamedSharding(self.mesh, PartitionSpec(DATA_AXIS, SPATIAL_AXIS))

    def kept(self, tree: Any) -> Any:
        """The sharding, between steps, of each array of `tree`, as a tree like it."""
        return jax.tree.map(lambda leaf: NamedSharding(self.mesh, self._spec(leaf.shape)), tree)

    def share(self, gradient: Gradient) -> Gradient:
        """Runs `gradient` on each device's rows, and sums what it returns over `data`.

        Said explicitly, so that micro-batches are summed on each device before devices are, and
        each device asks for its share of the sums alone.

        Args:
          gradient: `gradient(params, rows, *rest) -> (number, tree like params)`, sums over the
            rows. It finds parameters whole.

        Returns:
          A function of parameters as they are kept, of the rows of all devices, and of the rest;
          the tree that it returns is laid out as parameters are.
        """
        if self.mesh.shape[DATA_AXIS] == 1:
            return gradient

        def shared(params: Any, rows: Any, *rest: Any) -> tuple[Array, Any]:
            axes = jax.tree.map(lambda leaf: _data_axis(self._spec(leaf.shape)), params)

            def of_device(params: Any, rows: Any, *rest: Any) -> tuple[Array, Any]:
                number, sums = gradient(jax.tree.map(_gather, params, axes), rows, *rest)
                sums = jax.tree.map(_add_and_split, sums, axes)
                return jax.lax.psum(number, DATA_AXIS), sums

            specs = jax.tree.map(lambda leaf, axis: _spec_of(axis, leaf.ndim), params, axes)
            return jax.shard_map(
                of_device,
                mesh=self.mesh,
                in_specs=(specs, PartitionSpec(DATA_AXIS), *(PartitionSpec() for _ in rest)),
                out_specs=(PartitionSpec(), specs),
                axis_names={DATA_AXIS},
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


def _add_and_split(leaf: Array, axis: int) -> Array:
    if axis < 0:
        return jax.lax.psum(leaf, DATA_AXIS)
    return jax.lax.psum_scatter(leaf, DATA_AXIS, scatter_dimension=axis, tiled=True)


def constrain(tree: T, shardings: Any) -> T:
    """Inside jit: asks the compiler to lay out `tree` as `shardings` say."""
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings)
