"""What can be said of checkpoints without importing Orbax, which takes half a second."""

from __future__ import annotations

import logging as std_logging
from typing import Literal

from absl import logging

Which = Literal["latest", "best"] | int


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or none can be read."""


def quiet_orbax() -> None:
    """Drops Orbax's messages below warnings, and warnings of what `Checkpointer` intends."""
    intended = (
        "CheckpointManagerOptions.read_only=True",
        "Given directory is read only",
        "Metadata file does not exist",  # the shapes are read of an item without metadata
        "Requested `tracked_metric`",  # saved at a preemption, without validation
    )

    def keep(record: std_logging.LogRecord) -> bool:
        if "orbax" not in record.pathname:
            return True
        is_intended = record.getMessage().startswith(intended)
        return record.levelno >= std_logging.WARNING and not is_intended

    logging.get_absl_handler().addFilter(keep)
