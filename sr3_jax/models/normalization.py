"""Normalisation and the swish after it, as one operation.

Between the convolutions of a U-Net everything waits for memory, so what counts is how often an
image is read and written. The gradient of `group_norm` is written by hand. It needs two sums over
the pixels, which the convolution that makes the cotangent can take along, and one multiply-add for
each pixel, which the convolutions that read the result can do as they read. The gradient of `shift`
(the noise level's embedding) follows from the same sums.

A number near each channel's mean is subtracted before squares and products are summed. Otherwise
rounding would take the variance of an image whose mean is a thousand standard deviations. Forward
that number is the mean of one row, which costs next to nothing to read; backward it is the mean.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sr3_jax.models.width_packing import PackedImage

PerChannel = Float[Array, "b c"]

_EPSILON = 1e-6  # is added to variances and mean squares


class _Statistics(NamedTuple):
    """Statistics of an image in float32; those of groups are repeated for each channel."""

    channel_mean: PerChannel  # of the centred image
    centre: PerChannel  # what is added to the image to centre it: shift - the group's mean
    inverse_std: PerChannel  # of the group


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def group_norm(
    image: PackedImage,
    shift: PerChannel,
    scale: PerChannel,
    offset: PerChannel,
    num_groups: int,
    swish: bool,
) -> PackedImage:
    """Normalises `image + shift` by groups of channels, scales, offsets, and applies swish.

    Only reverse-mode differentiation is supported. `num_groups` divides the number of channels;
    groups may reach over the border of two parts of the image. The result has the image's type.
    """
    return _forward(image, shift, scale, offset, num_groups, swish)[0]


def statistics(
    image: PackedImage,
    shift: PerChannel,
    scale: PerChannel,
    offset: PerChannel,
    num_groups: int,
) -> tuple[tuple[PerChannel, PerChannel], tuple[Any, ...]]:
    """Returns factor and constant by which `group_norm` normalises, and what `gradients` needs."""
    pilot = _pilot(image)
    deviations = image.map(_add, -pilot)
    mean = deviations.mean()
    mean_square = deviations.map(jnp.square).mean()
    # The difference can round below zero on a constant image.
    channel_variance = jnp.maximum(mean_square - jnp.square(mean), 0.0)
    channel_mean = pilot + mean + shift
    group_mean = _over_group(channel_mean, num_groups)
    channel_mean = channel_mean - group_mean
    variance = _over_group(channel_variance + jnp.square(channel_mean), num_groups)
    inverse_std = jax.lax.rsqrt(variance + _EPSILON)
    found = _Statistics(channel_mean, shift - group_mean, inverse_std)
    return _affine(found, scale, offset), (image, found, scale, offset)


def apply(
    part: Float[Array, "b h w c"],
    factor: Float[Array, "b _ _ c"],
    constant: Float[Array, "b _ _ c"],
    swish: bool,
) -> Float[Array, "b h w c"]:
    """Returns `part * factor + constant`, after swish where asked to, in the type of `part`."""
    normalised = part.astype(jnp.float32) * factor + constant
    out = normalised * jax.nn.sigmoid(normalised) if swish else normalised
    return out.astype(part.dtype)


def _forward(image, shift, scale, offset, num_groups, swish):
    affine, residuals = statistics(image, shift, scale, offset, num_groups)
    return image.map(functools.partial(apply, swish=swish), *affine), residuals


def gradients(
    num_groups: int, swish: bool, residuals: tuple[Any, ...], cotangent: PackedImage
) -> tuple[PackedImage, PerChannel, PerChannel, PerChannel]:
    """Returns the gradients of image, shift, scale and offset; `residuals` are of `statistics`."""
    image, found, scale, offset = residuals
    channel_mean, centre, inverse_std = found
    _, h, w, _ = image.shape

    def before_swish(part, cotangent, factor, constant):
        cotangent = cotangent.astype(jnp.float32)
        if not swish:
            return cotangent
        normalised = part.astype(jnp.float32) * factor + constant
        gate = jax.nn.sigmoid(normalised)
        return cotangent * gate * (1.0 + normalised * (1.0 - gate))

    g = image.map(before_swish, cotangent, *_affine(found, scale, offset))
    # The two sums over the pixels; everything else is a number for each channel. The barrier keeps
    # XLA from merging them with the sums over the batch that follow, which would be a third pass
    # over g, and would have g written to memory in float32 (docs/gpu.md).
    sums = g.mean(), g.map(jnp.multiply, image.map(_add, centre)).mean()
    mean_g, mean_product = jax.lax.optimization_barrier(sums)
    sum_g, d_scale = h * w * mean_g, inverse_std * (h * w) * mean_product
    mean_g = _over_group(scale * mean_g, num_groups)
    mean_g_normalised = _over_group(scale * d_scale, num_groups) / (h * w)
    of_g = scale * inverse_std
    of_centred = -jnp.square(inverse_std) * mean_g_normalised
    constant = -inverse_std * mean_g
    d_shift = of_g * sum_g + h * w * (of_centred * channel_mean + constant)

    g = image.map(_kept, g)

    def one(part, g, of_g, of_image, constant):
        return (g * of_g + part.astype(jnp.float32) * of_image + constant).astype(part.dtype)

    d_image = image.map(one, g, of_g, of_centred, constant + of_centred * centre)
    return d_image, d_shift, d_scale, sum_g


group_norm.defvjp(_forward, gradients)


def _kept(part: Float[Array, "b h w _"], g: Float[Array, "b h w _"]) -> Array:
    """Returns g, on TPUs rounded to the image's type, as it waits in memory for the sums.

    A barrier makes the convolution write it so, together with the sums. Otherwise XLA, which may
    keep more digits than the program says, writes and reads g in float32. GPUs do not write it.
    """
    if part.dtype == jnp.float32:
        return g

    def rounded(g: Array) -> Array:
        return jax.lax.optimization_barrier(g.astype(part.dtype)).astype(jnp.float32)

    return jax.lax.platform_dependent(g, tpu=rounded, default=lambda g: g)


def pixel_norm(
    image: PackedImage, shift: PerChannel, scale: PerChannel, offset: PerChannel, swish: bool
) -> PackedImage:
    """Divides each pixel of `image + shift` by its root mean square over the channels.

    All else is as in `group_norm`.
    """

    def one(part: Array, unit: Array, scale: Array, offset: Array) -> Array:
        out = unit * scale + offset
        return (out * jax.nn.sigmoid(out) if swish else out).astype(part.dtype)

    return image.map(one, image.map(_add, shift).divide_by_rms(_EPSILON), scale, offset)


def _affine(statistics: _Statistics, scale: PerChannel, offset: PerChannel):
    """Factor and constant that normalise, scale and offset a channel."""
    factor = statistics.inverse_std * scale
    return factor, offset + statistics.centre * factor


def _pilot(image: PackedImage) -> PerChannel:
    """A number near each channel's mean, known before the sums over the image are taken.

    The mean of the middle row: it is within sqrt(height) standard deviations of the image's mean,
    so that the variance loses log10(height) of float32's 7 digits at most.
    """
    b, h, _, c = image.shape

    def row_mean() -> PerChannel:
        return image.map(lambda part: part[:, h // 2, None]).mean()

    if any(part.dtype == jnp.float32 for part in image.parts):
        return row_mean()
    # On TPUs the convolution that makes an image also takes its sums, which cannot wait for one of
    # its rows. Squares of bfloat16 are exact in float32; what the sum rounds off is less than what
    # bfloat16 has rounded off the image before.
    return jax.lax.platform_dependent(tpu=lambda: jnp.zeros((b, c)), default=row_mean)


def _add(part: Float[Array, "b h w _"], values: Float[Array, "b 1 #w _"]) -> Array:
    """The sum in float32."""
    return part.astype(jnp.float32) + values


def _over_group(values: PerChannel, num_groups: int) -> PerChannel:
    """The mean over each group's channels, repeated for each of them.

    No reshape splits the channel axis of the image itself, which would cost a relayout on TPUs
    and vectorisation on CPUs.
    """
    grouped = values.reshape(values.shape[0], num_groups, -1)
    mean = jnp.mean(grouped, axis=-1, keepdims=True)
    return jnp.broadcast_to(mean, grouped.shape).reshape(values.shape)
