"""Windows: where pairs are cut out of pictures, in the shape of `image_size`."""

import dataclasses
import fractions
import math
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Num

from sr3_jax.data import degradations
from sr3_jax.data.image_files import BadImageError, Box
from sr3_jax.sizes import Size, sides

# The method that makes the low resolution, `resize_bicubic` or `resize_as_matlab`.
Downsampling = Literal["pillow", "matlab"]


class TooSmallError(BadImageError):
    """A side of the image is below that of the image size."""


@dataclasses.dataclass(frozen=True)
class DegradeOptions:
    """Sizes and methods of the pairs; see `config.data`, which checks them.

    Attributes:
      image_size: height and width of the high-resolution image in pixels; one number for a square.
      low_resolution: the same of the low-resolution image, of the same shape. 0: no pixels.
      crop: "central" for the largest central window of that shape, "random" for a window of random
        size (log-uniform) and place.
      crop_scale: (smallest, largest) side of a random crop, as a share of that of the largest. It
        is never below `image_size`, so that nothing is enlarged. With (0, 0) central windows are
        not resized either.
      downsampling: method that makes the low resolution.
      degradation: what is done to low resolutions that are made; None for bicubic alone.
    """

    image_size: Size
    low_resolution: Size
    crop: Literal["central", "random"] = "central"
    crop_scale: tuple[float, float] = (0.0, 1.0)
    downsampling: Downsampling = "pillow"
    degradation: degradations.Options | None = None

    @property
    def ratio(self) -> fractions.Fraction:
        """Pixels of the high resolution to those of the low one, along each side."""
        high, low = sides(self.image_size), sides(self.low_resolution)
        return fractions.Fraction(high[0], low[0])


def check_size(image: Num[np.ndarray, "height width c"], image_size: Size) -> None:
    """Raises TooSmallError, with both sizes, if a window of `image_size` pixels does not fit."""
    _check_size(image.shape[:2], image_size)


def _check_size(size: tuple[int, int], image_size: Size) -> None:
    (height, width), least = size, sides(image_size)
    if height < least[0] or width < least[1]:
        needed = image_size if isinstance(image_size, int) else f"{least[1]}x{least[0]}"
        raise TooSmallError(f"too small: {width}x{height}, need at least {needed}")


def central_box(height: int, width: int, shape: Size = 1) -> Box:
    """Returns the largest central window of a shape, as (left, top, right, bottom).

    `shape` is a height and a width, whose ratio the window has up to rounding down.
    """
    return _in_the_middle(height, width, _window(_largest(height, width, shape), shape))


def random_box(
    height: int, width: int, options: DegradeOptions, uniforms: Num[np.ndarray, "3"]
) -> Box:
    """Returns a window of random size and place, as (left, top, right, bottom).

    Args:
      height: height of the image, at least that of `options.image_size`.
      width: width of the image, likewise.
      options: `crop_scale` and `image_size` bound the size, and `image_size` has the shape.
      uniforms: three numbers in [0, 1) for the size (log-uniform), left and top.
    """
    shape = options.image_size
    longest = _largest(height, width, shape)
    smallest, largest = (round(scale * longest) for scale in options.crop_scale)
    smallest = max(smallest, min(sides(shape)))
    largest = max(largest, smallest)
    side_share, left_share, top_share = (float(u) for u in uniforms)
    side = round(smallest * math.exp(side_share * math.log(largest / smallest)))
    tall, wide = _window(side, shape)
    left = int(left_share * (width - wide + 1))
    top = int(top_share * (height - tall + 1))
    return left, top, left + wide, top + tall


def _in_the_middle(height: int, width: int, window: tuple[int, int]) -> Box:
    tall, wide = window
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


def _largest(height: int, width: int, shape: Size) -> int:
    """Returns the shorter side of the largest window of a shape within an image."""
    tall, wide = sides(shape)
    return min(height * min(tall, wide) // tall, width * min(tall, wide) // wide)


def _window(side: int, shape: Size) -> tuple[int, int]:
    """Returns height and width of the window of a shape, given its shorter side."""
    tall, wide = sides(shape)
    return side * tall // min(tall, wide), side * wide // min(tall, wide)


class Boxes(NamedTuple):
    """The window of a picture, and of its low resolution, if it has one of its own; see `Crop`."""

    high: Box
    low: Box | None
    loss: str = ""


def choose_boxes(
    size: tuple[int, int],
    low_size: tuple[int, int] | None,
    options: DegradeOptions,
    uniforms: Num[np.ndarray, "3"] | None,
) -> Boxes:
    """Returns the window that `make_pairs` makes a pair of.

    Args:
      size: height and width of the picture.
      low_size: those of its low resolution, smaller by the ratio of `options`; None if it is still
        to be made. The window lies on whole pixels of both. What either has more than the other,
        less than one of the low pixels, is left out at the bottom and on the right.
      options: sizes.
      uniforms: see `random_box`; None for the largest central window.

    Raises:
      BadImageError: the picture is too small, or its low resolution has another size.
    """
    of_low, of_high, cells, within, loss = 1, 1, options, size, ""
    if low_size is not None:
        if not options.low_resolution:
            raise ValueError("low_resolution is 0, but the images come with low resolutions")
        # Boxes are counted in the least cells that are whole pixels of both.
        of_high, of_low = options.ratio.as_integer_ratio()
        least = tuple(-(-n // of_low) for n in sides(options.low_resolution))
        cells = dataclasses.replace(options, image_size=least)
        _check_ratio(size, low_size, options.ratio)
        within = tuple(
            min(n // of_high, n_low // of_low) for n, n_low in zip(size, low_size, strict=True)
        )
        used = tuple(of * n for of in (of_high, of_low) for n in within)
        if used != (*size, *low_size):
            loss = "it and its low resolution differ by a part of a pixel, which is left out"
        _check_size(low_size, options.low_resolution)
    _check_size(size, options.image_size)
    if uniforms is not None:
        box = random_box(*within, cells, uniforms)
    elif options.crop == "random" and options.crop_scale[1] == 0:
        box = _in_the_middle(*within, sides(cells.image_size))
    else:
        box = central_box(*within, cells.image_size)
    high, low = (tuple(of * side for side in box) for of in (of_high, of_low))
    return Boxes(high, None if low_size is None else low, loss)


def _check_ratio(
    size: tuple[int, int], low_size: tuple[int, int], ratio: fractions.Fraction
) -> None:
    """Raises BadImageError unless sizes are of a ratio, up to less than a pixel of the low one."""
    off = (abs(n - ratio * low) for n, low in zip(size, low_size, strict=True))
    if any(each >= max(ratio, 1) for each in off):
        (height, width), (low_height, low_width) = size, low_size
        raise BadImageError(
            f"it has {width}x{height} pixels and its low resolution {low_width}x{low_height}, "
            f"where {float(ratio):.4g} times as many are needed"
        )
