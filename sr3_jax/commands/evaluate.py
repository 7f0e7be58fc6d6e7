"""Measures a trained network on held-out images, and writes the report.

sr3 evaluate --workdir=DIR
"""

from __future__ import annotations

from absl import flags

from sr3_jax.commands import shared

CONFIG_OF_RUN = "workdir"

define_flags = shared.define_run


def prepare(values: flags.FlagValues) -> shared.Job:
    """Reads the config and checks it."""
    workdir = shared.workdir(values)
    config = shared.config_of_run(values, workdir)
    return shared.Job(shared.late("evaluate", config, workdir), workdir)
