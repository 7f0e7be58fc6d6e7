"""Checkpoints: training writes them; evaluation and inference read them."""

from sr3_jax.checkpoints.checkpointer import Checkpointer, CheckpointError, Which
from sr3_jax.checkpoints.orbax_parts import quiet_orbax

__all__ = ["CheckpointError", "Checkpointer", "Which", "quiet_orbax"]
