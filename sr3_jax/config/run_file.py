"""The files config.json and inference.json of a run, and comparison of two configs."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from sr3_jax import released
from sr3_jax.config import fields, reading
from sr3_jax.config.sections import SECTIONS, Config
from sr3_jax.data import storage

# Sections that every version has written.
_ALWAYS = ("data", "model", "diffusion", "sampling", "train", "checkpoint", "evaluation")

# In a workdir: keys of `config.sampling` that override the config; --mode=tune_schedule writes it.
INFERENCE = "inference.json"


def save(config: Config, path: epath.PathLike) -> None:
    """Writes the config as JSON, whole or not at all."""
    storage.write_whole(path, (reading.to_json(config) + "\n").encode())


def load(path: epath.PathLike) -> Config:
    """Reads a run's config.json, also of older versions.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not the config of a run.
    """
    path = epath.Path(path)
    if not path.exists():
        within = sorted(inner.parent.name for inner in path.parent.glob("*/config.json"))
        hint = f"; it holds some: {', '.join(within)}" if within else ""
        raise FileNotFoundError(
            f"{path} does not exist: the folder is not the workdir of a training run{hint}, nor "
            f"one of the networks of the package, {', '.join(released.names())}"
        )
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        for section in _ALWAYS:
            if not isinstance(content.get(section), dict):
                raise ValueError(f"it has no section {section}")
        return reading.read(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a config of a training run: {' '.join(str(error).split())}. Restore it "
            "from a copy, or remove it and start the training again, which writes it anew"
        ) from error


def with_measured(config: Config, path: epath.PathLike) -> Config:
    """Returns the config with what the training that left `path` measured, if there is such."""
    config = with_measured_sigma_data(config, path)
    if config.units.is_measured or not epath.Path(path).exists():
        return config
    found = dataclasses.replace(
        load(path).units, scaling=config.units.scaling, file=config.units.file
    )
    return dataclasses.replace(config, units=found)


def with_measured_sigma_data(config: Config, path: epath.PathLike) -> Config:
    """Returns the config with the `model.sigma_data` of the training that left `path`."""
    if not config.model.measure_sigma_data or not epath.Path(path).exists():
        return config
    return with_sigma_data(config, load(path).model.sigma_data)


def with_sigma_data(config: Config, value: float) -> Config:
    """Returns the config with a measured `model.sigma_data`."""
    model = dataclasses.replace(config.model, sigma_data=value, measure_sigma_data=False)
    return dataclasses.replace(config, model=model)


def tuned(workdir: epath.PathLike, config: Config) -> dict[str, Any]:
    """Returns the best keys of `config.sampling` by `--mode=tune_schedule`; empty if not tuned.

    Raises:
      ValueError: the file is damaged, or has unknown keys or invalid values.
    """
    path = epath.Path(workdir) / INFERENCE
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_bytes())
        sampling = found.get("sampling") if isinstance(found, dict) else None
        if not isinstance(sampling, dict):
            raise ValueError("it has no section sampling")
        reading.with_sampling(config, sampling)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a file of --mode=tune_schedule ({error}); run that again, or remove "
            "the file to sample as the config says"
        ) from error
    return sampling


def changed_keys(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Returns the keys in which two configs differ, as `section.key`, with old and new value."""
    pairs = zip(_flat(reading.plain(old)), _flat(reading.plain(new)), strict=True)
    return {key: (a, b) for (key, a), (_, b) in pairs if a != b}


def check_same_network(old: Config, new: Config, path: epath.PathLike) -> None:
    """Checks that checkpoints of an old config, which is in the file `path`, fit a new one.

    Raises:
      ValueError: keys that may not change differ; names them with both values.
    """
    if differing := _differences(old, new):
        raise ValueError(
            f"the checkpoints beside {os.fspath(path)} are of another network: "
            f"{'; '.join(differing.values())}. Use the config they were trained with, or another "
            "--workdir; docs/config.md says which keys may change"
        )


def check_weights(old: Config, new: Config, path: epath.PathLike, key: str, given: str) -> None:
    """Checks that training by a config can begin with, or learn from, the weights of an older run.

    Image sizes, noise schedule and loss may differ, and of networks that a training begins with the
    channels.

    Args:
      old: the config of the older run, which is in the file `path`.
      new: the config of the training.
      path: the file.
      key: the option that names the older run.
      given: its value.

    Raises:
      ValueError: the methods or networks differ; names the keys with both values.
    """
    differing = _differences(old, new)
    names = ["method", "model."]
    if key == "distillation.teacher":
        names += [f"data.{name}" for name in ("channels", "source_channels", "maps", "missing")]
    of_network = [differing[name] for name in differing if name.startswith(tuple(names))]
    if of_network:
        raise ValueError(
            f"config.{key} = {given!r} is a network of another config: {'; '.join(of_network)}. "
            f"Use the values that {os.fspath(path)} has, or another network"
        )


def _differences(old: Config, new: Config) -> dict[str, str]:
    """Returns a text, by key, for each difference in what parameters mean or were trained for."""
    sections = {"": Config} | {f"{name}.": type(value) for name, value in SECTIONS.items()}
    may_change = {
        prefix + name
        for prefix, section in sections.items()
        for name, (_, _, what) in fields.declared(section).items()
        if what.may_change
    }
    return {
        key: f"config.{key} was {was!r} and is now {now!r}"
        for key, (was, now) in changed_keys(old, new).items()
        if key not in may_change
    }


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
