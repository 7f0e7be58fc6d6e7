"""The speed of reading a config's images: `tools.benchmark --what=data --config=FILE`.

Compares the training pipeline, without its cache, with a bound: as many threads that read, decode
and resize the same images and do nothing else. Both run in turn, so that other load of the machine
affects both. docs/data.md has results.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

from sr3_jax.config import Config, changed, image_sets
from sr3_jax.data import degrade, pipeline, sources
from sr3_jax.data.image_files import BadImageError

_ROWS = 8  # images of a task of the bound


def measure(config: Config, images_per_round: int, repeats: int) -> dict[str, Any]:
    """Times the reading of a config's images.

    Returns:
      Sizes and settings, and: images per second in each round, `bound` (reading, decoding and both
      resizes alone), `pipeline` (the batches of training by Grain), `tf` (those of
      `config.data.loader=tf`, if TensorFlow is installed), `cached` (those of training from memory;
      empty if the images do not fit into `config.data.cache_gb`); `open_seconds` until the source
      is listed and `first_seconds` from there until the first batch of each loader; `memory_bytes`,
      the peak of this process before the source is opened and after the rounds without a cache.
    """
    before = _peak_memory()
    begin = time.perf_counter()
    source = image_sets.training_source(config)
    open_seconds = time.perf_counter() - begin
    threads = config.data.num_threads or os.cpu_count() or 1
    options = degrade.DegradeOptions(config.data.image_size, config.data.low_resolution)
    batch_size = config.train.batch_size
    num_batches = -(-images_per_round // batch_size)

    loaders = {"pipeline": "grain"}
    if importlib.util.find_spec("tensorflow"):
        loaders["tf"] = "tf"
    streams, first_seconds = {}, {}
    for name, loader in loaders.items():
        uncached = changed(config, {"data.cache_gb": 0.0, "data.loader": loader})
        begin = time.perf_counter()
        streams[name] = image_sets.training_pipeline(uncached).training_batches()
        next(streams[name])
        first_seconds[name] = time.perf_counter() - begin

    def run_pipeline(stream: Iterator[pipeline.Batch]) -> float:
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
        rounds = [
            {"bound": run_bound()} | {name: run_pipeline(of) for name, of in streams.items()}
            for _ in range(repeats)
        ]
    for stream in streams.values():
        getattr(stream, "close", lambda: None)()
    memory_bytes = before, _peak_memory()
    return {
        "num_images": len(source),
        "image_size": options.image_size,
        "low_resolution": options.low_resolution,
        "num_threads": threads,
        **{name: [found[name] for found in rounds] for name in rounds[0]},
        "cached": _cached(config, len(source), repeats),
        "open_seconds": open_seconds,
        "first_seconds": first_seconds,
        "memory_bytes": memory_bytes,
    }


def _cached(config: Config, num_images: int, repeats: int) -> list[float]:
    """Returns images per second once all are in memory; nothing if they do not fit."""
    images = image_sets.training_pipeline(config)
    of_pair = 3 * images.dtype.itemsize * sum(map(math.prod, images.sizes))
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
    """Returns the peak memory of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def report(result: dict[str, Any]) -> str:
    """Returns the result as text."""

    def line(name: str) -> str:
        rates = result[name]
        spread = f"({min(rates):.0f} to {max(rates):.0f})"
        return f"  {name:9s}{statistics.median(rates):8.0f} images/s {spread}"

    def share(name: str) -> str:
        pairs = zip(result[name], result["bound"], strict=True)
        return f"{statistics.median(own / bound for own, bound in pairs):.0%} of the bound"

    firsts = (f"{seconds:.2f} s ({name})" for name, seconds in result["first_seconds"].items())
    before, after = (size / 2**20 for size in result["memory_bytes"])
    lines = [
        f"{result['num_images']} images to {result['image_size']} and {result['low_resolution']} "
        f"pixels, {result['num_threads']} threads",
        f"  listed in {result['open_seconds']:.2f} s, first batch after {', '.join(firsts)}",
        f"{line('bound')}: read, decode, resize twice",
        f"{line('pipeline')}: {share('pipeline')}",
        *([f"{line('tf')}: {share('tf')}"] if "tf" in result else []),
        *([line("cached")] if result["cached"] else []),
        f"  memory   {after:8.0f} MiB, of which {before:.0f} before the source was opened",
    ]
    return "\n".join(lines)
