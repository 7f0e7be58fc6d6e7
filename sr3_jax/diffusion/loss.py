"""The denoising objective (Eq. 6 of SR3), the distribution of its noise, and its weightings.

The loss of an example is the mean over pixels of f |prediction - target|^p, with p = 1 (SR3's) or
2, and f = 1 (SR3's) or a factor that depends on the noise. A weighting W of the squared error of
y_0 is, by Eq. 2 of `parameterization`, f = W / SNR for `eps`, W / (SNR + 1) for `v`, and W for
`y_0`, so that the loss does not depend on the prediction type. With p = 1 the factor is the root of
that, for the same reason. With lambda = log SNR,

    min_snr   W = min(SNR, 5)                  Hang et al. 2023, "Efficient Diffusion Training via
                                               Min-SNR Weighting Strategy"
    sigmoid   W = SNR sigmoid(2 - lambda)      Kingma and Gao 2023, "Understanding Diffusion
                                               Objectives as the ELBO with Simple Data Augmentation"

The latter weighs an integral over lambda, and training draws lambda with a density p. So the
factor of `sigmoid` is divided by p(lambda), after the root: the mean is the integral, whatever the
noise schedule. That of `min_snr` is not divided, as its authors have it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from sr3_jax.diffusion import process
from sr3_jax.diffusion.parameterization import Prediction
from sr3_jax.diffusion.schedule import NoiseSchedule

LossName = Literal["l1", "l2"]

# W by the signal-to-noise ratio, and whether the factor is divided by p(lambda).
LOSS_WEIGHTS = {
    "none": None,
    "min_snr": (lambda snr: jnp.minimum(snr, 5.0), False),
    "sigmoid": (lambda snr: snr * jax.nn.sigmoid(2.0 - jnp.log(snr)), True),
}
# Weight of the variational bound beside the denoising loss (Nichol and Dhariwal 2021, section 3.1).
# The bound is a sum over T steps, so the term of one drawn step counts T times.
_OF_BOUND = 1e-3
_BELOW_1 = 1.0 - 2.0**-24  # the largest float32 below 1


def sample_gamma(keys: Key[Array, " b"], schedule: NoiseSchedule | None) -> Float[Array, " b"]:
    """Draws one gamma for each key from SR3's piecewise uniform density (section 2.4).

    t is uniform in 1..T, then gamma is uniform in [gamma_t, gamma_{t-1}]; drawn for each
    example on its own. Without a schedule, as of a regression, gamma is 0.
    """
    if schedule is None:
        return jnp.zeros(keys.shape)
    gammas = jnp.asarray(schedule.gamma)

    def one(key: Key[Array, ""]) -> Float[Array, ""]:
        key_t, key_u = jax.random.split(key)
        t = jax.random.randint(key_t, (), 1, schedule.num_steps + 1)
        u = jax.random.uniform(key_u, (), gammas.dtype)
        return gammas[t] + u * (gammas[t - 1] - gammas[t])

    return jax.vmap(one)(keys)


def sample_time(keys: Key[Array, " b"], schedule: NoiseSchedule) -> Int[Array, " b"]:
    """Draws t, uniform in 1..T, for each key."""
    return jax.vmap(lambda key: jax.random.randint(key, (), 1, schedule.num_steps + 1))(keys)


class Reverse(NamedTuple):
    """The step from y_t to y_{t-1}, of whose variance the bound is; for each example.

    Attributes:
      from_y_0: weight of y_0 in the mean.
      log_small, log_large: logarithms of the variances of `samplers.ancestral`; at t = 1, where
        `fixed_small` is 0, that of t = 2 in its place.
      is_last: whether t is 1.
      factor: factor of the bound's term in the loss.
    """

    from_y_0: Float[Array, " b"]
    log_small: Float[Array, " b"]
    log_large: Float[Array, " b"]
    is_last: Bool[Array, " b"]
    factor: float


def reverse_at(schedule: NoiseSchedule, t: Int[Array, " b"]) -> Reverse:
    """Returns the steps from t of a schedule with concrete arrays."""
    from_y_0, _, small = process.posterior_coefficients(schedule)
    large = np.asarray(schedule.beta)
    small[1] = small[2] if schedule.num_steps > 1 else large[1]
    with np.errstate(divide="ignore"):  # of entry 0, which means nothing
        tables = (from_y_0, np.log(small), np.log(large))
    found = (jnp.asarray(table)[t] for table in tables)
    return Reverse(*found, t == 1, _OF_BOUND * schedule.num_steps)


def variational_bound(
    y_0: Float[Array, "b ..."],
    estimate: Float[Array, "b ..."],
    share: Float[Array, "b ..."],
    reverse: Reverse,
    levels: int = 255,
) -> Float[Array, " b"]:
    """The term of t of the variational bound, in bits for each value (Nichol and Dhariwal 2021).

    For t > 1 it is the divergence of q(y_{t-1} | y_0, y_t) from the reverse step, both Gaussian
    (their Eq. 6), with the variance between the two of `samplers.ancestral`; for t = 1 minus the
    log-likelihood of the pixel's level (their Eq. 5, as in DDPM).

    Args:
      y_0: images in [-1, 1].
      estimate: of y_0, of which the bound has no gradient.
      share: where the variance lies, 0: `fixed_small`, 1: `fixed_large`.
      reverse: the step.
      levels: greatest level of the images.
    """
    at = jax.tree.map(lambda values: process.per_example(values, y_0), reverse[:4])
    from_y_0, log_small, log_large, is_last = at
    log_variance = log_small + share * (log_large - log_small)
    error = y_0 - jax.lax.stop_gradient(estimate)
    distance = jnp.square(from_y_0 * error)
    divergence = 0.5 * (
        log_variance
        - log_small
        - 1.0
        + jnp.exp(log_small - log_variance)
        + distance * jnp.exp(-log_variance)
    )
    # The level's share of the Gaussian, whose outermost levels have all that lies beyond.
    std, half = jnp.exp(0.5 * log_variance), 1.0 / levels
    above = jnp.where(y_0 > 1.0 - half, jnp.inf, (error + half) / std)
    below = jnp.where(y_0 < -1.0 + half, -jnp.inf, (error - half) / std)
    # By the tail that both are in, since a difference near 1 would lose its digits.
    is_right = error > 0
    inner = jnp.where(is_right, -below, above), jnp.where(is_right, -above, below)
    mass = jax.scipy.stats.norm.cdf(inner[0]) - jax.scipy.stats.norm.cdf(inner[1])
    of_level = -jnp.log(jnp.maximum(mass, 1e-12))
    bits = jnp.where(is_last, of_level, divergence) / jnp.log(2.0)
    return jnp.mean(bits, axis=tuple(range(1, bits.ndim)))


def log_snr_density(gamma: Float[Array, " b"], schedule: NoiseSchedule) -> Float[Array, " b"]:
    """Returns p(lambda), lambda = log(gamma / (1 - gamma)), for gamma as `sample_gamma` draws it.

    p(gamma) = 1 / (T (gamma_{t-1} - gamma_t)) between knots, and d gamma / d lambda =
    gamma (1 - gamma).
    """
    knots, beta = jnp.asarray(schedule.gamma), jnp.asarray(schedule.beta)
    last = schedule.num_steps
    t = last + 1 - jnp.searchsorted(knots[::-1], gamma, side="right")
    t = jnp.clip(t, 1, last)
    width = beta[t] * knots[t - 1]  # without the cancellation of a difference near gamma = 1
    return gamma * (1.0 - gamma) / (last * width)


def weigh(
    weighting: str,
    prediction: Prediction,
    gamma: Float[Array, " b"],
    schedule: NoiseSchedule | None,
    loss: LossName,
) -> Float[Array, " b"] | None:
    """Returns each example's factor of the loss (`LOSS_WEIGHTS`); None for 1.

    `gamma` was drawn by `sample_gamma` from the schedule.
    """
    if LOSS_WEIGHTS[weighting] is None:
        return None
    weight_of, is_integral = LOSS_WEIGHTS[weighting]
    # gamma may have been rounded to 1, where SNR is infinite.
    gamma = jnp.minimum(gamma, _BELOW_1)
    factor = weight_of(gamma / (1.0 - gamma)) * jnp.square(prediction.error_of_y_0(gamma))
    factor = jnp.sqrt(factor) if loss == "l1" else factor
    return factor / log_snr_density(gamma, schedule) if is_integral else factor


def denoising_loss(
    prediction: Float[Array, "b ..."],
    target: Float[Array, "b ..."],
    loss: LossName = "l1",
    weight: Float[Array, " b"] | None = None,
    factor: Float[Array, " b"] | None = None,
    mask: Bool[Array, "b ..."] | None = None,
) -> Float[Array, ""]:
    """Mean over examples and pixels of |prediction - target|^p (Eq. 6): p = 1 `l1`, p = 2 `l2`.

    Each example's loss is multiplied by its `factor` (`weigh`). The mean is over `weight`, 0 for
    rows that hold no image; it is 0 where all weights are. None counts every example alike. The
    mean over pixels is over those of the `mask`; an example without one does not count.
    """
    if loss not in ("l1", "l2"):
        raise ValueError(f"loss = {loss!r} is unknown; use 'l1' or 'l2'")
    error = (prediction - target).astype(jnp.float32)
    error = jnp.abs(error) if loss == "l1" else jnp.square(error)
    within = tuple(range(1, error.ndim))
    if mask is None:
        each = jnp.mean(error, axis=within)
    else:
        count = jnp.sum(mask, axis=within)
        each = jnp.sum(jnp.where(mask, error, 0.0), axis=within) / jnp.maximum(count, 1)
        weight = (count > 0) * (1.0 if weight is None else weight)
    if factor is not None:
        each = each * factor
    return jnp.mean(each) if weight is None else mean_over_images(each, weight)


def mean_over_images(each: Float[Array, " b"], weight: Float[Array, " b"]) -> Float[Array, ""]:
    """Mean over rows by their weight, 0 for rows that hold no image; 0 where all weights are."""
    return jnp.sum(each * weight) / jnp.maximum(jnp.sum(weight), 1e-8)
