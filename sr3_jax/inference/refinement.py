"""Refining batches of images of one size on devices: `Refiner`.

Resizing before and rounding after are done on the host, in numpy, where no size is compiled for.
Between them nothing leaves the devices: noise; then for each call of a sampler
(`diffusion.Sampler`) the denoiser's estimate of y_0, tile by tile where an image is cut (`tiling`),
and the sampler's step. The compiled programs (`programs`) do not depend on how many steps there
are.

An image's result depends on its pixels, its key and `tile_size`, not on its batch or its devices.
Without attention it still depends on `tile_size`: convolutions reach over the overlap, and group
normalisation looks at a whole tile (`UNet.norm`).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from sr3_jax import diffusion, models, parallel
from sr3_jax.config import Sampling
from sr3_jax.inference import integer_images, programs, resampling, tiling
from sr3_jax.inference.integer_images import Levels
from sr3_jax.models import Params

_MAX_OVERLAP = 64  # of tiles, in pixels
# A CPU works on larger batches no faster, and from 64x64 pixels on more slowly: they leave its
# caches (measured: docs/cpu.md).
_CPU_PIXELS = 4096
# Of the size of an image: x, y_t, the sum of estimates, the state of the call before, and what a
# step works with; and on the host: x in the making, y_0, and levels.
_NUM_ARRAYS, _NUM_HOST_ARRAYS = 8, 4


class Refiner:
    """Refines batches of images of one size: the part of `SuperResolver` that knows devices."""

    def __init__(
        self,
        denoiser: models.Denoiser,
        sampling: Sampling,
        *,
        factor: int,
        stride: int,
        devices: Sequence[jax.Device],
        share_heights: bool | None = None,
    ) -> None:
        """Takes the denoiser; its weights come with `set_params`.

        Args:
          denoiser: estimates y_0.
          sampling: how to draw.
          factor: by how much images grow.
          stride: of the network's deepest level.
          devices: that share the images, or tiles.
          share_heights: also the height of each image, where there are fewer images than devices.
            None: if they are not CPUs, which work on one image with all cores anyway.
        """
        if share_heights is None:
            share_heights = devices[0].platform != "cpu"
        self._share_heights = share_heights
        self.denoiser, self._sampling = denoiser, sampling
        self._factor, self._devices = factor, list(devices)
        self._stride = stride
        self._tile_size = -(-sampling.tile_size // stride) * stride
        self._overlap = min(self._tile_size // 4, _MAX_OVERLAP)
        self.programs = programs.Programs(denoiser, devices, clip=sampling.clip)
        self._placed: dict[tuple[int, int], Params] = {}

    def set_params(self, params: Params) -> None:
        """Changes the weights, which are kept in the network's type; what was compiled stays."""
        everywhere = parallel.replicated(self.programs.mesh(len(self._devices)))
        self.params = jax.jit(self.denoiser.cast_params)(jax.device_put(params, everywhere))
        self._placed = {(len(self._devices), 1): self.params}

    def grid(self, size: tuple[int, int]) -> tiling.Grid:
        """Returns the grid of tiles for the output of an input of a height and width."""
        size = tuple(n * self._factor for n in size)
        return tiling.make_grid(size, self._tile_size, self._overlap, self._stride)

    def share(self, num_images: int, size: tuple[int, int]) -> tuple[int, int]:
        """Returns how many devices refine images of a size, and how many images at once."""
        grid = self.grid(size)
        if grid.is_cut:
            return len(self._devices), 1
        # Few numbers, so that few programs are compiled. Batches are filled up by at most as many
        # images as there are.
        devices = parallel.usable(self._sampling.batch_size, len(self._devices))
        for rows, sharing in ((self._most(grid.tile, devices), devices), (devices, devices)):
            if num_images > rows // 2:
                return sharing, rows
        return 1, 1

    def num_batches(self, num_images: int, size: tuple[int, int]) -> int:
        """Returns the number of calls of `refine` for a number of images of a size."""
        count = 0
        while num_images > 0:
            num_images -= self.share(num_images, size)[1]
            count += 1
        return count

    def network_batches(
        self, num_images: int, size: tuple[int, int]
    ) -> list[tuple[int, tuple[int, int, int]]]:
        """The network's calls in one step of so many images.

        Returns:
          For each: the devices that share it, and rows, height and width of its inputs.
        """
        grid, calls = self.grid(size), []
        while num_images > 0:
            devices, rows = self.share(num_images, size)
            sizes = self._groups(grid) if grid.is_cut else [rows]
            calls += [(devices, (count, *grid.tile)) for count in sizes]
            num_images -= rows
        return calls

    def memory(self, num_images: int, size: tuple[int, int]) -> tuple[int, int]:
        """Estimates bytes for refining images of a size, beside the weights, before compiling.

        Returns:
          Of each device, and of the host.
        """
        grid = self.grid(size)
        devices, rows = self.share(num_images, size)
        sharing = 1 if grid.is_cut else devices
        at_once = max(self._groups(grid)) // devices if grid.is_cut else rows // devices
        image = 12 * grid.room  # of three channels, float32
        network = at_once * grid.tile[0] * grid.tile[1] * self._bytes_per_pixel(grid.tile)
        return rows // sharing * image * _NUM_ARRAYS + network, rows * image * _NUM_HOST_ARRAYS

    def _bytes_per_pixel(self, tile: tuple[int, int]) -> int:
        """Estimates the bytes of activations: kept skips, and a block at the highest level."""
        unet = self.denoiser.network
        if not isinstance(unet, models.UNet):
            return 4 * 4 * getattr(unet, "channels", 64)
        skips = sum(
            multiplier * (unet.num_blocks + 1) / 4**level
            for level, multiplier in enumerate(unet.multipliers)
        )
        channels = unet.channels * (skips + 4 * unet.multipliers[0])
        deepest = len(unet.multipliers) - 1
        levels_ = {*unet.attention_levels, *([deepest] if unet.bottleneck_attention else [])}
        # Of each pair of pixels of a level.
        attention = sum(unet.num_heads * tile[0] * tile[1] / 16**level for level in levels_)
        guided = 2 if self.denoiser.is_guided else 1
        return int(guided * (jnp.dtype(unet.dtype).itemsize * channels + 4 * attention))

    def refine(
        self,
        images: Levels,
        keys: Key[Array, " n"],
        sampler: diffusion.Sampler,
        stops: Sequence[int] = (),
        progress: Callable[[], None] | None = None,
        labels: Int[np.ndarray, " n"] | None = None,
    ) -> Iterator[Callable[[], Levels]]:
        """Refines one batch, on devices that meanwhile go on with what else is asked of them.

        Args:
          images: as many as `share` says. Of those of a network without a source only the size
            counts.
          keys: of their noise.
          sampler: what to do in each call.
          labels: class of each image, the null label where negative; None: of all. Ignored by
            unconditional networks.
          stops: after how many calls to yield y_t; 0 is pure noise.
          progress: called when a call is done.

        Yields:
          For each stop, then for the result: a function that waits for it. It raises ValueError
          where the network gave values that are not finite.
        """
        grid = self.grid(images.shape[1:3])
        shape = self.shape(len(images), images.shape[1:3])
        run = self.programs
        groups = [None]
        if grid.is_cut:
            windows = tiling.make_windows(grid, self._overlap, self._groups(grid))
            groups = jax.device_put(windows, run.whole(shape))
        labels = np.asarray([-1] * len(images) if labels is None else labels, np.int32)
        params = self._params_on(shape.devices, shape.spatial)
        has_source = self.denoiser.network.has_source
        x = self._source(images, keys, shape, grid) if has_source else None
        total = jax.device_put(
            np.zeros((len(images), 3 * shape.room), np.float32), run.images(shape)
        )
        state = run.begin(shape, sampler, keys)
        finish, ticks = functools.partial(self._finish, images, grid), collections.deque()
        for call in range(sampler.nfe):
            if call in stops:
                # A copy, since the next step takes the array's memory.
                yield functools.partial(finish, np.array(state.y_t))
            row = sampler[call]
            for windows in groups:
                tiles = run.cut(shape, windows, x, state.y_t)
                # Tiles of an image that is cut are all of its class.
                of_tiles = np.resize(labels, len(tiles[1]))
                y_0 = run.network(shape, params, *tiles, row.gamma, of_tiles)
                total = run.add(shape, windows, total, y_0)
                # One call ahead, so that devices need not wait for this process, and not more, so
                # that no tiles pile up.
                ticks.append((y_0, progress if windows is groups[-1] else None))
                _wait(ticks, 1)
            state, total = run.step(shape, row, state, total, keys)
        made = state.y_t
        made.copy_to_host_async()
        if progress:
            _wait(ticks, 0)
        yield lambda: finish(np.asarray(made))

    def _source(
        self, images: Levels, keys: Key[Array, " b"], shape: programs.Shape, grid: tiling.Grid
    ) -> Float[Array, "b values"]:
        """The network's x, flat: the upsampled images."""
        low = integer_images.to_signed(images)
        if std := self.denoiser.source_noise:
            room = dataclasses.replace(shape, room=-(-shape.room // self._factor**2))
            noise = np.asarray(self.programs.noise(room, keys))[:, : low[0].size]
            low = np.sqrt(1.0 - std**2, dtype=np.float32) * low + std * noise.reshape(low.shape)
        x = resampling.resize(low.astype(np.float32), self._factor, grid.size)
        filling = ((0, whole - n) for n, whole in zip(grid.size, grid.canvas, strict=True))
        x = np.pad(x, [(0, 0), *filling, (0, 0)], mode="symmetric").reshape(len(low), -1)
        x = np.pad(x, [(0, 0), (0, 3 * shape.room - x.shape[1])])
        return jax.device_put(x, self.programs.images(shape))

    def _finish(self, low: Levels, grid: tiling.Grid, y_0: Float[np.ndarray, "b values"]) -> Levels:
        """To levels, and to the nearest consistent image where asked for."""
        (height, width), canvas = grid.size, grid.canvas
        y_0 = y_0[:, : 3 * canvas[0] * canvas[1]].reshape(len(low), *canvas, 3)[:, :height, :width]
        if not np.isfinite(y_0).all():
            raise ValueError(
                "the network gave values that are not finite; use config.model.dtype = float32, "
                "another checkpoint (--which), or train anew with a lower learning rate"
            )
        if self._sampling.consistent:
            y_0 = resampling.make_consistent(y_0, integer_images.to_signed(low))
        return integer_images.to_levels(y_0, low.dtype)

    def shape(self, num_images: int, size: tuple[int, int]) -> programs.Shape:
        """Returns the shape that programs are compiled for, with as many images as `share` says."""
        grid = self.grid(size)
        devices, _ = self.share(num_images, size)
        spatial = self._spatial(devices, grid)
        return programs.Shape(devices, spatial, num_images, grid.room, grid.tile, grid.is_cut)

    def _most(self, tile: tuple[int, int], devices: int) -> int:
        """Images, or tiles, that the network sees at once: a multiple of the devices."""
        most = self._sampling.batch_size
        if self._devices[0].platform == "cpu":
            most = min(most, devices * max(1, _CPU_PIXELS // (tile[0] * tile[1])))
        return -(-most // devices) * devices

    def _groups(self, grid: tiling.Grid) -> list[int]:
        """Returns the number of tiles in each call of the network, group by group."""
        devices = len(self._devices)
        full, rest = divmod(len(grid.starts), most := self._most(grid.tile, devices))
        return [most] * full + [devices] * -(-rest // devices)

    def _spatial(self, devices: int, grid: tiling.Grid) -> int:
        """Returns how many devices share an image: all, if each has a row of the deepest level."""
        if not self._share_heights:
            return 1
        rows, free = grid.tile[0] // self._stride, len(self._devices) // devices
        return math.gcd(rows, parallel.usable(free, free + 1))

    def _params_on(self, *devices: int) -> Params:
        """The parameters on the first few devices (`_mesh`)."""
        if devices not in self._placed:
            where = parallel.replicated(self.programs.mesh(*devices))
            self._placed[devices] = jax.device_put(self.params, where)
        return self._placed[devices]


def _wait(ticks: collections.deque[tuple[Array, Callable[[], None] | None]], num_left: int) -> None:
    """Waits for all but the last of what the network is at; says where a call is done."""
    while len(ticks) > num_left:
        made, progress = ticks.popleft()
        made.block_until_ready()
        if progress:
            progress()
