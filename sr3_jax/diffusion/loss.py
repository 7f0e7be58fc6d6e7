"""The denoising objective (Eq. 6 of SR3) and the distribution of its noise."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from sr3_jax.diffusion.schedule import NoiseSchedule

LossName = Literal["l1", "l2"]


def sample_gamma(keys: Key[Array, " b"], schedule: NoiseSchedule) -> Float[Array, " b"]:
    """Draws one gamma for each key from SR3's piecewise uniform density (section 2.4).

    t is uniform in 1..T, then gamma is uniform in [gamma_t, gamma_{t-1}]; drawn for each
    example on its own.
    """
    gammas = jnp.asarray(schedule.gamma)

    def one(key: Key[Array, ""]) -> Float[Array, ""]:
        key_t, key_u = jax.random.split(key)
        t = jax.random.randint(key_t, (), 1, schedule.num_steps + 1)
        u = jax.random.uniform(key_u, (), gammas.dtype)
        return gammas[t] + u * (gammas[t - 1] - gammas[t])

    return jax.vmap(one)(keys)


def denoising_loss(
    prediction: Float[Array, "b ..."],
    eps: Float[Array, "b ..."],
    loss: LossName = "l1",
    weight: Float[Array, " b"] | None = None,
) -> Float[Array, ""]:
    """Mean over examples and pixels of |prediction - eps|^p (Eq. 6): p = 1 `l1`, p = 2 `l2`.

    Args:
      prediction: the network's estimate of eps.
      eps: the noise that was added.
      loss: `l1` or `l2`.
      weight: one weight for each example, 0 for rows that hold no image. The mean is over
        the weights; it is 0 where all of them are 0. None counts every example alike.

    Raises:
      ValueError: for an unknown `loss`.
    """
    if loss not in ("l1", "l2"):
        raise ValueError(f"loss = {loss!r} is unknown; use 'l1' or 'l2'")
    error = (prediction - eps).astype(jnp.float32)
    error = jnp.abs(error) if loss == "l1" else jnp.square(error)
    each = jnp.mean(error, axis=tuple(range(1, error.ndim)))
    if weight is None:
        return jnp.mean(each)
    return jnp.sum(each * weight) / jnp.maximum(jnp.sum(weight), 1e-8)
