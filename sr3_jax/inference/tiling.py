"""Denoising large images in overlapping tiles, blended at every refinement step.

The network sees sizes like those it was trained on, and memory for its activations is that of
one tile. Because the tiles' estimates are blended before each step, not their results after the
last, all tiles refine one image and no seam can form between diverging ones.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sr3_jax.diffusion import Denoise

# x, y_t, gamma to eps
Network = Callable[
    [Float[Array, "b h w c"], Float[Array, "b h w c"], Float[Array, " b"]],
    Float[Array, "b h w c"],
]


def tiled_denoise(
    network: Network, x: Float[Array, "b h w c"], tile_size: int, overlap: int
) -> Denoise:
    """Closes over the source: returns `denoise(y_t, gamma)` that works tile by tile.

    Args:
      network: estimates eps from x, y_t and gamma of one tile.
      x: the source at the size of y_t.
      tile_size: sides of a tile, in pixels; an axis no longer than it is not cut.
      overlap: how far neighbours overlap at least; below `tile_size`.
    """
    height, width = x.shape[1:3]
    tops, tile_height, rows = _axis(height, tile_size, overlap)
    lefts, tile_width, columns = _axis(width, tile_size, overlap)
    if len(tops) == len(lefts) == 1:
        return lambda y_t, gamma: network(x, y_t, gamma)
    corners = np.stack(np.meshgrid(tops, lefts, indexing="ij"), axis=-1).reshape(-1, 2)
    windows = np.stack([np.outer(r, c) for r in rows for c in columns])[..., None]
    size = (x.shape[0], tile_height, tile_width, x.shape[3])

    def denoise(y_t: Float[Array, "b h w c"], gamma: Float[Array, " b"]) -> Array:
        def add_tile(total: Array, tile: tuple[Array, Array]) -> tuple[Array, None]:
            (top, left), window = tile
            corner = (0, top, left, 0)
            cut = lambda image: jax.lax.dynamic_slice(image, corner, size)  # noqa: E731
            eps = network(cut(x), cut(y_t), gamma) * window
            return jax.lax.dynamic_update_slice(total, cut(total) + eps, corner), None

        tiles = (jnp.asarray(corners), jnp.asarray(windows))
        return jax.lax.scan(add_tile, jnp.zeros_like(y_t), tiles)[0]

    return denoise


def _axis(
    length: int, tile_size: int, overlap: int
) -> tuple[np.ndarray, int, Float[np.ndarray, "tiles tile"]]:
    """Where tiles begin along one axis, how long they are, and their blending weights.

    Weights ramp linearly over the overlaps and add up to 1 in every pixel.
    """
    if not 0 <= overlap < tile_size:
        raise ValueError(f"overlap = {overlap} must be in [0, tile_size = {tile_size})")
    if length <= tile_size:
        return np.zeros(1, int), length, np.ones((1, length), np.float32)
    count = -(-(length - overlap) // (tile_size - overlap))
    starts = np.round(np.linspace(0, length - tile_size, count)).astype(int)
    edge = np.minimum(np.arange(tile_size) + 1, tile_size - np.arange(tile_size))
    ramp = np.minimum(edge, overlap + 1).astype(np.float64)
    total = np.zeros(length)
    for start in starts:
        total[start : start + tile_size] += ramp
    weights = np.stack([ramp / total[start : start + tile_size] for start in starts])
    return starts, tile_size, weights.astype(np.float32)
