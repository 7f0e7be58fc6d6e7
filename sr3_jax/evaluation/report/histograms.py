"""Histograms of a metric over images, a row for each method, with common bins and axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sr3_jax.metrics import registry

_MOST_BINS, _FEWEST_BINS = 30, 6
# Metrics such as consistency differ by orders of magnitude between methods.
_RATIO_OF_LOG_SCALE = 50.0


class Row(NamedTuple):
    """The histogram of a method.

    Attributes:
      method: its name.
      bars: count and tooltip of each bin; all bins are equally wide on the axis.
      mean: place of the mean, as a share of the axis; None without finite numbers.
      num_hidden: numbers that are not finite.
    """

    method: str
    bars: list[tuple[int, str]]
    mean: float | None
    num_hidden: int


class Panel(NamedTuple):
    """The histograms of a metric; `ticks` are (share of the axis, text), `most` is a count."""

    rows: list[Row]
    ticks: list[tuple[float, str]]
    most: int
    logarithmic: bool


def panel(values: Mapping[str, Sequence[float]]) -> Panel | None:
    """Returns the histograms of a metric's values by method; None if no number is finite.

    The axis is logarithmic if all numbers are above 0 and the largest is more than 50 times the
    smallest.
    """
    numbers = {method: np.asarray(v, np.float64) for method, v in values.items()}
    finite = {method: v[np.isfinite(v)] for method, v in numbers.items()}
    pooled = np.concatenate(list(finite.values()))
    if not len(pooled):
        return None
    low, high = float(pooled.min()), float(pooled.max())
    logarithmic = low > 0 and high > _RATIO_OF_LOG_SCALE * low
    if not logarithmic:
        # Numbers that are almost equal still need an axis of some width.
        middle, width = (low + high) / 2, max(high - low, 0.01 * max(abs(low), abs(high)), 1e-9)
        low, high = middle - width / 2, middle + width / 2
    most_images = max(len(v) for v in finite.values())
    bins = int(np.clip(round(2 * math.sqrt(most_images)), _FEWEST_BINS, _MOST_BINS))
    edges = (np.geomspace if logarithmic else np.linspace)(low, high, bins + 1)

    def share(value: float) -> float:
        begin, end, at = map(math.log if logarithmic else float, (low, high, value))
        return (at - begin) / (end - begin)

    rows, most = [], 0
    for method, found in finite.items():
        # Clipped, since edges are rounded: none of the numbers may be lost.
        counts = np.histogram(found.clip(edges[0], edges[-1]), edges)[0].tolist()
        most = max(most, *counts)
        total = len(numbers[method])
        bars = [
            (count, f"{count} of {total} from {begin:.4g} to {end:.4g}")
            for count, begin, end in zip(counts, edges, edges[1:], strict=False)
        ]
        mean = share(float(found.mean())) if len(found) else None
        rows.append(Row(method, bars, mean, total - len(found)))
    ticks = [(share(t), registry.write(t, "g")) for t in _ticks(low, high, logarithmic)]
    return Panel(rows, ticks, most, logarithmic)


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Returns about three to six round numbers between two ends."""
    if logarithmic:
        decades = math.log10(high / low)
        factors = (1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        tens = [10.0**p for p in powers[:: math.ceil(decades / 6)]]
        return [t * f for t in tens for f in factors if low <= t * f <= high]
    raw = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= raw)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]
