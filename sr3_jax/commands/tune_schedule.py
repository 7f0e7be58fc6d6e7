"""Searches the sampler and the noise schedule that are best in few calls of the network.

sr3 tune_schedule --workdir=DIR [--steps=NETWORK_CALLS]
"""

from __future__ import annotations

from absl import flags

from sr3_jax.commands import shared


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the search."""
    shared.define_workdir(values)
    shared.define_config(values, "In place of the config that the run left.")
    flags.DEFINE_integer(
        "steps",
        None,
        "Number of network calls; default: each of config.tuning.calls.",
        lower_bound=1,
        upper_bound=100_000,
        flag_values=values,
    )


def prepare(values: flags.FlagValues) -> shared.Job:
    """Reads the config and checks it."""
    workdir = shared.workdir(values)
    config = shared.config_of_run(values, workdir)

    def run() -> None:
        from sr3_jax import jobs

        jobs.tune_schedule(config, workdir, values.steps)

    return shared.Job(run, workdir)
