"""The convolutions of the U-Net, with gradients that suit CPUs and TPUs."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# With fewer channels than this, in or out, the copies cost what the faster convolution gains.
_MIN_CHANNELS_BY_ROWS = 128

Padding = tuple[tuple[int, int], tuple[int, int]]  # zeros above and below, left and right
_SAME: Padding = ((1, 1), (1, 1))  # keeps the size, with a kernel of 3x3


def plain(
    image: Float[Array, "b h w c"],
    kernel: Float[Array, "n m c d"],
    padding: Padding | None = None,
    precision: lax.PrecisionLike = None,
    row_stride: int = 1,
) -> Float[Array, "b _ _ d"]:
    """A convolution, zero-padded so that it keeps the size unless said otherwise."""
    layout = ("NHWC", "HWIO", "NHWC")
    strides = (row_stride, 1)
    return lax.conv_general_dilated(
        image, kernel, strides, padding or "SAME", dimension_numbers=layout, precision=precision
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve(
    image: Float[Array, "b h w c"],
    kernel: Float[Array, "n m c d"],
    padding: Padding = _SAME,
) -> Float[Array, "b _ w d"]:
    """`plain` of stride 1 with a padding that keeps the width (reverse-mode differentiable only).

    Its gradient with respect to the kernel is `kernel_gradient_by_rows` on CPUs, where that is up
    to twice as fast (docs/cpu.md).
    """
    return plain(image, kernel, padding)


def kernel_gradient_by_rows(
    image: Float[Array, "b h w c"],
    cotangent: Float[Array, "b h2 w d"],
    padding: Padding = _SAME,
) -> Float[Array, "n m c d"]:
    """The gradient with respect to the kernel as one 1-D convolution along the height.

    XLA's own form slides a window as large as the image and sums over the batch at each position.
    CPUs are fast at the innermost sum, which has only `b` terms so, 1 to 16. Here it is over a
    whole row of every image, `b * w` terms. The horizontal offsets are shifted copies of the
    cotangent, side by side in its channels.
    """
    b, h, w, c = image.shape
    _, steps, _, d = cotangent.shape
    zero = jnp.zeros((), cotangent.dtype)
    no_padding = (0, 0, 0)
    vertical, (left, right) = padding
    padded = h + sum(vertical)
    # Padded here, since XLA's fast 1-D convolutions for CPUs know only "SAME" and "VALID".
    rows = lax.pad(image, zero, (no_padding, (*vertical, 0), no_padding, no_padding))
    rows = rows.transpose(3, 1, 0, 2).reshape(c, padded, b * w)
    shifted = [
        lax.pad(cotangent, zero, (no_padding, no_padding, (by, -by, 0), no_padding))
        for by in range(-left, right + 1)
    ]
    window = jnp.concatenate(shifted, axis=-1).transpose(1, 0, 2, 3)
    window = window.reshape(steps, b * w, (left + right + 1) * d)
    gradient = lax.conv_general_dilated(
        rows, window, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )
    return gradient.reshape(c, padded - steps + 1, left + right + 1, d).transpose(1, 2, 0, 3)


def _forward(image: Array, kernel: Array, padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    return plain(image, kernel, padding), (image, kernel)


def _backward(
    padding: Padding, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    image, kernel = residuals

    def plain_kernel_gradient(image: Array, cotangent: Array) -> Array:
        return jax.vjp(lambda kernel: plain(image, kernel, padding), kernel)[1](cotangent)[0]

    (image_gradient,) = jax.vjp(lambda image: plain(image, kernel, padding), image)[1](cotangent)
    if min(kernel.shape[2:]) < _MIN_CHANNELS_BY_ROWS:
        return image_gradient, plain_kernel_gradient(image, cotangent)
    by_rows = functools.partial(kernel_gradient_by_rows, padding=padding)
    # Resolved when the program is lowered for a platform, whatever machine that happens on.
    return image_gradient, lax.platform_dependent(
        image, cotangent, cpu=by_rows, default=plain_kernel_gradient
    )


convolve.defvjp(_forward, _backward)


def double(image: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Doubles height and width by repeating each pixel."""
    b, h, w, c = image.shape
    doubled = jnp.broadcast_to(image[:, :, None, :, None], (b, h, 2, w, 2, c))
    return doubled.reshape(b, 2 * h, 2 * w, c)


def convolve_doubled(
    image: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b 2*h 2*w d"]:
    """`convolve(double(image), kernel)`, on CPUs with four ninths of the products.

    A window of three pixels of the doubled image sees two different ones in each direction. So the
    pixels of even and odd rows and columns are four convolutions of the image with 2x2 kernels.
    On TPUs, putting them together costs as much as it saves (docs/tpu.md).
    """

    def by_phases(image: Array, kernel: Array) -> Array:
        b, h, w, _ = image.shape
        rows = [
            jnp.stack(
                [
                    convolve(image, part, (vertical, horizontal))
                    for part, horizontal in _phases(row_kernel, 1)
                ],
                axis=3,
            )
            for row_kernel, vertical in _phases(kernel, 0)
        ]
        return jnp.stack(rows, axis=2).reshape(b, 2 * h, 2 * w, kernel.shape[-1])

    def at_once(image: Array, kernel: Array) -> Array:
        return convolve(double(image), kernel)

    return lax.platform_dependent(image, kernel, cpu=by_phases, default=at_once)


def _phases(kernel: Float[Array, ...], axis: int) -> Iterator[tuple[Array, tuple[int, int]]]:
    """Yields, for the even and the odd pixels of an axis, their kernel of two taps and padding."""
    before, at, after = jnp.split(kernel, 3, axis)
    yield jnp.concatenate([before, at + after], axis), (1, 0)
    yield jnp.concatenate([before + at, after], axis), (0, 1)


def narrow(
    image: Float[Array, "b h w c"], kernel: Float[Array, "3 2 c d"], rows: int = 1
) -> Float[Array, "b _ w-1 d"]:
    """A convolution of stride 1, with `rows` of zeros above and below, but none beside."""
    return plain(image, kernel, ((rows, rows), (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def widen(
    image: Float[Array, "b h w c"], kernel: Float[Array, "3 2 c d"], rows: int = 1
) -> Float[Array, "b _ w+1 d"]:
    """A convolution of stride 1, with zeros beside, too (reverse-mode differentiable only).

    Its gradients are those of `narrow`. XLA's own gradient with respect to the kernel would slide
    the cotangent over the narrower image, for which TPUs write a reversed copy of it.
    """
    return plain(image, kernel, ((rows, rows), (1, 1)))


def _widen_forward(image: Array, kernel: Array, rows: int) -> tuple[Array, tuple[Array, Array]]:
    return widen(image, kernel, rows), (image, kernel)


def _widen_backward(
    rows: int, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    image, kernel = residuals

    def transposed(kernel: Array) -> Array:
        # What the convolution has taken from the height, its transpose adds.
        return narrow(cotangent, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), 2 - rows)

    image_gradient, pull_back = jax.vjp(transposed, kernel)
    if rows:
        # <cotangent, widen(image, kernel)> is <transposed(kernel), image>.
        return image_gradient, pull_back(image)[0]
    # Here the image has more rows than the cotangent, and more columns once zeros are beside it. So
    # XLA slides the cotangent over it, and writes no reversed copy.
    padded = jnp.pad(image, ((0, 0), (0, 0), (1, 1), (0, 0)))
    _, pull_back = jax.vjp(lambda kernel: narrow(padded, kernel, 0), kernel)
    return image_gradient, pull_back(cotangent)[0]


widen.defvjp(_widen_forward, _widen_backward)


@jax.custom_vjp
def widen_doubled(
    image: Float[Array, "b h w c"], kernel: Float[Array, "3 2 c d"]
) -> Float[Array, "b 2*h w+1 d"]:
    """`widen` of the image with its rows repeated (reverse-mode differentiable only).

    Its gradient with respect to the image is one convolution of stride 2 with kernels of four rows.
    That is two thirds of the products that the repeated rows would take.
    """
    return widen(repeat_rows(image), kernel)


def repeat_rows(image: Float[Array, "b h w c"]) -> Float[Array, "b 2*h w c"]:
    """Doubles the height by repeating each row."""
    b, h, w, c = image.shape
    return jnp.broadcast_to(image[:, :, None], (b, h, 2, w, c)).reshape(b, 2 * h, w, c)


def _widen_doubled_forward(image: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return widen_doubled(image, kernel), (image, kernel)


def _widen_doubled_backward(
    residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    image, kernel = residuals
    above, at, below = jnp.split(jnp.flip(kernel, (0, 1)).swapaxes(2, 3), 3)
    rows = jnp.concatenate([above, above + at, at + below, below])
    image_gradient = plain(cotangent, rows, ((1, 1), (0, 0)), row_stride=2)
    _, kernel_gradient = _widen_backward(1, (repeat_rows(image), kernel), cotangent)
    return image_gradient, kernel_gradient


widen_doubled.defvjp(_widen_doubled_forward, _widen_doubled_backward)
