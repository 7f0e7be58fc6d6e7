"""Upscaling files, one output for each input, each written whole or not at all.

Files are read ahead and written behind in threads, while the devices refine. What is held in memory
of both is counted in bytes. Each input gets a `Record`, as soon as its status is known.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath

from sr3_jax import images as image_ops
from sr3_jax.data import folders, picture, sources, storage
from sr3_jax.inference import manifest, pictures
from sr3_jax.inference.manifest import Record

if TYPE_CHECKING:  # which knows this module
    from sr3_jax.inference.super_resolver import SuperResolver

_THREADS = 4  # that read, and that write
_HELD = 1 << 30  # bytes of decoded pictures that wait to be refined, and of those to be written
_NEXT_SAMPLE = 1 << 24  # between the seeds of a picture's samples
_MUCH = 5.0  # levels of 255 that colours may be shifted without a warning
_FRAMES = 40  # of an animation, at most


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
    """

    steps: int | None = None
    seed: int = 0
    factor: float | None = None
    num_samples: int = 1
    animate: bool = False

    def __post_init__(self):
        if self.factor is not None and not self.factor > 0:
            raise ValueError(f"factor = {self.factor}; it must be above 0")
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
    found = folders.folder(path, skip)
    parents = {part for ref in found for part in _parents(ref.name)}
    made = {part for part in parents if storage.exists(os.path.join(path, part, manifest.MARK))}
    if not made:
        return found
    for part in sorted(made):
        logging.warning(
            "%s is left out, since it holds outputs of this program; to upscale them, give that "
            "folder as --input",
            storage.shown(path / part),
        )
    kept = tuple(ref for ref in found if not made.intersection(_parents(ref.name)))
    if not kept:
        raise ValueError(
            f"all images in {storage.shown(path)} are outputs of this program; to upscale them, "
            "give the folder that they lie in"
        )
    return kept


def _parents(name: str) -> Iterator[str]:
    """Yields the folders that a file lies in: `a` and `a/b` of `a/b/c.png`."""
    while name := name.rpartition("/")[0]:
        yield name


def output_name(name: str) -> str:
    """Returns the file that an input becomes, relative to the folder of outputs."""
    return str(picture.output_path(epath.Path(name)))


def output_names(name: str, options: Options) -> list[str]:
    """Returns all files that an input becomes; the first is the picture."""
    made = output_name(name)
    names = [made]
    if options.num_samples > 1:
        names.append(storage.fitting_name(made, ".uncertainty.png"))
    if options.animate:
        names.append(storage.fitting_name(made, ".refinement.gif"))
    return names


def seed_of(name: str, seed: int) -> int:
    """Returns the seed of an input's noise."""
    return zlib.crc32(f"{seed}/{name}".encode("utf-8", "surrogateescape"))


def upscale_files(
    resolver: SuperResolver,
    inputs: Sequence[sources.FileRef],
    output: epath.PathLike,
    options: Options = Options(),  # noqa: B008  (frozen)
    progress: Callable[[float], None] | None = None,
) -> Iterator[Record]:
    """Upscales each input to `output/NAME`.

    Alpha is kept (resized by bicubic), and so are colour profile, EXIF and 16 bits; the EXIF
    orientation is applied, and grey pictures stay grey. An input that cannot be read or upscaled
    gets a record that says why, and the rest is done.

    Args:
      resolver: does it.
      inputs: the images; near ones of one size share a batch.
      output: a folder, made where missing; local or a URL.
      options: how.
      progress: called with the number of images finished since the last call, which is a
        fraction while a batch is being refined.

    Yields:
      One record for each input, in no particular order. An iteration that is ended early leaves
      no half file.

    Raises:
      OSError: the folder takes no files: the disk is full or read-only, or rights are missing.
    """
    output = epath.Path(output)
    progress = progress or (lambda share: None)
    with contextlib.ExitStack() as stack:
        readers, writers = (
            stack.enter_context(concurrent.futures.ThreadPoolExecutor(_THREADS)) for _ in "rw"
        )
        stack.callback(readers.shutdown, wait=True, cancel_futures=True)
        ahead = 2 * max(resolver.batch_size, _THREADS)
        refining: list[tuple[list[_Input], Callable[[], list[_Made]], float]] = []
        writing: collections.deque[tuple[concurrent.futures.Future[Record], int]]
        writing = collections.deque()

        def finish(group: list[_Input], fetch: Callable, begin: float) -> Iterator[Record]:
            try:
                made = fetch()
            except (MemoryError, ValueError, jax.errors.JaxRuntimeError) as error:
                yield from _failed(group, f"cannot upscale: {error}")
                return
            seconds = (time.perf_counter() - begin) / len(group)
            for one, its in zip(group, made, strict=True):
                write = writers.submit(_write, one, its, output, options, seconds)
                writing.append((write, its.num_bytes))

        size = max(1, resolver.batch_size // options.num_samples)
        for group in _groups(_read(readers, resolver, inputs, output, options, ahead), size):
            if isinstance(group, Record):
                progress(1.0)
                yield group
                continue
            begin = time.perf_counter()
            fetch = _start(resolver, group, options, progress)
            # One batch ahead: devices go on while the one before is fetched.
            for before in refining:
                yield from finish(*before)
            refining = [(group, fetch, begin)]
            # Only so much waits to be written.
            while writing and (sum(size for _, size in writing) > _HELD or writing[0][0].done()):
                yield writing.popleft()[0].result()
        for before in refining:
            yield from finish(*before)
        for record, _ in writing:
            yield record.result()


@dataclasses.dataclass(frozen=True)
class _Source:
    """An input, and what is known of its file."""

    ref: sources.FileRef
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
            output_name(self.ref.name),
            status,
            seed=self.seed,
            input_size=size,
            input_version=version,
            input_digest=self.digest,
            **rest,
        )


@dataclasses.dataclass(frozen=True)
class _Input:
    """A picture that was read."""

    source: _Source
    picture: picture.Picture
    pixels: np.ndarray  # for the network
    note: str

    @property
    def name(self) -> str:
        return self.source.ref.name


@dataclasses.dataclass(frozen=True)
class _Made:
    """A picture that was refined."""

    pixels: np.ndarray
    deviation: np.ndarray | None  # between samples, in [0, 1]; [height, width]
    frames: list[np.ndarray]  # on the way from noise

    @property
    def num_bytes(self) -> int:
        return self.pixels.nbytes + sum(frame.nbytes for frame in self.frames)


def _read(
    readers: concurrent.futures.Executor,
    resolver: SuperResolver,
    inputs: Iterable[sources.FileRef],
    output: epath.Path,
    options: Options,
    ahead: int,
) -> Iterator[_Input | Record]:
    """Reads in threads, in order, ahead of what is asked for: `ahead` pictures, or `_HELD` bytes.

    Files are fetched first, a few at a time, since only their content tells how large the decoded
    picture is.
    """
    refs = iter(inputs)
    fetch = functools.partial(readers.submit, _fetch, options)
    decode = functools.partial(readers.submit, _decode, resolver, output, options)
    fetching = collections.deque(fetch(ref) for ref in itertools.islice(refs, _THREADS))
    decoding: collections.deque[tuple[concurrent.futures.Future, int]] = collections.deque()
    held = 0
    while fetching or decoding:
        while fetching and len(decoding) < ahead and (fetching[0].done() or not decoding):
            source, content = fetching[0].result()
            size = content.num_bytes if isinstance(content, _Content) else 0
            if decoding and held + size > _HELD:
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


def _fetch(options: Options, ref: sources.FileRef) -> tuple[_Source, _Content | str]:
    """Returns a file's content, or why it cannot be used."""
    source = _Source(ref, seed_of(ref.name, options.seed))
    try:
        # Before it is read: what changes it meanwhile makes it another version.
        source = dataclasses.replace(source, state=storage.state(ref.path))
        data = storage.read(ref.path)
        source = dataclasses.replace(source, digest=manifest.digest(data))
        return source, _Content(data, picture.header(data).bytes_decoded)
    except (picture.BadImageError, OSError, ValueError) as error:
        return source, str(error)


def _decode(
    resolver: SuperResolver,
    output: epath.Path,
    options: Options,
    source: _Source,
    content: _Content | str,
) -> _Input | Record:
    if isinstance(content, str):
        return source.record("failed", error=content)
    name = source.ref.name
    try:
        read = picture.decode_picture(content.data)
        factor = resolver.factor if options.factor is None else options.factor
        picture.check_writable(read, output / output_name(name), float(factor))
    except (picture.BadImageError, OSError, ValueError) as error:
        return source.record("failed", error=str(error))
    note = ""
    if factor != resolver.factor:
        when = "before" if factor > resolver.factor else "after"
        note = f"resized by {factor / resolver.factor:g} {when} the network's {resolver.factor}"
    return _Input(source, read, picture.fill_transparent(read), note)


def _groups(read: Iterator[_Input | Record], batch_size: int) -> Iterator[list[_Input] | Record]:
    """Pictures of one shape, at most `batch_size`; neighbours but for a few of other shapes."""
    open_groups: dict[tuple, list[_Input]] = {}
    for one in read:
        if isinstance(one, Record):
            yield one
            continue
        group = open_groups.setdefault((one.pixels.shape, one.pixels.dtype.str), [])
        group.append(one)
        if len(group) == batch_size:
            yield open_groups.pop((one.pixels.shape, one.pixels.dtype.str))
        elif (
            sum(map(len, open_groups.values())) >= 2 * batch_size
            or sum(each.pixels.nbytes for some in open_groups.values() for each in some) > _HELD
        ):
            # The one that has waited longest.
            yield open_groups.pop(next(iter(open_groups)))
    yield from open_groups.values()


def _start(
    resolver: SuperResolver,
    group: list[_Input],
    options: Options,
    progress: Callable[[float], None],
) -> Callable[[], list[_Made]]:
    """Has the devices begin; returns a function that waits for the results."""
    count = options.num_samples
    pixels = np.stack([one.pixels for one in group for _ in range(count)])
    # The first sample is the picture there is without others.
    seeds = [(one.source.seed + k * _NEXT_SAMPLE) % 2**32 for one in group for k in range(count)]
    calls = resolver.num_refinements(pixels.shape, options.steps, factor=options.factor)
    frames = min(_FRAMES, resolver.num_calls(options.steps) + 1) if options.animate else 0
    try:
        results = list(
            resolver.start(
                pixels,
                options.steps,
                seeds,
                factor=options.factor,
                num_snapshots=frames if frames > 1 else 0,
                progress=lambda: progress(len(group) / calls),
            )
        )
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        height, width = pixels.shape[1:3]
        reason = f"{width}x{height} pixels: {error}"

        def fail() -> list[_Made]:
            raise MemoryError(reason)

        return fail

    def fetch() -> list[_Made]:
        made, frames = [], []
        for result in results:
            images, kept = result()
            made.append(images)
            frames.append(np.stack([*kept, images], axis=1) if options.animate else images[:, None])
        samples, ways = np.concatenate(made), np.concatenate(frames)
        return [_made(samples[i : i + count], ways[i]) for i in range(0, len(samples), count)]

    return fetch


def _made(samples: np.ndarray, way: np.ndarray) -> _Made:
    """Of the samples of one picture."""
    if len(samples) == 1:
        return _Made(samples[0], None, list(way))
    mean = np.rint(samples.mean(0, dtype=np.float64)).astype(samples.dtype)
    return _Made(mean, pictures.deviation(samples), list(way))


def _write(
    one: _Input, made: _Made, output: epath.Path, options: Options, seconds: float
) -> Record:
    pixels, alpha = made.pixels, one.picture.alpha
    if alpha is not None:
        scale = options.factor or pixels.shape[0] / alpha.shape[0]
        signed = image_ops.to_signed(alpha[None, ..., None])
        resized = image_ops.rescale(signed, float(scale), pixels.shape[:2])
        alpha = np.asarray(image_ops.to_levels(resized, pixels.dtype))[0, ..., 0]
    if one.picture.is_grey:
        pixels = np.rint(pixels.mean(-1, keepdims=True)).astype(pixels.dtype).repeat(3, -1)
    path, *beside = (output / name for name in output_names(one.name, options))
    try:
        if made.deviation is not None:
            drawn = picture.Picture(pictures.uncertainty(made.deviation))
            picture.write_picture(drawn, beside[0])
        if options.animate:
            pictures.write_animation(made.frames, beside[-1])
        # Last: where it is, all of it is.
        picture.write_picture(dataclasses.replace(one.picture, pixels=pixels, alpha=alpha), path)
    except (OSError, ValueError) as error:
        if storage.is_of_the_place(error):
            raise
        return one.source.record("failed", error=f"cannot write: {error}")
    shift = _colour_shift(one.pixels, made.pixels)
    if abs(shift) > _MUCH:
        logging.warning(
            "%s: colours are shifted by %.1f levels of 255", storage.shown(one.name), shift
        )
    return one.source.record(
        "written",
        seconds=round(seconds, 4),
        note=one.note,
        colour_shift=round(shift, 3),
        output_size=storage.state(path).size,
    )


def _colour_shift(before: np.ndarray, after: np.ndarray) -> float:
    means = (image.mean((0, 1), dtype=np.float64) for image in (after, before))
    shift = np.subtract(*means) * 255 / np.iinfo(before.dtype).max
    return float(shift[np.argmax(np.abs(shift))])


def _failed(group: Sequence[_Input], reason: str) -> Iterator[Record]:
    for one in group:
        yield one.source.record("failed", error=reason)
