"""Ablations: `python -m sr3_jax.tools.ablate`."""
