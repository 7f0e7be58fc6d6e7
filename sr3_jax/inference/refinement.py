"""Refining batches of images of one size on devices: `Refiner`.

The host resizes inputs and rounds results, in numpy, which compiles nothing for a new size. All
else stays on the devices: the noise, and for each call of a sampler (`diffusion.Sampler`) the
denoiser's estimate of y_0, tile by tile for large images (`tiling`), and the sampler's step. The
compiled programs (`programs`) do not depend on the number of steps.

An image's result depends on its pixels, its key and `tile_size`, not on its batch or its devices.
It depends on `tile_size` even without attention: convolutions reach over the overlap, and group
normalisation takes its statistics from a whole tile (`UNet.norm`).
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Num

from sr3_jax import diffusion, image_ops, models, parallel, scaling, sizes
from sr3_jax.config import Sampling
from sr3_jax.data import resampling
from sr3_jax.inference import host_images, programs, tiling
from sr3_jax.inference.host_images import Images
from sr3_jax.models import Params

# Larger batches are no faster on a CPU, and slower from 64x64 pixels on, since they leave its
# caches (measured: docs/cpu.md).
_CPU_PIXELS = 4096
# Arrays of the size of an image. On the devices: x, y_t, the sum of estimates, the former state,
# and the step's temporaries. On the host: x, its temporaries, y_0 and the result.
_NUM_ARRAYS, _NUM_HOST_ARRAYS = 8, 4


class Refiner:
    """Refines batches of images of one size; the part of `SuperResolver` that places arrays."""

    def __init__(
        self,
        denoiser: models.Denoiser,
        sampling: Sampling,
        *,
        factor: int | float,
        stride: int,
        devices: Sequence[jax.Device],
        share_heights: bool | None = None,
        scalings: scaling.Scalings | None = None,
        upsample: Callable[..., Any] | None = None,
    ) -> None:
        """Stores the denoiser; `set_params` brings its weights.

        The devices share images or tiles, and, with `share_heights`, the height of an image if
        there are fewer images than devices. None: except on CPUs, which use all cores for one image
        anyway. `factor` and `stride` are those of `TrainedNetwork`, and so are
        `scalings` and `upsample`.
        """
        if share_heights is None:
            share_heights = devices[0].platform != "cpu"
        self._share_heights = share_heights
        self.denoiser, self._sampling = denoiser, sampling
        self._channels = denoiser.network.image_channels, denoiser.network.source_channels
        self._factor, self._devices = factor, list(devices)
        self.scalings = scalings
        self._upsample = upsample or functools.partial(resampling.upsample, factor=factor)
        self._stride = stride
        self._tile_size = -(-sampling.tile_size // stride) * stride
        self._overlap = min(self._tile_size // 4, sampling.tile_overlap)
        self.programs = programs.Programs(denoiser, devices, clip=sampling.clip)
        self._placed: dict[tuple[int, int], Params] = {}

    @property
    def most_channels(self) -> int:
        """Channels of the largest array of an image's size: of x, or of y_t."""
        return max(self._channels)

    def set_params(self, params: Params) -> None:
        """Replaces the weights, cast to the network's type; compiled programs stay."""
        everywhere = parallel.replicated(self.programs.mesh(len(self._devices)))
        params = jax.device_put(params, everywhere)
        cast = self.denoiser.cast_params
        types = [
            jax.tree.map(lambda leaf: leaf.dtype, tree)
            for tree in (params, jax.eval_shape(cast, params))
        ]
        # A program that changes nothing would be compiled all the same.
        self.params = params if types[0] == types[1] else jax.jit(cast)(params)
        self._placed = {(len(self._devices), 1): self.params}

    def grid(self, size: tuple[int, int]) -> tiling.Grid:
        """Returns the grid of tiles for the output of an input of a height and width."""
        size = sizes.scaled(size, self._factor)
        return tiling.make_grid(size, self._tile_size, self._overlap, self._stride)

    def share(self, num_images: int, size: tuple[int, int]) -> tuple[int, int]:
        """Returns how many devices refine images of a size, and how many images at once."""
        grid = self.grid(size)
        if grid.is_cut:
            return len(self._devices), 1
        # There are few batch sizes, so that few programs are compiled. Padding at most doubles a
        # batch.
        devices = parallel.usable(self._sampling.batch_size, len(self._devices))
        for rows, sharing in ((self._most(grid.tile, devices), devices), (devices, devices)):
            if num_images > rows // 2:
                return sharing, rows
        return 1, 1

    def batches(self, num_images: int, size: tuple[int, int]) -> list[tuple[int, int]]:
        """Returns what `share` returns for each call of `refine` with images of a size."""
        made = []
        while num_images > 0:
            made.append(self.share(num_images, size))
            num_images -= made[-1][1]
        return made

    def network_batches(
        self, num_images: int, size: tuple[int, int]
    ) -> list[tuple[int, tuple[int, int, int]]]:
        """Returns devices, and rows, height and width, of the network's calls in a step."""
        grid = self.grid(size)
        return [
            (devices, (count, *grid.tile))
            for devices, rows in self.batches(num_images, size)
            for count in (self._groups(grid) if grid.is_cut else [rows])
        ]

    def num_calls(self, num_images: int, size: tuple[int, int]) -> int:
        """Returns the number of the network's calls in a step, over all batches and tiles."""
        return len(self.network_batches(num_images, size))

    def memory(self, num_images: int, size: tuple[int, int]) -> tuple[int, int]:
        """Estimates the bytes on each device and on the host to refine images, besides weights."""
        grid = self.grid(size)
        devices, rows = self.share(num_images, size)
        sharing = 1 if grid.is_cut else devices
        at_once = max(self._groups(grid)) // devices if grid.is_cut else rows // devices
        image = 4 * self.most_channels * grid.room  # float32
        network = at_once * grid.tile[0] * grid.tile[1] * self._bytes_per_pixel(grid.tile)
        return rows // sharing * image * _NUM_ARRAYS + network, rows * image * _NUM_HOST_ARRAYS

    def _bytes_per_pixel(self, tile: tuple[int, int]) -> int:
        """Estimates the bytes of activations: kept skips, and a block at the highest level."""
        unet = self.denoiser.network
        if not isinstance(unet, models.UNet | models.DDPMUNet):
            return 4 * 4 * getattr(unet, "channels", 64)
        skips = sum(
            multiplier * (unet.num_blocks + 1) / 4**level
            for level, multiplier in enumerate(unet.multipliers)
        )
        channels = unet.channels * (skips + 4 * unet.multipliers[0])
        deepest = len(unet.multipliers) - 1
        levels = {*unet.attention_levels, *([deepest] if unet.bottleneck_attention else [])}
        # Of each pair of pixels of a level.
        attention = sum(unet.num_heads * tile[0] * tile[1] / 16**level for level in levels)
        guided = 2 if self.denoiser.is_guided else 1
        return int(guided * (jnp.dtype(unet.dtype).itemsize * channels + 4 * attention))

    def refine(
        self,
        images: Images,
        keys: Key[Array, " n"],
        sampler: diffusion.Sampler,
        stops: Sequence[int] = (),
        progress: Callable[[], None] | None = None,
        labels: Int[np.ndarray, " n"] | None = None,
        maps: Num[np.ndarray, "n h w m"] | None = None,
    ) -> Iterator[Callable[[], Images]]:
        """Starts to refine one batch, and returns before it is done.

        Args:
          images: as many as `share` returns. A network without a source uses their size alone.
          keys: keys of their noise.
          sampler: the sampler.
          stops: numbers of calls after which y_t is yielded; 0 yields pure noise.
          progress: called after each call of the network, as often as `num_calls` says.
          labels: class of each image, the null label where negative; None: all null. Ignored by
            unconditional networks.
          maps: maps of the images, at the size of the result.

        Yields:
          For each stop, and for the result: a function that waits for it. It raises ValueError if
          the network's output is not finite.
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
        x, is_known = None, None
        if has_source:
            x, is_known = self._source(images, keys, shape, grid, maps)
        channels = self._channels[0] * (2 if self.denoiser.gives_variance else 1)
        blank = np.zeros((len(images), channels * shape.room), np.float32)
        total = jax.device_put(blank, run.images(shape))
        state = run.begin(shape, sampler, keys)
        finish, ticks = functools.partial(self._finish, images, grid, is_known), collections.deque()
        for call in range(sampler.nfe):
            if call in stops:
                # A copy, since the next step takes the array's memory.
                yield functools.partial(finish, np.array(state.y_t))
            row = sampler[call]
            for windows in groups:
                tiles = run.cut(shape, windows, x, state.y_t)
                # All tiles of an image have its class.
                of_tiles = np.resize(labels, len(tiles[1]))
                y_0 = run.network(shape, params, *tiles, row.gamma, of_tiles)
                total = run.add(shape, windows, total, y_0)
                # The host stays one call ahead, so that devices never wait for it, and no more, so
                # that tiles do not pile up.
                ticks.append(y_0)
                _wait(ticks, 1, progress)
            state, total = run.step(shape, row, state, total, keys)
        made = state.y_t
        made.copy_to_host_async()
        if progress:
            _wait(ticks, 0, progress)
        yield lambda: finish(np.asarray(made))

    def _source(
        self,
        images: Images,
        keys: Key[Array, " b"],
        shape: programs.Shape,
        grid: tiling.Grid,
        maps: Num[np.ndarray, "b h w m"] | None,
    ) -> tuple[Float[Array, "b values"], Bool[np.ndarray, "b h w c"] | None]:
        """Returns the network's x, flat, with any source noise; and which of y_0 will be known."""
        low = host_images.to_signed(images, self.scalings and self.scalings.source)
        if std := self.denoiser.source_noise:
            pixels = max(math.ceil(shape.room / self._factor**2), low[0, ..., 0].size)
            room = dataclasses.replace(shape, room=pixels)
            noise = np.asarray(self.programs.noise(room, keys))[:, : low[0].size]
            low = np.sqrt(1.0 - std**2, dtype=np.float32) * low + std * noise.reshape(low.shape)
        if maps is not None:
            maps = self.scalings.maps.to_signed(maps)
        known_at, is_known = self.denoiser.known_at, None
        low = low.astype(np.float32)
        x = image_ops.network_input(
            low, grid.size, maps, may_miss=known_at > 0, resize=self._upsample
        )
        if known_at:
            is_known = x[..., known_at : known_at + self._channels[0]] > 0.5
        filling = ((0, whole - n) for n, whole in zip(grid.size, grid.canvas, strict=True))
        x = np.pad(x, [(0, 0), *filling, (0, 0)], mode="symmetric").reshape(len(low), -1)
        x = np.pad(x, [(0, 0), (0, self._channels[1] * shape.room - x.shape[1])])
        return jax.device_put(x, self.programs.images(shape)), is_known

    def _finish(
        self,
        low: Images,
        grid: tiling.Grid,
        is_known: Bool[np.ndarray, "b h w c"] | None,
        y_0: Float[np.ndarray, "b values"],
    ) -> Images:
        """Converts y_0 to the input's units, of the nearest consistent image if asked for."""
        (height, width), whole = grid.size, (*grid.canvas, self._channels[0])
        y_0 = y_0[:, : math.prod(whole)].reshape(len(low), *whole)[:, :height, :width]
        if not np.isfinite(y_0).all():
            raise ValueError(
                "the network's output is not finite; use config.model.dtype = float32, another "
                "checkpoint (--which), or train anew with a lower learning rate"
            )
        if self._sampling.consistent:
            signed = host_images.to_signed(low, self.scalings and self.scalings.source)
            signed = signed[..., : self._channels[0]]
            y_0 = resampling.make_consistent(
                y_0, signed, clip=self._sampling.clip, factor=self._factor
            )
        if is_known is not None:
            y_0 = np.where(is_known, y_0, np.float32(np.nan))
        return host_images.of_signed(y_0, low.dtype, self.scalings and self.scalings.image)

    def shape(self, num_images: int, size: tuple[int, int]) -> programs.Shape:
        """Returns the shape of the programs for a number of images that `share` returned."""
        grid = self.grid(size)
        devices, _ = self.share(num_images, size)
        spatial = self._spatial(devices, grid)
        return programs.Shape(devices, spatial, num_images, grid.room, grid.tile, grid.is_cut)

    def _most(self, tile: tuple[int, int], devices: int) -> int:
        """Returns the largest batch of the network: a multiple of the devices."""
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
        """Returns how many devices share an image, so that each has a row of the deepest level."""
        if not self._share_heights:
            return 1
        rows, free = grid.tile[0] // self._stride, len(self._devices) // devices
        return math.gcd(rows, parallel.usable(free, free + 1))

    def _params_on(self, *devices: int) -> Params:
        """Returns the parameters on the first few devices (`Programs.mesh`)."""
        if devices not in self._placed:
            where = parallel.replicated(self.programs.mesh(*devices))
            self._placed[devices] = jax.device_put(self.params, where)
        return self._placed[devices]


def _wait(
    ticks: collections.deque[Array], num_left: int, progress: Callable[[], None] | None
) -> None:
    """Waits for the network's calls, but the last `num_left`, and reports progress."""
    while len(ticks) > num_left:
        ticks.popleft().block_until_ready()
        if progress:
            progress()
