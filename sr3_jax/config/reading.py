"""Makes a checked `Config` of a file in `configs/` with flags, or of a run's config.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ml_collections import config_dict

from sr3_jax.config import checks, fields, migration
from sr3_jax.config.data_sections import Data
from sr3_jax.config.sections import SECTIONS, Config

Check = Callable[[Config], Iterable[str]]


def read(
    values: config_dict.ConfigDict | Mapping[str, Any] | Config, check: Check | None = None
) -> Config:
    """Returns a config from values by section and key; what is missing has its default.

    `check` yields more faults, such as `resolve.faults`.

    Raises:
      ValueError: naming every fault at once: unknown keys, values of a wrong type or out of range,
        and values that cannot work together; or it is the config of a cascade.
    """
    if isinstance(values, Config):
        return values
    if isinstance(values, config_dict.ConfigDict):
        values = values.to_dict()
    if "stage_1" in values:
        raise ValueError(
            "--config is of a cascade, which is for --mode=generate alone; each of its networks "
            "has a config of its own, which it names"
        )
    values, sections, faults = migration.migrate(values), {}, []
    for name, default in SECTIONS.items():
        given = values.get(name, {})
        if not isinstance(given, Mapping):
            faults.append(f"config.{name} is a {type(given).__name__}; it must be a section")
            continue
        sections[name], wrong = fields.read(type(default), given, f"config.{name}.")
        faults += wrong
    rest = {name: value for name, value in values.items() if name not in SECTIONS}
    config, wrong = fields.read(Config, rest, "config.")
    faults += wrong
    config = dataclasses.replace(config, **sections)
    config = dataclasses.replace(config, data=_with_data_of_tfds(config.data))
    # A faulty value has its default here, with which others need not work.
    faulty = [fault.split()[0].rpartition(".")[2] for fault in faults]
    more = [*checks.faults(config), *(check(config) if check else ())]
    faults += [fault for fault in more if not any(name in fault for name in faulty)]
    if faults:
        raise ValueError(in_words(faults))
    return config


def _with_data_of_tfds(data: Data) -> Data:
    """Returns the section with the data sets of `tfds_train` and `tfds_eval` if none are given.

    So config.json records the data of the training.
    """
    changes = {}
    # With any other source the user has chosen one, and forgot its path.
    if data.tfds_train and not data.path and data.source in ("folder", "tfds"):
        changes = {"source": "tfds", "path": data.tfds_train}
    if data.tfds_eval and not (data.eval_path or data.eval_source):
        if changes or not data.tfds_train:
            changes |= {"eval_source": "tfds", "eval_path": data.tfds_eval}
    return dataclasses.replace(data, **changes)


def in_words(faults: list[str]) -> str:
    """Returns one message for all faults."""
    if len(faults) == 1:
        return faults[0]
    return f"the config has {len(faults)} faults: " + "; ".join(
        f"({number}) {fault}" for number, fault in enumerate(faults, 1)
    )


def with_sampling(config: Config, sampling: Mapping[str, Any]) -> Config:
    """Returns the config with other values in its section `sampling`; raises as `changed`."""
    return changed(config, {f"sampling.{key}": value for key, value in sampling.items()})


def changed(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns the config with other values, by keys such as `train.batch_size`.

    Raises:
      ValueError: a key is unknown, or a value is invalid.
    """
    whole = plain(config)
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (whole[section] if section else whole)[name] = value
    return read(whole)


def as_recorded(config: Config, section: str) -> dict[str, Any]:
    """Returns a section as fingerprints of outputs record it; see `migration.as_recorded`."""
    return migration.as_recorded(section, plain(config)[section])


def to_json(config: Config) -> str:
    """Returns the config as JSON; `read` takes the result of `json.loads`."""
    return json.dumps(plain(config), indent=2)


def plain(config: Config) -> dict[str, Any]:
    """Returns the config as nested dicts of JSON's types."""
    return json.loads(json.dumps(dataclasses.asdict(config)))
