"""Scores of methods on held-out images: the rows of the table."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Int, UInt8

from sr3_jax import images as image_ops
from sr3_jax import metrics
from sr3_jax.data import storage
from sr3_jax.training.step import Batch

# low resolution [n, h, w, 3] and each image's number in the set to (high resolution, seconds)
Method = Callable[
    [UInt8[np.ndarray, "n h w 3"], Int[np.ndarray, " n"]],
    tuple[UInt8[np.ndarray, "n h2 w2 3"], float],
]

METRICS = ("psnr", "ssim", "consistency")
# Of the table: heading, and how numbers are written.
_COLUMNS = {
    "psnr": ("PSNR (dB)", ".2f"),
    "ssim": ("SSIM", ".3f"),
    "consistency": ("consistency", ".2f"),
    "n": ("n", "d"),
    "seconds_per_image": ("seconds per image", ".3g"),
}


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

    def run(low: np.ndarray, _: np.ndarray) -> tuple[np.ndarray, float]:
        size = tuple(factor * n for n in low.shape[1:3])
        jax.block_until_ready(_upsample(low, size))  # compiles; not counted
        begin = time.perf_counter()
        high = np.asarray(_upsample(low, size))
        return high, time.perf_counter() - begin

    return run


def upsample(
    low: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Bicubic upsampling of one image to (height, width), rounded to 8 bits."""
    return np.asarray(_upsample(low[None], size))[0]


@functools.partial(jax.jit, static_argnums=1)
def _upsample(low: jax.Array, size: tuple[int, int]) -> jax.Array:
    return image_ops.to_uint8(image_ops.upsample_source(low, size))


def evaluate(
    methods: Mapping[str, Method],
    batches: Iterable[Batch],
    *,
    num_pictures: int = 8,
    luminance: bool = False,
    border: int = 0,
    share: Callable[[Any], Any] = lambda rows: rows,
) -> Evaluation:
    """Scores every method on every image of weight 1.

    Args:
      methods: by the name of their row.
      batches: of held-out images, each once; of this process, if there are several.
      num_pictures: how many of the first images to return.
      luminance: PSNR and SSIM of Y instead of RGB.
      border: pixels at each side that PSNR and SSIM leave out.
      share: puts the rows of all processes together (`parallel.of_all_processes`).

    Raises:
      ValueError: where no image is left to score.
    """
    names = ("input", *methods, "reference")
    columns = [(name, metric) for name in methods for metric in METRICS]
    # Rows hold no image where the index is -1: processes need not have found equally many.
    indices: list[np.ndarray] = []
    values: list[np.ndarray] = []
    seconds = dict.fromkeys(methods, 0.0)
    shown: dict[str, np.ndarray] = {}
    shown_index = np.full(num_pictures, -1)
    for batch in batches:
        low, high = batch["low_resolution"], batch["high_resolution"]
        rows = np.flatnonzero(batch["weight"] > 0)
        index = batch["index"][rows]
        made = {"input": low[rows], "reference": high[rows]}
        numbers = np.zeros((len(low), len(columns)))
        for name, method in methods.items() if len(rows) else ():
            made[name], spent = method(low[rows], index)
            seconds[name] += spent
            scores = score(made[name], high[rows], low[rows], luminance, border)
            for metric in METRICS:
                numbers[rows, columns.index((name, metric))] = scores[metric]
        indices.append(np.where(batch["weight"] > 0, batch["index"], -1))
        values.append(numbers)
        if not shown:
            shown = {n: np.zeros((num_pictures, *high.shape[1:]), np.uint8) for n in names}
            shown["input"] = np.zeros((num_pictures, *low.shape[1:]), np.uint8)
        free = np.flatnonzero(shown_index < 0)[: len(rows)]
        shown_index[free] = index[: len(free)]
        for name in names if len(free) else ():
            shown[name][free] = made[name][: len(free)]
    spent = np.asarray([list(seconds.values())])
    index, scored, spent, shown_index, shown = share(
        (np.concatenate(indices), np.concatenate(values), spent, shown_index, shown)
    )
    done = int((index >= 0).sum())
    if not done:
        raise ValueError("no held-out image could be used, so there is nothing to score")
    # In the order of the set, so that not even rounding depends on the number of processes.
    means = scored[index >= 0][np.argsort(index[index >= 0])].mean(axis=0)
    spent = spent.sum(axis=0)
    scores = {
        name: {metric: float(means[columns.index((name, metric))]) for metric in METRICS}
        | {"n": done, "seconds_per_image": float(spent[i]) / done}
        for i, name in enumerate(methods)
    }
    order = np.argsort(np.where(shown_index < 0, np.iinfo(np.int64).max, shown_index))
    order = order[: min(num_pictures, int((shown_index >= 0).sum()))]
    return Evaluation(scores, {name: shown[name][order] for name in names})


def score(
    images: UInt8[np.ndarray, "n h w 3"],
    reference: UInt8[np.ndarray, "n h w 3"],
    low_resolution: UInt8[np.ndarray, "n h2 w2 3"] | None,
    luminance: bool = False,
    border: int = 0,
) -> dict[str, list[float]]:
    """Every metric of each image; see `evaluate`. Without low resolutions, no consistency."""
    numbers = _score(images, reference, low_resolution, luminance, border)
    return {name: np.asarray(row, np.float64).tolist() for name, row in numbers.items()}


@functools.partial(jax.jit, static_argnums=(3, 4))
def _score(
    images: jax.Array, reference: jax.Array, low: jax.Array | None, luminance: bool, border: int
) -> dict[str, jax.Array]:
    seen = {"luminance": luminance, "border": border}
    found = {
        "psnr": metrics.psnr(images, reference, **seen),
        "ssim": metrics.ssim(images, reference, **seen),
    }
    return found if low is None else found | {"consistency": metrics.consistency(images, low)}


def table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """The scores as a Markdown table; of columns, those that there are."""
    columns = [c for c in _COLUMNS if any(c in row for row in scores.values())]
    lines = [
        "| method | " + " | ".join(_COLUMNS[c][0] for c in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for name, row in scores.items():
        cells = (format(row[c], _COLUMNS[c][1]) if c in row else "" for c in columns)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_scores(scores: Mapping[str, Mapping[str, float]], path: epath.PathLike) -> None:
    """Writes the scores as JSON, whole or not at all."""
    storage.write_whole(path, (json.dumps(scores, indent=2) + "\n").encode())
