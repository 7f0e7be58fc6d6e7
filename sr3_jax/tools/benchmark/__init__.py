"""Measurements of speed and quality: `python -m sr3_jax.tools.benchmark`, in a clone alone."""
