"""The compiled programs of `refinement`: the denoiser's, and the small ones around it.

Few programs are compiled, whatever the sizes of images. The denoiser takes long to compile. It is a
program of its own, on batches of tiles, and both have few sizes (`tiling`). The other programs are
small and take flat images, whose only size is their number of pixels. The programs of each kind
that were not used for longest are dropped.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from sr3_jax import diffusion, models, parallel
from sr3_jax.inference import tiling
from sr3_jax.models import Params

Keys = Key[Array, " n"]
Flat = Float[Array, "n _values"]  # images, row after row
Tiles = Float[Array, "b h w _"]

_MAX_NETWORKS = 12
_MAX_OTHERS = 48


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes and devices that programs are compiled for.

    Attributes:
      devices: number of devices that share the images, or the tiles of one image.
      spatial: number of devices that share the height of each tile.
      rows: number of images.
      room: number of pixels of the array that holds an image.
      tile: height and width of the network's input.
      is_cut: whether there is one image of several tiles; all devices then hold it.
    """

    devices: int
    spatial: int
    rows: int
    room: int
    tile: tuple[int, int]
    is_cut: bool

    @property
    def flat(self) -> Shape:
        """The shape for programs that do not depend on tiles."""
        return dataclasses.replace(self, tile=(0, 0))


class Programs:
    """Compiles programs when they are first called, and keeps those that were called last."""

    def __init__(
        self, denoiser: models.Denoiser, devices: Sequence[jax.Device], *, clip: bool
    ) -> None:
        """Stores the denoiser; nothing is compiled. A program runs on the first few devices."""
        self.compile_seconds = 0.0  # so far
        self._denoiser, self._devices, self._clip = denoiser, list(devices), clip
        self._channels = denoiser.network.image_channels, denoiser.network.source_channels
        self._networks = collections.OrderedDict()
        self._others = collections.OrderedDict()

    @property
    def num_networks(self) -> int:
        """Number of denoiser programs that are kept; at most 12."""
        return len(self._networks)

    def mesh(self, devices: int, spatial: int = 1) -> jax.sharding.Mesh:
        """The first few devices; see `Shape`."""
        return parallel.make_mesh(self._devices[: devices * spatial], spatial=spatial)

    def images(self, shape: Shape) -> jax.sharding.Sharding:
        """Returns the sharding of flat images and of their keys."""
        mesh = self.mesh(shape.devices, shape.spatial)
        return parallel.replicated(mesh) if shape.is_cut else parallel.split_batch(mesh)

    def tiles(self, shape: Shape) -> jax.sharding.Sharding:
        """Returns the sharding of tiles."""
        return denoiser_shardings(self.mesh(shape.devices, shape.spatial))["out_shardings"]

    def whole(self, shape: Shape) -> jax.sharding.Sharding:
        """Returns the sharding of weights and of images being cut: replicated on all devices."""
        return parallel.replicated(self.mesh(shape.devices, shape.spatial))

    def network(
        self,
        shape: Shape,
        params: Params,
        x: Tiles | None,
        y_t: Tiles,
        gamma: Float[Any, ""],
        labels: Int[Any, " b"],
    ) -> Tiles:
        """Returns the denoiser's estimate of y_0 for a batch of tiles."""
        return self._run(
            self._networks,
            (shape.devices, shape.spatial, y_t.shape),
            self._denoiser,
            (params, x, y_t, gamma, labels),
            **denoiser_shardings(self.mesh(shape.devices, shape.spatial)),
        )

    def noise(self, shape: Shape, keys: Keys) -> Flat:
        """Draws noise for sources; the sampler folds numbers from 1 into the same keys."""
        size = (self._channels[1] * shape.room,)
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, 0), size)  # noqa: E731
        where, key = self.images(shape), ("noise", shape.flat)
        return self._small(key, jax.vmap(draw), (keys,), in_shardings=(where,), out_shardings=where)

    def begin(self, shape: Shape, sampler: diffusion.Sampler, keys: Keys) -> diffusion.State:
        """Returns the sampler's first state, y_T: pure noise."""
        images, row, size = self.images(shape), sampler[:1], (self._channels[0] * shape.room,)
        return self._small(
            ("begin", shape.flat, jax.tree.structure(row)),
            lambda row, keys: diffusion.begin(row, keys, size),
            (row, keys),
            in_shardings=(self.whole(shape), images),
            out_shardings=images,
        )

    def cut(
        self, shape: Shape, windows: tiling.Windows | None, x: Flat | None, y_t: Flat
    ) -> tuple[Tiles | None, Tiles]:
        """Cuts the tiles of x and of y_t of all images, one image after the other.

        `windows` is None for images that are a single tile.
        """
        images, tiles = self.images(shape), self.tiles(shape)
        return self._small(
            ("cut", shape, windows and windows.rows.shape),
            functools.partial(_cut, tile=shape.tile, channels=self._channels),
            (windows, x, y_t),
            in_shardings=(self.whole(shape), images, images),
            out_shardings=(tiles, tiles),
        )

    def add(self, shape: Shape, windows: tiling.Windows | None, total: Flat, tiles: Tiles) -> Flat:
        """Adds tiles to the images in `total`, whose memory it takes."""
        images = self.images(shape)
        return self._small(
            ("add", shape, windows and windows.rows.shape),
            _add,
            (windows, total, tiles),
            in_shardings=(self.whole(shape), images, self.tiles(shape)),
            out_shardings=images,
            donate_argnums=1,
        )

    def step(
        self, shape: Shape, row: diffusion.Sampler, state: diffusion.State, y_0: Flat, keys: Keys
    ) -> tuple[diffusion.State, Flat]:
        """Returns a sampler's next state, by the blended estimate of y_0, and zeros for a new sum.

        Both take the memory of the arguments.
        """

        def step(row, state, y_0, keys):
            learns, channels = row.learns_variance, self._channels[0]
            estimate = _one_after_the_other(y_0, channels) if learns else y_0
            state = diffusion.advance(lambda *_: estimate, row, state, keys, clip=self._clip)
            return state, jnp.zeros_like(y_0)

        images = self.images(shape)
        return self._small(
            ("step", shape.flat, jax.tree.structure(row)),
            step,
            (row, state, y_0, keys),
            in_shardings=(self.whole(shape), images, images, images),
            out_shardings=(images, images),
            donate_argnums=(1, 2),
        )

    def _small(self, key: tuple, function: Callable, arguments: tuple, **how: Any) -> Any:
        return self._run(self._others, key, function, arguments, **how)

    def _run(
        self,
        programs: collections.OrderedDict[tuple, jax.stages.Compiled],
        key: tuple,
        function: Callable,
        arguments: tuple,
        **how: Any,
    ) -> Any:
        """Calls a program, which it compiles at the first call."""
        if key not in programs:
            start = time.perf_counter()
            # jax's caches of a new function are freed with the program. It is lowered from shapes,
            # because `jit` may not split numpy arrays where there are several processes.
            jitted = jax.jit(functools.partial(function), **how)
            shapes = jax.eval_shape(lambda *arguments: arguments, *arguments)
            programs[key] = parallel.compile_for(self._devices[0], jitted.lower(*shapes))
            self.compile_seconds += time.perf_counter() - start
        programs.move_to_end(key)
        if len(programs) > (_MAX_NETWORKS if programs is self._networks else _MAX_OTHERS):
            programs.popitem(last=False)
        return programs[key](*arguments)


def denoiser_shardings(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Returns the shardings of `Denoiser.__call__`, as keywords of `jax.jit`.

    The devices of `mesh` share the tiles, and along its spatial axis their height.
    """
    whole, rows = parallel.replicated(mesh), parallel.split_batch(mesh)
    tiles = parallel.Layout(mesh).images if mesh.shape[parallel.SPATIAL_AXIS] > 1 else rows
    return {"in_shardings": (whole, tiles, tiles, whole, rows), "out_shardings": tiles}


def _one_after_the_other(images: Flat, channels: int) -> Flat:
    """Returns images of twice the channels as those of the first half, then those of the other."""
    halves = jnp.split(images.reshape(len(images), -1, 2 * channels), 2, axis=-1)
    return jnp.concatenate([half.reshape(len(images), -1) for half in halves], axis=-1)


def _cut(
    windows: tiling.Windows | None,
    x: Flat | None,
    y_t: Flat,
    *,
    tile: tuple[int, int],
    channels: tuple[int, int],
) -> tuple[Tiles | None, Tiles]:
    def cut(images: Array, channels: int) -> Array:
        if windows is not None:
            images = jax.vmap(lambda image: tiling.cut(image, windows, channels))(images)
        return images.reshape(-1, *tile, channels)

    return None if x is None else cut(x, channels[1]), cut(y_t, channels[0])


def _add(windows: tiling.Windows | None, total: Flat, tiles: Tiles) -> Flat:
    if windows is None:
        return total + tiles.reshape(total.shape)
    tiles = tiles.reshape(len(total), -1, *tiles.shape[1:])
    return jax.vmap(tiling.add, (0, 0, None))(total, tiles, windows)
