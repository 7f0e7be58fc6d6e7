"""Networks, plain Flax Linen modules, and the denoiser made of one; no config, file or device."""

from sr3_jax.models.ddpm_unet import DDPMUNet
from sr3_jax.models.denoiser import Batch, Denoiser, Params
from sr3_jax.models.layers import Statistics
from sr3_jax.models.srcnn import SRCNN
from sr3_jax.models.unet import (
    UNet,
    count_flops,
    count_parameters,
    example_inputs,
    parameter_shapes,
)

__all__ = [
    "SRCNN",
    "Batch",
    "DDPMUNet",
    "Denoiser",
    "Params",
    "Statistics",
    "UNet",
    "count_flops",
    "count_parameters",
    "example_inputs",
    "parameter_shapes",
]
