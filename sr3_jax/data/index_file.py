"""What a source found when it was first opened, kept in a file.

Listing a folder of a million files or walking over a hundred gigabytes of records takes minutes in
a bucket. And the order of examples depends on the list, so that a run that goes on after files were
added must go on with the list it began with.
"""

import hashlib
import io
import os
import zipfile
from collections.abc import Callable, Mapping

import numpy as np
from absl import logging

from sr3_jax.data import storage

Arrays = Mapping[str, np.ndarray]


def kept(path: str | os.PathLike[str] | None, made_of: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays that `make` returned when they were first asked for.

    Args:
        path: the file, written where there is none yet; None for none.
        made_of: what the arrays describe, such as a folder's path; of another the file is not
            used, but made anew.
        make: makes the arrays.

    Raises:
        ValueError: the file is damaged.
    """
    if path is None:
        return make()
    digest = np.frombuffer(hashlib.sha256(made_of.encode()).digest(), np.uint8)
    if storage.exists(path):
        try:
            with np.load(io.BytesIO(storage.read(path)), allow_pickle=False) as file:
                arrays = dict(file)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path}, the list of images that this run began with, is damaged: {error}; remove "
                "it to list them anew, which gives the examples another order"
            ) from error
        if np.array_equal(arrays.pop("made_of"), digest):
            logging.info("images as listed in %s; remove it to list them anew", path)
            return arrays
        logging.warning("%s is of other images than %s; listing them anew", path, made_of)
    arrays = make()
    data = io.BytesIO()
    np.savez(data, made_of=digest, **arrays)
    storage.write_whole(path, data.getvalue())
    return arrays
