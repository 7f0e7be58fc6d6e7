"""Layers of the SR3 U-Net (spec: DDPM's U-Net with BigGAN residual blocks; NHWC throughout).

Every layer computes in `dtype` and keeps parameters in float32; normalisation statistics are
float32 whatever `dtype` is.
"""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from sr3_jax.models import convolution, normalization

Resample = Literal["none", "up", "down"]

# Glorot uniform, as DDPM and its descendants initialise; the last convolution of each residual
# branch starts at zero instead, so that every block starts as (scaled) identity.
_KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
_SQRT_HALF = math.sqrt(0.5)


def conv3x3(
    features: int, dtype: DTypeLike, *, name: str, zero: bool = False, use_bias: bool = True
) -> nn.Conv:
    """A 3x3 convolution that keeps the size; `zero` starts it at zero."""
    init = nn.initializers.zeros if zero else _KERNEL_INIT
    return nn.Conv(
        features,
        (3, 3),
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=init,
        conv_general_dilated=convolution.conv_general_dilated,
        name=name,
    )


def dense(features: int, dtype: DTypeLike, *, name: str, zero: bool = False) -> nn.Dense:
    """A matrix product over the channels (on images, a 1x1 convolution)."""
    init = nn.initializers.zeros if zero else _KERNEL_INIT
    return nn.Dense(features, dtype=dtype, kernel_init=init, name=name)


def sinusoidal_embedding(
    values: Float[Array, " b"], features: int, max_period: float = 10_000.0
) -> Float[Array, "b features"]:
    """Sines and cosines of `values` at geometrically spaced frequencies 1 .. 1/max_period."""
    half = features // 2
    frequency = jnp.exp(-math.log(max_period) * jnp.arange(half) / max(half - 1, 1))
    angle = values.astype(jnp.float32)[:, None] * frequency[None]
    embedding = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, features - 2 * half)))


class NoiseEmbedding(nn.Module):
    """gamma to a vector: sinusoids of `scale * sqrt(gamma)`, Dense, swish, Dense.

    `scale` spreads sqrt(gamma) in [0, 1] over the sinusoids' periods. Unscaled, all but the
    fastest few are constant and the network can hardly tell low noise from none.
    """

    features: int
    scale: float = 5000.0
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, gamma: Float[Array, " b"]) -> Float[Array, "b four_features"]:
        h = sinusoidal_embedding(self.scale * jnp.sqrt(gamma), self.features)
        h = dense(4 * self.features, self.dtype, name="dense_0")(h.astype(self.dtype))
        return dense(4 * self.features, self.dtype, name="dense_1")(nn.swish(h))


class GroupNorm(nn.Module):
    """Group normalisation with min(channels / 4, 32) groups (Wu and He 2018).

    `shift`, `[b, channels]`, is added to the image before; `scale_shift`, `(scale, shift)` of the
    same shape, modulates the normalised image by `(1 + scale) * image + shift`. Neither costs a
    pass over the image.
    """

    dtype: DTypeLike = jnp.float32
    swish: bool = False
    epsilon: float = 1e-6

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b h w c"],
        shift: Float[Array, "b c"] | None = None,
        scale_shift: tuple[Float[Array, "b c"], Float[Array, "b c"]] | None = None,
    ) -> Float[Array, "b h w c"]:
        channels = image.shape[-1]
        per_channel = (image.shape[0], channels)
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        offset = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        scale, offset = (jnp.broadcast_to(v, per_channel) for v in (scale, offset))
        if scale_shift is not None:
            extra, added = (v.astype(jnp.float32) for v in scale_shift)
            scale, offset = scale * (1.0 + extra), offset * (1.0 + extra) + added
        shift = jnp.zeros(per_channel) if shift is None else shift.astype(jnp.float32)
        normalised = normalization.group_norm(
            image, shift, scale, offset, num_norm_groups(channels), self.swish, self.epsilon
        )
        return normalised.astype(self.dtype)


def num_norm_groups(channels: int) -> int:
    """min(channels / 4, 32), lowered to a divisor of `channels`."""
    groups = max(1, min(channels // 4, 32))
    while channels % groups:
        groups -= 1
    return groups


def resample_image(image: Float[Array, "b h w c"], how: Resample) -> Float[Array, "b h2 w2 c"]:
    """Halves by the mean of 2x2 pixels, or doubles by repeating each."""
    b, h, w, c = image.shape
    if how == "down":
        return jnp.mean(image.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))
    if how == "up":
        doubled = jnp.broadcast_to(image[:, :, None, :, None], (b, h, 2, w, 2, c))
        return doubled.reshape(b, 2 * h, 2 * w, c)
    return image


class ResidualBlock(nn.Module):
    """BigGAN residual block conditioned on the noise level (score_sde's BigGAN++ block).

    GroupNorm, swish, resample, conv, + Dense(swish(embedding)), GroupNorm, swish, dropout,
    zero-initialised conv; the shortcut is resampled too, and projected where the number of
    channels changes or the block resamples; the sum is scaled by 1/sqrt(2).
    """

    features: int
    resample: Resample = "none"
    dropout: float = 0.0
    scale_shift: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b h w c"],
        embedding: Float[Array, "b e"],
        train: bool,
    ) -> Float[Array, "b h2 w2 features"]:
        h = GroupNorm(self.dtype, swish=True, name="norm_0")(image)
        h = resample_image(h, self.resample)
        # Its bias would be that of the embedding once more.
        h = conv3x3(self.features, self.dtype, name="conv_0", use_bias=False)(h)
        width = 2 * self.features if self.scale_shift else self.features
        condition = dense(width, self.dtype, name="embedding")(nn.swish(embedding))
        if self.scale_shift:
            modulation = {"scale_shift": tuple(jnp.split(condition, 2, axis=-1))}
        else:
            modulation = {"shift": condition}
        h = GroupNorm(self.dtype, swish=True, name="norm_1")(h, **modulation)
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = conv3x3(self.features, self.dtype, name="conv_1", zero=True)(h)
        # A product over the channels of each pixel: the same before resampling as after it, so
        # where there are fewer pixels.
        shortcut = resample_image(image, "down") if self.resample == "down" else image
        if image.shape[-1] != self.features or self.resample != "none":
            shortcut = dense(self.features, self.dtype, name="shortcut")(shortcut)
        if self.resample == "up":
            shortcut = resample_image(shortcut, "up")
        return (shortcut + h) * _SQRT_HALF


class AttentionBlock(nn.Module):
    """Self-attention over all pixels: GroupNorm, q k v, attention, zero-initialised Dense."""

    num_heads: int = 1
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = image.shape
        if c % self.num_heads:
            raise ValueError(
                f"num_heads = {self.num_heads} does not divide the {c} channels it attends "
                "over; use a divisor"
            )
        normalised = GroupNorm(self.dtype, name="norm")(image).reshape(b, h * w, c)
        qkv = dense(3 * c, self.dtype, name="qkv")(normalised)
        q, k, v = jnp.split(qkv.reshape(b, h * w, 3 * self.num_heads, -1), 3, axis=2)
        attended = jax.nn.dot_product_attention(q, k, v).reshape(b, h, w, c)
        return (image + dense(c, self.dtype, name="out", zero=True)(attended)) * _SQRT_HALF
