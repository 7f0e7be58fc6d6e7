"""PSNR, SSIM, consistency and gradient energy: pure functions of images, one number for each image.

Images are uint8 or uint16, and two that are compared need not be of one type: a value counts as a
share of the largest of its type, so that 8 bits and the same at 16 (times 257) score the same.

Each returns one number an image; a mean over a data set is the mean of these numbers, taken by the
caller in float64.

PSNR and SSIM are of all three channels, as in the paper. Where the literature has them of
luminance, without some pixels at the border, `luminance=True` is its Y (ITU-R BT.601, 16 to 235,
as MATLAB's `rgb2ycbcr`, not rounded), and `border` how many pixels are cut off each side before.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt

from sr3_jax import image_ops

Images = UInt[Array | np.ndarray, "b h w c"]
PerImage = Float[Array, " b"]

_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5


def psnr(
    images: Images, reference: Images, *, luminance: bool = False, border: int = 0
) -> PerImage:
    """Peak signal-to-noise ratio in dB, over all channels; infinite for equal images alone."""
    # Integers are subtracted, which is exact. Of scaled numbers a compiled program may round one
    # and not the other (a fused multiply-add), so that equal images would differ.
    a, b = (_levels_of_16_bits(_within(each, border)) for each in (images, reference))
    error = (a - b).astype(jnp.float32) / 65535
    if luminance:
        error = _luma(error)
    return -10.0 * jnp.log10(jnp.mean(jnp.square(error), axis=(1, 2, 3)))


def ssim(
    images: Images, reference: Images, *, luminance: bool = False, border: int = 0
) -> PerImage:
    """Structural similarity (Wang et al. 2004): 11x11 Gaussian of sigma 1.5, mean of channels.

    Only windows that lie wholly inside the image count, as in the authors' code and in
    scikit-image (`gaussian_weights=True, sigma=1.5, use_sample_covariance=False`). Smaller images
    are a ValueError.
    """
    a, b = (_seen(pictures, luminance, border) for pictures in (images, reference))
    if min(a.shape[1:3]) < _SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs images of at least {_SSIM_WINDOW}x{_SSIM_WINDOW} pixels, found "
            f"{a.shape[1]}x{a.shape[2]}" + (f" within the border of {border}" if border else "")
        )
    mean_a, mean_b = _blur(a), _blur(b)
    # Subtracting the image's own mean first keeps float32's digits: variances do not change.
    center = jnp.mean(b, axis=(1, 2), keepdims=True)
    a, b = a - center, b - center
    local_a, local_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - local_a**2
    variance_b = _blur(b * b) - local_b**2
    covariance = _blur(a * b) - local_a * local_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return jnp.mean(luminance * structure, axis=(1, 2, 3))


def consistency(images: Images, low_resolution: UInt[Array | np.ndarray, "b h2 w2 c"]) -> PerImage:
    """Mean square error, in [0, 1] and times 1e5, of the downsampled image to the input.

    The scale of the paper's Table 1 (SR3 2.68). The downsampling is the one that made the
    input: anti-aliased bicubic.
    """
    small = image_ops.resize_bicubic(unit(images), low_resolution.shape[1:3])
    error = jnp.square(small - unit(low_resolution))
    return 1e5 * jnp.mean(error, axis=(1, 2, 3))


def gradient_energy(images: Images, reference: Images) -> PerImage:
    """Gradient energy over the reference's: below 1 is blurred, above 1 noisy or sharpened.

    Gradient energy is the mean of squared differences between neighbouring pixels. To both, that of
    rounding to bytes is added, so that a flat reference gives no infinity. Noise has gradients as
    texture has: 1 does not say that the image shows what the reference shows.
    """
    # A rounding error has variance 1/12 of a level squared, a difference of two twice that.
    rounding = 2 / 12 / 255.0**2
    energy, of_reference = (_mean_square_gradient(unit(each)) for each in (images, reference))
    return (energy + rounding) / (of_reference + rounding)


def unit(images: Images) -> Float[Array, "b h w c"]:
    """Returns levels as shares of the largest of their type."""
    return jnp.asarray(images, jnp.float32) / jnp.iinfo(images.dtype).max


def _mean_square_gradient(images: Float[Array, "b h w c"]) -> PerImage:
    """Returns the mean square difference of neighbours, over both directions."""
    squares = (jnp.square(jnp.diff(images, axis=axis)) for axis in (1, 2))
    return sum(jnp.mean(each, axis=(1, 2, 3)) for each in squares) / 2


def _levels_of_16_bits(images: Images) -> Int[Array, "b h w c"]:
    """Levels of 0 to 65535, exact also of 8 bits."""
    return jnp.asarray(images, jnp.int32) * (65535 // jnp.iinfo(images.dtype).max)


def _seen(images: Images, luminance: bool, border: int) -> Float[Array, "b h2 w2 c2"]:
    """In [0, 1]: what of the images a metric looks at."""
    seen = unit(_within(images, border))
    return 16.0 / 255.0 + _luma(seen) if luminance else seen


def _luma(images: Float[Array, "b h w 3"]) -> Float[Array, "b h w 1"]:
    """Y of BT.601 in [0, 1] without its offset of 16 / 255; linear."""
    weights = jnp.array([65.481, 128.553, 24.966]) / 255.0
    return jnp.einsum("bhwc,c->bhw", images, weights, precision="highest")[..., None]


def _within(images: Images, border: int) -> UInt[Array | np.ndarray, "b h2 w2 c"]:
    """Without so many pixels at each side."""
    height, width = images.shape[1:3]
    if not 0 <= 2 * border < min(height, width):
        raise ValueError(
            f"a border of {border} pixels leaves nothing of images of {height}x{width}; "
            "it must be at least 0 and under half of the shorter side"
        )
    return images[:, border : height - border, border : width - border]


def _blur(images: Float[Array | np.ndarray, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Separable Gaussian, windows inside the image only."""
    offset = jnp.arange(_SSIM_WINDOW) - _SSIM_WINDOW // 2
    window = jnp.exp(-0.5 * (offset / _SSIM_SIGMA) ** 2)
    window = (window / window.sum()).astype(images.dtype)
    channels = images.shape[-1]
    for shape in ((_SSIM_WINDOW, 1), (1, _SSIM_WINDOW)):
        kernel = jnp.broadcast_to(window.reshape(*shape, 1, 1), (*shape, 1, channels))
        images = jax.lax.conv_general_dilated(
            images,
            kernel,
            (1, 1),
            "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=channels,
            precision=jax.lax.Precision.HIGHEST,
        )
    return images
