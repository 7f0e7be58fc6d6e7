"""Files of arrays (`arrays.open_file`) as a source: each image of each file is an example.

A folder of files, at any depth, or a single file, such as a NetCDF of many times. Beside it may be
low resolutions and maps, in a folder whose files have the same names but for the suffix, or in a
single file. A file beside has as many images as the one it belongs to. One of maps may also have
one image for all, and a single file of maps belongs to all files.
"""

import dataclasses
import functools
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from sr3_jax.data import arrays, folders, index_file, pairs, source_kinds, sources, storage
from sr3_jax.data.image_files import BadImageError

_MOST_NAMED = 100  # in an error
_NUM_OPEN = 16  # files that are kept open
_INSIDE = ".zarr/"  # such a folder is one file


def faults(place: source_kinds.Place) -> Iterator[str]:
    """Yields what is wrong with folders or files of arrays; see `source_kinds`."""
    if place.maps and not place.maps_path:
        yield f"{place.key('maps_path')} is empty, and config.data.maps = {place.maps}; give maps"
    for name in ("path", "low_path", "maps_path"):
        path = getattr(place, name)
        if not path:
            continue
        if not storage.exists(path):
            yield f"{place.key(name)} = {path!r} does not exist; give a folder or a file"
        elif not storage.is_folder(path) and arrays.format_of(path) is None:
            known = ", ".join(arrays.FORMATS)
            yield f"{place.key(name)} = {path!r} is no file of arrays; give one of {known}"


def open_source(place: source_kinds.Place) -> "ArraySource":
    """Returns the images of a folder or file, as listed in `place.index` if that is there.

    Raises:
      ValueError: there is no image, or a file has none beside it.
    """
    source = _open(place)
    if place.low_path:
        source.low = Beside(source, _beside(place, "low", place.low_channels, place.variables))
    if place.maps:
        source.maps = Beside(source, _beside(place, "maps", place.maps, place.map_variables))
    return source


def _beside(
    place: source_kinds.Place, name: str, channels: int, variables: tuple[str, ...]
) -> "ArraySource":
    index = place.index and place.index.with_name(f"{place.half}_{name}.npz")
    path = getattr(place, f"{name}_path")
    return _open(
        dataclasses.replace(place, path=path, index=index, channels=channels, variables=variables)
    )


def _open(place: source_kinds.Place) -> "ArraySource":
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
      low, maps: the same place in the files beside; None where there are none.
    """

    name: str
    open: functools.partial[arrays.ArrayFile]
    number: int
    low: "ArrayRef | None" = None
    maps: "ArrayRef | None" = None

    def read(self, _: sources.Decode | None = None) -> sources.Picture:
        """Returns the image as float32, with NaN for what is missing; see `ImageRef`."""
        image, beside = self._values(), {}
        for name, ref in (("low_resolution", self.low), ("maps", self.maps)):
            try:
                beside[name] = ref and ref._values()
            except BadImageError as error:
                raise BadImageError(f"its {name.replace('_', ' ')} {ref.name}: {error}") from error
        return sources.Picture(image, **beside)

    def _values(self) -> np.ndarray:
        return np.ascontiguousarray(self.open().read(self.number), np.float32)


class ArraySource(sources.LazySource):
    """The images of files of arrays, file by file.

    Attributes:
      root: the folder, or the only file.
      low, maps: the files beside; None for none.
    """

    low: "Beside | None" = None
    maps: "Beside | None" = None

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
        made = self.at(file, index - first)
        beside = {"low": self.low, "maps": self.maps}
        beside = {name: of and of.at(file, made.number) for name, of in beside.items()}
        return dataclasses.replace(made, **beside)

    @property
    def is_file(self) -> bool:
        """Whether the source is a single file."""
        return arrays.format_of(self.root) is not None

    @property
    def counts(self) -> np.ndarray:
        """Number of images of each file."""
        return np.diff(self._ends, prepend=0)

    def names_of_files(self) -> list[str]:
        """Returns the path of each file within the folder."""
        return [self._files.ref(file).name for file in range(len(self._files))]

    def at(self, file: int, number: int) -> ArrayRef:
        """Returns an image of a file, without what lies beside."""
        of = self._files.ref(file)
        name = of.name if self.counts[file] == 1 else f"{of.name}[{number}]"
        path = self.root if self.is_file else of.path
        return ArrayRef(name, functools.partial(self._opened, path), number)


class Beside:
    """Files that belong to those of a source, such as its low resolutions; see the module."""

    def __init__(self, source: ArraySource, beside: ArraySource) -> None:
        """Finds the file beside each file.

        Raises:
          ValueError: there is none, or it has another number of images.
        """
        self._of, wanted = beside, source.names_of_files()
        if beside.is_file and (source.is_file or beside.counts[0] == 1):
            self._files = [0] * len(wanted)
        else:
            found = {_stem(name): i for i, name in enumerate(beside.names_of_files())}
            found = pairs.without_ending(found, [_stem(name) for name in wanted])
            lone = [name for name in wanted if _stem(name) not in found]
            if lone:
                raise ValueError(
                    f"{len(lone)} files of {source.root} have none of their name in {beside.root}: "
                    f"{', '.join(lone[:_MOST_NAMED])}"
                )
            self._files = [found[_stem(name)] for name in wanted]
        for name, has, count in zip(wanted, beside.counts[self._files], source.counts, strict=True):
            if has not in (1, count):
                raise ValueError(
                    f"{name} of {source.root} has {count} images, and its file in {beside.root} "
                    f"{has}; give {count}, or 1 for all"
                )

    def at(self, file: int, number: int) -> ArrayRef:
        """Returns the image that belongs to one of a file of the source."""
        beside = self._files[file]
        return self._of.at(beside, number if self._of.counts[beside] > 1 else 0)


class _KeptOpen:
    """Opens files, and keeps those that were used last; thread-safe."""

    def __init__(self, of_file: functools.partial[arrays.ArrayFile]) -> None:
        self._lock = threading.Lock()
        self._open = functools.lru_cache(_NUM_OPEN)(of_file)

    def __call__(self, path: str) -> arrays.ArrayFile:
        with self._lock:
            return self._open(path)


def names_in(root: str, skip: Collection[str] = ()) -> list[str]:
    """Returns the files of arrays below a folder, but for hidden ones; a folder of Zarr is one."""
    found = storage.find(root, skip)
    within = {whole(name) for name in found if not os.path.basename(name).startswith(".")}
    return sorted(name for name in within if arrays.format_of(name))


def map_of(maps: str, name: str) -> str:
    """Returns the file of maps of an input: `maps` itself, or the file of its name in that folder.

    Raises:
      ValueError: there is none.
    """
    if arrays.format_of(maps):
        return maps
    for suffix in arrays.FORMATS:
        path = os.path.join(maps, _stem(name) + suffix)
        if storage.exists(path):
            return path
    raise ValueError(f"{storage.shown(maps)} has no file of maps of this name")


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
        names = names_in(root, place.skip)
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


def _stem(name: str) -> str:
    """Returns a path without the suffix of its format."""
    return name[: -len(arrays.format_of(name) or "") or None]


def whole(name: str) -> str:
    """Returns the name of the folder that is a file, or the name itself."""
    before, inside, _ = name.partition(_INSIDE)
    return before + _INSIDE[:-1] if inside else name
