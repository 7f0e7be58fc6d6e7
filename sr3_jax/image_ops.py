"""Value ranges of images, and the bicubic resize and blur on the devices.

Images are NHWC. "8-bit" is uint8 in 0..255 as in files, "16-bit" uint16 in 0..65535, and "signed"
float32 in [-1, 1], the range of the network.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8, UInt16


def to_signed(
    images: UInt8[Array | np.ndarray, "*b h w c"] | UInt16[Array | np.ndarray, "*b h w c"],
) -> Float[Array, "*b h w c"]:
    """Converts 8-bit or 16-bit to signed: 0 becomes -1, the largest value (255 or 65535) 1."""
    return jnp.asarray(images, jnp.float32) / (jnp.iinfo(images.dtype).max / 2) - 1.0


def to_uint8(images: Float[Array | np.ndarray, "*b h w c"]) -> UInt8[Array, "*b h w c"]:
    """Converts signed to 8-bit, rounded to the nearest level and clipped."""
    return to_levels(images, jnp.uint8)


def to_levels(
    images: Float[Array | np.ndarray, "*b h w c"], dtype: DTypeLike
) -> UInt8[Array, "*b h w c"] | UInt16[Array, "*b h w c"]:
    """Converts signed to uint8 or uint16, rounded to the nearest level and clipped."""
    largest = jnp.iinfo(dtype).max
    return jnp.clip(jnp.round((images + 1.0) * (largest / 2)), 0, largest).astype(dtype)


def resize_bicubic(
    images: Float[Array | np.ndarray, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b h2 w2 c"]:
    """Resizes by bicubic (Keys, a = -0.5), anti-aliased when shrinking, as Pillow does.

    Edges overshoot: the result can leave the range of its input by some 10 %.
    """
    b, _, _, c = images.shape
    return jax.image.resize(images, (b, *size, c), method="cubic", antialias=True)


def upsample_source(
    low_resolution: UInt8[Array | np.ndarray, "b h w c"] | UInt16[Array | np.ndarray, "b h w c"],
    size: tuple[int, int],
) -> Float[Array, "b h2 w2 c"]:
    """Returns the network's x: the low resolution in signed range, resized by bicubic."""
    return resize_bicubic(to_signed(low_resolution), size)


def gaussian_blur(
    images: Float[Array, "b h w c"], sigma: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Blurs each image by a Gaussian of its own width, with 3x3 taps and repeated edges.

    Args:
      images: images of any range; the result keeps it.
      sigma: standard deviation for each image in pixels, above 0.
    """
    side = jnp.exp(-0.5 / sigma**2)[:, None, None, None]
    for axis in (1, 2):
        size = images.shape[axis]
        padded = jnp.pad(images, [(1, 1) if i == axis else (0, 0) for i in range(4)], mode="edge")
        before, after = (
            jax.lax.slice_in_dim(padded, start, start + size, axis=axis) for start in (0, 2)
        )
        images = (images + side * (before + after)) / (1.0 + 2.0 * side)
    return images
