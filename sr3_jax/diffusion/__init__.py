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
from sr3_jax.diffusion.sampling import Denoise, Variance, ancestral_sample
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
)

__all__ = [
    "MAX_TERMINAL_NOISE_LEVEL",
    "Denoise",
    "LossName",
    "NoiseSchedule",
    "Variance",
    "ancestral_sample",
    "cosine",
    "denoising_loss",
    "diffuse",
    "estimate_eps_linearly",
    "from_betas",
    "karras",
    "linear",
    "posterior",
    "predict_eps",
    "predict_y_0",
    "quadratic",
    "respace",
    "sample_gamma",
    "uniform_gamma",
]
