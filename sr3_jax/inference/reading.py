"""Inputs of upscaling: which files they are, what they become, and how they are read ahead."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
import zlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath

from sr3_jax.data import depth, folders, picture, sources, storage
from sr3_jax.inference import levels, recipes
from sr3_jax.inference.manifest import Record

if TYPE_CHECKING:  # which knows this module
    from sr3_jax.inference.super_resolver import SuperResolver

THREADS = 4  # that read, and that write
MOST_FRAMES = 40  # of an animation
HELD = 1 << 30  # bytes of decoded pictures that wait to be refined, and of those to be written


@dataclasses.dataclass(frozen=True)
class Options:
    """How files are upscaled.

    Attributes:
      steps: refinement steps; None for the resolver's.
      seed: of all noise. That of a picture depends on it and on the picture's name, so that it
        does not change with the folder it is in.
      factor: by how much pictures grow; None for what the network was trained for. See
        `SuperResolver.upscale`.
      num_samples: of each picture, with noise of their own; of more than one the output is the
        mean, and beside it lies `NAME.uncertainty.png` (`pictures.uncertainty`).
      animate: write also `NAME.refinement.gif`, from noise to picture.
      format: of the outputs, one of `picture.FORMATS`; None for that of each input.
      quality: of lossy formats, 1 to 100, or `lossless`; see `picture.write_picture`.
    """

    steps: int | None = None
    seed: int = 0
    factor: float | None = None
    num_samples: int = 1
    animate: bool = False
    format: str | None = None
    quality: int | str | None = None

    def __post_init__(self):
        picture.check_format(self.format, self.quality)
        if self.factor is not None:
            levels.check_factor(self.factor)
        if self.num_samples < 1:
            raise ValueError(f"num_samples = {self.num_samples}; it must be at least 1")


def find_inputs(path: epath.PathLike, output: epath.PathLike | None = None) -> sources.Source:
    """Returns the image at `path`, or all images in the folder `path`.

    Outputs never become inputs: of a folder, what is in `output` is left out, and so is any folder
    below it that holds outputs of this program, with a warning.

    Args:
      path: of an image or a folder; local or a URL.
      output: the folder for the outputs.

    Raises:
      FileNotFoundError: there is nothing at `path`.
      ValueError: there is no image in the folder.
    """
    path = epath.Path(storage.absolute(path))
    if not path.is_dir():
        if not path.exists():
            raise FileNotFoundError(
                f"--input={storage.shown(path)} does not exist; give an image or a folder"
            )
        return (sources.FileRef(path.name, str(path)),)
    skip = set()
    if output is not None and storage.real_path(output) != storage.real_path(path):
        skip = {storage.real_path(output)}
        if storage.is_within(output, path) and storage.exists(output):
            logging.warning("all in %s is left out: it is the folder for the outputs", output)
    found = folders.folder(path, skip)
    parents = {part for ref in found for part in _parents(ref.name)}
    made = {part for part in parents if storage.exists(os.path.join(path, part, recipes.MARK))}
    if not made:
        return found
    for part in sorted(made):
        logging.warning(
            "all in %s is left out, since it holds outputs of this program; to upscale what is "
            "there, give that folder as --input",
            storage.shown(path / part),
        )
    kept = [ref.name for ref in found if not made.intersection(_parents(ref.name))]
    if not kept:
        raise ValueError(
            f"all images in {storage.shown(path)} are outputs of this program; to upscale them, "
            "give the folder that they lie in"
        )
    unread = [name for name in found.unread if not made.intersection(_parents(name))]
    return folders.Folder(found.root, folders.arrays_of(kept), found.others, unread)


def _parents(name: str) -> Iterator[str]:
    """Yields the folders that a file lies in: `a` and `a/b` of `a/b/c.png`."""
    while name := name.rpartition("/")[0]:
        yield name


def output_name(name: str, format: str | None = None) -> str:
    """Returns the file that an input becomes, relative to the folder of outputs."""
    return str(picture.output_path(epath.Path(name), format))


def output_names(name: str, options: Options) -> list[str]:
    """Returns all files that an input becomes; the first is the picture."""
    made = output_name(name, options.format)
    names = [made]
    if options.num_samples > 1:
        names.append(storage.fitting_name(made, ".uncertainty.png"))
    if options.animate:
        names.append(storage.fitting_name(made, ".refinement.gif"))
    return names


def seed_of(name: str, seed: int) -> int:
    """Returns the seed of an input's noise."""
    return zlib.crc32(f"{seed}/{name}".encode("utf-8", "surrogateescape"))


@dataclasses.dataclass(frozen=True)
class Source:
    """An input, and what is known of its file."""

    ref: sources.FileRef
    output: str
    seed: int
    state: storage.State | None = None
    digest: str = ""

    def record(self, status: str, **rest: Any) -> Record:
        """Returns the row; an error is logged."""
        if error := rest.get("error"):
            logging.error("%s: %s", storage.shown(self.ref.name), error)
        size, version = self.state or (None, "")
        return Record(
            self.ref.name,
            self.output,
            status,
            seed=self.seed,
            input_size=size,
            input_version=version,
            input_digest=self.digest,
            **rest,
        )


@dataclasses.dataclass(frozen=True)
class Input:
    """A picture that was read."""

    source: Source
    picture: picture.Picture
    pixels: np.ndarray  # for the network
    note: str

    @property
    def name(self) -> str:
        return self.source.ref.name


def read_ahead(
    readers: concurrent.futures.Executor,
    resolver: SuperResolver,
    inputs: Iterable[sources.FileRef],
    output: epath.Path,
    options: Options,
    ahead: int,
) -> Iterator[Input | Record]:
    """Reads in threads, in order, ahead of what is asked for: `ahead` pictures, or `HELD` bytes.

    Files are fetched first, a few at a time, since only their content tells how large the decoded
    picture is.
    """
    refs = iter(inputs)
    fetch = functools.partial(readers.submit, _fetch, resolver, options)
    decode = functools.partial(readers.submit, _decode, resolver, output, options)
    fetching = collections.deque(fetch(ref) for ref in itertools.islice(refs, THREADS))
    decoding: collections.deque[tuple[concurrent.futures.Future, int]] = collections.deque()
    held = 0
    while fetching or decoding:
        while fetching and len(decoding) < ahead and (fetching[0].done() or not decoding):
            source, content = fetching[0].result()
            size = content.num_bytes if isinstance(content, _Content) else 0
            if decoding and held + size > HELD:
                break
            fetching.popleft()
            fetching.extend(fetch(ref) for ref in itertools.islice(refs, 1))
            decoding.append((decode(source, content), size))
            held += size
        made, size = decoding.popleft()
        yield made.result()
        held -= size


class _Content(NamedTuple):
    """A picture file's content, and how much memory its pixels will take."""

    data: bytes
    num_bytes: int


def _fetch(
    resolver: SuperResolver, options: Options, ref: sources.FileRef
) -> tuple[Source, _Content | str]:
    """Returns a file's content, or why it cannot be used, as that it is too large for memory."""
    source = Source(ref, output_name(ref.name, options.format), seed_of(ref.name, options.seed))
    try:
        # Before it is read: what changes it meanwhile makes it another version.
        source = dataclasses.replace(source, state=storage.state(ref.path))
        data = storage.read(ref.path)
        source = dataclasses.replace(source, digest=recipes.digest(data))
        opened = picture.open_file(data)
        resolver.check_fits(
            opened.shape[:2],
            factor=options.factor,
            num_samples=options.num_samples,
            num_snapshots=MOST_FRAMES if options.animate else 0,
        )
        return source, _Content(data, opened.bytes_decoded)
    except (picture.BadImageError, OSError, ValueError) as error:
        return source, str(error)


def _decode(
    resolver: SuperResolver,
    output: epath.Path,
    options: Options,
    source: Source,
    content: _Content | str,
) -> Input | Record:
    if isinstance(content, str):
        return source.record("failed", error=content)
    name = source.ref.name
    try:
        read = picture.decode_picture(content.data)
        factor = resolver.factor if options.factor is None else options.factor
        given = {"format": options.format, "quality": options.quality}
        picture.check_writable(read, output / name, float(factor), **given)
    except (picture.BadImageError, OSError, ValueError) as error:
        return source.record("failed", error=str(error))
    notes = []
    if factor != resolver.factor:
        when = "before" if factor > resolver.factor else "after"
        by = factor / resolver.factor
        notes.append(f"resized by {by:g} {when} the network's {resolver.factor}")
    pixels = picture.fill_transparent(read)
    if pixels.dtype == np.uint16:
        white, largest = resolver.white_level, int(pixels.max())
        if white and largest > white:
            notes.append(f"values above the network's white level of {white} were clipped")
        elif not white and 0 < largest < depth.SMALL_PART:
            notes.append(f"values reach {largest} of 65535, so that the network saw it dark")
        pixels = depth.convert(pixels, np.uint16, white)
    return Input(source, read, pixels, "; ".join(notes))
