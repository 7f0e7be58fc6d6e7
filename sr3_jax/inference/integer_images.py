"""8-bit and 16-bit images on the host: checks, value ranges, sizes; and a key for each image."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, UInt

from sr3_jax.inference import resampling

Levels = UInt[np.ndarray, "n _height _width c"]  # uint8 or uint16

# Limits of the factor: beyond, results are almost bicubic alone, or of a single pixel.
MIN_FACTOR, MAX_FACTOR = 1 / 16, 64


def check_images(images: np.ndarray) -> np.ndarray:
    """Returns the images as an array; raises ValueError if they are no batch of RGB images."""
    try:
        images = np.asarray(images)
    except ValueError as error:
        raise ValueError("the images have different sizes; upscale them one by one") from error
    is_levels = images.dtype in (np.uint8, np.uint16)
    if not is_levels or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}; upscale takes uint8 or uint16 RGB "
            "of shape [n, height, width, 3], or a single image of [height, width, 3]"
            f"{_conversion(images)}"
        )
    return images


def keys_of(seed: int | Sequence[int] | Key[Array, " n"], count: int) -> Key[Array, " n"]:
    """Returns one key for each image (see `SuperResolver.upscale`); keys are returned as given."""
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return seed
    if np.ndim(seed) == 0:
        try:
            key = jax.random.key(operator.index(seed))
        except TypeError as error:
            raise ValueError(f"seed = {seed!r}; it must be a whole number") from error
        return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count))
    if len(seed) != count:
        raise ValueError(f"{len(seed)} seeds for {count} images; give one for each, or a number")
    return jax.vmap(jax.random.key)(jnp.asarray(seed, jnp.uint32))


def _conversion(images: np.ndarray) -> str:
    """Returns an expression that converts common arrays to RGB images; empty for others."""
    if images.dtype.kind == "f":
        return ". Values of 0 to 1: np.round(255 * images).astype(np.uint8)"
    if images.dtype.kind in "iu" and images.dtype.itemsize > 2:
        return ". Values of 0 to 255: images.astype(np.uint8)"
    if images.dtype not in (np.uint8, np.uint16):
        return ""
    if images.ndim == 2:
        return ". A grey image: np.repeat(image[..., None], 3, axis=-1)"
    return {
        1: ". Grey images: np.repeat(images, 3, axis=-1)",
        4: ". Without their alpha: images[..., :3]",
    }.get(images.shape[-1] if images.ndim else 0, "")


def check_factor(factor: int | float) -> None:
    """Raises ValueError for a factor outside its limits."""
    if not MIN_FACTOR <= factor <= MAX_FACTOR:  # refuses nan, too
        raise ValueError(
            f"factor = {factor:g}; it must be from 1/{1 / MIN_FACTOR:g} to {MAX_FACTOR:g}"
        )


def output_size(size: tuple[int, int], factor: int | float) -> tuple[int, int]:
    """Returns height and width of the upscaled image; raises ValueError as `check_factor`."""
    check_factor(factor)
    return tuple(max(1, round(n * factor)) for n in size)


def to_signed(images: Levels) -> Float[np.ndarray, "n height width c"]:
    """Converts levels to signed, as `image_ops.to_signed`, on the host."""
    return images.astype(np.float32) / np.float32(np.iinfo(images.dtype).max / 2) - np.float32(1)


def to_levels(images: Float[np.ndarray, "n height width c"], dtype: DTypeLike) -> Levels:
    """Converts signed to levels, as `image_ops.to_levels`, on the host."""
    largest = np.iinfo(dtype).max
    return ((images + 1) * np.float32(largest / 2)).round().clip(0, largest).astype(dtype)


def resized(images: Levels, scale: int | float, size: tuple[int, int]) -> Levels:
    """Resizes levels by `resampling.resize`; at scale 1 it only cuts them to `size`."""
    if scale == 1:
        return images[:, : size[0], : size[1]]
    return to_levels(resampling.resize(to_signed(images), scale, size), images.dtype)
