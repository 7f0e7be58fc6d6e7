"""From an image to a (high resolution, low resolution) pair of images at its own depth.

Both sizes are made from one crop: resizing and cropping each shifts them against each other (1.9
high-resolution pixels on a 500x375 image at 64 to 256). As in SR3, the crop is resized by area and
rounded. Bicubic with anti-aliasing reduces that to the low resolution, which is rounded, too, as
real inputs are. Pixels are uint8 or uint16. Other numbers are float32, are not rounded, and are NaN
where they are missing.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse
from jaxtyping import Float, Float32, Num, UInt
from numpy.typing import DTypeLike

from sr3_jax.data import degradations
from sr3_jax.data.image_files import BadImageError
from sr3_jax.data.windows import DegradeOptions, Downsampling, choose_boxes
from sr3_jax.sizes import Size, sides

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
    """Cuts out the window of a picture; see `choose_boxes`. `maps` are cut as the picture is.

    Raises:
      BadImageError: the image is too small, or `low_resolution` or `maps` have another size.
    """
    height, width = image.shape[:2]
    low = low_resolution
    boxes = choose_boxes((height, width), None if low is None else low.shape[:2], options, uniforms)
    left, top, right, bottom = boxes.high
    high = image[top:bottom, left:right]
    if maps is not None:
        if maps.shape[:2] != (height, width):
            found = f"{maps.shape[1]}x{maps.shape[0]}"
            raise BadImageError(f"it has {width}x{height} pixels, and its maps {found}")
        high = np.concatenate([high, maps[top:bottom, left:right]], axis=-1)
    if low is not None:
        left, top, right, bottom = boxes.low
        low = low[top:bottom, left:right]
    return Crop(high, low, boxes.loss)


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
