"""Tiling: images are cut into tiles, whose estimates are blended at every refinement step.

The network sees five sizes: squares of `tile_size`, of a half and of a quarter of it, and
rectangles of `tile_size` by half. An axis of an image that is at most `tile_size` is padded to the
next of them by reflection; a longer one is cut into overlapping tiles. So few programs are
compiled, and activations take the memory of a few tiles. Estimates are blended before each step,
not results after the last one: all tiles refine one image with one noise, so that no seams form.

Images are flat arrays, row after row: an array of n pixels holds every image of at most n, and a
tile is a part of some rows, whose positions are arguments of the programs.
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

_PARTS = (1, 2, 4)  # sides of tiles are `tile_size` divided by one of these


@dataclasses.dataclass(frozen=True)
class Grid:
    """The tiles of images of one size, in pixels of the output.

    Attributes:
      size: height and width of the image.
      canvas: height and width of the padded image.
      tile: height and width of a tile.
      starts: upper left corners of the tiles; a single one for an image that is not cut.
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
        """Pixels of the array that holds the canvas; rounded up for images that are cut."""
        pixels = self.canvas[0] * self.canvas[1]
        if not self.is_cut:
            return pixels
        coarse = 1 << max(0, (pixels - 1).bit_length() - 2)  # two sizes for each power of two
        return -(-pixels // coarse) * coarse


class Windows(NamedTuple):
    """Positions of k tiles in a flat image, and the weights that blend them.

    Attributes:
      rows: index of the first pixel of each row of each tile.
      row_weights, column_weights: weights of estimates. Their products add up to 1 at each pixel
        of the image; they are 0 for tiles that only fill up a group.
    """

    rows: Int[np.ndarray, "k th"]
    row_weights: Float[np.ndarray, "k th"]
    column_weights: Float[np.ndarray, "k tw"]


def make_grid(size: tuple[int, int], tile_size: int, overlap: int, stride: int) -> Grid:
    """Returns the tiles of images of a height and width.

    Args:
      size: height and width.
      tile_size: longest side of a tile, a multiple of `stride`; shorter axes are not cut.
      overlap: least overlap of neighbours, from 0 to below `tile_size`; else ValueError.
      stride: the sides of tiles are multiples of it.
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
    """Returns the tiles of a grid in groups of `sizes`; the network processes a group at once.

    The weights rise linearly over the overlap, and are normalised to a sum of 1 at each pixel. The
    last group is filled up with tiles of weight 0.
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
    image: Float[Array, " values"], windows: Windows, channels: int
) -> Float[Array, "k th tw {channels}"]:
    """Returns the tiles of a flat image."""
    width = windows.column_weights.shape[1]

    def part(start: Int[Array, ""]) -> Array:
        return jax.lax.dynamic_slice(image, (start * channels,), (width * channels,))

    tiles = jax.vmap(part)(windows.rows.reshape(-1))
    return tiles.reshape(*windows.rows.shape, width, channels)


def add(
    image: Float[Array, " values"], tiles: Float[Array, "k th tw c"], windows: Windows
) -> Float[Array, " values"]:
    """Adds weighted tiles to a flat image."""
    channels = tiles.shape[-1]
    # Each update is a row of a tile.
    places = jax.lax.ScatterDimensionNumbers(
        update_window_dims=(1,), inserted_window_dims=(), scatter_dims_to_operand_dims=(0,)
    )

    def add_tile(k: Array, image: Array) -> Array:
        weights = windows.row_weights[k][:, None] * windows.column_weights[k]
        parts = tiles[k].astype(image.dtype) * weights[..., None]
        starts = windows.rows[k][:, None] * channels
        return jax.lax.scatter_add(image, starts, parts.reshape(len(parts), -1), places)

    # One tile after the other, so that sums are the same on each device and in each run.
    windows = jax.tree.map(jnp.asarray, windows)
    return jax.lax.fori_loop(0, len(tiles), add_tile, image)


def _weights(
    side: int, starts: Collection[int], overlap: int
) -> dict[int, Float[np.ndarray, " {side}"]]:
    """Returns the weights of a tile's pixels along one axis, by the start of the tile."""
    edge = np.minimum(np.arange(side) + 1, side - np.arange(side))
    ramp = np.minimum(edge, overlap + 1)
    total = np.zeros(max(starts) + side)
    for start in starts:
        total[start : start + side] += ramp
    return {start: (ramp / total[start : start + side]).astype(np.float32) for start in starts}
