"""Networks: plain Flax Linen modules that know no config, file or device."""

from sr3_jax.models.unet import UNet, count_flops, count_parameters, deepest_stride

__all__ = ["UNet", "count_flops", "count_parameters", "deepest_stride"]
