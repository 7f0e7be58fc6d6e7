"""Conformal calibration: intervals of pixels that hold the share of the truth that they promise.

Around the mean of K samples of an image lies an interval for every pixel. Its half-width is a
function of the samples' local deviation, made on some images (`fit`); a whole family of them,
narrow to wide. Other images say how far each member of the family is from the truth (`risks`), and
so which member keeps a promise on images that are drawn as these were:

    average      the share of pixels outside, in the mean over images, is at most 1 - confidence
                 (conformal risk control: Angelopoulos et al. 2022, arXiv:2208.02814, Theorem 1)
    certified    with probability 1 - delta over the calibration images, the same mean is
                 (risk-controlling prediction sets: Bates et al. 2021, arXiv:2101.02703, with the
                 bound of Waudby-Smith and Ramdas)
    each_image   with probability 1 - delta, the share of pixels outside an image is (split
                 conformal prediction of that share: Vovk et al. 2005)

Nothing is assumed of the network or of the noise, but that images are drawn independently from one
distribution (for `average` and `each_image`: exchangeably).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int, Num

Guarantee = Literal["average", "certified", "each_image"]
GUARANTEES: tuple[Guarantee, ...] = ("average", "certified", "each_image")
Shape = Literal["equal", "shortest"]
SHAPES: tuple[Shape, ...] = ("equal", "shortest")

NUM_GROUPS = 16  # of pixels, by the deviation of their samples
# Pixels a side, over which variances are averaged. Of eight samples of photos_4x_quick, mean
# half-widths at 90 % were 22.4, 21.9, 21.9, 22.0 levels with 1, 3, 5, 7 pixels.
_WINDOW = 5
# Shares of pixels that a member of the family should hold, denser towards 1.
_LEVELS = 1.0 - np.square(1.0 - np.arange(1, 161) / 160)
_MOST_FITTED = 1 << 15  # pixels of a channel of an image that a family is made of

Samples = Num[np.ndarray, "k h w c"]
Values = Float[np.ndarray, "h w c"]


@dataclasses.dataclass(frozen=True)
class Channel:
    """Half-widths of a channel's intervals, by the deviation of the samples.

    Between the centres they are interpolated. Below the first they are constant, and beyond the
    last they grow in proportion.

    Attributes:
      centres: deviations, increasing; in the units of the samples.
      radii: for each member of the family the half-width at each centre.
    """

    centres: tuple[float, ...]
    radii: tuple[tuple[float, ...], ...]


@dataclasses.dataclass(frozen=True)
class Promise:
    """What intervals are to promise.

    Attributes:
      confidence: share of the values that lie inside.
      guarantee: what of; see above.
      delta: of `certified` and `each_image`, the probability that the promise is not kept.
    """

    confidence: int | float
    guarantee: Guarantee = "average"
    delta: float = 0.1

    def __post_init__(self):
        """Raises ValueError for a number outside (0, 1)."""
        for name in ("confidence", "delta"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} = {value:g}; it must be above 0 and below 1")


@dataclasses.dataclass(frozen=True)
class Band:
    """One member of a family: for each channel the half-widths at the centres.

    `promise` is what it was chosen for.
    """

    centres: tuple[tuple[float, ...], ...]
    radii: tuple[tuple[float, ...], ...]
    promise: Promise | None = None

    def half_widths(self, deviation: Values) -> Values:
        """Returns the half-width of each pixel's interval, given `local_deviation`."""
        made = [
            _interpolated(deviation[..., i], np.array(centres), np.array([radii]))[0]
            for i, (centres, radii) in enumerate(zip(self.centres, self.radii, strict=True))
        ]
        return np.stack(made, axis=-1)

    def interval(self, samples: Samples) -> tuple[Values, Values]:
        """Returns lower and upper ends, in the units of the samples; NaN where those are."""
        mean, half = center(samples), self.half_widths(local_deviation(samples))
        return mean - half, mean + half


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A family of intervals, and how often each member was wrong on the calibration images.

    Attributes:
      channels: the family, channel by channel.
      risks: for each calibration image, and each member from narrow to wide, the share of its
        values outside the intervals.
    """

    channels: tuple[Channel, ...]
    risks: Float[np.ndarray, "n members"]

    def choose(self, promise: Promise) -> Band:
        """Returns the narrowest band that keeps a promise.

        Raises:
          ValueError: the promise takes more calibration images.
        """
        risks = self.risks
        keeps = _keeps(risks, promise)
        # Wider intervals keep what narrower ones do; rounding might say otherwise.
        member = len(keeps) - int(np.argmin(keeps[::-1])) if not keeps.all() else 0
        if member == len(keeps):
            raise ValueError(
                f"{len(risks)} calibration images are too few for confidence = "
                f"{promise.confidence:g}, guarantee = {promise.guarantee!r}"
                + ("" if promise.guarantee == "average" else f" and delta = {promise.delta:g}")
                + "; calibrate on more images, or ask for less"
            )
        return dataclasses.replace(self.band(member), promise=promise)

    def band(self, member: int) -> Band:
        """Returns a member of the family."""
        return Band(
            tuple(each.centres for each in self.channels),
            tuple(each.radii[member] for each in self.channels),
        )


def center(samples: Samples) -> Values:
    """Returns the mean of the samples, the middle of every interval."""
    return samples.mean(axis=0, dtype=np.float64)


def local_deviation(samples: Samples) -> Values:
    """Returns the standard deviation between samples, by variances averaged over 5x5 pixels.

    That of a single pixel is uncertain, where samples are few. Missing values (NaN) are left out of
    averages and stay NaN.

    Raises:
      ValueError: there is one sample.
    """
    if len(samples) < 2:
        raise ValueError(f"{len(samples)} sample of an image; a deviation takes two or more")
    import scipy.ndimage  # late: configs, which name the shapes, should load quickly

    variance = samples.var(axis=0, ddof=1, dtype=np.float64)
    known = np.isfinite(variance)
    size = (_WINDOW, _WINDOW, 1)
    total = scipy.ndimage.uniform_filter(np.where(known, variance, 0.0), size)
    if not known.all():
        share = scipy.ndimage.uniform_filter(known.astype(np.float64), size)
        total = np.where(known, total / np.maximum(share, 1e-12), np.nan)
    return np.sqrt(np.maximum(total, 0.0))


def fit(images: Iterable[tuple[Values, Values]], shape: Shape = "equal") -> tuple[Channel, ...]:
    """Makes a family of intervals of some images.

    Pixels are sorted by their deviation into 16 groups of equal size. Of the errors of each group,
    quantiles are taken.

    Args:
      images: of each the truth less the mean of samples, and the `local_deviation`. Of large ones
        pixels are drawn.
      shape: `equal`: a member holds the same share of each group, so that rough and smooth parts
        are treated alike. `shortest`: the mean half-width is least at the same share of all pixels,
        which is the aim of K-RCPS (Teneggi et al. 2023, arXiv:2302.03791); rough parts then pay for
        smooth ones.

    Raises:
      ValueError: there are no pixels.
    """
    rng, parts = np.random.default_rng(0), []
    for error, deviation in images:
        pixels = np.stack([np.abs(error), deviation]).reshape(2, -1, error.shape[-1])
        if pixels.shape[1] > _MOST_FITTED:
            pixels = pixels[:, rng.choice(pixels.shape[1], _MOST_FITTED, replace=False)]
        parts.append(pixels)
    channels = []
    for i, pixels in enumerate(np.moveaxis(np.concatenate(parts, axis=1), -1, 0)):
        error, spread = pixels[:, np.isfinite(pixels).all(axis=0)]
        if not len(error):
            raise ValueError(f"channel {i} has no known value to calibrate with")
        channels.append(_fit_channel(error, spread, shape))
    return tuple(channels)


def _fit_channel(
    error: Float[np.ndarray, " n"], spread: Float[np.ndarray, " n"], shape: Shape
) -> Channel:
    edges = np.unique(np.quantile(spread, np.arange(1, NUM_GROUPS) / NUM_GROUPS))
    group = np.searchsorted(edges, spread)
    centres, quantiles = [], []
    for number in np.unique(group):
        inside = group == number
        if (middle := spread[inside].mean()) in centres:  # of equal deviations
            continue
        centres.append(middle)
        quantiles.append(np.quantile(error[inside], _LEVELS))
    radii = np.stack(quantiles, axis=1)
    if shape == "shortest":
        radii = _shortest(radii)
    return Channel(tuple(centres), tuple(map(tuple, radii.tolist())))


def _shortest(quantiles: Float[np.ndarray, "members groups"]) -> np.ndarray:
    """Returns the radii that hold the same shares of all pixels, and have the least mean.

    With a price for each pixel outside, each group takes the radius that costs least. All prices
    give the convex hull of what is attainable.
    """
    outside = 1.0 - np.concatenate([[0.0], _LEVELS])
    radii = np.concatenate([np.zeros((1, quantiles.shape[1])), quantiles])
    scale = max(float(quantiles[-1].max()), 1e-30)

    def at(price: float) -> np.ndarray:
        return np.argmin(radii + price * scale * outside[:, None], axis=0)

    prices = np.geomspace(1e-3, 1e6, 4000)
    chosen = np.array([at(price) for price in prices])
    held = 1.0 - outside[chosen].mean(axis=1)
    groups = np.arange(radii.shape[1])
    first = np.minimum(np.searchsorted(held, _LEVELS - 1e-12), len(prices) - 1)
    return radii[chosen[first], groups]


def risk(error: Values, deviation: Values, channels: Sequence[Channel]) -> Float[np.ndarray, " m"]:
    """Returns the share of an image's values outside the intervals of each member of a family.

    NaN is left out; an image without a known value has the risk 0.
    """
    counts, total = np.zeros(len(channels[0].radii) + 1), 0
    for i, channel in enumerate(channels):
        first = first_covering(np.abs(error[..., i]), deviation[..., i], channel)
        known = np.isfinite(error[..., i]) & np.isfinite(deviation[..., i])
        counts += np.bincount(first[known], minlength=len(counts))
        total += int(known.sum())
    return 1.0 - np.cumsum(counts)[:-1] / max(total, 1) if total else np.zeros(len(counts) - 1)


def first_covering(
    error: Float[np.ndarray, "h w"], deviation: Float[np.ndarray, "h w"], channel: Channel
) -> Int[np.ndarray, "h w"]:
    """Returns the first member whose interval holds each pixel; their number where none does."""
    centres, radii = np.array(channel.centres), np.array(channel.radii)
    low = np.zeros(error.shape, int)
    high = np.full(error.shape, len(radii))
    where = _between(deviation, centres)
    while (open_ := low < high).any():
        middle = (low + high) // 2
        half = _at(radii, np.minimum(middle, len(radii) - 1), *where)
        holds = half >= error
        high = np.where(open_ & holds, middle, high)
        low = np.where(open_ & ~holds, middle + 1, low)
    return low


def _interpolated(deviation: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Returns half-widths [member, ...] of each member at each deviation."""
    where = _between(deviation, centres)
    members = np.arange(len(radii)).reshape(-1, *[1] * deviation.ndim)
    return _at(radii, members, *where)


def _between(
    deviation: np.ndarray, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the centre before each deviation, the share of the next, and a factor beyond."""
    last = len(centres) - 1
    before = np.clip(np.searchsorted(centres, deviation, side="right") - 1, 0, max(last - 1, 0))
    if last:
        step = centres[before + 1] - centres[before]
        share = np.clip((deviation - centres[before]) / step, 0.0, 1.0)
    else:
        share = np.zeros(deviation.shape)
    beyond = np.maximum(deviation / centres[-1], 1.0) if centres[-1] > 0 else 1.0
    return before, share, np.broadcast_to(beyond, deviation.shape)


def _at(
    radii: np.ndarray, member: np.ndarray, before: np.ndarray, share: np.ndarray, beyond: np.ndarray
) -> np.ndarray:
    after = np.minimum(before + 1, radii.shape[1] - 1)
    return ((1.0 - share) * radii[member, before] + share * radii[member, after]) * beyond


def _keeps(risks: Float[np.ndarray, "n m"], promise: Promise) -> np.ndarray:
    """Returns which members keep a promise, by the risks of n calibration images."""
    count, most = len(risks), 1.0 - promise.confidence
    guarantee, delta = promise.guarantee, promise.delta
    if guarantee == "average":
        return (risks.sum(axis=0) + 1.0) / (count + 1) <= most
    if guarantee == "certified":
        return _evidence(risks, most, delta) >= 1.0 / delta
    if guarantee == "each_image":
        # The new image is as likely to be at any place among the others.
        needed = math.ceil((count + 1) * (1.0 - delta) - 1e-9)
        return (risks <= most).sum(axis=0) >= needed
    raise ValueError(f"guarantee = {guarantee!r}; choose one of {', '.join(GUARANTEES)}")


def _evidence(risks: Float[np.ndarray, "n m"], most: float, delta: float) -> np.ndarray:
    """Returns, for each member, the most that a bet against a mean risk above `most` has won.

    If the mean is above, the bet wins 1 / delta at any time with probability delta at most. Stakes
    follow the variance of the risks seen before (Waudby-Smith and Ramdas 2023, section 4;
    Bates et al. 2021, Theorem 4).
    """
    count = len(risks)
    seen = np.arange(1, count + 1)[:, None]
    mean = (0.5 + np.cumsum(risks, axis=0)) / (1 + seen)
    variance = (0.25 + np.cumsum(np.square(risks - mean), axis=0)) / (1 + seen)
    before = np.concatenate([np.full((1, risks.shape[1]), 0.25), variance[:-1]])
    stake = np.minimum(1.0, np.sqrt(2 * math.log(1 / delta) / (count * before)))
    return np.exp(np.cumsum(np.log1p(-stake * (risks - most)), axis=0).max(axis=0))
