"""Metrics of several samples of each image: the energy score and their diversity."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, UInt

from sr3_jax import image_ops

Images = UInt[Array | np.ndarray, "b h w c"]
Samples = UInt[Array | np.ndarray, "k b h w c"]

_PATCH = 7  # pixels a side
_SMALLEST = 16  # side of the coarsest level, at least


def energy_score(samples: Samples, reference: Images) -> dict[int, float]:
    """Energy score of patches, by the shorter side of each level of a Laplacian pyramid.

    For samples s, s' of an image and its truth y, the mean of |s - y| - |s - s'| / 2 (Gneiting and
    Raftery 2007, section 4.3). It is proper: no sampler scores better, on average, than one that
    draws from the true distribution given the input. Blur is far from the truth, and needless noise
    is, too, while samples that differ as much as they are wrong are not held to be wrong. Distances
    are root mean squares over each patch of 7x7 pixels, divided by the reference's deviation on the
    level; so each level counts, and so does local texture. Lower is better. It takes at least two
    samples, else it raises ValueError; the largest level shows the finest detail.
    """
    if len(samples) < 2:
        raise ValueError(f"{len(samples)} sample of each image; the energy score takes two or more")
    levels = [_laplacian(image_ops.to_signed(a)) for a in (reference, *samples)]
    scores = {}
    for truth, *drawn in zip(*levels, strict=True):
        wrong = np.mean([_distance(one, truth).mean() for one in drawn])
        pairs = itertools.combinations(drawn, 2)
        apart = np.mean([_distance(one, two).mean() for one, two in pairs])
        scores[min(truth.shape[1:3])] = float((wrong - apart / 2) / (truth.std() + 1e-6))
    return scores


def mean_energy_score(samples: Samples, reference: Images) -> float:
    """The mean of `energy_score` over the levels of the pyramid; lower is better."""
    return float(np.mean([*energy_score(samples, reference).values()]))


def energy_scores(samples: Samples, reference: Images) -> Float64[np.ndarray, " b"]:
    """The `mean_energy_score` of each image by itself; lower is better."""
    of_one = (slice(i, i + 1) for i in range(len(reference)))
    return np.array([mean_energy_score(samples[:, one], reference[one]) for one in of_one])


def energy_loss(
    one: Float[Array, "b h w c"],
    other: Float[Array, "b h w c"],
    truth: Float[Array, "b h w c"],
) -> Float[Array, " b"]:
    """The energy score of two samples of each image, to be differentiated by them.

    It is `mean_energy_score`, where all levels are divided by the deviation of all images of the
    batch. All are in [-1, 1].
    """
    scores = []
    for a, b, y in zip(*map(_laplacian, (one, other, truth)), strict=True):
        scores.append(_score_of_two(a, b, y) / (y.std() + 1e-6))
    return jnp.mean(jnp.stack(scores), axis=0)


def source_loss(
    one: Float[Array, "b h w c"],
    other: Float[Array, "b h w c"],
    truth: Float[Array, "b h w c"],
    source_size: tuple[int, int],
) -> Float[Array, " b"]:
    """The energy score of two samples of each image, downsampled to the source's size.

    The source shows the truth in that size. Samples that differ there, or differ from the source,
    are therefore wrong. The unit is the deviation of the detail that the source lacks: the truth
    less its downsampled and upsampled copy. All are in [-1, 1].
    """
    small = [image_ops.resize_bicubic(each, source_size) for each in (one, other, truth)]
    detail = truth - image_ops.resize_bicubic(small[-1], truth.shape[1:3])
    return _score_of_two(*small) / (detail.std() + 1e-6)


def _score_of_two(
    a: Float[Array, "b h w c"], b: Float[Array, "b h w c"], truth: Float[Array, "b h w c"]
) -> Float[Array, " b"]:
    # The root has no slope at 0, where two patches are the same.
    wrong = _distance(a, truth, 1e-12) + _distance(b, truth, 1e-12)
    return (wrong - _distance(a, b, 1e-12)) / 2


def diversity(samples: UInt[np.ndarray, "k b h w c"]) -> Float64[np.ndarray, " b"]:
    """The standard deviation between samples in levels of 255, averaged over pixels."""
    deviation = samples.std(axis=0, ddof=1, dtype=np.float64).mean(axis=(1, 2, 3))
    return deviation * 255 / np.iinfo(samples.dtype).max


def _laplacian(images: Float[Array, "b h w c"]) -> list[Float[Array, "b h2 w2 c"]]:
    """Differences between octaves, and at last the coarsest octave itself."""
    levels = []
    while min(images.shape[1:3]) >= 2 * _SMALLEST:
        b, height, width, c = images.shape
        small = jax.image.resize(images, (b, height // 2, width // 2, c), "linear")
        levels.append(images - jax.image.resize(small, images.shape, "linear"))
        images = small
    return [*levels, images]


@functools.partial(jax.jit, static_argnames="added")
def _distance(
    a: Float[Array, "b h w c"], b: Float[Array, "b h w c"], added: float = 0.0
) -> Float[Array, " b"]:
    """Root mean square difference of a patch, the mean over all patches of an image.

    An image smaller than a patch, as a source may be, is one patch in that direction.
    """
    square = jnp.square(a - b).mean(-1)
    height, width = (min(_PATCH, side) for side in square.shape[1:])
    sums = jax.lax.reduce_window(square, 0.0, jax.lax.add, (1, height, width), (1, 1, 1), "VALID")
    return jnp.sqrt(sums / (height * width) + added).mean(axis=(1, 2))
