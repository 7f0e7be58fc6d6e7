"""Upscaling files, one output for each input, each written whole or not at all.

Files are read ahead and written behind in threads, while the devices refine; each input gets a
`Record` when it is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from absl import logging
from etils import epath

from sr3_jax.data import depth, image_files, resumable, sources, storage
from sr3_jax.inference import integer_images, visualization
from sr3_jax.inference.inputs import UpscaleOptions
from sr3_jax.inference.manifest import Record

_MOST_FRAMES = 40  # of an animation
_NEXT_SAMPLE = 1 << 24  # between the seeds of a picture's samples
_MUCH = 5.0  # levels of 255 that colours may be shifted without a warning


@runtime_checkable
class Resolver(Protocol):
    """The part of `SuperResolver` that is used here; that class imports this module."""

    batch_size: int
    factor: int
    white_level: int
    check_fits: Callable[..., None]
    nfe: Callable[..., int]
    num_refinements: Callable[..., int]
    start: Callable[..., Iterator[Callable[[], tuple[np.ndarray, list[np.ndarray]]]]]


def upscale_files(
    resolver: Resolver,
    inputs: Iterable[sources.FileRef],
    output: epath.PathLike,
    options: UpscaleOptions = UpscaleOptions(),  # noqa: B008  (frozen)
    progress: Callable[[float], None] | None = None,
) -> Iterator[Record]:
    """Upscales each input to `output/NAME`.

    Alpha is kept (resized by bicubic), and so are colour profile, EXIF and 16 bits; the EXIF
    orientation is applied, and grey pictures stay grey. Near inputs of one size share a batch. An
    input that cannot be read or upscaled gets a record that says why, and the rest is done.
    `progress` is called with the number of images finished since the last call, a fraction while a
    batch is being refined.

    Yields:
      One record for each input, in no particular order. An iteration that is ended early leaves
      no half file.

    Raises:
      OSError: the folder takes no files: the disk is full or read-only, or rights are missing.
    """
    job = _Job(resolver, epath.Path(output), options, progress or (lambda share: None))
    ahead = 2 * max(resolver.batch_size, resumable.THREADS)
    # Files are fetched first, since only their content tells how large the decoded picture is.
    fetched = resumable.in_threads(job.fetch, inputs, ahead=resumable.THREADS)
    decoded = resumable.in_threads(job.decode, fetched, ahead=ahead, num_bytes=_num_bytes)
    refined = (one for some in resumable.one_behind(job.begin(decoded)) for one in some)
    written = resumable.in_threads(
        job.write, refined, ahead=ahead, num_bytes=_num_bytes, eager=True
    )
    with contextlib.closing(fetched), contextlib.closing(decoded):
        yield from written


class _Fetched(NamedTuple):
    """An input, its file's content, and the bytes that its pixels will take."""

    record: Record
    content: bytes
    num_bytes: int


class _Decoded(NamedTuple):
    """An input's picture, and its pixels for the network."""

    record: Record
    picture: image_files.Picture
    pixels: np.ndarray


class _Refined(NamedTuple):
    """An input and what the network made of it."""

    record: Record
    input: _Decoded
    pixels: np.ndarray
    deviation: np.ndarray | None  # between samples, in [0, 1]; [height, width]
    frames: np.ndarray  # on the way from noise; [frames, height, width, 3]


def _num_bytes(unit: Record | _Fetched | _Refined) -> int:
    if isinstance(unit, _Refined):
        return unit.pixels.nbytes + unit.frames.nbytes
    return unit.num_bytes if isinstance(unit, _Fetched) else 0


@dataclasses.dataclass(frozen=True)
class _Job:
    """The stages that an input passes; one that has failed is a record, which passes the rest."""

    resolver: Resolver
    output: epath.Path
    options: UpscaleOptions
    progress: Callable[[float], None]

    def fetch(self, ref: sources.FileRef) -> Record | _Fetched:
        """Reads a file; one whose picture memory cannot hold fails before it is decoded."""
        options = self.options
        made, seed = options.output_names(ref.name)[0], options.seed_of(ref.name)
        record = Record(ref.name, made, "written", seed=seed)
        try:
            # Before it is read: what changes it meanwhile makes it another version.
            if state := storage.state(ref.path):
                seen = {"input_size": state.size, "input_version": state.version}
                record = dataclasses.replace(record, **seen)
            content = storage.read(ref.path)
            record = dataclasses.replace(record, input_digest=resumable.digest(content))
            opened = image_files.open_file(content)
            self.resolver.check_fits(
                opened.shape[:2],
                factor=options.factor,
                num_samples=options.num_samples,
                num_snapshots=_MOST_FRAMES if options.animate else 0,
            )
        except (image_files.BadImageError, OSError, ValueError) as error:
            return _failed(record, str(error))
        return _Fetched(record, content, opened.bytes_decoded)

    def decode(self, unit: Record | _Fetched) -> Record | _Decoded:
        """Decodes a picture; one whose output could not be written fails before it is refined."""
        if isinstance(unit, Record):
            return unit
        factor = self.options.factor or self.resolver.factor
        try:
            read = image_files.decode_picture(unit.content)
            path = self.output / unit.record.input
            image_files.check_writable(read, path, float(factor), **self.format)
        except (image_files.BadImageError, OSError, ValueError) as error:
            return _failed(unit.record, str(error))
        notes = []
        if factor != self.resolver.factor:
            when = "before" if factor > self.resolver.factor else "after"
            by = factor / self.resolver.factor
            notes.append(f"resized by {by:g} {when} the network's {self.resolver.factor}")
        pixels = image_files.fill_transparent(read)
        if pixels.dtype == np.uint16:
            white, largest = self.resolver.white_level, int(pixels.max())
            if white and largest > white:
                notes.append(f"values above the network's white level of {white} were clipped")
            elif not white and 0 < largest < depth.SMALL_PART:
                notes.append(f"values reach {largest} of 65535, so that the network saw it dark")
            pixels = depth.convert(pixels, np.uint16, white)
        return _Decoded(dataclasses.replace(unit.record, note="; ".join(notes)), read, pixels)

    @property
    def format(self) -> dict[str, Any]:
        """The arguments of `image_files.write_picture` that set the encoding."""
        return {"format": self.options.format, "quality": self.options.quality}

    def begin(
        self, read: Iterable[Record | _Decoded]
    ) -> Iterator[Callable[[], Sequence[Record | _Refined]]]:
        """Has the devices begin on groups of pictures; yields functions that wait for each."""
        size = max(1, self.resolver.batch_size // self.options.num_samples)
        for group in _groups(read, size):
            if isinstance(group, Record):
                self.progress(1.0)
                yield lambda record=group: [record]
            else:
                yield self._begin(group)

    def _begin(self, group: Sequence[_Decoded]) -> Callable[[], Sequence[Record | _Refined]]:
        resolver, options, count = self.resolver, self.options, self.options.num_samples
        pixels = np.stack([one.pixels for one in group for _ in range(count)])
        # The first sample is the picture there is without others.
        steps = [k * _NEXT_SAMPLE for k in range(count)]
        seeds = [(one.record.seed + step) % 2**32 for one in group for step in steps]
        calls = resolver.num_refinements(pixels.shape, options.steps, factor=options.factor)
        frames = min(_MOST_FRAMES, resolver.nfe(options.steps) + 1) if options.animate else 0
        begin, begun, error = time.perf_counter(), [], None
        how = dict(
            factor=options.factor,
            num_snapshots=frames if frames > 1 else 0,
            progress=lambda: self.progress(len(group) / calls),
        )
        try:
            begun = list(resolver.start(pixels, options.steps, seeds, **how))
        except (MemoryError, jax.errors.JaxRuntimeError) as why:
            height, width = pixels.shape[1:3]
            error = f"{width}x{height} pixels: {why}"

        def fetch() -> Sequence[Record | _Refined]:
            failure = error
            try:
                results = [wait() for wait in begun]
            except (MemoryError, ValueError, jax.errors.JaxRuntimeError) as why:
                failure = str(why)
            if failure is not None:
                return [_failed(one.record, f"cannot upscale: {failure}") for one in group]
            seconds = round((time.perf_counter() - begin) / len(group), 4)
            samples = np.concatenate([made for made, _ in results])
            ways = np.concatenate([np.stack([*kept, made], axis=1) for made, kept in results])
            of_each = zip(group, np.split(samples, len(group)), ways[::count], strict=True)
            return [_refined(*each, seconds) for each in of_each]

        return fetch

    def write(self, unit: Record | _Refined) -> Record:
        """Writes an output and what lies beside it."""
        if isinstance(unit, Record):
            return unit
        record, one, options = unit.record, unit.input, self.options
        pixels, alpha, white = unit.pixels, one.picture.alpha, self.resolver.white_level
        scale = float(options.factor or pixels.shape[0] / one.pixels.shape[0])
        if pixels.dtype == np.uint16 and white:
            pixels = np.rint(pixels * (white / 65535)).astype(np.uint16)
        if alpha is not None:
            layer = integer_images.resized(alpha[None, ..., None], scale, pixels.shape[:2])
            alpha = layer[0, ..., 0]
        if one.picture.is_grey:
            pixels = np.rint(pixels.mean(-1, keepdims=True)).astype(pixels.dtype).repeat(3, -1)
        made, *beside = (self.output / name for name in options.output_names(record.input))
        try:
            if unit.deviation is not None:
                drawn = image_files.Picture(visualization.uncertainty(unit.deviation))
                image_files.write_picture(drawn, beside[0])
            if options.animate:
                visualization.write_animation(list(unit.frames), beside[-1])
            large = one.picture.scaled(pixels, alpha, scale)
            # Written last: its presence marks completion. The name is the input's: the writer
            # appends what the format wants.
            path = self.output / record.input
            image_files.write_picture(large, path, **self.format)
            lost = image_files.not_kept(large, path, options.format)
        except (OSError, ValueError) as error:
            if storage.is_of_the_place(error):
                raise
            return _failed(record, f"cannot write: {error}")
        shift = _colour_shift(one.pixels, unit.pixels)
        if abs(shift) > _MUCH:
            name = storage.shown(record.input)
            logging.warning("%s: colours are shifted by %.1f levels of 255", name, shift)
        state = storage.state(made)
        in_bucket = storage.is_url(str(made))  # where the version is that of the content
        return dataclasses.replace(
            record,
            note="; ".join(filter(None, (record.note, lost and f"not kept: {', '.join(lost)}"))),
            colour_shift=round(shift, 3),
            output_size=state.size,
            output_version=state.version,
            output_digest="" if in_bucket else resumable.digest(storage.read(made)),
        )


def _failed(record: Record, reason: str) -> Record:
    logging.error("%s: %s", storage.shown(record.input), reason)
    return dataclasses.replace(record, status="failed", error=reason, note="")


def _groups(
    read: Iterable[Record | _Decoded], batch_size: int
) -> Iterator[Record | Sequence[_Decoded]]:
    """Pictures of one shape, at most `batch_size`; neighbours but for a few of other shapes."""
    groups: dict[tuple, list[_Decoded]] = {}
    for one in read:
        if isinstance(one, Record):
            yield one
            continue
        key = (one.pixels.shape, one.pixels.dtype.str)
        groups.setdefault(key, []).append(one)
        waiting = [each for group in groups.values() for each in group]
        if len(groups[key]) == batch_size:
            yield groups.pop(key)
        elif len(waiting) >= 2 * batch_size or (
            sum(each.pixels.nbytes for each in waiting) > resumable.MOST_BYTES
        ):
            yield groups.pop(next(iter(groups)))  # the one that has waited longest
    yield from groups.values()


def _refined(one: _Decoded, samples: np.ndarray, frames: np.ndarray, seconds: float) -> _Refined:
    """Returns the mean of a picture's samples, and how far they are apart."""
    record = dataclasses.replace(one.record, seconds=seconds)
    if len(samples) == 1:
        return _Refined(record, one, samples[0], None, frames)
    mean = np.rint(samples.mean(0, dtype=np.float64)).astype(samples.dtype)
    return _Refined(record, one, mean, visualization.deviation(samples), frames)


def _colour_shift(before: np.ndarray, after: np.ndarray) -> float:
    means = (image.mean((0, 1), dtype=np.float64) for image in (after, before))
    shift = np.subtract(*means) * 255 / np.iinfo(before.dtype).max
    return float(shift[np.argmax(np.abs(shift))])
