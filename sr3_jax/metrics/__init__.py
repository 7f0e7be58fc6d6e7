"""Metrics of images and samples: pure functions on arrays."""

from sr3_jax.metrics.energy import energy_score
from sr3_jax.metrics.full_reference import consistency, gradient_energy, psnr, ssim

__all__ = ["consistency", "energy_score", "gradient_energy", "psnr", "ssim"]
