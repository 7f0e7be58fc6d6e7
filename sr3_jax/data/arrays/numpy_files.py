"""Arrays of NumPy: `.npy` of one image, and `.npz` of one array or of an array a channel."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence

import numpy as np

from sr3_jax.data import storage
from sr3_jax.data.arrays import base
from sr3_jax.data.image_files import BadImageError, decoder_errors


class NpyFile(base.ArrayFile):
    """An image `[h, w]`, `[h, w, c]` or `[c, h, w]`, or several of them along a first axis."""

    def __init__(
        self, path: str | os.PathLike[str], channels: int | None, variables: Sequence[str]
    ) -> None:
        """Reads the header; see `arrays.open_file`."""
        is_remote = storage.is_url(str(path))
        source = io.BytesIO(storage.read(path)) if is_remote else os.path.expanduser(path)
        with decoder_errors("no array of NumPy"):
            how = None if is_remote else "r"
            self._array = np.load(source, mmap_mode=how, allow_pickle=False)
        self._has_many = self._array.ndim == 4
        one = self._array.shape[1:] if self._has_many else self._array.shape
        shape, self._is_first = base.channels_last(one, channels)
        self._set(shape, self._array.dtype)

    def __len__(self) -> int:
        return len(self._array) if self._has_many else 1

    def read(self, index: int = 0) -> base.Values:
        image = np.asarray(self._array[index] if self._has_many else self._array)
        return np.moveaxis(image, 0, -1) if self._is_first else image.reshape(self.shape)

    def _write(self, path: base.Path, images: Sequence[base.Values], factor: int | float) -> None:
        made = [base.as_stored(image, self.dtype, None) for image in images]
        if self._is_first:
            made = [np.moveaxis(image, -1, 0) for image in made]
        elif self._array.ndim == 2:
            made = [image[..., 0] for image in made]
        with storage.open_whole(path) as file:
            np.save(file, np.stack(made) if self._has_many else made[0], allow_pickle=False)


class NpzFile(base.ArrayFile):
    """An archive: `variables` are its channels, each `[h, w]`; or its only array is the image."""

    def __init__(
        self, path: str | os.PathLike[str], channels: int | None, variables: Sequence[str]
    ) -> None:
        """Reads the arrays; see `arrays.open_file`."""
        content = storage.read(path)
        with decoder_errors("no archive of NumPy"):
            with np.load(io.BytesIO(content), allow_pickle=False) as archive:
                self._others = {name: archive[name] for name in archive.files}
        if missing := [name for name in variables if name not in self._others]:
            raise BadImageError(
                f"it has no {', '.join(missing)}; its arrays are {', '.join(self._others)}"
            )
        if not variables and len(self._others) == 1:
            (self._name,) = self._others
            array = self._others[self._name]
            shape, self._is_first = base.channels_last(array.shape, channels)
            self._is_flat = array.ndim == 2
            self._set(shape, array.dtype)
            return
        self._name = ""
        if not variables:
            raise BadImageError(
                f"it has several arrays, {', '.join(self._others)}; name the channels by variables"
            )
        found = {(self._others[name].shape, self._others[name].dtype) for name in variables}
        if len(found) > 1 or len(next(iter(found))[0]) != 2:
            said = ", ".join(f"{n} {self._others[n].shape}" for n in variables)
            raise BadImageError(f"channels must be [height, width] of one type: {said}")
        ((size, dtype),) = found
        self._set((*size, len(variables)), dtype, variables)

    def __len__(self) -> int:
        return 1

    def read(self, index: int = 0) -> base.Values:
        if not self._name:
            return np.stack([self._others[name] for name in self.names], axis=-1)
        image = self._others[self._name]
        return np.moveaxis(image, 0, -1) if self._is_first else image.reshape(self.shape)

    def _write(self, path: base.Path, images: Sequence[base.Values], factor: int | float) -> None:
        (image,) = (base.as_stored(image, self.dtype, None) for image in images)
        if not self._name:
            made = dict(zip(self.names, np.moveaxis(image, -1, 0), strict=False))
        elif self._is_first:
            made = {self._name: np.moveaxis(image, -1, 0)}
        else:
            made = {self._name: image[..., 0] if self._is_flat else image}
        with storage.open_whole(path) as file:
            np.savez_compressed(file, **made)
