"""Names of options and values in older versions: of config.json, inference.json and flags."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# The keys of older versions, and what they are now.
KEYS = {"model.residual_std": "model.sigma_data", "model.lanes": "model.packed_channels"}
# Likewise the values of keys, whatever their section.
VALUES = {"variance": {"upper": "fixed_large", "posterior": "fixed_small"}}
# Keys that came later, with the value that means what was done before.
LATER = {
    "data.upsampling": "bicubic",
    "model.prediction": "eps",
    "model.measure_sigma_data": False,
    "model.architecture": "sr3",
    "model.num_groups": 32,
    "model.learned_variance": False,
    "train.initial_weights": "",
    "sampling.tile_overlap": 64,
    "sampling.knots": 0,
    "distillation.calls": 0,
    "distillation.teacher_calls": 0,
    "distillation.teacher": "",
    "distillation.truth": 0.0,
    "distillation.teacher_sampler": "ddim",
    "distillation.teacher_guidance": 1.0,
}

_WITHOUT_EFFECT = ("batch_size", "file")  # keys that change no result


def migrate(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values of a config of any version, by section and key, as they are today."""
    migrated = {
        name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()
    }
    for old, new in KEYS.items():
        section, _, key = old.partition(".")
        if isinstance(migrated.get(section), dict) and key in migrated[section]:
            migrated[section][new.partition(".")[2]] = migrated[section].pop(key)
    for section in filter(lambda value: isinstance(value, dict), migrated.values()):
        for key, names in VALUES.items():
            if isinstance(section.get(key), str):
                section[key] = names.get(section[key], section[key])
    return migrated


def migrate_flag(argument: str) -> str:
    """Returns a flag such as `--config.model.residual_std=0.1` with today's key."""
    for old, new in KEYS.items():
        argument = re.sub(rf"^(--?config)\.{re.escape(old)}\b", rf"\1.{new}", argument)
    return argument


def as_recorded(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a section that affect results, as the first version wrote them.

    The fingerprints of outputs keep these, so that outputs of older versions are not made anew.
    """
    first_names = {new: old for old, new in KEYS.items()}
    recorded = {
        first_names.get(f"{section}.{key}", key).rpartition(".")[2]: value
        for key, value in values.items()
        if LATER.get(f"{section}.{key}") != value and key not in _WITHOUT_EFFECT
    }
    for key in VALUES.keys() & recorded.keys():
        before = {new: old for old, new in VALUES[key].items()}
        recorded[key] = before.get(recorded[key], recorded[key])
    return recorded
