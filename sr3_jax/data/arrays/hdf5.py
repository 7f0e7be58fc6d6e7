"""HDF5 (h5py): data sets are channels, or a single one holds the image."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import numpy as np

from sr3_jax.data import storage
from sr3_jax.data.arrays import base
from sr3_jax.data.image_files import BadImageError, decoder_errors

_FILL = "_FillValue"  # by convention of NetCDF


class Hdf5File(base.ArrayFile):
    """`variables` are the paths of data sets `[h, w]` or `[n, h, w]`, the channels of n images.

    A single data set may be `[h, w, c]`, `[c, h, w]` or `[n, h, w, c]`. An attribute `_FillValue`
    says what is missing.
    """

    def __init__(
        self, path: str | os.PathLike[str], channels: int | None, variables: Sequence[str]
    ) -> None:
        """Reads names and shapes; see `arrays.open_file`."""
        import h5py

        source = io.BytesIO(storage.read(path)) if storage.is_url(str(path)) else os.fspath(path)
        with decoder_errors("no HDF5"):
            self._file = h5py.File(source, "r")
        known: list[str] = []
        self._file.visititems(lambda n, x: known.append(n) if isinstance(x, h5py.Dataset) else None)
        names = tuple(name.strip("/") for name in variables) or tuple(known)
        if missing := [name for name in names if name not in known]:
            raise BadImageError(f"it has no {', '.join(missing)}; it has {', '.join(known)}")
        if not names or (len(names) > 1 and not variables):
            raise BadImageError(f"it has {', '.join(known) or 'no data'}; name the channels")
        parts = [self._file[name] for name in names]
        if len({(part.shape, part.dtype) for part in parts}) > 1:
            said = ", ".join(f"{name} {self._file[name].shape}" for name in names)
            raise BadImageError(f"channels must be of one shape and type: {said}")
        shape, self._is_first = parts[0].shape, False
        self._is_single = len(names) == 1 and channels != 1
        if self._is_single:
            self._has_many = len(shape) == 4
            size, self._is_first = base.channels_last(shape[self._has_many :], channels)
        else:
            self._has_many = len(shape) == 3
            size = (*shape[self._has_many :], len(names))
            if len(size) != 3:
                raise BadImageError(f"data of shape {shape}; give [h, w] or [n, h, w]")
        self._paths = names
        self._set(size, parts[0].dtype, () if self._is_single else names)
        fill = parts[0].attrs.get(_FILL)
        self.nodata = None if fill is None else float(np.asarray(fill).reshape(-1)[0])
        units = [part.attrs.get("units", "") for part in parts]
        units = [unit.decode() if isinstance(unit, bytes) else str(unit) for unit in units]
        self.units = tuple(units * (self.shape[2] if self._is_single else 1))

    def __len__(self) -> int:
        return self._file[self._paths[0]].shape[0] if self._has_many else 1

    def read(self, index: int = 0) -> base.Values:
        where = (index,) if self._has_many else ()
        with decoder_errors():
            parts = [self._file[name][(*where, ...)] for name in self._paths]
        if not self._is_single:
            image = np.stack(parts, axis=-1)
        else:
            image = np.moveaxis(parts[0], 0, -1) if self._is_first else parts[0]
        return base.with_missing(image.reshape(self.shape), self.nodata)

    def _write(self, path: base.Path, images: Sequence[base.Values], factor: int | float) -> None:
        import h5py

        made = np.stack([base.as_stored(image, self.dtype, self.nodata) for image in images])
        content = io.BytesIO()
        with h5py.File(content, "w") as file:
            for key, value in self._file.attrs.items():
                file.attrs[key] = value
            for i, name in enumerate(self._paths[: made.shape[-1]]):
                if self._is_single:
                    values = np.moveaxis(made, -1, 1) if self._is_first else made
                    if self._file[name].ndim == 2:
                        values = values[..., 0]
                else:
                    values = made[..., i]
                values = values if self._has_many else values[0]
                of = file.create_dataset(
                    name, data=values, compression=self._file[name].compression
                )
                for key, value in self._file[name].attrs.items():
                    if key not in ("DIMENSION_LIST", "REFERENCE_LIST", "CLASS", "NAME"):
                        of.attrs[key] = value
        storage.write_whole(path, content.getvalue())
