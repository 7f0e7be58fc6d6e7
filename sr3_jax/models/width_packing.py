"""Width packing: neighbouring pixels of a row lie side by side in the channels.

A TPU keeps the channels of an image in registers of 128 lanes and multiplies 128 of them at once.
An image of 16 channels fills an eighth of both, and an eighth of every byte that is moved. Packed
by 8 it has 128 channels and an eighth of the width, in the same order in memory:

    image[b, h, w, c] == packed[b, h, w // factor, (w % factor) * channels + c]

A convolution over it has a kernel of 128 x 128 channels, most of them zeros, and takes an eighth of
the time all the same. A `PackedImage` carries its factor, so that layers need not know it. Packed
by 1 it is the image itself, and each operation is the plain one.

The pixels of a group see those of three groups, though of the first and the last they see one pixel
only. Groups that are shifted by a pixel see those of two (`PackedImage.shifted`). So of two
convolutions in a row the first makes shifted groups and the second the usual ones, each with two
thirds of the products.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from sr3_jax.models import convolution

Resample = Literal["none", "up", "down"]
# A number for each channel, of each example or of all.
PerChannel = Float[Array, "b c"] | Float[Array, " c"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PackedImage:
    """An image whose pixels may be packed and whose channels may lie in several arrays.

    Every operation does what it would do to the plain image.

    Attributes:
      parts: arrays `[b, h, w / factor, factor * c_i]` that stand for their concatenation along the
        channels. It is never made: skip connections are not copied.
      factor: number of neighbouring pixels that lie side by side.
      factors: `(width, factor)` for each width to be packed; other widths are packed by 1.
      shifted: the groups of pixels are shifted by one to the right, and there is one more. Group j
        has the pixels from `factor * (j - 1) + 1` on. What would lie outside of the image has no
        meaning, and is taken for zero. Only normalisation, functions of each pixel and
        `convolve(..., shifts=True)` are for shifted images, which have one part.
      by_products: that of `convolution.convolve`, for the convolutions of this image.
    """

    parts: tuple[Any, ...]  # jax also makes pytrees of other things than arrays
    factor: int = dataclasses.field(default=1, metadata=dict(static=True))
    factors: tuple[tuple[int, int], ...] = dataclasses.field(default=(), metadata=dict(static=True))
    shifted: bool = dataclasses.field(default=False, metadata=dict(static=True))
    by_products: bool = dataclasses.field(default=False, metadata=dict(static=True))

    @property
    def channels(self) -> tuple[int, ...]:
        """The number of channels of each part."""
        return tuple(part.shape[-1] // self.factor for part in self.parts)

    @property
    def shape(self) -> tuple[Any, int, int, int]:  # the batch of an export is symbolic
        """The shape `(b, h, w, c)` of the plain image."""
        b, h, w, _ = self.parts[0].shape
        return b, h, (w - self.shifted) * self.factor, sum(self.channels)

    @property
    def outside(self) -> tuple[int, int]:
        """How many numbers lie left and right of the pixels of each row, if it is shifted."""
        (channels, *_) = self.channels
        return ((self.factor - 1) * channels, channels) if self.shifted else (0, 0)

    def packed_by(self, factor: int) -> PackedImage:
        """Returns the image packed by another factor, a divisor of its width."""
        parts = tuple(_repack(part, self.factor, factor) for part in self.parts)
        return dataclasses.replace(self, parts=parts, factor=factor)

    def to_array(self) -> Float[Array, "b h w c"]:
        """Returns the plain image."""
        return jnp.concatenate(self.packed_by(1).parts, axis=-1)

    def beside(self, other: PackedImage) -> PackedImage:
        """Concatenates the channels with those of `other`, of the same size and factor."""
        return dataclasses.replace(self, parts=(*self.parts, *other.parts))

    def map(self, function: Callable[..., Array], *others: PackedImage | PerChannel) -> PackedImage:
        """Applies an elementwise function to each part and the matching parts of the others.

        The others are images of the same size and parts, or numbers for each channel.
        """
        arguments = [o.parts if isinstance(o, PackedImage) else self.spread(o) for o in others]
        return dataclasses.replace(self, parts=tuple(map(function, self.parts, *arguments)))

    def __add__(self, other: PackedImage | PerChannel) -> PackedImage:
        return self.map(jnp.add, other)

    def __mul__(self, factor: float) -> PackedImage:
        return self.map(lambda part: part * factor)

    def astype(self, dtype: DTypeLike) -> PackedImage:
        """Returns the image in another type."""
        return self.map(lambda part: part.astype(dtype))

    def mean(self) -> Float[Array, "b c"]:
        """Returns the mean over the pixels of each channel, in float32."""

        def at_once(*parts: Array) -> list[Array]:
            return [jnp.mean(part, axis=(1, 2), dtype=jnp.float32) for part in parts]

        def by_rows(*parts: Array) -> list[Array]:
            rows = [jnp.mean(part, axis=2, dtype=jnp.float32) for part in parts]
            return [jnp.mean(row, axis=1) for row in rows]

        # On GPUs several sums over rows share a kernel. Several sums over whole small images do
        # not: each would read what is summed up from memory, in float32 (docs/gpu.md).
        parts = self.parts
        if self.shifted:
            parts = [part * self._is_inside() for part in parts]
        means = jax.lax.platform_dependent(*parts, cuda=by_rows, rocm=by_rows, default=at_once)
        if self.shifted:
            groups = parts[0].shape[2]  # one more than there are pixels for
            means = [mean * (groups / (groups - 1)) for mean in means]
        if self.factor > 1:
            means = [mean.reshape(mean.shape[0], self.factor, -1).mean(axis=1) for mean in means]
        return jnp.concatenate(means, axis=-1)

    def divide_by_rms(self, epsilon: float) -> PackedImage:
        """Divides each pixel by `sqrt(m + epsilon)`, where m is its channels' mean square."""
        pixels = [part.reshape(*part.shape[:-1], self.factor, -1) for part in self.parts]
        squares = sum(jnp.sum(jnp.square(each), axis=-1, keepdims=True) for each in pixels)
        inverse = jax.lax.rsqrt(squares / self.shape[-1] + epsilon)
        parts = (
            (each * inverse).reshape(part.shape)
            for each, part in zip(pixels, self.parts, strict=True)
        )
        return dataclasses.replace(self, parts=tuple(parts))

    def convolve(
        self,
        kernels: Sequence[Float[Array, "3 3 _ d"]] | Sequence[Float[Array, "_ d"]],
        shifts: bool = False,
        rows: int = 1,
    ) -> PackedImage:
        """Convolves with stride 1 and zero padding: each part with a 3x3 kernel or a 1x1 matrix.

        With `shifts`, the result of 3x3 kernels is shifted if the image is packed and not shifted,
        and not shifted if the image is. A shifted image needs `shifts`. `rows` of zeros are padded
        above and below; with 0 the result of 3x3 kernels has two rows less.
        """
        shifts = shifts and self.factor > 1
        if self.shifted and not shifts:
            raise ValueError("a shifted image is convolved with shifts=True alone")

        def one(part: Array, kernel: Array) -> Array:
            if kernel.ndim == 2:
                # As a convolution: TPUs run it without a change of layout.
                packed = _pack_matrix(kernel, self.factor)[None, None]
                return convolution.convolve(part, packed, ((0, 0), (0, 0)), self.by_products)
            f = self.factor
            if not shifts:
                packed = _pack_kernel(kernel, f, groups=3, first=-f)
                padding = ((rows, rows), (1, 1))
                return convolution.convolve(part, packed, padding, self.by_products)
            if self.shifted:
                packed = _pack_kernel(kernel, f, groups=2, first=1 - f)
                return convolution.narrow(part, packed, rows)
            return convolution.widen(part, _pack_kernel(kernel, f, groups=2, first=-1), rows)

        out = functools.reduce(jnp.add, map(one, self.parts, kernels))
        return dataclasses.replace(self, parts=(out,), shifted=self.shifted != shifts)

    def convolve_doubled(self, kernels: Sequence[Float[Array, "3 3 _ d"]]) -> PackedImage:
        """`resample("up")` and then `convolve(kernels, shifts=True)`, for 3x3 kernels.

        Where the result is packed, its groups of pixels see half as many pixels of this image, in
        half of the products. Elsewhere it is `convolution.convolve_doubled`.
        """
        if self.shifted:
            raise ValueError("a shifted image cannot be doubled")
        factor = dict(self.factors).get(2 * self.shape[2], 1)
        image = self.packed_by(max(factor // 2, 1))

        def one(part: Array, kernel: Array) -> Array:
            if factor == 1:
                return convolution.convolve_doubled(part, kernel, self.by_products)
            return convolution.widen_doubled(part, _pack_kernel_of_doubled(kernel, factor))

        out = functools.reduce(jnp.add, map(one, image.parts, kernels))
        return dataclasses.replace(image, parts=(out,), factor=factor, shifted=factor > 1)

    def resample(self, how: Resample) -> PackedImage:
        """Halves by the mean of 2x2 pixels, or doubles by repeating each; repacks by the width."""
        if how == "none":
            return self
        width = self.shape[2] * 2 if how == "up" else self.shape[2] // 2
        factor = dict(self.factors).get(width, 1)
        resample = _double if how == "up" else _halve
        parts = tuple(resample(part, self.factor, factor) for part in self.parts)
        return dataclasses.replace(self, parts=parts, factor=factor)

    def spread(self, values: PerChannel) -> list[Float[Array, "*b _"]]:
        """Splits numbers for each channel by the parts, to broadcast over the pixels.

        For the pixels outside of a shifted image they are 0.
        """
        values = values[:, None, None] if values.ndim == 2 else values
        split = jnp.split(values, list(itertools.accumulate(self.channels))[:-1], axis=-1)
        if self.factor > 1:
            split = [jnp.tile(part, self.factor) for part in split]
        if self.shifted:
            split = [part * self._is_inside() for part in split]
        return split

    def _is_inside(self) -> Float[Array, "w _"]:
        """Returns 1 for each pixel of a shifted image, 0 for what lies outside of it."""
        _, _, w, c = self.parts[0].shape
        left, right = self.outside
        return jnp.pad(jnp.ones(w * c - left - right), (left, right)).reshape(w, c)


def pack(
    image: Float[Array, "b h w c"],
    level_channels: Sequence[int],
    packed_channels: int,
    by_products: bool = False,
) -> PackedImage:
    """Packs the image that enters a U-Net, so that levels have `packed_channels` at least.

    `level_channels` are the channels of each level; level i works at 1/2^i of the image's width.
    `by_products` is that of `PackedImage`.
    """
    widths = [image.shape[2] // 2**level for level in range(len(level_channels))]
    factors = tuple(
        (width, least_factor(channels, width, packed_channels))
        for channels, width in zip(level_channels, widths, strict=True)
    )
    packed = PackedImage((image,), factors=factors, by_products=by_products)
    return packed.packed_by(factors[0][1])


def least_factor(channels: int, width: int, packed_channels: int) -> int:
    """Returns the least power of two that packs to `packed_channels`, if it divides the width."""
    factor = 1
    while channels * factor < packed_channels and width % (2 * factor) == 0:
        factor *= 2
    return factor


def _repack(image: Float[Array, "b h _ _"], old: int, new: int) -> Float[Array, "b h _ _"]:
    if old == new:
        return image
    b, h, w, c = image.shape
    return image.reshape(b, h, w * old // new, c // old * new)


def _halve(image: Float[Array, "b h _ _"], old: int, new: int) -> Float[Array, "b h2 _ _"]:
    """Halves an image packed by `old`; the result is packed by `new`, as that of `_double`."""
    b, h, w, c = image.shape
    if old > 1:
        return _repack(_sum_squares(image, old // 2) * 0.25, old // 2, new)
    return _repack(jnp.mean(image.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4)), old, new)


def _double(image: Float[Array, "b h _ _"], old: int, new: int) -> Float[Array, "b h2 _ _"]:
    if max(old, new) > 1:
        return _repack(_repeat_squares(image, old), 2 * old, new)
    return convolution.double(image)


# Both are products with matrices of zeros and ones. Moving channels about would cost several passes
# on a TPU. Each of them is the gradient of the other.


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _repeat_squares(image: Float[Array, "b h w c"], factor: int) -> Float[Array, "b h2 w c2"]:
    """Repeats each pixel of an image packed by `factor` along both axes."""
    matrix = _squares(factor, image.shape[-1] // factor, image.dtype).T[None, None]
    # The rows first: XLA can fuse a product with what follows, but not a repetition.
    rows = convolution.repeat_rows(image)
    return convolution.plain(rows, matrix, precision=jax.lax.Precision.HIGHEST)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _sum_squares(image: Float[Array, "b h w c"], factor: int) -> Float[Array, "b h2 w c2"]:
    """Sums each 2x2 pixels; the result is packed by `factor`, the image by twice as many."""
    matrix = _squares(factor, image.shape[-1] // (2 * factor), image.dtype)
    kernel = jnp.broadcast_to(matrix, (2, 1, *matrix.shape))
    # One product of stride 2: XLA would read and write a sum of rows in float32.
    no_padding = ((0, 0), (0, 0))
    return convolution.plain(image, kernel, no_padding, jax.lax.Precision.HIGHEST, row_stride=2)


def _squares(factor: int, channels: int, dtype: DTypeLike) -> Float[Array, "m n"]:
    """The matrix that sums neighbours of `2 * factor` packed pixels."""
    ones = jnp.ones((2, 1), dtype)
    pixel = jnp.eye(channels, dtype=dtype)
    return jnp.kron(jnp.eye(factor, dtype=dtype), jnp.kron(ones, pixel))


_repeat_squares.defvjp(
    lambda image, factor: (_repeat_squares(image, factor), None),
    lambda factor, _, cotangent: (_sum_squares(cotangent, factor),),
)
_sum_squares.defvjp(
    lambda image, factor: (_sum_squares(image, factor), None),
    lambda factor, _, cotangent: (_repeat_squares(cotangent, factor),),
)


def _pack_kernel(
    kernel: Float[Array, "3 3 c d"], factor: int, groups: int, first: int
) -> Float[Array, "3 groups _ _"]:
    """The kernel that does to packed images what `kernel` does to plain ones.

    Args:
      kernel: the kernel for plain images.
      factor: that of the packing.
      groups: number of neighbouring groups that a group of the result sees.
      first: the first pixel of these groups, counted from the first one of the result's group.
    """
    if factor == 1:
        return kernel
    # Pixel j of the result sees pixels j - 1, j, j + 1.
    sees = np.arange(factor) + np.arange(-1, 2)[:, None]
    return _arrange(kernel, sees, np.arange(groups * factor).reshape(groups, factor) + first)


def _pack_kernel_of_doubled(
    kernel: Float[Array, "3 3 c d"], factor: int
) -> Float[Array, "3 2 _ _"]:
    """The kernel by which shifted groups of a doubled image see the groups before it is doubled.

    The latter have `factor // 2` pixels, those of the result `factor`. The rows are doubled before.
    """
    # Pixel j of a shifted group is j + 1 pixels behind the first one of the two groups that it
    # sees. It sees itself and its neighbours, and two of the doubled image are one pixel.
    sees = (np.arange(factor) + np.arange(3)[:, None]) // 2
    return _arrange(kernel, sees, np.arange(factor).reshape(2, factor // 2))


def _arrange(
    kernel: Float[Array, "3 3 c d"], sees: Int[np.ndarray, "3 j"], pixels: Int[np.ndarray, "g i"]
) -> Float[Array, "3 g _ _"]:
    """Puts each column of a kernel where pixel j of the result sees that pixel of its groups."""
    _, _, c, d = kernel.shape
    where = sees[:, None, None] == pixels[..., None]
    packed = jnp.einsum("hkcd,kgij->hgicjd", kernel, jnp.asarray(where, kernel.dtype))
    return packed.reshape(3, len(pixels), pixels.shape[1] * c, sees.shape[1] * d)


def _pack_matrix(matrix: Float[Array, "c d"], factor: int) -> Float[Array, "_ _"]:
    """The matrix that does to the channels of packed images what `matrix` does to plain ones."""
    return matrix if factor == 1 else jnp.kron(jnp.eye(factor, dtype=matrix.dtype), matrix)
