"""Checkpoints: training writes them; evaluation and inference read them."""

from sr3_jax import late
from sr3_jax.checkpoints.common import CheckpointError, Which, quiet_orbax

__all__ = ["CheckpointError", "Which", "quiet_orbax"]

# Late, since it imports Orbax, which a released network does not need.
__getattr__ = late.names(__name__, {"Checkpointer": "checkpointer"})
