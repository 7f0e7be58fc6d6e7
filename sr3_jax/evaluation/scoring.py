"""Scores of images that any program made, in folders of files that are matched by name.

Files are read at their own depth, and values are shares of its largest one: an 8-bit output scores
against a 16-bit reference as if it were multiplied by 257.
"""

from __future__ import annotations

import collections
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
    """Scores of folders.

    Attributes:
      means: means by method and metric, and `n`, the number of images.
      names: names of the images, in order.
      of_images: values by method and metric, one number for each image.
      images: `reference`, `input` (with low resolutions) and those of each method.
      labels: classes of the references; `data.sources.NO_LABEL` for none.
      bits: depths of the files, by the names of `images`.
    """

    means: dict[str, dict[str, float]]
    names: list[str]
    of_images: dict[str, dict[str, list[float]]]
    images: dict[str, Images]
    labels: list[int]
    bits: dict[str, list[int]]


class Read(Sequence):
    """The images of a source, each read when it is asked for."""

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
    """Scores each image of each method against the reference of its name.

    Args:
      reference: the references.
      outputs: outputs by the name of the method.
      low_resolution: inputs of the methods; with them consistency is scored, too, and bicubic
        upsampling as another method.
      luminance: see `evaluator.evaluate`.
      border: see `evaluator.evaluate`.
      progress: called after each image.

    Raises:
      ValueError: images have no partner, cannot be read, or have another size than their reference
        (each is named); or a method is called bicubic, input or reference.
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
    of_images = {method: collections.defaultdict(list) for method in methods}
    names, labels, wrong = [ref.name for ref in reference], [], []
    bits: dict[str, set[int]] = {name: set() for name in matched}
    for i, name in enumerate(names):
        try:
            pictures = {key: images[i].read() for key, images in matched.items()}
            labels.append(pictures["reference"].label)
            images = {key: picture.image for key, picture in pictures.items()}
            for key, image in images.items():
                bits[key].add(8 * image.itemsize)
            for method, scores in _score_image(images, luminance, border).items():
                for metric, (number,) in scores.items():
                    of_images[method][metric].append(number)
        except ValueError as error:
            wrong.append(f"{name}: {error}")
        progress()
    if wrong:
        more = f"; and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        raise ValueError(
            f"{len(wrong)} of {len(names)} images cannot be scored: "
            f"{'; '.join(wrong[:_MOST_NAMED])}{more}"
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
    numbers = {method: dict(by_metric) for method, by_metric in of_images.items()}
    return Scores(means, names, numbers, images, labels, depths)


def _score_image(
    images: dict[str, np.ndarray], luminance: bool, border: int
) -> dict[str, dict[str, list[float]]]:
    """Returns the scores of one image, in lists of one number, by method and metric."""
    reference, low = images.pop("reference"), images.pop("input", None)
    size = lambda image: f"{image.shape[1]}x{image.shape[0]}"  # noqa: E731
    for name, image in images.items():
        if image.shape != reference.shape:
            raise BadImageError(
                f"{size(image)} by {name}, where the reference has {size(reference)}"
            )
    if low is not None:
        images["bicubic"] = evaluator.resize(low, reference.shape[:2], reference.dtype)
    inputs = None if low is None else low[None]
    return {
        name: evaluator.score(image[None], reference[None], inputs, luminance, border)
        for name, image in images.items()
    }
