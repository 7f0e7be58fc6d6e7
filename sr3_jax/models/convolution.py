"""The convolutions of the U-Net, with gradients that suit CPUs and TPUs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# With fewer channels than this, in or out, the copies cost what the faster convolution gains.
_MIN_CHANNELS_BY_ROWS = 128


def plain(
    image: Float[Array, "b h w c"],
    kernel: Float[Array, "n m c d"],
    precision: lax.PrecisionLike = None,
) -> Float[Array, "b h w d"]:
    """A convolution of stride 1 and zero padding, which keeps the size."""
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=layout, precision=precision
    )


@jax.custom_vjp
def convolve(
    image: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c d"]
) -> Float[Array, "b h w d"]:
    """`plain` of a 3x3 kernel (reverse-mode differentiable only).

    Its gradient with respect to the kernel is `kernel_gradient_by_rows` on CPUs, where that is up
    to twice as fast (docs/cpu.md).
    """
    return plain(image, kernel)


def kernel_gradient_by_rows(
    image: Float[Array, "b h w c"], cotangent: Float[Array, "b h w d"]
) -> Float[Array, "3 3 c d"]:
    """The gradient with respect to the kernel as one 1-D convolution along the height.

    XLA's own form slides a window as large as the image and sums over the batch at each position.
    CPUs are fast at the innermost sum, which has only `b` terms so, 1 to 16. Here it is over a
    whole row of every image, `b * w` terms. The three horizontal offsets are three shifted copies
    of the cotangent, side by side in its channels.
    """
    b, h, w, c = image.shape
    d = cotangent.shape[-1]
    zero = jnp.zeros((), cotangent.dtype)
    no_padding = (0, 0, 0)
    # Padded here, since XLA's fast convolutions for CPUs know only "SAME" and "VALID".
    rows = lax.pad(image, zero, (no_padding, (1, 1, 0), no_padding, no_padding))
    rows = rows.transpose(3, 1, 0, 2).reshape(c, h + 2, b * w)
    shifted = [
        lax.pad(cotangent, zero, (no_padding, no_padding, (by, -by, 0), no_padding))
        for by in (-1, 0, 1)
    ]
    window = jnp.concatenate(shifted, axis=-1).transpose(1, 0, 2, 3).reshape(h, b * w, 3 * d)
    gradient = lax.conv_general_dilated(
        rows, window, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )
    return gradient.reshape(c, 3, 3, d).transpose(1, 2, 0, 3)


def _forward(image: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return plain(image, kernel), (image, kernel)


def _backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    image, kernel = residuals

    def plain_kernel_gradient(image: Array, cotangent: Array) -> Array:
        return jax.vjp(lambda kernel: plain(image, kernel), kernel)[1](cotangent)[0]

    (image_gradient,) = jax.vjp(lambda image: plain(image, kernel), image)[1](cotangent)
    if min(kernel.shape[2:]) < _MIN_CHANNELS_BY_ROWS:
        return image_gradient, plain_kernel_gradient(image, cotangent)
    # Resolved when the program is lowered for a platform, whatever machine that happens on.
    return image_gradient, lax.platform_dependent(
        image, cotangent, cpu=kernel_gradient_by_rows, default=plain_kernel_gradient
    )


convolve.defvjp(_forward, _backward)


def narrow(
    image: Float[Array, "b h w c"], kernel: Float[Array, "3 2 c d"]
) -> Float[Array, "b h w-1 d"]:
    """A convolution of stride 1, with zero padding above and below, but not beside."""
    return _by_two(image, kernel, 0)


@jax.custom_vjp
def widen(
    image: Float[Array, "b h w c"], kernel: Float[Array, "3 2 c d"]
) -> Float[Array, "b h w+1 d"]:
    """A convolution of stride 1 and zero padding (reverse-mode differentiable only).

    Its gradients are those of `narrow`. XLA's own gradient with respect to the kernel would slide
    the cotangent over the narrower image, for which TPUs write a reversed copy of it.
    """
    return _by_two(image, kernel, 1)


def _by_two(image: Array, kernel: Array, beside: int) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    padding = ((1, 1), (beside, beside))
    return lax.conv_general_dilated(image, kernel, (1, 1), padding, dimension_numbers=layout)


def _widen_forward(image: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return widen(image, kernel), (image, kernel)


def _widen_backward(residuals: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    image, kernel = residuals

    def transposed(kernel: Array) -> Array:
        return narrow(cotangent, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))

    # <cotangent, widen(image, kernel)> is <transposed(kernel), image>.
    image_gradient, pull_back = jax.vjp(transposed, kernel)
    return image_gradient, pull_back(image)[0]


widen.defvjp(_widen_forward, _widen_backward)
