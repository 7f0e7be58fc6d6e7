"""Files, on a disk or in a bucket: read in pieces, listed, and written whole or not at all.

A path is local, or a URL such as `gs://bucket/folder`, which fsspec reads (`gs://` with the package
gcsfs, `s3://` with s3fs): of an image one request, of a record of a large file just its bytes.
"""

import contextlib
import glob
import io
import os
from collections.abc import Iterator
from typing import IO, NoReturn

import fsspec


def read(path: str | os.PathLike[str], offset: int = 0, size: int | None = None) -> bytes:
    """The content of a file, or `size` bytes of it from `offset` on (fewer at its end).

    Raises:
        FileNotFoundError: there is none.
        OSError: reading failed for another reason.
        ValueError: a URL that wants a package that is not installed.
    """
    path = os.path.expanduser(path)
    if is_url(path):
        filesystem, inner = _filesystem(path)
        if offset or size is not None:
            return filesystem.cat_file(inner, offset, None if size is None else offset + size)
        return filesystem.cat_file(inner)
    # Without a buffer: what is asked for is read in one go.
    with open(path, "rb", buffering=0) as file:
        if offset:
            file.seek(offset)
        return file.read(-1 if size is None else size)


def find(root: str | os.PathLike[str]) -> Iterator[str]:
    """Every file under a folder, at any depth, as a path relative to it with forward slashes.

    What is in folders whose name begins with a dot is left out, and links to folders are not
    followed.

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
        for path in paths:
            name = path.removeprefix(inner)
            hidden = any(part.startswith(".") for part in name.split("/")[:-1])
            if name and not name.endswith("/") and not hidden:
                yield name
        return
    for directory, subfolders, files in os.walk(root, onerror=_raise):
        # In place, so that walk does not descend into hidden folders.
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = os.path.relpath(directory, root).replace(os.sep, "/")
        prefix = "" if relative == "." else f"{relative}/"
        yield from (prefix + file for file in files)


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file, and the folder it is in; see `open_whole`."""
    with open_whole(path) as file:
        file.write(data)


@contextlib.contextmanager
def open_whole(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write, in a folder that need not exist: a reader finds all of it or nothing.

    On a disk it has a temporary name until the end; in a bucket nothing is there before.
    """
    path = os.path.expanduser(path)
    if is_url(path):
        filesystem, inner = _filesystem(path)
        with filesystem.open(inner, "wb", autocommit=False) as file:
            yield file
        file.commit()
        return
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    partial = os.path.join(folder, f".{name}.partial")
    try:
        with open(partial, "wb") as file:
            yield file
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(partial)
        raise


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether there is a file or a folder at `path`."""
    filesystem, inner = _filesystem(path)
    return filesystem.exists(inner)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a folder; in a bucket, whether anything is under it."""
    filesystem, inner = _filesystem(path)
    return filesystem.isdir(inner)


def matches(pattern: str | os.PathLike[str]) -> list[str]:
    """Paths that a pattern with `*` means, sorted; `FOLDER/*` lists a folder, hidden ones apart."""
    pattern = os.path.expanduser(pattern)
    if not is_url(pattern):
        return sorted(glob.glob(pattern))
    filesystem, inner = _filesystem(pattern)
    protocol = pattern.partition("://")[0]
    return sorted(f"{protocol}://{path}" for path in filesystem.glob(inner))


def open_read(path: str | os.PathLike[str]) -> io.IOBase:
    """A file to be read from begin to end."""
    filesystem, inner = _filesystem(path)
    return filesystem.open(inner, "rb")


def size(path: str | os.PathLike[str]) -> int:
    """Of a file, in bytes."""
    filesystem, inner = _filesystem(path)
    return filesystem.size(inner)


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Removes a folder and all that is in it."""
    filesystem, inner = _filesystem(path)
    filesystem.rm(inner, recursive=True)


def is_url(path: str) -> bool:
    """Whether a path is in a bucket."""
    return "://" in path


def _filesystem(path: str | os.PathLike[str]) -> tuple[fsspec.AbstractFileSystem, str]:
    path = os.path.expanduser(path)
    try:
        # Lists of a bucket are not kept: other processes write to it.
        return fsspec.core.url_to_fs(
            path, **({"use_listings_cache": False} if is_url(path) else {})
        )
    except ImportError as error:
        raise ValueError(f"{path} cannot be opened: {error}") from error


def _raise(error: OSError) -> NoReturn:
    # By default walk passes over folders it may not list, which would silently shrink the source.
    raise error
