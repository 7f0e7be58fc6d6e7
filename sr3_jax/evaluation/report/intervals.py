"""How sure a mean over images is: intervals, and differences on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95


class Interval(NamedTuple):
    """Of a mean over images.

    Attributes:
      mean: of the finite numbers; nan without any.
      low: end of the 95 % interval; nan with fewer than two finite numbers.
      high: the other end.
      num_finite: numbers that mean and interval are of.
      num_infinite: left out.
      num_nan: left out.
    """

    mean: float
    low: float
    high: float
    num_finite: int
    num_infinite: int
    num_nan: int


class Difference(NamedTuple):
    """Of two methods on the same images.

    Attributes:
      interval: of the mean difference, one method's number minus the other's, image by image.
      num_higher: images on which the one has the higher number, infinite ones included.
      num_lower: images on which it has the lower one.
    """

    interval: Interval
    num_higher: int
    num_lower: int


def of_mean(values: Sequence[float]) -> Interval:
    """The interval of a mean by Student's t, over images as draws of all possible ones.

    It covers the true mean as often as it says where numbers are normal, however few, and less
    often where few are skewed; a bootstrap of few images covers it still less often
    (docs/evaluation.md). Numbers that are not finite have no place in a mean; they are left out and
    counted.
    """
    from scipy import stats  # it takes a second

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
    """Returns the interval of `values` minus `others`, which are of the same images in order.

    Images vary more than methods do, so that the methods' own intervals can overlap where the
    difference is plain.

    Raises:
      ValueError: where there are not as many of one as of the other.
    """
    a, b = np.asarray(values, np.float64), np.asarray(others, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"{len(a)} numbers of one method and {len(b)} of the other")
    with np.errstate(invalid="ignore"):  # infinity minus infinity: left out, and counted
        interval = of_mean((a - b).tolist())
    return Difference(interval, int((a > b).sum()), int((a < b).sum()))
