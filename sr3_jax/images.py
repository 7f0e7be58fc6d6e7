"""Pixels and numbers: value ranges and the two resizes every part of SR3 shares.

Images are NHWC. "8-bit" is uint8 0..255 as in files, "16-bit" uint16 0..65535, "signed" is float32
in [-1, 1] as the network sees them.
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
    """8-bit or 16-bit to signed: 0 to -1, the largest (255 or 65535) to 1."""
    return jnp.asarray(images, jnp.float32) / (jnp.iinfo(images.dtype).max / 2) - 1.0


def to_uint8(images: Float[Array | np.ndarray, "*b h w c"]) -> UInt8[Array, "*b h w c"]:
    """Signed to 8-bit, to the nearest level; what lies outside [-1, 1] is clipped."""
    return to_levels(images, jnp.uint8)


def to_levels(
    images: Float[Array | np.ndarray, "*b h w c"], dtype: DTypeLike
) -> UInt8[Array, "*b h w c"] | UInt16[Array, "*b h w c"]:
    """As `to_uint8`, to uint8 or uint16."""
    largest = jnp.iinfo(dtype).max
    return jnp.clip(jnp.round((images + 1.0) * (largest / 2)), 0, largest).astype(dtype)


def resize_bicubic(
    images: Float[Array | np.ndarray, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b h2 w2 c"]:
    """Bicubic (Keys, a = -0.5) with anti-aliasing where it shrinks, as Pillow and TensorFlow.

    It overshoots at edges: the result can leave the range of its input by some 10 %.
    """
    b, _, _, c = images.shape
    return jax.image.resize(images, (b, *size, c), method="cubic", antialias=True)


def upsample_source(
    low_resolution: UInt8[Array | np.ndarray, "b h w c"] | UInt16[Array | np.ndarray, "b h w c"],
    size: tuple[int, int],
) -> Float[Array, "b h2 w2 c"]:
    """The network's x: the low resolution to signed, bicubic, at the target size."""
    return resize_bicubic(to_signed(low_resolution), size)


def gaussian_blur(
    images: Float[Array, "b h w c"], sigma: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Blurs each image by a Gaussian of its own width, cut to 3x3 taps; edges are repeated.

    Args:
      images: of any range, which the result keeps.
      sigma: in pixels, above 0.
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
