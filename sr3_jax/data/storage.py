"""Files, on a disk or in a bucket: read in pieces, listed, and written whole or not at all.

A path is local, or a URL such as `gs://bucket/folder`, which fsspec reads (`gs://` with the package
gcsfs, `s3://` with s3fs).
"""

import contextlib
import errno
import fnmatch
import hashlib
import io
import os
import pathlib
import re
import secrets
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent import futures
from typing import IO, NamedTuple, NoReturn

import fsspec
from absl import logging

_MOST_NAME_BYTES = 255  # of a file, on all common file systems

_PARTIAL = re.compile(r"\.[0-9a-f]{16}\.partial")

_ANSWER_SECONDS = 20  # limit for an answer of a bucket

# Errors that the next file would meet as well: no space, read-only, quota, broken disk, no rights.
_OF_THE_PLACE = frozenset(
    (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EPERM)
)


class State(NamedTuple):
    """A version of a file.

    Attributes:
      size: size in bytes.
      version: the time of the last change in nanoseconds; in a bucket the object's checksum or
        time.
    """

    size: int
    version: str


def read(path: str | os.PathLike[str], offset: int = 0, size: int | None = None) -> bytes:
    """Returns the content of a file, or `size` bytes of it from `offset` on (fewer at its end).

    Raises:
      FileNotFoundError: there is no such file.
      OSError: reading failed for another reason.
      ValueError: the URL needs a package that is not installed.
    """
    path = os.path.expanduser(path)
    if is_url(path):
        filesystem, inner = _filesystem(path)
        if offset or size is not None:
            return filesystem.cat_file(inner, offset, None if size is None else offset + size)
        return filesystem.cat_file(inner)
    if not stat.S_ISREG(mode := os.stat(path).st_mode) and not stat.S_ISDIR(mode):  # a pipe hangs
        raise OSError(errno.EINVAL, "Not a regular file", path)
    # Without a buffer: what is asked for is read in one go.
    with open(path, "rb", buffering=0) as file:
        # Python takes the memory first: for a damaged length that may be all there is.
        left = os.fstat(file.fileno()).st_size - offset
        if size is not None and left <= 0:
            return b""
        if offset:
            file.seek(offset)
        return file.read(-1 if size is None else min(size, left))


def find(root: str | os.PathLike[str], skip: Collection[str] = ()) -> Iterator[str]:
    """Yields the relative path, with forward slashes, of every file under a folder at any depth.

    Folders whose names begin with a dot are left out. Links to folders are followed, but one to a
    folder that it lies in is left out, with a warning.

    Args:
      root: a local folder or a URL.
      skip: folders that are left out, by `real_path`.

    Raises:
      FileNotFoundError: no such folder, or bucket.
      OSError: a folder cannot be listed.
      ValueError: see `read`.
    """
    root = os.path.expanduser(root)
    if is_url(root):
        # One list of everything, which buckets give page by page; they know no folders.
        filesystem, inner = _filesystem(root)
        inner = inner.rstrip("/") + "/"
        try:
            paths = filesystem.find(inner)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{root} does not exist, or may not be listed") from error
        skipped = tuple(_filesystem(folder)[1].rstrip("/") + "/" for folder in skip)
        for path in paths:
            name = path.removeprefix(inner)
            hidden = any(part.startswith(".") for part in name.split("/")[:-1])
            if name and not name.endswith("/") and not hidden and not path.startswith(skipped):
                yield name
        return
    for directory, subfolders, files in os.walk(root, onerror=_raise, followlinks=True):
        relative = os.path.relpath(directory, root)
        # In place, so that walk does not descend into what is left out.
        subfolders[:] = [
            name
            for name in subfolders
            if not name.startswith(".")
            and not _is_loop(path := os.path.join(directory, name))
            and not (skip and os.path.realpath(path) in skip)
        ]
        prefix = "" if relative == "." else f"{relative.replace(os.sep, '/')}/"
        yield from (prefix + file for file in files)


def _is_loop(path: str) -> bool:
    """Returns whether a path is a link to one of the folders that it lies in."""
    target = os.path.islink(path) and os.path.realpath(path)
    if not target or all(os.path.realpath(p) != target for p in pathlib.Path(path).parents):
        return False
    logging.warning("%s is left out: it is a link to a folder that it lies in", path)
    return True


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file, and the folder it is in; see `open_whole`."""
    with open_whole(path) as file:
        file.write(data)


@contextlib.contextmanager
def open_whole(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Opens a file to write, in a folder that need not exist: a reader finds all of it or nothing.

    On a disk the file has a random temporary name until it is whole and flushed, so that two
    writers of one path cannot mix, and a power failure leaves no half file. A link at `path` is
    replaced, not followed.
    """
    path = os.path.expanduser(path)
    if is_url(path):
        filesystem, inner = _filesystem(path)
        with filesystem.open(inner, "wb", autocommit=False) as file:
            yield file
        file.commit()
        return
    folder = os.path.dirname(path) or "."
    os.makedirs(folder, exist_ok=True)
    # Short, since `path` may have the longest name there can be.
    partial = os.path.join(folder, f".{secrets.token_hex(8)}.partial")
    new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(partial, new, 0o666)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(partial, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(partial)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = path  # a full disk does not say of which file
        raise
    # The folder's list of names is flushed, too, where the file system can.
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    with contextlib.suppress(OSError):
        os.fsync(descriptor)
    os.close(descriptor)


def is_partial(name: str) -> bool:
    """Returns whether a path has a temporary name of `open_whole`: a killed process left it."""
    return bool(_PARTIAL.fullmatch(name.rpartition("/")[2]))


def check_writable(folder: str | os.PathLike[str], flag: str) -> None:
    """Raises OSError, naming the flag, if a local folder, or one to be made, takes no files."""
    if is_url(place := absolute(folder)):
        return
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    try:
        os.rmdir(tempfile.mkdtemp(dir=place))
    except OSError as error:
        raise type(error)(
            f"{flag}={shown(folder)} takes no files: {error.strerror}; give another folder"
        ) from error


def check_takes_file(path: str | os.PathLike[str], flag: str) -> None:
    """`check_writable` of the folder of a file that is to be written."""
    check_writable(os.path.dirname(absolute(path)), flag)


def is_of_the_place(error: BaseException) -> bool:
    """Returns whether an error would meet every file there: a full or read-only disk, no rights."""
    return isinstance(error, OSError) and error.errno in _OF_THE_PLACE


def fitting_name(name: str, suffix: str) -> str:
    """Returns a name, or a path with forward slashes, with a suffix such as `.png` added.

    If its last part then has more than the 255 bytes that file systems take, the end of the name is
    replaced by a digest of all of it, so that different names stay different.
    """
    folder, slash, last = name.rpartition("/")
    encoded, ending = os.fsencode(last), os.fsencode(suffix)
    if len(encoded) + len(ending) > _MOST_NAME_BYTES:
        mark = b"~" + hashlib.sha256(encoded).hexdigest()[:8].encode()
        encoded = encoded[: _MOST_NAME_BYTES - len(mark) - len(ending)]
        # Not in the middle of a character of UTF-8: without the last bytes that are none of ASCII.
        encoded = re.sub(rb"[\xc0-\xff]?[\x80-\xbf]*\Z", b"", encoded, count=1) + mark
    return folder + slash + os.fsdecode(encoded + ending)


def shown(name: str | os.PathLike[str]) -> str:
    """Returns a name to be printed on one line, with unprintable characters escaped."""
    name = os.fspath(name)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def state(path: str | os.PathLike[str]) -> State | None:
    """Returns the version of a file; None if there is no file."""
    path = os.path.expanduser(path)
    try:
        if not is_url(path):
            found = os.stat(path)
            return State(found.st_size, str(found.st_mtime_ns))
        filesystem, inner = _filesystem(path)
        return _state_of(filesystem.info(inner))
    except (FileNotFoundError, NotADirectoryError):
        return None


def states(root: str | os.PathLike[str], names: Collection[str]) -> dict[str, State]:
    """Returns the `state` of those files under a folder that exist, by their relative paths."""
    root = os.path.expanduser(root)
    if is_url(root) and len(names) > 1:
        filesystem, inner = _filesystem(root)
        inner = inner.rstrip("/") + "/"
        listed = filesystem.find(inner, detail=True)
        return {name: _state_of(info) for name in names if (info := listed.get(inner + name))}
    with futures.ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda name: state(os.path.join(root, name)), names)
        return {name: its for name, its in zip(names, found, strict=True) if its}


def _state_of(info: Mapping[str, object]) -> State:
    """Returns the state of an object from its bucket's metadata."""
    keys = ("md5Hash", "ETag", "etag", "updated", "created")
    version = next((info[key] for key in keys if info.get(key)), "")
    return State(int(info["size"]), str(version))


def absolute(path: str | os.PathLike[str]) -> str:
    """Returns a path that does not depend on the working directory, nor begins with `~`."""
    path = os.path.expanduser(path)
    return path if is_url(path) else os.path.abspath(path)


def real_path(path: str | os.PathLike[str]) -> str:
    """Returns the one name of a file or folder, with links resolved; of a URL without final `/`."""
    path = os.path.expanduser(path)
    return path.rstrip("/") if is_url(path) else os.path.realpath(path)


def is_within(path: str | os.PathLike[str], folder: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a folder, or lies in it, links resolved."""
    return f"{real_path(path)}/".startswith(real_path(folder).rstrip("/") + "/")


def is_same_file(a: str | os.PathLike[str], b: str | os.PathLike[str]) -> bool:
    """Returns whether two paths are one file that exists: by name, link or hard link."""
    return any(same_files([a], [os.fspath(b)]))


def same_files(
    a: Iterable[str | os.PathLike[str]], b: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Yields the pairs of paths, one of each, that are one file; see `is_same_file`.

    Looks at the files of `b` only if a file of `a` exists.
    """
    by_place: dict[object, str] = {}
    for path in map(os.fspath, a):
        if place := _place(path):
            by_place = by_place or {_place(other): os.fspath(other) for other in b}
            if place in by_place:
                yield path, by_place[place]


def _place(path: str | os.PathLike[str]) -> object:
    """Returns what all names of a file have in common; None if there is no local file."""
    path = os.path.expanduser(path)
    if is_url(path):
        return path.rstrip("/")
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def remove(path: str | os.PathLike[str]) -> None:
    """Removes a file; one that is not there is no error."""
    filesystem, inner = _filesystem(path)
    with contextlib.suppress(FileNotFoundError):
        filesystem.rm_file(inner)


def exists(path: str | os.PathLike[str]) -> bool:
    """Returns whether there is a file or a folder at `path`; raises ConnectionError of buckets."""
    return _answer(path, "exists")


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Returns whether `path` is a folder; in a bucket, whether anything is under it."""
    return _answer(path, "isdir")


def _answer(path: str | os.PathLike[str], question: str) -> bool:
    """Returns the answer of a file system's method; commands ask before they begin."""
    filesystem, inner = _filesystem(path)
    # Clients of buckets try again for minutes by default.
    limit = {"timeout": _ANSWER_SECONDS} if filesystem.async_impl else {}
    try:
        return getattr(filesystem, question)(inner, **limit)
    except Exception as error:  # each client has exceptions of its own, for network and credentials
        why = str(error) or f"no answer within {_ANSWER_SECONDS} seconds"
        raise ConnectionError(
            f"{shown(path)} cannot be reached: {why}; check its name, the network, and your "
            "credentials (of gs://: gcloud auth application-default login)"
        ) from error


def matches(folder: str | os.PathLike[str], pattern: str) -> list[str]:
    """Returns the sorted paths in a folder whose names fit a pattern with `*`.

    Hidden files fit only a pattern that begins with a dot. A folder that does not exist has none.
    """
    folder = os.path.expanduser(folder)
    filesystem, inner = _filesystem(folder)
    try:
        paths = filesystem.ls(inner, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    names = {path.rstrip("/").rpartition("/")[2] for path in paths}
    return sorted(
        os.path.join(folder, name)
        for name in names
        if fnmatch.fnmatchcase(name, pattern) and (pattern.startswith(".") or name[:1] != ".")
    )


def open_read(path: str | os.PathLike[str]) -> io.IOBase:
    """Opens a file to be read from begin to end."""
    filesystem, inner = _filesystem(path)
    return filesystem.open(inner, "rb")


def size(path: str | os.PathLike[str]) -> int:
    """Returns the size of a file in bytes."""
    filesystem, inner = _filesystem(path)
    return filesystem.size(inner)


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Removes a folder and all that is in it."""
    filesystem, inner = _filesystem(path)
    filesystem.rm(inner, recursive=True)


def is_url(path: str) -> bool:
    """Returns whether a path is in a bucket."""
    return "://" in path


def _filesystem(path: str | os.PathLike[str]) -> tuple[fsspec.AbstractFileSystem, str]:
    path = os.path.expanduser(path)
    # Lists of a bucket are not kept: other processes write to it.
    options = {"use_listings_cache": False} if is_url(path) else {}
    try:
        return fsspec.core.url_to_fs(path, **options)
    except ImportError as error:
        raise ValueError(f"{path} cannot be opened: {error}") from error


def _raise(error: OSError) -> NoReturn:
    # By default walk passes over folders it may not list, which would silently shrink the source.
    raise error
