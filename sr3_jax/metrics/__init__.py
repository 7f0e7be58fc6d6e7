"""Image metrics: pure functions on arrays."""

from sr3_jax.metrics.image import consistency, psnr, ssim

__all__ = ["consistency", "psnr", "ssim"]
