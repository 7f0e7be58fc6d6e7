"""A source of the images in a tar file, without unpacking it, such as ImageNet's own two.

    ILSVRC2012_img_train.tar    1000 tars, n01440764.tar and so on, each of one class's images
    ILSVRC2012_img_val.tar      ILSVRC2012_val_00000001.JPEG to ILSVRC2012_val_00050000.JPEG

A tar has no table of contents: each file follows a header with its length. The headers are walked
over once, and then any image is one read away.
"""

import array
import collections
import functools
import importlib.util
import itertools
import os
import pathlib
import posixpath
import re
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from typing import NamedTuple

import numpy as np
import tqdm
from absl import logging
from jaxtyping import Int

from sr3_jax.data import folders, index_file, source_kinds, sources, storage
from sr3_jax.data.image_files import BadImageError, content, decode_seen

_VALIDATION_NAME = re.compile(rb"ILSVRC2012_val_(\d{8})\.JPEG")

# First bytes of compressed files, and the command that unpacks them.
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}

# Bytes that are read for a header; twice as many each time the next one is near. In a bucket 4 MiB
# take little more time than any request; on a disk seeking is faster.
_LEAST_READ, _MOST_READ, _MOST_READ_OF_URL = 16 << 10, 64 << 10, 4 << 20

_WRONG = "{} is cut off, damaged or no tar file at byte {}: {}; fetch or pack it again"

_BLOCK = 512
# Most bytes of a file's name and attributes, and of zeros at the end of a tar (10 KiB by default).
_LONGEST_HEADER = _LONGEST_END = 1 << 20


class Archive(folders.Folder):
    """Images in a tar file, as in a folder; each takes its name and 24 bytes of memory.

    A tar in the tar is a folder of its name. Images of ImageNet's validation set have their classes
    from the list that TFDS ships.
    """

    def __init__(self, path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
        """Makes a source of what `to_arrays` returned; see `archive`.

        Raises:
          KeyError: an array is missing.
          ValueError: the arrays are damaged.
        """
        super().__init__(os.fspath(path), arrays)
        self._offset, self._size = index_file.check_places(arrays, len(self))
        self._listed_labels = _listed_labels(self.names())

    def ref(self, index: int) -> "MemberRef":
        named = super().ref(index)
        label = named.label if self._listed_labels is None else int(self._listed_labels[index])
        offset, size = int(self._offset[index]), int(self._size[index])
        return MemberRef(named.name, self.root, offset, size, label)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns names and places of the images, to be kept in a file."""
        return {**super().to_arrays(), "offset": self._offset, "size": self._size}


class MemberRef(NamedTuple):
    """An image at `offset` of the tar `path`, with `size` bytes; see `sources.ImageRef`.

    In an inner tar its name is as `n01440764/n01440764_10026.JPEG`.
    """

    name: str
    path: str
    offset: int
    size: int
    label: int

    def read(self, decode: sources.Decode = decode_seen) -> sources.Picture:
        # A request for no bytes is an error in a bucket.
        data = content(self.path, self.offset, self.size) if self.size else b""
        if len(data) < self.size:
            raise BadImageError(
                f"truncated: {self.path} ends in the middle of the file at byte {self.offset}"
            )
        image, notes = decode(data)
        return sources.Picture(image, label=self.label, notes=notes)


def archive(
    path: str | os.PathLike[str], progress: Callable[[int], object] = lambda num_bytes: None
) -> Archive:
    """Lists the images in a tar file and in the tars in it, sorted by name.

    A file is an image if `folders.folder` would list it after unpacking. A million images take a
    minute or two; a tar of small files in a bucket is read whole.

    Args:
      path: an uncompressed tar file, local or a URL.
      progress: called with numbers of bytes that were walked over.

    Raises:
      ValueError: it is no tar file, compressed, cut off or damaged (the message has the byte), or
        has two images of one name, links instead of images, or no image at all.
    """
    path = os.fspath(path)
    outer = _listing(path, 0, storage.size(path), progress=progress)

    def inner(member: tarfile.TarInfo) -> _Listing:
        begin = member.offset_data
        return _listing(path, begin, begin + member.size, inside=member.name)

    names, places, others = outer.names, outer.places, outer.other_files
    with futures.ThreadPoolExecutor(16) as pool:
        for member, listing in zip(outer.tars, pool.map(inner, outer.tars), strict=True):
            names += listing.names
            places += listing.places
            others += listing.other_files
            progress(member.size)
    if not names:
        raise ValueError(folders.no_image_message(f"tar {path!r}", others))
    places = np.frombuffer(places, np.int64).reshape(-1, 2)
    order = sorted(range(len(names)), key=names.__getitem__)
    for first, second in itertools.pairwise(order):
        if names[first] == names[second]:
            raise ValueError(
                f"{path} has two images of one name, {os.fsdecode(names[first])}, at bytes "
                f"{places[first, 0]} and {places[second, 0]}; pack it anew with one of them"
            )
    offset, size = np.ascontiguousarray(places[order].T)
    arrays = folders.arrays_of([names[index] for index in order])
    return Archive(path, {**arrays, "offset": offset, "size": size})


def faults(place: source_kinds.Place) -> Iterator[str]:
    """Yields what is wrong with the path of a tar; see `source_kinds`."""
    key = place.key("path")
    if not storage.exists(place.path):
        yield f"{key} = {place.path!r} does not exist; give the path of a tar file"
    elif storage.is_folder(place.path):
        yield (
            f"{key} = {place.path!r} is a folder; give a tar file, or add "
            f"--{place.key('source')}=folder"
        )


def open_source(place: source_kinds.Place) -> Archive:
    """Returns the images of a tar, as listed in `place.index` if it is there."""
    path, size = place.path, storage.size(place.path)

    def walk() -> Mapping[str, np.ndarray]:
        with tqdm.tqdm(
            total=size,
            desc="reading headers",
            unit="B",
            unit_scale=True,
            file=sys.stderr,
            delay=2.0,
        ) as bar:
            return archive(path, bar.update).to_arrays()

    opened = functools.partial(Archive, path)
    return opened(index_file.load_or_make(place.index, f"tar {path} of {size} bytes", walk, opened))


def imagenet_validation_labels() -> Int[np.ndarray, "50000"] | None:
    """Reads the class, from 0, of each image of ImageNet's validation set, by number.

    The list comes with TFDS, and is read without importing it; None if it is missing.
    """
    spec = importlib.util.find_spec("tensorflow_datasets")
    if not spec or not spec.origin:
        return None
    folder = pathlib.Path(spec.origin).parent / "datasets" / "imagenet2012"
    try:
        classes, of_images = (
            (folder / name).read_text().split() for name in ("labels.txt", "validation_labels.txt")
        )
    except FileNotFoundError:
        return None
    numbers = {name: number for number, name in enumerate(sorted(classes))}
    return np.array([numbers[name] for name in of_images])


def _listed_labels(names: Iterable[bytes]) -> Int[np.ndarray, " images"] | None:
    """Returns labels if all images are of ImageNet's validation set and the list is there."""
    numbers = []
    for name in names:
        match = _VALIDATION_NAME.fullmatch(name)
        if not match or not 1 <= int(match[1]) <= 50000:
            return None
        numbers.append(int(match[1]))
    labels = imagenet_validation_labels()
    if labels is None:
        logging.log_first_n(
            logging.WARNING,
            "the images of ImageNet's validation set have no labels, since their list, "
            "datasets/imagenet2012/validation_labels.txt of tensorflow_datasets, is not there; "
            "pip install tensorflow-datasets",
            1,
        )
    return None if labels is None else labels[np.array(numbers) - 1]


class _Listing(NamedTuple):
    """The content of one tar: `places` has offset and size of each image in turn."""

    names: list[bytes]
    places: array.array
    other_files: collections.Counter[str]
    tars: list[tarfile.TarInfo]


def _listing(
    path: str,
    begin: int,
    end: int,
    inside: str = "",
    progress: Callable[[int], object] = lambda num_bytes: None,
) -> _Listing:
    """Lists the tar from byte `begin` to `end` of a file; `inside` is the name of an inner tar."""
    what = f"{inside} in {path}" if inside else path
    folder = posixpath.splitext(posixpath.basename(inside))[0]
    found = _Listing([], array.array("q"), collections.Counter(), [])
    for member in _members(path, begin, end, what):
        if member.isdir():
            continue
        # As if unpacked, where `./a` and `/a` are `a`.
        name = posixpath.normpath(member.name).lstrip("/")
        is_hidden = any(part.startswith(".") for part in name.split("/"))
        is_tar = not inside and name.endswith(".tar")
        kind = "hidden" if is_hidden else "" if is_tar else folders.other_kind(name)
        if kind:
            found.other_files[kind] += 1
            continue
        if not member.isreg() or member.issparse():
            raise ValueError(
                f"{name}, at byte {member.offset} of {path}, is a link or has holes, so that its "
                "content is not there in one piece; pack the tar anew, with --dereference "
                "--hard-dereference and without --sparse"
            )
        if is_tar:
            found.tars.append(member)
        else:
            found.names.append(os.fsencode(posixpath.join(folder, name)))
            found.places.extend((member.offset_data, member.size))
            progress(member.size)
    return found


def _members(path: str, begin: int, end: int, what: str) -> Iterator[tarfile.TarInfo]:
    """Yields the members of the tar from byte `begin` to `end`, with places in the file."""
    file = _Headers(path, begin, end)
    start = file.read(8)
    file.seek(begin)
    if command := next((its for magic, its in _COMPRESSED.items() if start.startswith(magic)), ""):
        raise ValueError(
            f"{what} is compressed, so that no image in it can be read alone; unpack it with "
            f"{command}"
        )
    position = begin
    try:
        tar = tarfile.TarFile(fileobj=file)  # begins where the file is
        while (member := tar.next()) is not None:
            tar.members.clear()  # else tarfile keeps all, at a kilobyte each
            if member.size < 0:
                raise tarfile.ReadError(f"{member.name} has a size of {member.size} bytes")
            if not position < tar.offset <= end:
                raise tarfile.ReadError(
                    f"{member.name} is said to reach to byte {tar.offset} of the file, in which "
                    f"the tar has bytes {begin} to {end}"
                )
            position = tar.offset
            yield member
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(_WRONG.format(what, position, error)) from error
    # tarfile takes anything that is no header for the end of the tar.
    file.seek(position)
    mark = file.read(_BLOCK)
    if len(mark) < _BLOCK or any(mark):
        why = "neither the header of a file nor the end of a tar"
        raise ValueError(_WRONG.format(what, position, why))
    if end - position > _LONGEST_END or any(file.read(end - file.tell())):
        raise ValueError(
            f"{what} ends at byte {position}, and there are {end - position} bytes more: it was "
            "not fetched to the end, or is several tars in one; fetch or pack it again"
        )


class _Headers:
    """A file for tarfile that ends at `end`, and reads ahead as far as headers are near."""

    def __init__(self, path: str, begin: int, end: int) -> None:
        self._path, self._position, self._end = path, begin, end
        self._most = _MOST_READ_OF_URL if storage.is_url(path) else _MOST_READ
        self._ahead = _LEAST_READ // 2
        self._data, self._data_at = b"", begin

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        self._position = position
        return position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        size = max(min(size, self._end - self._position), 0)
        start = self._position - self._data_at
        if start < 0 or start + size > len(self._data):
            is_near = start - len(self._data) < self._most
            self._ahead = min(2 * self._ahead, self._most) if is_near else _LEAST_READ
            ahead = min(max(size, self._ahead), self._end - self._position)
            self._data = storage.read(self._path, self._position, ahead)
            self._data_at, start = self._position, 0
        data = self._data[start : start + size]
        self._position += len(data)
        return data
