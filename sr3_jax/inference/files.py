"""Upscaling files: a photograph or a folder of them, one output for each input."""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from absl import logging
from etils import epath

from sr3_jax.data import folders, image_file, sources
from sr3_jax.inference.super_resolver import SuperResolver


@dataclasses.dataclass
class Report:
    """What became of each input: paths written, and the reasons of those that failed."""

    written: list[str] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)


def find_inputs(path: epath.PathLike) -> sources.Source:
    """The image at `path`, or all images in the folder `path`; raises where there is none."""
    path = epath.Path(path)
    if path.is_dir():
        return folders.folder(path)
    if not path.exists():
        raise FileNotFoundError(f"--input={path} does not exist; give an image or a folder")
    return (sources.FileRef(path.name, str(path)),)


def upscale_files(
    resolver: SuperResolver,
    inputs: sources.Source,
    output: epath.PathLike,
    *,
    steps: int | None = None,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> Report:
    """Upscales each input to `output/NAME`.

    An input that cannot be read or upscaled is logged and reported, and the rest done. The
    noise of a picture depends on `seed` and its name, so that it does not change with the
    folder it is in. Each output is written under a temporary name and then renamed.

    Args:
      resolver: does it.
      inputs: the images; neighbours of one size share a batch.
      output: a folder, made where missing.
      steps: refinement steps; None for the config's.
      seed: of all noise.
      progress: called with the number of images finished since the last call, which is a
        fraction while a batch is being refined.
    """
    output = epath.Path(output)
    if output.exists() and not output.is_dir():
        raise NotADirectoryError(f"--output={output} is a file; give a folder")
    output.mkdir(parents=True, exist_ok=True)
    report = Report()
    for group in _groups(_read(inputs, report, progress), resolver.batch_size):
        refs = [ref for ref, _ in group]
        images = np.stack([image for _, image in group])
        seeds = [zlib.crc32(f"{seed}/{ref.name}".encode()) for ref in refs]
        share = len(refs) / resolver.num_refinements(images.shape, steps)
        try:
            results = resolver.upscale(images, steps, seeds, progress=lambda s=share: progress(s))
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            height, width = images.shape[1:3]
            _fail(report, refs, f"cannot upscale {width}x{height} pixels: {error}")
            continue
        for ref, result in zip(refs, results, strict=True):
            try:
                report.written.append(str(image_file.write_image(result, output / ref.name)))
            except OSError as error:
                _fail(report, [ref], f"cannot write: {error}")
    return report


def _read(
    inputs: Sequence[sources.ImageRef], report: Report, progress: Callable[[float], None]
) -> Iterator[tuple[sources.ImageRef, np.ndarray]]:
    for ref in inputs:
        try:
            yield ref, ref.read().image
        except (image_file.BadImageError, OSError) as error:
            _fail(report, [ref], str(error))
            progress(1.0)


def _groups(
    pairs: Iterator[tuple[sources.ImageRef, np.ndarray]], size: int
) -> Iterator[list[tuple[sources.ImageRef, np.ndarray]]]:
    """Neighbours of one shape, at most `size` of them: only so many are in memory."""
    for _, same in itertools.groupby(pairs, key=lambda pair: pair[1].shape):
        while group := list(itertools.islice(same, size)):
            yield group


def _fail(report: Report, refs: Sequence[sources.ImageRef], reason: str) -> None:
    for ref in refs:
        report.failed[ref.name] = reason
        logging.error("%s: %s", ref.name, reason)
