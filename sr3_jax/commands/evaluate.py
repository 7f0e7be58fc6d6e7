"""Measures a trained network on held-out images, and writes the report.

sr3 evaluate --workdir=DIR
"""

from __future__ import annotations

from absl import flags

from sr3_jax.commands import shared


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of evaluation."""
    shared.define_workdir(values)
    shared.define_config(values, "In place of the config that the run left.")


def prepare(values: flags.FlagValues) -> shared.Job:
    """Reads the config and checks it."""
    workdir = shared.workdir(values)
    config = shared.config_of_run(values, workdir)

    def run() -> None:
        from sr3_jax import jobs

        jobs.evaluate(config, workdir)

    return shared.Job(run, workdir)
