"""A picture in memory: its pixels, and everything that its file says about it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8, UInt16

from sr3_jax.data.image_files.tiff import Value

Pixels = UInt8[np.ndarray, "height width 3"] | UInt16[np.ndarray, "height width 3"]
Alpha = UInt8[np.ndarray, "height width"] | UInt16[np.ndarray, "height width"]

_ROWS = 256  # composited at once, so that memory is bounded

# Tags of GeoTIFF (OGC 19-008r4), which place pixels on the ground, and GDAL's own.
PIXEL_SCALE, TIEPOINTS, TRANSFORMATION, GEO_KEYS = 33550, 33922, 34264, 34735
GEO_TAGS = (PIXEL_SCALE, TIEPOINTS, TRANSFORMATION, GEO_KEYS, 34736, 34737, 42112, 42113)
_RASTER_TYPE, _PIXEL_IS_POINT = 1025, 2


class Density(NamedTuple):
    """Pixels per unit of length on paper; `x` and `y` without unit give the shape of a pixel."""

    x: float
    y: float
    unit: Literal["inch", "cm", ""]

    def per_metre(self) -> tuple[int, int]:
        """Converts to pixels per metre, as in PNG; without a unit, to integers of this ratio."""
        factor = {"inch": 1 / 0.0254, "cm": 100.0, "": 1.0}[self.unit]
        return round(self.x * factor), round(self.y * factor)


@dataclasses.dataclass(frozen=True)
class Metadata:
    """Metadata of a picture beside colour profile and EXIF.

    Attributes:
      density: pixels per unit of length.
      xmp: the XMP packet, with orientation 1.
      iptc: the records of IPTC-IIM.
      comments: those of JPEG and GIF.
      png_chunks: type and content of PNG's texts, time, and colours other than a profile.
      geo: tags of GeoTIFF.
    """

    density: Density | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    comments: tuple[bytes, ...] = ()
    png_chunks: tuple[tuple[bytes, bytes], ...] = ()
    geo: tuple[Value, ...] = ()


@dataclasses.dataclass(frozen=True)
class Picture:
    """The content of a picture file, upright.

    Attributes:
      pixels: RGB. The three channels of a grey picture share their memory: it is read-only.
      alpha: opacity, of the type of `pixels`; 0 is transparent. None if the file has no alpha.
      is_grey: the file has one channel of colour, which `pixels` repeats.
      icc_profile: colour profile of RGB, or of grey if `is_grey`.
      exif: EXIF without orientation, size and thumbnail. It begins with `Exif` and two zeros, as
        in Pillow.
      metadata: other metadata.
      is_lossless: the file keeps every pixel. False if its format does not show it.
      notes: parts of the file that are not kept, or are changed, in plain words.
    """

    pixels: Pixels
    alpha: Alpha | None = None
    is_grey: bool = False
    icc_profile: bytes | None = None
    exif: bytes | None = None
    metadata: Metadata = Metadata()  # noqa: RUF009  (frozen)
    is_lossless: bool = False
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if self.alpha is not None and self.alpha.dtype != self.pixels.dtype:
            raise ValueError(
                f"alpha is {self.alpha.dtype} and pixels are {self.pixels.dtype}; give one type"
            )

    def scaled(self, pixels: Pixels, alpha: Alpha | None, scale: int | float) -> Picture:
        """Returns the picture with pixels of `scale` times the width and height.

        A georeference keeps the corners where they are on the ground. The density stays, so that
        the picture is printed larger.
        """
        metadata = dataclasses.replace(self.metadata, geo=scaled_geo(self.metadata.geo, scale))
        return dataclasses.replace(self, pixels=pixels, alpha=alpha, metadata=metadata)


@dataclasses.dataclass
class FileMetadata:
    """The metadata of a file, with the attributes of `Picture`.

    Attributes:
      icc_profile: colour profile; it may be one for other pixels.
      orientation: how the pixels are stored, 1 to 8 as in EXIF.
    """

    icc_profile: bytes | None = None
    exif: bytes | None = None
    metadata: Metadata = Metadata()  # noqa: RUF009  (frozen)
    is_lossless: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)
    orientation: int = 1

    def add(self, **parts: Any) -> None:
        """Sets attributes of `metadata`."""
        self.metadata = dataclasses.replace(self.metadata, **parts)


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


def rgb(picture: Picture) -> Pixels:
    """Composites transparency over white: the pixels that networks and scores see."""
    pixels, alpha = picture.pixels, picture.alpha
    if alpha is None:
        return pixels
    white = int(np.iinfo(pixels.dtype).max)
    made = np.empty(pixels.shape, pixels.dtype)
    for top in range(0, len(made), _ROWS):
        rows = slice(top, top + _ROWS)
        # Integers below white squared, which fit into 32 bits.
        share = alpha[rows, :, np.newaxis].astype(np.uint32)
        made[rows] = (pixels[rows] * share + white * (white - share) + white // 2) // white
    return made


def to_8_bits(pixels: Shaped[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Rounds 16-bit pixels to the nearest of 256 levels; 8-bit pixels stay as they are."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype != np.uint16:
        raise ValueError(f"pixels are {pixels.dtype}; give uint8 or uint16")
    # 257 = 65535 / 255. In integers, since float64 would take four times the memory.
    return ((pixels + np.uint32(128)) // np.uint32(257)).astype(np.uint8)


def fill_transparent(picture: Picture) -> Pixels:
    """Gives pixels of alpha 0 the colour of the nearest visible pixel.

    Else colours that nobody sees would bleed into edges when the picture is upscaled. A picture
    without visible pixels stays as it is.
    """
    if picture.alpha is None or picture.alpha.all() or not picture.alpha.any():
        return picture.pixels
    import scipy.ndimage  # late: it takes a quarter of a second, and few pictures need it

    rows, columns = scipy.ndimage.distance_transform_edt(
        picture.alpha == 0, return_distances=False, return_indices=True
    )
    return picture.pixels[rows, columns]


def scaled_geo(geo: tuple[Value, ...], scale: int | float) -> tuple[Value, ...]:
    """Returns tags of GeoTIFF for `scale` times as many pixels on the same ground."""
    keys = next((value.content for value in geo if value.tag == GEO_KEYS), ())
    entries = [keys[i : i + 4] for i in range(4, len(keys), 4)]
    # Integer coordinates are the centres of pixels, or else their corners.
    centre = 0.5 if any(e[0] == _RASTER_TYPE and e[3] == _PIXEL_IS_POINT for e in entries) else 0.0
    shift = (centre / scale) - centre
    made = []
    for value in geo:
        is_place = value.tag in (PIXEL_SCALE, TIEPOINTS, TRANSFORMATION)
        numbers = list(value.content) if is_place else []
        if value.tag == PIXEL_SCALE:
            numbers[:2] = [size / scale for size in numbers[:2]]
        elif value.tag == TIEPOINTS:  # column, row, depth, and x, y, z on the ground
            for i in (i for i in range(len(numbers)) if i % 6 < 2):
                numbers[i] = (numbers[i] + centre) * scale - centre
        elif value.tag == TRANSFORMATION:  # a matrix, row by row
            for i in range(0, len(numbers), 4):
                numbers[i + 3] += (numbers[i] + numbers[i + 1]) * shift
                numbers[i : i + 2] = [number / scale for number in numbers[i : i + 2]]
        made.append(value._replace(kind="d", content=tuple(numbers)) if is_place else value)
    return tuple(made)
