"""Sources: where images come from. A source is a sequence of `ImageRef`; nothing is read here.

`folder` lists the images under any path, `photos` nine real photographs that every installation
already has, because scikit-image's wheel ships them. They let examples, tests and first training
runs work without a download; they are far too few to train a useful model on.

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

import collections
import dataclasses
import importlib.util
import os
import pathlib
from collections.abc import Sequence
from typing import Literal, NoReturn

from etils import epath

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")

Box = tuple[int, int, int, int]

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
_HELD_OUT_BOXES: dict[str, tuple[str, Box]] = {
    "astronaut": ("astronaut.png", (0, 0, 512, 512)),
    "astronaut_portrait": ("astronaut.png", (100, 0, 356, 256)),
    "astronaut_helmet": ("astronaut.png", (256, 256, 512, 512)),
    "astronaut_shuttle": ("astronaut.png", (312, 84, 512, 284)),
    "astronaut_patch": ("astronaut.png", (107, 320, 235, 448)),
    "chelsea": ("chelsea.png", (75, 0, 375, 300)),
    "chelsea_nose": ("chelsea.png", (176, 140, 336, 300)),
    "chelsea_eye": ("chelsea.png", (106, 50, 234, 178)),
}


@dataclasses.dataclass(frozen=True)
class ImageRef:
    """One image of a source.

    Attributes:
        name: unique in its source; a relative path with forward slashes.
        path: the file, local or any URL `etils.epath` reads (`gs://...`).
        box: (left, top, right, bottom) in pixels of the upright image (after its EXIF
            orientation), cut out before anything else; None for the whole image.
    """

    name: str
    path: str
    box: Box | None = None


def photos(split: Literal["train", "held_out"]) -> Sequence[ImageRef]:
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
        return tuple(ImageRef(pathlib.Path(f).stem, _photo_path(f)) for f in _TRAIN_FILES)
    if split == "held_out":
        return tuple(
            ImageRef(name, _photo_path(file), box) for name, (file, box) in _HELD_OUT_BOXES.items()
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


def folder(path: str | os.PathLike[str]) -> Sequence[ImageRef]:
    """Every image file under `path`, at any depth, sorted by relative path.

    An image is a file whose name ends in one of `IMAGE_SUFFIXES`, in upper or lower case; whether
    it holds an image is found out when it is read. Files and folders whose name begins with a dot
    are skipped, and links to folders are not followed (`path` itself may be one).

    Args:
        path: a local folder or any URL `etils.epath` reads (`gs://bucket/images`).

    Returns:
        One `ImageRef` an image, whose name is the path relative to `path`.

    Raises:
        FileNotFoundError: `path` does not exist.
        NotADirectoryError: `path` is a file.
        ValueError: no image in it.
    """
    root = epath.Path(path).expanduser()
    if not root.exists():
        raise FileNotFoundError(
            f"image folder {str(path)!r} does not exist; give the path of a folder of images"
        )
    if not root.is_dir():
        raise NotADirectoryError(
            f"image folder {str(path)!r} is a file; give the folder it lies in, {root.parent}"
        )
    refs = []
    other_files: collections.Counter[str] = collections.Counter()
    for directory, subfolders, files in root.walk(on_error=_raise):
        # In place, so that walk does not descend into hidden folders.
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = directory.relative_to(root).as_posix()
        prefix = "" if relative == "." else f"{relative}/"
        for file in files:
            suffix = os.path.splitext(file)[1].lower()
            if file.startswith("."):
                other_files["hidden"] += 1
            elif suffix in IMAGE_SUFFIXES:
                refs.append(ImageRef(prefix + file, str(directory / file)))
            else:
                other_files[suffix or "no extension"] += 1
    if not refs:
        raise ValueError(_no_image_message(str(path), other_files))
    return tuple(sorted(refs, key=lambda ref: ref.name))


def _raise(error: OSError) -> NoReturn:
    # By default walk passes over folders it may not list, which would silently shrink the source.
    raise error


def _no_image_message(path: str, other_files: collections.Counter[str]) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in other_files.most_common(5))
    found = f"{other_files.total()} other files ({kinds})" if other_files else "no file at all"
    return (
        f"no image in folder {path!r}: found {found}; "
        f"it needs files that end in {', '.join(IMAGE_SUFFIXES)}"
    )
