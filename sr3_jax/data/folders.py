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


# Sources of files that are taken for folders of images, by a part of their names.
_SOURCES = {".tar": "tar", ".tfrecord": "tfrecord", ".array_record": "tfds"}


class Folder(sources.LazySource):
    """Image files under one folder; each takes its relative path and eight bytes of memory.

    If every image lies in a subfolder, the subfolders of the first level are the classes, numbered
    in alphabetical order.

    Attributes:
      root: the folder.
      classes: names of the classes.
      others: number of the files of each `other_kind`. Empty if the list of images was read from
        a file.
      unread: names of pictures of a format that is not read, sorted.
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
        # Bytes, since on Linux a name need not be text.
        self._names, self._ends, self._classes = _checked(arrays)
        self.root = root
        self.others, self.unread = collections.Counter(others), tuple(unread)
        classes = self._classes.tobytes()
        self.classes = tuple(map(os.fsdecode, classes.split(b"/"))) if classes else ()
        self._labels = {name: label for label, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self._ends)

    def ref(self, index: int) -> sources.FileRef:
        start = self._ends[index - 1] if index else 0
        name = os.fsdecode(self._names[start : self._ends[index]].tobytes())
        label = self._labels.get(name.partition("/")[0], sources.NO_LABEL)
        return sources.FileRef(name, os.path.join(self.root, name), label=label)

    def names(self) -> Iterator[bytes]:
        for start, end in itertools.pairwise([0, *self._ends.tolist()]):
            yield self._names[start:end].tobytes()

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns the list of images as arrays, to be kept in a file; see `arrays_of`."""
        return {"names": self._names, "ends": self._ends, "classes": self._classes}


def _checked(arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns `names`, `ends` and `classes`; see `arrays_of`."""
    names = index_file.check_column(arrays, "names", (np.uint8,))
    ends = index_file.check_column(arrays, "ends", (np.int64,))
    classes = index_file.check_column(arrays, "classes", (np.uint8,))
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
    return names, ends, classes


def arrays_of(names: Sequence[str | bytes]) -> dict[str, np.ndarray]:
    """Returns the arrays of a `Folder` from relative paths in their order.

    Returns:
      `names`, the bytes of all paths; `ends`, the end of each path in them; and `classes`, the
      bytes of the names of the classes, separated by slashes.
    """
    encoded = [os.fsencode(name) for name in names]
    classes = {name.partition(b"/")[0] if b"/" in name else b"" for name in encoded}
    in_order = b"" if b"" in classes else b"/".join(sorted(classes))
    names, classes = (np.frombuffer(data, np.uint8) for data in (b"".join(encoded), in_order))
    ends = np.cumsum(list(map(len, encoded)), dtype=np.int64)
    return {"names": names, "ends": ends, "classes": classes}


def folder(path: str | os.PathLike[str], skip: Collection[str] = ()) -> Folder:
    """Lists every image file under a folder, at any depth, sorted by relative path.

    A file is an image if its name ends in one of `IMAGE_SUFFIXES`, in upper or lower case; its
    content is checked when it is read. Files whose name begins with a dot are left out.

    Args:
      path: a local folder, or a URL (`gs://bucket/images`).
      skip: folders that are left out; see `storage.find`, which lists the files.

    Raises:
      FileNotFoundError: `path` does not exist.
      NotADirectoryError: `path` is a file.
      ValueError: there is no image in it.
    """
    root = os.path.expanduser(path)
    if not storage.is_url(root) and not os.path.isdir(root):
        if os.path.exists(root):
            raise NotADirectoryError(f"image folder {root!r} is a file; give the folder it lies in")
        raise FileNotFoundError(f"image folder {root!r} does not exist; give a folder of images")
    by_kind = collections.defaultdict(list)
    for name in storage.find(root, skip):
        by_kind[other_kind(name)].append(name)
    names = by_kind.pop("", [])
    others = collections.Counter({kind: len(found) for kind, found in by_kind.items()})
    if not names:
        raise ValueError(no_image_message(f"folder {str(path)!r}", others))
    unread = [name for kind in UNREAD_SUFFIXES & by_kind.keys() for name in by_kind[kind]]
    return Folder(root, arrays_of(sorted(names)), others, sorted(unread))


def other_kind(name: str) -> str:
    """Returns a file's suffix in lower case, `hidden` or `no extension`; empty for an image."""
    suffix = os.path.splitext(name)[1].lower()
    if os.path.basename(name).startswith("."):
        return "hidden"
    return "" if suffix in IMAGE_SUFFIXES else suffix or "no extension"


def no_image_message(place: str, other_files: collections.Counter[str]) -> str:
    """Returns the message for a place that has no image but these other files."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in other_files.most_common(5))
    found = f"{other_files.total()} other files ({kinds})" if other_files else "no file at all"
    return (
        f"no image in {place}: found {found}; "
        f"it needs files that end in {', '.join(IMAGE_SUFFIXES)}"
    )


def faults(place: source_kinds.Place) -> Iterator[str]:
    """Yields what is wrong with a folder of images; see `source_kinds`."""
    key, path = place.key("path"), os.path.expanduser(place.path)
    yield from not_a_folder(place, "path")
    if "://" in path or not os.path.isdir(path):
        return
    with os.scandir(path) as entries:
        names = [entry.name for entry in entries]
    if any(".tfrecord" in name for name in names) and all(map(other_kind, names)):
        yield (
            f"{key} = {place.path!r} is a folder of TFRecord files, not of images; add "
            f"--{place.key('source')}=tfrecord"
        )


def not_a_folder(place: source_kinds.Place, name: str) -> Iterator[str]:
    """Yields a message if `path` or `low_path` of a place is no folder."""
    path = getattr(place, name)
    if not storage.is_folder(path):
        there = "is a file" if storage.exists(path) else "does not exist"
        kind = next((kind for suffix, kind in _SOURCES.items() if suffix in path.lower()), "")
        hint = f", or add --{place.key('source')}={kind}" if kind else ""
        yield f"{place.key(name)} = {path!r} {there}; give the path of a folder of images{hint}"


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
