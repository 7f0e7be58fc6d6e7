"""The training images nearest to generated images, which show copies."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float, UInt8

from sr3_jax.data import degrade
from sr3_jax.evaluation.report import grids

_SIDE = 32  # most pixels a side at which images are compared
_NEAREST = 3
_ROWS = 8  # of the picture


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Distances of generated images to training images.

    Attributes:
      images: the generated images.
      nearest: training images nearest to each.
      distance: root mean square differences to those, in levels of 255.
      held_out_distance: from each held-out image to its nearest training image, as a measure of
        images that are no copies.
      num_shown: number of training images.
    """

    images: UInt8[np.ndarray, "n size size 3"]
    nearest: UInt8[np.ndarray, "n k size size 3"]
    distance: Float[np.ndarray, "n k"]
    held_out_distance: Float[np.ndarray, " m"]
    num_shown: int

    def __str__(self) -> str:
        ours, theirs = (np.median(d) for d in (self.distance[:, 0], self.held_out_distance))
        return (
            f"nearest of {self.num_shown} training images, root mean square difference in levels "
            f"of 255: median {ours:.1f} of {len(self.images)} generated images (least "
            f"{self.distance[:, 0].min():.1f}), {theirs:.1f} of {len(self.held_out_distance)} "
            f"held-out ones (least {self.held_out_distance.min():.1f}); copies would be near 0"
        )

    def picture(self) -> UInt8[np.ndarray, "h w 3"]:
        """Draws the images with the least distances beside the images nearest to them."""
        order = np.argsort(self.distance[:, 0], kind="stable")[:_ROWS]
        columns = {"generated": self.images[order]}
        for rank in range(self.nearest.shape[1]):
            title = "nearest" if rank == 0 else f"{rank + 1}."
            columns[title] = self.nearest[order, rank]
        names = [", ".join(f"{d:.0f}" for d in self.distance[i]) + " levels" for i in order]
        return grids.grid(columns, names)


def compare(
    images: UInt8[np.ndarray, "n size size 3"],
    shown: Iterable[UInt8[np.ndarray, "_batch size size 3"]],
    held_out: UInt8[np.ndarray, "m size size 3"],
    *,
    mirror: bool = False,
) -> Comparison:
    """Compares images with training images by their pixels, at 32 pixels a side at most.

    Args:
      images: generated.
      shown: batches of training images.
      held_out: images that were not trained on.
      mirror: whether training images are also compared mirrored.

    Raises:
      ValueError: there is no training image.
    """
    wanted = np.concatenate([_small(images), _small(held_out)])
    num_shown = 0
    distance = np.full((len(wanted), _NEAREST), np.inf)
    number = np.zeros(distance.shape, int)  # of the nearest images, in the order of `shown`
    kept: dict[int, np.ndarray] = {}
    for batch in _with_mirrored(shown, mirror):
        small = _small(batch)
        # |a - b|^2 = |a|^2 + |b|^2 - 2ab, whose products BLAS computes.
        squared = (wanted**2).mean(1)[:, None] + (small**2).mean(1)
        squared -= 2 / wanted.shape[1] * (wanted @ small.T)
        found = np.sqrt(np.maximum(squared, 0))
        numbers = np.broadcast_to(num_shown + np.arange(len(batch)), found.shape)
        distance, number = (np.concatenate(p, 1) for p in ((distance, found), (number, numbers)))
        best = np.argsort(distance, axis=1, kind="stable")[:, :_NEAREST]
        distance, number = (np.take_along_axis(a, best, axis=1) for a in (distance, number))
        kept = {
            n: kept[n] if n < num_shown else batch[n - num_shown].copy()
            for n in np.unique(number).tolist()
        }
        num_shown += len(batch)
    if not num_shown:
        raise ValueError("there is no training image to compare with")
    n = len(images)
    nearest = np.array([[kept[k] for k in row] for row in number[:n].tolist()])
    num_shown //= 2 if mirror else 1
    return Comparison(images, nearest, distance[:n], distance[n:, 0], num_shown)


def _with_mirrored(
    batches: Iterable[UInt8[np.ndarray, "_batch size size 3"]], mirror: bool
) -> Iterator[UInt8[np.ndarray, "_batch size size 3"]]:
    for batch in batches:
        yield batch
        if mirror:
            yield batch[:, :, ::-1]


def _small(images: UInt8[np.ndarray, "n size size 3"]) -> Float[np.ndarray, "n pixels"]:
    images = degrade.by_area(images, min(images.shape[1], _SIDE))
    return images.reshape(len(images), -1).astype(np.float32)
