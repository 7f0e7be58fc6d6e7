"""Sources of image files: a folder of any depth, and two folders whose images belong together."""

import collections
import dataclasses
import itertools
import os
import types
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from sr3_jax.data import index_file, sources, storage
from sr3_jax.data.picture import BadImageError

# What `picture` reads.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".dib"),
    *(".gif", ".heic", ".heif", ".hif", ".avif"),
)
# Pictures of formats that it does not read: others, raw ones of cameras, drawings.
UNREAD_SUFFIXES = frozenset(
    ".jxl .jp2 .j2k .jpf .jpx .jpm .jxr .wdp .ico .cur .icns .tga .pcx .ppm .pgm .pbm .pnm .pam "
    ".pfm .exr .hdr .dpx .cin .fits .fit .dcm .dicom .sgi .ras .xbm .xpm .dds .qoi .flif .bpg "
    ".psd .psb .xcf .kra .clip .ai .eps .svg .svgz .wmf .emf .mng .jng .apng .mpo .jps .btf .tf8 "
    ".dng .cr2 .cr3 .crw .nef .nrw .arw .srf .sr2 .orf .rw2 .raf .pef .srw .x3f .3fr .fff .iiq "
    ".mrw .erf .kdc .dcr .mos .mef .rwl .raw".split()
)

_MAX_NAMED = 100


class Folder(sources.LazySource):
    """Image files under one folder, by their names; each takes its relative path and eight bytes.

    Where every image lies in a subfolder, those of the first level are its classes, numbered in
    alphabetical order.

    Attributes:
        root: what the names are relative to.
        classes: their names.
        others: how many files are no images by their names, by suffix, `hidden` or `no extension`.
            Nothing is known of them in a list of images that was kept in a file.
        unread: the names of those that are pictures of a format that is not read, sorted.
    """

    def __init__(
        self,
        root: str,
        arrays: Mapping[str, np.ndarray],
        others: Mapping[str, int] = types.MappingProxyType({}),
        unread: Sequence[str] = (),
    ) -> None:
        """Use `folder` to make one.

        Args:
            root: what the paths are relative to.
            arrays: what `to_arrays` gives.
            others: see `Folder`.
            unread: see `Folder`.

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
        """See `LazySource`."""
        start = int(self._ends[index - 1]) if index else 0
        name = os.fsdecode(self._bytes[start : int(self._ends[index])])
        label = self._labels.get(name.partition("/")[0], sources.NO_LABEL)
        return sources.FileRef(name, os.path.join(self.root, name), label=label)

    def names(self) -> Iterator[bytes]:
        """See `LazySource`."""
        start = 0
        for end in self._ends.tolist():
            yield self._bytes[start:end]
            start = end

    def to_arrays(self) -> dict[str, np.ndarray]:
        """What was found, to be kept in a file: `names` one after the other, and their `ends`."""
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
    # NumPy finds these among a million names at once; the few with two dots are then looked at.
    is_absolute = len(ends) and (names[starts[:-1]] == ord("/")).any()
    joined = names.tobytes()
    climbs = b".." in joined and any(
        b".." in joined[start:end].split(b"/") for start, end in itertools.pairwise(starts.tolist())
    )
    if is_absolute or climbs or b"\0" in joined:
        raise ValueError("a name leads out of the folder, or is none")


def arrays_of(names: Sequence[str | bytes]) -> dict[str, np.ndarray]:
    """What `Folder` is made of, of relative paths in their order."""
    encoded = [os.fsencode(name) for name in names]
    classes = {name.partition(b"/")[0] if b"/" in name else b"" for name in encoded}
    in_order = b"" if b"" in classes else b"/".join(sorted(classes))
    return {
        "names": np.frombuffer(b"".join(encoded), np.uint8),
        "ends": np.cumsum([len(name) for name in encoded], dtype=np.int64),
        "classes": np.frombuffer(in_order, np.uint8),
    }


def folder(path: str | os.PathLike[str], skip: Collection[str] = ()) -> Folder:
    """Every image file under `path`, at any depth, sorted by relative path.

    An image is a file whose name ends in one of `IMAGE_SUFFIXES`, in upper or lower case; whether
    it holds an image is found out when it is read. Files and folders whose name begins with a dot
    are skipped. Links to folders are followed, except one that leads back to a folder it lies in.

    Args:
        path: a local folder, or a URL (`gs://bucket/images`); see `storage`.
        skip: folders that are left out; see `storage.find`.

    Returns:
        One `FileRef` an image, whose name is the path relative to `path`.

    Raises:
        FileNotFoundError: `path` does not exist.
        NotADirectoryError: `path` is a file.
        ValueError: no image in it.
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
                f"{os.path.dirname(root)}"
            )
    other_files: collections.Counter[str] = collections.Counter()
    names, unread = [], []
    for name in storage.find(root, skip):
        if is_image(name, other_files):
            names.append(name)
        elif is_unread(name):
            unread.append(name)
    if not names:
        raise ValueError(no_image_message(f"folder {str(path)!r}", other_files))
    return Folder(root, arrays_of(sorted(names)), other_files, sorted(unread))


def is_unread(name: str) -> bool:
    """Whether a file is a picture of a format that is not read, by its name."""
    file = name.rpartition("/")[2]
    return not file.startswith(".") and os.path.splitext(file)[1].lower() in UNREAD_SUFFIXES


def is_image(name: str, other_files: collections.Counter[str]) -> bool:
    """Whether a file is one by its name; if not, its kind is counted in `other_files`."""
    file = name.rpartition("/")[2]
    suffix = os.path.splitext(file)[1].lower()
    if file.startswith("."):
        other_files["hidden"] += 1
    elif suffix in IMAGE_SUFFIXES:
        return True
    else:
        other_files[suffix or "no extension"] += 1
    return False


def no_image_message(place: str, other_files: collections.Counter[str]) -> str:
    """Says what was found in a place instead of images."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in other_files.most_common(5))
    found = f"{other_files.total()} other files ({kinds})" if other_files else "no file at all"
    return (
        f"no image in {place}: found {found}; "
        f"it needs files that end in {', '.join(IMAGE_SUFFIXES)}"
    )


@dataclasses.dataclass(frozen=True)
class PairRef:
    """An image, and what another camera took of the same picture; see `sources.ImageRef`."""

    high: sources.ImageRef
    low: sources.ImageRef

    @property
    def name(self) -> str:
        """That of the high resolution."""
        return self.high.name

    def read(self) -> sources.Picture:
        """See `ImageRef`; what is wrong with the low resolution is said to be of it."""
        picture = self.high.read()
        try:
            low = self.low.read()
        except BadImageError as error:
            raise BadImageError(f"its low resolution {self.low.name}: {error}") from error
        notes = tuple(f"its low resolution: {note}" for note in low.notes)
        return picture._replace(low_resolution=low.image, notes=picture.notes + notes)


class Pairs(sources.LazySource):
    """The images of two sources of the same length, one by one."""

    def __init__(self, high: sources.Source, low: sources.Source) -> None:
        self._high, self._low = high, low

    def __len__(self) -> int:
        return len(self._high)

    def ref(self, index: int) -> PairRef:
        """See `LazySource`."""
        return PairRef(self._high[index], self._low[index])


def pairs(high: Folder, low: Folder) -> Pairs:
    """Matches the images of two folders; see `match`."""
    return Pairs(*match(high, low))


def match(*several: Folder) -> list[sources.LazySource]:
    """The images of folders in the order of the first, by their relative paths without suffix.

    Raises:
        ValueError: naming those without a partner, and those that have several.
    """
    first, *others = several
    stems = [_by_stem(source) for source in several]
    missing = [
        f"{len(lone)} of {source.root} have none in {other.root}: {_some(sorted(lone))}"
        for other, of_other in zip(others, stems[1:], strict=True)
        for source, other, lone in (
            (first, other, stems[0].keys() - of_other.keys()),
            (other, first, of_other.keys() - stems[0].keys()),
        )
        if lone
    ]
    if missing:
        raise ValueError("images without a partner of the same name: " + "; ".join(missing))
    orders = ([of_other[stem] for stem in stems[0]] for of_other in stems[1:])
    subsets = (
        sources.Subset(other, np.array(order)) for other, order in zip(others, orders, strict=True)
    )
    return [first, *subsets]


def _by_stem(source: Folder) -> dict[str, int]:
    """Positions by path without suffix, in the order of the source."""
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


def _some(names: Sequence[str]) -> str:
    rest = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {rest} more" if rest > 0 else "")
