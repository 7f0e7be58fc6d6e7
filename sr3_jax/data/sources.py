"""Sources: where images come from. A source is a sequence of `ImageRef`, which read themselves.

`folders`, `archives`, `records` and `tfds_source` have those of data sets; here are nine real
photographs that every installation already has, because scikit-image's wheel ships them. They let
examples, tests and first training runs work without a download; they are far too few to train a
useful model on.

What scikit-image's own docstrings (`skimage.data`, 0.26) say about them:

| photograph | size | split | author or source | licence |
|---|---|---|---|---|
| coffee | 600x400 | train | Rachel Michetti, courtesy of Pikolo Espresso Bar | CC0 |
| rocket | 640x427 | train | SpaceX, DSCOVR launch | released in the public domain |
| motorcycle_left, motorcycle_right | 741x500 | train | Middlebury 2014 stereo benchmark: Nesic, \
Westling, Wang, Kitajima, Krathwohl, Scharstein | none stated; cite Scharstein et al., GCPR 2014 |
| retina | 1411x1411 | train | Mikael Haggstrom, Wikimedia | CC0 |
| hubble_deep_field | 1000x872 | train | NASA, HubbleSite | may be freely used in the public \
domain |
| ihc | 512x512 | train | Center for Microscopy And Molecular Imaging (CMMI) | no known copyright \
restrictions |
| astronaut | 512x512 | held_out | NASA Great Images, Eileen Collins | no known copyright \
restrictions, public domain |
| chelsea | 451x300 | held_out | Stefan van der Walt | CC0 |
"""

import abc
import dataclasses
import importlib.util
import operator
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol, SupportsIndex, overload, runtime_checkable

import numpy as np
from jaxtyping import Integer, UInt

from sr3_jax.data import image_files

NO_LABEL = -1

_TRAIN_FILES = (
    "coffee.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "hubble_deep_field.jpg",
    "ihc.png",
)

# Chosen by eye, so that a person can tell at a glance what a super-resolved one should look like.
# The first of each photograph is its largest central square.
_HELD_OUT_BOXES: dict[str, tuple[str, image_files.Box]] = {
    "astronaut": ("astronaut.png", (0, 0, 512, 512)),
    "astronaut_portrait": ("astronaut.png", (100, 0, 356, 256)),
    "astronaut_helmet": ("astronaut.png", (256, 256, 512, 512)),
    "astronaut_shuttle": ("astronaut.png", (312, 84, 512, 284)),
    "astronaut_patch": ("astronaut.png", (107, 320, 235, 448)),
    "chelsea": ("chelsea.png", (75, 0, 375, 300)),
    "chelsea_nose": ("chelsea.png", (176, 140, 336, 300)),
    "chelsea_eye": ("chelsea.png", (106, 50, 234, 178)),
}


class Picture(NamedTuple):
    """What is read of one image.

    Attributes:
        image: upright RGB of the depth of its file; see `image_files.decode_seen`.
        low_resolution: the same picture as another camera, or another method, took it; None
            where it is still to be made from `image`.
        label: of its class, from 0; NO_LABEL where there is none.
        notes: what of the file's look is not in `image`, such as a colour profile.
    """

    image: UInt[np.ndarray, "height width 3"]
    low_resolution: UInt[np.ndarray, "low_height low_width 3"] | None = None
    label: int = NO_LABEL
    notes: tuple[str, ...] = ()


@runtime_checkable
class ImageRef(Protocol):
    """One image of a source, not read yet.

    Attributes:
        name: unique in its source, and the same each time it is opened.
    """

    @property
    def name(self) -> str: ...
    def read(self) -> Picture:
        """Reads and decodes it; several threads may at once.

        Raises:
            image_files.BadImageError: it cannot be used, and why.
            OSError: reading failed for a reason that says nothing about the image.
        """


Source = Sequence[ImageRef]


class LazySource(Sequence[ImageRef], abc.ABC):
    """A source of millions of images, whose refs are made as they are asked for."""

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

    def __len__(self) -> int:
        return len(self._indices)

    def ref(self, index: int) -> ImageRef:
        """See `LazySource`."""
        return self._source[int(self._indices[index])]


@dataclasses.dataclass(frozen=True)
class FileRef:
    """An image file; see `ImageRef`.

    Attributes:
        name: a relative path with forward slashes.
        path: local, or a URL (`gs://...`); see `storage`.
        box: of the upright image (after its EXIF orientation), cut out before anything else;
            None for the whole image.
        label: see `Picture`.
    """

    name: str
    path: str
    box: image_files.Box | None = None
    label: int = NO_LABEL

    def read(self) -> Picture:
        """See `ImageRef`."""
        image, notes = image_files.decode_seen(image_files.content(self.path))
        return Picture(image_files.cut(image, self.box), label=self.label, notes=notes)


def photos(split: Literal["train", "held_out"]) -> Source:
    """The colour photographs of the installed scikit-image; reads no network.

    Args:
        split: "train" for 7 whole photographs, at least 400 pixels on the shorter side;
            "held_out" for 8 named squares, 128 to 512 pixels wide, cut from the 2 photographs
            kept apart (4 of them are at least 256 wide). No photograph is in both.

    Returns:
        The images, always in the same order.

    Raises:
        ValueError: for any other split.
        FileNotFoundError: if the installed scikit-image lacks one of the files.
    """
    if split == "train":
        return tuple(FileRef(pathlib.Path(f).stem, _photo_path(f)) for f in _TRAIN_FILES)
    if split == "held_out":
        return tuple(
            FileRef(name, _photo_path(file), box) for name, (file, box) in _HELD_OUT_BOXES.items()
        )
    raise ValueError(f"split is {split!r}; photos has 'train' and 'held_out'")


def _photo_path(filename: str) -> str:
    # find_spec instead of an import: only the folder is needed, and skimage is slow to import.
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the photos come with scikit-image: pip install scikit-image")
    path = pathlib.Path(spec.origin).parent / "data" / filename
    if not path.is_file():
        raise FileNotFoundError(
            f"the installed scikit-image has no {path}; install the version in requirements.txt"
        )
    return str(path)
