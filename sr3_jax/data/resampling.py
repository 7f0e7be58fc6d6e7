"""Bicubic resizing, and projection onto the images of a given downsampling.

On the host each axis is multiplied by a sparse matrix, since users' images come in any size and
every new size would be compiled on the devices. Training resizes on the devices
(`image_ops.resize_bicubic`), with the same result.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Array, Float

from sr3_jax import image_ops
from sr3_jax.data import degrade

Images = Float[np.ndarray | Array, "b _h _w c"]

_NUM_ITERATIONS = 10  # of projection and clipping; more change less than rounding to 8 bits
_TOLERANCE = 1e-5  # in the range [-1, 1]: a third of a level of 16 bits


def resize(
    images: Float[np.ndarray, "b h w c"], scale: int | float, size: tuple[int, int]
) -> Float[np.ndarray, "b h2 w2 c"]:
    """Resizes float32 images by bicubic (Keys, a = -0.5), anti-aliased when shrinking.

    An axis of n pixels becomes round(n * scale), which is cut to `size`, or padded by its last row.
    """
    for axis in (1, 2):
        images = _apply(_matrix(size[axis - 1], images.shape[axis], scale), images, axis)
    return images


def upsample(
    low: Images, size: tuple[int, int], *, factor: int | float, consistent: bool = False
) -> Images:
    """Returns sources at the size of images, by bicubic: the x of a network.

    Bicubic upsampling alone is too smooth: downsampled again, it is not the source. With
    `consistent` it is, since what is lacking is added by the smallest change (`make_consistent`).

    Args:
      low: the sources, signed, numpy or traced by jax.
      size: height and width of the images.
      factor: ratio of their sizes.
      consistent: whether the downsampled result is the source.
    """
    if isinstance(low, jax.Array):
        x = image_ops.resize_bicubic(low, size)
    else:
        x = resize(low, factor, size)
    return make_consistent(x, low, clip=False, factor=factor) if consistent else x


def make_consistent(
    images: Images, low: Images, *, clip: bool = True, factor: int | float | None = None
) -> Images:
    """Returns the nearest images whose downsampling is `low`, up to clipping.

    The projection adds D^T (D D^T)^-1 (low - D image), with D the downsampling; it keeps details.
    Since it can leave [-1, 1], projection and clipping alternate, and clipping comes last. Without
    `clip`, numbers have no limits.

    Both are signed, and numpy or traced by jax, which gets dense matrices.

    Args:
      images: the images.
      low: the low resolutions.
      clip: whether images end in [-1, 1].
      factor: ratio of their sizes; None for the whole number that it is.
    """
    factor = factor or images.shape[1] // low.shape[1]
    pairs = [(n, size, factor) for n, size in zip(low.shape[1:3], images.shape[1:3], strict=True)]
    down = [_matrix(n, size, 1 / factor) for n, size, _ in pairs]
    traced = isinstance(images, jax.Array)
    solve = [(_inverse if traced else _solver)(*pair) for pair in pairs]

    def residual(images: Images) -> Images:
        for axis in (1, 2):
            images = _apply(down[axis - 1], images, axis)
        return low - images

    def project(images: Images, off: Images) -> Images:
        for axis in (1, 2):
            off = _apply(down[axis - 1].T, solve[axis - 1](off, axis), axis)
        images = images + off
        return images.clip(-1.0, 1.0) if clip else images

    if not clip:
        return project(images, residual(images))
    if traced:
        return jax.lax.fori_loop(
            0, _NUM_ITERATIONS, lambda _, made: project(made, residual(made)), images
        )
    for _ in range(_NUM_ITERATIONS):
        off = residual(images)
        images = project(images, off)
        if np.abs(off).max() < _TOLERANCE:
            break
    return images


@functools.lru_cache(maxsize=64)
def _matrix(count: int, size: int, scale: int | float) -> scipy.sparse.csr_array:
    """Returns the matrix `[count, size]` that resizes an axis; extra rows repeat the last one."""
    weights = degrade.bicubic_weights(size, max(round(size * scale), 1), 1 / scale)
    return weights[np.minimum(np.arange(count), weights.shape[0] - 1)]


def _apply(matrix: scipy.sparse.sparray, images: Images, axis: int) -> Images:
    if isinstance(images, jax.Array):
        dense = jnp.asarray(matrix.toarray())
        made = jnp.tensordot(dense, images, (1, axis), precision="highest")
        return jnp.moveaxis(made, 0, axis)
    return _flat(lambda columns: matrix @ columns, images, axis)


def _flat(
    apply: Callable[[np.ndarray], np.ndarray], images: np.ndarray, axis: int
) -> Float[np.ndarray, "b _h _w c"]:
    """Applies a function of the columns of a matrix along an axis."""
    moved = np.moveaxis(images, axis, 0)
    made = apply(moved.reshape(len(moved), -1)).astype(np.float32, copy=False)
    return np.moveaxis(made.reshape(-1, *moved.shape[1:]), 0, axis)


def _gram(count: int, size: int, factor: int | float) -> scipy.sparse.csc_array:
    down = _matrix(count, size, 1 / factor).astype(np.float64)
    return (down @ down.T).tocsc()


@functools.lru_cache(maxsize=16)
def _solver(count: int, size: int, factor: int | float) -> Callable[[np.ndarray, int], np.ndarray]:
    """Returns multiplication of an axis by (D D^T)^-1, D the downsampling of `size` to `count`."""
    from scipy.sparse import linalg  # late: it takes 0.2 s to import

    solve = linalg.splu(_gram(count, size, factor)).solve
    return functools.partial(_flat, lambda columns: solve(columns.astype(np.float64)))


def _inverse(count: int, size: int, factor: int | float) -> Callable[[Array, int], Array]:
    """Returns the same as `_solver`, for jax arrays."""
    inverse = scipy.sparse.csr_array(np.linalg.inv(_gram(count, size, factor).toarray()))
    return functools.partial(_apply, inverse.astype(np.float32))
