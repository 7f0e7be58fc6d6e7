"""Serves a page on which to try a network: drop a picture, watch it refine, compare, download.

sr3 demo [--workdir=DIR]
"""

from __future__ import annotations

import importlib.util

from absl import flags

from sr3_jax import config as configs
from sr3_jax import released
from sr3_jax.commands import shared

_PORT = 7860


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the page."""
    meaning = (
        "Folder of a training run, hf://USER/NAME, or a network of `sr3 models`. Default: "
        f"{released.DEFAULT}, which comes with sr3_jax."
    )
    shared.define_workdir(values, meaning)
    shared.define_sampler(values)
    shared.define_address(values, "the page", _PORT)


def prepare(values: flags.FlagValues) -> shared.Job:
    """Checks the flags, the network and that the packages of web pages are there."""
    require_web("starlette", "uvicorn")
    given = values.workdir or released.shipped(released.DEFAULT)
    workdir = shared.network_folder(given)
    sampling = shared.sampling(values)
    configs.with_sampling(configs.load(workdir / "config.json"), sampling)

    def run() -> None:
        from sr3_jax.jobs import demonstrating
        from sr3_jax.web import serving

        address = serving.Address(values.port, values.listen, values.password)
        demonstrating.demonstrate(workdir, address, sampling)

    keeps_programs = workdir if released.is_for_results(given) else None
    return shared.Job(run, keeps_programs, sets_up_cpu=True)


def require_web(*packages: str) -> None:
    """Raises ImportError if a package of web pages is missing."""
    if missing := [name for name in packages if not importlib.util.find_spec(name)]:
        raise ImportError(f"{missing[0]} is not installed; pip install 'sr3_jax[web]'")
