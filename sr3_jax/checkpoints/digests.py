"""Digests of arrays, which reveal damaged checkpoints and identify networks.

A digest is computed from an array on the devices, under any sharding, so it covers the whole way
to a disk and back. Each process hashes the shards of its devices. An array of NumPy has the same
digest, and stays where it is.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt64

from sr3_jax import parallel

FOLDER = "digests"  # within a checkpoint; Orbax writes it together with the arrays
_WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32}  # by the size of a number in bytes
_BLOCK = 2**16  # numbers that are hashed at once; they fit into the processor's cache


class Digest(NamedTuple):
    """The digest of an array.

    Attributes:
      text: 16 hexadecimal digits: the sum modulo 2^64 of a hash of each number with its index.
        A change of one number always changes it; other changes are missed with probability
        2^-64. It does not protect against deliberate changes.
      is_finite: whether all numbers of the array are finite.
    """

    text: str
    is_finite: bool


class Record(NamedTuple):
    """The digest of each array of a checkpoint, and a copy of its metrics."""

    arrays: Mapping[str, str]
    metrics: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Returns a JSON object that includes a digest of its own content."""
        return {**self._asdict(), "sha256": combine(self._asdict())}


def named(tree: Any) -> dict[str, Any]:
    """Returns the arrays of a tree (or their shapes) by name.

    The names are the same whether the tree is made of dataclasses or of dictionaries.
    """
    leaves = jax.tree.leaves_with_path(tree)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {name(path): leaf for path, leaf in leaves if hasattr(leaf, "shape")}


def of(tree: Any) -> dict[str, Digest]:
    """Returns the digest of each array, by name; all processes that hold shards must call it."""
    arrays = named(tree)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        shares = list(pool.map(_own_share, arrays.values()))
    sums, finite = np.array([s for s, _ in shares], np.uint64), np.array([f for _, f in shares])
    split = np.array([not getattr(a, "is_fully_addressable", True) for a in arrays.values()])
    if split.any():
        all_sums, all_finite = parallel.of_all_processes((sums[None], finite[None]))
        sums = np.where(split, all_sums.sum(axis=0), sums)
        finite = np.where(split, all_finite.all(axis=0), finite)
    return {
        name: Digest(f"{number:016x}", bool(is_finite))
        for name, number, is_finite in zip(arrays, sums, finite, strict=True)
    }


def combine(parts: Mapping[str, Any]) -> str:
    """Returns one digest of several, which does not depend on their order."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read(checkpoint: epath.Path) -> Record | None:
    """Reads the record of a checkpoint's folder; None if an older version wrote the checkpoint.

    Raises ValueError if the record is damaged.
    """
    if not (checkpoint / FOLDER).exists():
        return None
    path = checkpoint / FOLDER / "metadata"  # Orbax's name
    try:
        found = json.loads(path.read_text())
        record = Record(found["arrays"], found["metrics"])
        is_whole = record.to_json() == found
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not is_whole:
        raise ValueError(f"{path} is not what was written")
    return record


def _shards(array: jax.Array | np.ndarray) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
    """Yields the place in the array, and the numbers, of each shard of this process.

    One that several devices hold is yielded once.
    """
    if isinstance(array, jax.Array):
        for shard in array.addressable_shards:
            if not shard.replica_id:
                yield shard.index, np.asarray(shard.data)
    else:
        yield (slice(None),) * array.ndim, array


def _own_share(array: jax.Array | np.ndarray) -> tuple[int, bool]:
    """Returns the sum of hashes over this process's shards, and whether all numbers are finite."""
    total, is_finite = 0, True
    shape = array.shape or (1,)
    strides = np.cumprod((1, *shape[:0:-1]), dtype=np.uint64)[::-1]
    for place, numbers in _shards(array):
        if not numbers.size:
            continue
        # The flat index in the whole array is the sum of the row's and the one within the row.
        slices = place or (slice(None),)
        *outer, inner = (
            np.arange(*part.indices(size), dtype=np.uint64) * stride
            for part, size, stride in zip(slices, shape, strides, strict=True)
        )
        rows = functools.reduce(np.add.outer, outer, np.uint64(0)).ravel()
        numbers = numbers.reshape(len(rows), len(inner))
        step = max(1, _BLOCK // len(inner))
        for first in range(0, len(rows), step):
            block = numbers[first : first + step]
            words = block.view(_WORDS[block.itemsize]).astype(np.uint64)
            where = rows[first : first + step, None] + inner
            total += int(_mix(where << np.uint64(32) | words).sum())
            is_finite &= bool(np.isfinite(block).all())
    return total % 2**64, is_finite


def _mix(words: UInt64[np.ndarray, "r c"]) -> UInt64[np.ndarray, "r c"]:
    """Mixes the bits of each word by a bijection (the finaliser of MurmurHash3)."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        words = (words ^ (words >> np.uint64(33))) * np.uint64(factor)
    return words ^ (words >> np.uint64(33))
