"""Images on the host: checks, value ranges, sizes; and a key for each image.

Images are levels (uint8, uint16), or, for networks with a `Scaling`, numbers of any range, with NaN
for missing values.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Num, UInt

from sr3_jax import scaling, sizes
from sr3_jax.data import resampling

Levels = UInt[np.ndarray, "n _height _width _c"]  # uint8 or uint16
Images = Num[np.ndarray, "n _height _width _c"]  # levels, or numbers of any range

# Limits of the factor: beyond, results are almost bicubic alone, or of a single pixel.
MIN_FACTOR, MAX_FACTOR = 1 / 16, 64


def check_images(images: np.ndarray, channels: int = 3) -> np.ndarray:
    """Returns levels as an array; raises ValueError if they are no batch of RGB or grey images."""
    try:
        images = np.asarray(images)
    except ValueError as error:
        raise ValueError("the images have different sizes; upscale them one by one") from error
    is_levels = images.dtype in (np.uint8, np.uint16)
    if not is_levels or images.ndim != 4 or images.shape[-1] != channels or not images.size:
        kind = "RGB" if channels == 3 else "images"
        raise ValueError(
            f"images are {images.dtype} of shape {images.shape}; upscale takes uint8 or uint16 "
            f"{kind} of shape [n, height, width, {channels}], or a single image of [height, width, "
            f"{channels}]{_conversion(images) if channels == 3 else ''}"
        )
    return images


def check_numbers(
    images: np.ndarray, channels: int, what: str = "images", *, may_miss: bool = False
) -> Num[np.ndarray, "n height width c"]:
    """Returns numbers of any range as an array.

    Args:
      images: the images, or one for all.
      channels: channels that they must have.
      what: what they are, for messages.
      may_miss: whether values may be missing.

    Raises:
      ValueError: they are no batch of such images, or have infinite or missing values.
    """
    images = np.asarray(images)
    if images.dtype.kind not in "uif" or images.ndim != 4 or images.shape[-1] != channels:
        raise ValueError(
            f"{what} are {images.dtype} of shape {images.shape}; the network takes real numbers of "
            f"shape [n, height, width, {channels}], or a single image of [height, width, "
            f"{channels}]"
        )
    if images.dtype.kind == "f" and not np.isfinite(images).all():
        if np.isinf(images).any():
            raise ValueError(f"{what} have infinite values; use NaN for missing ones")
        if not may_miss:
            raise ValueError(
                f"{what} have missing values (NaN), but the network was trained without "
                "(config.data.missing = False); fill them first"
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
    return sizes.scaled(size, factor)


def to_signed(
    images: Images, units: scaling.Scaling | None = None
) -> Float[np.ndarray, "n height width c"]:
    """Converts images to signed, as `image_ops.to_signed`, on the host; levels without `units`."""
    if units:
        return units.to_signed(images)
    return images.astype(np.float32) / np.float32(np.iinfo(images.dtype).max / 2) - np.float32(1)


def of_signed(
    signed: Float[np.ndarray, "n height width c"],
    dtype: DTypeLike,
    units: scaling.Scaling | None = None,
) -> Images:
    """Converts signed to levels of a type, or with `units` to float32 numbers."""
    return units.to_values(signed) if units else to_levels(signed, dtype)


def to_levels(images: Float[np.ndarray, "n height width c"], dtype: DTypeLike) -> Levels:
    """Converts signed to levels, as `image_ops.to_levels`, on the host."""
    largest = np.iinfo(dtype).max
    return ((images + 1) * np.float32(largest / 2)).round().clip(0, largest).astype(dtype)


def resized(images: Images, scale: int | float, size: tuple[int, int]) -> Images:
    """Resizes levels by `resampling.resize`; at scale 1 it only cuts images to `size`."""
    if scale == 1:
        return images[:, : size[0], : size[1]]
    return to_levels(resampling.resize(to_signed(images), scale, size), images.dtype)
