"""Distillation: what one call of a student has to estimate to do the work of several calls.

A sampler is linear in the estimates of y_0 (`samplers`). From a state y, its next k rows with the
estimates D_1 ... D_k lead to

    A y + sum_j w_j D_j + noise.                                                               (1)

With one estimate D in place of all, that is A y + (sum_j w_j) D + noise: the k rows merged into
one. So the student's call leads to where the k calls of the teacher lead if it estimates

    D* = sum_j w_j D_j / sum_j w_j,                                                            (2)

the mean of the teacher's estimates on its way, weighted as they count. For `ddim` with k = 2, Eq. 2
is the target of Salimans and Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion
Models", section 3 and appendix G, without their division of differences.

Rows of `ddim` and `dpmpp_2m` with eta = 0, merged, are those of `ddim` on the schedule that has
every k-th time; with eta = 1, where rows draw noise, they are those of `ddim` with eta = 1. The
teacher's noise of the rows between is not an input of the student, whose squared error then leads
to the mean of D* over it: the student of such a teacher varies less.

The truth enters by `samplers.way_back`, as in SinSR (Wang et al. 2024, section 3.3): an image with
the least noise of the schedule is led to the noise that the teacher would make it from, and the
student's last call has to lead from there to the image itself. SinSR trains the network for the way
back; here the teacher's own equation is solved from the other end.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from sr3_jax.diffusion.loss import LossName
from sr3_jax.diffusion.parameterization import Prediction
from sr3_jax.diffusion.process import per_example
from sr3_jax.diffusion.samplers import Sampler
from sr3_jax.diffusion.sampling import Denoise


def segments(teacher: Sampler, num_calls: int) -> Sampler:
    """Divides the rows of a teacher's sampler among the calls of a student.

    Args:
      teacher: a sampler of one call a step, with concrete arrays.
      num_calls: calls of the student.

    Returns:
      The sampler with arrays `[num_calls, k]`. The first row of a segment does not look back, since
      the student starts there from a state alone.

    Raises:
      ValueError: the teacher's calls cannot be divided so, or it uses states before the last.
    """
    if np.any(teacher.previous_state):
        raise ValueError("a sampler of two calls a step cannot be distilled; use ddim or dpmpp_2m")
    if num_calls < 1 or teacher.nfe % num_calls:
        raise ValueError(
            f"{teacher.nfe} calls of a teacher cannot be divided among {num_calls} of a student; "
            "use a divisor"
        )
    of_segments = jax.tree.map(lambda a: np.reshape(a, (num_calls, -1)).copy(), teacher)
    of_segments.estimate[:, 0] += of_segments.previous_estimate[:, 0]
    of_segments.previous_estimate[:, 0] = 0.0
    return dataclasses.replace(of_segments, looks_back=bool(of_segments.previous_estimate.any()))


def with_way_back(of_segments: Sampler, back: Sampler) -> Sampler:
    """Adds a last segment: the rows of `samplers.way_back`, of as many as a segment has."""
    joined = dataclasses.replace(
        back, is_stochastic=of_segments.is_stochastic, looks_back=of_segments.looks_back
    )
    return jax.tree.map(lambda a, b: np.concatenate([a, b[None]]), of_segments, joined)


class Way(NamedTuple):
    """Where a segment leads.

    Attributes:
      y_t: the state at its end.
      estimate: D* of Eq. 2, from its start to its end.
    """

    y_t: Float[Array, "b ..."]
    estimate: Float[Array, "b ..."]


class _Sums(NamedTuple):
    """A state, the sums of Eq. 2 so far, and the estimate of the call before."""

    y_t: Float[Array, "b ..."]
    weighted: Float[Array, "b ..."]
    weight: Float[Array, "b ..."]
    estimate: Float[Array, "b ..."]


def follow(
    denoise: Denoise,
    of_segments: Sampler,
    segment: Int[Array, " b"],
    y_t: Float[Array, "b ..."],
    keys: Key[Array, " b"],
    *,
    clip: bool = True,
) -> Way:
    """Goes through a segment, calling the teacher k times.

    Args:
      denoise: the teacher, as in `sample`.
      of_segments: its rows, from `segments`.
      segment: index of the student's call, from 0 at pure noise, for each example.
      y_t: the state at that call, of noise `of_segments.gamma[segment, 0]`.
      keys: one random key for each example, for teachers that draw noise.
      clip: clip the teacher's estimates to [-1, 1], as in `sample`.
    """
    rows = jax.tree.map(lambda a: jnp.asarray(a)[segment].T, of_segments)  # [k, b]

    def step(way: _Sums, row: Sampler) -> tuple[_Sums, None]:
        state, new, before, noise = (
            per_example(weights, y_t)
            for weights in (row.state, row.estimate, row.previous_estimate, row.noise)
        )
        estimate = denoise(way.y_t, row.gamma).astype(y_t.dtype)
        if clip:
            estimate = jnp.clip(estimate, -1.0, 1.0)
        step_weighted = new * estimate + before * way.estimate
        after = state * way.y_t + step_weighted
        if row.is_stochastic:
            drawn = jax.vmap(
                lambda key, t: jax.random.normal(jax.random.fold_in(key, t), y_t.shape[1:])
            )
            after += noise * drawn(keys, row.time)
        return _Sums(
            after,
            state * way.weighted + step_weighted,
            state * way.weight + new + before,
            estimate,
        ), None

    nothing = jnp.zeros_like(y_t)
    start = _Sums(y_t, nothing, jnp.zeros_like(per_example(rows.state[0], y_t)), nothing)
    way, _ = jax.lax.scan(step, start, rows)
    return Way(way.y_t, way.weighted / way.weight)


def factor(
    prediction: Prediction, gamma: Float[Array, " b"], sigma_data: float, loss: LossName
) -> Float[Array, " b"]:
    """Returns the factor of the loss by which a preconditioned network's output counts alike.

    The squared error of y_0 has the weight SNR + 1 / sigma_data^2 (Karras et al. 2022, Table 1),
    with 1 in place of a `sigma_data` of 0: SNR + 1, that of v-prediction (Salimans and Ho 2022).
    So pure noise counts, which an error of eps hardly does.
    """
    weight = gamma / (1.0 - gamma) + 1.0 / (sigma_data or 1.0) ** 2
    squared = weight * jnp.square(prediction.error_of_y_0(gamma))
    return jnp.sqrt(squared) if loss == "l1" else squared
