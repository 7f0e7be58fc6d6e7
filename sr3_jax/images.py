"""Pixels and numbers: value ranges and the two resizes every part of SR3 shares.

Images are NHWC. "8-bit" is uint8 0..255 as in files, "16-bit" uint16 0..65535, "signed" is float32
in [-1, 1] as the network sees them.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8, UInt16

_TURNS = 10  # of projection and clipping; more change less than rounding to bytes


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


class Extent(NamedTuple):
    """The image within an array that is larger, so that one program does images of many sizes.

    Of a low resolution: its height and width in pixels from the upper left corner; the image's is
    `factor` times as large.

    Attributes:
      height, width: may be traced.
      inverses: see `make_extent`.
    """

    height: Int[Array | np.ndarray, ""] | np.integer
    width: Int[Array | np.ndarray, ""] | np.integer
    inverses: tuple[Float[Array | np.ndarray, "h h"], Float[Array | np.ndarray, "w w"]]


def make_extent(size: tuple[int, int], within: tuple[int, int], factor: int) -> Extent:
    """Of a low resolution of `size` in an array of size `within`.

    Its `inverses` are what `make_consistent` needs: (D D^T)^-1 along each axis, D being the
    downsampling by `factor`; beyond the image zero.
    """
    inverses = tuple(
        np.pad(_inverse(n, factor), (0, limit - n)) for n, limit in zip(size, within, strict=True)
    )
    return Extent(*(np.asarray(n, np.int32) for n in size), inverses)


def upsample_within(
    images: Float[Array, "b h w c"], extent: Extent, factor: int
) -> Float[Array, "b h2 w2 c"]:
    """`resize_bicubic` of the image within the arrays; its edges are repeated beyond it."""
    for axis, size in ((1, extent.height), (2, extent.width)):
        images = _apply(_taps(factor * images.shape[axis], size, float(factor)), images, axis)
    return images


def rescale(
    images: Float[Array, "b h w c"], scale: float, size: tuple[int, int]
) -> Float[Array, "b h2 w2 c"]:
    """Bicubic by exactly `scale`, with anti-aliasing where it shrinks, cut or filled up to `size`.

    Filled up by repeating the last row and column.
    """
    for axis in (1, 2):
        taps = _taps(size[axis - 1], np.asarray(images.shape[axis], np.int32), scale)
        images = _apply(taps, images, axis)
    return images


def downsample_within(
    images: Float[Array, "b h w c"], extent: Extent, factor: int
) -> Float[Array, "b h2 w2 c"]:
    """The opposite of `upsample_within`: by the factor, with anti-aliasing."""
    for axis, size in ((1, extent.height), (2, extent.width)):
        taps = _taps(images.shape[axis] // factor, factor * size, 1 / factor)
        images = _apply(taps, images, axis)
    return images


def make_consistent(
    images: Float[Array, "b h w c"], low: Float[Array, "b h2 w2 c"], extent: Extent
) -> Float[Array, "b h w c"]:
    """The images nearest to these whose downsampling is the low resolution, but for clipping.

    Projection onto the images that are consistent moves each by the pseudo-inverse of downsampling,
    D^T (D D^T)^-1, times what it is off by, which leaves its details alone. As it can leave
    [-1, 1], projection and clipping take turns, and clipping comes last.

    Args:
      images: signed.
      low: signed; what downsampling should make of the images.
      extent: of the low resolution, by `make_extent`.
    """
    factor = images.shape[1] // low.shape[1]
    downsample = functools.partial(downsample_within, extent=extent, factor=factor)
    transpose = jax.linear_transpose(downsample, images)
    rows, columns = (jnp.asarray(inverse) for inverse in extent.inverses)

    def turn(_: object, images: Array) -> Array:
        off = low - downsample(images)
        off = jnp.einsum("hi,bijc,wj->bhwc", rows, off, columns, precision="highest")
        return jnp.clip(images + transpose(off)[0], -1.0, 1.0)

    return jax.lax.fori_loop(0, _TURNS, turn, images)


# Where each output comes from, and with what weights.
_Taps = tuple[Int[Array, "n k"], Float[Array, "n k"]]


def _taps(count: int, size: Int[Array | np.ndarray, ""] | np.integer, scale: float) -> _Taps:
    """Bicubic resizing by `scale` of one axis of `size` to `count` outputs, or fewer.

    Outputs beyond the resized axis repeat its last.
    """
    blur = max(1.0 / scale, 1.0)
    num_taps = math.ceil(4 * blur)
    last = jnp.round(size * scale).astype(jnp.int32) - 1
    centre = (jnp.minimum(jnp.arange(count), last) + 0.5) / scale - 0.5
    first = jnp.floor(centre - 2 * blur).astype(jnp.int32) + 1
    index = first[:, None] + jnp.arange(num_taps)
    x = jnp.abs(index - centre[:, None]) / blur
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((2.5 - 0.5 * x) * x - 4.0) * x + 2.0
    weight = jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))
    weight = jnp.where((index >= 0) & (index < size), weight, 0.0)
    return jnp.clip(index, 0, size - 1), weight / weight.sum(1, keepdims=True)


def _apply(taps: _Taps, images: Float[Array, "b h w c"], axis: int) -> Float[Array, "b h2 w2 c"]:
    index, weight = taps
    shape = [-1 if i == axis else 1 for i in range(4)]
    return sum(
        jnp.take(images, index[:, k], axis) * weight[:, k].reshape(shape)
        for k in range(index.shape[1])
    )


@functools.cache
def _inverse(size: int, factor: int) -> Float[np.ndarray, "{size} {size}"]:
    """(D D^T)^-1 of downsampling to `size` along one axis."""
    with jax.ensure_compile_time_eval():
        index, weight = map(np.asarray, _taps(size, np.asarray(factor * size), 1 / factor))
    rows = np.zeros((size, factor * size))
    np.add.at(rows, (np.arange(size)[:, None], index), weight)
    return np.linalg.inv(rows @ rows.T).astype(np.float32)


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
