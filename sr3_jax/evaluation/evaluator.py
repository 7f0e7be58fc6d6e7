"""Scores of methods on held-out images: the rows of the table."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from etils import epath
from jaxtyping import UInt8

from sr3_jax import images as image_ops
from sr3_jax import metrics
from sr3_jax.data import atomic
from sr3_jax.training.step import Batch

# low resolution [n, h, w, 3] and first row's number to (high resolution, seconds)
Method = Callable[[UInt8[np.ndarray, "n h w 3"], int], tuple[UInt8[np.ndarray, "n h2 w2 3"], float]]

METRICS = ("psnr", "ssim", "consistency")


@dataclasses.dataclass
class Evaluation:
    """Scores and the first images they came from.

    Attributes:
      scores: for each method `psnr` (dB), `ssim`, `consistency` (times 1e5), `n`,
        `seconds_per_image`.
      pictures: 8-bit images: `input`, each method's, `reference`.
    """

    scores: dict[str, dict[str, float]]
    pictures: dict[str, UInt8[np.ndarray, "n h w 3"]]


def bicubic(factor: int) -> Method:
    """The baseline: bicubic upsampling, rounded to 8 bits."""

    @jax.jit
    def upsample(low: jax.Array) -> jax.Array:
        size = tuple(factor * n for n in low.shape[1:3])
        return image_ops.to_uint8(image_ops.upsample_source(low, size))

    def run(low: np.ndarray, _: int) -> tuple[np.ndarray, float]:
        jax.block_until_ready(upsample(low))  # compiles; not counted
        begin = time.perf_counter()
        high = np.asarray(upsample(low))
        return high, time.perf_counter() - begin

    return run


def evaluate(
    methods: Mapping[str, Method],
    batches: Iterable[Batch],
    *,
    num_pictures: int = 8,
    progress: Callable[[int], None] = lambda count: None,
) -> Evaluation:
    """Scores every method on every image of weight 1.

    Args:
      methods: by the name of their row.
      batches: of held-out images, each once.
      num_pictures: how many of the first images to return.
      progress: called with the number of images done since the last call.

    Raises:
      ValueError: where no image is left to score.
    """
    values: dict[str, dict[str, list[float]]] = {
        name: {metric: [] for metric in METRICS} for name in methods
    }
    seconds = dict.fromkeys(methods, 0.0)
    pictures: dict[str, list[np.ndarray]] = {n: [] for n in ("input", *methods, "reference")}
    done = 0
    for batch in batches:
        kept = batch["weight"] > 0
        low, high = batch["low_resolution"][kept], batch["high_resolution"][kept]
        if not len(low):
            continue
        room = max(0, num_pictures - done)
        pictures["input"].extend(low[:room])
        pictures["reference"].extend(high[:room])
        for name, method in methods.items():
            result, spent = method(low, done)
            seconds[name] += spent
            pictures[name].extend(result[:room])
            for metric, numbers in score(result, high, low).items():
                values[name][metric].extend(numbers)
        done += len(low)
        progress(len(low))
    if not done:
        raise ValueError("no held-out image could be used, so there is nothing to score")
    scores = {
        name: {metric: float(np.mean(values[name][metric], dtype=np.float64)) for metric in METRICS}
        | {"n": done, "seconds_per_image": seconds[name] / done}
        for name in methods
    }
    return Evaluation(scores, {name: np.stack(rows) for name, rows in pictures.items() if rows})


def score(
    images: UInt8[np.ndarray, "n h w 3"],
    reference: UInt8[np.ndarray, "n h w 3"],
    low_resolution: UInt8[np.ndarray, "n h2 w2 3"],
) -> dict[str, list[float]]:
    """Every metric of each image."""
    numbers = _score(images, reference, low_resolution)
    return {name: np.asarray(row, np.float64).tolist() for name, row in numbers.items()}


@jax.jit
def _score(images: jax.Array, reference: jax.Array, low: jax.Array) -> dict[str, jax.Array]:
    return {
        "psnr": metrics.psnr(images, reference),
        "ssim": metrics.ssim(images, reference),
        "consistency": metrics.consistency(images, low),
    }


def table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """The scores as a Markdown table."""
    lines = [
        "| method | PSNR (dB) | SSIM | consistency | n | seconds per image |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in scores.items():
        lines.append(
            f"| {name} | {row['psnr']:.2f} | {row['ssim']:.3f} | {row['consistency']:.2f} "
            f"| {row['n']} | {row['seconds_per_image']:.3g} |"
        )
    return "\n".join(lines)


def write_scores(scores: Mapping[str, Mapping[str, float]], path: epath.PathLike) -> None:
    """Writes the scores as JSON, whole or not at all."""
    atomic.write_whole(path, (json.dumps(scores, indent=2) + "\n").encode())
