"""The network of a config, what makes its source, and its denoiser."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sr3_jax import diffusion, models, parallel
from sr3_jax.config import schedules
from sr3_jax.config.sections import Config
from sr3_jax.data import resampling
from sr3_jax.models import ddpm_unet

TPU_LANES = 128  # of a register; the channels that fill it


def upsampling(config: Config) -> Callable[..., Any]:
    """Returns `upsample(low, size)`, which makes the network's x of signed sources."""
    consistent = config.data.upsampling == "consistent"
    return functools.partial(resampling.upsample, factor=config.factor, consistent=consistent)


def model(config: Config) -> models.UNet | models.SRCNN | models.DDPMUNet:
    """Makes the network of `config.method` and `config.model`, for `config.data.image_size`."""
    c = config.model
    dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[c.dtype]
    if config.method == "srcnn":
        return models.SRCNN(
            dtype, image_channels=config.data.channels, source_channels=config.conditioning_channels
        )
    sizes = [min(config.image_sides) // 2**i for i in range(len(c.multipliers))]
    attention_levels = tuple(sizes.index(size) for size in c.attention_resolutions)
    if c.architecture != "sr3":
        form = ddpm_unet.FORMS[c.architecture]
        gammas = schedules.training_schedule(config).gamma[1:].tolist() if form.embeds_time else ()
        return models.DDPMUNet(
            form,
            channels=c.channels,
            multipliers=c.multipliers,
            num_blocks=c.num_blocks,
            attention_levels=attention_levels,
            num_groups=c.num_groups,
            gammas=tuple(gammas),
            dropout=c.dropout,
            dtype=dtype,
            remat=c.remat,
            has_source=config.has_source,
        )
    return models.UNet(
        image_channels=config.data.channels,
        source_channels=config.conditioning_channels,
        has_y_t=not config.predicts_image,
        channels=c.channels,
        multipliers=c.multipliers,
        num_blocks=c.num_blocks,
        attention_levels=attention_levels,
        bottleneck_attention=c.bottleneck_attention,
        norm=c.norm,
        num_heads=c.num_heads,
        dropout=c.dropout,
        scale_shift=c.scale_shift,
        embedding_scale=c.embedding_scale,
        dtype=dtype,
        remat=c.remat,
        has_source=config.has_source,
        num_classes=c.num_classes,
        source_noise=config.train.source_noise > 0,
        learned_variance=c.learned_variance,
        packed_channels=c.packed_channels or (TPU_LANES if jax.default_backend() == "tpu" else 1),
        by_products=parallel.multiplies_bfloat16(),
    )


def denoiser(config: Config) -> models.Denoiser:
    """Makes the denoiser: the network, its prediction type, preconditioning and guidance."""
    c = config.model
    return models.Denoiser(
        model(config),
        diffusion.PREDICTIONS["y_0" if config.predicts_image else c.prediction],
        sigma_data=0.0 if config.method == "srcnn" else c.sigma_data,
        known_at=config.known_at,
        guidance=config.sampling.guidance,
        source_noise=config.sampling.source_noise,
        gives_variance=config.sampling.variance == "learned"
        and config.sampling.sampler == "ancestral",
    )
