"""TIFF of any number of bands and any type of number, with the tags of GeoTIFF (tifffile)."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from sr3_jax.data import storage
from sr3_jax.data.arrays import base
from sr3_jax.data.image_files import GEO_TAGS, TagValue, decoder_errors, scaled_geo

_NODATA = 42113  # of GDAL: a number as text
_KEPT = (270, 305, 306, 315)  # description, software, date, artist


class TiffFile(base.ArrayFile):
    """The first series of a TIFF file: an image whose bands lie in one page or in a page each."""

    def __init__(
        self, path: str | os.PathLike[str], channels: int | None, variables: Sequence[str]
    ) -> None:
        """Reads the tags; see `arrays.open_file`."""
        import tifffile  # late: it takes a tenth of a second

        self._content = storage.read(path)
        with decoder_errors("no TIFF"):
            with tifffile.TiffFile(io.BytesIO(self._content)) as file:
                series, page = file.series[0], file.pages.first
                shape = tuple(
                    n
                    for n, axis in zip(series.shape, series.axes, strict=True)
                    if n > 1 or axis in "YX"
                )
                self._is_planar = page.planarconfig == 2 or len(file.pages) > 1
                self._photometric = int(page.photometric)
                self._compression = int(page.compression)
                self._tags = {tag.code: tag for tag in page.tags if tag.code in (*GEO_TAGS, *_KEPT)}
                self._values = {code: tag.value for code, tag in self._tags.items()}
                dtype = series.dtype
        if channels is None and len(shape) == 3 and self._is_planar:
            channels = shape[0]
        shape, self._is_first = base.channels_last(shape, channels)
        self._set(shape, dtype)
        if _NODATA in self._values:
            self.nodata = _number(self._values[_NODATA])

    def __len__(self) -> int:
        return 1

    def read(self, index: int = 0) -> base.Values:
        import tifffile

        with decoder_errors():
            array = tifffile.imread(io.BytesIO(self._content))
        array = np.squeeze(array) if array.ndim > 3 else array
        array = np.moveaxis(array, 0, -1) if self._is_first else array.reshape(self.shape)
        return base.with_missing(array, self.nodata)

    def _write(self, path: base.Path, images: Sequence[base.Values], factor: int | float) -> None:
        import tifffile

        (image,) = (base.as_stored(image, self.dtype, self.nodata) for image in images)
        if self._is_first:
            image = np.moveaxis(image, -1, 0)
        elif self.shape[2] == 1:
            image = image[..., 0]
        file = io.BytesIO()
        tifffile.imwrite(
            file,
            np.ascontiguousarray(image),
            photometric="rgb" if self._photometric == 2 else "minisblack",
            planarconfig="separate" if self._is_first else "contig" if image.ndim == 3 else None,
            compression=None if self._compression == 1 else "zlib",
            metadata=None,
            software=False,
            extratags=self._extra(factor),
        )
        storage.write_whole(path, file.getvalue())

    def _extra(self, factor: int | float) -> list[tuple[Any, ...]]:
        """Returns the tags to be written, those of places for so many times the pixels."""
        geo = [
            TagValue(code, "d", _tuple(value))
            for code, value in self._values.items()
            if code in GEO_TAGS and not isinstance(value, str)
        ]
        scaled = {value.tag: value.content for value in scaled_geo(tuple(geo), factor)}
        return [
            (code, self._tags[code].dtype, 0 if text else len(content), content, True)
            for code, value in self._values.items()
            for text in (isinstance(value, str),)
            for content in (value if text else scaled.get(code, _tuple(value)),)
        ]


def _tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple | list | np.ndarray) else (value,)


def _number(text: str) -> float | None:
    try:
        return float(str(text).strip().strip("\0"))
    except ValueError:
        return None
