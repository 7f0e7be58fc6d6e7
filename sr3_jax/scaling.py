"""Units: data of any range to the range of the network, and back, channel by channel.

Images of 8 and 16 bits have fixed units (`image_ops.to_signed`). Other arrays are mapped by a
`Scaling`, which is measured on the training data and kept with the run:

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
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num

Kind = Literal["range", "standardise", "quantile", "log"]
KINDS: tuple[Kind, ...] = ("range", "standardise", "quantile", "log")

_NUM_PARTS = 64  # of `quantile`
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
class Scaling:
    """The units of an array's channels.

    Attributes:
      kind: one of `KINDS`.
      channels: the map of each channel.
      least, greatest: the range of each channel in the training data, in its units.
    """

    kind: Kind
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

    def to_json(self) -> str:
        """Returns the scaling as JSON, which `from_json` reads."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Scaling:
        """Reads what `to_json` wrote.

        Raises:
          ValueError: it is no such JSON.
        """
        try:
            read: Mapping[str, Any] = json.loads(text)
            channels = tuple(
                Channel(
                    tuple(map(float, each["values"])),
                    tuple(map(float, each["signed"])),
                    each["log"] and (float(each["log"][0]), float(each["log"][1])),
                )
                for each in read["channels"]
            )
            ends = (tuple(map(float, read[name])) for name in ("least", "greatest"))
            made = cls(read["kind"], channels, *ends)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            raise ValueError(f"this is no scaling of sr3_jax: {error!r}") from error
        if made.kind not in KINDS or not made.channels:
            raise ValueError(f"this is no scaling of sr3_jax: kind = {made.kind!r}")
        return made

    def _each(self, images: Values, convert: Any) -> Signed:
        if images.shape[-1] != len(self.channels):
            raise ValueError(
                f"an array of shape {images.shape} has {images.shape[-1]} channels; the scaling "
                f"has {len(self.channels)}"
            )
        xp = jnp if isinstance(images, jax.Array) else np
        made = [convert(xp, images[..., i], each) for i, each in enumerate(self.channels)]
        return xp.stack(made, axis=-1).astype(np.float32)


class Statistics:
    """What a scaling is made of: range, mean, deviation and a sample of each channel's values.

    It takes images one by one. The sample is every nth value of each image, so that the order of
    the images makes no difference but for rounding.
    """

    def __init__(self, num_channels: int, num_images: int) -> None:
        """Knows nothing yet; so many images will be added."""
        self._stride = max(1, num_images)
        self.least = np.full(num_channels, np.inf)
        self.greatest = np.full(num_channels, -np.inf)
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
            self.least[i] = min(self.least[i], found.min())
            self.greatest[i] = max(self.greatest[i], found.max())
            self._sum[i] += (found - self._origin[i]).sum()
            self._squares[i] += np.square(found - self._origin[i]).sum()
            some = max(1, _MOST_SAMPLED // self._stride)
            self._sample[i].append(found[:: max(1, len(found) // some)])

    @property
    def mean(self) -> Float[np.ndarray, " c"]:
        """Mean of each channel."""
        return self._origin + self._sum / np.maximum(self.count, 1)

    @property
    def deviation(self) -> Float[np.ndarray, " c"]:
        """Standard deviation of each channel."""
        count = np.maximum(self.count, 1)
        return np.sqrt(np.maximum(self._squares / count - np.square(self._sum / count), 0.0))

    def sample(self, channel: int) -> Float[np.ndarray, " n"]:
        """Some values of a channel, ascending."""
        return np.sort(np.concatenate(self._sample[channel]))

    def scaling(self, kind: Kind, names: Sequence[str] = ()) -> Scaling:
        """Returns the scaling of a kind.

        Raises:
          ValueError: a channel has no value, or one alone; it is named by `names`.
        """
        for i, (least, greatest) in enumerate(zip(self.least, self.greatest, strict=True)):
            if not least < greatest:
                name = names[i] if i < len(names) else f"channel {i}"
                held = f"is {least:g} everywhere" if least == greatest else "has no value"
                raise ValueError(f"{name} {held} in the training data; leave it out")
        make = {"range": _range, "standardise": _standardise, "quantile": _quantile, "log": _log}
        channels = tuple(make[kind](self, i) for i in range(len(self.least)))
        return Scaling(kind, channels, tuple(self.least.tolist()), tuple(self.greatest.tolist()))


def _range(of: Statistics, i: int) -> Channel:
    return Channel((float(of.least[i]), float(of.greatest[i])), (-1.0, 1.0))


def _standardise(of: Statistics, i: int) -> Channel:
    return Channel((float(of.mean[i]), float(of.mean[i] + 2 * of.deviation[i])), (0.0, 1.0))


def _quantile(of: Statistics, i: int) -> Channel:
    places = np.linspace(-1.0, 1.0, _NUM_PARTS + 1)
    values = np.quantile(of.sample(i), (places + 1.0) / 2)
    values[0], values[-1] = of.least[i], of.greatest[i]
    # A value that is often met, such as 0, has several places: the middle one is its own.
    knots, which = np.unique(values, return_inverse=True)
    middle = np.bincount(which, places) / np.bincount(which)
    middle[0], middle[-1] = -1.0, 1.0
    return Channel(tuple(knots.tolist()), tuple(middle.tolist()))


def _log(of: Statistics, i: int) -> Channel:
    log = (float(of.least[i]), float(of.mean[i] - of.least[i]))
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
