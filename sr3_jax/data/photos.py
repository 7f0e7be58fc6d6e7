"""Nine real photographs that every installation already has: scikit-image's wheel ships them.

They let examples, tests and first training runs work without a download; they are far too few to
train a useful model on.

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

import importlib.util
import pathlib
from collections.abc import Iterator
from typing import Literal

from sr3_jax.data import image_files, source_kinds, sources

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


def faults(place: source_kinds.Place) -> Iterator[str]:
    """Yields nothing: the photographs need no path."""
    yield from ()


def open_source(place: source_kinds.Place) -> sources.Source:
    """Returns the photographs of one half."""
    return photos("train" if place.half == "train" else "held_out")


def photos(split: Literal["train", "held_out"]) -> sources.Source:
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
        return tuple(sources.FileRef(pathlib.Path(f).stem, _photo_path(f)) for f in _TRAIN_FILES)
    if split == "held_out":
        return tuple(
            sources.FileRef(name, _photo_path(file), box)
            for name, (file, box) in _HELD_OUT_BOXES.items()
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
