"""Files of arrays (`arrays.open_file`) as a source: each image of each file is an example.

A folder of files, at any depth, or a single file, such as a NetCDF of many times.
"""

import dataclasses
import functools
import os
import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from sr3_jax.data import arrays, folders, index_file, source_kinds, sources, storage
from sr3_jax.data.image_files import BadImageError

_NUM_OPEN = 16  # files that are kept open
_INSIDE = ".zarr/"  # such a folder is one file


def faults(place: source_kinds.Place) -> Iterator[str]:
    """Yields what is wrong with a folder or file of arrays; see `source_kinds`."""
    if not storage.exists(place.path):
        yield f"{place.key('path')} = {place.path!r} does not exist; give a folder or a file"
    elif not storage.is_folder(place.path) and arrays.format_of(place.path) is None:
        known = ", ".join(arrays.FORMATS)
        yield f"{place.key('path')} = {place.path!r} is no file of arrays; give one of {known}"


def open_source(place: source_kinds.Place) -> "ArraySource":
    """Returns the images of a folder or file, as listed in `place.index` if that is there.

    Raises:
      ValueError: there is no image.
    """
    root = os.path.expanduser(place.path)
    of_file = functools.partial(
        arrays.open_file, channels=place.channels, variables=place.variables
    )
    named = " ".join((f"arrays {place.path}", *place.variables))
    listed = index_file.load_or_make(
        place.index,
        named,
        lambda: _listed(root, place, of_file),
        lambda found: ArraySource(root, found, of_file),
    )
    return ArraySource(root, listed, of_file)


@dataclasses.dataclass(frozen=True)
class ArrayRef:
    """An image of a file of arrays; see `sources.ImageRef`.

    Attributes:
      name: the file's path within the folder, with the number of the image where it has several.
      open: returns the file.
      number: the image's number in the file.
    """

    name: str
    open: functools.partial[arrays.ArrayFile]
    number: int

    def read(self) -> sources.Picture:
        """Returns the image as float32, with NaN for what is missing; see `ImageRef`."""
        image = self.open().read(self.number)
        return sources.Picture(np.ascontiguousarray(image, np.float32))


class ArraySource(sources.LazySource):
    """The images of files of arrays, file by file.

    Attributes:
      root: the folder, or the only file.
    """

    def __init__(
        self,
        root: str,
        listed: Mapping[str, np.ndarray],
        of_file: functools.partial[arrays.ArrayFile],
    ) -> None:
        """Takes the list that `_listed` made.

        Raises:
          KeyError, ValueError: it is damaged.
        """
        self.root, self._files = root, folders.Folder(root, listed)
        counts = index_file.check_column(listed, "counts", (np.int64,), len(self._files))
        if (counts < 1).any():
            raise ValueError("a file has no image")
        self._ends = np.cumsum(counts)
        self._opened = _KeptOpen(of_file)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def ref(self, index: int) -> ArrayRef:
        file = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[file - 1]) if file else 0
        count, number = int(self._ends[file]) - first, index - first
        of = self._files.ref(file)
        path = self.root if arrays.format_of(self.root) else of.path
        name = of.name if count == 1 else f"{of.name}[{number}]"
        return ArrayRef(name, functools.partial(self._opened, path), number)


class _KeptOpen:
    """Opens files, and keeps those that were used last; thread-safe."""

    def __init__(self, of_file: functools.partial[arrays.ArrayFile]) -> None:
        self._lock = threading.Lock()
        self._open = functools.lru_cache(_NUM_OPEN)(of_file)

    def __call__(self, path: str) -> arrays.ArrayFile:
        with self._lock:
            return self._open(path)


def _listed(
    root: str, place: source_kinds.Place, of_file: functools.partial[arrays.ArrayFile]
) -> dict[str, np.ndarray]:
    """Returns names and number of images of the files.

    One that cannot be opened counts as one image, which is damaged when it is read.

    Raises:
      ValueError: none can be opened; names the first, and why.
    """
    names: Sequence[str] = [os.path.basename(root.rstrip("/"))]
    paths = [root]
    if arrays.format_of(root) is None:
        found = storage.find(root, place.skip)
        within = {_whole(name) for name in found if not os.path.basename(name).startswith(".")}
        names = sorted(name for name in within if arrays.format_of(name))
        paths = [os.path.join(root, name) for name in names]
    counts, refused = [], []
    for name, path in zip(names, paths, strict=True):
        try:
            counts.append(len(of_file(path)))
        except BadImageError as error:
            counts.append(1)
            refused.append(f"{name}: {error}")
    if len(refused) == len(names):
        why = f"; the first of {len(refused)}: {refused[0]}" if refused else ""
        known = ", ".join(arrays.FORMATS)
        raise ValueError(f"no file of arrays ({known}) in {place.path!r} can be used{why}")
    return folders.arrays_of(names) | {"counts": np.array(counts, np.int64)}


def _whole(name: str) -> str:
    """Returns the name of the folder that is a file, or the name itself."""
    before, inside, _ = name.partition(_INSIDE)
    return before + _INSIDE[:-1] if inside else name
