"""Cutting images into what a network takes, and blending tiles at every refinement step.

The network sees sizes like those it was trained on, and memory for its activations is that of
a few tiles. Because the tiles' estimates are blended before each step, not their results after the
last, all tiles refine one image, with one noise, and no seam can form between diverging ones.

Arrays are larger than images, by at most an eighth along each axis, and come in few sizes, so that
few programs are compiled; where tiles lie is an argument of them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sr3_jax.diffusion import Denoise

# x, y_t, gamma to eps
Network = Callable[
    [Float[Array, "b h w c"], Float[Array, "b h w c"], Float[Array, " b"]],
    Float[Array, "b h w c"],
]


@dataclasses.dataclass(frozen=True)
class Grid:
    """How images of one size are cut; all in pixels of the output.

    Attributes:
      canvas: height and width of the arrays that hold an image.
      tile: height and width of what the network sees; equal to `canvas` where nothing is cut.
      starts: upper left corners of the tiles.
    """

    canvas: tuple[int, int]
    tile: tuple[int, int]
    starts: tuple[tuple[int, int], ...]

    @property
    def is_cut(self) -> bool:
        """Whether there is more than one tile, or could be in such an array."""
        return self.tile != self.canvas


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
    canvas, tile, starts = [], [], []
    for length in size:
        bucket = _bucket(length, stride)
        canvas.append(bucket)
        if length <= tile_size:
            # The whole bucket at once, and so the canvas is no longer than a tile.
            canvas[-1] = min(bucket, tile_size)
            tile.append(canvas[-1])
            starts.append([0])
            continue
        tile.append(tile_size)
        count = _num_tiles(length, tile_size, overlap)
        starts.append(np.round(np.linspace(0, length - tile_size, count)).astype(int).tolist())
    return Grid(tuple(canvas), tuple(tile), tuple(itertools.product(*starts)))


def most_tiles(grid: Grid, overlap: int) -> int:
    """Of all images that such an array can hold."""
    sides = zip(grid.canvas, grid.tile, strict=True)
    rows, columns = (_num_tiles(*side, overlap) if side[0] > side[1] else 1 for side in sides)
    return rows * columns


def groups_of_tiles(
    grid: Grid, overlap: int, size: int
) -> tuple[Int[np.ndarray, "groups size 2"], Bool[np.ndarray, "groups size"], int]:
    """Tiles in groups of `size`, which the network sees at once.

    Returns:
      Their corners; which of them there are, the last group being filled up; and how many groups
      there are. The arrays are as long as any image on such a canvas wants.
    """
    most = -(-most_tiles(grid, overlap) // size)
    count = len(grid.starts)
    corners = np.zeros((most * size, 2), np.int32)
    corners[:count] = grid.starts
    exists = np.arange(most * size) < count
    return corners.reshape(most, size, 2), exists.reshape(most, size), -(-count // size)


def tiled_denoise(
    network: Network,
    x: Float[Array, "1 h w c"],
    tile: tuple[int, int],
    overlap: int,
    corners: Int[Array | np.ndarray, "groups size 2"],
    exists: Bool[Array | np.ndarray, "groups size"],
    num_groups: int | Int[Array, ""],
    spread: Callable[[Array], Array] = lambda tiles: tiles,
) -> Denoise:
    """Closes over the source: returns `denoise(y_t, gamma)` that works group by group of tiles.

    Weights of an estimate rise linearly over the overlap; where no tile is, the estimate is 0.

    Args:
      network: estimates eps from x, y_t and gamma of some tiles.
      x: the source at the size of y_t, one image.
      tile: height and width of tiles.
      overlap: see `make_grid`.
      corners: see `groups_of_tiles`.
      exists: see `groups_of_tiles`.
      num_groups: see `groups_of_tiles`.
      spread: says which devices have which tiles, to which it is applied.
    """
    ramps = [_ramp(length, overlap) for length in tile]
    window = jnp.asarray(np.outer(*ramps)[..., None], jnp.float32)

    def cut(image: Array, corners: Array) -> Float[Array, "size th tw c"]:
        one = lambda corner: jax.lax.dynamic_slice(  # noqa: E731
            image[0], (corner[0], corner[1], 0), (*tile, image.shape[-1])
        )
        return spread(jax.vmap(one)(corners))

    def add(total: Array, tiles: Array, corners: Array) -> Array:
        def one(i: Array, total: Array) -> Array:
            corner = (0, corners[i, 0], corners[i, 1], 0)
            there = jax.lax.dynamic_slice(total, corner, (1, *tile, total.shape[-1]))
            return jax.lax.dynamic_update_slice(total, there + tiles[i], corner)

        return jax.lax.fori_loop(0, len(tiles), one, total)

    def over_groups(add_group: Callable[[int, Array], Array], like: Array) -> Array:
        return jax.lax.fori_loop(0, num_groups, add_group, jnp.zeros_like(like))

    corners, exists = jnp.asarray(corners), jnp.asarray(exists)
    weights = exists[:, :, None, None, None] * window
    total = over_groups(lambda i, sum_: add(sum_, weights[i], corners[i]), x[..., :1])
    share = jnp.where(total > 0, 1.0 / total, 0.0)

    def denoise(y_t: Float[Array, "1 h w c"], gamma: Float[Array, " 1"]) -> Array:
        def add_group(i: Array, sum_: Array) -> Array:
            at = corners[i]
            gammas = jnp.broadcast_to(gamma, (at.shape[0],))
            eps = network(cut(x, at), cut(y_t, at), gammas).astype(sum_.dtype)
            return add(sum_, eps * weights[i], at)

        return over_groups(add_group, y_t) * share

    return denoise


def _ramp(length: int, overlap: int) -> Float[np.ndarray, " {length}"]:
    edge = np.minimum(np.arange(length) + 1, length - np.arange(length))
    return np.minimum(edge, overlap + 1) / (overlap + 1)


def _num_tiles(length: int, tile_size: int, overlap: int) -> int:
    return -(-(length - overlap) // (tile_size - overlap))


def _bucket(length: int, stride: int) -> int:
    """The next of eight to sixteen sizes between powers of two, multiples of the stride."""
    steps = -(-length // stride)
    coarse = 1 << max(0, (steps - 1).bit_length() - 4)
    return -(-steps // coarse) * coarse * stride
