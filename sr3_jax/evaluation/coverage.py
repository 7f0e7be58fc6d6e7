"""What intervals hold on images that were not used to make them: tables and a picture."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float

from sr3_jax import conformal
from sr3_jax.data import storage
from sr3_jax.evaluation.report import intervals, markdown

CONFIDENCES = (0.5, 0.68, 0.8, 0.9, 0.95, 0.99)
_SHOWN = 0.9  # whose coverage is told by brightness and texture
_PARTS = 5  # of equal size, by brightness and so on
_WINDOW = 5  # pixels a side, of the texture
_FEATURES = ("brightness", "texture", "deviation of samples")
_MOST_DRAWN = 1 << 14  # pixels of an image that are told by features


class Image(NamedTuple):
    """An image that was not used to make the intervals; all in the units of these.

    Attributes:
      truth: what it is.
      center, deviation: mean and local deviation of its samples (`conformal`).
      num_samples: the number of these.
    """

    truth: Float[np.ndarray, "h w c"]
    center: Float[np.ndarray, "h w c"]
    deviation: Float[np.ndarray, "h w c"]
    num_samples: int

    def held(self, half: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w c"]:
        """Returns 1 where the truth is within `half` of the centre, else 0; NaN if unknown."""
        error = np.abs(self.truth - self.center)
        return np.where(np.isfinite(error) & np.isfinite(half), error <= half, np.nan)


class Row(NamedTuple):
    """What a promise came to.

    Attributes:
      promised: the promise in words.
      found: share of values inside, the mean over images, with its interval; None where too few
        images were there to promise anything.
      pixels: share of pixels of which every channel is inside.
      reached: share of images of which at least the promised share lies inside.
      half_width: mean half-width.
      uncalibrated: share inside, had the samples been taken for draws of the truth.
    """

    promised: str
    found: intervals.Interval | None
    pixels: float = np.nan
    reached: float = np.nan
    half_width: float = np.nan
    uncalibrated: float = np.nan


class Coverage(NamedTuple):
    """Everything that is told of a calibration.

    Attributes:
      rows: by promise.
      parts: share inside at 90 % on average, by the name of a feature, in fifths of all pixels from
        low to high.
      widened: mean half-width at 90 % over that of samples taken for draws of the truth; above 1
        they are too sure.
      of_images: share inside of each image at 90 %.
    """

    rows: list[Row]
    parts: dict[str, list[float]]
    widened: float
    of_images: list[float]


class _Kept(NamedTuple):
    """A promise, the band that keeps it, and what was found so far: of each image a number."""

    promise: conformal.Promise
    band: conformal.Band | None
    shares: list[float]
    pixels: list[float]
    halves: list[float]
    uncalibrated: list[float]
    naive_halves: list[float]

    @property
    def is_shown(self) -> bool:
        return (self.promise.guarantee, self.promise.confidence) == ("average", _SHOWN)

    def row(self) -> Row:
        """Returns what it came to."""
        promised = self.promise.confidence
        text = f"{promised:.0%}, {self.promise.guarantee.replace('_', ' ')}"
        if self.band is None:
            return Row(f"{text}: too few images", None)
        found = intervals.of_mean(self.shares)
        reached = np.mean(np.array(self.shares) >= promised)
        means = np.mean(self.halves), np.mean(self.uncalibrated)
        return Row(text, found, float(np.mean(self.pixels)), float(reached), *map(float, means))


def measure(
    calibration: conformal.Calibration, images: Iterable[Image], delta: float = 0.1
) -> Coverage:
    """Measures intervals on images, one at a time."""
    kept = []
    for guarantee in conformal.GUARANTEES:
        for confidence in CONFIDENCES if guarantee == "average" else (_SHOWN,):
            promise = conformal.Promise(confidence, guarantee, delta)
            try:
                band = calibration.choose(promise)
            except ValueError:
                band = None
            kept.append(_Kept(promise, band, [], [], [], [], []))
    rng, pixels = np.random.default_rng(0), []
    for image in images:
        for one in (each for each in kept if each.band):
            half, naive = one.band.half_widths(image.deviation), _of_draws(image, one.promise)
            held = image.held(half)
            one.shares.append(float(np.nanmean(held)))
            of_pixel = held.mean(axis=-1)  # NaN where a channel is missing
            one.pixels.append(float(np.mean(of_pixel[np.isfinite(of_pixel)] == 1)))
            one.halves.append(float(np.nanmean(half)))
            one.uncalibrated.append(float(np.nanmean(image.held(naive))))
            one.naive_halves.append(float(np.nanmean(naive)))
            if one.is_shown:
                pixels.append(_drawn(image, held, rng))
    shown = next((each for each in kept if each.is_shown and each.band), None)
    return Coverage(
        [each.row() for each in kept],
        _by_parts(np.concatenate(pixels, axis=1)) if pixels else {},
        float(np.mean(shown.halves) / max(np.mean(shown.naive_halves), 1e-30)) if shown else np.nan,
        shown.shares if shown else [],
    )


def _of_draws(image: Image, promise: conformal.Promise) -> Float[np.ndarray, "h w c"]:
    """Returns the half-widths that were right, were truth and samples drawn from one normal."""
    quantile = statistics.NormalDist().inv_cdf((1 + promise.confidence) / 2)
    return quantile * np.sqrt(1 + 1 / image.num_samples) * image.deviation


def _drawn(
    image: Image, held: Float[np.ndarray, "h w c"], rng: np.random.Generator
) -> Float[np.ndarray, "features n c"]:
    """Returns `held` and the features of some pixels: what a user sees, not the truth."""
    features = image.center, _texture(image.center), image.deviation
    found = np.stack([held, *features]).reshape(1 + len(features), -1, held.shape[-1])
    if found.shape[1] > _MOST_DRAWN:
        found = found[:, rng.choice(found.shape[1], _MOST_DRAWN, replace=False)]
    return found


def _by_parts(pixels: Float[np.ndarray, "features n c"]) -> dict[str, list[float]]:
    """Returns the share inside by fifths of each feature, the mean over channels."""
    inside, *features = pixels
    found = {}
    for name, values in zip(_FEATURES, features, strict=True):
        shares = np.zeros((_PARTS, values.shape[-1]))
        for c in range(values.shape[-1]):
            known = np.isfinite(values[:, c]) & np.isfinite(inside[:, c])
            # Ties are broken by place, so that all parts have one size.
            order = np.argsort(values[known, c], kind="stable")
            for i, part in enumerate(np.array_split(inside[known, c][order], _PARTS)):
                shares[i, c] = part.mean() if len(part) else np.nan
        found[name] = np.nanmean(shares, axis=1).tolist()
    return found


def _texture(center: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w c"]:
    """Returns the standard deviation of the 5x5 pixels around each."""
    import scipy.ndimage  # late: every command imports this module

    size = (_WINDOW, _WINDOW, 1)
    mean = scipy.ndimage.uniform_filter(center, size)
    variance = scipy.ndimage.uniform_filter(np.square(center), size) - np.square(mean)
    return np.sqrt(np.maximum(variance, 0.0))


def tables(coverage: Coverage, delta: float = 0.1) -> str:
    """Returns the tables in Markdown."""
    rows = [
        [
            row.promised,
            *(
                [""] * 5
                if row.found is None
                else [
                    f"{row.found.mean:.1%} ({row.found.low:.1%} to {row.found.high:.1%})",
                    f"{row.pixels:.1%}",
                    f"{row.reached:.0%}",
                    f"{row.half_width:.4g}",
                    f"{row.uncalibrated:.1%}",
                ]
            ),
        ]
        for row in coverage.rows
    ]
    headings = [
        "promised",
        "found inside",
        "pixels with all channels inside",
        "images that reach it",
        "mean half-width",
        "inside, uncalibrated",
    ]
    text = markdown.table(headings, rows)
    shares = [[name, *(f"{x:.1%}" for x in found)] for name, found in coverage.parts.items()]
    if shares:
        fifths = ["lowest fifth", "second", "third", "fourth", "highest fifth"]
        text += f"\n\n{_SHOWN:.0%} on average, by fifths of all pixels:\n\n"
        text += markdown.table(["inside", *fifths], shares)
        sure = "too sure" if coverage.widened > 1 else "not sure enough"
        text += (
            f"\n\nSamples alone are {sure}: calibrated intervals are {coverage.widened:.2f} times "
            "as wide as those of samples that are draws of the truth."
        )
    return text + f"\n\ncertified, each image: with probability {1 - delta:.0%}.\n"


def draw(coverage: Coverage, path: epath.PathLike) -> None:
    """Draws shares inside against what was promised, by parts of the pixels, and by images."""
    from matplotlib.figure import Figure  # late: it takes a second

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    axes = figure.subplots(1, 3)
    rows = [row for row in coverage.rows[: len(CONFIDENCES)] if row.found is not None]
    promised = CONFIDENCES[: len(rows)]
    found = [row.found.mean for row in rows]
    ends = np.array(
        [[row.found.mean - row.found.low, row.found.high - row.found.mean] for row in rows]
    )
    axes[0].plot([0.4, 1], [0.4, 1], color="black", lw=0.8)
    if rows:
        axes[0].errorbar(promised, found, np.abs(ends.T), fmt="o-", label="calibrated", ms=4)
        naive = [row.uncalibrated for row in rows]
        axes[0].plot(promised, naive, "s--", label="samples taken for draws of the truth", ms=4)
        axes[0].legend(loc="upper left", fontsize=8)
    axes[0].set_xlabel("promised share, on average")
    axes[0].set_ylabel("share inside, other images")
    for name, shares in coverage.parts.items():
        axes[1].plot(range(1, _PARTS + 1), shares, "o-", label=name, ms=4)
    axes[1].axhline(_SHOWN, color="black", lw=0.8)
    axes[1].set_ylim(0.7, 1.0)
    axes[1].set_xticks(range(1, _PARTS + 1), ["lowest", "2", "3", "4", "highest"])
    axes[1].set_xlabel("fifth of all pixels")
    axes[1].set_ylabel(f"share inside, {_SHOWN:.0%} promised")
    if coverage.parts:
        axes[1].legend(loc="lower left", fontsize=8)
    axes[2].hist(coverage.of_images, bins=20)
    axes[2].axvline(_SHOWN, color="black", lw=0.8)
    axes[2].set_xlabel(f"share inside an image, {_SHOWN:.0%} promised")
    axes[2].set_ylabel("images")
    for axis in axes:
        axis.grid(alpha=0.3)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    storage.write_whole(str(path), data.getvalue())


def as_json(coverage: Coverage) -> Mapping[str, object]:
    """Returns the numbers for a file."""
    rows = [row._asdict() | {"found": row.found and row.found._asdict()} for row in coverage.rows]
    return coverage._asdict() | {"rows": rows}
