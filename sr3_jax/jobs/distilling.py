"""Distillation: students are trained one after another (`sr3 distill`)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import jax
from absl import logging
from etils import epath

from sr3_jax.config import Config, run_file, students
from sr3_jax.data import storage
from sr3_jax.jobs.training import train

# What decides what a student becomes. Images may have moved, and all else may change.
_DEFINING = (
    *("model.", "train.", "distillation.", "degradation.", "seed"),
    *(f"sampling.{key}" for key in students.KEYS),
)
_FREE = ("train.log_every_steps", "train.sample_every_steps", "train.accumulate_steps")
_ADDRESSES = ("train.initial_weights", "distillation.teacher")


def distill(planned: Mapping[epath.Path, Config]) -> None:
    """Trains and evaluates each student in its workdir; the same call goes on where it stopped.

    Each workdir also gets an inference.json with the student's calls, which it was trained for.

    Raises:
      ValueError: a workdir has a student that was planned otherwise; or as `train`.
      HeldError, FileNotFoundError, StoppedError: as `train`.
    """
    for workdir, config in planned.items():
        _check_same_student(workdir, config)
    for number, (workdir, config) in enumerate(planned.items(), start=1):
        logging.info("student %d of %d: %s", number, len(planned), workdir)
        try:
            train(config, workdir)
        finally:  # also where the evaluation that ends a training fails
            if jax.process_index() == 0 and (workdir / "config.json").exists():
                storage.write_whole(workdir / run_file.INFERENCE, _inference(config).encode())


def _check_same_student(workdir: epath.Path, config: Config) -> None:
    """Checks that a student in a workdir was planned as this one: it would go on in its place.

    Raises:
      ValueError: it was planned otherwise; names the keys.
    """
    path = workdir / "config.json"
    if not path.exists():
        return
    differing = [
        f"config.{key} was {old!r} and is now {new!r}"
        for key, (old, new) in run_file.changed_keys(run_file.load(path), config).items()
        if key.startswith(_DEFINING)
        and key not in _FREE
        # A folder may be spelt in several ways.
        and not (key in _ADDRESSES and os.path.abspath(old) == os.path.abspath(new))
    ]
    if differing:
        raise ValueError(
            f"{workdir} has another student: {'; '.join(differing)}. Give the options that it was "
            "begun with, or another --workdir"
        )


def _inference(config: Config) -> str:
    found = {
        "sampling": {key: getattr(config.sampling, key) for key in students.KEYS},
        "calls": config.sampling.num_steps,
        "teacher": config.distillation.teacher or config.train.initial_weights,
    }
    return json.dumps(found, indent=2)
