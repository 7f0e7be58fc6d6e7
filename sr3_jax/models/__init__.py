"""Networks: plain Flax Linen modules that know no config, file or device."""

from sr3_jax.models.guidance import guided_eps
from sr3_jax.models.layers import Statistics
from sr3_jax.models.srcnn import SRCNN
from sr3_jax.models.unet import (
    UNet,
    count_flops,
    count_parameters,
    deepest_stride,
    example_inputs,
    parameter_shapes,
)

__all__ = [
    "SRCNN",
    "Statistics",
    "UNet",
    "count_flops",
    "count_parameters",
    "deepest_stride",
    "example_inputs",
    "guided_eps",
    "parameter_shapes",
]
