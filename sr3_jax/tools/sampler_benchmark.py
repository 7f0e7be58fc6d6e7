"""What samplers get wrong in few steps, where that is known: `tools.benchmark --what=samplers`.

Where y_0 is Gaussian, so is every y_t, and the best estimate of eps is linear in y_t. With it in
place of a network, all that is wrong with what a sampler draws is the sampler's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sr3_jax import diffusion

# Of y_0 given x, in images of [-1, 1]: from faint texture to edges.
STD = np.array([0.05, 0.1, 0.2, 0.4])
MEAN = np.array([0.8, -0.3, 0.1, 0.5])
# Half a level of 8 bits: what is left for the last step is not seen.
SIGMA_MIN = 0.004

STEPS = (5, 10, 20, 50, 100)
SAMPLERS: dict[str, Callable[[diffusion.NoiseSchedule], diffusion.Sampler]] = {
    "ancestral": diffusion.ancestral,
    "ancestral, posterior variance": lambda s: diffusion.ancestral(s, "posterior"),
    "ddim": diffusion.ddim,
    "ddim, eta 0.5": lambda s: diffusion.ddim(s, 0.5),
    "dpmpp_2m": diffusion.dpmpp_2m,
    "dpmpp_2m, eta 1": lambda s: diffusion.dpmpp_2m(s, 1.0),
    "heun": diffusion.heun,
}
GRIDS: dict[str, Callable[[int], diffusion.NoiseSchedule]] = {
    "uniform in t": lambda n: diffusion.respace(diffusion.linear(), n),
    "uniform in noise level": diffusion.uniform_noise_level,
    "uniform in log-SNR": lambda n: diffusion.uniform_log_snr(n, SIGMA_MIN),
    "karras, rho 7": lambda n: diffusion.karras(n, SIGMA_MIN),
}
# So many are drawn: the standard error of a standard deviation is 0.2 % of it.
_COUNT = 100_000


def denoise(y_t: Float[Array, "b d"], gamma: Float[Array, " b"]) -> Float[Array, "b d"]:
    """The mean of eps given y_t, for y_0 normal with `MEAN` and `STD`."""
    gamma = gamma[:, None]
    variance = gamma * jnp.square(jnp.asarray(STD, jnp.float32)) + 1 - gamma
    return jnp.sqrt(1 - gamma) * (y_t - jnp.sqrt(gamma) * jnp.asarray(MEAN, jnp.float32)) / variance


@functools.partial(jax.jit, static_argnames="count")
def _moments(sampler: diffusion.Sampler, count: int) -> tuple[Array, Array]:
    keys = jax.random.split(jax.random.key(0), count)
    y_0 = diffusion.sample(denoise, sampler, keys, (len(MEAN),), clip=False)
    z = (y_0 - MEAN) / STD
    return z.mean(0), (z - z.mean(0)).T @ (z - z.mean(0)) / count


def gaussian_errors(sampler: diffusion.Sampler, count: int = _COUNT) -> tuple[float, float]:
    """Largest errors of mean and covariance, in standard deviations and their products."""
    mean, covariance = map(np.asarray, _moments(sampler, count))
    return float(np.abs(mean).max()), float(np.abs(covariance - np.eye(len(MEAN))).max())


def table(steps: Sequence[int] = STEPS, count: int = _COUNT) -> str:
    """Markdown: mean and covariance errors in percent, of every sampler and time grid."""
    lines = [
        "| sampler | time grid | calls a step | " + " | ".join(f"{n} steps" for n in steps) + " |",
        "|---" * (3 + len(steps)) + "|",
    ]
    for name, make in SAMPLERS.items():
        for grid, schedule in GRIDS.items():
            cells = []
            for num_steps in steps:
                mean, covariance = gaussian_errors(make(schedule(num_steps)), count)
                cells.append(f"{mean:.1%} / {covariance:.1%}")
            calls = "2" if name == "heun" else "1"
            lines.append(" | ".join([f"| {name}", grid, calls, *cells]) + " |")
    return "\n".join(lines)
