"""Scores of methods on held-out images: the rows of the table."""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath
from jax.typing import DTypeLike
from jaxtyping import Float64, Int, Num, UInt

from sr3_jax import image_ops, sizes
from sr3_jax.data import storage
from sr3_jax.evaluation.report import markdown
from sr3_jax.metrics import fields, registry
from sr3_jax.models import Batch


class Inputs(NamedTuple):
    """What methods are given: n rows.

    Attributes:
      low: low resolutions.
      index: number of each in the set.
      label: class of each.
      maps: maps of each, in their own units; None without.
    """

    low: Num[np.ndarray, "n h w d"]
    index: Int[np.ndarray, " n"]
    label: Int[np.ndarray, " n"]
    maps: Num[np.ndarray, "n h2 w2 m"] | None = None


# Returns `samples` high resolutions of each input, of the same type, and the seconds of all.
Run = Callable[[Inputs], tuple[Num[np.ndarray, "samples n h2 w2 c"], float]]


class Method(NamedTuple):
    """A row of the table: the function that makes its images, and the number of each."""

    run: Run
    num_samples: int = 1


class Evaluation(NamedTuple):
    """Scores of every method on every image.

    Attributes:
      means: for each method the means of `of_images`, `n` (images) and `seconds_per_image`. For
        several samples of each image, also METRIC_std, the standard deviation between samples of
        the mean over images (nan if one of these is infinite), and METRIC_best, the mean of each
        image's best sample.
      index: number of each scored image in the set, ascending.
      labels: their classes; `data.sources.NO_LABEL` for none.
      of_images: for each method and metric of `registry.of("image")` one number for each image, the
        mean of its samples; for several samples also those of `registry.of("samples")`.
    """

    means: dict[str, dict[str, float]]
    index: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    of_images: dict[str, dict[str, list[float]]]


def bicubic(factor: int | float) -> Method:
    """Returns the baseline: bicubic upsampling, rounded to the input's type."""

    def run(inputs: Inputs) -> tuple[np.ndarray, float]:
        low = inputs.low
        size = sizes.scaled(low.shape[1:3], factor)
        jax.block_until_ready(_resize(low, size, low.dtype))  # compiles; not counted
        begin = time.perf_counter()
        high = np.asarray(_resize(low, size, low.dtype))
        return high[None], time.perf_counter() - begin

    return Method(run)


def interpolation(factor: int | float, channels: int) -> Method:
    """Returns the same baseline for numbers of any range; see `fields.interpolated`."""

    def run(inputs: Inputs) -> tuple[np.ndarray, float]:
        begin = time.perf_counter()
        high = fields.interpolated(inputs.low, factor, channels)
        return high[None], time.perf_counter() - begin

    return Method(run)


def inputs_of(batch: Mapping[str, Any]) -> Inputs:
    """Returns the inputs of the rows of a batch that hold an image."""
    rows = batch["weight"] > 0
    inputs = Inputs(*(batch[key][rows] for key in ("low_resolution", "index", "label")))
    return inputs._replace(maps=batch["maps"][rows]) if "maps" in batch else inputs


class Pictures(NamedTuple):
    """How pictures are scored.

    Attributes:
      luminance: PSNR and SSIM of Y instead of RGB.
      border: pixels at each side that PSNR and SSIM leave out.
    """

    luminance: bool = False
    border: int = 0

    least_samples = 2  # for the numbers of samples
    compares_samples = True  # how they differ in each metric, and the best of each image

    @property
    def of_output(self) -> list[str]:
        """Names of the numbers of each output."""
        return [metric.name for metric in registry.of("image")]

    @property
    def of_samples(self) -> list[str]:
        """Names of the numbers of all samples of an image."""
        return [metric.name for metric in registry.of("samples")]

    def score(self, images: np.ndarray, given: Mapping[str, Any]) -> Sequence[Sequence[float]]:
        """Returns the numbers `of_output` for each image; see `registry.Metric.needs`."""
        return [*score(images, given["reference"], given["low_resolution"], *self).values()]

    def score_samples(self, samples: np.ndarray, given: Mapping[str, Any]) -> list[np.ndarray]:
        """Returns the numbers `of_samples`."""
        return [metric.compute(samples, given) for metric in registry.of("samples")]


class Fields(NamedTuple):
    """How numbers of any range are scored, by channel; methods as those of `Pictures`.

    Attributes:
      labels: label of each channel, such as `t2m (K)`.
      deviation: standard deviation of each in the training data.
    """

    labels: tuple[str, ...]
    deviation: tuple[float, ...]

    # A single answer has a CRPS, its absolute error. Spread and skill compare members.
    least_samples = 1
    compares_samples = False

    @property
    def of_output(self) -> list[str]:
        return self._names("field")

    @property
    def of_samples(self) -> list[str]:
        return self._names("ensemble")

    def score(self, images: np.ndarray, given: Mapping[str, Any]) -> list[np.ndarray]:
        return self._score("field", images, given)

    def score_samples(self, samples: np.ndarray, given: Mapping[str, Any]) -> list[np.ndarray]:
        return self._score("ensemble", samples, given)

    def _names(self, kind: registry.Kind) -> list[str]:
        names = []
        for metric in registry.of(kind):
            of_channels = (registry.of_channel(metric.name, label) for label in self.labels)
            names += [metric.name, *of_channels]
        return names

    def _score(
        self, kind: registry.Kind, scored: np.ndarray, given: Mapping[str, Any]
    ) -> list[np.ndarray]:
        columns = []
        for metric in registry.of(kind):
            of_channels = np.asarray(metric.compute(scored, given))
            shares = of_channels / np.array(self.deviation) if metric.in_units else of_channels
            columns += [np.nanmean(shares, axis=1), *of_channels.T]
        return columns


def resize(
    images: UInt[np.ndarray, "*n h w 3"], size: tuple[int, int], dtype: DTypeLike | None = None
) -> UInt[np.ndarray, "*n h2 w2 3"]:
    """Resizes by bicubic to (height, width), with anti-aliasing where it shrinks.

    Results are rounded to `dtype`, uint8 or uint16; None for that of the images.
    """
    flat = images.reshape(-1, *images.shape[-3:])
    made = _resize(flat, size, np.dtype(images.dtype if dtype is None else dtype))
    return np.asarray(made).reshape(*images.shape[:-3], *size, 3)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _resize(images: jax.Array, size: tuple[int, int], dtype: np.dtype) -> jax.Array:
    return image_ops.to_levels(image_ops.upsample_source(images, size), dtype)


def evaluate(
    methods: Mapping[str, Method],
    batches: Iterable[Batch],
    *,
    scoring: Pictures | Fields = Pictures(),  # noqa: B008  (immutable)
    share: Callable[[Any], Any] = lambda rows: rows,
) -> Evaluation:
    """Scores every method on every image of weight 1.

    Args:
      methods: methods by the name of their row.
      batches: batches of held-out images, each once; those of this process.
      scoring: how outputs are scored.
      share: concatenates the rows of all processes (`parallel.of_all_processes`).

    Raises:
      ValueError: no image is left to score.
    """
    # Rows without an image have the index -1: processes need not find equally many images.
    found, spent = [], np.zeros((1, len(methods)))
    for batch in batches:
        is_scored = batch["weight"] > 0
        inputs = inputs_of(batch)
        given = {
            "reference": batch["high_resolution"][is_scored],
            "low_resolution": inputs.low,
        }
        numbers = {}
        for i, (name, method) in enumerate(methods.items()):
            width = len(scoring.of_output) * method.num_samples
            if method.num_samples >= scoring.least_samples:
                width += len(scoring.of_samples)
            numbers[name] = np.zeros((len(is_scored), width))
            if not is_scored.any():
                continue
            samples, seconds = method.run(inputs)
            numbers[name][is_scored] = _numbers(samples, given, scoring)
            spent[0, i] += seconds
        index = np.where(is_scored, batch["index"], -1)
        found.append({"index": index, "label": batch["label"], "numbers": numbers})
    rows, spent = share((jax.tree.map(lambda *parts: np.concatenate(parts), *found), spent))
    # In the order of the set, so that not even rounding depends on the number of processes.
    order = np.argsort(rows["index"], kind="stable")
    order = order[rows["index"][order] >= 0]
    if not len(order):
        raise ValueError("no held-out image could be used, so there is nothing to score")
    means, of_images = {}, {}
    for i, (name, method) in enumerate(methods.items()):
        numbers = rows["numbers"][name][order]
        means[name], of_images[name] = _summary(numbers, method.num_samples, scoring)
        seconds = float(spent[:, i].sum()) / (len(order) * method.num_samples)
        means[name] |= {"n": len(order), "seconds_per_image": seconds}
    return Evaluation(means, rows["index"][order], rows["label"][order], of_images)


def _numbers(
    samples: np.ndarray, given: Mapping[str, Any], scoring: Pictures | Fields
) -> Float64[np.ndarray, "n numbers"]:
    """Returns for each image the metrics of each sample, and those of all samples together."""
    columns = [column for images in samples for column in scoring.score(images, given)]
    if len(samples) >= scoring.least_samples:
        columns += scoring.score_samples(samples, given)
    return np.array(columns).T


def _summary(
    numbers: Float64[np.ndarray, "n numbers"], num_samples: int, scoring: Pictures | Fields
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Returns the means over images, and the numbers of each image, both by metric."""
    metrics = [registry.find(name) for name in scoring.of_output]
    count = len(metrics) * num_samples
    by_metric = numbers[:, :count].reshape(len(numbers), num_samples, len(metrics))
    means, of_images = {}, {}
    for i, metric in enumerate(metrics):
        values, name = by_metric[..., i], metric.name
        of_images[name] = values.mean(axis=1).tolist()
        means[name] = float(values.mean())
        if num_samples == 1 or not scoring.compares_samples:
            continue
        with np.errstate(invalid="ignore"):  # nan where an image's PSNR is infinite
            means[f"{name}_std"] = float(values.mean(axis=0).std(ddof=1))
        if metric.is_higher_better is not None:
            best = np.max if metric.is_higher_better else np.min
            of_images[f"{name}_best"] = best(values, axis=1).tolist()
            means[f"{name}_best"] = float(np.mean(of_images[f"{name}_best"]))
    for name, values in zip(scoring.of_samples, numbers[:, count:].T, strict=False):
        of_images[name] = values.tolist()
        means[name] = float(values.mean())
    return means, of_images


def score(
    images: UInt[np.ndarray, "n h w 3"],
    reference: UInt[np.ndarray, "n h w 3"],
    low_resolution: UInt[np.ndarray, "n h2 w2 3"] | None,
    luminance: bool = False,
    border: int = 0,
) -> dict[str, list[float]]:
    """Returns every metric of each image; see `evaluate`.

    Without low resolutions, metrics that need them are left out.
    """
    metrics = tuple(
        metric
        for metric in registry.of("image")
        if low_resolution is not None or "low_resolution" not in metric.needs
    )
    numbers = _score(images, reference, low_resolution, metrics, luminance, border)
    return {m.name: np.asarray(numbers[m.name], np.float64).tolist() for m in metrics}


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _score(
    images: jax.Array,
    reference: jax.Array,
    low: jax.Array | None,
    metrics: tuple[registry.Metric, ...],
    luminance: bool,
    border: int,
) -> dict[str, jax.Array]:
    given = {
        "reference": reference,
        "low_resolution": low,
        "luminance": luminance,
        "border": border,
    }
    return {metric.name: metric.compute(images, given) for metric in metrics}


def table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Returns the scores as a Markdown table; columns that no method has are left out.

    Means of several samples stand with their standard deviation, and below each method those of
    each image's best sample.
    """
    known = {name for name in registry.METRICS if any(name in row for row in scores.values())}
    columns = registry.in_order(known)
    rows = []
    for name, row in scores.items():
        rows.append([name, *(_cell(row, c) for c in columns)])
        if best := {c: row[f"{c}_best"] for c in columns if f"{c}_best" in row}:
            rows.append([f"{name}, best sample", *(_cell(best, c) for c in columns)])
    return markdown.table(["method", *(registry.find(c).heading for c in columns)], rows)


def _cell(row: Mapping[str, float], column: str) -> str:
    if column not in row:
        return ""
    metric = registry.find(column)
    std = row.get(f"{column}_std")
    has_std = std is not None and math.isfinite(std)
    return metric.write(float(row[column])) + (f" ± {std:{metric.digits}}" if has_std else "")


def write_json(value: Any, path: epath.PathLike) -> None:
    """Writes JSON, whole or not at all; numbers that JSON lacks become "Infinity" and "NaN"."""
    text = json.dumps(_finite(value), indent=2, allow_nan=False)
    storage.write_whole(path, (text + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    return value
