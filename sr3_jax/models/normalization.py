"""Group normalisation and the swish after it as one operation with a gradient of few passes.

Between the convolutions of a U-Net everything waits for memory, so what counts is how often an
image is read and written. Differentiated by hand, the backward pass needs two sums over the
pixels, which the convolution that makes the cotangent can take along, and one multiply-add for
each pixel, which the convolutions that read the result can do as they read. Gradients of what is
added to each channel before (the noise level's embedding) follow from the same sums, with no
further pass over the pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sr3_jax.models import folding

PerChannel = Float[Array, "b c"]
# Images of one size that stand for their concatenation along the channels.
Parts = tuple[Float[Array, "b h w _"], ...]


class _Statistics(NamedTuple):
    """Of an image, all float32 `[b, c]`; those of groups repeated for each channel."""

    channel_mean: PerChannel  # of the image itself
    centre: PerChannel  # what is added to the image to centre it: shift - the group's mean
    inverse_std: PerChannel  # of the group


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def group_norm(
    parts: Parts,
    shift: PerChannel,
    scale: PerChannel,
    offset: PerChannel,
    num_groups: int,
    swish: bool,
    epsilon: float = 1e-6,
    fold: int = 1,
) -> Parts:
    """Normalises `image + shift` by groups of channels, scales, offsets, and applies swish.

    Reverse-mode differentiable only. Statistics are float32 whatever the type of the image.

    Args:
      parts: the image, in one part or several; groups may reach over the border of two parts.
      shift: added to each channel before.
      scale: of each normalised channel.
      offset: added to each normalised channel.
      num_groups: of the channels; divides their number.
      swish: whether `v * sigmoid(v)` follows.
      epsilon: added to the variance.
      fold: by which the parts are folded (`models.folding`); the other arguments are not.

    Returns:
      The result in the same parts, of the same types.
    """
    return _forward(parts, shift, scale, offset, num_groups, swish, epsilon, fold)[0]


def _forward(parts, shift, scale, offset, num_groups, swish, epsilon, fold):
    mean = _mean((part.astype(jnp.float32) for part in parts), fold)
    mean_square = _mean((jnp.square(part.astype(jnp.float32)) for part in parts), fold)
    group_mean = _over_group(mean + shift, num_groups)
    # Of the shifted image, whose sums follow from those of the image.
    group_mean_square = _over_group(mean_square + shift * (2.0 * mean + shift), num_groups)
    # The difference can round below zero on a constant image.
    variance = jnp.maximum(group_mean_square - jnp.square(group_mean), 0.0)
    statistics = _Statistics(mean, shift - group_mean, jax.lax.rsqrt(variance + epsilon))
    factor, constant = _affine(statistics, scale, offset)

    def one(part, factor, constant):
        normalised = part.astype(jnp.float32) * factor + constant
        out = normalised * jax.nn.sigmoid(normalised) if swish else normalised
        return out.astype(part.dtype)

    out = tuple(map(one, parts, *(_split(v, parts, fold) for v in (factor, constant))))
    return out, (parts, statistics, scale, offset)


def _backward(num_groups, swish, epsilon, fold, residuals, cotangents):
    del epsilon  # in the statistics
    parts, statistics, scale, offset = residuals
    mean, centre, inverse_std = statistics
    pixels = parts[0].shape[1] * parts[0].shape[2] * fold

    def before_swish(part, cotangent, factor, constant):
        cotangent = cotangent.astype(jnp.float32)
        if not swish:
            return cotangent
        normalised = part.astype(jnp.float32) * factor + constant
        gate = jax.nn.sigmoid(normalised)
        return cotangent * gate * (1.0 + normalised * (1.0 - gate))

    affine = (_split(v, parts, fold) for v in _affine(statistics, scale, offset))
    g = tuple(map(before_swish, parts, cotangents, *affine))
    # The two sums over the pixels; everything else is a number for each channel.
    sum_g = pixels * _mean(g, fold)
    sum_g_image = pixels * _mean(
        (g * part.astype(jnp.float32) for g, part in zip(g, parts, strict=True)), fold
    )
    d_scale = inverse_std * (sum_g_image + centre * sum_g)
    mean_g = _over_group(scale * sum_g, num_groups) / pixels
    mean_g_normalised = _over_group(scale * d_scale, num_groups) / pixels
    of_g = scale * inverse_std
    of_image = -jnp.square(inverse_std) * mean_g_normalised
    constant = of_image * centre - inverse_std * mean_g

    def one(part, g, of_g, of_image, constant):
        return (g * of_g + part.astype(jnp.float32) * of_image + constant).astype(part.dtype)

    weights = (_split(v, parts, fold) for v in (of_g, of_image, constant))
    d_parts = tuple(map(one, parts, g, *weights))
    d_shift = of_g * sum_g + pixels * (of_image * mean + constant)
    return d_parts, d_shift, d_scale, sum_g


group_norm.defvjp(_forward, _backward)


def _affine(statistics: _Statistics, scale: PerChannel, offset: PerChannel):
    """Factor and constant that normalise, scale and offset a channel."""
    factor = statistics.inverse_std * scale
    return factor, offset + statistics.centre * factor


def _mean(parts: Iterable[Array], fold: int) -> PerChannel:
    """Over the pixels of each channel of all parts."""
    means = [jnp.mean(part, axis=(1, 2)) for part in parts]
    if fold > 1:
        means = [mean.reshape(mean.shape[0], fold, -1).mean(axis=1) for mean in means]
    return jnp.concatenate(means, axis=-1)


def _split(values: PerChannel, parts: Parts, fold: int) -> list[Float[Array, "b 1 1 _"]]:
    """The values of each part's channels, to broadcast over its pixels."""
    split = folding.split_channels(values[:, None, None], parts, fold, axis=-1)
    return [jnp.tile(part, fold) for part in split] if fold > 1 else split


def _over_group(values: PerChannel, num_groups: int) -> PerChannel:
    """The mean over each group's channels, repeated for each of them.

    No reshape splits the channel axis of the image itself, which would cost a relayout on TPUs
    and vectorisation on CPUs.
    """
    grouped = values.reshape(values.shape[0], num_groups, -1)
    mean = jnp.mean(grouped, axis=-1, keepdims=True)
    return jnp.broadcast_to(mean, grouped.shape).reshape(values.shape)
