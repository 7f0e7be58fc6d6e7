"""Trains a network, or goes on training it, and evaluates it.

sr3 train --config=CONFIG [--workdir=DIR] [--config.SECTION.KEY=VALUE ...]
"""

from __future__ import annotations

import functools

from absl import flags

from sr3_jax.commands import shared
from sr3_jax.config import reading, resolve


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of training."""
    shared.define_config(values, "The config.")
    shared.define_workdir(
        values,
        "Folder of the run: checkpoints, logs, results. Default: runs/ and the name of the config.",
    )
    meaning = (
        "Number of training steps, in place of config.train.num_steps. Warm-up and decay keep "
        "their share of it, unless their lengths are given."
    )
    flags.DEFINE_integer("steps", None, meaning, lower_bound=1, flag_values=values)


def prepare(values: flags.FlagValues) -> shared.Job:
    """Reads the config and checks it."""
    if values.config is None:
        shared.require(values, "config")
    workdir = shared.workdir(values)
    if values.steps is not None:
        _change_length(values)
    check = functools.partial(resolve.faults, trains=True)
    config = reading.read(values.config, check)
    return shared.Job(shared.late("train", config, workdir), workdir, stops_together=True)


def _change_length(values: flags.FlagValues) -> None:
    """Sets the number of training steps; the phases of the learning rate keep their shares.

    A phase whose length is given on the command line keeps that.
    """
    config, steps = values.config, values.steps
    if "train" not in config:
        return  # of a cascade, which is refused by name
    before = config.train.num_steps
    for phase in ("num_warmup_steps", "num_decay_steps"):
        flag = f"config.train.{phase}"
        if not (flag in values and values[flag].present):
            config.train[phase] = config.train[phase] * steps // before
    config.train.num_steps = steps
