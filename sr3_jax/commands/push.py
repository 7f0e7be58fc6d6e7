"""Writes a trained network into a folder or onto the Hugging Face Hub, for others to use.

sr3 push --workdir=DIR --to=hf://USER/NAME
"""

from __future__ import annotations

from absl import flags
from etils import epath

from sr3_jax import config as configs
from sr3_jax import released
from sr3_jax.commands import shared


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of releasing a network."""
    shared.define_workdir(values)
    of = {"flag_values": values}
    meaning = "hf://USER/NAME, or a folder, local or gs://."
    flags.DEFINE_string("to", None, meaning, **of)
    meaning = "The model card, in Markdown. Default: README.md of the workdir, or one is made."
    flags.DEFINE_string("card", None, meaning, **of)
    meaning = "Checkpoint: latest, best or a step. Default: config.evaluation.checkpoint."
    flags.DEFINE_string("checkpoint", None, meaning, **of)
    types = ("bfloat16", "float16", "float32")
    flags.DEFINE_enum("dtype", "bfloat16", types, "Type of the stored weights.", **of)
    flags.DEFINE_bool("private", False, "Make a new repository of the hub private.", **of)
    flags.DEFINE_bool("overwrite", False, "Replace a network in the folder.", **of)


def prepare(values: flags.FlagValues) -> shared.Job:
    """Checks the flags, and that the hub takes the upload."""
    shared.require(values, "workdir", "to")
    workdir = shared.network_folder(values.workdir)
    configs.load(workdir / "config.json")
    which = values.checkpoint
    if which and which not in ("latest", "best"):
        if not which.isascii() or not which.isdigit():
            raise ValueError(f"--checkpoint={which}; give latest, best or a step")
        which = int(which)
    card = None if values.card is None else epath.Path(values.card)
    if card is not None and not card.exists():
        raise FileNotFoundError(f"--card={card} does not exist; give a file in Markdown")
    if values.to.startswith(released.HUB):
        released.check_login(values.to)

    def run() -> None:
        from sr3_jax.jobs import releasing

        address = releasing.push(
            workdir,
            values.to,
            card,
            which,
            dtype=values.dtype,
            private=values.private,
            overwrite=values.overwrite,
        )
        print(f"use it with --workdir={address}")

    return shared.Job(run)
