"""Parameterizations of the denoiser: what a network's output stands for, and its preconditioning.

**Forward process** (Eq. 4 of SR3). With alpha = sqrt(gamma) and sigma = sqrt(1 - gamma),

    y_t = alpha y_0 + sigma eps,    alpha^2 + sigma^2 = 1,    SNR = alpha^2 / sigma^2.         (1)

**Prediction types.** Given y_t, an estimate of y_0 is one of eps, and of any other combination of
the two but y_t itself:

    type   target                  y_0                          eps
    eps    eps                     (y_t - sigma eps) / alpha    eps
    v      alpha eps - sigma y_0   alpha y_t - sigma v          sigma y_t + alpha v
    y_0    y_0                     y_0                          (y_t - alpha y_0) / sigma

`eps` is SR3's (its Eq. 9 gives y_0; undefined at gamma = 0), `v` that of Salimans and Ho,
"Progressive Distillation for Fast Sampling of Diffusion Models", section 4 (defined everywhere).

**Errors.** By (1), two estimates that agree with one y_t differ along a single direction:

    (delta y_0, delta eps) is a multiple of (sigma, -alpha),                                   (2)

so that |delta eps|^2 = SNR |delta y_0|^2 and |delta v|^2 = (SNR + 1) |delta y_0|^2, which converts
a weighting of the loss from one type to another (`loss.weigh`).

**Preconditioning** (Karras et al. 2022, "Elucidating the Design Space", section 5, from the
upsampled source x instead of 0). Suppose that y_0 = x + sigma_data z with z standard normal. Then
y_t given x has the variance s^2 = alpha^2 sigma_data^2 + sigma^2, and given x and y_t

    E y_0 = x + c_skip (y_t - alpha x),    c_skip = alpha sigma_data^2 / s^2,
    E eps = sigma / s^2 (y_t - alpha x),                                                       (3)

with deviations from these means, by (2), of (sigma, -alpha) sigma_data / s times a standard normal
number. A preconditioned network F corrects the means in units of the deviation of its target:

    prediction = target(E y_0, E eps) + c_out F,
    c_out = sigma_data / s |target(sigma, -alpha)|: sigma_data / s times alpha, 1 or sigma     (4)

for `eps`, `v` or `y_0`. What F has to learn is then of size 1 at every gamma, and F = 0 takes x for
y_0 however strong the noise. In y_0, all types are D = x + c_skip (y_t - alpha x) + c_out F with
c_out = sigma sigma_data / s, but for the sign of F: for x = 0 EDM's, of y_t / alpha with noise
sigma / alpha. At gamma = 0, where y_t says nothing, D = x + sigma_data F: a regression.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from sr3_jax.diffusion.process import per_example

Images = Float[Array, "b ..."]
PerImage = Float[Array, " b"]
Formula = Callable[..., Images]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A prediction type: a row of the table above. Each formula also gets alpha and sigma.

    Attributes:
      name: as in `config.model.prediction`.
      formula: target of y_0 and eps, linear in both.
      y_0_formula: y_0 of the prediction and y_t.
      eps_formula: eps of the prediction and y_t.
    """

    name: str
    formula: Formula
    y_0_formula: Formula
    eps_formula: Formula

    def target(self, y_0: Images, eps: Images, gamma: PerImage) -> Images:
        """Returns what the prediction should be, for y_t = `diffuse(y_0, gamma, eps)`."""
        return self.formula(y_0, eps, *_alpha_sigma(gamma, y_0))

    def to_y_0(self, prediction: Images, y_t: Images, gamma: PerImage) -> Images:
        """Converts a prediction to an estimate of y_0; of `eps` finite for gamma > 0 only."""
        return self.y_0_formula(prediction, y_t, *_alpha_sigma(gamma, y_t))

    def to_eps(self, prediction: Images, y_t: Images, gamma: PerImage) -> Images:
        """Converts a prediction to an estimate of eps; of `y_0` finite for gamma < 1 only."""
        return self.eps_formula(prediction, y_t, *_alpha_sigma(gamma, y_t))

    def error_of_y_0(self, gamma: PerImage) -> PerImage:
        """Returns delta y_0 where the prediction is wrong by 1: the slope of `to_y_0`."""
        return self.to_y_0(jnp.ones_like(gamma), jnp.zeros_like(gamma), gamma)


# A new type is one entry here: config, training and sampling follow.
PREDICTIONS = {
    prediction.name: prediction
    for prediction in (
        Prediction(
            "eps",
            lambda y_0, eps, alpha, sigma: eps,
            lambda eps, y_t, alpha, sigma: (y_t - sigma * eps) / alpha,
            lambda eps, y_t, alpha, sigma: eps,
        ),
        Prediction(
            "v",
            lambda y_0, eps, alpha, sigma: alpha * eps - sigma * y_0,
            lambda v, y_t, alpha, sigma: alpha * y_t - sigma * v,
            lambda v, y_t, alpha, sigma: sigma * y_t + alpha * v,
        ),
        Prediction(
            "y_0",
            lambda y_0, eps, alpha, sigma: y_0,
            lambda y_0, y_t, alpha, sigma: y_0,
            lambda y_0, y_t, alpha, sigma: (y_t - alpha * y_0) / sigma,
        ),
    )
}


def precondition(
    output: Images,
    prediction: Prediction,
    x: Images | None,
    y_t: Images,
    gamma: PerImage,
    sigma_data: float,
) -> Images:
    """Returns the prediction of a preconditioned network whose output is F, Eq. 4 above.

    `x` is upsampled to the size of `y_t`; None is x = 0. `sigma_data` is the root mean square of
    y_0 - x, above 0.
    """
    x = jnp.zeros_like(y_t) if x is None else x
    alpha, sigma = _alpha_sigma(gamma, y_t)
    variance = jnp.square(alpha * sigma_data) + jnp.square(sigma)
    residual = y_t - alpha * x
    c_skip = alpha * sigma_data**2 / variance
    mean = prediction.formula(x + c_skip * residual, sigma / variance * residual, alpha, sigma)
    deviation = jnp.abs(prediction.formula(sigma, -alpha, alpha, sigma))
    c_out = sigma_data / jnp.sqrt(variance) * deviation
    return mean + c_out * output


def _alpha_sigma(gamma: PerImage, like: Images) -> tuple[Images, Images]:
    """Returns shares of signal and noise, to broadcast over `like`."""
    gamma = per_example(gamma, like)
    return jnp.sqrt(gamma), jnp.sqrt(1.0 - gamma)
