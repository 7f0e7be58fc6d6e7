"""Group normalisation and the swish after it as one operation with a gradient of few passes.

Between the convolutions of a U-Net everything waits for memory, so what counts is how often an
image is read and written. Differentiated by hand, the backward pass needs two sums over the
pixels, which the convolution that makes the cotangent can take along, and one multiply-add for
each pixel, which the convolutions that read the result can do as they read. Gradients of what is
added to each channel before (the noise level's embedding) follow from the same sums, with no
further pass over the pixels; docs/tpu.md has what that saves.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PerChannel = Float[Array, "b c"]


class _Statistics(NamedTuple):
    """Of an image, all float32 `[b, c]`; those of groups repeated for each channel."""

    channel_mean: PerChannel  # of the image itself
    centre: PerChannel  # what is added to the image to centre it: shift - the group's mean
    inverse_std: PerChannel  # of the group


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def group_norm(
    image: Float[Array, "b h w c"],
    shift: PerChannel,
    scale: PerChannel,
    offset: PerChannel,
    num_groups: int,
    swish: bool,
    epsilon: float = 1e-6,
) -> Float[Array, "b h w c"]:
    """Normalises `image + shift` by groups of channels, scales, offsets, and applies swish.

    Reverse-mode differentiable only. Statistics are float32 whatever the type of the image.

    Args:
      image: what a convolution made.
      shift: added to each channel before.
      scale: of each normalised channel.
      offset: added to each normalised channel.
      num_groups: of the channels; divides their number.
      swish: whether `v * sigmoid(v)` follows.
      epsilon: added to the variance.

    Returns:
      Of the shape and type of `image`.
    """
    return _forward(image, shift, scale, offset, num_groups, swish, epsilon)[0]


def _forward(image, shift, scale, offset, num_groups, swish, epsilon):
    wide = image.astype(jnp.float32)
    mean = jnp.mean(wide, axis=(1, 2))
    mean_square = jnp.mean(jnp.square(wide), axis=(1, 2))
    group_mean = _over_group(mean + shift, num_groups)
    # Of the shifted image, whose sums follow from those of the image.
    group_mean_square = _over_group(mean_square + shift * (2.0 * mean + shift), num_groups)
    # The difference can round below zero on a constant image.
    variance = jnp.maximum(group_mean_square - jnp.square(group_mean), 0.0)
    statistics = _Statistics(mean, shift - group_mean, jax.lax.rsqrt(variance + epsilon))
    normalised = _affine(wide, statistics, scale, offset)
    out = normalised * jax.nn.sigmoid(normalised) if swish else normalised
    return out.astype(image.dtype), (image, statistics, scale, offset)


def _backward(num_groups, swish, epsilon, residuals, cotangent):
    del epsilon  # in the statistics
    image, statistics, scale, offset = residuals
    mean, centre, inverse_std = statistics
    pixels = image.shape[1] * image.shape[2]
    wide, g = image.astype(jnp.float32), cotangent.astype(jnp.float32)
    if swish:
        normalised = _affine(wide, statistics, scale, offset)
        gate = jax.nn.sigmoid(normalised)
        g = g * gate * (1.0 + normalised * (1.0 - gate))
    # The two sums over the pixels; everything else is a number for each channel.
    sum_g = jnp.sum(g, axis=(1, 2))
    sum_g_image = jnp.sum(g * wide, axis=(1, 2))
    d_scale = inverse_std * (sum_g_image + centre * sum_g)
    mean_g = _over_group(scale * sum_g, num_groups) / pixels
    mean_g_normalised = _over_group(scale * d_scale, num_groups) / pixels
    of_g = scale * inverse_std
    of_image = -jnp.square(inverse_std) * mean_g_normalised
    constant = of_image * centre - inverse_std * mean_g
    d_image = g * _pixelwise(of_g) + wide * _pixelwise(of_image) + _pixelwise(constant)
    d_shift = of_g * sum_g + pixels * (of_image * mean + constant)
    return d_image.astype(image.dtype), d_shift, d_scale, sum_g


group_norm.defvjp(_forward, _backward)


def _affine(wide, statistics, scale, offset):
    factor = statistics.inverse_std * scale
    return wide * _pixelwise(factor) + _pixelwise(offset + statistics.centre * factor)


def _over_group(values: PerChannel, num_groups: int) -> PerChannel:
    """The mean over each group's channels, repeated for each of them.

    No reshape splits the channel axis of the image itself, which would cost a relayout on TPUs
    and vectorisation on CPUs.
    """
    grouped = values.reshape(values.shape[0], num_groups, -1)
    mean = jnp.mean(grouped, axis=-1, keepdims=True)
    return jnp.broadcast_to(mean, grouped.shape).reshape(values.shape)


def _pixelwise(values: PerChannel) -> Float[Array, "b 1 1 c"]:
    return values[:, None, None]
