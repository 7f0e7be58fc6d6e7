"""NetCDF and Zarr (xarray): variables are channels, and steps of time or members are images."""

from __future__ import annotations

import math
import os
import pathlib
import secrets
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sr3_jax.data import storage
from sr3_jax.data.arrays import base
from sr3_jax.data.image_files import BadImageError, decoder_errors

if TYPE_CHECKING:
    import xarray


class XarrayFile(base.ArrayFile):
    """Variables `[..., y, x]` of one shape; each index of their leading axes is an image.

    Values are decoded (`scale_factor`, `add_offset`, `_FillValue`); missing ones are NaN. Tiles of
    Zarr and of chunked NetCDF are read as they are asked for.
    """

    def __init__(
        self, path: str | os.PathLike[str], channels: int | None, variables: Sequence[str]
    ) -> None:
        """Reads names, shapes and coordinates; see `arrays.open_file`."""
        import xarray

        self._is_zarr = str(path).rstrip("/").lower().endswith(".zarr")
        kind = "Zarr" if self._is_zarr else "NetCDF"
        with decoder_errors(f"no {kind}"):
            if self._is_zarr:
                is_older = storage.exists(f"{str(path).rstrip('/')}/.zgroup")
                self._zarr_format = 2 if is_older else 3
                self._data = _open_zarr(str(path))
            else:
                source = storage.open_read(path) if storage.is_url(str(path)) else os.fspath(path)
                engine = "h5netcdf" if _is_hdf5(path) else "scipy"
                self._data = xarray.open_dataset(source, engine=engine, decode_times=False)
        names = tuple(variables) or tuple(n for n, v in self._data.items() if v.ndim >= 2)
        known = ", ".join(map(str, self._data)) or "none"
        if missing := [name for name in names if name not in self._data]:
            raise BadImageError(f"it has no {', '.join(missing)}; its variables are {known}")
        if not names or (not variables and channels not in (None, len(names))):
            raise BadImageError(f"its variables are {known}; name the channels by variables")
        parts = [self._data[name] for name in names]
        if len({part.dims for part in parts}) > 1 or parts[0].ndim < 2:
            said = ", ".join(f"{part.name} {part.dims}" for part in parts)
            raise BadImageError(f"channels must have the same dimensions, [..., y, x]: {said}")
        self._lead = tuple(int(n) for n in parts[0].shape[:-2])
        self.shape = (*map(int, parts[0].shape[-2:]), len(parts))
        self.dtype = np.result_type(*(part.dtype for part in parts))
        base.check_numbers(self.dtype)
        self.names = tuple(map(str, names))
        self.units = tuple(str(part.attrs.get("units", "")) for part in parts)

    def __len__(self) -> int:
        return math.prod(self._lead)

    def read(self, index: int = 0) -> base.Values:
        where = np.unravel_index(index, self._lead) if self._lead else ()
        with decoder_errors():
            parts = [self._data[name][tuple(map(int, where))].values for name in self.names]
        return np.stack(parts, axis=-1)

    def _write(self, path: base.Path, images: Sequence[base.Values], factor: int | float) -> None:
        import xarray

        first = self._data[self.names[0]]
        space = first.dims[-2:]
        made = np.stack(images).reshape(*self._lead, *images[0].shape)
        new = {}
        for i, name in enumerate(self.names[: made.shape[-1]]):
            of = self._data[name]
            values = made[..., i].astype(of.dtype, copy=False)
            new[name] = xarray.Variable(of.dims, values, of.attrs, _encoding(of.encoding))
        # What does not lie in the plane of the image stays; 1-D coordinates are refined with it.
        coordinates = {}
        for name, of in self._data.coords.items():
            within = [dimension for dimension in of.dims if dimension in space]
            if not within:
                kept = _encoding(of.encoding)
                coordinates[name] = xarray.Variable(of.dims, of.values, of.attrs, kept)
            elif of.ndim == 1 and of.dtype.kind in "uif":
                count = images[0].shape[space.index(of.dims[0])]
                refined = _refined(of.values.astype(np.float64), factor, count)
                kept = refined.astype(np.result_type(of.dtype, np.float32))
                coordinates[name] = xarray.Variable(of.dims, kept, of.attrs)
        dataset = xarray.Dataset(new, coordinates, self._data.attrs)
        if not self._is_zarr:
            storage.write_whole(path, bytes(dataset.to_netcdf(engine="h5netcdf")))
            return
        if storage.is_url(str(path)):
            raise ValueError(f"{path}: Zarr is written to disks alone; give a local folder")
        folder = pathlib.Path(os.path.expanduser(os.fspath(path)))
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = folder.with_name(f".{secrets.token_hex(8)}.partial")
        try:
            dataset.to_zarr(str(partial), zarr_format=self._zarr_format)
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _open_zarr(path: str) -> xarray.Dataset:
    """Opens a store; without gathered metadata, which have an order, variables are sorted."""
    import xarray

    how = {"chunks": None, "decode_times": False}
    try:
        return xarray.open_zarr(path, consolidated=True, **how)
    except (KeyError, ValueError):
        found = xarray.open_zarr(path, consolidated=False, **how)
        return found[sorted(found)]


def _is_hdf5(path: str | os.PathLike[str]) -> bool:
    return storage.read(path, 0, 4) == b"\x89HDF"


def _encoding(found: dict[str, Any]) -> dict[str, Any]:
    """Returns how numbers are packed, without sizes of chunks, which are those of other shapes."""
    kept = ("scale_factor", "add_offset", "_FillValue", "missing_value", "dtype")
    return {key: found[key] for key in kept if key in found}


def _refined(places: np.ndarray, factor: int | float, count: int) -> np.ndarray:
    """Returns the centres of `factor` times as many cells, on a line through their neighbours."""
    if factor == 1 or len(places) < 2:
        return np.resize(places, count)
    at = (np.arange(count) + 0.5) / factor - 0.5
    left = np.clip(np.floor(at).astype(int), 0, len(places) - 2)
    return places[left] + (at - left) * (places[left + 1] - places[left])
