"""Depth and channels of pixels: 8 or 16 bits, the value that means white, or other numbers."""

import collections
import functools
import itertools
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Float32, Num, UInt, UInt8, UInt16
from numpy.typing import DTypeLike

from sr3_jax.data import image_files, sources
from sr3_jax.data.image_files import BadImageError

# 16-bit pictures whose values are all below this probably hold 14 bits or fewer.
SMALL_PART = 1 << 14
_MOST_TRIED = 1000  # pictures that are read to find a usable one
_MANY = 100  # pictures after which the range of values is judged, since a single one may be dark


def convert(
    pixels: Num[np.ndarray, "*shape"], dtype: DTypeLike, white_level: int = 0
) -> UInt8[np.ndarray, "*shape"] | UInt16[np.ndarray, "*shape"] | Float32[np.ndarray, "*shape"]:
    """Converts pixels to uint8 or uint16; 0 stays 0, and white becomes the largest value.

    8 bits become 16 exactly, times 257. 16 bits are rounded to the nearest value. As float32 they
    keep their values, as other numbers do.

    Args:
      pixels: uint8 or uint16; other numbers for float32.
      dtype: uint8, uint16 or float32.
      white_level: value of 16-bit pixels that means white; brighter ones are clipped. 0: 65535.
    """
    if np.dtype(dtype) == np.float32:
        return pixels.astype(np.float32, copy=False)
    if pixels.dtype not in (np.uint8, np.uint16):
        raise BadImageError(f"its values are {pixels.dtype}; set config.data.dtype=float32")
    if pixels.dtype == np.uint8:
        return pixels if dtype == np.uint8 else pixels.astype(np.uint16) * np.uint16(257)
    if dtype == np.uint16 and white_level in (0, 65535):
        return pixels
    return _table(np.dtype(dtype), white_level or 65535)[pixels]


class Channels(NamedTuple):
    """The channels that images have.

    Attributes:
      image, source, maps: number of channels of high and low resolutions and of maps; the low
        resolution has as many as the high one, or more.
      may_miss: whether values of images may be missing (NaN).
    """

    image: int = 3
    source: int = 3
    maps: int = 0
    may_miss: bool = False


class Reader:
    """Reads the pictures of a source at one depth; thread-safe.

    Pictures of other channels are damaged. Three channels that are equal, of a grey picture, are
    taken as one where one is asked for.

    Losses of pictures are counted, each picture once, and each kind of loss is logged once, with
    the name of the first picture.
    """

    def __init__(
        self,
        source: sources.Source,
        dtype: DTypeLike | None = None,
        white_level: int = 0,
        channels: Channels | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
          source: the pictures.
          dtype: uint8, uint16 or float32; None for that of the first picture that can be read.
          white_level: see `convert`.
          channels: those asked for; None for any.
        """
        self._channels = channels
        self._source, self._given_dtype, self._white_level = source, dtype, white_level
        self._lock = threading.Lock()  # of the fields below
        self._is_met, self._is_cut = np.zeros((2, len(source)), bool)
        self._num_met = 0
        self._losses: collections.Counter[str] = collections.Counter()
        self._largest = 0

    @property
    def dtype(self) -> np.dtype:
        """Type of all pixels. The first call may read a picture."""
        with self._lock:
            return self._dtype

    @functools.cached_property
    def _dtype(self) -> np.dtype:
        if self._given_dtype is not None:
            return np.dtype(self._given_dtype)
        for ref in itertools.islice(self._source, _MOST_TRIED):
            try:
                return ref.read().image.dtype
            except BadImageError:
                continue
        return np.dtype(np.uint8)

    @property
    def losses(self) -> Mapping[str, int]:
        """Number of pictures read so far that have each kind of loss."""
        with self._lock:
            return dict(self._losses)

    @property
    def range_warning(self) -> str:
        """Advice on the white level of the 16-bit pictures read so far; empty if all is well."""
        with self._lock:
            largest = self._largest
        if self._white_level or not 0 < largest < SMALL_PART:
            return ""
        white_level = (1 << largest.bit_length()) - 1
        return (
            f"16-bit values reach {largest} of 65535: set config.data.white_level={white_level} "
            "(65535 keeps them)"
        )

    def read(self, index: int, decode: sources.Decode | None = None) -> sources.Picture:
        """Reads one picture, with the channels asked for; see `sources.ImageRef`.

        Parts that `decode` leaves encoded have 8 bits, and stay so if all parts do.
        """
        ref = self._source[index]
        try:
            picture = ref.read(decode) if decode else ref.read()
        except BadImageError:
            self._count(index, (), [])
            raise
        images = {"image": picture.image}
        if picture.low_resolution is not None:
            images["low_resolution"] = picture.low_resolution
        if all(isinstance(part, image_files.Encoded) for part in images.values()):
            self._count(index, picture.notes, [])
            return picture
        for name, part in images.items():
            if isinstance(part, image_files.Encoded):
                images[name] = image_files.decode_rgb(part.data)
        if not self._is_met[index]:
            self._count(index, picture.notes, list(images.values()))
        converted = {n: convert(p, self.dtype, self._white_level) for n, p in images.items()}
        return self._checked(picture._replace(**converted))

    def count_loss(self, index: int, loss: str) -> None:
        """Counts a loss that is found when a picture is cut, once; an empty one is none."""
        with self._lock:
            if not loss or self._is_cut[index]:
                return
            self._is_cut[index] = True
            self._losses[loss] += 1
            is_new = self._losses[loss] == 1
        if is_new:
            logging.warning("image %s: %s", self._source[index].name, loss)

    def _checked(self, picture: sources.Picture) -> sources.Picture:
        """Returns a picture with the channels asked for; raises BadImageError if it has others."""
        of = self._channels
        if of is None:
            return picture
        # The low resolution is made of the image, unless it has its own.
        image = of.source if picture.low_resolution is None else of.image
        for name, channels in (("image", image), ("low_resolution", of.source), ("maps", of.maps)):
            part = getattr(picture, name)
            if part is None:
                continue
            whose = "it has" if name == "image" else f"its {name.replace('_', ' ')} have"
            if part.shape[-1] != channels:
                is_grey = part.shape[-1] == 3 and (part[..., :1] == part[..., 1:]).all()
                if not (channels == 1 and is_grey):
                    what = "colours" if part.shape[-1] == 3 else f"{part.shape[-1]} channels"
                    raise BadImageError(f"{whose} {what}, and {channels} are asked for")
                picture = picture._replace(**{name: part[..., :1]})
            if part.dtype.kind == "f" and not np.isfinite(part).all():
                fix = "fill them first" if name == "maps" else "set config.data.missing=true"
                _check_missing(part, whose, "" if of.may_miss and name != "maps" else fix)
        return picture

    def _count(self, index: int, notes: Sequence[str], images: Sequence[np.ndarray]) -> None:
        """Counts the losses of a picture that is met for the first time."""
        largest = max((int(p.max()) for p in images if p.dtype == np.uint16), default=0)
        lost = set(notes)
        if self.dtype == np.uint8 and any(p.dtype == np.uint16 for p in images):
            lost.add("16 bits, read at 8; config.data.dtype=uint16 keeps them")
        if 0 < self._white_level < largest:
            lost.add(f"values above config.data.white_level={self._white_level} are clipped")
        with self._lock:
            if self._is_met[index]:
                return  # another thread came first
            self._is_met[index] = True
            self._num_met += 1
            new = sorted(lost - self._losses.keys())
            self._losses.update(lost)
            self._largest = max(self._largest, largest)
            is_judged = self._num_met == min(_MANY, len(self._source))
        for loss in new:
            logging.warning("image %s: %s", self._source[index].name, loss)
        if is_judged and (warning := self.range_warning):
            logging.warning("%s", warning)


def _check_missing(image: np.ndarray, whose: str, fix: str) -> None:
    """Raises BadImageError if values are infinite, all missing, or some, and there is a `fix`."""
    if np.isinf(image).any():
        raise BadImageError(f"{whose} infinite values; store NaN for missing ones")
    if fix:
        raise BadImageError(f"{whose} missing values (NaN); {fix}")
    if np.isnan(image).all():
        raise BadImageError(f"{whose} no value that is not missing")


@functools.lru_cache(4)
def _table(dtype: np.dtype, white_level: int) -> UInt[np.ndarray, "65536"]:
    """Returns the converted value of each 16-bit value."""
    share = np.minimum(np.arange(65536), white_level) / white_level
    return np.rint(share * np.iinfo(dtype).max).astype(dtype)
