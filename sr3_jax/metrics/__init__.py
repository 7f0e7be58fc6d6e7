"""Image metrics: pure functions on arrays."""

from sr3_jax.metrics.distribution import sliced_wasserstein
from sr3_jax.metrics.image import consistency, detail, psnr, ssim

__all__ = ["consistency", "detail", "psnr", "sliced_wasserstein", "ssim"]
