"""The page on which people try a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from etils import epath

from sr3_jax import released
from sr3_jax.config import run_file, students
from sr3_jax.inference.super_resolver import SuperResolver
from sr3_jax.web import demo, demo_jobs, serving


def demonstrate(
    workdir: epath.Path, address: serving.Address, sampling: Mapping[str, Any] | None = None
) -> None:
    """Serves the page until Ctrl-C.

    Args:
      workdir: the network, as `SuperResolver.from_workdir` takes it.
      address: where.
      sampling: keys of `config.sampling`.

    Raises:
      ValueError: the network upscales no pictures, or the port is taken.
    """
    folder = released.locate(workdir)
    config = run_file.load(folder / "config.json")
    config = students.with_sampling(config, {**run_file.tuned(folder, config), **(sampling or {})})
    if not (config.has_source and config.has_levels and not config.data.maps):
        raise ValueError(
            f"the page is for networks that upscale pictures, and that of {workdir} does not; use "
            "`sr3 upscale` for arrays and maps, and `sr3 generate` for images made from nothing"
        )
    with serving.listening(address) as opened:
        resolver = SuperResolver.from_workdir(workdir, **(sampling or {}))
        steps = config.effective_sampling.num_steps
        about = {
            "text": f"{folder.name}: {config.factor:g} times as wide and high, in {steps} "
            f"call{'s' * (steps > 1)} of the network",
            "factor": config.factor,
            "steps": steps,
            "fixed": bool(config.student_calls or config.predicts_image),
        }
        upscalings = demo_jobs.Upscalings(resolver)
        page = demo.Demo(upscalings, about)
        try:
            serving.serve(page.app(), opened, address, on_exit=page.end)
        finally:
            upscalings.close()
