"""The SR3 U-Net: the network of x, y_t and gamma whose output a `Denoiser` interprets.

Without x it is the network that a cascade begins with; without y_t and gamma, the regression
baseline's.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, Shaped

from sr3_jax.models import layers, width_packing
from sr3_jax.models.width_packing import PackedImage
from sr3_jax.sizes import Size, sides


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
      bottleneck_attention: self-attention between the two blocks at the bottleneck. A network
        without any attention can be trained on crops and run on larger images. Its convolutions
        reach far (78 pixels to each side with three levels of a block each), and so does `norm`.
      norm: `group` normalises by statistics of the whole array, as in the paper; `pixel` by those
        of each pixel's channels, so that what lies far away makes no difference
        (`layers.Norm`).
      num_heads: attention heads.
      dropout: probability of dropping an activation in training.
      scale_shift: let the noise embedding scale and shift after normalisation instead of being
        added before it.
      embedding_scale: factor on sqrt(gamma) before its sinusoids.
      dtype: type of the computation; parameters, statistics and the output are float32.
      remat: recompute each block in the backward pass instead of keeping its activations.
      packed_channels: levels of fewer channels are packed to so many (`models.width_packing`), for
        TPUs; 1: no packing. Parameters and, but for rounding, results are the same.
      by_products: convolutions of bfloat16 are made of matrix products on CPUs
        (`convolution.convolve`), for those with instructions for bfloat16.
      has_y_t: whether y_t and gamma are inputs; the paper's regression baseline has x alone.
      has_source: without one there is no x, and the network makes images from nothing (DDPM).
      image_channels: channels of y_t and of the prediction.
      source_channels: channels of x.
      num_classes: number of classes; their embedding is added to that of gamma (Improved DDPM).
        The last row of its table, of index `num_classes`, stands for no label. 0: no labels.
      learned_variance: the output has twice the channels of an image, the second half for the
        variance of the reverse step (Improved DDPM).
      source_noise: x may come with noise of its own, whose gamma is embedded likewise
        (conditioning augmentation; Ho et al., "Cascaded Diffusion Models", section 4).
    """

    channels: int = 64
    multipliers: Sequence[int] = (1, 2, 4, 8)
    num_blocks: int = 2
    attention_levels: Sequence[int] = ()
    bottleneck_attention: bool = True
    norm: layers.Statistics = "group"
    num_heads: int = 1
    dropout: float = 0.0
    scale_shift: bool = False
    embedding_scale: float = 5000.0
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    packed_channels: int = 1
    by_products: bool = False
    has_y_t: bool = True
    has_source: bool = True
    num_classes: int = 0
    source_noise: bool = False
    learned_variance: bool = False
    image_channels: int = 3
    source_channels: int = 3

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"] | None,
        y_t: Float[Array, "b h w d"] | None = None,
        gamma: Float[Array, " b"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
        label: Int[Array, " b"] | None = None,
        source_gamma: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b h w _"]:
        """Returns the last convolution's output, float32, of `image_channels` or twice as many.

        Args:
          x: the low-resolution source, already upsampled to the size of `y_t`, in [-1, 1].
          y_t: the noisy image.
          gamma: the share of signal variance in each y_t, in [0, 1].
          dropout_keys: for training, one for each image; without them nothing is dropped.
          label: class of each image, `num_classes` for the null label.
          source_gamma: the share of signal variance in each x.

        Raises:
          ValueError: the sizes differ, or are not divisible by the deepest stride, or an input is
            missing or not the network's.
        """
        self._check_inputs(x=x, y_t=y_t, gamma=gamma, label=label, source_gamma=source_gamma)
        remat = nn.remat if self.remat else lambda module: module
        block_type = remat(layers.ResidualBlock)
        attention_type = remat(layers.AttentionBlock)
        embedding = self._embed(gamma, label, source_gamma)

        def block(
            h: PackedImage, name: str, level: int, resample: layers.Resample = "none"
        ) -> PackedImage:
            features = self.channels * self.multipliers[level]
            options = (features, resample, self.dropout, self.scale_shift, self.dtype)
            module = block_type(*options, statistics=self.norm, name=name)
            keys = dropout_keys
            if keys is not None and self.dropout:
                number = zlib.crc32(name.encode())
                keys = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
            return module(h, embedding, keys)

        def attention(h: PackedImage, name: str) -> PackedImage:
            module = attention_type(self.num_heads, self.dtype, self.norm, name=name)
            return module(h.packed_by(1)).packed_by(h.factor)

        deepest = len(self.multipliers) - 1
        h = jnp.concatenate([part for part in (x, y_t) if part is not None], axis=-1)
        level_channels = [self.channels * multiplier for multiplier in self.multipliers]
        h = width_packing.pack(
            h.astype(self.dtype), level_channels, self.packed_channels, self.by_products
        )
        h = layers.Conv3x3(self.channels, self.dtype, name="conv_in")(h)
        skips = [h]
        for level in range(deepest + 1):
            for i in range(self.num_blocks):
                h = block(h, f"down_{level}_block_{i}", level)
                if level in self.attention_levels:
                    h = attention(h, f"down_{level}_attention_{i}")
                skips.append(h)
            if level < deepest:
                h = block(h, f"down_{level}_resample", level, "down")
                skips.append(h)

        h = block(h, "middle_block_0", deepest)
        if self.bottleneck_attention:
            h = attention(h, "middle_attention")
        h = block(h, "middle_block_1", deepest)

        for level in reversed(range(deepest + 1)):
            for i in range(self.num_blocks + 1):
                h = block(h.beside(skips.pop()), f"up_{level}_block_{i}", level)
                if level in self.attention_levels:
                    h = attention(h, f"up_{level}_attention_{i}")
            if level > 0:
                h = block(h, f"up_{level}_resample", level, "up")

        return self._to_image(h)

    def _embed(
        self, gamma: Array | None, label: Array | None, source_gamma: Array | None
    ) -> Float[Array, "b _"] | None:
        """The sum of the embeddings of what is given; each block adds it."""
        parts = [
            layers.NoiseEmbedding(self.channels, self.embedding_scale, self.dtype, name=name)(level)
            for name, level in (
                ("noise_embedding", gamma),
                # By its noise: sqrt(gamma) hardly changes where there is little.
                ("source_noise_embedding", None if source_gamma is None else 1.0 - source_gamma),
            )
            if level is not None
        ]
        if label is not None:
            table = nn.Embed(
                self.num_classes + 1,
                4 * self.channels,
                embedding_init=nn.initializers.normal(1.0),
                dtype=self.dtype,
                name="label_embedding",
            )
            parts.append(table(label))
        return sum(parts) if parts else None

    def _to_image(self, h: PackedImage) -> Float[Array, "b h w _"]:
        norm = layers.Norm(self.dtype, swish=True, statistics=self.norm, name="norm_out")
        channels = self.image_channels * (2 if self.learned_variance else 1)
        h = layers.Conv3x3(channels, self.dtype, zero=True, name="conv_out")(
            norm(h, before_convolution=True)
        )
        return h.to_array().astype(jnp.float32)

    def _check_inputs(self, **inputs: Array | None) -> None:
        given = [name for name, value in inputs.items() if value is not None]
        takes = (self.has_source, self.has_y_t, self.has_y_t, self.num_classes, self.source_noise)
        wanted = [name for name, is_taken in zip(inputs, takes, strict=True) if is_taken]
        if given != wanted:
            raise ValueError(
                f"a network of has_source = {self.has_source}, has_y_t = {self.has_y_t}, "
                f"num_classes = {self.num_classes}, source_noise = {self.source_noise} takes "
                f"{', '.join(wanted)}; it was given {', '.join(given) or 'nothing'}"
            )
        x, y_t = inputs["x"], inputs["y_t"]
        image = x if y_t is None else y_t
        if x is not None and x.shape[:3] != image.shape[:3]:
            raise ValueError(f"x has shape {x.shape} but y_t has {y_t.shape}: upsample x first")
        for name, channels in (("x", self.source_channels), ("y_t", self.image_channels)):
            if inputs[name] is not None and inputs[name].shape[-1] != channels:
                raise ValueError(
                    f"{name} has shape {inputs[name].shape}; the network takes {channels} channels"
                )
        stride = 2 ** (len(self.multipliers) - 1)  # between the image and the deepest level
        height, width = image.shape[1:3]
        if height % stride or width % stride:
            up = [-(-n // stride) * stride for n in (height, width)]
            down = [max(n // stride, 1) * stride for n in (height, width)]
            raise ValueError(
                f"images of {height}x{width} do not fit a U-Net of {len(self.multipliers)} "
                f"levels: height and width must be divisible by {stride}; "
                f"{down[0]}x{down[1]} or {up[0]}x{up[1]} would do"
            )


def example_inputs(model: nn.Module, image_size: Size) -> tuple[Shaped[Array, "1 ..."] | None, ...]:
    """Zeros of the shapes that a network takes: to initialise it, or to see its shapes."""
    window, number = (1, *sides(image_size)), jnp.zeros((1,))
    x = jnp.zeros((*window, model.source_channels)) if model.has_source else None
    if not model.has_y_t:
        return (x,)
    return (
        x,
        jnp.zeros((*window, model.image_channels)),
        number,
        None,
        jnp.zeros((1,), jnp.int32) if model.num_classes else None,
        number if model.source_noise else None,
    )


def parameter_shapes(model: nn.Module, image_size: Size) -> dict[str, Any]:
    """A network's parameters as `jax.ShapeDtypeStruct`s: nothing is allocated."""
    init = lambda: model.init(jax.random.key(0), *example_inputs(model, image_size))  # noqa: E731
    return jax.eval_shape(init)["params"]


def count_parameters(model: nn.Module, image_size: Size) -> int:
    """Number of parameters, by shape evaluation: nothing is allocated."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameter_shapes(model, image_size)))


def count_flops(model: nn.Module, image_size: Size) -> float | None:
    """Floating-point operations of the network on one image, as XLA counts the plain program.

    Packing and recomputation are not counted; a training step is taken for three times as many.
    Nothing is allocated. None where `JAX_PLATFORMS` leaves out the CPU: plugins for accelerators
    count only what they have compiled.
    """
    try:
        cpu = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return None
    plain = model.clone(packed_channels=1, remat=False) if isinstance(model, UNet) else model
    inputs = jax.eval_shape(lambda: example_inputs(model, image_size))
    variables = {"params": parameter_shapes(plain, image_size)}
    traced = jax.jit(plain.apply, in_shardings=cpu).trace(variables, *inputs)
    # Lowered for TPUs, whose program is as written: for CPUs some convolutions have fewer products.
    return traced.lower(lowering_platforms=("tpu",)).cost_analysis()["flops"]
