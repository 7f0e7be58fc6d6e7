"""Files of arrays: any number of channels, any type of real number, missing values, places.

`open_file` chooses the format by the suffix. Each format is a `base.ArrayFile`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import types
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sr3_jax.data import storage
from sr3_jax.data.arrays.base import ArrayFile, Values
from sr3_jax.data.image_files import BadImageError

__all__ = ["FORMATS", "ArrayFile", "Values", "format_of", "open_file"]


class Format(NamedTuple):
    """A format: its class, and the package that it needs beyond the base installation.

    `has_names` says whether its arrays have names, which `variables` of `open_file` gives.
    """

    where: str
    package: str = ""
    has_names: bool = False


FORMATS: Mapping[str, Format] = types.MappingProxyType(
    {
        ".npy": Format("numpy_files.NpyFile"),
        ".npz": Format("numpy_files.NpzFile", has_names=True),
        ".tif": Format("tiff.TiffFile"),
        ".tiff": Format("tiff.TiffFile"),
        ".nc": Format("xarray_files.XarrayFile", "xarray", has_names=True),
        ".zarr": Format("xarray_files.XarrayFile", "zarr", has_names=True),
        ".h5": Format("hdf5.Hdf5File", "h5py", has_names=True),
        ".hdf5": Format("hdf5.Hdf5File", "h5py", has_names=True),
        ".nii": Format("medical.NiftiFile", "nibabel"),
        ".nii.gz": Format("medical.NiftiFile", "nibabel"),
        ".dcm": Format("medical.DicomFile", "pydicom"),
    }
)


def format_of(path: str | os.PathLike[str]) -> str | None:
    """Returns the suffix of `FORMATS` that a path ends with, in any case; None if there is none."""
    name = str(path).lower()
    return max((suffix for suffix in FORMATS if name.endswith(suffix)), key=len, default=None)


def open_file(
    path: str | os.PathLike[str], channels: int | None = None, variables: Sequence[str] = ()
) -> ArrayFile:
    """Opens a file of arrays; its images are read later.

    Args:
      path: the file, local or a URL.
      channels: number of channels, which tells where their axis is; None: the last, or what the
        format says.
      variables: names of the channels in formats of named arrays; empty: the only array there is.

    Raises:
      BadImageError: the format is unknown, or the file cannot be read; the message says why.
      OSError: reading failed for a reason that says nothing about the file.
    """
    suffix = format_of(path)
    if suffix is None:
        raise BadImageError(f"no format of arrays; give one of {', '.join(FORMATS)}")
    if not storage.exists(path):
        raise FileNotFoundError(f"{os.fspath(path)} does not exist")
    where, package, has_names = FORMATS[suffix]
    if variables and not has_names:
        raise BadImageError(f"arrays of {suffix} have no names; leave variables empty")
    if package and importlib.util.find_spec(package) is None:
        raise BadImageError(f"{suffix} needs {package}: pip install 'sr3_jax[arrays]'")
    module, _, name = where.partition(".")
    kind = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return kind(path, channels, variables)
