"""Histograms of a metric over images, a row for each method, with common bins and axes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sr3_jax.metrics import registry

# In units of the drawing, which are pixels on a phone.
WIDTH = 350
_LEFT, _RIGHT = 32, 12
_LABEL_HEIGHT, _BAR_HEIGHT, _GAP = 20, 40, 8
_AXIS_HEIGHT = 40
_MOST_BINS, _FEWEST_BINS = 30, 6
# Metrics such as consistency differ by orders of magnitude between methods.
_RATIO_OF_LOG_SCALE = 50.0


class Row(NamedTuple):
    """The places of a method's row in the drawing."""

    method: str
    label_y: float
    base_y: float
    top_y: float
    bars: list[tuple[float, float, float, float, str]]  # x, y, width, height, tooltip
    mean_x: float | None
    num_hidden: int  # numbers that are not finite


class Panel(NamedTuple):
    """The drawing of a metric. `ticks` are (x, text); a bar of full height is `most` images."""

    height: float
    axis_y: float
    rows: list[Row]
    ticks: list[tuple[float, str]]
    most: int
    logarithmic: bool
    left: float
    right: float


def panel(values: Mapping[str, Sequence[float]]) -> Panel | None:
    """Returns the histograms of a metric's values by method; None if no number is finite.

    All methods have the same bins and the same height for a count. The axis is logarithmic if all
    numbers are above 0 and the largest is more than 50 times the smallest.
    """
    numbers = {method: np.asarray(v, np.float64) for method, v in values.items()}
    finite = {method: v[np.isfinite(v)] for method, v in numbers.items()}
    pooled = np.concatenate(list(finite.values()))
    if not len(pooled):
        return None
    low, high = float(pooled.min()), float(pooled.max())
    logarithmic = low > 0 and high > _RATIO_OF_LOG_SCALE * low
    edges = _edges(low, high, max(len(v) for v in finite.values()), logarithmic)
    # Clipped, since edges are rounded: none of the numbers may be lost.
    ends = edges[0], edges[-1]
    counts = {method: np.histogram(v.clip(*ends), edges)[0] for method, v in finite.items()}
    most = max(int(count.max()) for count in counts.values())
    right = WIDTH - _RIGHT

    def place(value: float) -> float:
        low, high, value = map(math.log if logarithmic else float, (*ends, value))
        share = (value - low) / (high - low)
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
    ticks = [(place(t), registry.write(t, "g")) for t in _ticks(*ends, logarithmic)]
    return Panel(axis + _AXIS_HEIGHT, axis, rows, ticks, most, logarithmic, _LEFT, right)


def _edges(low: float, high: float, count: int, logarithmic: bool) -> Float[np.ndarray, " bins"]:
    bins = int(np.clip(round(2 * math.sqrt(count)), _FEWEST_BINS, _MOST_BINS))
    if logarithmic:
        return np.geomspace(low, high, bins + 1)
    # Numbers that are almost equal still need an axis of some width.
    width = max(high - low, 0.01 * max(abs(low), abs(high)), 1e-9)
    middle = (low + high) / 2
    return np.linspace(middle - width / 2, middle + width / 2, bins + 1)


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
