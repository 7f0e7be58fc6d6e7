"""Metrics of images and samples: pure functions on arrays."""

from sr3_jax.metrics.image import consistency, detail, psnr, ssim
from sr3_jax.metrics.scores import energy_score

__all__ = ["consistency", "detail", "energy_score", "psnr", "ssim"]
