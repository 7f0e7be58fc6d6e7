"""The diffusion process of SR3: schedules, forward process, loss and samplers.

Pure functions of arrays that need nothing but jax: no model, no device, no files.
"""

from sr3_jax.diffusion.loss import LossName, denoising_loss, sample_gamma
from sr3_jax.diffusion.process import (
    diffuse,
    estimate_eps_linearly,
    posterior,
    predict_eps,
    predict_y_0,
)
from sr3_jax.diffusion.samplers import Sampler, Variance, ancestral, ddim, dpmpp_2m, heun
from sr3_jax.diffusion.sampling import Denoise, State, advance, begin, sample
from sr3_jax.diffusion.schedule import (
    MAX_TERMINAL_NOISE_LEVEL,
    NoiseSchedule,
    cosine,
    from_betas,
    karras,
    linear,
    quadratic,
    respace,
    uniform_gamma,
    uniform_log_snr,
    uniform_noise_level,
)

__all__ = [
    "MAX_TERMINAL_NOISE_LEVEL",
    "Denoise",
    "LossName",
    "NoiseSchedule",
    "Sampler",
    "State",
    "Variance",
    "advance",
    "ancestral",
    "begin",
    "cosine",
    "ddim",
    "denoising_loss",
    "diffuse",
    "dpmpp_2m",
    "estimate_eps_linearly",
    "from_betas",
    "heun",
    "karras",
    "linear",
    "posterior",
    "predict_eps",
    "predict_y_0",
    "quadratic",
    "respace",
    "sample",
    "sample_gamma",
    "uniform_gamma",
    "uniform_log_snr",
    "uniform_noise_level",
]
