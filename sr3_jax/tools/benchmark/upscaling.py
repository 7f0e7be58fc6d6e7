"""The speed of upscaling from file to file: `tools.benchmark --what=upscale`."""

from __future__ import annotations

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from sr3_jax import parallel
from sr3_jax.data import photos, sources
from sr3_jax.inference import manifest, programs, tiling, upscale_files
from sr3_jax.inference.super_resolver import SuperResolver

_REFERENCE_CALLS = 2000  # of the paper's sampler


def measure(
    workdir: epath.PathLike,
    size: tuple[int, int],
    num_images: int,
    steps: int | None,
    repeats: int,
) -> dict[str, Any]:
    """Times a trained network on crops of scikit-image's photographs, saved as PNG.

    Args:
      workdir: workdir of a training run.
      size: height and width of the inputs.
      num_images: number of inputs.
      steps: refinement steps; None for the workdir's.
      repeats: number of timed runs; results are medians.

    Returns:
      Settings, and: `load_seconds` until the weights are on the devices; `first_seconds` until
      the first picture is written, compilation included; from file to file
      `images_per_second` and `network_share`, the share of the network's own calls in that time;
      `reference_seconds` of `reference_calls` calls, by the network's time alone; `seams` of the
      outputs (`find_seams`), None if they are of one tile.
    """
    with tempfile.TemporaryDirectory() as root:
        folder = epath.Path(root) / "in"
        folder.mkdir()
        refs = [_write(folder, i, size) for i in range(num_images)]
        begin = time.perf_counter()
        resolver = SuperResolver.from_workdir(workdir)
        loaded = time.perf_counter() - begin
        options = upscale_files.UpscaleOptions(steps=steps)
        upscale = functools.partial(upscale_files.upscale_files, resolver, options=options)
        _check(list(upscale(refs[:1], epath.Path(root) / "first")))
        first = time.perf_counter() - begin
        _check(list(upscale(refs, epath.Path(root) / "warm")))
        seconds, alone = [], []
        network = _network(resolver, num_images, size)
        calls = resolver.nfe(steps)
        # In turns, so that what else the machine does hits both.
        for i in range(repeats):
            begin = time.perf_counter()
            _check(list(upscale(refs, epath.Path(root) / str(i))))
            seconds.append(time.perf_counter() - begin)
            alone.append(network())
        grid = resolver.refiner.grid(size)
        made = [np.asarray(Image.open(epath.Path(root) / "warm" / ref.name)) for ref in refs]
        seams = find_seams(np.stack(made), grid) if grid.is_cut else None
    each = statistics.median(seconds) / num_images
    a_call = statistics.median(alone) / num_images
    return {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "size": size,
        "factor": resolver.factor,
        "calls": calls,
        "load_seconds": loaded,
        "first_seconds": first,
        "images_per_second": 1 / each,
        "network_share": statistics.median(
            a * calls / s for a, s in zip(alone, seconds, strict=True)
        ),
        "reference_calls": _REFERENCE_CALLS,
        "reference_seconds": a_call * _REFERENCE_CALLS,
        "seams": seams,
    }


def find_seams(images: UInt8[np.ndarray, "n h w c"], grid: tiling.Grid) -> dict[str, float]:
    """Compares gradients across the edges of tiles with those elsewhere, along both axes.

    Args:
      images: refined in tiles.
      grid: the tiles.

    Returns:
      Means and maxima of the gradient from a column (or row) to the next over that of the eight
      around it: `at_edges`, `largest_at_edges`, `elsewhere`, `largest_elsewhere`.
    """
    edges, others = [], []
    for axis in (1, 2):
        steps = np.abs(np.diff(images.astype(np.float32), axis=axis))
        gradient = steps.mean(axis=tuple(i for i in range(4) if i != axis))
        around = np.array([1, 1, 1, 1, 0, 1, 1, 1, 1]) / 8
        ratio = gradient[4:-4] / np.maximum(np.convolve(gradient, around, "valid"), 1e-6)
        starts = {corner[axis - 1] for corner in grid.starts}
        bounds = starts | {start + grid.tile[axis - 1] for start in starts}
        # The gradient of index i is from pixel i to the next.
        is_edge = np.isin(np.arange(4, len(gradient) - 4), [bound - 1 for bound in bounds])
        edges.append(ratio[is_edge])
        others.append(ratio[~is_edge])
    found = {}
    for name, ratios in (("at_edges", edges), ("elsewhere", others)):
        ratio = np.concatenate(ratios)
        found |= {name: float(ratio.mean()), f"largest_{name}": float(ratio.max())}
    return found


def report(result: dict[str, Any]) -> str:
    """Returns the result as text."""
    (height, width), each = result["size"], 1 / result["images_per_second"]
    lines = [
        f"device: {result['device']}",
        f"pictures of {width}x{height}, {result['factor']} times as large, {result['calls']} calls",
        f"  first picture after {result['first_seconds']:.2f} s ({result['load_seconds']:.2f} s of "
        "them loading the network)",
        f"  {1 / each:.4g} images/s from file to file: {each:.3g} s each",
        f"  {result['network_share']:.1%} of that is the network itself",
        f"  {result['reference_calls']} calls would take {result['reference_seconds']:.4g} s: "
        f"{result['reference_seconds'] / each:.0f} times as long",
    ]
    if found := result["seams"]:
        lines.append(
            "  gradient across the edges of tiles, over that around them: mean "
            f"{found['at_edges']:.3f}, at most {found['largest_at_edges']:.2f}; elsewhere "
            f"{found['elsewhere']:.3f}, at most {found['largest_elsewhere']:.2f}"
        )
    return "\n".join(lines)


def _write(folder: epath.Path, number: int, size: tuple[int, int]) -> sources.FileRef:
    found = photos.photos("train")
    photo = found[number % len(found)].read().image
    if any(a < b for a, b in zip(photo.shape, size, strict=False)):
        repeats = [-(-b // a) for a, b in zip(photo.shape, size, strict=False)]
        photo = np.tile(photo, (*repeats, 1))
    name = f"{number:04d}.png"
    Image.fromarray(photo[: size[0], : size[1]]).save(folder / name)
    return sources.FileRef(name, str(folder / name))


def _check(records: list[manifest.Record]) -> None:
    for record in records:
        if record.error:
            raise RuntimeError(f"{record.input}: {record.error}")


def _network(
    resolver: SuperResolver, num_images: int, size: tuple[int, int]
) -> Callable[[], float]:
    """Returns a function that runs the network once for all images and returns the seconds."""
    batches, calls = resolver.refiner.network_batches(num_images, size), {}
    for devices, shape in set(batches):
        # As upscaling compiles the denoiser for (rows, height, width).
        where = programs.denoiser_shardings(parallel.make_mesh(jax.local_devices()[:devices]))
        x, y_t = (jax.random.normal(jax.random.key(i), (*shape, 3)) for i in range(2))
        arguments = (resolver.params, x, y_t, jnp.float32(0.5), jnp.zeros(shape[0], jnp.int32))
        arguments = jax.device_put(arguments, where["in_shardings"])
        program = jax.jit(resolver.refiner.denoiser.__call__, **where).lower(*arguments)
        compiled = parallel.compile_for(jax.devices()[0], program)
        calls[devices, shape] = functools.partial(compiled, *arguments)
        jax.block_until_ready(calls[devices, shape]())

    def run() -> float:
        begin = time.perf_counter()
        for batch in batches:
            jax.block_until_ready(calls[batch]())
        return time.perf_counter() - begin

    return run
