"""The config of a cascade: its stages, and the metrics of the last one's images."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from ml_collections import config_dict

from sr3_jax.config import fields, reading
from sr3_jax.config.use_sections import Sampling
from sr3_jax.metrics import registry


@dataclasses.dataclass(frozen=True)
class Stage:
    """The trained network of a stage, and its sampling.

    Attributes:
      workdir: workdir of its training run.
      checkpoint: `latest`, `best` or a step; None for that of its run's config.
      sampling: keys of `config.sampling` that replace those of its run.
    """

    workdir: str
    checkpoint: Literal["latest", "best"] | int | None
    sampling: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Measures(fields.Section):
    """Metrics of the last stage's images."""

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
    """The config of a cascade; `output` is the folder of its images if the command names none."""

    output: str
    stages: tuple[Stage, ...]
    evaluation: Measures


def is_cascade(config: config_dict.ConfigDict) -> bool:
    """Returns whether a config from a file is of a cascade instead of a single network."""
    return "stage_1" in config


def read(config: config_dict.ConfigDict) -> Cascade:
    """Returns a cascade from its config file, changed by flags.

    Raises:
      ValueError: some values are invalid; names all of them.
    """
    if not is_cascade(config):
        raise ValueError(
            "the config has no section stage_1, so it is of a network and not of a cascade; use a "
            "config such as configs/cascade_ffhq_1024.py, or --workdir alone for a single network"
        )
    stages, faults = [], []
    while (name := f"stage_{len(stages) + 1}") in config:
        given = config[name].to_dict()
        if not given["workdir"]:
            faults.append(f"config.{name}.workdir is empty; give the workdir of its training run")
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
