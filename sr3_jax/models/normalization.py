"""Group normalisation and the swish after it as one operation with a gradient of few passes.

`pixel_norm` is the simpler one: its result at a pixel depends on that pixel alone.

Between the convolutions of a U-Net everything waits for memory, so what counts is how often an
image is read and written. Differentiated by hand, the backward pass needs two sums over the
pixels, which the convolution that makes the cotangent can take along, and one multiply-add for
each pixel, which the convolutions that read the result can do as they read. Gradients of what is
added to each channel before (the noise level's embedding) follow from the same sums, with no
further pass over the pixels.

A number near each channel's mean is subtracted before squares and products are summed. Otherwise
rounding would take the variance of an image whose mean is a thousand standard deviations. Forward
that number is the mean of one row, which costs next to nothing to read; backward it is the mean.
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

    channel_mean: PerChannel  # of the centred image
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
    pilot = _pilot(parts, fold)
    deviations = _add(parts, -pilot, fold)
    mean = _mean(deviations, fold)
    mean_square = _mean(map(jnp.square, deviations), fold)
    # The difference can round below zero on a constant image.
    channel_variance = jnp.maximum(mean_square - jnp.square(mean), 0.0)
    channel_mean = pilot + mean + shift
    group_mean = _over_group(channel_mean, num_groups)
    channel_mean = channel_mean - group_mean
    variance = _over_group(channel_variance + jnp.square(channel_mean), num_groups)
    inverse_std = jax.lax.rsqrt(variance + epsilon)
    statistics = _Statistics(channel_mean, shift - group_mean, inverse_std)
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
    channel_mean, centre, inverse_std = statistics
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
    # The two sums over the pixels; everything else is a number for each channel. The barrier keeps
    # XLA from merging them with the sums over the batch that follow, which would be a third pass
    # over g, and would have g written to memory in float32 (docs/gpu.md).
    centred = _add(parts, centre, fold)
    sums = _mean(g, fold), _mean(map(jnp.multiply, g, centred), fold)
    mean_g, mean_product = jax.lax.optimization_barrier(sums)
    sum_g, d_scale = pixels * mean_g, inverse_std * pixels * mean_product
    mean_g = _over_group(scale * mean_g, num_groups)
    mean_g_normalised = _over_group(scale * d_scale, num_groups) / pixels
    of_g = scale * inverse_std
    of_centred = -jnp.square(inverse_std) * mean_g_normalised
    constant = -inverse_std * mean_g
    d_shift = of_g * sum_g + pixels * (of_centred * channel_mean + constant)

    def one(part, g, of_g, of_image, constant):
        return (g * of_g + part.astype(jnp.float32) * of_image + constant).astype(part.dtype)

    constant = constant + of_centred * centre
    weights = (_split(v, parts, fold) for v in (of_g, of_centred, constant))
    d_parts = tuple(map(one, parts, g, *weights))
    return d_parts, d_shift, d_scale, sum_g


group_norm.defvjp(_forward, _backward)


def pixel_norm(
    parts: Parts,
    shift: PerChannel,
    scale: PerChannel,
    offset: PerChannel,
    swish: bool,
    epsilon: float = 1e-6,
    fold: int = 1,
) -> Parts:
    """Divides `image + shift` by its root mean square over the channels, at each pixel.

    Arguments and result are those of `group_norm`. The channels of all parts count together.
    """
    shifted = _add(parts, shift, fold)
    by_fold = [part.reshape(*part.shape[:-1], fold, -1) for part in shifted]
    squares = sum(jnp.sum(jnp.square(part), axis=-1, keepdims=True) for part in by_fold)
    inverse = jax.lax.rsqrt(squares / scale.shape[-1] + epsilon)

    def one(part: Array, normalised: Array, scale: Array, offset: Array) -> Array:
        out = (normalised * inverse).reshape(part.shape) * scale + offset
        return (out * jax.nn.sigmoid(out) if swish else out).astype(part.dtype)

    affine = (_split(v, parts, fold) for v in (scale, offset))
    return tuple(map(one, parts, by_fold, *affine))


def _affine(statistics: _Statistics, scale: PerChannel, offset: PerChannel):
    """Factor and constant that normalise, scale and offset a channel."""
    factor = statistics.inverse_std * scale
    return factor, offset + statistics.centre * factor


def _pilot(parts: Parts, fold: int) -> PerChannel:
    """A number near each channel's mean, known before the sums over the image are taken.

    The mean of the middle row: it is within sqrt(height) standard deviations of the image's mean,
    so that the variance loses log10(height) of float32's 7 digits at most.
    """

    def row_mean() -> PerChannel:
        return _mean((part[:, part.shape[1] // 2, None] for part in parts), fold)

    def none() -> PerChannel:
        return jnp.zeros((parts[0].shape[0], sum(part.shape[-1] for part in parts) // fold))

    if any(part.dtype == jnp.float32 for part in parts):
        return row_mean()
    # On TPUs the convolution that makes an image also takes its sums, which cannot wait for one of
    # its rows. Squares of bfloat16 are exact in float32; what the sum rounds off is less than what
    # bfloat16 has rounded off the image before.
    return jax.lax.platform_dependent(tpu=none, default=row_mean)


def _add(parts: Parts, values: PerChannel, fold: int) -> Parts:
    """The parts in float32, with a number for each channel added."""
    split = _split(values, parts, fold)
    return tuple(part.astype(jnp.float32) + v for part, v in zip(parts, split, strict=True))


def _mean(parts: Iterable[Array], fold: int) -> PerChannel:
    """Over the pixels of each channel of all parts."""

    def at_once(*parts: Array) -> list[Array]:
        return [jnp.mean(part, axis=(1, 2), dtype=jnp.float32) for part in parts]

    def by_rows(*parts: Array) -> list[Array]:
        rows = [jnp.mean(part, axis=2, dtype=jnp.float32) for part in parts]
        return [jnp.mean(row, axis=1) for row in rows]

    # On GPUs several sums over rows share a kernel. Several sums over whole small images do not:
    # each would read what is summed up from memory, in float32 (docs/gpu.md).
    means = jax.lax.platform_dependent(*parts, cuda=by_rows, rocm=by_rows, default=at_once)
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
