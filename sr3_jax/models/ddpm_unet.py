"""The U-Net of DDPM (Ho et al. 2020, appendix B) in the forms that other programs train it in.

Beside `UNet` it has plain residual blocks, without a factor of 1/sqrt(2), and resamples by a single
convolution. `sr3_jax.tools.import_weights` fills it with weights of other programs.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from sr3_jax.models import layers


@dataclasses.dataclass(frozen=True)
class Form:
    """The differences between the programs' networks.

    Attributes:
      embeds_time: the network embeds t - 1 of DDPM's steps t = 1..T, and not sqrt(gamma).
      embedding_width: channels of the embedding, as a multiple of those of the first level.
      swish_embedding: whether each block applies swish to the embedding.
      full_period: whether the lowest frequency of the embedding is 1/10000, and not the next one
        after it.
      padding: of convolutions that halve the image: pixels before and after.
      epsilon: is added to variances.
      head_channels: channels of each attention head; 0: one head has all.
    """

    embeds_time: bool
    embedding_width: int
    swish_embedding: bool
    full_period: bool = False
    padding: tuple[int, int] = (1, 1)
    epsilon: float = 1e-5
    head_channels: int = 0


# The keys are values of `config.model.architecture`.
FORMS = {
    "janspiry_sr3": Form(embeds_time=False, embedding_width=1, swish_embedding=False),
    "janspiry_ddpm": Form(embeds_time=True, embedding_width=1, swish_embedding=True),
    "diffusers": Form(embeds_time=True, embedding_width=4, swish_embedding=True, head_channels=8),
    # DDPM's own weights, as diffusers has them.
    "diffusers_ddpm": Form(
        embeds_time=True,
        embedding_width=4,
        swish_embedding=True,
        full_period=True,
        padding=(0, 1),
        epsilon=1e-6,
    ),
}


class DDPMUNet(nn.Module):
    """f(x, y_t, gamma), with the levels of `UNet`.

    Attributes:
      form: what differs between programs.
      channels: channels of the first level, an even number.
      multipliers: channels of each level, as multiples of `channels`.
      num_blocks: residual blocks in each level on the way down; there is one more on the way up.
      attention_levels: levels with self-attention after each block; the bottleneck always has one.
      num_groups: groups of each group normalisation; it divides all numbers of channels.
      gammas: gamma_1..gamma_T of training, among which a network of `embeds_time` looks up t.
      dropout: probability of dropping an activation in training.
      dtype: type of the computation; parameters, statistics and the output are float32.
      remat: recompute each block in the backward pass instead of keeping its activations.
      has_source: without one there is no x, and the network makes images from nothing.
    """

    has_y_t: ClassVar[bool] = True
    num_classes: ClassVar[int] = 0
    source_noise: ClassVar[bool] = False
    bottleneck_attention: ClassVar[bool] = True
    image_channels: ClassVar[int] = 3
    source_channels: ClassVar[int] = 3

    form: Form
    channels: int = 64
    multipliers: Sequence[int] = (1, 2, 4, 8)
    num_blocks: int = 2
    attention_levels: Sequence[int] = ()
    num_groups: int = 32
    gammas: Sequence[float] = ()
    dropout: float = 0.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    has_source: bool = True

    @property
    def num_heads(self) -> int:
        """Number of attention heads at the deepest level, where there are most."""
        return _num_heads(self.form, self.channels * self.multipliers[-1])

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"] | None,
        y_t: Float[Array, "b h w d"],
        gamma: Float[Array, " b"],
        dropout_keys: Key[Array, " b"] | None = None,
        label: None = None,
        source_gamma: None = None,
    ) -> Float[Array, "b h w 3"]:
        """Returns the output of the last convolution, float32; the inputs are those of `UNet`."""
        block_type = nn.remat(_Block) if self.remat else _Block
        embedding = self._embed(gamma)

        def block(h: Array, name: str, level: int, attends: bool | None = None) -> Array:
            attends = level in self.attention_levels if attends is None else attends
            features = self.channels * self.multipliers[level]
            keys = dropout_keys
            if keys is not None and self.dropout:
                number = zlib.crc32(name.encode())
                keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
            options = (self.form, features, self.num_groups, attends, self.dropout, self.dtype)
            return block_type(*options, name=name)(h, embedding, keys)

        deepest = len(self.multipliers) - 1
        parts = [part for part in (x, y_t) if part is not None]
        h = jnp.concatenate(parts, axis=-1).astype(self.dtype)
        h = _conv(self.channels, self.dtype, "conv_in")(h)
        skips = [h]
        for level in range(deepest + 1):
            for i in range(self.num_blocks):
                h = block(h, f"down_{level}_block_{i}", level)
                skips.append(h)
            if level < deepest:
                down = {"strides": 2, "padding": self.form.padding}
                h = _conv(h.shape[-1], self.dtype, f"down_{level}_resample", **down)(h)
                skips.append(h)

        h = block(h, "middle_block_0", deepest, attends=True)
        h = block(h, "middle_block_1", deepest, attends=False)

        for level in reversed(range(deepest + 1)):
            for i in range(self.num_blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(h, f"up_{level}_block_{i}", level)
            if level > 0:
                h = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
                h = _conv(h.shape[-1], self.dtype, f"up_{level}_resample")(h)

        h = nn.swish(_norm(self.form, self.num_groups, self.dtype, "norm_out")(h))
        return _conv(self.image_channels, self.dtype, "conv_out")(h).astype(jnp.float32)

    def _embed(self, gamma: Float[Array, " b"]) -> Float[Array, "b _"]:
        """Sinusoids of t - 1 or of sqrt(gamma), Dense, swish, Dense."""
        value = self._time(gamma) if self.form.embeds_time else jnp.sqrt(gamma)
        half = self.channels // 2
        steps = half - 1 if self.form.full_period else half
        angle = value[:, None] * jnp.exp(-math.log(10_000.0) * jnp.arange(half) / steps)
        h = jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1).astype(self.dtype)
        h = layers.Dense(4 * self.channels, self.dtype, name="embedding_0")(h)
        width = self.form.embedding_width * self.channels
        h = layers.Dense(width, self.dtype, name="embedding_1")(nn.swish(h))
        return nn.swish(h) if self.form.swish_embedding else h

    def _time(self, gamma: Float[Array, " b"]) -> Float[Array, " b"]:
        """Returns t - 1, in [0, T - 1], interpolated between the gammas of training."""
        gammas = jnp.asarray(self.gammas[::-1], jnp.float32)
        return jnp.interp(gamma, gammas, jnp.arange(len(self.gammas) - 1.0, -1.0, -1.0))


class _Block(nn.Module):
    """A residual block, and self-attention after it where there is any."""

    form: Form
    features: int
    num_groups: int
    attends: bool
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self,
        image: Float[Array, "b h w _"],
        embedding: Float[Array, "b e"],
        dropout_keys: Key[Array, " b"] | None,
    ) -> Float[Array, "b h w c"]:
        def norm(name: str) -> nn.GroupNorm:
            return _norm(self.form, self.num_groups, self.dtype, name)

        h = _conv(self.features, self.dtype, "conv_0")(nn.swish(norm("norm_0")(image)))
        h += layers.Dense(self.features, self.dtype, name="embedding")(embedding)[:, None, None]
        h = nn.swish(norm("norm_1")(h))
        if self.dropout and dropout_keys is not None:
            h = layers.drop(h, dropout_keys, self.dropout)
        h = _conv(self.features, self.dtype, "conv_1")(h)
        if image.shape[-1] != self.features:
            image = layers.Dense(self.features, self.dtype, name="shortcut")(image)
        h += image
        if not self.attends:
            return h
        b, height, width, c = h.shape
        qkv = layers.Dense(3 * c, self.dtype, name="qkv")(norm("norm_attention")(h))
        heads = _num_heads(self.form, c)
        q, k, v = jnp.split(qkv.reshape(b, height * width, 3 * heads, -1), 3, axis=2)
        attended = jax.nn.dot_product_attention(q, k, v).reshape(h.shape)
        return h + layers.Dense(c, self.dtype, name="attention_out")(attended)


def _num_heads(form: Form, channels: int) -> int:
    return channels // form.head_channels if form.head_channels else 1


def _conv(features: int, dtype: DTypeLike, name: str, **options) -> nn.Conv:
    options = {"padding": (1, 1)} | options
    options["padding"] = (options["padding"],) * 2
    return nn.Conv(
        features, (3, 3), dtype=dtype, kernel_init=layers.glorot_uniform, name=name, **options
    )


def _norm(form: Form, num_groups: int, dtype: DTypeLike, name: str) -> nn.GroupNorm:
    # The fast variance, a difference of two sums, loses digits where the mean is large.
    return nn.GroupNorm(
        num_groups, epsilon=form.epsilon, dtype=dtype, use_fast_variance=False, name=name
    )
