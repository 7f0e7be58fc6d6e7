"""The images of a user's own `tf.data.Dataset`, which a function returns.

A dataset is read in its order alone. So each epoch shuffles neighbours (`TfData.neighbours`), and
an image far away takes another iteration, from the dataset's `skip`.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from sr3_jax.data import source_kinds, sources, user_functions
from sr3_jax.data.image_files import BadImageError

if TYPE_CHECKING:
    import tensorflow as tf

_NEIGHBOURS = 256
_MOST_CURSORS = 3
_KEPT = 4 * _NEIGHBOURS  # images behind the newest that nobody has asked for
_PARTS = ("image", "low_resolution", "maps", "label")


def faults(place: source_kinds.Place) -> Iterator[str]:
    """Yields why the function cannot be called; see `source_kinds`."""
    try:
        user_functions.find(place.path)
    except ValueError as error:
        yield f"{place.key('path')} = {place.path!r}: {error}"


def open_source(place: source_kinds.Place) -> TfData:
    """Returns the images of the dataset that the function returns for `train` or `eval`.

    Raises:
      ValueError: it fails, or returns none, or one of unknown or no length.
    """
    tensorflow()
    try:
        dataset = user_functions.find(place.path)(place.half)
    except Exception as error:
        raise ValueError(
            f"{place.path}, called with {place.half!r} ('train' or 'eval'), failed: {error!r}"
        ) from error
    return TfData(place.path, dataset)


@functools.cache
def tensorflow() -> types.ModuleType:
    """Returns TensorFlow, which leaves accelerators to jax."""
    import tensorflow as tf

    try:
        tf.config.set_visible_devices([], "GPU")
    except RuntimeError as error:  # the program uses TensorFlow already
        logging.warning("TensorFlow may hold a GPU's memory: %s", error)
    return tf


class TfData(sources.LazySource):
    """The elements of a dataset: images `[h, w, c]`, or dicts of parts of a `Picture`."""

    neighbours = _NEIGHBOURS

    def __init__(self, name: str, dataset: tf.data.Dataset) -> None:
        """Reads no element yet.

        Raises:
          ValueError: it is no dataset, or one of unknown or no length.
        """
        if not hasattr(dataset, "cardinality"):
            raise ValueError(f"{name} returned {type(dataset).__name__}, not a tf.data.Dataset")
        self._name, self._dataset = name, dataset
        self._count = int(dataset.cardinality())
        if self._count < 1:
            why = {
                -1: "has no end; return it without repeat()",
                -2: "does not know its length; apply tf.data.experimental.assert_cardinality(n)",
                0: "is empty; look at the files that it lists",
            }
            raise ValueError(f"the dataset of {name} {why[self._count]}")
        self._lock = threading.Lock()
        self._cursors: list[_Cursor] = []  # the one used last is last

    def __len__(self) -> int:
        return self._count

    def ref(self, index: int) -> ElementRef:
        return ElementRef(f"{self._name}#{index}", index, self.element)

    def element(self, index: int) -> Any:
        """Returns an element, as numpy arrays; several threads may ask at once."""
        with self._lock:
            for cursor in self._cursors[::-1]:
                if cursor.is_near(index):
                    break
            else:
                cursor = _Cursor(self._dataset, index // _NEIGHBOURS * _NEIGHBOURS)
                del self._cursors[: 1 - _MOST_CURSORS or None]
                self._cursors.append(cursor)
            self._cursors.remove(cursor)
            self._cursors.append(cursor)
            return cursor.take(index)


@dataclasses.dataclass(frozen=True)
class ElementRef:
    """An element of a dataset; see `sources.ImageRef`."""

    name: str
    index: int
    element: Callable[[int], Any]  # `TfData.element`

    def read(self, _: sources.Decode | None = None) -> sources.Picture:
        found = self.element(self.index)
        parts = found if isinstance(found, dict) else {"image": found}
        if "image" not in parts or (unknown := parts.keys() - set(_PARTS)):
            raise BadImageError(
                f"an element of {sorted(parts) or type(found).__name__}; give an image, or a dict "
                f"of image and any of {', '.join(_PARTS[1:])}"
                + (f" (without {', '.join(sorted(unknown))})" if "image" in parts else "")
            )
        label = int(parts.get("label", sources.NO_LABEL))
        arrays = {name: np.asarray(parts[name]) for name in _PARTS[:3] if name in parts}
        for name, array in arrays.items():
            if array.ndim != 3 or not array.size:
                raise BadImageError(
                    f"its {name} has shape {array.shape}; give [height, width, channels]"
                )
        return sources.Picture(**arrays, label=label)


class _Cursor:
    """One iteration over a dataset, and what it has passed that nobody has asked for."""

    def __init__(self, dataset: tf.data.Dataset, start: int) -> None:
        self._elements = dataset.skip(start).as_numpy_iterator()
        self._next, self._passed = start, {}

    def is_near(self, index: int) -> bool:
        """Whether an element is kept, or comes soon."""
        return index in self._passed or 0 <= index - self._next < _KEPT

    def take(self, index: int) -> Any:
        """Returns an element that is near, and keeps it no longer."""
        while index not in self._passed:
            try:
                self._passed[self._next] = next(self._elements)
            except StopIteration:
                raise BadImageError(
                    f"the dataset ended at {self._next} elements, before its length"
                ) from None
            self._passed.pop(self._next - _KEPT, None)
            self._next += 1
        return self._passed.pop(index)
