"""Confidence intervals of means over images, and of differences on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean over images with the ends of its 95 % interval, both of the finite numbers alone.

    The mean is nan without any finite number, the ends with fewer than two.
    """

    mean: float
    low: float
    high: float
    num_finite: int
    num_infinite: int
    num_nan: int


class Difference(NamedTuple):
    """The interval of a mean difference, and on how many images the first method is higher, lower.

    Infinite numbers count as higher or lower, too.
    """

    interval: Interval
    num_higher: int
    num_lower: int


def of_mean(values: Sequence[float]) -> Interval:
    """Returns the interval of a mean by Student's t; images are draws from all possible ones.

    Its coverage is exact for normal numbers, however few, and smaller for few skewed ones; that of
    a bootstrap of few images is smaller still (docs/evaluation.md). Numbers that are not finite are
    left out and counted.
    """
    from scipy import stats  # late: the import takes a second

    numbers = np.asarray(values, np.float64)
    finite = numbers[np.isfinite(numbers)]
    counts = len(finite), int(np.isinf(numbers).sum()), int(np.isnan(numbers).sum())
    mean = float(finite.mean()) if len(finite) else np.nan
    if len(finite) < 2:
        return Interval(mean, np.nan, np.nan, *counts)
    standard_error = finite.std(ddof=1) / np.sqrt(len(finite))
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(finite) - 1) * standard_error)
    return Interval(mean, mean - half, mean + half, *counts)


def of_difference(values: Sequence[float], others: Sequence[float]) -> Difference:
    """Returns the difference of `values` minus `others`, which are of the same images in order.

    Images vary more than methods, so the methods' own intervals can overlap where the difference is
    plain.

    Raises:
      ValueError: the numbers of images differ.
    """
    a, b = np.asarray(values, np.float64), np.asarray(others, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} numbers of one method and {len(b)} of the other")
    with np.errstate(invalid="ignore"):  # infinity minus infinity: left out, and counted
        interval = of_mean((a - b).tolist())
    return Difference(interval, int((a > b).sum()), int((a < b).sum()))
