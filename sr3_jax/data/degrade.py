"""From an image to a (high resolution, low resolution) pair of uint8 images.

Crop first, then make both sizes from the same crop: resizing and cropping the two sizes separately
shifts them against each other (1.9 high-resolution pixels on a 500x375 image at 64 to 256). As in
SR3, the crop is resized by area; the low resolution is the 8-bit high resolution reduced by
bicubic with anti-aliasing, and is itself 8-bit, as real inputs are.
"""

import dataclasses
import math
from typing import Literal

import numpy as np
import tensorflow as tf
from jaxtyping import Float32, Num, UInt8

from sr3_jax.data.image_file import BadImageError
from sr3_jax.data.sources import Box

# TensorFlow would take the whole memory of a GPU at its first operation, which JAX needs.
try:
    tf.config.set_visible_devices([], "GPU")
except RuntimeError:
    pass  # The caller used TensorFlow already, so has decided where it runs.

TensorOrArray = tf.Tensor | np.ndarray


class TooSmallError(BadImageError):
    """The image's shorter side is below the size wanted."""


@dataclasses.dataclass(frozen=True)
class DegradeOptions:
    """How one image becomes a pair.

    Attributes:
        image_size: side of the square high-resolution image, in pixels.
        low_resolution: side of the low-resolution image; divides `image_size`.
        crop: "central" for the largest central square, "random" for a square of random side
            (log-uniform) and place.
        crop_scale: (smallest, largest) side of a random crop as a share of the image's shorter
            side. The side is never below `image_size`, so nothing is enlarged.
    """

    image_size: int
    low_resolution: int
    crop: Literal["central", "random"] = "central"
    crop_scale: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: naming the value found and those allowed.
        """
        sizes = f"image_size is {self.image_size} and low_resolution {self.low_resolution}"
        if self.image_size < 1 or self.low_resolution < 1:
            raise ValueError(f"{sizes}; both must be at least 1")
        if self.image_size % self.low_resolution:
            raise ValueError(f"{sizes}; image_size must be a multiple of low_resolution")
        if self.crop not in ("central", "random"):
            raise ValueError(f"crop is {self.crop!r}; it must be 'central' or 'random'")
        smallest, largest = self.crop_scale
        if not 0 <= smallest <= largest <= 1 or largest == 0:
            raise ValueError(
                f"crop_scale is {self.crop_scale}; it must be (smallest, largest) with "
                "0 <= smallest <= largest <= 1 and largest above 0"
            )


def check_size(image: UInt8[np.ndarray, "height width 3"], image_size: int) -> None:
    """Checks that a square of `image_size` pixels fits, so that nothing would be enlarged.

    Raises:
        TooSmallError: naming both sizes (width x height).
    """
    height, width = image.shape[:2]
    if min(height, width) < image_size:
        raise TooSmallError(f"too small: {width}x{height}, need at least {image_size}")


def central_box(height: int, width: int) -> Box:
    """The largest central square, as (left, top, right, bottom)."""
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def random_box(
    height: int, width: int, options: DegradeOptions, uniforms: Num[np.ndarray, "3"]
) -> Box:
    """A square of random side and place, as (left, top, right, bottom).

    Args:
        height: of the image, at least `options.image_size` pixels, as must be `width`.
        width: of the image.
        options: `crop_scale` and `image_size` bound the side.
        uniforms: three numbers in [0, 1) that decide the side (log-uniform), left and top.
    """
    shorter = min(height, width)
    smallest, largest = (round(scale * shorter) for scale in options.crop_scale)
    smallest = max(smallest, options.image_size)
    largest = max(largest, smallest)
    side_share, left_share, top_share = (float(u) for u in uniforms)
    side = round(smallest * math.exp(side_share * math.log(largest / smallest)))
    left = int(left_share * (width - side + 1))
    top = int(top_share * (height - side + 1))
    return left, top, left + side, top + side


def resize_area(
    image: Num[TensorOrArray, "height width channels"], size: int
) -> Float32[tf.Tensor, "size size channels"]:
    """Resizes to `size` pixels square by area: each output pixel is the mean over its footprint.

    Not rounded; the range is the input's.
    """
    return tf.cast(tf.image.resize(image, (size, size), method="area"), tf.float32)


def resize_bicubic(
    image: Num[TensorOrArray, "height width channels"], size: int
) -> Float32[tf.Tensor, "size size channels"]:
    """Resizes to `size` pixels square by anti-aliased bicubic (a = -0.5), as Pillow does.

    Neither rounded nor clipped: bicubic overshoots the input's range at edges.
    """
    return tf.image.resize(image, (size, size), method="bicubic", antialias=True)


def to_uint8(image: Float32[tf.Tensor, "..."]) -> UInt8[tf.Tensor, "..."]:
    """Rounds to the nearest integer (halves to even) and clips to [0, 255]."""
    return tf.cast(tf.clip_by_value(tf.round(image), 0.0, 255.0), tf.uint8)


def make_pair(
    crop: UInt8[TensorOrArray, "side side 3"], image_size: int, low_resolution: int
) -> tuple[UInt8[tf.Tensor, "image_size image_size 3"], UInt8[tf.Tensor, "low_res low_res 3"]]:
    """Makes the pair from a square crop; works eagerly and inside a `tf.function`.

    Returns:
        The high and the low resolution, which cover the same square of the picture.
    """
    high_resolution = to_uint8(resize_area(crop, image_size))
    return high_resolution, to_uint8(resize_bicubic(high_resolution, low_resolution))
