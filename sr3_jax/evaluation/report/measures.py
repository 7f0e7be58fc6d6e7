"""What is known of each metric: heading, digits, which way is better, what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple


class Measure(NamedTuple):
    """One metric.

    Attributes:
      heading: short, with the unit.
      digits: how a number of it is written, a format specification.
      best: the value that nothing beats: infinite, or a number; None where no direction is better.
      meaning: a sentence.
    """

    heading: str
    digits: str
    best: float | None = None
    meaning: str = ""

    @property
    def arrow(self) -> str:
        """Which way is better; empty where none is."""
        if self.best is None:
            return ""
        return {math.inf: "↑", -math.inf: "↓"}.get(self.best, f"→ {self.best:g}")

    def badness(self, value: float) -> float:
        """Orders values: the lower, the better. nan for nan.

        Raises:
          ValueError: where no direction is better.
        """
        if self.best is None:
            raise ValueError(f"of {self.heading!r}, neither more nor less is better")
        if math.isinf(self.best):
            return -value if self.best > 0 else value
        return abs(value - self.best)


_MEASURES = {
    "psnr": Measure(
        "PSNR (dB)",
        ".2f",
        math.inf,
        "Peak signal-to-noise ratio: the mean square error to the reference in decibels. Rewards "
        "the mean of all plausible images, and so blur; infinite for an image equal to it.",
    ),
    "ssim": Measure(
        "SSIM",
        ".3f",
        math.inf,
        "Structural similarity to the reference in small windows, at most 1. Rewards blur, too.",
    ),
    "consistency": Measure(
        "consistency",
        ".2f",
        -math.inf,
        "Mean square error between the input and the output made small again, on values in [0, 1] "
        "and times 1e5. 0 is an output that the input could have come from.",
    ),
    "gradient_energy": Measure(
        "gradient energy",
        ".3f",
        1.0,
        "Energy of the output's gradients over that of the reference's: less than 1 is blurred, "
        "more is noisy or sharpened. Noise counts as much as texture.",
    ),
    "lpips": Measure(
        "LPIPS",
        ".3f",
        -math.inf,
        "Distance to the reference in the features of a trained network; nearer to what people see "
        "than PSNR.",
    ),
    "fid": Measure(
        "FID",
        ".2f",
        -math.inf,
        "Fréchet distance between the Inception features of all outputs and of real images. Of the "
        "set, not of an image, and larger for fewer images: compare equal numbers of them only.",
    ),
    "is": Measure(
        "IS",
        ".1f",
        math.inf,
        "Inception score: how surely each output is of some class, and how many classes there are. "
        "Of the set; it knows no reference.",
    ),
    "top_1": Measure(
        "top-1",
        ".3f",
        math.inf,
        "Share of outputs whose class a ResNet-50, trained on real images, names first.",
    ),
    "top_5": Measure(
        "top-5",
        ".3f",
        math.inf,
        "Share of outputs whose class is among the five that a ResNet-50 names first.",
    ),
    "diversity": Measure(
        "diversity",
        ".3g",
        None,
        "How far several outputs for one input lie apart: their standard deviation, in levels of "
        "255, averaged over pixels. More is not better by itself: 0 is a "
        "method that always gives the same answer.",
    ),
    "n": Measure("n", ".0f", None, "Number of images."),
    "seconds_per_image": Measure(
        "seconds per image",
        ".3g",
        None,
        "Time to make an image, on the hardware named below; without compilation.",
    ),
}
ALL = tuple(_MEASURES)
# What older files call them.
_FORMER_NAMES = {"detail": "gradient_energy"}
# Not about the images: no interval, no differences, no best.
OF_THE_RUN = ("n", "seconds_per_image")


def measure(name: str) -> Measure:
    """Of a metric's name; one that is not known has its name as heading, and no direction.

    Of several samples of each image there are METRIC_best and METRIC_std (`evaluator.Evaluation`).
    """
    base, _, kind = name.rpartition("_")
    if base in _MEASURES and kind == "best":
        heading = f"{_MEASURES[base].heading}, best sample"
        return _MEASURES[base]._replace(heading=heading, meaning="Of each image's best sample.")
    if base in _MEASURES and kind == "std":
        heading = f"{_MEASURES[base].heading}, ± samples"
        meaning = "Standard deviation between samples of the mean over images."
        return Measure(heading, _MEASURES[base].digits, None, meaning)
    return _MEASURES.get(name, Measure(name, ".4g"))


def current(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a file of results by metric, under the names that metrics have today."""
    found = {}
    for name, value in numbers.items():
        base, separator, kind = name.partition("_")
        found[_FORMER_NAMES.get(base, base) + separator + kind] = value
    return found


def in_order(names: set[str]) -> list[str]:
    """Metrics as they stand in tables: those known first, `n` and times last."""
    known = [name for name in _MEASURES if name in names and name not in OF_THE_RUN]
    others = sorted(names - _MEASURES.keys())
    return [*known, *others, *(name for name in OF_THE_RUN if name in names)]


def write(value: float, digits: str, *, signed: bool = False) -> str:
    """A number as people read it: a true minus, no negative zero, ∞, and nan as it is.

    One that these digits would make 0 has one of its own: a difference that is plain is not 0.
    """
    if math.isinf(value):
        return "−∞" if value < 0 else "+∞" if signed else "∞"
    sign = "+" if signed else ""
    text = format(float(value), f"{sign}z{digits}")
    if value and float(text) == 0:
        text = format(float(value), f"{sign}.1g")
    return text.replace("-", "−")
