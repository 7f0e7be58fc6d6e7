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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    image: Float[Array, "b h w c"],
    kernel: Float[Array, "n m c d"],
    padding: Padding = _SAME,
    by_products: bool = False,
) -> Float[Array, "b _ w d"]:
    """`plain` of stride 1 with a padding that keeps the width (reverse-mode differentiable only).

    Its gradient with respect to the kernel has a form of its own on CPUs, where XLA's takes up to
    twice as long (docs/cpu.md).

    Args:
      image: the image.
      kernel: the kernel, of the image's type.
      padding: zeros around the image.
      by_products: on CPUs, convolutions of bfloat16 and their gradients are made of matrix products
        that are summed in float32. XLA runs such products by the CPU's instructions for bfloat16
        (AVX512-BF16, AMX) if it has some, but convolutions of bfloat16 in float32.
    """
    if not (by_products and image.dtype == jnp.bfloat16):
        return plain(image, kernel, padding)

    def products(image: Array, kernel: Array) -> Array:
        return _products_of_windows(_windows(image, padding, kernel.shape[1]), kernel)

    # Resolved when the program is lowered for a platform, whatever machine that happens on.
    default = functools.partial(plain, padding=padding)
    return lax.platform_dependent(image, kernel, cpu=products, default=default)


def _windows(
    image: Float[Array, "b h w c"], padding: Padding, width: int
) -> Float[Array, "h2 b w2 windows"]:
    """Pads an image, and gathers `width` pixels of a row at each pixel; the rows come first."""
    rows = jnp.pad(image.transpose(1, 0, 2, 3), (padding[0], (0, 0), padding[1], (0, 0)))
    height, b, padded, c = rows.shape
    columns = padded - width + 1
    # Stacked, since XLA writes a concatenation of the last axis number by number on CPUs.
    windows = jnp.stack([rows[:, :, start : start + columns] for start in range(width)], axis=3)
    return windows.reshape(height, b, columns, width * c)


def _products_of_windows(
    windows: Float[Array, "h2 b w2 _"], kernel: Float[Array, "n m c d"]
) -> Float[Array, "b _ w2 d"]:
    """Convolves what `_windows` has made of an image: a product for each row of the kernel."""
    rows = windows.shape[0] - kernel.shape[0] + 1
    products = [
        jnp.dot(
            windows[start : start + rows],
            matrix.reshape(-1, kernel.shape[-1]),
            preferred_element_type=jnp.float32,
        )
        for start, matrix in enumerate(kernel)
    ]
    return sum(products).astype(windows.dtype).transpose(1, 0, 2, 3)


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
    vertical, (left, right) = padding
    padded = h + sum(vertical)
    # Padded here, since XLA's fast 1-D convolutions for CPUs know only "SAME" and "VALID".
    rows = jnp.pad(image, ((0, 0), vertical, (0, 0), (0, 0)))
    rows = rows.transpose(3, 1, 0, 2).reshape(c, padded, b * w)
    window = _windows(cotangent, ((0, 0), (right, left)), left + right + 1)
    window = window.reshape(steps, b * w, (left + right + 1) * d)
    gradient = lax.conv_general_dilated(
        rows, window, (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
    )
    gradient = gradient.reshape(c, padded - steps + 1, left + right + 1, d)
    return jnp.flip(gradient.transpose(1, 2, 0, 3), 1)


def _forward(
    image: Array, kernel: Array, padding: Padding, by_products: bool
) -> tuple[Array, tuple[Array, Array]]:
    return convolve(image, kernel, padding, by_products), (image, kernel)


def _backward(
    padding: Padding, by_products: bool, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    def of_image(image: Array, kernel: Array, cotangent: Array) -> Array:
        return jax.vjp(lambda image: plain(image, kernel, padding), image)[1](cotangent)[0]

    def of_kernel(image: Array, kernel: Array, cotangent: Array) -> Array:
        return jax.vjp(lambda kernel: plain(image, kernel, padding), kernel)[1](cotangent)[0]

    def on_others(*inputs: Array) -> tuple[Array, Array]:
        return of_image(*inputs), of_kernel(*inputs)

    def on_cpus(image: Array, kernel: Array, cotangent: Array) -> tuple[Array, Array]:
        inputs = image, kernel, cotangent
        if by_products and image.dtype == jnp.bfloat16:
            return _gradients_by_products(*inputs, padding)
        if kernel.shape[:2] == (1, 1):
            return of_image(*inputs), _product_over_pixels(image, cotangent)[None, None]
        if min(kernel.shape[2:]) < _MIN_CHANNELS_BY_ROWS:
            return on_others(*inputs)
        return of_image(*inputs), kernel_gradient_by_rows(image, cotangent, padding)

    return lax.platform_dependent(*residuals, cotangent, cpu=on_cpus, default=on_others)


def _gradients_by_products(
    image: Array, kernel: Array, cotangent: Array, padding: Padding
) -> tuple[Array, Array]:
    """The gradients with respect to image and kernel, from the same windows of the cotangent."""
    n, m, c, d = kernel.shape
    (above, below), (left, right) = padding
    transposed = ((n - 1 - above, n - 1 - below), (m - 1 - left, m - 1 - right))
    windows = _windows(cotangent, transposed, m)
    image_gradient = _products_of_windows(windows, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    rows = image.transpose(1, 0, 2, 3)
    products = [
        _product_over_pixels(rows, windows[start : start + rows.shape[0]])
        for start in reversed(range(n))
    ]
    kernel_gradient = jnp.stack(products).reshape(n, c, m, d).swapaxes(1, 2)
    return image_gradient, jnp.flip(kernel_gradient, 1)


def _product_over_pixels(
    image: Float[Array, "h b w c"], cotangent: Float[Array, "h b w d"]
) -> Float[Array, "c d"]:
    """Multiplies the channels of both at each pixel, and sums over all pixels in float32."""
    # The axes are not merged: XLA would gather the batch from all devices if they were.
    pixels = ((1, 2, 3), (0, 1, 2))
    product = lax.dot_general(
        image.transpose(3, 0, 1, 2),
        cotangent,
        (pixels, ((), ())),
        preferred_element_type=jnp.float32,
    )
    return product.astype(image.dtype)


convolve.defvjp(_forward, _backward)


def double(image: Float[Array, "b h w c"]) -> Float[Array, "b 2*h 2*w c"]:
    """Doubles height and width by repeating each pixel."""
    b, h, w, c = image.shape
    doubled = jnp.broadcast_to(image[:, :, None, :, None], (b, h, 2, w, 2, c))
    return doubled.reshape(b, 2 * h, 2 * w, c)


def convolve_doubled(
    image: Float[Array, "b h w c"],
    kernel: Float[Array, "3 3 c d"],
    by_products: bool = False,
) -> Float[Array, "b 2*h 2*w d"]:
    """`convolve` of `double(image)`, on CPUs with four ninths of the products.

    A window of three pixels of the doubled image sees two different ones in each direction. So the
    pixels of even and odd rows and columns are four convolutions of the image with 2x2 kernels.
    On TPUs, putting them together costs as much as it saves (docs/tpu.md).
    """

    def by_phases(image: Array, kernel: Array) -> Array:
        b, h, w, _ = image.shape
        rows = [
            jnp.stack(
                [
                    convolve(image, part, (vertical, horizontal), by_products)
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
