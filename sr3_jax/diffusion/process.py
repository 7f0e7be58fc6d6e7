"""The forward process and its posterior.

Shapes: images are `[batch, ...]`; `gamma` is one number for each example, in (0, 1].
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from sr3_jax.diffusion.schedule import NoiseSchedule


def per_example(values: Shaped[Array, " b"], like: Float[Array, "b ..."]) -> Shaped[Array, "b ..."]:
    """Reshapes `[b]` to `[b, 1, ..., 1]`, to broadcast over the trailing axes of `like`."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def diffuse(
    y_0: Float[Array, "b ..."], gamma: Float[Array, " b"], eps: Float[Array, "b ..."]
) -> Float[Array, "b ..."]:
    """Draws from q(y_t | y_0): `sqrt(gamma) y_0 + sqrt(1 - gamma) eps` (Eq. 4 of SR3)."""
    gamma = per_example(gamma, y_0)
    return jnp.sqrt(gamma) * y_0 + jnp.sqrt(1.0 - gamma) * eps


def posterior_coefficients(
    schedule: NoiseSchedule,
) -> tuple[Float[np.ndarray, " knots"], Float[np.ndarray, " knots"], Float[np.ndarray, " knots"]]:
    """For each t: weights of y_0 and y_t in the mean of q(y_{t-1} | y_0, y_t), variance (Eq. 5).

    Of a schedule whose arrays are concrete. Entry 0 is meaningless and set to 0. At t = 1 the
    posterior is y_0 itself.
    """
    beta, gamma, noise = (
        np.asarray(a, np.float64) for a in (schedule.beta, schedule.gamma, schedule.one_minus_gamma)
    )
    from_y_0 = np.sqrt(gamma[:-1]) * beta[1:] / noise[1:]
    from_y_t = np.sqrt(1.0 - beta[1:]) * noise[:-1] / noise[1:]
    variance = noise[:-1] * beta[1:] / noise[1:]
    return tuple(np.append(0.0, c).astype(np.float32) for c in (from_y_0, from_y_t, variance))
