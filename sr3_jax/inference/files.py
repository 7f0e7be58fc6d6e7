"""Upscaling files, one output for each input, each written whole or not at all.

Files are read ahead and written behind in threads, while the devices refine. What becomes of each
is told by a `Record`, as soon as it is known.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import jax
import numpy as np
from absl import logging
from etils import epath

from sr3_jax.data import folders, image_file, picture, sources
from sr3_jax.inference import levels, pictures

if TYPE_CHECKING:  # which knows this module
    from sr3_jax.inference.super_resolver import SuperResolver

_THREADS = 4  # that read, and that write
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


@dataclasses.dataclass(frozen=True)
class Record:
    """What became of one input: a row of the manifest.

    Attributes:
      input: its name, relative to the folder of inputs.
      output: relative to the folder of outputs.
      status: `written`, or `failed`; `found` of outputs of which no row was left.
      error: why it failed; else empty.
      seconds: its share of the time that its batch took.
      seed: of its noise.
      note: what else was done to it, such as resizing; else empty.
      colour_shift: mean colour of the output less the input's, in levels of 255; of the three
        channels the one that is off most. A network that has learnt enough stays under 1.
    """

    input: str
    output: str
    status: str
    error: str = ""
    seconds: float | None = None
    seed: int | None = None
    note: str = ""
    colour_shift: float | None = None


def find_inputs(path: epath.PathLike) -> sources.Source:
    """The image at `path`, or all images in the folder `path`; raises where there is none."""
    path = epath.Path(path)
    if path.is_dir():
        return folders.folder(path)
    if not path.exists():
        raise FileNotFoundError(f"--input={path} does not exist; give an image or a folder")
    return (sources.FileRef(path.name, str(path)),)


def output_name(name: str) -> str:
    """The file that an input becomes, relative to the folder of outputs."""
    return str(picture.output_path(epath.Path(name)))


def seed_of(name: str, seed: int) -> int:
    """Of an input's noise."""
    return zlib.crc32(f"{seed}/{name}".encode())


def upscale_files(
    resolver: SuperResolver,
    inputs: Sequence[sources.FileRef],
    output: epath.PathLike,
    options: Options = Options(),  # noqa: B008  (frozen)
    progress: Callable[[float], None] | None = None,
) -> Iterator[Record]:
    """Upscales each input to `output/NAME`.

    Alpha is kept (resized by bicubic), and so are colour profile, EXIF and 16 bits; the EXIF
    orientation is applied, and grey pictures stay grey. An input that cannot be read or upscaled is
    told by its record, and the rest done.

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
        writing: list[concurrent.futures.Future[Record]] = []

        def finish(group: list[_Input], fetch: Callable, begin: float) -> Iterator[Record]:
            try:
                made = fetch()
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                yield from _failed(group, f"cannot upscale: {error}")
                return
            seconds = (time.perf_counter() - begin) / len(group)
            for one, its in zip(group, made, strict=True):
                writing.append(writers.submit(_write, one, its, output, options, seconds))

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
            # As few pictures as that wait to be written: memory is bounded.
            while len(writing) > ahead or (writing and writing[0].done()):
                yield writing.pop(0).result()
        for before in refining:
            yield from finish(*before)
        for record in writing:
            yield record.result()


@dataclasses.dataclass(frozen=True)
class _Input:
    """A picture that was read."""

    name: str
    picture: picture.Picture
    pixels: np.ndarray  # for the network
    seed: int
    note: str


@dataclasses.dataclass(frozen=True)
class _Made:
    """What became of a picture."""

    pixels: np.ndarray
    deviation: np.ndarray | None  # between samples, in [0, 1]; [height, width]
    frames: list[np.ndarray]  # on the way from noise


def _read(
    readers: concurrent.futures.Executor,
    resolver: SuperResolver,
    inputs: Iterable[sources.FileRef],
    output: epath.Path,
    options: Options,
    ahead: int,
) -> Iterator[_Input | Record]:
    """Reads in threads, `ahead` of what is asked for, in order."""
    refs = iter(inputs)
    read = functools.partial(readers.submit, _read_one, resolver, output, options)
    waiting = collections.deque(read(ref) for ref in itertools.islice(refs, ahead))
    while waiting:
        yield waiting.popleft().result()
        waiting.extend(read(ref) for ref in itertools.islice(refs, 1))


def _read_one(
    resolver: SuperResolver, output: epath.Path, options: Options, ref: sources.FileRef
) -> _Input | Record:
    seed = seed_of(ref.name, options.seed)
    try:
        read = picture.read_picture(ref.path)
        factor = resolver.factor if options.factor is None else options.factor
        picture.check_writable(read, output / ref.name, float(factor))
    except (image_file.BadImageError, OSError, ValueError) as error:
        return _record(ref.name, seed, "failed", error=str(error))
    note = ""
    if factor != resolver.factor:
        when = "before" if factor > resolver.factor else "after"
        note = f"resized by {factor / resolver.factor:g} {when} the network's {resolver.factor}"
    return _Input(ref.name, read, picture.fill_transparent(read), seed, note)


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
        elif sum(map(len, open_groups.values())) >= 2 * batch_size:
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
    seeds = [(one.seed + k * _NEXT_SAMPLE) % 2**32 for one in group for k in range(count)]
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
        alpha = levels.resized(alpha[None, ..., None], float(scale), pixels.shape[:2])[0, ..., 0]
    if one.picture.is_grey:
        pixels = np.rint(pixels.mean(-1, keepdims=True)).astype(pixels.dtype).repeat(3, -1)
    path = output / one.name
    try:
        if made.deviation is not None:
            drawn = picture.Picture(pictures.uncertainty(made.deviation))
            picture.write_picture(drawn, path.with_name(path.name + ".uncertainty.png"))
        if options.animate:
            pictures.write_animation(made.frames, path.with_name(path.name + ".refinement.gif"))
        # Last: where it is, all of it is.
        picture.write_picture(dataclasses.replace(one.picture, pixels=pixels, alpha=alpha), path)
    except (OSError, ValueError) as error:
        return _record(one.name, one.seed, "failed", error=f"cannot write: {error}")
    shift = _colour_shift(one.pixels, made.pixels)
    if abs(shift) > _MUCH:
        logging.warning("%s: colours are shifted by %.1f levels of 255", one.name, shift)
    return _record(
        one.name,
        one.seed,
        "written",
        seconds=round(seconds, 4),
        note=one.note,
        colour_shift=round(shift, 3),
    )


def _colour_shift(before: np.ndarray, after: np.ndarray) -> float:
    means = (image.mean((0, 1), dtype=np.float64) for image in (after, before))
    shift = np.subtract(*means) * 255 / np.iinfo(before.dtype).max
    return float(shift[np.argmax(np.abs(shift))])


def _record(name: str, seed: int, status: str, **rest: object) -> Record:
    if error := rest.get("error"):
        logging.error("%s: %s", name, error)
    return Record(name, output_name(name), status, seed=seed, **rest)


def _failed(group: Sequence[_Input], reason: str) -> Iterator[Record]:
    for one in group:
        yield _record(one.name, one.seed, "failed", error=reason)
