"""Value ranges of images, and the bicubic resize and blur on the devices.

Images are NHWC. "8-bit" is uint8 in 0..255 as in files, "16-bit" uint16 in 0..65535, and "signed"
float32 in [-1, 1], the range of the network, with NaN for missing values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Num, UInt8, UInt16


def to_signed(
    images: Num[Array | np.ndarray, "*b h w c"],
) -> Float[Array, "*b h w c"]:
    """Converts 8-bit or 16-bit to signed: 0 becomes -1, the largest value (255 or 65535) 1.

    Signed images stay as they are.
    """
    if images.dtype == jnp.float32:
        return jnp.asarray(images)
    return jnp.asarray(images, jnp.float32) / (jnp.iinfo(images.dtype).max / 2) - 1.0


def to_uint8(images: Float[Array | np.ndarray, "*b h w c"]) -> UInt8[Array, "*b h w c"]:
    """Converts signed to 8-bit, rounded to the nearest level and clipped."""
    return to_levels(images, jnp.uint8)


def to_levels(
    images: Float[Array | np.ndarray, "*b h w c"], dtype: DTypeLike
) -> UInt8[Array, "*b h w c"] | UInt16[Array, "*b h w c"]:
    """Converts signed to uint8 or uint16, rounded to the nearest level and clipped."""
    largest = jnp.iinfo(dtype).max
    return jnp.clip(jnp.round((images + 1.0) * (largest / 2)), 0, largest).astype(dtype)


def resize_bicubic(
    images: Float[Array | np.ndarray, "b h w c"], size: tuple[int, int]
) -> Float[Array, "b h2 w2 c"]:
    """Resizes by bicubic (Keys, a = -0.5), anti-aliased when shrinking, as Pillow does.

    Edges overshoot: the result can leave the range of its input by some 10 %.
    """
    b, _, _, c = images.shape
    return jax.image.resize(images, (b, *size, c), method="cubic", antialias=True)


def upsample_source(
    low_resolution: Num[Array | np.ndarray, "b h w c"],
    size: tuple[int, int],
) -> Float[Array, "b h2 w2 c"]:
    """Returns the network's x: the low resolution in signed range, resized by bicubic."""
    return resize_bicubic(to_signed(low_resolution), size)


def resize_known(
    images: Float[Array | np.ndarray, "b h w c"],
    resize: Callable[
        [Float[Array | np.ndarray, "b h w c"]], Float[Array | np.ndarray, "b h2 w2 c"]
    ],
) -> tuple[Float[Array | np.ndarray, "b h2 w2 c"], Bool[Array | np.ndarray, "b h2 w2 c"]]:
    """Resizes images of which values are missing (NaN), and tells where the result is known.

    Missing values have no weight: known ones are averaged. Where these have less than half of the
    weight, the result is not known, and 0. On the host (numpy) or traced, as the images are.

    Args:
      images: the images.
      resize: resizes whole ones.
    """
    xp = jnp if isinstance(images, jax.Array) else np
    is_known = xp.isfinite(images)
    share = resize(is_known.astype(images.dtype))
    total = resize(xp.where(is_known, images, 0))
    is_enough = share > 0.5
    return xp.where(is_enough, total / xp.where(is_enough, share, 1), 0), is_enough


def network_input(
    low: Float[Array | np.ndarray, "b h w d"],
    size: tuple[int, int],
    maps: Float[Array | np.ndarray, "b h2 w2 m"] | None = None,
    *,
    may_miss: bool = False,
    resize: Callable[..., Any] = resize_bicubic,
) -> Float[Array | np.ndarray, "b h2 w2 c"]:
    """Returns the network's x: the upsampled low resolution, where it is known, and maps.

    Args:
      low: the low resolution, signed.
      size: height and width of x.
      maps: further channels, signed.
      may_miss: whether values of `low` may be missing. Then its channels, 0 where they are missing,
        are followed by as many that are 1 where they are known, and 0 elsewhere.
      resize: `resize(images, size)`, that of the host or traced, as the images are.
    """
    xp = jnp if isinstance(low, jax.Array) else np
    if may_miss:
        x, is_known = resize_known(low, lambda images: resize(images, size))
        parts = [x, is_known.astype(x.dtype)]
    else:
        parts = [resize(low, size)]
    parts += [] if maps is None else [maps]
    return parts[0] if len(parts) == 1 else xp.concatenate(parts, axis=-1)


def with_known(
    high: Num[Array, "b h w c"], x: Float[Array, "b h w d"] | None, known_at: int
) -> tuple[Float[Array, "b h w c"], Bool[Array, "b h w c"] | None]:
    """Returns y_0, signed, and which of its values are known; None for all.

    A missing value of y_0 is that of x. Values are not known either where x has none.

    Args:
      high: the high resolution, levels or signed.
      x: what `network_input` returned; None for a network without a source.
      known_at: its first channel that says what is known; 0 for none.
    """
    y_0 = to_signed(high)
    if not known_at:
        return y_0, None
    channels = y_0.shape[-1]
    is_known = jnp.isfinite(y_0)
    both = is_known & (x[..., known_at : known_at + channels] > 0.5)
    return jnp.where(is_known, y_0, x[..., :channels]), both


def gaussian_blur(
    images: Float[Array, "b h w c"], sigma: Float[Array, " b"]
) -> Float[Array, "b h w c"]:
    """Blurs each image by a Gaussian of its own width, with 3x3 taps and repeated edges.

    Args:
      images: images of any range; the result keeps it.
      sigma: standard deviation for each image in pixels, above 0.
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
