"""Every metric as one object, in the order of tables.

A metric is computed by a function in a file of its own, which is named here and imported when it is
first called: so a config is checked against the names, and a report written, without jax or torch.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from sr3_jax.metrics.metric import Kind, Metric, write

__all__ = [
    "METRICS",
    "Kind",
    "Metric",
    "current",
    "find",
    "in_order",
    "label_of",
    "of",
    "of_channel",
    "options",
    "tunable",
    "write",
]

_FULL_REFERENCE = "sr3_jax.metrics.full_reference"
_CORRECTNESS = "sr3_jax.metrics.correctness"
_FIELDS = "sr3_jax.metrics.fields"
_PRETRAINED = "sr3_jax.evaluation.pretrained"
_INCEPTION = {
    "of": "network",
    "function": f"{_PRETRAINED}.inception:measure",
    "needs": ("fid_reference",),
    "option": "fid",
    "weights": "inception_weights",
    "package": "torch_fidelity",
}
_RESNET50 = {
    "of": "network",
    "function": f"{_PRETRAINED}.resnet50:measure",
    "needs": ("labels",),
    "best": math.inf,
    "digits": ".3f",
    "option": "resnet50",
    "weights": "resnet50_weights",
    "package": "keras",
}

METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            "energy",
            "energy score",
            "trial",
            "sr3_jax.metrics.samples:mean_energy_score",
            ("reference",),
            -math.inf,
        ),
        Metric(
            "psnr",
            "PSNR",
            "image",
            f"{_FULL_REFERENCE}:psnr",
            ("reference", "luminance", "border"),
            math.inf,
            "dB",
            ".2f",
            "Peak signal-to-noise ratio: the mean square error to the reference in decibels. "
            "Rewards the mean of all plausible images, and so blur; infinite for an image equal "
            "to it.",
        ),
        Metric(
            "ssim",
            "SSIM",
            "image",
            f"{_FULL_REFERENCE}:ssim",
            ("reference", "luminance", "border"),
            math.inf,
            digits=".3f",
            meaning="Structural similarity to the reference in small windows, at most 1. Rewards "
            "blur, too.",
        ),
        Metric(
            "consistency",
            "consistency",
            "image",
            f"{_FULL_REFERENCE}:consistency",
            ("low_resolution",),
            -math.inf,
            digits=".2f",
            meaning="Mean square error between the input and the output made small again, on "
            "values in [0, 1] and times 1e5. 0 is an output that the input could have come from.",
        ),
        Metric(
            "gradient_energy",
            "gradient energy",
            "image",
            f"{_FULL_REFERENCE}:gradient_energy",
            ("reference",),
            1.0,
            digits=".3f",
            meaning="Energy of the output's gradients over that of the reference's: less than 1 "
            "is blurred, more is noisy or sharpened. Noise counts as much as texture.",
        ),
        Metric(
            "improvement",
            "improvement",
            "image",
            f"{_CORRECTNESS}:improvement",
            ("reference", "low_resolution"),
            math.inf,
            digits=".3f",
            meaning="Share of the detail that the input lacks and the output shows rightly, as in "
            "opensr-test; with omission and hallucination it makes 1.",
        ),
        Metric(
            "omission",
            "omission",
            "image",
            f"{_CORRECTNESS}:omission",
            ("reference", "low_resolution"),
            -math.inf,
            digits=".3f",
            meaning="Share of the detail that the output lacks, as the input does.",
        ),
        Metric(
            "hallucination",
            "hallucination",
            "image",
            f"{_CORRECTNESS}:hallucination",
            ("reference", "low_resolution"),
            -math.inf,
            digits=".3f",
            meaning="Share of the detail that the output shows and the reference does not.",
        ),
        Metric(
            "lpips",
            "LPIPS",
            "network",
            f"{_PRETRAINED}.lpips:measure",
            ("reference",),
            -math.inf,
            digits=".3f",
            meaning="Distance to the reference in the features of a trained network; nearer to "
            "what people see than PSNR.",
            option="lpips",
            weights="lpips_weights",
            package="torch_fidelity",
        ),
        Metric(
            "fid",
            "FID",
            best=-math.inf,
            digits=".2f",
            meaning="Fréchet distance between the Inception features of all outputs and of real "
            "images. Of the set, not of an image, and larger for fewer images: compare equal "
            "numbers of them only.",
            **_INCEPTION,
        ),
        Metric(
            "is",
            "IS",
            best=math.inf,
            digits=".1f",
            meaning="Inception score: how surely each output is of some class, and how many "
            "classes there are. Of the set; it knows no reference.",
            **_INCEPTION,
        ),
        Metric(
            "top_1",
            "top-1",
            meaning="Share of outputs whose class a ResNet-50, trained on real images, names "
            "first.",
            **_RESNET50,
        ),
        Metric(
            "top_5",
            "top-5",
            meaning="Share of outputs whose class is among the five that a ResNet-50 names first.",
            **_RESNET50,
        ),
        Metric(
            "energy_score",
            "energy score",
            "samples",
            "sr3_jax.metrics.samples:energy_scores",
            ("reference",),
            -math.inf,
            meaning="How far several outputs for one input are from the reference, less half of "
            "how far they are from each other, over patches of a Laplacian pyramid. No method is "
            "better on average than one that draws from the true distribution.",
        ),
        Metric(
            "diversity",
            "diversity",
            "samples",
            "sr3_jax.metrics.samples:diversity",
            digits=".3g",
            meaning="How far several outputs for one input lie apart: their standard deviation, "
            "in levels of 255, averaged over pixels. More is not better by itself: 0 is a method "
            "that always gives the same answer.",
        ),
        Metric(
            "rmse",
            "RMSE",
            "field",
            f"{_FIELDS}:rmse",
            ("reference",),
            -math.inf,
            in_units=True,
            meaning="Root mean square error. Rewards the mean of all plausible fields: blur.",
        ),
        Metric(
            "bias",
            "bias",
            "field",
            f"{_FIELDS}:bias",
            ("reference",),
            0.0,
            in_units=True,
            digits=".3g",
            meaning="Mean error.",
        ),
        Metric(
            "correlation",
            "correlation",
            "field",
            f"{_FIELDS}:correlation",
            ("reference",),
            math.inf,
            meaning="Pearson's correlation over pixels, at most 1.",
        ),
        Metric(
            "spectral_distance",
            "spectral distance",
            "field",
            f"{_FIELDS}:spectral_distance",
            ("reference",),
            -math.inf,
            "dB",
            ".2f",
            meaning="Root mean square difference of the power spectra, over wavelengths: what is "
            "blurred lacks power in short waves.",
        ),
        Metric(
            "field_consistency",
            "consistency",
            "field",
            f"{_FIELDS}:consistency",
            ("low_resolution",),
            -math.inf,
            in_units=True,
            digits=".3g",
            meaning="Root mean square difference of the input and the output made small again.",
        ),
        Metric(
            "crps",
            "CRPS",
            "ensemble",
            f"{_FIELDS}:crps",
            ("reference",),
            -math.inf,
            in_units=True,
            meaning="Continuous ranked probability score of the ensemble in its fair form, whose "
            "expectation does not depend on the number of members. No method is better on average "
            "than one that draws from the true distribution.",
        ),
        Metric(
            "spread_skill",
            "spread over skill",
            "ensemble",
            f"{_FIELDS}:spread_skill",
            ("reference",),
            1.0,
            digits=".3f",
            meaning="Spread of the ensemble over the error of its mean: below 1 it is too sure.",
        ),
        Metric("n", "n", "run", digits=".0f", meaning="Number of images."),
        Metric(
            "seconds_per_image",
            "seconds per image",
            "run",
            digits=".3g",
            meaning="Time to make an image, on the hardware named below; without compilation.",
        ),
    )
}
# What older files call them.
_FORMER_NAMES = {"detail": "gradient_energy"}


def of(kind: Kind) -> list[Metric]:
    """The metrics of a kind, in the order of tables."""
    return [metric for metric in METRICS.values() if metric.of == kind]


def options(without: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Values of `config.evaluation.feature_metrics`; those that need nothing of `without`."""
    found = {m.option for m in of("network") if not set(without) & set(m.needs)}
    return tuple(sorted(found))


def tunable() -> tuple[str, ...]:
    """Values of `config.tuning.metric`: what has a direction, of images without labels."""
    return tuple(
        name
        for name, metric in METRICS.items()
        if metric.of not in ("field", "ensemble")
        and metric.is_higher_better is not None
        and "labels" not in metric.needs
    )


def find(name: str) -> Metric:
    """The metric of a name; one that is not known has its name as title, and no direction.

    Of several samples of each image there are METRIC_best and METRIC_std (`evaluator.Evaluation`),
    and of channels what `of_channel` names.
    """
    if channel := re.fullmatch(r"(\w+)\[(.*?)(?: \((.*)\))?\](_best|_std)?", name):
        whole, label, unit, kind = channel.groups()
        metric = find(whole + (kind or ""))
        unit = unit or "" if metric.in_units else metric.unit
        return dataclasses.replace(metric, name=name, title=f"{metric.title}, {label}", unit=unit)
    base, _, kind = name.rpartition("_")
    if base in METRICS and kind == "best":
        title = f"{METRICS[base].heading}, best sample"
        meaning = "Of each image's best sample."
        return dataclasses.replace(METRICS[base], title=title, unit="", meaning=meaning)
    if base in METRICS and kind == "std":
        meaning = "Standard deviation between samples of the mean over images."
        title = f"{METRICS[base].heading}, ± samples"
        return Metric(name, title, digits=METRICS[base].digits, meaning=meaning)
    return METRICS.get(name, Metric(name, name))


def of_channel(metric: str, label: str) -> str:
    """Returns the name of a metric of a channel, with a label such as `t2m (K)`."""
    return f"{metric}[{label}]"


def label_of(name: str) -> str:
    """Returns the label of the channel that a metric is of; empty for none."""
    return name.partition("[")[2].rpartition("]")[0]


def in_order(names: set[str]) -> list[str]:
    """Metrics as they stand in tables: those known first, `n` and times last."""
    counted = {metric.name for metric in of("run")}
    known = [name for name in METRICS if name in names - counted]
    return [*known, *sorted(names - METRICS.keys()), *(n for n in METRICS if n in names & counted)]


def current(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers by metric from a file of results, under the names that metrics have today."""
    found = {}
    for name, value in numbers.items():
        base, separator, kind = name.partition("_")
        found[_FORMER_NAMES.get(base, base) + separator + kind] = value
    return found
