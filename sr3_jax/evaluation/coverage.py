"""What intervals hold on images that were not used to make them: tables and a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.ndimage
import scipy.stats
from etils import epath
from jaxtyping import Float

from sr3_jax import conformal
from sr3_jax.data import storage
from sr3_jax.evaluation.report import intervals, markdown

CONFIDENCES = (0.5, 0.68, 0.8, 0.9, 0.95, 0.99)
_SHOWN = 0.9  # whose coverage is told by brightness and texture
_PARTS = 5  # of equal size, by brightness and so on
_WINDOW = 5  # pixels a side, of the texture


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
      reached: share of images of which at least the promised share lies inside.
      half_width: mean half-width.
      uncalibrated: share inside, had the samples been taken for draws of the truth.
    """

    promised: str
    found: intervals.Interval | None
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


def measure(
    calibration: conformal.Calibration, images: Sequence[Image], delta: float = 0.1
) -> Coverage:
    """Measures intervals on images."""
    rows: list[Row] = []
    parts: dict[str, list[float]] = {}
    widened, of_images = np.nan, []
    for guarantee in conformal.GUARANTEES:
        for confidence in CONFIDENCES if guarantee == "average" else (_SHOWN,):
            promised = f"{confidence:.0%}, {guarantee.replace('_', ' ')}"
            try:
                band = calibration.choose(confidence, guarantee, delta)
            except ValueError:
                rows.append(Row(f"{promised}: too few images", None))
                continue
            halves = [band.half_widths(image.deviation) for image in images]
            naive = [_of_draws(image, confidence) for image in images]
            held = [image.held(half) for image, half in zip(images, halves, strict=True)]
            shares = [float(np.nanmean(each)) for each in held]
            rows.append(
                Row(
                    promised,
                    intervals.of_mean(shares),
                    float(np.mean(np.array(shares) >= confidence)),
                    _mean(halves),
                    _mean([i.held(half) for i, half in zip(images, naive, strict=True)]),
                )
            )
            if (guarantee, confidence) == ("average", _SHOWN):
                parts = _by_parts(images, held)
                widened, of_images = _mean(halves) / max(_mean(naive), 1e-30), shares
    return Coverage(rows, parts, widened, of_images)


def _mean(images: Sequence[np.ndarray]) -> float:
    return float(np.mean([np.nanmean(each) for each in images]))


def _of_draws(image: Image, confidence: float) -> Float[np.ndarray, "h w c"]:
    """Returns the half-widths that were right, were truth and samples drawn from one normal."""
    quantile = scipy.stats.norm.ppf((1 + confidence) / 2)
    return quantile * np.sqrt(1 + 1 / image.num_samples) * image.deviation


def _by_parts(images: Sequence[Image], held: Sequence[np.ndarray]) -> dict[str, list[float]]:
    """Returns the share inside, by features of what a user sees: not of the truth."""
    features = {
        "brightness": [image.center for image in images],
        "texture": [_texture(image.center) for image in images],
        "deviation of samples": [image.deviation for image in images],
    }
    inside = np.concatenate([each.reshape(-1, each.shape[-1]) for each in held])
    found = {}
    for name, values in features.items():
        flat = np.concatenate([each.reshape(-1, each.shape[-1]) for each in values])
        shares = np.zeros((_PARTS, flat.shape[-1]))
        for c in range(flat.shape[-1]):
            known = np.isfinite(flat[:, c]) & np.isfinite(inside[:, c])
            # Ties are broken by place, so that all parts have one size.
            order = np.argsort(flat[known, c], kind="stable")
            for i, part in enumerate(np.array_split(inside[known, c][order], _PARTS)):
                shares[i, c] = part.mean() if len(part) else np.nan
        found[name] = np.nanmean(shares, axis=1).tolist()
    return found


def _texture(center: Float[np.ndarray, "h w c"]) -> Float[np.ndarray, "h w c"]:
    """Returns the standard deviation of the 5x5 pixels around each."""
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
                ["", "", "", ""]
                if row.found is None
                else [
                    f"{row.found.mean:.1%} ({row.found.low:.1%} to {row.found.high:.1%})",
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
