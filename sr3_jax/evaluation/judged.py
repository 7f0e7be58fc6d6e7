"""What pretrained networks say of images: the metrics of `config.evaluation.feature_metrics`."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from etils import epath
from jaxtyping import UInt8

from sr3_jax.evaluation import classifier, features, perceptual, pretrained

Metric = Literal["fid", "lpips", "resnet50"]
# What FID compares with: images, or a file of their statistics.
FidReference = Iterable[UInt8[np.ndarray, "_h _w 3"]] | epath.PathLike
METRICS: tuple[str, ...] = get_args(Metric)


@dataclasses.dataclass
class Judged:
    """What was measured.

    Attributes:
      means: by method and metric: `fid`, `is`, `lpips`, `top_1`, `top_5`; a row `reference` has
        those of the references, where they have any.
      of_images: by method and metric, one number an image; `fid` and `is` are of sets.
      protocol: how, a statement each.
    """

    means: dict[str, dict[str, float]]
    of_images: dict[str, dict[str, list[float]]]
    protocol: list[str]


def judge(
    metrics: Sequence[str],
    methods: Mapping[str, pretrained.Images],
    reference: pretrained.Images,
    *,
    labels: Sequence[int] = (),
    fid_reference: FidReference | None = None,
    weights: Mapping[str, str | None] | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Judged:
    """Scores each method's images, and the references themselves.

    Args:
      metrics: some of METRICS.
      methods: the images by name.
      reference: what each should be.
      labels: for `resnet50`; see `classifier.resnet50`.
      fid_reference: what `fid` compares with; None for `reference`. See `features.fid_and_is`.
      weights: files of weights, by metric; those that are missing or None are downloaded.
      progress: called after each image of each metric.

    Raises:
      ImportError: a library is not installed.
      FileNotFoundError: no such weights.
      OSError: weights could not be downloaded.
      ValueError: what does not fit; see the metrics.
    """
    weights = weights or {}
    rows = {"reference": reference, **methods}
    judged = Judged({name: {} for name in rows}, {name: {} for name in rows}, [])
    if "fid" in metrics:
        with tempfile.TemporaryDirectory() as folder:
            kept = fid_reference
            if not isinstance(kept, str | os.PathLike):
                # Once, for all methods.
                kept = os.path.join(folder, "references.npz")
                images = reference if fid_reference is None else fid_reference
                features.write_statistics(
                    images, kept, weights=weights.get("fid"), progress=progress
                )
            for name, images in rows.items():
                # Of the references with themselves it is 0.
                target = None if fid_reference is None and name == "reference" else kept
                found = features.fid_and_is(
                    images, target, weights=weights.get("fid"), progress=progress
                )
                judged.means[name] |= {key: found[key] for key in ("fid", "is") if key in found}
                judged.protocol += _said(found, name)
    if "lpips" in metrics:
        for name, images in methods.items():
            _add(
                judged,
                name,
                lpips=perceptual.lpips(
                    images, reference, weights=weights.get("lpips"), progress=progress
                ),
            )
        judged.protocol.append("LPIPS: version 0.1, VGG16, by torch-fidelity, at the images' size.")
    if "resnet50" in metrics:
        for name, images in rows.items():
            found = classifier.resnet50(
                images, labels, weights=weights.get("resnet50"), progress=progress
            )
            _add(judged, name, **found)
        judged.protocol.append("ResNet-50: keras.applications, on the images as they are, 224x224.")
    return dataclasses.replace(judged, means={k: row for k, row in judged.means.items() if row})


def num_steps(metrics: Sequence[str], num_methods: int, num_images: int) -> int:
    """How often `judge` calls its `progress`, where FID's references are the images' own."""
    each = {
        "fid": (num_methods + 2) * num_images,
        "lpips": num_methods * num_images,
        "resnet50": (num_methods + 1) * num_images,
    }
    return sum(each[metric] for metric in metrics)


def _add(judged: Judged, name: str, **of_images: list[float]) -> None:
    for metric, values in of_images.items():
        judged.of_images[name][metric] = values
        judged.means[name][metric] = float(np.mean(values))


def _said(found: Mapping[str, Any], name: str) -> list[str]:
    said = [
        f"FID and IS of {name}: " + "; ".join(f"{k}: {v}" for k, v in found["protocol"].items())
    ]
    return said + ([f"FID and IS of {name} are {found['warning']}."] if "warning" in found else [])
