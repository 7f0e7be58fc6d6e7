"""A folder of image files, of any depth."""

import collections
import functools
import itertools
import os
import types
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from sr3_jax.data import index_file, source_kinds, sources, storage

# Formats that `picture` reads.
IMAGE_SUFFIXES = tuple(
    ".jpg .jpeg .jpe .jfif .png .webp .tif .tiff .bmp .dib .gif .heic .heif .hif .avif".split()
)
# Pictures of formats that it does not read: others, raw ones of cameras, drawings.
UNREAD_SUFFIXES = frozenset(
    ".jxl .jp2 .j2k .jpf .jpx .jpm .jxr .wdp .ico .cur .icns .tga .pcx .ppm .pgm .pbm .pnm .pam "
    ".pfm .exr .hdr .dpx .cin .fits .fit .dcm .dicom .sgi .ras .xbm .xpm .dds .qoi .flif .bpg "
    ".psd .psb .xcf .kra .clip .ai .eps .svg .svgz .wmf .emf .mng .jng .apng .mpo .jps .btf .tf8 "
    ".dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .x3f .3fr .fff .iiq "
    ".mrw .erf .kdc .dcr .mos .mef .rwl .raw".split()
)


class Folder(sources.LazySource):
    """Image files under one folder; each takes its relative path and eight bytes of memory.

    If every image lies in a subfolder, the subfolders of the first level are the classes, numbered
    in alphabetical order.

    Attributes:
        root: the folder.
        classes: names of the classes.
        others: number of files that are no images by their names, by suffix, `hidden` or
            `no extension`. Empty if the list of images was read from a file.
        unread: names of those that are pictures of a format that is not read, sorted.
    """

    def __init__(
        self,
        root: str,
        arrays: Mapping[str, np.ndarray],
        others: Mapping[str, int] = types.MappingProxyType({}),
        unread: Sequence[str] = (),
    ) -> None:
        """Makes a source of what `to_arrays` or `arrays_of` returned; see `folder`.

        Raises:
            KeyError: an array is missing.
            ValueError: the arrays are damaged, or name files outside `root`.
        """
        _check(arrays)
        self.root = root
        self.others, self.unread = collections.Counter(others), tuple(unread)
        # Bytes, since on Linux a name need not be text.
        self._bytes = arrays["names"].tobytes()
        self._ends = arrays["ends"]
        classes = arrays["classes"].tobytes()
        self.classes = tuple(map(os.fsdecode, classes.split(b"/"))) if classes else ()
        self._labels = {name: label for label, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self._ends)

    def ref(self, index: int) -> sources.FileRef:
        start = int(self._ends[index - 1]) if index else 0
        name = os.fsdecode(self._bytes[start : int(self._ends[index])])
        label = self._labels.get(name.partition("/")[0], sources.NO_LABEL)
        return sources.FileRef(name, os.path.join(self.root, name), label=label)

    def names(self) -> Iterator[bytes]:
        start = 0
        for end in self._ends.tolist():
            yield self._bytes[start:end]
            start = end

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the list of images as arrays, to be kept in a file; see `arrays_of`."""
        classes = b"/".join(map(os.fsencode, self.classes))
        return {
            "names": np.frombuffer(self._bytes, np.uint8),
            "ends": self._ends,
            "classes": np.frombuffer(classes, np.uint8),
        }


def _check(arrays: Mapping[str, np.ndarray]) -> None:
    names = index_file.check_column(arrays, "names", (np.uint8,))
    ends = index_file.check_column(arrays, "ends", (np.int64,))
    index_file.check_column(arrays, "classes", (np.uint8,))
    starts = np.concatenate([np.zeros(1, np.int64), ends])
    if (np.diff(starts) <= 0).any() or starts[-1] != len(names):
        raise ValueError("ends are not those of names")
    # NumPy searches a million names at once; only if there are two dots is each name looked at.
    is_absolute = len(ends) and (names[starts[:-1]] == ord("/")).any()
    joined = names.tobytes()
    climbs = b".." in joined and any(
        b".." in joined[start:end].split(b"/") for start, end in itertools.pairwise(starts.tolist())
    )
    if is_absolute or climbs or b"\0" in joined:
        raise ValueError("a name leads out of the folder, or is none")


def arrays_of(names: Sequence[str | bytes]) -> dict[str, np.ndarray]:
    """Returns the arrays of a `Folder` from relative paths in their order.

    Returns:
        `names`, the bytes of all paths; `ends`, the end of each path in them; and `classes`, the
        bytes of the names of the classes, separated by slashes.
    """
    encoded = [os.fsencode(name) for name in names]
    classes = {name.partition(b"/")[0] if b"/" in name else b"" for name in encoded}
    in_order = b"" if b"" in classes else b"/".join(sorted(classes))
    return {
        "names": np.frombuffer(b"".join(encoded), np.uint8),
        "ends": np.cumsum([len(name) for name in encoded], dtype=np.int64),
        "classes": np.frombuffer(in_order, np.uint8),
    }


def folder(path: str | os.PathLike[str], skip: Collection[str] = ()) -> Folder:
    """Lists every image file under a folder, at any depth, sorted by relative path.

    A file is an image if its name ends in one of `IMAGE_SUFFIXES`, in upper or lower case; its
    content is checked when it is read. Files and folders whose name begins with a dot are left
    out. Links to folders are followed, except one that leads back to a folder it lies in.

    Args:
        path: a local folder, or a URL (`gs://bucket/images`); see `storage`.
        skip: folders that are left out; see `storage.find`.

    Raises:
        FileNotFoundError: `path` does not exist.
        NotADirectoryError: `path` is a file.
        ValueError: there is no image in it.
    """
    root = os.path.expanduser(path)
    if not storage.is_url(root):
        if not os.path.exists(root):
            raise FileNotFoundError(
                f"image folder {root!r} does not exist; give the path of a folder of images"
            )
        if not os.path.isdir(root):
            raise NotADirectoryError(
                f"image folder {root!r} is a file; give the folder it lies in, "
                f"{os.path.dirname(root) or '.'}"
            )
    other_files: collections.Counter[str] = collections.Counter()
    names, unread = [], []
    for name in storage.find(root, skip):
        kind = other_kind(name)
        if not kind:
            names.append(name)
            continue
        other_files[kind] += 1
        if kind in UNREAD_SUFFIXES:
            unread.append(name)
    if not names:
        raise ValueError(no_image_message(f"folder {str(path)!r}", other_files))
    return Folder(root, arrays_of(sorted(names)), other_files, sorted(unread))


def other_kind(name: str) -> str:
    """Returns the kind of a file that is no image by its name; empty for an image.

    The kind is the suffix in lower case, `hidden` or `no extension`.
    """
    file = name.rpartition("/")[2]
    suffix = os.path.splitext(file)[1].lower()
    if file.startswith("."):
        return "hidden"
    return "" if suffix in IMAGE_SUFFIXES else suffix or "no extension"


def no_image_message(place: str, other_files: collections.Counter[str]) -> str:
    """Returns the message of an error: no image is in a place, but these other files are."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in other_files.most_common(5))
    found = f"{other_files.total()} other files ({kinds})" if other_files else "no file at all"
    return (
        f"no image in {place}: found {found}; "
        f"it needs files that end in {', '.join(IMAGE_SUFFIXES)}"
    )


def faults(place: source_kinds.Place) -> Iterator[str]:
    """Yields what is wrong with a folder of images; see `source_kinds`."""
    key, path = place.key("path"), os.path.expanduser(place.path)
    yield from not_a_folder(key, place.path)
    if "://" in path or not os.path.isdir(path):
        return
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries]
    if any(".tfrecord" in name for name in names) and all(map(other_kind, names)):
        yield (
            f"{key} = {place.path!r} is a folder of TFRecord files, not of images; add "
            f"--{place.key('source')}=tfrecord"
        )


def not_a_folder(key: str, path: str) -> Iterator[str]:
    """Yields a message if the path that a key of the config has is no folder."""
    expanded = os.path.expanduser(path)
    if not storage.is_folder(expanded):
        there = "is a file" if storage.exists(expanded) else "does not exist"
        yield f"{key} = {path!r} {there}; give the path of a folder of images"


def open_source(place: source_kinds.Place) -> Folder:
    """Returns the images of a folder, as listed in `place.index` if it is there."""
    root = os.path.expanduser(place.path)
    arrays = index_file.load_or_make(
        place.index,
        f"folder {place.path}",
        lambda: folder(place.path, place.skip).to_arrays(),
        functools.partial(Folder, root),
    )
    return Folder(root, arrays)
