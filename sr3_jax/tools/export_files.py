"""The files of an export, and which of those that are there may be replaced."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

import jax.numpy as jnp
import numpy as np

from sr3_jax.data import storage

PROGRAM, WEIGHTS, ABOUT, EXAMPLE = "sampler.stablehlo", "params.npz", "sampler.json", "run.py"


def check_output(folder: str) -> None:
    """Checks that an export replaces no file but those of an export.

    Raises:
      FileExistsError: the folder has files of these names that are none of an export.
      NotADirectoryError: it is a file.
    """
    folder = folder.rstrip("/")
    if storage.exists(folder) and not storage.is_folder(folder):
        raise NotADirectoryError(f"--output={folder} is a file; give a folder")
    there = [
        name for name in (ABOUT, PROGRAM, WEIGHTS, EXAMPLE) if storage.exists(f"{folder}/{name}")
    ]
    try:
        about = json.loads(storage.read(f"{folder}/{ABOUT}")) if ABOUT in there else {}
        is_export = about["versions"]["sr3_jax"] and set(about["files"]) == {PROGRAM, WEIGHTS}
    except (ValueError, KeyError, TypeError, RecursionError):
        is_export = False
    if there and not is_export:
        raise FileExistsError(
            f"--output={folder} has files that this command would replace, and did not make as far "
            f"as one can tell: {', '.join(there)}; remove them, or give another folder"
        )


def plain(array: np.ndarray) -> np.ndarray:
    """In a type that numpy can read by itself, bit for bit."""
    return array.view(np.uint16) if array.dtype == jnp.bfloat16 else array


class Hashed(io.RawIOBase):
    """Passes on what is written, and hashes it; it cannot seek, so that nothing is changed later.

    Weights are not held in memory as a file for that.
    """

    def __init__(self, file: Any) -> None:
        self._file, self.sha256, self.size = file, hashlib.sha256(), 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._file.write(data)
        self.sha256.update(data)
        self.size += len(data)
        return len(data)
