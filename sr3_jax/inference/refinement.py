"""The programs that refine images on devices, compiled once for each size of array.

There are three, between which nothing leaves the devices: from low resolution to source and noise
(of a network without a source, noise alone);
any number of network calls; from the last state to levels. How many calls there are and what is
made of them are arguments (`diffusion.Sampler`), and so are the size of the image within the array
and its tiles: neither another number of steps nor another size of picture compiles anew, as long as
the array is of the same size.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from sr3_jax import diffusion, models, parallel, sampling_factory
from sr3_jax import images as image_ops
from sr3_jax.inference import tiling
from sr3_jax.inference.levels import Levels
from sr3_jax.training import step as training_step
from sr3_jax.training.state import Params

_MAX_OVERLAP = 64  # of tiles, in pixels: wider than what a network without attention looks


@dataclasses.dataclass(frozen=True)
class _Shape:
    """What programs are compiled for."""

    devices: int  # that share the images
    spatial: int  # and, for each, those that share the height of an image
    rows: int  # images, of which each device has its share; where images are cut one, all have it
    low: tuple[int, int]  # of the input's array
    dtype: str
    tile: tuple[int, int]
    num_tiles: int  # at once; 0: images are not cut
    num_groups: int  # of tiles at most


class Refiner:
    """Refines batches of images of one size: the part of `SuperResolver` that knows devices."""

    def __init__(
        self,
        model: nn.Module,
        options: sampling_factory.Options,
        *,
        factor: int,
        stride: int,
        devices: Sequence[jax.Device],
        share_heights: bool | None = None,
    ) -> None:
        """Takes the network; its weights come with `set_params`.

        Args:
          model: of images, or of a baseline; see `TrainedNetwork`.
          options: of sampling.
          factor: by how much images grow.
          stride: of the network's deepest level.
          devices: that share the images, or tiles.
          share_heights: also the height of each image, where there are fewer images than devices.
            None: if they are not CPUs, which work on one image with all cores anyway.
        """
        if share_heights is None:
            share_heights = devices[0].platform != "cpu"
        self._share_heights = share_heights
        self.model, self._options = model, options
        # What only some networks have; see `models.UNet`.
        self._has_source = getattr(model, "has_source", True)
        self._num_classes = getattr(model, "num_classes", 0)
        self._source_gamma = None
        if getattr(model, "source_noise", False):
            self._source_gamma = 1.0 - options.source_noise**2
        self._factor, self._devices = factor, list(devices)
        # Of arrays: inputs are whole pixels, too.
        self._stride = int(np.lcm(stride, factor))
        self._tile_size = -(-options.tile_size // self._stride) * self._stride
        self._overlap = min(self._tile_size // 4, _MAX_OVERLAP)
        self.compile_seconds = 0.0  # so far
        self._compiled: dict[tuple, Callable] = {}
        self._placed: dict[tuple[int, int], Params] = {}

    def set_params(self, params: Params) -> None:
        """Changes the weights, which are kept in the network's type; what was compiled stays."""
        everywhere = parallel.replicated(self._mesh(len(self._devices)))
        narrow = functools.partial(training_step.narrow, dtype=self._model_dtype())
        self.params = jax.jit(narrow)(jax.device_put(params, everywhere))
        self._placed = {(len(self._devices), 1): self.params}

    def grid(self, size: tuple[int, int]) -> tiling.Grid:
        """How outputs are cut, of inputs of a height and width."""
        size = tuple(n * self._factor for n in size)
        return tiling.make_grid(size, self._tile_size, self._overlap, self._stride)

    def share(self, num_images: int, size: tuple[int, int]) -> tuple[int, int]:
        """How many devices refine so many images of a size, and how many they take at once."""
        if self.grid(size).is_cut:
            return len(self._devices), 1
        # Powers of two: for the last few of many images nothing is compiled that was not before.
        largest = min(1 << (num_images - 1).bit_length(), self._options.batch_size)
        devices = min(largest, len(self._devices))
        return devices, -(-largest // devices) * devices

    def num_batches(self, num_images: int, size: tuple[int, int]) -> int:
        """How often `refine` is called for so many images of a size."""
        full = self.share(num_images, size)[1]
        return -(-num_images // full)

    def network_batch(
        self, num_images: int, size: tuple[int, int]
    ) -> tuple[tuple[int, int, int], int]:
        """What the network sees at once of such images, and how often in a step of a batch.

        Returns:
          Rows, height and width of its inputs, which all devices share; and how often.
        """
        grid = self.grid(size)
        shape = self._shape(num_images, size, "uint8")
        if not shape.num_tiles:
            return (shape.rows, *shape.tile), 1
        return (shape.num_tiles, *shape.tile), -(-len(grid.starts) // shape.num_tiles)

    def refine(
        self,
        images: Levels,
        keys: Key[Array, " n"],
        sampler: diffusion.Sampler | None,
        stops: Sequence[int] = (),
        progress: Callable[[], None] | None = None,
        labels: Int[np.ndarray, " n"] | None = None,
    ) -> Iterator[Callable[[], Levels]]:
        """Refines one batch, on devices that meanwhile go on with what else is asked of them.

        Args:
          images: as many as `share` says. Of those of a network without a source only the size
            counts.
          keys: of their noise.
          sampler: what to do in each call; None of a baseline.
          labels: of their classes, for networks that know classes; None for none.
          stops: after how many calls to yield y_t; 0 is pure noise.
          progress: called when a call is done. Without it, calls are not waited for.

        Yields:
          For each stop, then for the result: a function that waits for it.
        """
        height, width = images.shape[1:3]
        shape = self._shape(len(images), (height, width), str(images.dtype))
        grid = self.grid((height, width))
        low = np.pad(
            images,
            [
                (0, 0),
                *((0, a - b) for a, b in zip(shape.low, (height, width), strict=True)),
                (0, 0),
            ],
        )
        extent = image_ops.make_extent((height, width), shape.low, self._factor)
        if not self._options.consistent:
            extent = extent._replace(inverses=tuple(np.zeros((1, 1), np.float32) for _ in "hw"))
        tiles = ()
        if shape.num_tiles:
            tiles = tiling.groups_of_tiles(grid, self._overlap, shape.num_tiles)
        rows = None if sampler is None else _with_room(sampler)
        if self._num_classes:
            labels = np.full(len(images), self._num_classes) if labels is None else labels
            labels = np.asarray(labels, np.int32)
        call = functools.partial(self._call, shape, rows)
        x, state = call("begin", low, extent, keys, rows)

        def fetch() -> Callable[[], Levels]:
            levels = call("finish", state.y_t, low, extent)
            levels.copy_to_host_async()
            return lambda: np.asarray(levels)[:, : height * self._factor, : width * self._factor]

        num_calls = 1 if sampler is None else sampler.num_calls
        params, ticks, first = self._params_on(shape.devices, shape.spatial), [], 0
        while first < num_calls:
            if first in stops:
                yield fetch()
            last = min(stop for stop in (*stops, num_calls) if stop > first)
            last = first + 1 if progress else last
            bounds = (np.int32(first), np.int32(last))
            state, tick = call("advance", params, x, labels, state, keys, rows, bounds, tiles)
            if progress:
                # One call ahead, so that devices need not wait for this process.
                ticks.append(tick)
                if len(ticks) > 1:
                    ticks.pop(0).block_until_ready()
                    progress()
            first = last
        result = fetch()
        for tick in ticks:
            tick.block_until_ready()
            progress()
        yield result

    def _shape(self, num_images: int, size: tuple[int, int], dtype: str) -> _Shape:
        grid = self.grid(size)
        devices, rows = self.share(num_images, size)
        num_tiles = num_groups = 0
        spatial = self._spatial(devices, grid)
        if grid.is_cut:
            most = tiling.most_tiles(grid, self._overlap)
            num_tiles = -(-min(most, self._options.batch_size) // devices) * devices
            num_groups = -(-most // num_tiles)
        low = tuple(n // self._factor for n in grid.canvas)
        return _Shape(devices, spatial, rows, low, dtype, grid.tile, num_tiles, num_groups)

    def _spatial(self, devices: int, grid: tiling.Grid) -> int:
        """As many devices to an image as there are, if each has a row of the deepest level."""
        if not self._share_heights:
            return 1
        rows, free = grid.canvas[0] // self._stride, len(self._devices) // devices
        return max(n for n in range(1, free + 1) if rows % n == 0)

    def _mesh(self, devices: int, spatial: int = 1) -> jax.sharding.Mesh:
        return parallel.make_mesh(self._devices[: devices * spatial], spatial=spatial)

    def _model_dtype(self) -> DTypeLike:
        return getattr(self.model, "dtype", jnp.float32)

    def _params_on(self, *devices: int) -> Params:
        """The parameters on the first few devices (`_mesh`)."""
        if devices not in self._placed:
            where = parallel.replicated(self._mesh(*devices))
            self._placed[devices] = jax.device_put(self.params, where)
        return self._placed[devices]

    def _call(
        self, shape: _Shape, rows: diffusion.Sampler | None, name: str, *arguments: Any
    ) -> Any:
        """Runs one of the three programs, compiling it where that was not done."""
        kind = None
        if name != "finish" and rows is not None:
            kind = (rows.num_calls, jax.tree.structure(rows))
        signature = (name, shape, kind)
        if signature not in self._compiled:
            mesh = self._mesh(shape.devices, shape.spatial)
            whole = parallel.replicated(mesh)
            # An image that is cut is on all devices, and they share its tiles.
            each = whole if shape.num_tiles else parallel.split_batch(mesh)
            spread = parallel.split_batch(mesh)
            images = parallel.Layout(mesh).images if shape.spatial > 1 else each
            program = {
                "begin": jax.jit(
                    self._begin, in_shardings=(each, whole, each, whole), out_shardings=images
                ),
                "advance": jax.jit(
                    functools.partial(self._advance, shape=shape, spread=spread),
                    in_shardings=(whole, images, each, images, each, whole, whole, whole),
                    out_shardings=(images, whole),
                    donate_argnums=3,
                ),
                "finish": jax.jit(
                    self._finish, in_shardings=(images, each, whole), out_shardings=each
                ),
            }[name]
            device, start = mesh.devices.flat[0], time.perf_counter()
            # Of shapes: where there are several processes, numpy arrays may not be split by `jit`.
            shapes = jax.eval_shape(lambda *arguments: arguments, *arguments)
            self._compiled[signature] = parallel.compile_for(device, program.lower(*shapes))
            self.compile_seconds += time.perf_counter() - start
        return self._compiled[signature](*arguments)

    def _begin(
        self,
        low: Array,
        extent: image_ops.Extent,
        keys: Key[Array, " b"],
        rows: diffusion.Sampler | None,
    ) -> tuple[Float[Array, "b h w 3"] | None, diffusion.State]:
        """The network's x, and y_T."""
        x = self._source(low, extent, keys) if self._has_source else None
        if rows is None:
            return x, diffusion.State(x, None)
        height, width = (n * self._factor for n in low.shape[1:3])
        return x, diffusion.begin(rows, keys, (height, width, 3))

    def _source(
        self, low: Array, extent: image_ops.Extent, keys: Key[Array, " b"]
    ) -> Float[Array, "b h w 3"]:
        low = image_ops.to_signed(low)
        if self._source_gamma is not None:
            # The sampler folds numbers from 1 into the same keys.
            draw = lambda key: jax.random.normal(jax.random.fold_in(key, 0), low.shape[1:])  # noqa: E731
            gamma = jnp.full(len(low), self._source_gamma)
            low = diffusion.diffuse(low, gamma, jax.vmap(draw)(keys))
        return image_ops.upsample_within(low, extent, self._factor)

    def _advance(
        self,
        params: Params,
        x: Float[Array, "b h w 3"] | None,
        labels: Int[Array, " b"] | None,
        state: diffusion.State,
        keys: Key[Array, " b"],
        rows: diffusion.Sampler | None,
        bounds: tuple[Array, Array],
        tiles: tuple,
        *,
        shape: _Shape,
        spread: jax.sharding.Sharding,
    ) -> tuple[diffusion.State, Float[Array, ""]]:
        """Calls the network for some rows; also a number that is there when that is done."""

        def network(x: Array | None, y_t: Array, gamma: Array) -> Float[Array, "b h w 3"]:
            if rows is None:
                return self.model.apply({"params": params}, x)
            source_gamma = label = None
            if self._source_gamma is not None:
                source_gamma = jnp.full_like(gamma, self._source_gamma)
            if labels is not None:  # tiles are all of one image
                label = labels if shape.num_tiles == 0 else jnp.repeat(labels, len(gamma))
            return models.guided_eps(
                self.model,
                params,
                x,
                y_t,
                gamma,
                label,
                source_gamma,
                guidance=self._options.guidance,
            )

        if shape.num_tiles:
            denoise = tiling.tiled_denoise(
                network,
                x,
                shape.tile,
                self._overlap,
                *tiles,
                lambda tiles: jax.lax.with_sharding_constraint(tiles, spread),
            )
        else:
            denoise = functools.partial(network, x)
        if rows is None:
            y_0 = denoise(x, jnp.zeros(len(x)))
            state = diffusion.State(y_0.astype(x.dtype), None)
        else:
            state = jax.lax.fori_loop(
                *bounds,
                lambda i, state: diffusion.advance(
                    denoise, rows[i], state, keys, clip=self._options.clip
                ),
                state,
            )
        return state, state.y_t[0, 0, 0, 0]

    def _finish(self, y_0: Float[Array, "b h w 3"], low: Array, extent: image_ops.Extent) -> Array:
        """To levels, and to the nearest consistent image where asked for."""
        if self._options.consistent:
            y_0 = image_ops.make_consistent(y_0, image_ops.to_signed(low), extent)
        return image_ops.to_levels(y_0, low.dtype)


def _with_room(sampler: diffusion.Sampler) -> diffusion.Sampler:
    """Rows for at least 64 calls, so that few programs are compiled; what is added is not run."""
    room = max(64, 1 << (sampler.num_calls - 1).bit_length())
    return jax.tree.map(lambda a: np.pad(a, (0, room - len(a)), mode="edge"), sampler)
