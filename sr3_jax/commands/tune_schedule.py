"""Searches the sampler and the noise schedule that are best in few calls of the network.

sr3 tune_schedule --workdir=DIR [--steps=NETWORK_CALLS]
"""

from __future__ import annotations

from absl import flags

from sr3_jax.commands import shared

CONFIG_OF_RUN = "workdir"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the search."""
    shared.define_run(values)
    shared.define_steps(values, "Number of network calls; default: each of config.tuning.calls.")


def prepare(values: flags.FlagValues) -> shared.Job:
    """Reads the config and checks it."""
    workdir = shared.workdir(values)
    config = shared.config_of_run(values, workdir)
    return shared.Job(shared.late("tune_schedule", config, workdir, values.steps), workdir)
