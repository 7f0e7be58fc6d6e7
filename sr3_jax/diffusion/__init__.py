"""The diffusion process of SR3: schedules, forward process, parameterizations, loss, samplers.

Pure functions of arrays that need nothing but jax: no model, no device, no files.
"""

from sr3_jax.diffusion.loss import (
    LOSS_WEIGHTS,
    Reverse,
    denoising_loss,
    mean_over_images,
    reverse_at,
    sample_gamma,
    sample_time,
    variational_bound,
    weigh,
)
from sr3_jax.diffusion.parameterization import PREDICTIONS, Prediction, precondition
from sr3_jax.diffusion.process import diffuse
from sr3_jax.diffusion.samplers import (
    Sampler,
    ancestral,
    ddim,
    dpmpp_2m,
    heun,
    one_call,
    way_back,
)
from sr3_jax.diffusion.sampling import State, advance, begin, sample
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
    warm_up,
)

__all__ = [
    "LOSS_WEIGHTS",
    "MAX_TERMINAL_NOISE_LEVEL",
    "PREDICTIONS",
    "NoiseSchedule",
    "Prediction",
    "Reverse",
    "Sampler",
    "State",
    "advance",
    "ancestral",
    "begin",
    "cosine",
    "ddim",
    "denoising_loss",
    "diffuse",
    "dpmpp_2m",
    "from_betas",
    "heun",
    "karras",
    "linear",
    "mean_over_images",
    "one_call",
    "precondition",
    "quadratic",
    "respace",
    "reverse_at",
    "sample",
    "sample_gamma",
    "sample_time",
    "uniform_gamma",
    "uniform_log_snr",
    "uniform_noise_level",
    "variational_bound",
    "warm_up",
    "way_back",
    "weigh",
]
