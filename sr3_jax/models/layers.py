"""Layers of the SR3 U-Net: DDPM's U-Net with BigGAN's residual blocks.

Every layer computes in `dtype`. Parameters and the statistics of normalisation are float32.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.experimental import layout
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from sr3_jax.models import normalization, shared_rows
from sr3_jax.models.shared_rows import Normalised
from sr3_jax.models.width_packing import PackedImage, Resample

Statistics = Literal["group", "pixel"]

_SQRT_HALF = math.sqrt(0.5)


# Traced once for each shape. Flax also traces the initialiser of each parameter that it is given,
# to check the shape, and that was half of the time of tracing a network.
@functools.partial(jax.jit, static_argnums=(1, 2), inline=True)
def glorot_uniform(
    key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> Float[Array, ...]:
    """DDPM's initialisation: the numbers of `nn.initializers.glorot_uniform()`, drawn in a row.

    XLA takes ten times as long to compile the drawing of four axes for CPUs, for each kernel.
    """
    *_, num_in, num_out = shape
    limit = math.sqrt(6 / (math.prod(shape[:-2]) * (num_in + num_out)))
    return jax.random.uniform(key, (math.prod(shape),), dtype, -limit, limit).reshape(shape)


class Conv3x3(nn.Module):
    """A 3x3 convolution that keeps the size; `zero` starts its kernels at zero.

    An image in several parts has a kernel for each (`kernel_0`, `kernel_1`, ...), so that neither
    the parts nor the kernels are ever concatenated. `shifts` is that of `PackedImage.convolve`.
    With `doubles` the image is doubled before, by repeating its pixels; `shifts` is then taken for
    true.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    zero: bool = False
    use_bias: bool = True
    shifts: bool = False
    doubles: bool = False

    @nn.compact
    def __call__(self, image: PackedImage | Normalised) -> PackedImage:
        kernels = _kernels(self, (3, 3), image.channels)
        image = image.astype(self.dtype)
        if self.doubles:
            image = image.convolve_doubled(kernels)
        else:
            image = image.convolve(kernels, self.shifts)
        return image + _bias(self) if self.use_bias else image


class Conv1x1(nn.Module):
    """A 1x1 convolution; parts and `zero` are those of `Conv3x3`."""

    features: int
    dtype: DTypeLike = jnp.float32
    zero: bool = False

    @nn.compact
    def __call__(self, image: PackedImage) -> PackedImage:
        bias = _bias(self)  # comes first: the order decides which numbers the kernels start with
        return image.astype(self.dtype).convolve(_kernels(self, (), image.channels)) + bias


class Dense(nn.Module):
    """A matrix product over the last axis."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, values: Float[Array, "*shape _"]) -> Float[Array, "*shape _"]:
        bias = _bias(self)
        shape = (values.shape[-1], self.features)
        kernel = self.param("kernel", glorot_uniform, shape, jnp.float32)
        return values.astype(self.dtype) @ jnp.asarray(kernel, self.dtype) + bias


def _bias(layer: Conv3x3 | Conv1x1 | Dense) -> Float[Array, " features"]:
    bias = layer.param("bias", nn.initializers.zeros, (layer.features,), jnp.float32)
    return jnp.asarray(bias, layer.dtype)


def _kernels(
    layer: Conv3x3 | Conv1x1, window: tuple[int, ...], channels: tuple[int, ...]
) -> list[Float[Array, "*window _ _"]]:
    """Returns the kernel of each part, drawn as if one kernel took the channels of all."""

    def init_share(key: Key[Array, ""], shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        if layer.zero:
            return jnp.zeros(shape, dtype)
        whole = glorot_uniform(key, (*window, sum(channels), layer.features), dtype)
        return jax.lax.slice_in_dim(whole, 0, shape[-2], axis=-2)

    names = ["kernel"] if len(channels) == 1 else [f"kernel_{i}" for i in range(len(channels))]
    shapes = [(*window, n, layer.features) for n in channels]
    return [
        jnp.asarray(layer.param(name, init_share, shape, jnp.float32), layer.dtype)
        for name, shape in zip(names, shapes, strict=True)
    ]


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
    """Embeds gamma in [0, 1]: sinusoids of `scale * sqrt(gamma)`, Dense, swish, Dense.

    `scale` spreads sqrt(gamma) over the periods of the sinusoids. Unscaled, all but the fastest few
    are constant, and the network can hardly tell low noise from none.
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
    """Normalises an image, scales and offsets its channels, and applies swish where asked to.

    The `statistics` of a `group` of channels are its mean and variance over the image (group
    normalisation, Wu and He 2018, with min(channels / 4, 32) groups); of a `pixel`, its root mean
    square over the channels (Zhang and Sennrich 2019).

    `shift` is added to the image before. `scale_shift`, `(scale, shift)`, modulates the normalised
    image by `(1 + scale) * image + shift`. Neither costs a pass over the image.

    With `before_convolution`, the result may be a `Normalised`, which a `Conv3x3` alone takes: that
    convolution then normalises what it reads.
    """

    dtype: DTypeLike = jnp.float32
    swish: bool = False
    statistics: Statistics = "group"

    @nn.compact
    def __call__(
        self,
        image: PackedImage,
        shift: Float[Array, "b c"] | None = None,
        scale_shift: tuple[Float[Array, "b c"], Float[Array, "b c"]] | None = None,
        before_convolution: bool = False,
    ) -> PackedImage | Normalised:
        b, _, _, c = image.shape
        scale = self.param("scale", nn.initializers.ones, (c,), jnp.float32)
        offset = self.param("bias", nn.initializers.zeros, (c,), jnp.float32)
        scale, offset = (jnp.broadcast_to(v, (b, c)) for v in (scale, offset))
        if scale_shift is not None:
            extra, added = (v.astype(jnp.float32) for v in scale_shift)
            scale, offset = scale * (1.0 + extra), offset * (1.0 + extra) + added
        shift = jnp.zeros((b, c)) if shift is None else shift.astype(jnp.float32)
        if self.statistics == "pixel":
            image = normalization.pixel_norm(image, shift, scale, offset, self.swish)
        else:
            arguments = (image, shift, scale, offset, num_norm_groups(c), self.swish)
            if before_convolution and shared_rows.are_shared(image):
                return Normalised(*arguments)
            image = normalization.group_norm(*arguments)
        return image.astype(self.dtype)


def num_norm_groups(channels: int) -> int:
    """min(channels / 4, 32), lowered to a divisor of `channels`."""
    most = max(1, min(channels // 4, 32))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def drop(
    image: Float[Array, "b h w c"],
    keys: Key[Array, " b"],
    rate: float,
    outside: tuple[int, int] = (0, 0),
) -> Float[Array, "b h w c"]:
    """Dropout with a key for each example, so that the rest of the batch makes no difference.

    `rate` is rounded to 1/65536: two activations share a random number. `outside` is that of a
    `PackedImage`, whose pixels are dropped whether it is shifted or not.
    """
    threshold = round(rate * 2**16)
    b, h, w, c = image.shape
    shape = (h, w - sum(outside) // c, c)

    def draw(*shape: int) -> Array:
        bits = jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint16))(keys)
        return bits >= threshold

    # Left alone, a TPU's compiler keeps the order in which random numbers are made for the
    # convolutions around them too, and takes the normalisation out of them (docs/tpu.md). This is
    # the order in memory in which they take few, wide images: the batch beside the channels.
    order = layout.Layout(major_to_minor=(1, 2, 0, 3))
    kept = jax.lax.platform_dependent(
        tpu=lambda: layout.with_layout_constraint(draw(*shape), order),
        # The same bits, which compile sooner so (`glorot_uniform`).
        default=lambda: draw(math.prod(shape)).reshape(b, *shape),
    )
    if any(outside):
        kept = jnp.pad(kept.reshape(b, h, -1), ((0, 0), (0, 0), outside)).reshape(image.shape)
    factor = 2**16 / (2**16 - threshold)
    return jnp.where(kept, image * jnp.asarray(factor, image.dtype), 0)


class ResidualBlock(nn.Module):
    """BigGAN residual block conditioned on the noise level (score_sde's BigGAN++ block).

    Norm, swish, resample, conv, + Dense(swish(embedding)), Norm, swish, dropout, zero-initialised
    conv. The shortcut is resampled too, and projected where the number of channels changes or the
    block resamples. The sum is scaled by 1/sqrt(2). The embedding and the keys for dropout are None
    where there are none.
    """

    features: int
    resample: Resample = "none"
    dropout: float = 0.0
    scale_shift: bool = False
    dtype: DTypeLike = jnp.float32
    statistics: Statistics = "group"

    @nn.compact
    def __call__(
        self,
        image: PackedImage,
        embedding: Float[Array, "b e"] | None,
        dropout_keys: Key[Array, " b"] | None,
    ) -> PackedImage:
        norm = functools.partial(Norm, self.dtype, swish=True, statistics=self.statistics)
        doubles = self.resample == "up"
        h = norm(name="norm_0")(image, before_convolution=self.resample == "none")
        if self.resample == "down":
            h = h.resample("down")
        # An embedding that is added has a bias already.
        biased = self.scale_shift or embedding is None
        conv = functools.partial(Conv3x3, self.features, self.dtype, shifts=True)
        h = conv(use_bias=biased, doubles=doubles, name="conv_0")(h)
        modulation = {} if embedding is None else self._modulation(embedding)
        drops = self.dropout > 0 and dropout_keys is not None
        h = norm(name="norm_1")(h, **modulation, before_convolution=not drops)
        if drops:
            h = h.map(lambda values: drop(values, dropout_keys, self.dropout, h.outside))
        h = conv(zero=True, name="conv_1")(h)
        return (self._shortcut(image) + h) * _SQRT_HALF

    def _modulation(self, embedding: Float[Array, "b e"]) -> dict[str, Any]:
        width = 2 * self.features if self.scale_shift else self.features
        condition = Dense(width, self.dtype, name="embedding")(nn.swish(embedding))
        if self.scale_shift:
            return {"scale_shift": tuple(jnp.split(condition, 2, axis=-1))}
        return {"shift": condition}

    def _shortcut(self, image: PackedImage) -> PackedImage:
        if self.resample == "none" and image.channels == (self.features,):
            return image
        project = Conv1x1(self.features, self.dtype, name="shortcut")
        # The result is the same either way; the product is taken where there are fewer pixels.
        if self.resample == "up":
            return project(image).resample("up")
        return project(image.resample(self.resample))


class AttentionBlock(nn.Module):
    """Self-attention over all pixels: Norm, q k v, attention, zero-initialised projection.

    The number of heads divides that of channels; else it raises ValueError.
    """

    num_heads: int = 1
    dtype: DTypeLike = jnp.float32
    statistics: Statistics = "group"

    @nn.compact
    def __call__(self, image: PackedImage) -> PackedImage:
        b, h, w, c = image.shape
        if c % self.num_heads:
            raise ValueError(
                f"num_heads = {self.num_heads} does not divide the {c} channels; use a divisor"
            )
        normalised = Norm(self.dtype, statistics=self.statistics, name="norm")(image).to_array()
        qkv = Dense(3 * c, self.dtype, name="qkv")(normalised.reshape(b, h * w, c))
        q, k, v = jnp.split(qkv.reshape(b, h * w, 3 * self.num_heads, -1), 3, axis=2)
        # XLA for CPUs does not compile attention over one pixel in bfloat16.
        attended = v if h * w == 1 else jax.nn.dot_product_attention(q, k, v)
        attended = attended.reshape(b, h, w, c)
        attended = dataclasses.replace(image, parts=(attended,))
        attended = Conv1x1(c, self.dtype, zero=True, name="out")(attended)
        return (image + attended) * _SQRT_HALF
