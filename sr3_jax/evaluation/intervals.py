"""How sure a mean over images is: bootstrap intervals, and differences on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
NUM_RESAMPLES = 9999
_SEED = 0
# Numbers held at once while resampling: 80 MB, however many images there are.
_MOST_NUMBERS = 10**7


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
    """The percentile bootstrap interval of a mean, over images drawn with replacement.

    The seed is fixed, so that the same numbers give the same interval. Numbers that are not finite
    have no place in a mean; they are left out and counted.
    """
    from scipy import stats  # it takes a second

    numbers = np.asarray(values, np.float64)
    finite = numbers[np.isfinite(numbers)]
    counts = len(finite), int(np.isinf(numbers).sum()), int(np.isnan(numbers).sum())
    mean = float(finite.mean()) if len(finite) else np.nan
    if len(finite) < 2:
        return Interval(mean, np.nan, np.nan, *counts)
    found = stats.bootstrap(
        (finite,),
        np.mean,
        n_resamples=NUM_RESAMPLES,
        batch=max(1, min(NUM_RESAMPLES, _MOST_NUMBERS // len(finite))),
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), *counts)


def of_difference(values: Sequence[float], others: Sequence[float]) -> Difference:
    """Of `values` minus `others`, which are of the same images in the same order.

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
