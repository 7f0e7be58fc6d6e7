"""Units: data of any range to the range of the network, and back, channel by channel.

Images of 8 and 16 bits have fixed units (`image_ops.to_signed`). Other arrays are mapped by a
`Scaling`, made of `Statistics` of the training data, which the config of the run keeps:

    range        least to greatest value          -> -1 to 1
    standardise  mean, mean + 2 deviations        -> 0, 1 (values beyond -1 and 1 occur)
    quantile     64 parts of equal probability    -> 64 equal parts of [-1, 1]
    log          as range, of sign(u) log(1 + |u| / s) with u = value - least and s the mean of u

All are increasing, piecewise linear functions of the value, or of its logarithm, and go on linearly
beyond their ends. So each has an inverse, and a value outside the training's range is neither
clipped nor lost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

Kind = Literal["range", "standardise", "quantile", "log"]
KINDS: tuple[Kind, ...] = ("range", "standardise", "quantile", "log")

NUM_QUANTILES = 65  # of a channel, with both ends
_MOST_SAMPLED = 1 << 16  # values of a channel that quantiles are taken of

# Images of any number of channels, on the host or on devices.
Values = Num[np.ndarray | Array, "*n h w c"]
Signed = Float[np.ndarray | Array, "*n h w c"]


@dataclasses.dataclass(frozen=True)
class Channel:
    """The map of one channel: increasing, by its knots.

    Attributes:
      values: values of the knots, in the data's units (of `log`: in those of its logarithm);
        increasing, at least two.
      signed: where the knots lie in the network's range; increasing.
      log: least value and scale of the logarithm; None for a map without one.
    """

    values: tuple[float, ...]
    signed: tuple[float, ...]
    log: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Statistics:
    """What is known of the values of each channel in the training data, in their own units.

    Attributes:
      least, greatest: the range.
      mean, deviation: mean and standard deviation.
      quantiles: of each channel `NUM_QUANTILES` values, at probabilities evenly spaced from 0 to 1.
    """

    least: tuple[float, ...]
    greatest: tuple[float, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    quantiles: tuple[tuple[float, ...], ...]

    def of(self, channels: slice) -> Statistics:
        """Returns those of some channels."""
        return Statistics(*(getattr(self, f.name)[channels] for f in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The units of an array's channels, made by `make`.

    Attributes:
      channels: the map of each channel.
      least, greatest: the range of each channel in the training data, in its units.
    """

    channels: tuple[Channel, ...]
    least: tuple[float, ...]
    greatest: tuple[float, ...]

    def to_signed(self, values: Values) -> Signed:
        """Converts data to the network's range, float32. NaN, a missing value, stays NaN."""
        return self._each(values, _to_signed)

    def to_values(self, signed: Signed) -> Signed:
        """Converts the network's range to data, float32; the inverse of `to_signed`."""
        return self._each(signed, _to_values)

    def outside(self, values: Num[np.ndarray, "*n h w c"]) -> Float[np.ndarray, " c"]:
        """Returns the share of each channel's values outside the range of the training data."""
        flat = np.asarray(values, np.float64).reshape(-1, len(self.channels))
        is_outside = (flat < np.array(self.least)) | (flat > np.array(self.greatest))
        return is_outside.sum(axis=0) / np.maximum(np.isfinite(flat).sum(axis=0), 1)

    def _each(self, images: Values, convert: Any) -> Signed:
        if images.shape[-1] != len(self.channels):
            raise ValueError(
                f"an array of shape {images.shape} has {images.shape[-1]} channels; the scaling "
                f"has {len(self.channels)}"
            )
        xp = jnp if isinstance(images, jax.Array) else np
        made = [convert(xp, images[..., i], each) for i, each in enumerate(self.channels)]
        return xp.stack(made, axis=-1).astype(np.float32)


class Scalings(NamedTuple):
    """The units of y_0, of its low resolution, and of maps; None without maps."""

    image: Scaling
    source: Scaling
    maps: Scaling | None = None


def make(kind: Kind, of: Statistics) -> Scaling:
    """Returns the scaling of a kind.

    Raises:
      ValueError: a channel has no value, or one alone.
    """
    for i, (least, greatest) in enumerate(zip(of.least, of.greatest, strict=True)):
        if not least < greatest:
            raise ValueError(
                f"channel {i} has values from {least:g} to {greatest:g} in the training data, "
                "which is no range; leave it out"
            )
    channel = {"range": _range, "standardise": _standardise, "quantile": _quantile, "log": _log}
    channels = tuple(channel[kind](of, i) for i in range(len(of.least)))
    return Scaling(channels, of.least, of.greatest)


class Measuring:
    """Measures the statistics of images, one after the other.

    Quantiles are of a sample, every nth value of each image, so that the order of the images makes
    no difference but for rounding.
    """

    def __init__(self, num_channels: int, num_images: int) -> None:
        """Knows nothing yet; so many images will be added."""
        self._stride = max(1, num_images)
        self._least = np.full(num_channels, np.inf)
        self._greatest = np.full(num_channels, -np.inf)
        self.count = np.zeros(num_channels, np.int64)
        self.missing = np.zeros(num_channels, np.int64)
        self._sum, self._squares = np.zeros(num_channels), np.zeros(num_channels)
        self._origin = np.zeros(num_channels)
        self._sample: list[list[np.ndarray]] = [[] for _ in range(num_channels)]

    def add(self, image: Num[np.ndarray, "h w c"]) -> None:
        """Adds the values of an image; NaN counts as missing."""
        flat = np.asarray(image, np.float64).reshape(-1, image.shape[-1])
        for i, column in enumerate(flat.T):
            found = column[np.isfinite(column)]
            self.missing[i] += len(column) - len(found)
            if not len(found):
                continue
            if not self.count[i]:
                # Sums are of differences from a typical value: large offsets cost no digits.
                self._origin[i] = found.mean()
            self.count[i] += len(found)
            self._least[i] = min(self._least[i], found.min())
            self._greatest[i] = max(self._greatest[i], found.max())
            self._sum[i] += (found - self._origin[i]).sum()
            self._squares[i] += np.square(found - self._origin[i]).sum()
            some = max(1, _MOST_SAMPLED // self._stride)
            self._sample[i].append(found[:: max(1, len(found) // some)])

    @property
    def num_sampled(self) -> int:
        """Number of values that quantiles are taken of, over all channels."""
        return sum(len(part) for parts in self._sample for part in parts)

    def statistics(self) -> Statistics:
        """Returns the statistics of all images so far; of a channel without value they are 0."""
        count = np.maximum(self.count, 1)
        shift = self._sum / count
        deviation = np.sqrt(np.maximum(self._squares / count - np.square(shift), 0.0))
        is_known = self.count > 0
        least, greatest = (np.where(is_known, n, 0.0) for n in (self._least, self._greatest))
        places = np.linspace(0.0, 1.0, NUM_QUANTILES)
        quantiles = np.zeros((len(count), NUM_QUANTILES))
        for i in np.flatnonzero(is_known):
            quantiles[i] = np.quantile(np.concatenate(self._sample[i]), places)
            quantiles[i, [0, -1]] = least[i], greatest[i]
        columns = (least, greatest, self._origin + shift, deviation)
        return Statistics(
            *(tuple(column.tolist()) for column in columns), tuple(map(tuple, quantiles.tolist()))
        )


def _range(of: Statistics, i: int) -> Channel:
    return Channel((of.least[i], of.greatest[i]), (-1.0, 1.0))


def _standardise(of: Statistics, i: int) -> Channel:
    return Channel((of.mean[i], of.mean[i] + 2 * of.deviation[i]), (0.0, 1.0))


def _quantile(of: Statistics, i: int) -> Channel:
    # A value that is often met, such as 0, has several places: the middle one is its own.
    places = np.linspace(-1.0, 1.0, NUM_QUANTILES)
    knots, which = np.unique(of.quantiles[i], return_inverse=True)
    middle = np.bincount(which, places) / np.bincount(which)
    middle[0], middle[-1] = -1.0, 1.0
    return Channel(tuple(knots.tolist()), tuple(middle.tolist()))


def _log(of: Statistics, i: int) -> Channel:
    log = (of.least[i], of.mean[i] - of.least[i])
    ends = _logarithm(np, np.array([of.least[i], of.greatest[i]]), log)
    return Channel(tuple(ends.tolist()), (-1.0, 1.0), log)


def _logarithm(xp: Any, values: Any, log: tuple[float, float]) -> Any:
    u = values - log[0]
    return xp.sign(u) * xp.log1p(xp.abs(u) / log[1])


def _to_signed(xp: Any, values: Any, of: Channel) -> Any:
    values = xp.asarray(values, np.float64 if xp is np else np.float32)
    if of.log:
        values = _logarithm(xp, values, of.log)
    return _piecewise(xp, values, of.values, of.signed)


def _to_values(xp: Any, signed: Any, of: Channel) -> Any:
    signed = xp.asarray(signed, np.float64 if xp is np else np.float32)
    values = _piecewise(xp, signed, of.signed, of.values)
    if of.log:
        values = of.log[0] + xp.sign(values) * of.log[1] * xp.expm1(xp.abs(values))
    return values


def _piecewise(xp: Any, x: Any, knots: Sequence[float], places: Sequence[float]) -> Any:
    """The piecewise linear function through (knots, places), going on linearly at its ends."""
    at, to = np.array(knots), np.array(places)
    slope = np.diff(to) / np.diff(at)
    if len(at) == 2:
        return to[0] + slope[0] * (x - at[0])
    part = xp.clip(xp.searchsorted(xp.asarray(at, x.dtype), x) - 1, 0, len(slope) - 1)
    at, to, slope = (xp.asarray(a, x.dtype) for a in (at[:-1], to[:-1], slope))
    return to[part] + slope[part] * (x - at[part])
