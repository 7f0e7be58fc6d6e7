"""`ArrayFile`: images of any channels and numbers in a file, and their way back into one."""

from __future__ import annotations

import abc
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Num

from sr3_jax.data.image_files import BadImageError
from sr3_jax.sizes import scaled

Values = Num[np.ndarray, "height width channels"]

_EXACT = {1: np.float32, 2: np.float32}  # floats that hold all integers of so many bytes

Path = str | os.PathLike[str]


class ArrayFile(abc.ABC):
    """One or more images of one size.

    Attributes:
      names: names of the channels; numbers where the file has none.
      units: units of the channels, as the file says them; empty where it does not.
      dtype: type of the stored numbers.
      nodata: the stored number that means a missing value; None where NaN or nothing does.
      shape: height, width and channels.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    dtype: np.dtype
    nodata: float | None = None
    shape: tuple[int, int, int]

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abc.abstractmethod
    def read(self, index: int = 0) -> Values:
        """Returns an image as stored, or where the file has a `nodata`, as float with NaN there.

        Raises:
          BadImageError: it cannot be read.
        """

    def write(
        self,
        path: Path,
        images: Sequence[Values],
        factor: int | float | None = None,
    ) -> None:
        """Writes images in place of those of this file, whole or not at all.

        They are `factor` times as large; with them change whatever says where pixels lie
        (coordinates, georeference, affine). None: a whole number of times. They have the channels
        of this file, or the first of them. NaN is a missing value.

        Raises:
          ValueError: the file's type of numbers has no missing value, and an image has one.
        """
        self._write(path, images, factor_of(images, self.shape, factor))

    @abc.abstractmethod
    def _write(self, path: Path, images: Sequence[Values], factor: int | float) -> None:
        """Writes images that are `factor` times as large; see `write`."""

    def _set(
        self, shape: Sequence[int], dtype: np.dtype, names: Sequence[str] = (), units: str = ""
    ) -> None:
        """Sets the attributes of a file whose channels have numbers for names."""
        self.shape, self.dtype = tuple(int(n) for n in shape), np.dtype(dtype)
        check_numbers(self.dtype)
        self.names = tuple(names) or tuple(str(i) for i in range(self.shape[2]))
        self.units = (units,) * self.shape[2]


def check_numbers(dtype: np.dtype) -> None:
    """Raises BadImageError unless a type is of real numbers."""
    if dtype.kind not in "uifb" or dtype.itemsize > 8:
        raise BadImageError(f"its values are {dtype}; save real numbers of at most 64 bits")


def channels_last(shape: Sequence[int], channels: int | None) -> tuple[tuple[int, int, int], bool]:
    """Returns height, width and channels of an array, and whether the channels come first.

    Args:
      shape: of two or three axes. Two are a single channel.
      channels: the number expected; None: the last of three axes has them.

    Raises:
      BadImageError: the array has no such axis.
    """
    shape = tuple(int(n) for n in shape)
    if len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3 or not all(shape):
        raise BadImageError(f"an array of shape {shape}; give [height, width, channels]")
    if channels in (None, shape[2]):
        return shape, False
    if channels == shape[0]:
        return (*shape[1:], shape[0]), True
    raise BadImageError(
        f"an array of shape {shape} has no axis of {channels} channels at its end or beginning"
    )


def with_missing(values: np.ndarray, nodata: float | None) -> np.ndarray:
    """Returns values as stored; with a `nodata` as float, and NaN where they are missing."""
    if nodata is None:
        return values
    is_missing = values == nodata if nodata == nodata else np.isnan(values)
    if values.dtype.kind != "f":
        values = values.astype(_EXACT.get(values.dtype.itemsize, np.float64))
    return np.where(is_missing, np.asarray(np.nan, values.dtype), values)


def as_stored(image: np.ndarray, dtype: np.dtype, nodata: float | None) -> np.ndarray:
    """Returns an image as numbers of a type, integers rounded and clipped to their range.

    Raises:
      ValueError: values are missing, and the type has no number for them.
    """
    is_missing = np.isnan(image) if image.dtype.kind == "f" else np.zeros(image.shape, bool)
    if dtype.kind == "f":
        stored = image.astype(dtype)
        return stored if nodata is None else np.where(is_missing, np.asarray(nodata, dtype), stored)
    if is_missing.any():
        if nodata is None:
            raise ValueError(
                f"values are missing, and the file's {dtype} has no value that says so; give the "
                "input a nodata value, or store it as float32"
            )
        image = np.where(is_missing, nodata, image)
    if dtype.kind == "b":
        return image >= 0.5
    limits = np.iinfo(dtype)
    return np.clip(np.rint(image), limits.min, limits.max).astype(dtype)


def factor_of(
    images: Sequence[np.ndarray], shape: Sequence[int], factor: int | float | None = None
) -> int | float:
    """Returns how many times as high and wide images are as a shape: `factor`, or a whole number.

    Raises:
      ValueError: it is not, or not the same for all.
    """
    times = "a whole number of" if factor is None else f"{factor:g}"
    factor = images[0].shape[0] // shape[0] if factor is None else factor
    wanted = scaled(shape[:2], factor)
    if not factor or any(image.shape[:2] != wanted for image in images):
        found = sorted({image.shape[:2] for image in images})
        raise ValueError(f"images of {found} are not {times} times those of {shape[:2]}")
    return factor
