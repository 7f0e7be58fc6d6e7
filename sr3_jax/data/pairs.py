"""Two folders whose images belong together: a picture, and the same from another camera."""

import dataclasses
import os
from collections.abc import Collection, Iterator
from typing import TypeVar

import numpy as np

from sr3_jax.data import folders, image_files, source_kinds, sources
from sr3_jax.data.image_files import BadImageError

_MAX_NAMED = 100  # in an error
T = TypeVar("T")


def faults(place: source_kinds.Place) -> Iterator[str]:
    """Yields what is wrong with the two folders; see `source_kinds`."""
    yield from folders.not_a_folder(place, "path")
    if place.low_path:
        yield from folders.not_a_folder(place, "low_path")
    else:
        yield f"{place.key('low_path')} is empty; give the folder of low resolutions"


def open_source(place: source_kinds.Place) -> "Pairs":
    """Returns the images of two folders in pairs."""
    index = place.index and place.index.with_name(f"{place.half}_low.npz")
    low = dataclasses.replace(place, path=place.low_path, index=index)
    high, low = folders.open_source(place), folders.open_source(low)
    try:
        return Pairs(high, low)
    except ValueError as error:
        if place.index is None:
            raise
        raise ValueError(
            f"{error}; lists are kept in {place.index.parent}, remove it if the folders have "
            "changed"
        ) from error


@dataclasses.dataclass(frozen=True)
class PairRef:
    """An image, and the same picture as another camera took it; see `sources.ImageRef`."""

    high: sources.ImageRef
    low: sources.ImageRef

    @property
    def name(self) -> str:
        return self.high.name

    def read(self, decode: sources.Decode = image_files.decode_seen) -> sources.Picture:
        picture = self.high.read(decode)
        try:
            low = self.low.read(decode)
        except BadImageError as error:
            raise BadImageError(f"its low resolution {self.low.name}: {error}") from error
        notes = tuple(f"its low resolution: {note}" for note in low.notes)
        return picture._replace(low_resolution=low.image, notes=picture.notes + notes)


class Pairs(sources.LazySource):
    """The images of two folders in pairs, by name; see `match`."""

    def __init__(self, high: folders.Folder, low: folders.Folder) -> None:
        self._high, self._low = match(high, low)

    def __len__(self) -> int:
        return len(self._high)

    def ref(self, index: int) -> PairRef:
        return PairRef(self._high[index], self._low[index])


def match(first: folders.Folder, *others: folders.Folder) -> list[sources.LazySource]:
    """Returns the images of folders in the order of the first, by relative path without suffix.

    The names of another folder may all have one more ending, such as `0001x4.png` for `0001.png`.

    Raises:
      ValueError: images have no partner, or several.
    """
    stems = _by_stem(first)
    of_others = [without_ending(_by_stem(other), stems) for other in others]
    missing = []
    for other, its in zip(others, of_others, strict=True):
        for source, partner, lone in (
            (first, other, sorted(stems.keys() - its.keys())),
            (other, first, sorted(its.keys() - stems.keys())),
        ):
            if lone:
                more = f" and {len(lone) - _MAX_NAMED} more" if len(lone) > _MAX_NAMED else ""
                missing.append(
                    f"{len(lone)} of {source.root} have none in {partner.root}: "
                    f"{', '.join(lone[:_MAX_NAMED])}{more}"
                )
    if missing:
        raise ValueError("images without a partner of the same name: " + "; ".join(missing))
    in_order = (np.array([its[stem] for stem in stems]) for its in of_others)
    return [first, *map(sources.Subset, others, in_order)]


def without_ending(found: dict[str, T], wanted: Collection[str]) -> dict[str, T]:
    """Returns values by names without the ending that all names have more than those wanted.

    They stay as they are where there is no such ending.
    """
    if not wanted or not found or found.keys() & set(wanted):
        return found
    some = min(wanted)
    endings = {name.removeprefix(some) for name in found if name.startswith(some)}
    for ending in sorted(endings, key=len):
        if found.keys() >= {name + ending for name in wanted}:
            return {name.removesuffix(ending): value for name, value in found.items()}
    return found


def _by_stem(source: folders.Folder) -> dict[str, int]:
    """Returns the positions of images by path without suffix, in the order of the source."""
    found: dict[str, int] = {}
    for index in range(len(source)):
        name = source.ref(index).name
        stem = os.path.splitext(name)[0]
        if stem in found:
            raise ValueError(
                f"{source.root} has two images of one name, {source.ref(found[stem]).name} and "
                f"{name}; pairs are matched by name without suffix, so rename one"
            )
        found[stem] = index
    return found
