"""Depth of pixels: 8 or 16 bits a channel, and the value that means white."""

import collections
import functools
import itertools
import threading
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging
from jaxtyping import Float32, Num, UInt, UInt8, UInt16
from numpy.typing import DTypeLike

from sr3_jax.data import sources
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


class Reader:
    """Reads the pictures of a source at one depth; thread-safe.

    Losses of pictures are counted, each picture once, and each kind of loss is logged once, with
    the name of the first picture.
    """

    def __init__(
        self, source: sources.Source, dtype: DTypeLike | None = None, white_level: int = 0
    ) -> None:
        """Reads nothing yet; `dtype` None is that of the first picture that can be read."""
        self._source, self._given_dtype, self._white_level = source, dtype, white_level
        self._lock = threading.Lock()  # of the fields below
        self._is_met = np.zeros(len(source), bool)
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

    def read(self, index: int) -> sources.Picture:
        """Reads one picture; see `sources.ImageRef`."""
        try:
            picture = self._source[index].read()
        except BadImageError:
            self._count(index, (), [])
            raise
        images = {"image": picture.image}
        if picture.low_resolution is not None:
            images["low_resolution"] = picture.low_resolution
        if not self._is_met[index]:
            self._count(index, picture.notes, list(images.values()))
        converted = {n: convert(p, self.dtype, self._white_level) for n, p in images.items()}
        return picture._replace(**converted)

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


@functools.lru_cache(4)
def _table(dtype: np.dtype, white_level: int) -> UInt[np.ndarray, "65536"]:
    """Returns the converted value of each 16-bit value."""
    share = np.minimum(np.arange(65536), white_level) / white_level
    return np.rint(share * np.iinfo(dtype).max).astype(dtype)
