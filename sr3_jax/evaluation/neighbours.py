"""The training images that generated ones are nearest to, so that copies would be seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float, UInt8

from sr3_jax.data import degrade
from sr3_jax.evaluation.report import grids

_SIDE = 32  # pixels at which images are compared, at most
_NEAREST = 3
_ROWS = 8  # of the picture


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What generated images are near to.

    Attributes:
      images: generated.
      nearest: of each the nearest training images.
      distance: root mean square differences to those, in levels of 255.
      held_out_distance: of held-out images to the nearest training image of each: how near images
        come that are certainly no copies.
      num_shown: training images that were compared with.
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
        """The images with the least distances, and what they are nearest to."""
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
    """Compares images with those of a training, pixel by pixel, at 32 pixels at most.

    Args:
      images: generated; like all here of 8 bits.
      shown: batches of training images; once through.
      held_out: images that were not trained on, to judge distances by.
      mirror: training images count as they are and mirrored.

    Raises:
      ValueError: there is no training image.
    """
    wanted = np.concatenate([_small(images), _small(held_out)])
    count, num_shown = len(wanted), 0
    distance = np.full((count, _NEAREST), np.inf, np.float32)
    nearest = np.zeros((count, _NEAREST, *images.shape[1:]), np.uint8)
    for batch in _with_mirrored(shown, mirror):
        num_shown += len(batch)
        small = _small(batch)
        squared = (wanted**2).mean(1)[:, None] + (small**2).mean(1)
        squared = squared - 2 / wanted.shape[1] * (wanted @ small.T)
        found = np.sqrt(np.maximum(squared, 0))
        # Those known and those new, of which the nearest stay.
        everything = np.concatenate([distance, found], axis=1)
        best = np.argsort(everything, axis=1, kind="stable")[:, :_NEAREST]
        distance = np.take_along_axis(everything, best, axis=1)
        kept = np.take_along_axis(
            nearest, np.minimum(best, _NEAREST - 1)[..., None, None, None], axis=1
        )
        new = batch[np.maximum(best - _NEAREST, 0)]
        nearest = np.where((best < _NEAREST)[..., None, None, None], kept, new)
    if not num_shown:
        raise ValueError("there is no training image to compare with")
    ours = slice(len(images))
    num_shown //= 2 if mirror else 1
    return Comparison(images, nearest[ours], distance[ours], distance[len(images) :, 0], num_shown)


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
