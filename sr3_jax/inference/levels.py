"""Images as levels, on their way in and out of networks; and one key for each."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8, UInt16

from sr3_jax import images as image_ops

Levels = UInt8[np.ndarray, "n height width 3"] | UInt16[np.ndarray, "n height width 3"]


def check_images(images: np.ndarray) -> np.ndarray:
    """Raises ValueError for what is no batch of images."""
    images = np.asarray(images)
    is_levels = images.dtype in (np.uint8, np.uint16)
    if not is_levels or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}; upscale takes uint8 or uint16 RGB "
            "of shape [n, height, width, 3], or a single image of [height, width, 3]"
        )
    return images


def keys_of(seed: int | Sequence[int] | Key[Array, " n"], count: int) -> Key[Array, " n"]:
    """One key for each image; see `SuperResolver.upscale`. Keys stay what they are."""
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return seed
    if np.ndim(seed) == 0:
        key = jax.random.key(int(seed))
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    if len(seed) != count:
        raise ValueError(f"{len(seed)} seeds for {count} images; give one for each, or a number")
    return jax.vmap(jax.random.key)(jnp.asarray(seed, jnp.uint32))


def output_size(size: tuple[int, int], factor: int | float) -> tuple[int, int]:
    """Height and width of what an image becomes, in whole pixels.

    Raises:
      ValueError: for a factor that is not above 0.
    """
    if not factor > 0:
        raise ValueError(f"factor = {factor}; it must be above 0")
    return tuple(max(1, round(n * factor)) for n in size)


def resized(
    images: Levels, scale: float, size: tuple[int, int]
) -> UInt8[np.ndarray, "n new_height new_width 3"] | UInt16[np.ndarray, "n new_height new_width 3"]:
    """`images.rescale` of levels, to levels; of scale 1 they are only cut."""
    if scale == 1:
        return images[:, : size[0], : size[1]]
    return np.asarray(_resized(images, scale, size))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _resized(images: Array, scale: float, size: tuple[int, int]) -> Array:
    made = image_ops.rescale(image_ops.to_signed(images), scale, size)
    return image_ops.to_levels(made, images.dtype)
