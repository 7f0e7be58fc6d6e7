"""The SR3 U-Net: estimates the noise in y_t given the low-resolution source and gamma.

And what its regression baseline is: the same network without y_t and gamma, which gives y_0.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from sr3_jax import diffusion
from sr3_jax.models import folding, layers

Predicts = Literal["eps", "y_0"]
Input = Array | tuple[Array, Array]  # of a block: an image, or one and what a skip brings


class UNet(nn.Module):
    """f(x, y_t, gamma) of SR3 (section 2 and Table A.1).

    Level i of the U-Net works at 1/2^i of the input size with `channels * multipliers[i]`
    channels. Resampling is a residual block of its own after each level; a level has
    `num_blocks` blocks on the way down and one more on the way up.

    Attributes:
      channels: channels of the first level.
      multipliers: channels of each level, as multiples of `channels`.
      num_blocks: residual blocks in each level on the way down.
      attention_levels: levels with self-attention after each block, as in DDPM.
      bottleneck_attention: self-attention between the two blocks at the bottleneck. Without any
        attention the network is local: it can be trained on crops and run on larger images.
      num_heads: attention heads.
      dropout: probability of dropping an activation in training.
      scale_shift: let the noise embedding scale and shift after normalisation instead of being
        added before it.
      embedding_scale: factor on sqrt(gamma) before its sinusoids.
      residual_std: where over 0, the convolutions correct the best linear estimate of eps for
        y_0 = x + noise of this standard deviation (`diffusion.estimate_eps_linearly`), or x, by
        multiples of it; 0 has them give eps or y_0 itself, as in the paper.
      out_channels: channels of the image.
      dtype: type of the computation; parameters, statistics and the output are float32.
      remat: recompute each block in the backward pass instead of keeping its activations.
      lanes: levels of fewer channels are folded to so many (`models.folding`), which TPUs want; 1
        folds nothing. The parameters and, but for rounding, the result are the same.
      predicts: `eps`; or `y_0`, of x alone: the paper's regression baseline.
    """

    channels: int = 64
    multipliers: Sequence[int] = (1, 2, 4, 8)
    num_blocks: int = 2
    attention_levels: Sequence[int] = ()
    bottleneck_attention: bool = True
    num_heads: int = 1
    dropout: float = 0.0
    scale_shift: bool = False
    embedding_scale: float = 5000.0
    residual_std: float = 0.0
    out_channels: int = 3
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    lanes: int = 1
    predicts: Predicts = "eps"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        y_t: Float[Array, "b h w d"] | None = None,
        gamma: Float[Array, " b"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w {self.out_channels}"]:
        """Estimates eps, or y_0 (`predicts`).

        Args:
          x: the low-resolution source, already upsampled to the size of `y_t`, in [-1, 1].
          y_t: the noisy image; None where y_0 is predicted, as is `gamma`.
          gamma: the share of signal variance in each y_t, in [0, 1].
          dropout_keys: for training, one for each image; without them nothing is dropped.

        Raises:
          ValueError: where the sizes differ, or are not divisible by the deepest stride, or there
            is too much or too little to predict from.
        """
        self._check_inputs(x, y_t, gamma)
        fold = self._folds(x.shape[2])
        remat = nn.remat if self.remat else lambda module: module
        block_type = remat(layers.ResidualBlock)
        attention_type = remat(layers.AttentionBlock)
        embedding = None if gamma is None else self._embed(gamma)

        def block(h: Input, name: str, level: int, resample: layers.Resample = "none") -> Array:
            features = self.channels * self.multipliers[level]
            level_out = level + {"none": 0, "down": 1, "up": -1}[resample]
            folds = dict(fold=fold[level], fold_out=fold[level_out])
            module = block_type(
                features, resample, self.dropout, self.scale_shift, self.dtype, **folds, name=name
            )
            keys = dropout_keys
            if keys is not None and self.dropout:
                number = zlib.crc32(name.encode())
                keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
            return module(h, embedding, keys)

        def attention(h: Array, name: str, level: int) -> Array:
            h = folding.refold(h, fold[level], 1)
            h = attention_type(self.num_heads, self.dtype, name=name)(h)
            return folding.refold(h, 1, fold[level])

        deepest = len(self.multipliers) - 1
        h = x if y_t is None else jnp.concatenate([x, y_t], axis=-1)
        h = h.astype(self.dtype)
        h = folding.fold(h, fold[0])
        h = layers.Conv3x3(self.channels, self.dtype, fold=fold[0], name="conv_in")(h)
        skips = [h]
        for level in range(deepest + 1):
            for i in range(self.num_blocks):
                h = block(h, f"down_{level}_block_{i}", level)
                if level in self.attention_levels:
                    h = attention(h, f"down_{level}_attention_{i}", level)
                skips.append(h)
            if level < deepest:
                h = block(h, f"down_{level}_resample", level, "down")
                skips.append(h)

        h = block(h, "middle_block_0", deepest)
        if self.bottleneck_attention:
            h = attention(h, "middle_attention", deepest)
        h = block(h, "middle_block_1", deepest)

        for level in reversed(range(deepest + 1)):
            for i in range(self.num_blocks + 1):
                h = block((h, skips.pop()), f"up_{level}_block_{i}", level)
                if level in self.attention_levels:
                    h = attention(h, f"up_{level}_attention_{i}", level)
            if level > 0:
                h = block(h, f"up_{level}_resample", level, "up")

        out = self._to_image(h, fold[0])
        if not self.residual_std:
            return out
        if y_t is None:
            return x + self.residual_std * out
        eps, std = diffusion.estimate_eps_linearly(x, y_t, gamma, self.residual_std)
        return eps + std * out

    def _embed(self, gamma: Float[Array, " b"]) -> Float[Array, "b _"]:
        embedding = layers.NoiseEmbedding(
            self.channels, self.embedding_scale, self.dtype, name="noise_embedding"
        )
        return embedding(gamma)

    def _to_image(self, h: Float[Array, "b h _ _"], fold: int) -> Float[Array, "b h w _"]:
        (h,) = layers.GroupNorm(self.dtype, swish=True, fold=fold, name="norm_out")(h)
        conv = layers.Conv3x3(self.out_channels, self.dtype, zero=True, fold=fold, name="conv_out")
        return folding.refold(conv(h), fold, 1).astype(jnp.float32)

    def _folds(self, width: int) -> list[int]:
        """By how much the images of each level are folded."""
        return [
            folding.fold_for(self.channels * multiplier, width // 2**level, self.lanes)
            for level, multiplier in enumerate(self.multipliers)
        ]

    def _check_inputs(self, x: Array, y_t: Array | None, gamma: Array | None) -> None:
        given = [name for name, value in (("y_t", y_t), ("gamma", gamma)) if value is not None]
        if given != (["y_t", "gamma"] if self.predicts == "eps" else []):
            raise ValueError(
                f"a network that predicts {self.predicts} was given x, "
                f"{', '.join(given) or 'nothing else'}; eps is predicted from x, y_t and gamma, "
                "y_0 from x alone"
            )
        if y_t is not None and x.shape[:3] != y_t.shape[:3]:
            raise ValueError(
                f"x has shape {x.shape} but y_t has {y_t.shape}: upsample x to the size of y_t "
                "first"
            )
        stride = deepest_stride(self.multipliers)
        height, width = x.shape[1:3]
        if height % stride or width % stride:
            up = [-(-n // stride) * stride for n in (height, width)]
            down = [max(n // stride, 1) * stride for n in (height, width)]
            raise ValueError(
                f"images of {height}x{width} do not fit a U-Net of {len(self.multipliers)} "
                f"levels: height and width must be divisible by {stride}; "
                f"{down[0]}x{down[1]} or {up[0]}x{up[1]} would do"
            )


def deepest_stride(multipliers: Sequence[int]) -> int:
    """By how much the deepest level is smaller than the image."""
    return 2 ** (len(multipliers) - 1)


def example_inputs(
    model: nn.Module, image_size: int, channels: int = 3
) -> tuple[Float[Array, "1 ..."], ...]:
    """Zeros of the shapes that a network takes: to initialise it, or to see its shapes."""
    image = jnp.zeros((1, image_size, image_size, channels))
    return (image,) if model.predicts == "y_0" else (image, image, jnp.zeros((1,)))


def count_parameters(model: nn.Module, image_size: int, channels: int = 3) -> int:
    """Number of parameters, by shape evaluation: nothing is allocated."""
    inputs = jax.eval_shape(lambda: example_inputs(model, image_size, channels))
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def count_flops(model: nn.Module, image_size: int, channels: int = 3) -> float:
    """Floating-point operations of the network on one image, as XLA counts the plain program.

    Folding and recomputation are not counted; a training step is taken for three times as many.
    Nothing is allocated.
    """
    plain = model.clone(lanes=1, remat=False) if isinstance(model, UNet) else model
    inputs = jax.eval_shape(lambda: example_inputs(model, image_size, channels))
    shapes = jax.eval_shape(plain.init, jax.random.key(0), *inputs)
    return jax.jit(plain.apply).lower(shapes, *inputs).cost_analysis()["flops"]
