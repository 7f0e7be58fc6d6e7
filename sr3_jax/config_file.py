"""A run's config as a file, and what two configs differ in."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from etils import epath
from ml_collections.config_dict import ConfigDict

from sr3_jax import factory, sampling_factory
from sr3_jax.data import storage

# That every version has written.
_SECTIONS = ("data", "model", "diffusion", "sampling", "train", "checkpoint", "evaluation")


def save(config: ConfigDict, path: epath.PathLike) -> None:
    """Writes `config` as JSON, whole or not at all."""
    storage.write_whole(path, (config.to_json(indent=2) + "\n").encode())


def load(path: epath.PathLike) -> ConfigDict:
    """Reads what `save` wrote.

    Raises:
      FileNotFoundError: where there is none.
      ValueError: where it is not a config of a network.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: the folder is not the workdir of a training run"
        )
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        for section in _SECTIONS:
            if not isinstance(content.get(section), dict):
                raise ValueError(f"it has no section {section}")
        config = ConfigDict(content).lock()
        _try_readers(config)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a config of a training run: {' '.join(str(error).split())}. Restore it "
            "from a copy, or remove it and give the command of the training, which writes it anew"
        ) from error
    return config


def _try_readers(config: ConfigDict) -> None:
    """Raises TypeError, KeyError or AttributeError where a key has a wrong type or is missing."""
    for read in (factory.model, sampling_factory.options, sampling_factory.sampler):
        # A value that cannot work is told, with its key, where it is used.
        with contextlib.suppress(ValueError):
            read(config)


def changed_keys(old: ConfigDict, new: ConfigDict) -> dict[str, tuple[Any, Any]]:
    """Keys in which two configs differ, as `section.key`, with the old and the new value."""
    old_flat, new_flat = (_flatten(json.loads(c.to_json())) for c in (old, new))
    keys = sorted(old_flat.keys() | new_flat.keys())
    pairs = {key: (old_flat.get(key), new_flat.get(key)) for key in keys}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b}


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    parts = (_flatten(v, f"{prefix}.{k}" if prefix else k) for k, v in tree.items())
    return {key: value for part in parts for key, value in part.items()}
