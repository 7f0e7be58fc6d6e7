"""Sources: where images come from. A source is a sequence of `ImageRef`, which read themselves.

`source_kinds` lists the modules that have sources of data sets.
"""

import abc
import dataclasses
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, SupportsIndex, overload, runtime_checkable

import numpy as np
from jaxtyping import Integer, Num

from sr3_jax.data import image_files

NO_LABEL = -1

# Decodes the content of a picture file, with notes; see `image_files.decode_seen`.
Decode = Callable[[bytes], tuple[image_files.Pixels | image_files.Encoded, tuple[str, ...]]]


class Picture(NamedTuple):
    """An image that was read, with its label.

    Attributes:
      image: of a picture, upright RGB of the depth of its file (`image_files.decode_seen`), or
        what another decoder gave; of a file of arrays float32, NaN where values are missing.
      low_resolution: the same picture as another camera, or another method, took it; None
        where it is still to be made from `image`.
      maps: further channels at the size of `image`; None for none.
      label: index of its class, from 0; NO_LABEL if there is none.
      notes: what of the file's look is not in `image`, such as a colour profile.
    """

    image: Num[np.ndarray, "height width c"] | image_files.Encoded
    low_resolution: Num[np.ndarray, "low_height low_width d"] | image_files.Encoded | None = None
    label: int = NO_LABEL
    notes: tuple[str, ...] = ()
    maps: Num[np.ndarray, "height width m"] | None = None


@runtime_checkable
class ImageRef(Protocol):
    """One image of a source, not read yet.

    Attributes:
      name: unique in its source, and the same each time it is opened.
    """

    @property
    def name(self) -> str: ...
    def read(self, decode: Decode = image_files.decode_seen) -> Picture:
        """Reads and decodes it; several threads may at once.

        `decode` is used where a picture file is read whole.

        Raises:
          image_files.BadImageError: it cannot be used, and why.
          OSError: reading failed for a reason that says nothing about the image.
        """


Source = Sequence[ImageRef]


class LazySource(Sequence[ImageRef], abc.ABC):
    """A source of millions of images, whose refs are made as they are asked for.

    Attributes:
      neighbours: number of images in a row that can be read in any order, of a source that is
        otherwise read from first to last; None: all.
    """

    neighbours: int | None = None

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def ref(self, index: int) -> ImageRef:
        """The image at `index`, in [0, len)."""

    def names(self) -> Iterator[bytes]:
        """All names, as bytes, in order; for a million that takes some seconds at most."""
        return (os.fsencode(self.ref(index).name) for index in range(len(self)))

    @overload
    def __getitem__(self, index: SupportsIndex) -> ImageRef: ...
    @overload
    def __getitem__(self, index: slice) -> Source: ...
    def __getitem__(self, index: SupportsIndex | slice) -> ImageRef | Source:
        if isinstance(index, slice):
            return Subset(self, np.arange(len(self))[index])
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"image {index} of a source of {len(self)}")
        return self.ref(index % len(self))


class Subset(LazySource):
    """Some images of a source, in the order given."""

    def __init__(self, source: Source, indices: Integer[np.ndarray, " subset"]) -> None:
        self._source, self._indices = source, indices
        self.neighbours = getattr(source, "neighbours", None)

    def __len__(self) -> int:
        return len(self._indices)

    def ref(self, index: int) -> ImageRef:
        """See `LazySource`."""
        return self._source[int(self._indices[index])]


class Joined(LazySource):
    """The images of several sources, one after the other, without labels."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def ref(self, index: int) -> ImageRef:
        """See `LazySource`."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        return _Unlabelled(self._parts[part][index - int(self._ends[part])])


@dataclasses.dataclass(frozen=True)
class _Unlabelled:
    ref: ImageRef

    @property
    def name(self) -> str:
        return self.ref.name

    def read(self, decode: Decode = image_files.decode_seen) -> Picture:
        return self.ref.read(decode)._replace(label=NO_LABEL)


@dataclasses.dataclass(frozen=True)
class FileRef:
    """An image file; see `ImageRef`.

    Attributes:
      name: a relative path with forward slashes.
      path: local, or a URL (`gs://...`); see `storage`.
      box: box of the upright image (after its EXIF orientation), cut out before anything else;
        None for the whole image.
      label: see `Picture`.
    """

    name: str
    path: str
    box: image_files.Box | None = None
    label: int = NO_LABEL

    def read(self, decode: Decode = image_files.decode_seen) -> Picture:
        """See `ImageRef`."""
        data = image_files.content(self.path)
        if self.box is None:
            image, notes = decode(data)
        else:
            image, notes = image_files.decode_seen(data)
            image = image_files.cut(image, self.box)
        return Picture(image, label=self.label, notes=notes)
