"""From an image to a (high resolution, low resolution) pair of images of its own depth.

Crop first, then make both sizes from the same crop: resizing and cropping the two sizes separately
shifts them against each other (1.9 high-resolution pixels on a 500x375 image at 64 to 256). As in
SR3, the crop is resized by area and rounded; the low resolution is that, reduced by bicubic with
anti-aliasing and rounded, too, as real inputs are. Pixels are uint8, or uint16 for 16-bit pictures.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
import scipy.sparse
from jaxtyping import Float, Float32, Int, Num, UInt
from numpy.typing import DTypeLike

from sr3_jax.data.picture import BadImageError, Box

# What makes the low resolution: both are bicubic, see `resize_bicubic` and `resize_as_matlab`.
Downsampling = Literal["pillow", "matlab"]

# Of small crops that are resized in one go.
BYTES_TOGETHER = 1 << 18

# High and low resolution of one square of a picture.
Pair = tuple[
    UInt[np.ndarray, "*batch image_size image_size 3"],
    UInt[np.ndarray, "*batch low_resolution low_resolution 3"],
]


class Crop(NamedTuple):
    """A square of a picture, not resized yet.

    Attributes:
        high: a view of the picture.
        low: the same square as another camera, or another method, took it; None to make it.
    """

    high: UInt[np.ndarray, "side side 3"]
    low: UInt[np.ndarray, "low_side low_side 3"] | None


class TooSmallError(BadImageError):
    """The image's shorter side is below the size wanted."""


@dataclasses.dataclass(frozen=True)
class DegradeOptions:
    """How one image becomes a pair.

    Attributes:
        image_size: side of the square high-resolution image, in pixels.
        low_resolution: side of the low-resolution image; divides `image_size`. 0: it has no pixel.
        crop: "central" for the largest central square, "random" for a square of random side
            (log-uniform) and place.
        crop_scale: (smallest, largest) side of a random crop as a share of the image's shorter
            side. The side is never below `image_size`, so nothing is enlarged.
        downsampling: how the low resolution is made.
    """

    image_size: int
    low_resolution: int
    crop: Literal["central", "random"] = "central"
    crop_scale: tuple[float, float] = (0.0, 1.0)
    downsampling: Downsampling = "pillow"

    def __post_init__(self) -> None:
        """Checks the values.

        Raises:
            ValueError: naming the value found and those allowed.
        """
        sizes = f"image_size is {self.image_size} and low_resolution {self.low_resolution}"
        if self.image_size < 1 or self.low_resolution < 0:
            raise ValueError(f"{sizes}; both must be at least 1, or low_resolution 0 for none")
        if self.low_resolution and self.image_size % self.low_resolution:
            raise ValueError(f"{sizes}; image_size must be a multiple of low_resolution")
        if self.crop not in ("central", "random"):
            raise ValueError(f"crop is {self.crop!r}; it must be 'central' or 'random'")
        if self.downsampling not in get_args(Downsampling):
            raise ValueError(
                f"downsampling is {self.downsampling!r}; it must be 'pillow' or 'matlab'"
            )
        smallest, largest = self.crop_scale
        if not 0 <= smallest <= largest <= 1 or largest == 0:
            raise ValueError(
                f"crop_scale is {self.crop_scale}; it must be (smallest, largest) with "
                "0 <= smallest <= largest <= 1 and largest above 0"
            )


def check_size(image: UInt[np.ndarray, "height width 3"], image_size: int) -> None:
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
    image: Num[np.ndarray, "*batch height width channels"], size: int
) -> Float32[np.ndarray, "*batch size size channels"]:
    """Resizes to `size` pixels square by area: each output pixel is the mean over its footprint.

    Not rounded; the range is the input's.
    """
    return _resize(image, size, _area_weights)


def resize_bicubic(
    image: Num[np.ndarray, "*batch height width channels"], size: int
) -> Float32[np.ndarray, "*batch size size channels"]:
    """Resizes to `size` pixels square by bicubic (Keys, a = -0.5).

    As Pillow and TensorFlow do of floats: anti-aliased where it shrinks, which makes the kernel as
    much wider, and the kernel is cut off at the image's borders. Neither rounded nor clipped:
    bicubic overshoots the input's range at edges.
    """
    return _resize(image, size, _bicubic_weights)


def resize_as_matlab(
    image: UInt[np.ndarray, "*batch height width channels"], size: int
) -> UInt[np.ndarray, "*batch size size channels"]:
    """Resizes to `size` pixels square as MATLAB's `imresize`, by which benchmarks are made.

    The kernel is that of `resize_bicubic`, but at its borders the image is mirrored, and what the
    first direction (the height) gives is rounded (halves upwards) and clipped as well.
    """
    largest = np.iinfo(image.dtype).max
    rounded = lambda pixels: np.clip(np.floor(pixels + 0.5), 0, largest)  # noqa: E731
    return _resize(image, size, _mirrored_bicubic_weights, rounded).astype(image.dtype)


def to_levels(image: Float[np.ndarray, "*shape"], dtype: DTypeLike) -> UInt[np.ndarray, "*shape"]:
    """Rounds to the nearest integer (halves to even) and clips to the range of uint8 or uint16."""
    return np.clip(np.rint(image), 0.0, np.iinfo(dtype).max).astype(dtype)


def by_area(
    crop: UInt[np.ndarray, "*batch side side 3"], size: int
) -> UInt[np.ndarray, "*batch size size 3"]:
    """A crop to `size` pixels, rounded to its own type; one of that size as it is."""
    return crop if crop.shape[-2] == size else to_levels(resize_area(crop, size), crop.dtype)


def make_pair(
    crop: UInt[np.ndarray, "*batch side side 3"],
    image_size: int,
    low_resolution: int,
    downsampling: Downsampling = "pillow",
) -> Pair:
    """Makes the pair from a square crop, or several.

    Returns:
        The high and the low resolution, which cover the same square of the picture.
    """
    high_resolution = by_area(crop, image_size)
    if not low_resolution:
        return high_resolution, np.zeros((*high_resolution.shape[:-3], 0, 0, 3), crop.dtype)
    if downsampling == "matlab":
        return high_resolution, resize_as_matlab(high_resolution, low_resolution)
    low = resize_bicubic(high_resolution, low_resolution)
    return high_resolution, to_levels(low, crop.dtype)


def cut(
    image: UInt[np.ndarray, "height width 3"],
    low_resolution: UInt[np.ndarray, "low_height low_width 3"] | None,
    options: DegradeOptions,
    uniforms: Num[np.ndarray, "3"] | None,
) -> Crop:
    """Cuts out what a pair is made of; `make_pairs` does the rest.

    Args:
        image: the picture.
        low_resolution: the same picture, smaller by the factor of `options`; None to make it. The
            crop then lies on whole pixels of both, and both are resized by area where it is
            larger than what is wanted.
        options: sizes.
        uniforms: see `random_box`; None for the largest central square.

    Raises:
        BadImageError: the image is too small, or `low_resolution` is of another size.
    """
    height, width = image.shape[:2]
    if low_resolution is None:
        check_size(image, options.image_size)
        left, top, right, bottom = _box(height, width, options, uniforms)
        return Crop(image[top:bottom, left:right], None)
    if not options.low_resolution:
        raise ValueError("low_resolution is 0, but the images come with low resolutions")
    factor = options.image_size // options.low_resolution
    low_height, low_width = low_resolution.shape[:2]
    if (height, width) != (factor * low_height, factor * low_width):
        raise BadImageError(
            f"it has {width}x{height} pixels and its low resolution {low_width}x{low_height}, "
            f"where {factor} times as many are needed"
        )
    check_size(image, options.image_size)
    in_low = dataclasses.replace(options, image_size=options.low_resolution)
    left, top, right, bottom = _box(low_height, low_width, in_low, uniforms)
    low = low_resolution[top:bottom, left:right]
    return Crop(image[factor * top : factor * bottom, factor * left : factor * right], low)


def make_pairs(crops: Sequence[Crop], options: DegradeOptions) -> list[Pair]:
    """Makes the pair of each crop; all are of one type.

    Neighbours of one size are resized together as far as `BYTES_TOGETHER` goes, which for small
    ones takes a third less: Python's share is paid once.
    """
    sizes = options.image_size, options.low_resolution
    pairs: list[Pair] = []
    for (_, low_is_made), group in itertools.groupby(
        crops, lambda crop: (crop.high.shape, crop.low is None)
    ):
        if low_is_made:
            squares = [crop.high for crop in group]
            together = max(1, BYTES_TOGETHER // squares[0].nbytes)
            for i in range(0, len(squares), together):
                stack = np.stack(squares[i : i + together])
                pairs += zip(*make_pair(stack, *sizes, options.downsampling), strict=True)
        else:
            # Copies, so that none keeps its whole picture in memory.
            pairs += [tuple(map(np.array, map(by_area, crop, sizes))) for crop in group]
    return pairs


def _box(
    height: int, width: int, options: DegradeOptions, uniforms: Num[np.ndarray, "3"] | None
) -> Box:
    if uniforms is None:
        return central_box(height, width)
    return random_box(height, width, options, uniforms)


def _resize(
    images: Num[np.ndarray, "*batch height width channels"],
    size: int,
    weights: Callable[[int, int], scipy.sparse.csr_array],
    finish: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels,
) -> Float32[np.ndarray, "*batch size size channels"]:
    """Height, then width, each by a product with a sparse matrix, and finished.

    That takes less time than TensorFlow's two operations, which give the same bytes, and leaves
    Python's lock to other threads while it multiplies.
    """
    *batch, height, width, channels = images.shape
    count = math.prod(batch)
    rows = np.empty((height, count, width, channels), np.float32)
    rows[:] = images.reshape(count, height, width, channels).swapaxes(0, 1)
    rows = finish(weights(height, size) @ rows.reshape(height, count * width * channels))
    # Whole pixels change places in one piece.
    pixel = np.dtype((np.void, 4 * channels))
    columns = rows.view(pixel).reshape(size * count, width).T
    columns = np.ascontiguousarray(columns).view(np.float32)
    columns = finish(weights(width, size) @ columns)
    pixels = columns.view(pixel).reshape(size, size, count).transpose(2, 1, 0)
    return np.ascontiguousarray(pixels).view(np.float32).reshape(*batch, size, size, channels)


@functools.lru_cache(1024)
def _area_weights(size: int, new_size: int) -> scipy.sparse.csr_array:
    """[new_size, size]: the share of each input pixel in the footprint of each output pixel."""
    edges = np.arange(new_size + 1) * (size / new_size)
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return _normalised(np.maximum(overlap, 0.0))


@functools.lru_cache(1024)
def _bicubic_weights(size: int, new_size: int) -> scipy.sparse.csr_array:
    """[new_size, size]: Keys' kernel around the centre of each output pixel, cut off at edges."""
    return _normalised(_keys(np.arange(size), size, new_size))


@functools.lru_cache(64)
def _mirrored_bicubic_weights(size: int, new_size: int) -> scipy.sparse.csr_array:
    """The same of an image that is mirrored at its edges, the outermost pixels with it."""
    # The kernel reaches two output pixels, or two input pixels where it enlarges.
    reach = math.ceil(2 * max(size / new_size, 1.0))
    pixels = np.arange(-reach, size + reach)
    weights = np.zeros((new_size, size))
    # In two lengths of the image, it and its mirror image follow each other for ever.
    place = pixels % (2 * size)
    place = np.minimum(place, 2 * size - 1 - place)
    np.add.at(weights, (slice(None), place), _keys(pixels, size, new_size))
    return _normalised(weights)


def _keys(
    pixels: Int[np.ndarray, " pixels"], size: int, new_size: int
) -> Float[np.ndarray, "{new_size} pixels"]:
    """Keys' kernel (a = -0.5) around the centre of each output pixel, at the input's pixels."""
    scale = max(size / new_size, 1.0)
    centres = (np.arange(new_size) + 0.5) * (size / new_size)
    x = np.abs(pixels + 0.5 - centres[:, None]) / scale
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


def _normalised(weights: Float[np.ndarray, "new_size size"]) -> scipy.sparse.csr_array:
    weights = weights / weights.sum(axis=1, keepdims=True)
    return scipy.sparse.csr_array(weights.astype(np.float32))
