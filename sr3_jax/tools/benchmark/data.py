"""How fast a config's images come: `python -m sr3_jax.tools.benchmark --what=data --config=FILE`.

Compares the training pipeline, without its cache, with the bound: the same images read, decoded
and resized by as many threads, nothing else. Both in turn, so that what else the machine does hits
both. docs/data.md has results.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent import futures

from sr3_jax.config import Config, changed, image_sets
from sr3_jax.data import degrade, sources
from sr3_jax.data.image_files import BadImageError

# Of the bound: images for each turn of a thread.
_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Result:
    """Images per second, of each round; and what it took to get there.

    Attributes:
      bound: reading, decoding and both resizes, in threads that do nothing else.
      pipeline: batches in the order of training.
      cached: the same from memory, where the images fit `config.data.cache_gb`; else empty.
      open_seconds: until the source was listed.
      first_seconds: from there until the first batch.
      memory_bytes: the most this process had in memory, before the source was opened and without
        a cache of images since.
    """

    num_images: int
    image_size: int
    low_resolution: int
    num_threads: int
    bound: list[float]
    pipeline: list[float]
    cached: list[float]
    open_seconds: float
    first_seconds: float
    memory_bytes: tuple[int, int]

    @property
    def share(self) -> float:
        """Returns the share of the bound that is reached: the median ratio of the rounds."""
        return statistics.median(
            own / bound for own, bound in zip(self.pipeline, self.bound, strict=True)
        )


def measure(config: Config, images_per_round: int, repeats: int) -> Result:
    """Times the images of `config`, over so many rounds of so many images."""
    before = _peak_memory()
    begin = time.perf_counter()
    source = image_sets.training_source(config)
    open_seconds = time.perf_counter() - begin
    threads = config.data.num_threads or os.cpu_count() or 1
    options = degrade.DegradeOptions(config.data.image_size, config.data.low_resolution)
    batch_size = config.train.batch_size
    num_batches = -(-images_per_round // batch_size)

    uncached = changed(config, {"data.cache_gb": 0.0})
    begin = time.perf_counter()
    stream = image_sets.training_pipeline(uncached).training_batches()
    next(stream)
    first_seconds = time.perf_counter() - begin

    def run_pipeline() -> float:
        # What was made ahead during the other's turn does not count.
        for _ in range(3):
            next(stream)
        begin = time.perf_counter()
        for _ in range(num_batches):
            next(stream)
        return num_batches * batch_size / (time.perf_counter() - begin)

    position = itertools.count()
    with futures.ThreadPoolExecutor(threads) as pool:

        def run_bound() -> float:
            # Another stretch of the images each time, as in training.
            chosen = [source[next(position) % len(source)] for _ in range(images_per_round)]
            begin = time.perf_counter()
            parts = [chosen[i : i + _ROWS] for i in range(0, len(chosen), _ROWS)]
            list(pool.map(lambda refs: _make_pairs(refs, options), parts))
            return len(chosen) / (time.perf_counter() - begin)

        run_bound()
        rounds = [(run_bound(), run_pipeline()) for _ in range(repeats)]
    getattr(stream, "close", lambda: None)()
    memory_bytes = before, _peak_memory()
    return Result(
        num_images=len(source),
        image_size=options.image_size,
        low_resolution=options.low_resolution,
        num_threads=threads,
        bound=[bound for bound, _ in rounds],
        pipeline=[own for _, own in rounds],
        cached=_cached(config, len(source), repeats),
        open_seconds=open_seconds,
        first_seconds=first_seconds,
        memory_bytes=memory_bytes,
    )


def _cached(config: Config, num_images: int, repeats: int) -> list[float]:
    """Images per second once all are in memory; nothing where they do not fit."""
    images = image_sets.training_pipeline(config)
    of_pair = 3 * images.dtype.itemsize * sum(size**2 for size in images.sizes)
    if config.data.crop == "random" or num_images * of_pair > config.data.cache_gb * 2**30:
        return []
    stream = images.training_batches()
    num_batches = -(-num_images // config.train.batch_size) + 2  # read ahead: two more
    for _ in range(num_batches):
        next(stream)
    rates = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(num_batches):
            next(stream)
        rates.append(num_batches * config.train.batch_size / (time.perf_counter() - begin))
    getattr(stream, "close", lambda: None)()
    return rates


def _make_pairs(refs: Sequence[sources.ImageRef], options: degrade.DegradeOptions) -> None:
    crops = []
    for ref in refs:
        try:
            picture = ref.read()
            crops.append(degrade.cut(picture.image, picture.low_resolution, options, None))
        except BadImageError:
            pass  # the pipeline leaves it out, too, and says so
    degrade.make_pairs(crops, options)


def _peak_memory() -> int:
    """The most that this process has had in memory so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def report(result: Result) -> str:
    """The result as text."""

    def line(name: str, rates: list[float]) -> str:
        spread = f"({min(rates):.0f} to {max(rates):.0f})"
        return f"  {name:9s}{statistics.median(rates):8.0f} images/s {spread}"

    lines = [
        f"{result.num_images} images to {result.image_size} and {result.low_resolution} pixels, "
        f"{result.num_threads} threads",
        f"  listed in {result.open_seconds:.2f} s, first batch after {result.first_seconds:.2f} s",
        line("bound", result.bound) + ": read, decode, resize twice",
        line("pipeline", result.pipeline) + f": {result.share:.0%} of the bound",
    ]
    if result.cached:
        lines.append(line("cached", result.cached))
    before, after = (size / 2**20 for size in result.memory_bytes)
    lines.append(f"  memory   {after:8.0f} MiB, of which {before:.0f} before the source was opened")
    return "\n".join(lines)
