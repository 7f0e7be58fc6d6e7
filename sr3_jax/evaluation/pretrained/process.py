"""What pretrained networks say of images: the metrics of `config.evaluation.feature_metrics`."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
import tqdm
from jaxtyping import UInt

from sr3_jax import worker_processes
from sr3_jax.data import storage
from sr3_jax.evaluation.pretrained import common, inception, lpips, resnet50

METRICS = ("fid", "lpips", "resnet50")
MakeImages = Callable[[], Iterable[UInt[np.ndarray, "_h _w 3"]]]


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
    methods: Mapping[str, common.Images],
    reference: common.Images | None,
    *,
    labels: Sequence[int] = (),
    fid_reference: common.Images | str | None = None,
    make_fid_reference: MakeImages | None = None,
    weights: Mapping[str, str | None] | None = None,
) -> Judged:
    """Scores each method's images, and the references themselves; shows a bar.

    It runs in a process of its own, on the CPU and what torch finds: torch cannot be loaded after
    TensorFlow, which training loads for TensorBoard, and the devices here are taken. So arguments
    must be such that can be pickled.

    Args:
      metrics: some of METRICS.
      methods: the images by name.
      reference: what each should be; None for `fid` alone, with an `fid_reference`.
      labels: for `resnet50`; see `resnet50.resnet50`.
      fid_reference: what `fid` compares with: images, or a file of their statistics; None for
        `reference`.
      make_fid_reference: gives the images of that file where it does not exist yet.
      weights: files of weights, by metric; those that are missing or None are downloaded.

    Raises:
      ImportError: a library is not installed.
      FileNotFoundError: no such weights.
      OSError: weights could not be downloaded.
      ValueError: what does not fit; see the metrics.
    """
    with worker_processes.pool(1, _leave_devices) as pool:
        arguments = (metrics, methods, reference, labels, fid_reference, make_fid_reference)
        return pool.submit(_judge, *arguments, weights or {}).result()


def _leave_devices() -> None:
    jax.config.update("jax_platforms", "cpu")


def _judge(
    metrics: Sequence[str],
    methods: Mapping[str, common.Images],
    reference: common.Images | None,
    labels: Sequence[int],
    fid_reference: common.Images | str | None,
    make_fid_reference: MakeImages | None,
    weights: Mapping[str, str | None],
) -> Judged:
    rows = ({} if reference is None else {"reference": reference}) | dict(methods)
    judged = Judged({name: {} for name in rows}, {name: {} for name in rows}, [])
    if "fid" in metrics:
        _add_fid(judged, rows, fid_reference, make_fid_reference, weights.get("fid"))
    if "lpips" in metrics:
        for name, images in methods.items():
            with _bar(f"LPIPS of {name}", len(images)) as bar:
                distances = lpips.lpips(
                    images, reference, weights=weights.get("lpips"), progress=bar.update
                )
            _add(judged, name, lpips=distances)
        judged.protocol.append(
            "LPIPS: version 0.1, VGG16, by torch-fidelity, at the images' size, in 8 bits."
        )
    if "resnet50" in metrics:
        for name, images in rows.items():
            with _bar(f"ResNet-50 of {name}", len(images)) as bar:
                found = resnet50.resnet50(
                    images, labels, weights=weights.get("resnet50"), progress=bar.update
                )
            _add(judged, name, **found)
        judged.protocol.append(
            "ResNet-50: keras.applications, on the images as they are, 224x224, in 8 bits."
        )
    return dataclasses.replace(judged, means={k: row for k, row in judged.means.items() if row})


def _add_fid(
    judged: Judged,
    rows: Mapping[str, common.Images],
    fid_reference: common.Images | str | None,
    make_fid_reference: MakeImages | None,
    weights: str | None,
) -> None:
    common.libraries()  # torch comes first: images may be read by what loads TensorFlow
    with tempfile.TemporaryDirectory() as folder:
        kept = fid_reference if isinstance(fid_reference, str) else f"{folder}/references.npz"
        if kept is not fid_reference or (make_fid_reference and not storage.exists(kept)):
            # Once, for all methods.
            images = rows["reference"] if fid_reference is None else fid_reference
            images = make_fid_reference() if make_fid_reference else images
            with _bar("statistics of FID's references", None) as bar:
                inception.write_statistics(images, kept, weights=weights, progress=bar.update)
        for name, images in rows.items():
            # Of the references with themselves it is 0.
            target = None if fid_reference is None and name == "reference" else kept
            with _bar(f"FID of {name}", len(images)) as bar:
                found = inception.fid_and_is(images, target, weights=weights, progress=bar.update)
            judged.means[name] |= {key: found[key] for key in ("fid", "is") if key in found}
            how = "; ".join(f"{key}: {value}" for key, value in found["protocol"].items())
            judged.protocol.append(f"FID and IS of {name}: {how}.")
            if "warning" in found:
                judged.protocol.append(f"FID and IS of {name} are {found['warning']}.")


def _add(judged: Judged, name: str, **of_images: list[float]) -> None:
    for metric, values in of_images.items():
        judged.of_images[name][metric] = values
        judged.means[name][metric] = float(np.mean(values))


def _bar(name: str, total: int | None) -> tqdm.tqdm:
    return tqdm.tqdm(desc=name, total=total, unit="image", dynamic_ncols=True)
