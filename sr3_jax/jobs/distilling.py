"""Distillation: students are trained one after another (`sr3 distill`)."""

from __future__ import annotations

import json
from collections.abc import Mapping

import jax
from absl import logging
from etils import epath

from sr3_jax.config import Config, run_file
from sr3_jax.data import storage
from sr3_jax.jobs.training import train

# The keys of `config.sampling` that a student was trained for.
_KEYS = ("sampler", "schedule", "num_steps", "knots", "sigma_min", "sigma_max", "rho", "eta")


def distill(planned: Mapping[epath.Path, Config]) -> None:
    """Trains and evaluates each student in its workdir; the same call goes on where it stopped.

    Each workdir also gets an inference.json with the student's calls, which it was trained for.

    Raises:
      ValueError, HeldError, FileNotFoundError, StoppedError: as `train`.
    """
    for number, (workdir, config) in enumerate(planned.items(), start=1):
        logging.info("student %d of %d: %s", number, len(planned), workdir)
        train(config, workdir)
        if jax.process_index() == 0:
            found = {
                "sampling": {key: getattr(config.sampling, key) for key in _KEYS},
                "calls": config.sampling.num_steps,
                "teacher": config.distillation.teacher or config.train.initial_weights,
            }
            text = json.dumps(found, indent=2)
            storage.write_whole(workdir / run_file.INFERENCE, text.encode())
