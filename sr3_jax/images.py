"""Pixels and numbers: value ranges and the two resizes every part of SR3 shares.

Images are NHWC. "8-bit" is uint8 0..255 as in files, "signed" is float32 in [-1, 1] as the
network sees them.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

_TURNS = 10  # of projection and clipping; more change less than rounding to bytes


def to_signed(images: UInt8[Array | np.ndarray, "*b h w c"]) -> Float[Array, "*b h w c"]:
    """8-bit to signed: 0 to -1, 255 to 1."""
    return jnp.asarray(images, jnp.float32) / 127.5 - 1.0


def to_uint8(images: Float[Array | np.ndarray, "*b h w c"]) -> UInt8[Array, "*b h w c"]:
    """Signed to 8-bit, to the nearest level; what lies outside [-1, 1] is clipped."""
    return jnp.clip(jnp.round((images + 1.0) * 127.5), 0.0, 255.0).astype(jnp.uint8)


def resize_bicubic(
    images: Float[Array | np.ndarray, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b h2 w2 c"]:
    """Bicubic (Keys, a = -0.5) with anti-aliasing where it shrinks, as Pillow and TensorFlow.

    It overshoots at edges: the result can leave the range of its input by some 10 %.
    """
    b, _, _, c = images.shape
    return jax.image.resize(images, (b, *size, c), method="cubic", antialias=True)


def upsample_source(
    low_resolution: UInt8[Array | np.ndarray, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b h2 w2 c"]:
    """The network's x: 8-bit low resolution to signed, bicubic, at the target size."""
    return resize_bicubic(to_signed(low_resolution), size)


def make_consistent(
    images: Float[Array, "b h w c"], low_resolution: UInt8[Array | np.ndarray, "b h2 w2 c"]
) -> Float[Array, "b h w c"]:
    """The images nearest to these whose downsampling is the low resolution, but for clipping.

    Projection onto the images that are consistent moves each by the pseudo-inverse of downsampling
    times what it is off by, which leaves its details alone. As it can leave [-1, 1], projection and
    clipping take turns, and clipping comes last.

    Args:
      images: signed.
      low_resolution: 8-bit; what `resize_bicubic` should make of the images.
    """
    low = to_signed(low_resolution)
    inverse = [_upsampling(*sizes) for sizes in zip(images.shape[1:3], low.shape[1:3], strict=True)]

    def turn(_: object, images: Array) -> Array:
        off = low - resize_bicubic(images, low.shape[1:3])
        move = jnp.einsum("hi,bijc,wj->bhwc", inverse[0], off, inverse[1], precision="highest")
        return jnp.clip(images + move, -1.0, 1.0)

    return jax.lax.fori_loop(0, _TURNS, turn, images)


@functools.cache
def _upsampling(size: int, low: int) -> Float[np.ndarray, "{size} {low}"]:
    """The pseudo-inverse of downsampling along one axis."""
    with jax.ensure_compile_time_eval():
        rows = resize_bicubic(jnp.eye(size)[None, :, :, None], (low, size))[0, :, :, 0]
    return np.linalg.pinv(np.asarray(rows, np.float64)).astype(np.float32)


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
