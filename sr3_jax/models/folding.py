"""Folded images: neighbouring pixels of a row side by side in the channels.

TPUs keep the channels of an image in registers of 128 lanes and multiply 128 of them at once. An
image of 16 channels fills an eighth of both, and an eighth of every byte that is moved. Folded by 8
it is an image of 128 channels and an eighth of the width, in the same order in memory:

    image[b, h, w, c] == folded[b, h, w // fold, (w % fold) * channels + c]

A convolution over it has a kernel of 128 x 128 channels, most of them zeros, and takes an eighth of
the time all the same.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def fold(image: Float[Array, "b h w c"], by: int) -> Float[Array, "b h _ _"]:
    """`by` neighbours of each row side by side; `by` divides the width."""
    b, h, w, c = image.shape
    return image.reshape(b, h, w // by, by * c)


def refold(image: Float[Array, "b h _ _"], old: int, new: int) -> Float[Array, "b h _ _"]:
    """An image folded by `old`, folded by `new` instead; 1 is not folded at all."""
    if old == new:
        return image
    b, h, w, c = image.shape
    return image.reshape(b, h, w * old // new, c // old * new)


def fold_for(channels: int, width: int, lanes: int) -> int:
    """The least power of two by which a row has `lanes` channels; less where the width is odd."""
    by = 1
    while channels * by < lanes and width % (2 * by) == 0:
        by *= 2
    return by


def split_channels(values: Array, parts: Sequence[Array], by: int, axis: int) -> list[Array]:
    """What belongs to each part's channels, where `axis` of `values` is of all, unfolded."""
    ends = list(itertools.accumulate(part.shape[-1] // by for part in parts))
    return jnp.split(values, ends[:-1], axis=axis)


def fold_kernel(kernel: Float[Array, "3 3 c d"], by: int) -> Float[Array, "3 3 _ _"]:
    """The 3x3 kernel that does to folded images what `kernel` does to images."""
    if by == 1:
        return kernel
    _, _, c, d = kernel.shape
    # Output pixel j of a group sees pixels j - 1, j, j + 1, of which the first may lie in the
    # group before and the last in the one after.
    where = np.zeros((3, 3, by, by), np.float32)
    for j in range(by):
        for k in range(3):
            group, i = divmod(j + k - 1, by)
            where[k, group + 1, i, j] = 1.0
    folded = jnp.einsum("hkcd,kgij->hgicjd", kernel, jnp.asarray(where, kernel.dtype))
    return folded.reshape(3, 3, by * c, by * d)


def fold_matrix(matrix: Float[Array, "c d"], by: int) -> Float[Array, "_ _"]:
    """The matrix that does to the channels of folded images what `matrix` does to an image's."""
    return matrix if by == 1 else jnp.kron(jnp.eye(by, dtype=matrix.dtype), matrix)
