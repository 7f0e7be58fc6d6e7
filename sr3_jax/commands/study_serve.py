"""Serves the page of a study, and keeps its answers; killed and started again, it goes on.

sr3 study serve --study=DIR
"""

from __future__ import annotations

from absl import flags
from etils import epath

from sr3_jax.commands import demo, shared

PORT = 7870


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the page."""
    flags.DEFINE_string("study", None, "Folder of the study.", flag_values=values)
    shared.define_address(values, "the page", PORT, has_password=False)


def prepare(values: flags.FlagValues) -> shared.Job:
    """Checks the flags and the study."""
    demo.require_web("starlette", "uvicorn", "choix")
    shared.require(values, "study")
    from sr3_jax.study import design

    folder = design.load(values.study).folder

    def run() -> None:
        from sr3_jax.jobs import studying
        from sr3_jax.web import serving

        studying.serve(epath.Path(folder), serving.Address(values.port, values.listen))

    return shared.Job(run)
