"""A run's config as a file, and what two configs differ in."""

from __future__ import annotations

import json
from typing import Any

from etils import epath
from ml_collections.config_dict import ConfigDict

from sr3_jax.data import storage


def save(config: ConfigDict, path: epath.PathLike) -> None:
    """Writes `config` as JSON, whole or not at all."""
    storage.write_whole(path, (config.to_json(indent=2) + "\n").encode())


def load(path: epath.PathLike) -> ConfigDict:
    """Reads what `save` wrote.

    Raises:
      FileNotFoundError: where there is none.
      ValueError: where it is not a config.
    """
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: the folder is not the workdir of a training run"
        )
    try:
        return ConfigDict(json.loads(path.read_text())).lock()
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{path} is not a config in JSON: {error}") from error


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
