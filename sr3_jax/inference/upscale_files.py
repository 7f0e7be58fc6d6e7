"""Upscaling files, one output for each input, each written whole or not at all.

Files are read ahead and written behind in threads, while the devices refine; each input gets a
`Record` when it is done. `Kind` says how files are read and written: `picture_files` for networks
of levels, `array_files` for those of other numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from absl import logging
from etils import epath

from sr3_jax.data import image_files, resumable, sources, storage
from sr3_jax.inference import array_files, picture_files
from sr3_jax.inference.file_kinds import MOST_FRAMES, Decoded, Fetched, Kind, Refined, Resolver
from sr3_jax.inference.inputs import UpscaleOptions
from sr3_jax.inference.manifest import Record

# Between the seeds of an image's samples, and of a file's images.
_NEXT_SAMPLE, _NEXT_IMAGE = 1 << 24, 1 << 12
_REFUSED = (image_files.BadImageError, OSError, ValueError)


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
    output = epath.Path(output)
    kind = picture_files.PictureFiles if resolver.scalings is None else array_files.ArrayFiles
    kind = kind(resolver, output, options)
    job = _Job(resolver, kind, output, options, progress or (lambda share: None))
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


def _num_bytes(unit: Record | Fetched | Refined) -> int:
    if isinstance(unit, Refined):
        return unit.samples.nbytes + unit.frames.nbytes
    return unit.num_bytes if isinstance(unit, Fetched) else 0


@dataclasses.dataclass(frozen=True)
class _Job:
    """The stages that an input passes; one that has failed is a record, which passes the rest."""

    resolver: Resolver
    kind: Kind
    output: epath.Path
    options: UpscaleOptions
    progress: Callable[[float], None]

    def fetch(self, ref: sources.FileRef) -> Record | Fetched:
        options = self.options
        made, seed = options.output_names(ref.name)[0], options.seed_of(ref.name)
        record = Record(ref.name, made, "written", seed=seed)
        try:
            # Before it is read: what changes it meanwhile makes it another version.
            if state := storage.state(ref.path):
                seen = {"input_size": state.size, "input_version": state.version}
                record = dataclasses.replace(record, **seen)
            return self.kind.fetch(record, ref.path)
        except _REFUSED as error:
            return _failed(record, str(error))

    def decode(self, unit: Record | Fetched) -> Record | Decoded:
        if isinstance(unit, Record):
            return unit
        try:
            return self.kind.decode(unit)
        except _REFUSED as error:
            return _failed(unit.record, str(error))

    def begin(
        self, read: Iterable[Record | Decoded]
    ) -> Iterator[Callable[[], Sequence[Record | Refined]]]:
        """Has the devices begin on groups of inputs; yields functions that wait for each."""
        size = max(1, self.resolver.batch_size // self.options.num_samples)
        for group in _groups(read, size):
            if isinstance(group, Record):
                self.progress(1.0)
                yield lambda record=group: [record]
            else:
                yield self._begin(group)

    def _begin(self, group: Sequence[Decoded]) -> Callable[[], Sequence[Record | Refined]]:
        resolver, options, count = self.resolver, self.options, self.options.num_samples
        images = np.concatenate([one.images for one in group]).repeat(count, axis=0)
        # The first sample is the picture there is without others; images of a file follow it.
        seeds = [
            (one.record.seed + number * _NEXT_IMAGE + sample * _NEXT_SAMPLE) % 2**32
            for one in group
            for number in range(len(one.images))
            for sample in range(count)
        ]
        calls = resolver.num_refinements(images.shape, options.steps, factor=options.factor)
        frames = min(MOST_FRAMES, resolver.nfe(options.steps) + 1) if options.animate else 0
        begin, begun, error = time.perf_counter(), [], None
        how = dict(
            factor=options.factor,
            num_snapshots=frames if frames > 1 else 0,
            progress=lambda: self.progress(len(group) / calls),
        )
        if group[0].maps is not None:
            of_each = [
                np.broadcast_to(one.maps, (len(one.images), *one.maps.shape[1:])) for one in group
            ]
            how["maps"] = np.concatenate(of_each).repeat(count, axis=0)
        try:
            begun = list(resolver.start(images, options.steps, seeds, **how))
        except (MemoryError, ValueError, jax.errors.JaxRuntimeError) as why:
            height, width = images.shape[1:3]
            error = f"{width}x{height} pixels: {why}"

        def fetch() -> Sequence[Record | Refined]:
            failure = error
            try:
                results = [wait() for wait in begun]
            except (MemoryError, ValueError, jax.errors.JaxRuntimeError) as why:
                failure = str(why)
            if failure is not None:
                return [_failed(one.record, f"cannot upscale: {failure}") for one in group]
            seconds = round((time.perf_counter() - begin) / len(group), 4)
            samples = np.concatenate([made for made, _ in results])
            samples = samples.reshape(-1, count, *samples.shape[1:])
            ways = np.concatenate([np.stack([*kept, made], axis=1) for made, kept in results])
            ends = np.cumsum([len(one.images) for one in group])[:-1]
            of_each = zip(
                group, np.split(samples, ends), np.split(ways[::count], ends), strict=True
            )
            return [
                Refined(one, dataclasses.replace(one.record, seconds=seconds), made, frames)
                for one, made, frames in of_each
            ]

        return fetch

    def write(self, unit: Record | Refined) -> Record:
        if isinstance(unit, Record):
            return unit
        record = unit.record
        try:
            record = self.kind.write(unit)
        except (OSError, ValueError) as error:
            if storage.is_of_the_place(error):
                raise
            return _failed(record, f"cannot write: {error}")
        made = self.output / record.output
        state = storage.state(made)
        # In a bucket the version is that of the content; a folder has no content of its own.
        has_digest = not (storage.is_url(str(made)) or made.is_dir())
        return dataclasses.replace(
            record,
            output_size=state.size,
            output_version=state.version,
            output_digest=resumable.digest(storage.read(made)) if has_digest else "",
        )


def _failed(record: Record, reason: str) -> Record:
    logging.error("%s: %s", storage.shown(record.input), reason)
    return dataclasses.replace(record, status="failed", error=reason, note="")


def _groups(
    read: Iterable[Record | Decoded], batch_size: int
) -> Iterator[Record | Sequence[Decoded]]:
    """Files with images of one shape, `batch_size` images or one file; near in their order."""
    groups: dict[tuple, list[Decoded]] = {}
    for one in read:
        if isinstance(one, Record):
            yield one
            continue
        key = (one.images.shape[1:], one.images.dtype.str, one.maps is None)
        groups.setdefault(key, []).append(one)
        waiting = [each for group in groups.values() for each in group]
        if sum(len(each.images) for each in groups[key]) >= batch_size:
            yield groups.pop(key)
        elif len(waiting) >= 2 * batch_size or (
            sum(each.images.nbytes for each in waiting) > resumable.MOST_BYTES
        ):
            yield groups.pop(next(iter(groups)))  # the one that has waited longest
    yield from groups.values()
