"""Metrics of images and samples: pure functions on arrays."""

from sr3_jax.metrics.image import consistency, gradient_energy, psnr, ssim
from sr3_jax.metrics.scores import energy_score

__all__ = ["consistency", "energy_score", "gradient_energy", "psnr", "ssim"]
