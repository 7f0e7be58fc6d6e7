r"""Scores the outputs of any programs, which are folders of images, as an evaluation does.

sr3 score --workdir=DIR --reference=FOLDER [--low_resolution=FOLDER] \
    --outputs=NAME=FOLDER,NAME=FOLDER [--study=DIR]
"""

from __future__ import annotations

from absl import flags

from sr3_jax.commands import demo, shared
from sr3_jax.config import reading
from sr3_jax.data import storage


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of scoring."""
    shared.define_workdir(values, "Folder for the report.")
    shared.define_config(values, "A config, whose section evaluation says what is measured.")
    of = {"flag_values": values}
    flags.DEFINE_string("reference", None, "Folder of the reference images.", **of)
    meaning = "Folder of the inputs of the programs, for consistency and bicubic interpolation."
    flags.DEFINE_string("low_resolution", None, meaning, **of)
    meaning = "NAME=FOLDER of each program, with images of the names of the references."
    flags.DEFINE_list("outputs", [], meaning, allow_overwrite=False, **of)
    meaning = "Folder of a human study (`sr3 study new`), whose findings the report shows, too."
    flags.DEFINE_string("study", "", meaning, **of)


def prepare(values: flags.FlagValues) -> shared.Job:
    """Checks the flags and reads the config, if any."""
    shared.require(values, "workdir", "reference", "outputs")
    workdir = shared.workdir(values)
    outputs = shared.pairs("outputs", values.outputs)
    given = {"reference": values.reference, "low_resolution": values.low_resolution}
    for name, folder in (*given.items(), *(("outputs", folder) for folder in outputs.values())):
        if folder and not storage.is_folder(folder):
            raise FileNotFoundError(f"--{name}={folder} is no folder; give a folder of images")
    config = None if values.config is None else reading.read(values.config)
    people = None
    if values.study:
        demo.require_web("choix")
        from sr3_jax.study import report

        people = report.of_folder(values.study)
    arguments = (config, workdir, values.reference, outputs, values.low_resolution, people)
    return shared.Job(shared.late("score", *arguments), workdir)
