"""A list of the images of a source, kept in a file.

Listing a million files, or walking over a hundred gigabytes of records, takes minutes in a bucket.
And the list gives the order of examples: a run that goes on must use the list that it began with.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import logging
from jaxtyping import Int64

from sr3_jax.data import storage

Arrays = Mapping[str, np.ndarray]


def load_or_make(
    path: str | os.PathLike[str] | None,
    made_of: str,
    make: Callable[[], Arrays],
    check: Callable[[Arrays], object] = lambda arrays: None,
) -> Arrays:
    """Loads arrays from a file, or makes them and writes the file.

    Args:
      path: the file; None to make the arrays each time.
      made_of: description of the source. A file of another source is replaced.
      make: makes the arrays.
      check: raises ValueError or KeyError for arrays that `make` cannot have made.

    Raises:
      ValueError: the file is damaged.
    """
    if path is None:
        return make()
    digest = np.frombuffer(hashlib.sha256(made_of.encode(errors="surrogateescape")).digest(), "u1")
    if storage.exists(path):
        try:
            arrays = read_arrays(storage.read(path))
            if np.array_equal(arrays.pop("made_of"), digest):
                check(arrays)
                logging.info("images as listed in %s; remove it to list them anew", path)
                return arrays
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{path}, the list of images that this run began with, is damaged: {error}; remove "
                "it to list them anew, which gives the examples another order"
            ) from error
        logging.warning("%s lists other images than those of %s; listing them anew", path, made_of)
    arrays = make()
    write_arrays(path, made_of=digest, **arrays)
    return arrays


def write_arrays(path: str | os.PathLike[str], **arrays: np.ndarray | int | str) -> None:
    """Writes an .npz file, whole or not at all."""
    data = io.BytesIO()
    np.savez(data, **arrays)
    storage.write_whole(path, data.getvalue())


def read_arrays(
    data: bytes, names: Sequence[str] | None = None, most_bytes: int | None = None
) -> dict[str, np.ndarray]:
    """Reads the arrays of an .npz file after it compares their checksums.

    Args:
      data: content of the file.
      names: arrays to read if they are there; None for all.
      most_bytes: most bytes of these arrays together; None for the size of the file, which is
        enough for arrays that are not compressed.

    Raises:
      ValueError: the file is damaged, no .npz file, or the arrays have more bytes.
    """
    most_bytes = len(data) if most_bytes is None else most_bytes
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            entries = {entry.filename.removesuffix(".npy"): entry for entry in file.infolist()}
            wanted = {name: entries[name] for name in names or entries if name in entries}
            if sum(entry.file_size for entry in wanted.values()) > most_bytes:
                raise ValueError(f"it has arrays of more than {most_bytes} bytes")
            read = ((name, io.BytesIO(file.read(entry))) for name, entry in wanted.items())
            return {name: np.lib.format.read_array(array) for name, array in read}
    except Exception as error:  # zipfile and numpy raise a dozen types for damaged files
        raise ValueError(f"no whole .npz file ({type(error).__name__}: {error})") from error


def check_column(
    arrays: Arrays, key: str, kinds: Sequence[type[np.generic]], length: int | None = None
) -> np.ndarray:
    """Returns the array `key`, of one dimension, a type of `kinds`, and `length` elements.

    Raises:
      KeyError: it is missing.
      ValueError: it has another type or shape.
    """
    array = arrays[key]
    if array.ndim != 1 or array.dtype not in kinds or length not in (None, len(array)):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        count = "" if length is None else f"{length} "
        raise ValueError(
            f"{key} has type {array.dtype} and shape {array.shape}, instead of {count}{wanted}"
        )
    return array


def check_places(
    arrays: Arrays, length: int, smallest: int = 0
) -> tuple[Int64[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Returns the arrays `offset` and `size` of images in a file, in bytes; see `check_column`."""
    offset, size = (check_column(arrays, key, (np.int64,), length) for key in ("offset", "size"))
    if (offset < 0).any() or (size < smallest).any():
        raise ValueError("an image has a negative offset or size")
    return offset, size
