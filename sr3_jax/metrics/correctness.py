"""Improvement, omission and hallucination: what of the added detail is right, missing, or made up.

The definition is that of opensr-test (Aybar et al. 2024, IEEE GRSL 21; its program, version 1.3.3),
with its defaults. Distances are normalised differences of each pixel, |a - b| / (a + b), the mean
over channels, with values in [0, 1]:

    d_ref  of reference and input      d_im  of output and reference      d_om  of output and input

The input is upsampled by bilinear interpolation. Of the pixels only those count of which a distance
is above the third quartile of d_ref: where there is detail. With d_im and d_om divided by d_ref
there, the distances to three spaces are

    improvement    d_im + d_om (1 - exp(-g H))        H = d_im + d_om - 1, g = 0.05
    omission       d_om + d_im (1 - exp(-g H))
    hallucination  exp(-g d_im d_om)

and a softmin of temperature 0.25 makes shares of them, which add up to 1 in each pixel. An output
that equals the reference improves, one that equals the input omits, and one that is far from both
hallucinates.

opensr-test first matches the output's histogram with the reference's, and shifts it by up to five
pixels, since satellites' images come from two instruments. Here inputs are made of the references,
so an error of colour or place is the method's own, and nothing is matched. Nor are 16 pixels left
out at each border.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

from sr3_jax.metrics.full_reference import unit

Images = UInt[Array | np.ndarray, "b h w c"]
Inputs = UInt[Array | np.ndarray, "b h2 w2 c"]
PerImage = Float[Array, " b"]

_GAMMA, _TEMPERATURE, _QUANTILE = 0.05, 0.25, 0.75


def improvement(images: Images, reference: Images, low_resolution: Inputs) -> PerImage:
    """Share of detail that the input lacks and the output shows rightly; higher is better."""
    return _shares(images, reference, low_resolution)[0]


def omission(images: Images, reference: Images, low_resolution: Inputs) -> PerImage:
    """Share of detail that the reference has and the output, like the input, lacks."""
    return _shares(images, reference, low_resolution)[1]


def hallucination(images: Images, reference: Images, low_resolution: Inputs) -> PerImage:
    """Share of detail that the output shows, and neither input nor reference."""
    return _shares(images, reference, low_resolution)[2]


def _shares(images: Images, reference: Images, low_resolution: Inputs) -> Float[Array, "3 b"]:
    """Returns the three shares of each image; NaN for one without any detail."""
    made, truth, low = unit(images), unit(reference), unit(low_resolution)
    low = jax.image.resize(low, (len(low), *truth.shape[1:3], low.shape[-1]), "linear")
    d_ref, d_im, d_om = (
        jnp.mean(jnp.abs(a - b) / (a + b + 1e-8), axis=-1)
        for a, b in ((low, truth), (made, truth), (made, low))
    )
    ordered = jnp.sort(d_ref.reshape(len(d_ref), -1))
    threshold = ordered[:, int(_QUANTILE * ordered.shape[1]) - 1, None, None]
    counts = jnp.stack([d_ref, d_im, d_om]).max(axis=0) > threshold
    d_im, d_om = d_im / d_ref, d_om / d_ref
    grown = 1.0 - jnp.exp(-_GAMMA * (d_im + d_om - 1.0))
    distances = (d_im + d_om * grown, d_om + d_im * grown, jnp.exp(-_GAMMA * d_im * d_om))
    weights = jnp.exp(-jnp.stack(distances) / _TEMPERATURE)
    shares = weights / weights.sum(axis=0)
    # Where the input is right and the output is not, a distance is infinite: a hallucination. Where
    # both are right, it is 0 / 0.
    return jnp.nanmean(jnp.where(counts, shares, jnp.nan), axis=(2, 3))
