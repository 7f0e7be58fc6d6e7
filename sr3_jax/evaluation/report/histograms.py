"""Histograms of a metric over images: one row for each method, on common bins and axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sr3_jax.metrics import registry

# In the drawing's own units, which are pixels at the width that the page gives it on a phone.
WIDTH = 350
_LEFT, _RIGHT = 32, 12
_LABEL_HEIGHT, _BAR_HEIGHT, _GAP = 20, 40, 8
_AXIS_HEIGHT = 40
_MOST_BINS, _FEWEST_BINS = 30, 6
# Metrics such as consistency differ by orders of magnitude between methods.
_RATIO_OF_LOG_SCALE = 50.0


class Row(NamedTuple):
    """One method: places in the drawing."""

    method: str
    label_y: float
    base_y: float
    top_y: float
    bars: list[tuple[float, float, float, float, str]]  # x, y, width, height, what it says
    mean_x: float | None
    num_hidden: int  # not finite, and so nowhere on the axis


class Panel(NamedTuple):
    """One metric. `ticks` are (x, text); `most` is the number that the height stands for."""

    height: float
    axis_y: float
    rows: list[Row]
    ticks: list[tuple[float, str]]
    most: int
    logarithmic: bool
    left: float
    right: float


def panel(values: Mapping[str, Sequence[float]]) -> Panel | None:
    """The histograms of one metric, by method; None where no number is finite.

    All methods have the same bins and the same height for a count, so that they can be compared
    by eye. Where the largest number is 50 times the smallest and all are above 0, the axis is
    logarithmic.
    """
    numbers = {method: np.asarray(v, np.float64) for method, v in values.items()}
    finite = {method: v[np.isfinite(v)] for method, v in numbers.items()}
    pooled = np.concatenate(list(finite.values()))
    if not len(pooled):
        return None
    low, high = float(pooled.min()), float(pooled.max())
    logarithmic = low > 0 and high > _RATIO_OF_LOG_SCALE * low
    edges = _edges(low, high, max(len(v) for v in finite.values()), logarithmic)
    counts = {method: _counts(v, edges) for method, v in finite.items()}
    most = max(int(count.max()) for count in counts.values())
    right = WIDTH - _RIGHT

    def place(value: float) -> float:
        ends = edges[[0, -1]]
        if logarithmic:
            value, ends = math.log(value), np.log(ends)
        share = (value - ends[0]) / (ends[1] - ends[0])
        return round(float(_LEFT + share * (right - _LEFT)), 2)

    rows = []
    for i, (method, count) in enumerate(counts.items()):
        top = i * (_LABEL_HEIGHT + _BAR_HEIGHT + _GAP) + _LABEL_HEIGHT
        base = top + _BAR_HEIGHT
        bars = []
        for number, begin, end in zip(count, edges, edges[1:], strict=False):
            height = round(float(number) / most * _BAR_HEIGHT, 2)
            x, width = place(begin), round(place(end) - place(begin), 2)
            if number:
                said = f"{number} of {len(numbers[method])} from {begin:.4g} to {end:.4g}"
                bars.append((x, base - height, width, height, said))
        mean = place(float(finite[method].mean())) if len(finite[method]) else None
        hidden = len(numbers[method]) - len(finite[method])
        rows.append(Row(method, top - 6, base, top, bars, mean, hidden))
    axis = rows[-1].base_y + 4
    ticks = [(place(t), registry.write(t, "g")) for t in _ticks(edges[0], edges[-1], logarithmic)]
    return Panel(axis + _AXIS_HEIGHT, axis, rows, ticks, most, logarithmic, _LEFT, right)


def _edges(low: float, high: float, count: int, logarithmic: bool) -> Float[np.ndarray, " bins"]:
    bins = int(np.clip(round(2 * math.sqrt(count)), _FEWEST_BINS, _MOST_BINS))
    if logarithmic:
        return np.geomspace(low, high, bins + 1)
    # Equal numbers, or as good as equal, still need an axis of some width.
    width = max(high - low, 0.01 * max(abs(low), abs(high)), 1e-9)
    middle = (low + high) / 2
    return np.linspace(middle - width / 2, middle + width / 2, bins + 1)


def _counts(values: Float[np.ndarray, " n"], edges: Float[np.ndarray, " bins"]) -> np.ndarray:
    # By search, not numpy.histogram: rounding of the outer edges must not lose an image.
    found = np.searchsorted(edges[1:-1], values, side="right")
    return np.bincount(found, minlength=len(edges) - 1)


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
    """Some three to six round numbers between two ends."""
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
