"""SRCNN (Dong et al. 2014), the classic small baseline: three convolutions after bicubic."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key


class SRCNN(nn.Module):
    """9x9, 1x1 and 5x5 convolutions (9-1-5) of 64, 32 and the image's channels, rectified between.

    Not as its authors have it: on colours instead of luminance; of the source's size, edges being
    repeated, where theirs lets the image shrink; what the convolutions give, at first nothing, is
    added to the source, so that training starts at bicubic.

    Attributes:
      dtype: type of the computation; parameters and the output are float32.
      image_channels: channels of the estimate, those that x begins with.
      source_channels: channels of x.
    """

    has_y_t: ClassVar[bool] = False
    has_source: ClassVar[bool] = True
    num_classes: ClassVar[int] = 0
    source_noise: ClassVar[bool] = False
    dtype: DTypeLike = jnp.float32
    image_channels: int = 3
    source_channels: int = 3

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        y_t: None = None,
        gamma: None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w d"]:
        """Estimates y_0 from the upsampled source, in [-1, 1]; nothing is dropped."""
        h = x.astype(self.dtype)
        for i, (features, window) in enumerate(((64, 9), (32, 1), (self.image_channels, 5))):
            if i:
                h = jax.nn.relu(h)
            edge = window // 2
            h = jnp.pad(h, [(0, 0), (edge, edge), (edge, edge), (0, 0)], mode="edge")
            h = nn.Conv(
                features,
                (window, window),
                padding="VALID",
                dtype=self.dtype,
                kernel_init=nn.initializers.zeros if i == 2 else nn.initializers.he_normal(),
                name=f"conv_{i}",
            )(h)
        return x[..., : self.image_channels] + h.astype(jnp.float32)
