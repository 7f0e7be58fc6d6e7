"""How far the images of a method are, as a set, from the references: no pretrained network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

_PATCH = 7  # pixels a side
_PATCHES = 128  # of each image and level
_DIRECTIONS = 512
_SMALLEST = 16  # side of the coarsest level, at least


def sliced_wasserstein(
    images: UInt8[Array | np.ndarray, "b h w c"],
    reference: UInt8[Array | np.ndarray, "b h w c"],
    seed: int = 0,
) -> dict[int, float]:
    """Sliced Wasserstein distance between patches, by level of a Laplacian pyramid.

    After Karras et al. 2018 (section 5): patches of 7x7 from each level, projected to 512 random
    directions, sorted, and their mean absolute difference, times 1000. Where they make each set of
    patches of variance 1, here both are divided by the reference's deviation, so that an image with
    too little or too much detail is far away. Patches are taken at the same places of both.

    Args:
      images: of a method.
      reference: of the same shape; need not be the same pictures, only as many.
      seed: of places and directions.

    Returns:
      The distance for each level, named by the shorter side of its images: the largest shows the
      finest detail. 0 is the same set of patches.
    """
    rng = np.random.default_rng(seed)
    distances = {}
    levels = [_laplacian(jnp.asarray(a, jnp.float32) / 127.5 - 1.0) for a in (images, reference)]
    for ours, theirs in zip(*levels, strict=True):
        count, height, width, channels = ours.shape
        top = rng.integers(0, height - _PATCH + 1, (count, _PATCHES))
        left = rng.integers(0, width - _PATCH + 1, (count, _PATCHES))
        directions = rng.normal(size=(_PATCH * _PATCH * channels, _DIRECTIONS))
        directions /= np.linalg.norm(directions, axis=0)
        pair = [_patches(np.asarray(level), top, left) for level in (ours, theirs)]
        mean, std = pair[1].mean((0, 1, 2)), pair[1].std((0, 1, 2)) + 1e-4
        flat = [((p - mean) / std).reshape(len(p), -1) for p in pair]
        distances[min(height, width)] = float(_distance(*flat, directions)) * 1e3
    return distances


def _laplacian(images: Float[Array, "b h w c"]) -> list[Float[Array, "b h2 w2 c"]]:
    """Differences between octaves, and at last the coarsest octave itself."""
    levels = []
    while min(images.shape[1:3]) >= 2 * _SMALLEST:
        b, height, width, c = images.shape
        small = jax.image.resize(images, (b, height // 2, width // 2, c), "linear")
        levels.append(images - jax.image.resize(small, images.shape, "linear"))
        images = small
    return [*levels, images]


def _patches(
    level: Float[np.ndarray, "b h w c"], top: np.ndarray, left: np.ndarray
) -> Float[np.ndarray, "n p p c"]:
    windows = np.lib.stride_tricks.sliding_window_view(level, (_PATCH, _PATCH), axis=(1, 2))
    picked = windows[np.arange(len(level))[:, None], top, left]
    return np.moveaxis(picked.reshape(-1, *picked.shape[2:]), 1, -1)


@jax.jit
def _distance(a: Array, b: Array, directions: Array) -> Float[Array, ""]:
    a, b = (jnp.sort(patches @ directions, axis=0) for patches in (a, b))
    return jnp.mean(jnp.abs(a - b))
