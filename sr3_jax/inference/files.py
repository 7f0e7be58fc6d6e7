"""Upscaling files, one output for each input, each written whole or not at all.

Files are read ahead and written behind in threads, while the devices refine. What is held in memory
of both is counted in bytes. Each input gets a `Record`, as soon as its status is known.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging
from etils import epath

from sr3_jax.data import picture, sources, storage
from sr3_jax.inference import levels, pictures, reading, recipes
from sr3_jax.inference.manifest import Record
from sr3_jax.inference.reading import HELD, THREADS, Input, Options

if TYPE_CHECKING:  # which knows this module
    from sr3_jax.inference.super_resolver import SuperResolver

_NEXT_SAMPLE = 1 << 24  # between the seeds of a picture's samples
_MUCH = 5.0  # levels of 255 that colours may be shifted without a warning


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
            stack.enter_context(concurrent.futures.ThreadPoolExecutor(reading.THREADS))
            for _ in "rw"
        )
        stack.callback(readers.shutdown, wait=True, cancel_futures=True)
        ahead = 2 * max(resolver.batch_size, THREADS)
        refining: list[tuple[list[Input], Callable[[], list[_Made]], float]] = []
        writing: collections.deque[tuple[concurrent.futures.Future[Record], int]]
        writing = collections.deque()

        def finish(group: list[Input], fetch: Callable, begin: float) -> Iterator[Record]:
            try:
                made = fetch()
            except (MemoryError, ValueError, jax.errors.JaxRuntimeError) as error:
                yield from _failed(group, f"cannot upscale: {error}")
                return
            seconds = (time.perf_counter() - begin) / len(group)
            for one, its in zip(group, made, strict=True):
                write = writers.submit(
                    _write, one, its, output, options, seconds, resolver.white_level
                )
                writing.append((write, its.num_bytes))

        size = max(1, resolver.batch_size // options.num_samples)
        for group in _groups(
            reading.read_ahead(readers, resolver, inputs, output, options, ahead), size
        ):
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
            while writing and (sum(size for _, size in writing) > HELD or writing[0][0].done()):
                yield writing.popleft()[0].result()
        for before in refining:
            yield from finish(*before)
        for record, _ in writing:
            yield record.result()


@dataclasses.dataclass(frozen=True)
class _Made:
    """A picture that was refined."""

    pixels: np.ndarray
    deviation: np.ndarray | None  # between samples, in [0, 1]; [height, width]
    frames: list[np.ndarray]  # on the way from noise

    @property
    def num_bytes(self) -> int:
        return self.pixels.nbytes + sum(frame.nbytes for frame in self.frames)


def _groups(read: Iterator[Input | Record], batch_size: int) -> Iterator[list[Input] | Record]:
    """Pictures of one shape, at most `batch_size`; neighbours but for a few of other shapes."""
    open_groups: dict[tuple, list[Input]] = {}
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
            or sum(each.pixels.nbytes for some in open_groups.values() for each in some) > HELD
        ):
            # The one that has waited longest.
            yield open_groups.pop(next(iter(open_groups)))
    yield from open_groups.values()


def _start(
    resolver: SuperResolver,
    group: list[Input],
    options: Options,
    progress: Callable[[float], None],
) -> Callable[[], list[_Made]]:
    """Has the devices begin; returns a function that waits for the results."""
    count = options.num_samples
    pixels = np.stack([one.pixels for one in group for _ in range(count)])
    # The first sample is the picture there is without others.
    seeds = [(one.source.seed + k * _NEXT_SAMPLE) % 2**32 for one in group for k in range(count)]
    calls = resolver.num_refinements(pixels.shape, options.steps, factor=options.factor)
    frames = (
        min(reading.MOST_FRAMES, resolver.num_calls(options.steps) + 1) if options.animate else 0
    )
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
    one: Input,
    made: _Made,
    output: epath.Path,
    options: Options,
    seconds: float,
    white_level: int,
) -> Record:
    pixels, alpha = made.pixels, one.picture.alpha
    if pixels.dtype == np.uint16 and white_level:
        pixels = np.rint(pixels * (white_level / 65535)).astype(np.uint16)
    if alpha is not None:
        scale = options.factor or pixels.shape[0] / alpha.shape[0]
        alpha = levels.resized(alpha[None, ..., None], float(scale), pixels.shape[:2])[0, ..., 0]
    if one.picture.is_grey:
        pixels = np.rint(pixels.mean(-1, keepdims=True)).astype(pixels.dtype).repeat(3, -1)
    path, *beside = (output / name for name in reading.output_names(one.name, options))
    try:
        if made.deviation is not None:
            drawn = picture.Picture(pictures.uncertainty(made.deviation))
            picture.write_picture(drawn, beside[0])
        if options.animate:
            pictures.write_animation(made.frames, beside[-1])
        # Last: where it is, all of it is.
        scale = float(options.factor or pixels.shape[0] / one.pixels.shape[0])
        large = one.picture.scaled(pixels, alpha, scale)
        # The name is the input's: the writer appends what the format wants.
        given = {"format": options.format, "quality": options.quality}
        picture.write_picture(large, output / one.name, **given)
        lost = picture.not_kept(large, output / one.name, options.format)
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
        note="; ".join(filter(None, (one.note, lost and f"not kept: {', '.join(lost)}"))),
        colour_shift=round(shift, 3),
        **_written(path),
    )


def _written(path: epath.Path) -> dict[str, Any]:
    """Returns what a row says of an output's file."""
    state = storage.state(path)
    digest = "" if storage.is_url(str(path)) else recipes.digest(storage.read(path))
    return {
        "output_size": state.size,
        "output_version": state.version,
        "output_digest": digest,
    }


def _colour_shift(before: np.ndarray, after: np.ndarray) -> float:
    means = (image.mean((0, 1), dtype=np.float64) for image in (after, before))
    shift = np.subtract(*means) * 255 / np.iinfo(before.dtype).max
    return float(shift[np.argmax(np.abs(shift))])


def _failed(group: Sequence[Input], reason: str) -> Iterator[Record]:
    for one in group:
        yield one.source.record("failed", error=reason)
