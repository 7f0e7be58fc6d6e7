"""The config of a cascade: where its networks were trained, how each samples, what is measured."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from ml_collections import config_dict

from sr3_jax.config import fields, reading
from sr3_jax.config.use_sections import Sampling
from sr3_jax.metrics import registry


@dataclasses.dataclass(frozen=True)
class Stage:
    """Where a stage comes from, and how it samples.

    Attributes:
      workdir: of its training run.
      checkpoint: `latest`, `best` or a step; None for what its run's config says.
      sampling: keys of `config.sampling` in place of its run's.
    """

    workdir: str
    checkpoint: Literal["latest", "best"] | int | None
    sampling: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Measures(fields.Section):
    """What is measured of the last stage's images."""

    feature_metrics: tuple[str, ...] = fields.option(
        (),
        "`fid`: the Frechet Inception Distance, with the Inception score.",
        choices=registry.options(without=("reference", "labels")),
    )
    fid_reference: str = fields.option(
        "",
        "`train`: the last stage's training images; or a folder of images, or an .npz file of "
        "statistics.",
    )
    inception_weights: str = fields.option(
        "", "File of FID's weights. Empty: torch-fidelity downloads them."
    )
    paper_tables: tuple[str, ...] = fields.option(
        (), "Tables of the paper whose figures stand beside.", choices=("1", "2", "3", "4", "5")
    )


@dataclasses.dataclass(frozen=True)
class Cascade:
    """All of a cascade; `output` is the folder of its images if the command names none."""

    output: str
    stages: tuple[Stage, ...]
    evaluation: Measures


def is_cascade(config: config_dict.ConfigDict) -> bool:
    """Whether a config from a file is of a cascade, not of a network."""
    return "stage_1" in config


def read(config: config_dict.ConfigDict) -> Cascade:
    """A cascade from its config file, with flags.

    Raises:
      ValueError: naming every fault.
    """
    if not is_cascade(config):
        raise ValueError(
            "the config has no section stage_1, so it is of a network and not of a cascade; use "
            "one as configs/cascade_ffhq_1024.py, or --workdir alone for a single network"
        )
    stages, faults = [], []
    while (name := f"stage_{len(stages) + 1}") in config:
        given = config[name].to_dict()
        if not given["workdir"]:
            faults.append(f"config.{name}.workdir is empty; give the workdir of its training")
        which = given["checkpoint"] or None
        if which is not None and which.isdigit():
            which = int(which)
        elif which not in (None, "latest", "best"):
            faults.append(
                f"config.{name}.checkpoint = {which!r} is unknown; use one of latest, best, or a "
                "step"
            )
        sampling = {key: value for key, value in given["sampling"].items() if value is not None}
        faults += fields.read(Sampling, sampling, f"config.{name}.sampling.")[1]
        stages.append(Stage(given["workdir"], which, sampling))
    measures, wrong = fields.read(
        Measures, config.get("evaluation", config_dict.ConfigDict()).to_dict(), "config.evaluation."
    )
    if faults := faults + wrong:
        raise ValueError(reading.in_words(faults))
    return Cascade(config.output, tuple(stages), measures)
