"""A picture file whose header and metadata are read, but not its pixels."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Shaped

from sr3_jax.data.image_files.metadata import FileMetadata


class Opened(NamedTuple):
    """A picture file that can be decoded.

    Attributes:
        size: width and height as stored, in pixels.
        bands: number of colours and alpha; CMYK counts as the RGB that it becomes.
        bits: depth of a decoded band, 8 or 16.
        decode: decodes the pixels as stored: grey or RGB, then alpha.
        kept: metadata of the file.
    """

    size: tuple[int, int]
    bands: int
    bits: int
    decode: Callable[[], Shaped[np.ndarray, "height width *bands"]]
    kept: FileMetadata

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height and width of the upright picture in pixels, and bands."""
        upright = self.size if self.kept.orientation >= 5 else self.size[::-1]
        return (*upright, self.bands)

    @property
    def bytes_decoded(self) -> int:
        """Size of the decoded pixels in bytes; decoding takes about three times that."""
        return math.prod(self.shape) * self.bits // 8
