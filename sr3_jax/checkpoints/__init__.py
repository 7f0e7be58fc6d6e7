"""Checkpoints: training writes them; evaluation and inference read them."""

from sr3_jax import late
from sr3_jax.checkpoints.common import CheckpointError, Which, quiet_orbax

__all__ = ["CheckpointError", "Which", "quiet_orbax"]

# Orbax takes half a second to import, and a released network has no checkpoints.
__getattr__ = late.names(__name__, {"Checkpointer": "checkpointer"})
