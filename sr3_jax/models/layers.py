"""Layers of the SR3 U-Net (spec: DDPM's U-Net with BigGAN residual blocks; NHWC throughout).

Every layer computes in `dtype` and keeps parameters in float32; normalisation statistics are
float32 whatever `dtype` is.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental import layout
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from sr3_jax.models import convolution, folding, normalization

Resample = Literal["none", "up", "down"]
Statistics = Literal["group", "pixel"]

_SQRT_HALF = math.sqrt(0.5)


def glorot_uniform(
    key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> Float[Array, ...]:
    """How DDPM and its descendants initialise: `nn.initializers.glorot_uniform()`, drawn in a row.

    The numbers are the same, but of four axes XLA takes ten times as long to compile the drawing
    for CPUs, for each kernel of a network.
    """
    *_, num_in, num_out = shape
    limit = math.sqrt(6 / (math.prod(shape[:-2]) * (num_in + num_out)))
    return jax.random.uniform(key, (math.prod(shape),), dtype, -limit, limit).reshape(shape)


class Conv3x3(nn.Module):
    """A 3x3 convolution that keeps the size, of an image in one part or several.

    Each part has a kernel of its own (`kernel_0`, `kernel_1`, ..., where there are several), and
    what they make is added up: neither what a skip connection brings nor the kernels are ever
    copied beside each other. `zero` starts the kernels at zero. Images may be folded
    (`models.folding`); parameters are those of an image that is not.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    zero: bool = False
    use_bias: bool = True
    fold: int = 1

    @nn.compact
    def __call__(self, *parts: Float[Array, "b h w _"]) -> Float[Array, "b h w _"]:
        out = sum(
            convolution.convolve(part.astype(self.dtype), folding.fold_kernel(kernel, self.fold))
            for part, kernel in zip(parts, _kernels(self, (3, 3), parts), strict=True)
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
            out = out + jnp.tile(bias.astype(self.dtype), self.fold)
        return out


class Dense(nn.Module):
    """A matrix product over the channels (on images, a 1x1 convolution); parts as `Conv3x3`."""

    features: int
    dtype: DTypeLike = jnp.float32
    zero: bool = False
    fold: int = 1

    @nn.compact
    def __call__(self, *parts: Float[Array, "*shape _"]) -> Float[Array, "*shape _"]:
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        out = sum(
            _product(part.astype(self.dtype), folding.fold_matrix(kernel, self.fold))
            for part, kernel in zip(parts, _kernels(self, (), parts), strict=True)
        )
        return out + jnp.tile(bias.astype(self.dtype), self.fold)


def _kernels(
    layer: Conv3x3 | Dense, window: tuple[int, ...], parts: tuple[Array, ...]
) -> list[Float[Array, "*window _ _"]]:
    """The kernel of each part, drawn as if one kernel took the channels of all."""
    channels = [part.shape[-1] // layer.fold for part in parts]

    def init_share(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        if layer.zero:
            return jnp.zeros(shape, dtype)
        whole = glorot_uniform(key, (*window, sum(channels), layer.features), dtype)
        return whole[..., : shape[-2], :]

    names = ["kernel"] if len(parts) == 1 else [f"kernel_{i}" for i in range(len(parts))]
    shapes = [(*window, n, layer.features) for n in channels]
    return [
        jnp.asarray(layer.param(name, init_share, shape, jnp.float32), layer.dtype)
        for name, shape in zip(names, shapes, strict=True)
    ]


def _product(image: Array, kernel: Array, precision: jax.lax.PrecisionLike = None) -> Array:
    """`image @ kernel`; of 4-D images as a 1x1 convolution, which TPUs run without a relayout."""
    if image.ndim != 4:
        return image @ kernel
    return jax.lax.conv_general_dilated(
        image,
        kernel[None, None],
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )


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
        h = Dense(4 * self.features, self.dtype, name="dense_0")(h.astype(self.dtype))
        return Dense(4 * self.features, self.dtype, name="dense_1")(nn.swish(h))


class Norm(nn.Module):
    """Group normalisation with min(channels / 4, 32) groups (Wu and He 2018), or per pixel.

    The `statistics` of a `group` are its mean and variance over the image; of a `pixel`, its root
    mean square over the channels (Zhang and Sennrich 2019).

    `shift`, `[b, channels]`, is added to the image before; `scale_shift`, `(scale, shift)` of the
    same shape, modulates the normalised image by `(1 + scale) * image + shift`. Neither costs a
    pass over the image, which may come in parts and is returned in the same.
    """

    dtype: DTypeLike = jnp.float32
    swish: bool = False
    epsilon: float = 1e-6
    fold: int = 1
    statistics: Statistics = "group"

    @nn.compact
    def __call__(
        self,
        *parts: Float[Array, "b h w _"],
        shift: Float[Array, "b c"] | None = None,
        scale_shift: tuple[Float[Array, "b c"], Float[Array, "b c"]] | None = None,
    ) -> normalization.Parts:
        channels = sum(part.shape[-1] for part in parts) // self.fold
        per_channel = (parts[0].shape[0], channels)
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        offset = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        scale, offset = (jnp.broadcast_to(v, per_channel) for v in (scale, offset))
        if scale_shift is not None:
            extra, added = (v.astype(jnp.float32) for v in scale_shift)
            scale, offset = scale * (1.0 + extra), offset * (1.0 + extra) + added
        shift = jnp.zeros(per_channel) if shift is None else shift.astype(jnp.float32)
        rest = (self.swish, self.epsilon, self.fold)
        if self.statistics == "pixel":
            normalised = normalization.pixel_norm(parts, shift, scale, offset, *rest)
        else:
            groups = num_norm_groups(channels)
            normalised = normalization.group_norm(parts, shift, scale, offset, groups, *rest)
        return tuple(part.astype(self.dtype) for part in normalised)


def num_norm_groups(channels: int) -> int:
    """min(channels / 4, 32), lowered to a divisor of `channels`."""
    groups = max(1, min(channels // 4, 32))
    while channels % groups:
        groups -= 1
    return groups


def resample_image(
    image: Float[Array, "b h w c"], how: Resample, fold: int = 1, fold_out: int = 1
) -> Float[Array, "b h2 w2 c2"]:
    """Halves by the mean of 2x2 pixels, or doubles by repeating each.

    The image is folded by `fold` (`models.folding`) and comes out folded by `fold_out`.
    """
    b, h, w, c = image.shape
    if how == "down" and fold > 1:
        rows = jnp.mean(_neighbours(image, how, fold).reshape(b, h // 2, 2, w, c // 2), axis=2)
        return folding.refold(rows, fold // 2, fold_out)
    if how == "down":
        image = jnp.mean(image.reshape(b, h // 2, 2, w // 2, 2, c), axis=(2, 4))
    elif how == "up" and max(fold, fold_out) > 1:
        rows = jnp.broadcast_to(_neighbours(image, how, fold)[:, :, None], (b, h, 2, w, 2 * c))
        return folding.refold(rows.reshape(b, 2 * h, w, 2 * c), 2 * fold, fold_out)
    elif how == "up":
        doubled = jnp.broadcast_to(image[:, :, None, :, None], (b, h, 2, w, 2, c))
        image = doubled.reshape(b, 2 * h, 2 * w, c)
    return folding.refold(image, fold, fold_out)


def _neighbours(
    image: Float[Array, "b h w c"], how: Resample, fold: int
) -> Float[Array, "b h w _"]:
    """The mean of each two neighbours of a row, or each pixel twice, within the folded channels.

    By a product, where moving channels about would cost several passes on a TPU.
    """
    pixel, others = jnp.eye(image.shape[-1] // fold), jnp.eye(fold // 2 if how == "down" else fold)
    two = jnp.full((2, 1), 0.5) if how == "down" else jnp.ones((1, 2))
    matrix = jnp.kron(others, jnp.kron(two, pixel)).astype(image.dtype)
    return _product(image, matrix, jax.lax.Precision.HIGHEST)


def drop(
    image: Float[Array, "b h w c"], keys: Key[Array, " b"], rate: float
) -> Float[Array, "b h w c"]:
    """Dropout with a key for each example, so that it does not matter who shares a batch.

    `rate` is taken to the nearest 1/65536: two activations share a random number.
    """
    threshold = round(rate * 2**16)

    def draw(*shape: int) -> Array:
        bits = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint16))(keys)
        return bits >= threshold

    kept = jax.lax.platform_dependent(
        tpu=lambda: _batch_beside_channels(draw(*image.shape[1:])),
        # The same bits, which compile sooner so (`glorot_uniform`).
        default=lambda: draw(math.prod(image.shape[1:])).reshape(image.shape),
    )
    factor = 2**16 / (2**16 - threshold)
    return jnp.where(kept, image * jnp.asarray(factor, image.dtype), 0)


def _batch_beside_channels(image: Array) -> Array:
    """`image`, in the order in memory in which a TPU's convolutions take few, wide images.

    Left alone, the compiler keeps the order in which random numbers are made for the convolutions
    around them too, and takes the normalisation out of them (docs/tpu.md).
    """
    return layout.with_layout_constraint(image, layout.Layout(major_to_minor=(1, 2, 0, 3)))


class ResidualBlock(nn.Module):
    """BigGAN residual block conditioned on the noise level (score_sde's BigGAN++ block).

    Norm, swish, resample, conv, + Dense(swish(embedding)) where there is one, Norm, swish,
    dropout, zero-initialised conv; the shortcut is resampled too, and projected where the
    number of channels changes or the block resamples; the sum is scaled by 1/sqrt(2). A tuple of
    images stands for their concatenation along the channels. Without keys nothing is dropped. What
    comes in is folded by `fold`, and what goes out by `fold_out`.
    """

    features: int
    resample: Resample = "none"
    dropout: float = 0.0
    scale_shift: bool = False
    dtype: DTypeLike = jnp.float32
    fold: int = 1
    fold_out: int = 1
    statistics: Statistics = "group"

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b h w c"] | normalization.Parts,
        embedding: Float[Array, "b e"] | None,
        dropout_keys: Key[Array, " b"] | None,
    ) -> Float[Array, "b h2 w2 features"]:
        parts = image if isinstance(image, tuple) else (image,)
        norm = functools.partial(Norm, self.dtype, swish=True, statistics=self.statistics)
        h = norm(fold=self.fold, name="norm_0")(*parts)
        h = [self._resample(part) for part in h]
        # Where the embedding is added to what it makes, that has a bias already.
        biased, fold = self.scale_shift or embedding is None, self.fold_out
        h = Conv3x3(self.features, self.dtype, use_bias=biased, fold=fold, name="conv_0")(*h)
        modulation = {} if embedding is None else self._modulation(embedding)
        (h,) = norm(fold=fold, name="norm_1")(h, **modulation)
        if self.dropout and dropout_keys is not None:
            h = drop(h, dropout_keys, self.dropout)
        h = Conv3x3(self.features, self.dtype, zero=True, fold=fold, name="conv_1")(h)
        return (self._shortcut(parts) + h) * _SQRT_HALF

    def _modulation(self, embedding: Float[Array, "b e"]) -> dict[str, Any]:
        width = 2 * self.features if self.scale_shift else self.features
        condition = Dense(width, self.dtype, name="embedding")(nn.swish(embedding))
        if self.scale_shift:
            return {"scale_shift": tuple(jnp.split(condition, 2, axis=-1))}
        return {"shift": condition}

    def _shortcut(self, parts: normalization.Parts) -> Float[Array, "b h2 w2 features"]:
        if self.resample == "none":
            parts = tuple(folding.refold(part, self.fold, self.fold_out) for part in parts)
            if [part.shape[-1] // self.fold_out for part in parts] == [self.features]:
                return parts[0]
        if self.resample == "down":
            parts = tuple(self._resample(part) for part in parts)
        # A product over the channels of each pixel: the same before resampling as after it, so
        # where there are fewer pixels.
        fold = self.fold if self.resample == "up" else self.fold_out
        shortcut = Dense(self.features, self.dtype, fold=fold, name="shortcut")(*parts)
        return self._resample(shortcut) if self.resample == "up" else shortcut

    def _resample(self, image: Float[Array, "b h w _"]) -> Float[Array, "b h2 w2 _"]:
        return resample_image(image, self.resample, self.fold, self.fold_out)


class AttentionBlock(nn.Module):
    """Self-attention over all pixels: Norm, q k v, attention, zero-initialised Dense."""

    num_heads: int = 1
    dtype: DTypeLike = jnp.float32
    statistics: Statistics = "group"

    @nn.compact
    def __call__(self, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        b, h, w, c = image.shape
        if c % self.num_heads:
            raise ValueError(
                f"num_heads = {self.num_heads} does not divide the {c} channels it attends "
                "over; use a divisor"
            )
        (normalised,) = Norm(self.dtype, statistics=self.statistics, name="norm")(image)
        qkv = Dense(3 * c, self.dtype, name="qkv")(normalised.reshape(b, h * w, c))
        q, k, v = jnp.split(qkv.reshape(b, h * w, 3 * self.num_heads, -1), 3, axis=2)
        attended = jax.nn.dot_product_attention(q, k, v).reshape(b, h, w, c)
        return (image + Dense(c, self.dtype, name="out", zero=True)(attended)) * _SQRT_HALF
