"""Distillation: students are trained one after another (`sr3 distill`)."""

from __future__ import annotations

from collections.abc import Mapping

from absl import logging
from etils import epath

from sr3_jax.config import Config
from sr3_jax.jobs.training import train


def distill(planned: Mapping[epath.Path, Config]) -> None:
    """Trains and evaluates each student in its workdir; the same call goes on where it stopped.

    Raises:
      ValueError, HeldError, FileNotFoundError, StoppedError: as `train`.
    """
    for number, (workdir, config) in enumerate(planned.items(), start=1):
        logging.info("student %d of %d: %s", number, len(planned), workdir)
        train(config, workdir)
