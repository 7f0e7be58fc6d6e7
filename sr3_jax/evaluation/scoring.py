"""Scores of images that any program made: folders of files, matched by name.

Files are read at their own depth, and values count as shares of the largest of it: of an 8-bit
output and a 16-bit reference as if the output were multiplied by 257.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sr3_jax.data import folders, pairs, sources
from sr3_jax.data.image_files import BadImageError, Pixels
from sr3_jax.evaluation import evaluator
from sr3_jax.evaluation.outputs import Upsampled
from sr3_jax.evaluation.pretrained.common import Images

_MOST_NAMED = 100


class Scores(NamedTuple):
    """What was measured.

    Attributes:
      means: by method and metric (`psnr`, `ssim`, `consistency`), and `n`, the number of images.
      names: of the images, in order.
      of_images: by method and metric, one number for each image.
      images: `reference`, `input` (with low resolutions) and each method's, read when asked for.
      labels: of the references' classes; `data.sources.NO_LABEL` where there is none.
      bits: depths of the files read, by method, `reference` and `input`.
    """

    means: dict[str, dict[str, float]]
    names: list[str]
    of_images: dict[str, dict[str, list[float]]]
    images: dict[str, Images]
    labels: list[int]
    bits: dict[str, list[int]]


class Read(Sequence):
    """Images of a source."""

    def __init__(self, source: sources.Source) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, position: int) -> Pixels:
        return self._source[position].read().image


def score_folders(
    reference: folders.Folder,
    outputs: Mapping[str, folders.Folder],
    low_resolution: folders.Folder | None = None,
    *,
    luminance: bool = False,
    border: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> Scores:
    """Scores each image of each method; those of one name belong together.

    Args:
      reference: what the images should be.
      outputs: by the name of the method.
      low_resolution: what they were made from; with it consistency is scored, too, and bicubic
        upsampling as a method of its own.
      luminance: see `evaluator.evaluate`.
      border: see there.
      progress: called after each image.

    Raises:
      ValueError: images without a partner, of another size than their reference, or that cannot be
        read, each named; or a method that is called bicubic.
    """
    if low_resolution is not None and "bicubic" in outputs:
        raise ValueError("'bicubic' is made from the low resolutions; call the method otherwise")
    for reserved in {"input", "reference"} & outputs.keys():
        raise ValueError(f"{reserved!r} is what the pictures are called; call the method otherwise")
    given = {"reference": reference, **outputs}
    if low_resolution is not None:
        given["input"] = low_resolution
    matched = dict(zip(given, pairs.match(*given.values()), strict=True))
    methods = [*outputs] if low_resolution is None else ["bicubic", *outputs]
    of_images: dict[str, dict[str, list[float]]] = {method: {} for method in methods}
    names, labels, wrong = [], [], []
    bits: dict[str, set[int]] = {name: set() for name in matched}
    for i in range(len(reference)):
        names.append(reference[i].name)
        try:
            pictures = {name: images[i].read() for name, images in matched.items()}
            labels.append(pictures["reference"].label)
            images = {name: picture.image for name, picture in pictures.items()}
            for name, image in images.items():
                bits[name].add(8 * image.itemsize)
            scores = _score_image(images, luminance, border)
        except ValueError as error:
            wrong.append(f"{names[-1]}: {error}")
        else:
            for method, metric in ((m, n) for m in methods for n in scores[m]):
                of_images[method].setdefault(metric, []).append(scores[method][metric])
        progress()
    if wrong:
        more = f"; and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        raise ValueError(
            f"{len(wrong)} of {len(names)} images cannot be scored: "
            + "; ".join(wrong[:_MOST_NAMED])
            + more
        )
    means = {
        method: {metric: float(np.mean(values)) for metric, values in by_metric.items()}
        | {"n": len(names)}
        for method, by_metric in of_images.items()
    }
    images = {name: Read(source) for name, source in matched.items()}
    if low_resolution is not None:
        images["bicubic"] = Upsampled(images["input"], images["reference"])
    depths = {name: sorted(found) for name, found in bits.items()}
    return Scores(means, names, of_images, images, labels, depths)


def _score_image(
    images: dict[str, np.ndarray], luminance: bool, border: int
) -> dict[str, dict[str, float]]:
    reference, low = images.pop("reference"), images.pop("input", None)
    for name, image in images.items():
        if image.shape != reference.shape:
            raise BadImageError(
                f"{_size(image)} by {name}, where the reference has {_size(reference)}"
            )
    if low is not None:
        images["bicubic"] = evaluator.resize(low, reference.shape[:2], reference.dtype)
    found = {}
    for name, image in images.items():
        scores = evaluator.score(
            image[None], reference[None], None if low is None else low[None], luminance, border
        )
        found[name] = {metric: of_image[0] for metric, of_image in scores.items()}
    return found


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
