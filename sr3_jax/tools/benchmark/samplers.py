"""Errors of samplers in few steps, in closed form: `tools.benchmark --what=samplers`.

If y_0 is Gaussian, so is every y_t, and the best estimate of y_0 is linear in y_t. With it in place
of a network, all errors are the sampler's own. Mean and variance are propagated through the steps;
nothing is sampled.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sr3_jax import diffusion
from sr3_jax.evaluation.report import markdown

# Of y_0 given x, in [-1, 1], from faint texture to edges.
STD = np.array([0.05, 0.1, 0.2, 0.4])
MEAN = np.array([0.8, -0.3, 0.1, 0.5])
SIGMA_MIN = 0.004  # half a level of 8 bits, which is not seen

STEPS = (5, 10, 20, 50, 100)
SAMPLERS: dict[str, Callable[[diffusion.NoiseSchedule], diffusion.Sampler]] = {
    "ancestral": diffusion.ancestral,
    "ancestral, posterior variance": lambda s: diffusion.ancestral(s, "fixed_small"),
    "ddim": diffusion.ddim,
    "ddim, eta 0.5": lambda s: diffusion.ddim(s, 0.5),
    "dpmpp_2m": diffusion.dpmpp_2m,
    "dpmpp_2m, eta 1": lambda s: diffusion.dpmpp_2m(s, 1.0),
    "heun": diffusion.heun,
}
SCHEDULES: dict[str, Callable[[int], diffusion.NoiseSchedule]] = {
    "respaced": lambda n: diffusion.respace(diffusion.linear(), n),
    "noise_level": diffusion.uniform_noise_level,
    "log_snr": lambda n: diffusion.uniform_log_snr(n, SIGMA_MIN),
    "karras, rho 7": lambda n: diffusion.karras(n, SIGMA_MIN),
}


def denoise(y_t: Float[Array, "b d"], gamma: Float[Array, " b"]) -> Float[Array, "b d"]:
    """Returns the mean of y_0 given y_t, for y_0 normal with `MEAN` and `STD`."""
    mean, variance = jnp.asarray(MEAN, jnp.float32), jnp.square(jnp.asarray(STD, jnp.float32))
    gamma = gamma[:, None]
    gain = jnp.sqrt(gamma) * variance / (gamma * variance + 1 - gamma)
    return mean + gain * (y_t - jnp.sqrt(gamma) * mean)


def moments(sampler: diffusion.Sampler) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    """Returns mean and variance of a sampler's draws in each dimension, exact but for rounding.

    With a denoiser that is affine in y_t, each row of a sampler maps its state (y_t, and y_t and
    the estimate of y_0 of the row before) affinely and adds noise. Unit states, put through
    `diffusion.advance`, give that map, which then moves mean and covariance of the state.
    """
    # Probes are without noise, so one program serves all samplers of as many calls.
    return _propagate(dataclasses.replace(sampler, is_stochastic=False, looks_back=True))


@jax.jit
def _propagate(sampler: diffusion.Sampler) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
    dimensions = len(MEAN)
    # Three rows set one component of the state to 1, the last sets none.
    probes = jnp.broadcast_to(jnp.eye(4, 3)[..., None], (4, 3, dimensions))
    state = diffusion.State(probes[:, 0], (probes[:, 1], probes[:, 2]))
    keys = jax.random.split(jax.random.key(0), len(probes))  # of no noise

    def step(
        before: tuple[Array, Array], row: diffusion.Sampler
    ) -> tuple[tuple[Array, Array], None]:
        mean, covariance = before
        after = diffusion.advance(denoise, row, state, keys, clip=False)
        images = jnp.stack([after.y_t, *after.previous], axis=1)  # [4, 3, d]
        offset = images[3]
        matrix = images[:3] - offset  # [component before, component after, d]
        mean = jnp.einsum("ijd,id->jd", matrix, mean) + offset
        covariance = jnp.einsum("ijd,ikd,kld->jld", matrix, covariance, matrix)
        return (mean, covariance.at[0, 0].add(jnp.square(row.noise))), None

    noise = jnp.zeros((3, dimensions)), jnp.zeros((3, 3, dimensions)).at[0, 0].set(1.0)
    with jax.default_matmul_precision("highest"):
        (mean, covariance), _ = jax.lax.scan(step, noise, jax.tree.map(jnp.asarray, sampler))
    return mean[0], covariance[0, 0]


def gaussian_errors(sampler: diffusion.Sampler) -> tuple[float, float]:
    """Returns the largest error of a mean, in standard deviations, and of a variance, relative."""
    mean, variance = map(np.asarray, moments(sampler))
    errors = np.abs(mean - MEAN) / STD, np.abs(variance / np.square(STD) - 1)
    return float(errors[0].max()), float(errors[1].max())


def table() -> str:
    """Returns a Markdown table of the errors of mean and variance, in percent."""
    rows = []
    for name, make in SAMPLERS.items():
        for noise, schedule in SCHEDULES.items():
            errors = (gaussian_errors(make(schedule(num_steps))) for num_steps in STEPS)
            cells = [f"{100 * mean:.1f} / {100 * variance:.1f}" for mean, variance in errors]
            rows.append([name, noise, *cells])
    return markdown.table(["sampler", "schedule", *(f"{n} steps" for n in STEPS)], rows)
