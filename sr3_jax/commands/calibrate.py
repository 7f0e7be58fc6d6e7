"""Makes intervals around a network's samples that hold a promised share of the truth.

sr3 calibrate --workdir=DIR [--steps=STEPS]
"""

from __future__ import annotations

from absl import flags

from sr3_jax import config as configs
from sr3_jax.commands import shared
from sr3_jax.inference import confidence

CONFIG_OF_RUN = "workdir"


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of calibration; those of sampling are as in upscaling."""
    shared.define_run(values)
    shared.define_steps(values, "Number of refinement steps.")
    shared.define_sampler(values)
    meaning = "Leave the intervals as they are, and count what they hold of these images."
    flags.DEFINE_bool("check", False, meaning, flag_values=values)


def prepare(values: flags.FlagValues) -> shared.Job:
    """Reads the config and checks it."""
    workdir = shared.workdir(values)
    config = shared.config_of_run(values, workdir)
    sampling = shared.sampling(values)
    if values.steps is not None:
        sampling["num_steps"] = values.steps
    configs.with_sampling(config, sampling)  # refuses what is not known
    if values.check:
        confidence.read(workdir)

    def run() -> None:
        from sr3_jax import jobs

        jobs.calibrate(config, workdir, sampling, only_check=values.check)

    return shared.Job(run, workdir, sets_up_cpu=True)
