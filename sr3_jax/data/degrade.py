"""From an image to a (high resolution, low resolution) pair of images at its own depth.

Both sizes are made from one crop: resizing and cropping each shifts them against each other (1.9
high-resolution pixels on a 500x375 image at 64 to 256). As in SR3, the crop is resized by area and
rounded. Bicubic with anti-aliasing reduces that to the low resolution, which is rounded, too, as
real inputs are. Pixels are uint8 or uint16. Other numbers are float32, are not rounded, and are NaN
where they are missing.
"""

import dataclasses
import fractions
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float, Float32, Num, UInt
from numpy.typing import DTypeLike

from sr3_jax.data import degradations
from sr3_jax.data.image_files import BadImageError, Box
from sr3_jax.sizes import Size, sides

# The method that makes the low resolution, `resize_bicubic` or `resize_as_matlab`.
Downsampling = Literal["pillow", "matlab"]

# Least weight of known values for a pixel that is not missing.
_LEAST_KNOWN = 0.5

BYTES_TOGETHER = 1 << 18  # most bytes of small crops that are resized together

# High and low resolution of one window of a picture.
Pair = tuple[
    Num[np.ndarray, "*batch height width c"],
    Num[np.ndarray, "*batch low_height low_width c"],
]


class Crop(NamedTuple):
    """A window of a picture, not resized yet; `low` is None if it is made from `high`.

    The last channels of `high` are those of maps, if there are any.
    """

    high: Num[np.ndarray, "side_1 side_2 c"]
    low: Num[np.ndarray, "low_side_1 low_side_2 d"] | None
    loss: str = ""  # what is left out of the picture because of its low resolution


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
    (height, width), least = image.shape[:2], sides(image_size)
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


def resize_area(
    image: Num[np.ndarray, "*batch height width channels"], size: Size
) -> Float32[np.ndarray, "*batch new_height new_width channels"]:
    """Resizes by area, without rounding: the mean over the footprint of each pixel."""
    return _resize(image, size, _area_weights)


def resize_bicubic(
    image: Num[np.ndarray, "*batch height width channels"], size: Size
) -> Float32[np.ndarray, "*batch new_height new_width channels"]:
    """Resizes by bicubic (Keys, a = -0.5), as Pillow and TensorFlow.

    `size` is the new height and width, or one number for both. Shrinking is anti-aliased. The
    result is neither rounded nor clipped: bicubic overshoots at edges. See `bicubic_weights`.
    """
    return _resize(image, size, _bicubic_weights)


def resize_as_matlab(
    image: UInt[np.ndarray, "*batch height width channels"], size: Size
) -> UInt[np.ndarray, "*batch new_height new_width channels"]:
    """Resizes as MATLAB's `imresize`, which most benchmarks use.

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
    crop: Num[np.ndarray, "*batch side_1 side_2 c"], size: Size
) -> Num[np.ndarray, "*batch new_height new_width c"]:
    """Resizes a crop by area, rounded to its own type."""
    is_right = crop.shape[-3:-1] == sides(size)
    return crop if is_right else to_levels(resize_area(crop, size), crop.dtype)


def make_pair(
    crop: Num[np.ndarray, "*batch side_1 side_2 c"],
    image_size: Size,
    low_resolution: Size,
    downsampling: Downsampling = "pillow",
) -> Pair:
    """Makes high and low resolution, which cover the same window, from one or several crops."""
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
    """Cuts out the window that `make_pairs` makes a pair of.

    Args:
      image: the picture.
      low_resolution: the same picture, smaller by the ratio of `options`; None to make it. The
        crop lies on whole pixels of both. What either has more than the other, less than one of
        `low_resolution`'s pixels, is left out at the bottom and on the right.
      options: sizes.
      uniforms: see `random_box`; None for the largest central window.
      maps: further channels of the picture, which are cut as it is.

    Raises:
      BadImageError: the image is too small, or `low_resolution` or `maps` have another size.
    """
    height, width = image.shape[:2]
    of_low, of_high, cells = 1, 1, options
    size, loss = (height, width), ""
    if low_resolution is not None:
        if not options.low_resolution:
            raise ValueError("low_resolution is 0, but the images come with low resolutions")
        # Boxes are counted in the least cells that are whole pixels of both.
        of_high, of_low = options.ratio.as_integer_ratio()
        least = tuple(-(-n // of_low) for n in sides(options.low_resolution))
        cells = dataclasses.replace(options, image_size=least)
        low_size = low_resolution.shape[:2]
        _check_ratio(size, low_size, options.ratio)
        size = tuple(
            min(n // of_high, n_low // of_low) for n, n_low in zip(size, low_size, strict=True)
        )
        used = tuple((of_high * n, of_low * n) for n in size)
        if used != ((height, low_size[0]), (width, low_size[1])):
            loss = "it and its low resolution differ by a part of a pixel, which is left out"
        check_size(low_resolution, options.low_resolution)
    check_size(image, options.image_size)
    if uniforms is None and options.crop == "random" and options.crop_scale[1] == 0:
        box = _in_the_middle(*size, sides(cells.image_size))
    elif uniforms is None:
        box = central_box(*size, cells.image_size)
    else:
        box = random_box(*size, cells, uniforms)
    low = low_resolution
    if low is not None:
        left, top, right, bottom = (of_low * side for side in box)
        low = low[top:bottom, left:right]
    left, top, right, bottom = (of_high * side for side in box)
    high = image[top:bottom, left:right]
    if maps is not None:
        if maps.shape[:2] != (height, width):
            found = f"{maps.shape[1]}x{maps.shape[0]}"
            raise BadImageError(f"it has {width}x{height} pixels, and its maps {found}")
        high = np.concatenate([high, maps[top:bottom, left:right]], axis=-1)
    return Crop(high, low, loss)


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


def make_pairs(
    crops: Sequence[Crop],
    options: DegradeOptions,
    drawn: Sequence[degradations.Drawn | None] | None = None,
) -> list[Pair]:
    """Makes the pair of each crop; all crops have one type.

    `drawn` has the degradation of each low resolution; None for bicubic alone.
    Consecutive crops of one size are resized together, up to `BYTES_TOGETHER`. For small ones that
    takes a third less time, since Python's overhead is paid once.
    """
    sizes = options.image_size, options.low_resolution
    pairs: list[Pair] = []
    if drawn is not None:
        for crop, how in zip(crops, drawn, strict=True):
            high, low = make_pair(crop.high, *sizes, options.downsampling)
            if how is not None:
                low = degradations.degraded(high, low.shape[:2], how)
            pairs.append((high, low))
        return pairs
    kind = lambda crop: (crop.high.shape, crop.low is None)  # noqa: E731
    for (_, low_is_made), group in itertools.groupby(crops, kind):
        if not low_is_made:
            # Copies, so that none keeps its whole picture in memory.
            pairs += [tuple(map(np.array, map(by_area, crop, sizes))) for crop in group]
            continue
        windows = [crop.high for crop in group]
        together = max(1, BYTES_TOGETHER // windows[0].nbytes)
        for i in range(0, len(windows), together):
            stack = np.stack(windows[i : i + together])
            pairs += zip(*make_pair(stack, *sizes, options.downsampling), strict=True)
    return pairs


def _resize(
    images: Num[np.ndarray, "*batch height width channels"],
    size: Size,
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
    new_height, new_width = sides(size)
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
