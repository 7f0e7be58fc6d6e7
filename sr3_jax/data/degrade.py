"""From an image to a (high resolution, low resolution) pair of images at its own depth.

Both sizes are made from one crop: resizing and cropping each shifts them against each other (1.9
high-resolution pixels on a 500x375 image at 64 to 256). As in SR3, the crop is resized by area and
rounded. Bicubic with anti-aliasing reduces that to the low resolution, which is rounded, too, as
real inputs are. Pixels are uint8 or uint16. Other numbers are float32, are not rounded, and are NaN
where they are missing.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float, Float32, Num, UInt
from numpy.typing import DTypeLike

from sr3_jax.data.image_files import BadImageError, Box

# The method that makes the low resolution, `resize_bicubic` or `resize_as_matlab`.
Downsampling = Literal["pillow", "matlab"]

# Least weight of known values for a pixel that is not missing.
_LEAST_KNOWN = 0.5

BYTES_TOGETHER = 1 << 18  # most bytes of small crops that are resized together

# High and low resolution of one square of a picture.
Pair = tuple[
    Num[np.ndarray, "*batch image_size image_size c"],
    Num[np.ndarray, "*batch low_resolution low_resolution c"],
]


class Crop(NamedTuple):
    """A square of a picture that is not resized yet; `low` is None if it is made from `high`.

    The last channels of `high` are those of maps, if there are any.
    """

    high: Num[np.ndarray, "side side c"]
    low: Num[np.ndarray, "low_side low_side d"] | None


class TooSmallError(BadImageError):
    """The shorter side of the image is below the image size."""


@dataclasses.dataclass(frozen=True)
class DegradeOptions:
    """Sizes and methods of the pairs; see `config.data`, which checks them.

    Attributes:
      image_size: side of the square high-resolution image, in pixels.
      low_resolution: side of the low-resolution image, a divisor of `image_size`. 0: no pixels.
      crop: "central" for the largest central square, "random" for a square of random side
        (log-uniform) and place.
      crop_scale: (smallest, largest) side of a random crop as a share of the image's shorter
        side. The side is never below `image_size`, so that nothing is enlarged.
      downsampling: method that makes the low resolution.
    """

    image_size: int
    low_resolution: int
    crop: Literal["central", "random"] = "central"
    crop_scale: tuple[float, float] = (0.0, 1.0)
    downsampling: Downsampling = "pillow"


def check_size(image: Num[np.ndarray, "height width c"], image_size: int) -> None:
    """Raises TooSmallError, with both sizes, if a square of `image_size` pixels does not fit."""
    height, width = image.shape[:2]
    if min(height, width) < image_size:
        raise TooSmallError(f"too small: {width}x{height}, need at least {image_size}")


def central_box(height: int, width: int) -> Box:
    """Returns the largest central square, as (left, top, right, bottom)."""
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def random_box(
    height: int, width: int, options: DegradeOptions, uniforms: Num[np.ndarray, "3"]
) -> Box:
    """Returns a square of random side and place, as (left, top, right, bottom).

    Args:
      height: height of the image, at least `options.image_size` pixels.
      width: width of the image, likewise.
      options: `crop_scale` and `image_size` bound the side.
      uniforms: three numbers in [0, 1) for the side (log-uniform), left and top.
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
    image: Num[np.ndarray, "*batch height width channels"], size: int
) -> Float32[np.ndarray, "*batch size size channels"]:
    """Resizes to `size` pixels square by area, without rounding: the mean over each footprint."""
    return _resize(image, size, _area_weights)


def resize_bicubic(
    image: Num[np.ndarray, "*batch height width channels"], size: int | tuple[int, int]
) -> Float32[np.ndarray, "*batch new_height new_width channels"]:
    """Resizes by bicubic (Keys, a = -0.5), as Pillow and TensorFlow.

    `size` is the new height and width, or one number for both. Shrinking is anti-aliased. The
    result is neither rounded nor clipped: bicubic overshoots at edges. See `bicubic_weights`.
    """
    return _resize(image, size, _bicubic_weights)


def resize_as_matlab(
    image: UInt[np.ndarray, "*batch height width channels"], size: int
) -> UInt[np.ndarray, "*batch size size channels"]:
    """Resizes to `size` pixels square as MATLAB's `imresize`, which most benchmarks use.

    Unlike in `resize_bicubic`, the image is mirrored at its borders, and the result of each
    direction (the height comes first) is rounded, halves upwards, and clipped.
    """
    largest = np.iinfo(image.dtype).max
    rounded = lambda pixels: np.clip(np.floor(pixels + 0.5), 0, largest)  # noqa: E731
    return _resize(image, size, _mirrored_weights, rounded).astype(image.dtype)


def bicubic_weights(
    size: int, new_size: int, step: float | None = None, is_mirrored: bool = False
) -> scipy.sparse.csr_array:
    """Returns the float32 weights [new_size, size] of bicubic, whose rows sum to 1.

    They are Keys' kernel (a = -0.5) around the centre of each output pixel.

    Args:
      size: number of input pixels.
      new_size: number of output pixels.
      step: width of an output pixel in input pixels; None for `size / new_size`. Above 1 the
        kernel is wider by it.
      is_mirrored: the image is mirrored at its borders; else the kernel is cut off there.
    """
    step = size / new_size if step is None else step
    scale = max(step, 1.0)
    centre = (np.arange(new_size) + 0.5) * step - 0.5
    first = np.floor(centre - 2 * scale).astype(int) + 1
    pixel = first[:, None] + np.arange(math.ceil(4 * scale))
    x = np.abs(pixel - centre[:, None]) / scale
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    weight = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
    if is_mirrored:  # the image and its mirror image alternate with a period of two sizes
        pixel %= 2 * size
        pixel = np.minimum(pixel, 2 * size - 1 - pixel)
    else:
        weight[(pixel < 0) | (pixel >= size)] = 0.0
        pixel = pixel.clip(0, size - 1)
    weight /= weight.sum(axis=1, keepdims=True)
    rows = np.repeat(np.arange(new_size), pixel.shape[1])
    weights = scipy.sparse.csr_array((weight.ravel(), (rows, pixel.ravel())), (new_size, size))
    weights.eliminate_zeros()
    return weights.astype(np.float32)


def to_levels(
    image: Float[np.ndarray, "*shape"], dtype: DTypeLike
) -> UInt[np.ndarray, "*shape"] | Float32[np.ndarray, "*shape"]:
    """Rounds to the nearest integer (halves to even) and clips to the range of uint8 or uint16.

    For another type the numbers stay as they are.
    """
    if np.dtype(dtype).kind == "f":
        return image.astype(dtype, copy=False)
    return np.clip(np.rint(image), 0.0, np.iinfo(dtype).max).astype(dtype)


def by_area(
    crop: Num[np.ndarray, "*batch side side c"], size: int
) -> Num[np.ndarray, "*batch size size c"]:
    """Resizes a crop to `size` pixels by area, rounded to its own type."""
    return crop if crop.shape[-2] == size else to_levels(resize_area(crop, size), crop.dtype)


def make_pair(
    crop: Num[np.ndarray, "*batch side side c"],
    image_size: int,
    low_resolution: int,
    downsampling: Downsampling = "pillow",
) -> Pair:
    """Makes high and low resolution, which cover the same square, from one or several crops."""
    high = by_area(crop, image_size)
    if not low_resolution:
        return high, np.zeros((*high.shape[:-3], 0, 0, high.shape[-1]), crop.dtype)
    if downsampling == "matlab":
        return high, resize_as_matlab(high, low_resolution)
    return high, to_levels(resize_bicubic(high, low_resolution), crop.dtype)


def cut(
    image: Num[np.ndarray, "height width c"],
    low_resolution: Num[np.ndarray, "low_height low_width d"] | None,
    options: DegradeOptions,
    uniforms: Num[np.ndarray, "3"] | None,
    maps: Num[np.ndarray, "height width m"] | None = None,
) -> Crop:
    """Cuts out the square that `make_pairs` makes a pair of.

    Args:
      image: the picture.
      low_resolution: the same picture, smaller by the factor of `options`; None to make it. The
        crop lies on whole pixels of both.
      options: sizes.
      uniforms: see `random_box`; None for the largest central square.
      maps: further channels of the picture, which are cut as it is.

    Raises:
      BadImageError: the image is too small, or `low_resolution` or `maps` have another size.
    """
    height, width = image.shape[:2]
    factor, least = 1, options
    if low_resolution is not None:
        if not options.low_resolution:
            raise ValueError("low_resolution is 0, but the images come with low resolutions")
        factor = options.image_size // options.low_resolution
        least = dataclasses.replace(options, image_size=options.low_resolution)
        low_height, low_width = low_resolution.shape[:2]
        if (height, width) != (factor * low_height, factor * low_width):
            raise BadImageError(
                f"it has {width}x{height} pixels and its low resolution {low_width}x{low_height}, "
                f"where {factor} times as many are needed"
            )
    check_size(image, options.image_size)
    size = height // factor, width // factor
    box = central_box(*size) if uniforms is None else random_box(*size, least, uniforms)
    low = None if low_resolution is None else low_resolution[box[1] : box[3], box[0] : box[2]]
    left, top, right, bottom = (factor * side for side in box)
    high = image[top:bottom, left:right]
    if maps is not None:
        if maps.shape[:2] != (height, width):
            found = f"{maps.shape[1]}x{maps.shape[0]}"
            raise BadImageError(f"it has {width}x{height} pixels, and its maps {found}")
        high = np.concatenate([high, maps[top:bottom, left:right]], axis=-1)
    return Crop(high, low)


def make_pairs(crops: Sequence[Crop], options: DegradeOptions) -> list[Pair]:
    """Makes the pair of each crop; all crops have one type.

    Consecutive crops of one size are resized together, up to `BYTES_TOGETHER`. For small ones that
    takes a third less time, since Python's overhead is paid once.
    """
    sizes = options.image_size, options.low_resolution
    pairs: list[Pair] = []
    kind = lambda crop: (crop.high.shape, crop.low is None)  # noqa: E731
    for (_, low_is_made), group in itertools.groupby(crops, kind):
        if not low_is_made:
            # Copies, so that none keeps its whole picture in memory.
            pairs += [tuple(map(np.array, map(by_area, crop, sizes))) for crop in group]
            continue
        squares = [crop.high for crop in group]
        together = max(1, BYTES_TOGETHER // squares[0].nbytes)
        for i in range(0, len(squares), together):
            stack = np.stack(squares[i : i + together])
            pairs += zip(*make_pair(stack, *sizes, options.downsampling), strict=True)
    return pairs


def _resize(
    images: Num[np.ndarray, "*batch height width channels"],
    size: int | tuple[int, int],
    weights: Callable[[int, int], scipy.sparse.csr_array],
    finish: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels,
) -> Float32[np.ndarray, "*batch new_height new_width channels"]:
    """Resizes the height, then the width, each by a product with a sparse matrix and `finish`.

    That takes less time than TensorFlow's operations, which give the same bytes, and leaves
    Python's lock to other threads while it multiplies. Missing values (NaN) have no weight: the
    others are averaged, and where they have less than half of the weight, the result is missing.
    """
    if images.dtype.kind == "f" and (is_missing := np.isnan(images)).any():
        known = _resize(1.0 - is_missing, size, weights)
        total = _resize(np.where(is_missing, 0.0, images), size, weights)
        enough = known > _LEAST_KNOWN
        return finish(np.where(enough, total / np.where(enough, known, 1.0), np.nan))
    *batch, height, width, channels = images.shape
    new_height, new_width = (size, size) if isinstance(size, int) else size
    count = math.prod(batch)
    rows = np.empty((height, count, width, channels), np.float32)
    rows[:] = images.reshape(count, height, width, channels).swapaxes(0, 1)
    rows = finish(weights(height, new_height) @ rows.reshape(height, count * width * channels))
    # Pixels are transposed as opaque values of all their channels, which is faster.
    pixel = np.dtype((np.void, 4 * channels))
    columns = rows.view(pixel).reshape(new_height * count, width).T
    columns = np.ascontiguousarray(columns).view(np.float32)
    columns = finish(weights(width, new_width) @ columns)
    pixels = columns.view(pixel).reshape(new_width, new_height, count).transpose(2, 1, 0)
    pixels = np.ascontiguousarray(pixels).view(np.float32)
    return pixels.reshape(*batch, new_height, new_width, channels)


@functools.lru_cache(1024)
def _area_weights(size: int, new_size: int) -> scipy.sparse.csr_array:
    """Returns the share [new_size, size] of input pixels in the footprints of output pixels."""
    edges = np.arange(new_size + 1) * (size / new_size)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    overlap = np.maximum(overlap, 0.0)
    overlap /= overlap.sum(axis=1, keepdims=True)
    return scipy.sparse.csr_array(overlap.astype(np.float32))


_bicubic_weights = functools.lru_cache(1024)(bicubic_weights)
_mirrored_weights = functools.lru_cache(64)(functools.partial(bicubic_weights, is_mirrored=True))
