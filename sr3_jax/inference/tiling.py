"""Cutting images into what a network takes, and blending its estimates at every refinement step.

A network sees squares and rectangles of few sizes: each side is `tile_size`, half of it or a
quarter. An image that is no larger is filled up to the next of them by its mirror image; a larger
one is cut into overlapping tiles. So few programs are compiled, and memory for activations is that
of a few tiles. Because the tiles' estimates are blended before each step, not their results after
the last, all tiles refine one image, with one noise, and no seam can form between diverging ones.

Images lie flat in arrays, row after row, without anything between: an array for n pixels holds
every image of at most n, and a tile is some rows' parts, whose places are arguments of programs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
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
      tile: height and width of what the network sees.
      starts: upper left corners of the tiles; one of an image that is not cut.
    """

    size: tuple[int, int]
    tile: tuple[int, int]
    starts: tuple[tuple[int, int], ...]

    @property
    def is_cut(self) -> bool:
        """Whether there is more than one tile."""
        return len(self.starts) > 1

    @property
    def room(self) -> int:
        """Pixels of the array that holds the image: one of two sizes between powers of two.

        Tiles read past the end of their rows where the image is narrower than they are. Images
        that are not cut have arrays as large as their tile, whatever their size.
        """
        (height, width), (tile_height, tile_width) = self.size, self.tile
        if not self.is_cut:
            return tile_height * tile_width
        least = (height - 1) * width + max(width, tile_width)
        coarse = 1 << (least - 1).bit_length() - 2
        return -(-least // coarse) * coarse


class Windows(NamedTuple):
    """Where some tiles lie in a flat image, and how they are blended.

    Attributes:
      rows: of each row of a tile, the pixel of the image with which it begins.
      columns: which pixel from there each of its pixels is; 0, 1, ... but for mirror images.
      row_weights, column_weights: of estimates, of which products add up to 1 at each pixel of the
        image. 0 for what is beyond it, and of tiles that are there to fill up a group.
    """

    rows: Int[np.ndarray, "k th"]
    columns: Int[np.ndarray, "k tw"]
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
    sides = sorted({-(-tile_size // (part * stride)) * stride for part in _PARTS})
    tile, starts = [], []
    for length in size:
        tile.append(next((side for side in sides if side >= length), tile_size))
        count = max(1, -(-(length - overlap) // (tile_size - overlap)))
        last = max(0, length - tile_size)
        starts.append(np.round(np.linspace(0, last, count)).astype(int).tolist())
    return Grid(tuple(size), tuple(tile), tuple(itertools.product(*starts)))


def make_windows(grid: Grid, overlap: int, sizes: Sequence[int]) -> list[Windows]:
    """The tiles of a grid in groups, which the network sees at once.

    Weights of an estimate rise linearly over the overlap, before they are made to add up to 1.

    Args:
      grid: how the image is cut.
      overlap: see `make_grid`.
      sizes: of the groups, together as many tiles as there are, or more; the last group is filled
        up by tiles of weight 0.
    """
    width = grid.size[1]
    axes = []
    for axis, (length, side) in enumerate(zip(grid.size, grid.tile, strict=True)):
        firsts = sorted({corner[axis] for corner in grid.starts})
        axes.append(_along(length, side, firsts, overlap))
    made = []
    for top, left in grid.starts:
        (rows, row_weights), (columns, column_weights) = axes[0][top], axes[1][left]
        made.append(Windows(rows * width + left, columns - left, row_weights, column_weights))
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
    width = windows.columns.shape[1]

    def tile(rows: Array, columns: Array) -> Array:
        one = lambda start: jax.lax.dynamic_slice(  # noqa: E731
            image, (start * channels,), (width * channels,)
        )
        return jnp.take(jax.vmap(one)(rows).reshape(-1, width, channels), columns, axis=1)

    return jax.vmap(tile)(windows.rows, windows.columns)


def add(
    image: Float[Array, " values"], tiles: Float[Array, "k th tw c"], windows: Windows
) -> Float[Array, " values"]:
    """A flat image and, by their weights, tiles of it."""
    channels = tiles.shape[-1]
    # Whole parts of rows, one after the other; those of a mirror image add 0 to what follows.
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


def _along(
    length: int, side: int, starts: Sequence[int], overlap: int
) -> dict[int, tuple[Int[np.ndarray, " side"], Float[np.ndarray, " side"]]]:
    """Of one axis, by where a tile begins: the pixels it shows, and their weights."""
    edge = np.minimum(np.arange(side) + 1, side - np.arange(side))
    ramp = np.minimum(edge, overlap + 1)
    total = np.zeros(max(length, side))
    for start in starts:
        total[start : start + side] += ramp
    shown = np.arange(len(total))
    if length < side:
        shown = np.pad(shown[:length], (0, side - length), mode="symmetric")
    return {
        start: (
            shown[start : start + side].astype(np.int32),
            np.where(
                np.arange(start, start + side) < length, ramp / total[start : start + side], 0.0
            ).astype(np.float32),
        )
        for start in starts
    }
