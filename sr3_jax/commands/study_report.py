"""Reports what a study found: fool rates, their intervals, scores; also while it is served.

sr3 study report --study=DIR [--export=ANSWERS.csv]
"""

from __future__ import annotations

from absl import flags
from etils import epath

from sr3_jax.commands import demo, shared


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of the report."""
    of = {"flag_values": values}
    flags.DEFINE_string("study", None, "Folder of the study; the report is written there.", **of)
    meaning = "Also write all answers, one row each, to this .csv or .parquet file."
    flags.DEFINE_string("export", "", meaning, **of)


def prepare(values: flags.FlagValues) -> shared.Job:
    """Checks the flags and the study."""
    demo.require_web("choix")
    shared.require(values, "study")
    from sr3_jax.study import design

    folder = design.load(values.study).folder
    if values.export and not values.export.endswith((".csv", ".parquet")):
        raise ValueError(f"--export={values.export}; give a name that ends in .csv or .parquet")

    def run() -> None:
        from sr3_jax.jobs import studying

        studying.tell(epath.Path(folder), values.export)

    return shared.Job(run)
