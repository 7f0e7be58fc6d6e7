"""Cutting images into what a network takes, and blending its estimates at every refinement step.

A network sees five sizes: squares of `tile_size`, of half of it and of a quarter, and rectangles
of `tile_size` by half. An axis of an image that is no longer is filled up to the next of them by a
mirror image; a longer one is cut into overlapping tiles. So few programs are compiled, and memory
for activations is that of a few tiles. Because the tiles' estimates are blended before each step,
not their results after the last, all tiles refine one image, with one noise, and no seam can form
between diverging ones.

Images lie flat in arrays, row after row, without anything between: an array for n pixels holds
every image of at most n, and a tile is parts of some rows, whose places are arguments of programs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_PARTS = (1, 2, 4)  # of `tile_size`, that a side of what the network sees may be


@dataclasses.dataclass(frozen=True)
class Grid:
    """How images of one size are cut; all in pixels of the output.

    Attributes:
      size: height and width of the image.
      canvas: the same, axes filled up that are not cut.
      tile: height and width of what the network sees.
      starts: upper left corners of the tiles; one of an image that is not cut.
    """

    size: tuple[int, int]
    canvas: tuple[int, int]
    tile: tuple[int, int]
    starts: tuple[tuple[int, int], ...]

    @property
    def is_cut(self) -> bool:
        """Whether there is more than one tile."""
        return len(self.starts) > 1

    @property
    def room(self) -> int:
        """Pixels of the array that holds the canvas; of images that are cut few different ones."""
        pixels = self.canvas[0] * self.canvas[1]
        if not self.is_cut:
            return pixels
        coarse = 1 << max(0, (pixels - 1).bit_length() - 2)  # two between powers of two
        return -(-pixels // coarse) * coarse


class Windows(NamedTuple):
    """Where some tiles lie in a flat image, and how they are blended.

    Attributes:
      rows: of each row of a tile, the pixel of the image with which it begins.
      row_weights, column_weights: of estimates. Their products add up to 1 at each pixel of the
        image; of tiles that only fill up a group they are 0.
    """

    rows: Int[np.ndarray, "k th"]
    row_weights: Float[np.ndarray, "k th"]
    column_weights: Float[np.ndarray, "k tw"]


def make_grid(size: tuple[int, int], tile_size: int, overlap: int, stride: int) -> Grid:
    """Cuts images of `size`.

    Args:
      size: height and width.
      tile_size: longest side of a tile, a multiple of `stride`; an axis no longer is not cut.
      overlap: how far neighbours overlap at least; below `tile_size`.
      stride: sizes that the network takes are multiples of it.

    Raises:
      ValueError: for an impossible overlap.
    """
    if not 0 <= overlap < tile_size:
        raise ValueError(f"overlap = {overlap} must be in [0, tile_size = {tile_size})")
    _, half, _ = sides = [-(-tile_size // (part * stride)) * stride for part in _PARTS]
    tile, starts = [], []
    for length in size:
        tile.append(min((side for side in sides if side >= length), default=tile_size))
        count = max(1, -(-(length - overlap) // (tile_size - overlap)))
        last = max(0, length - tile_size)
        starts.append(np.round(np.linspace(0, last, count)).astype(int).tolist())
    if tile[0] != tile[1]:
        tile = [max(side, half) for side in tile]
    canvas = (max(length, side) for length, side in zip(size, tile, strict=True))
    return Grid(tuple(size), tuple(canvas), tuple(tile), tuple(itertools.product(*starts)))


def make_windows(grid: Grid, overlap: int, sizes: Sequence[int]) -> list[Windows]:
    """The tiles of a grid in groups, which the network sees at once.

    Weights of an estimate rise linearly over the overlap, before they are made to add up to 1.

    Args:
      grid: how the image is cut.
      overlap: see `make_grid`.
      sizes: of the groups, together as many tiles as there are, or more; the last group is filled
        up by tiles of weight 0.
    """
    width = grid.canvas[1]
    along_rows, along_columns = (
        _weights(grid.tile[axis], {corner[axis] for corner in grid.starts}, overlap)
        for axis in (0, 1)
    )
    made = []
    for top, left in grid.starts:
        rows = ((top + np.arange(grid.tile[0])) * width + left).astype(np.int32)
        made.append(Windows(rows, along_rows[top], along_columns[left]))
    blank = made[0]._replace(row_weights=np.zeros_like(made[0].row_weights))
    made += [blank] * (sum(sizes) - len(made))
    tiles = iter(made)
    return [
        Windows(*map(np.stack, zip(*itertools.islice(tiles, size), strict=True))) for size in sizes
    ]


def cut(
    image: Float[Array, " values"], windows: Windows, channels: int = 3
) -> Float[Array, "k th tw c"]:
    """The tiles of a flat image."""
    shape = (*windows.rows.shape, windows.column_weights.shape[1], channels)

    def part(start: Int[Array, ""]) -> Array:
        return jax.lax.dynamic_slice(image, (start * channels,), (shape[2] * channels,))

    return jax.vmap(part)(windows.rows.reshape(-1)).reshape(shape)


def add(
    image: Float[Array, " values"], tiles: Float[Array, "k th tw c"], windows: Windows
) -> Float[Array, " values"]:
    """A flat image and, by their weights, tiles of it."""
    channels = tiles.shape[-1]
    # Whole parts of rows.
    places = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1,), inserted_window_dims=(), scatter_dims_to_operand_dims=(0,)
    )

    def add_tile(k: Array, image: Array) -> Array:
        weights = windows.row_weights[k][:, None] * windows.column_weights[k]
        parts = tiles[k].astype(image.dtype) * weights[..., None]
        starts = windows.rows[k][:, None] * channels
        return jax.lax.scatter_add(image, starts, parts.reshape(len(parts), -1), places)

    # Tiles in their order, so that sums are the same on each device and in each run.
    windows = jax.tree.map(jnp.asarray, windows)
    return jax.lax.fori_loop(0, len(tiles), add_tile, image)


def _weights(
    side: int, starts: Collection[int], overlap: int
) -> dict[int, Float[np.ndarray, " {side}"]]:
    """Of one axis, by where a tile begins: the weights of its pixels."""
    edge = np.minimum(np.arange(side) + 1, side - np.arange(side))
    ramp = np.minimum(edge, overlap + 1)
    total = np.zeros(max(starts) + side)
    for start in starts:
        total[start : start + side] += ramp
    return {start: (ramp / total[start : start + side]).astype(np.float32) for start in starts}
