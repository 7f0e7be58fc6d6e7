"""A picture in memory, with everything that its file said about it."""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import numpy as np
import scipy.ndimage
from jaxtyping import Shaped, UInt8, UInt16

from sr3_jax.data.picture.tiff import Value

Pixels = UInt8[np.ndarray, "height width 3"] | UInt16[np.ndarray, "height width 3"]

_ROWS = 256  # that are composited at once, so that memory is bounded

# Tags of GeoTIFF (OGC 19-008r4): where pixels lie on the ground, and GDAL's own.
PIXEL_SCALE, TIEPOINTS, TRANSFORMATION, GEO_KEYS = 33550, 33922, 34264, 34735
GEO_TAGS = (PIXEL_SCALE, TIEPOINTS, TRANSFORMATION, GEO_KEYS, 34736, 34737, 42112, 42113)
_RASTER_TYPE, _PIXEL_IS_POINT = 1025, 2


class Density(NamedTuple):
    """Pixels per unit of length on paper.

    Attributes:
        x: horizontally.
        y: vertically.
        unit: of length; "" where `x` and `y` give the shape of a pixel only.
    """

    x: float
    y: float
    unit: Literal["inch", "cm", ""]

    def per_metre(self) -> tuple[int, int]:
        """As PNG has it; without a unit, whole numbers of the same ratio."""
        factor = {"inch": 1 / 0.0254, "cm": 100.0, "": 1.0}[self.unit]
        return round(self.x * factor), round(self.y * factor)


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What a file says of its picture beside profile and EXIF.

    Attributes:
        density: pixels per unit of length.
        xmp: the XMP packet, with orientation 1.
        iptc: the records of IPTC-IIM.
        comments: of JPEG and GIF.
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
    """A picture file's content, upright.

    Attributes:
        pixels: RGB. Of a grey picture the three channels share their memory, so it is read-only.
        alpha: 0 is transparent; of the type of `pixels`. None where the file has no transparency.
        is_grey: the file has one channel of colour, which `pixels` repeats.
        icc_profile: of RGB, or of grey where `is_grey`.
        exif: begins with `Exif` and two zeros, as Pillow has it, and holds neither orientation,
            nor size, nor thumbnail.
        metadata: everything else that stays with the picture.
        is_lossless: the file kept every pixel; a lossy format can then not be told from the file.
        notes: what the file had that is not kept, or is changed, in plain words.
    """

    pixels: Pixels
    alpha: UInt8[np.ndarray, "height width"] | UInt16[np.ndarray, "height width"] | None = None
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

    def scaled(
        self,
        pixels: Pixels,
        alpha: UInt8[np.ndarray, "height width"] | UInt16[np.ndarray, "height width"] | None,
        scale: int | float,
    ) -> Picture:
        """The same picture with more pixels, and all that belongs to it.

        A georeference keeps the corners where they are on the ground. The density stays, so the
        picture is printed larger.

        Args:
            pixels: RGB of the new size.
            alpha: of the new size; None where there is none.
            scale: how many times wider and higher it is.
        """
        metadata = dataclasses.replace(self.metadata, geo=_scaled_geo(self.metadata.geo, scale))
        return dataclasses.replace(self, pixels=pixels, alpha=alpha, metadata=metadata)


def rgb(picture: Picture) -> Pixels:
    """What networks see and scores are computed of: transparency composited over white."""
    pixels, alpha = picture.pixels, picture.alpha
    if alpha is None:
        return pixels
    white = int(np.iinfo(pixels.dtype).max)
    made = np.empty(pixels.shape, pixels.dtype)
    for top in range(0, len(made), _ROWS):
        rows = slice(top, top + _ROWS)
        # Whole numbers below white squared, which 32 bits hold.
        share = alpha[rows, :, np.newaxis].astype(np.uint32)
        made[rows] = (pixels[rows] * share + white * (white - share) + white // 2) // white
    return made


def to_8_bits(
    pixels: Shaped[np.ndarray, "*shape"],
) -> UInt8[np.ndarray, "*shape"]:
    """For consumers of 8 bits: 16 bits to the nearest of 256 levels, 8 bits as they are."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype != np.uint16:
        raise ValueError(f"pixels are {pixels.dtype}; give uint8 or uint16")
    # 257 = 65535 / 255; in whole numbers, since float64 would take four times the memory.
    return ((pixels + np.uint32(128)) // np.uint32(257)).astype(np.uint8)


def fill_transparent(picture: Picture) -> Pixels:
    """The pixels, with the colour of the nearest visible one where alpha is 0.

    Else colours that nobody sees would bleed into edges when the picture is upscaled. Where all is
    transparent, nothing changes.
    """
    if picture.alpha is None or picture.alpha.all() or not picture.alpha.any():
        return picture.pixels
    rows, columns = scipy.ndimage.distance_transform_edt(
        picture.alpha == 0, return_distances=False, return_indices=True
    )
    return picture.pixels[rows, columns]


def _scaled_geo(geo: tuple[Value, ...], scale: int | float) -> tuple[Value, ...]:
    """Tags of GeoTIFF for `scale` times as many pixels on the same ground."""
    keys = next((value.content for value in geo if value.tag == GEO_KEYS), ())
    entries = [keys[i : i + 4] for i in range(4, len(keys), 4)]
    # Whole coordinates mean the centres of pixels, or else their corners.
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
