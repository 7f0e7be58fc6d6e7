"""A run's config as a file, what two configs differ in, and what a run may change."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import math
import os
from typing import Any

from etils import epath
from ml_collections.config_dict import ConfigDict

from sr3_jax import factory, sampling_factory
from sr3_jax.data import storage

# That every version has written.
_SECTIONS = ("data", "model", "diffusion", "sampling", "train", "checkpoint", "evaluation")

# What may change between a training and what goes on from it: the same training, evaluation,
# upscaling. All other keys decide what the network's numbers mean, or what they were trained for.
MAY_CHANGE = (
    *("seed", "profile_steps"),
    *("data.source", "data.path", "data.low_path", "data.tfds_dir", "data.eval_*"),
    *("data.num_eval_images", "data.crop", "data.crop_scale", "data.cache_gb", "data.num_threads"),
    *("data.dtype", "data.max_bad_share"),
    # Parameters are float32 whatever the type that is computed with.
    *("model.dropout", "model.dtype", "model.lanes", "model.remat"),
    *("train.num_steps", "train.batch_size", "train.accumulate_steps", "train.learning_rate"),
    *("train.num_warmup_steps", "train.num_decay_steps", "train.adam_b1", "train.adam_b2"),
    *("train.clip_norm", "train.ema_decay", "train.flip", "train.blur_*"),
    *("train.log_every_steps", "train.sample_every_steps"),
    *("sampling.*", "parallel.*", "checkpoint.*", "evaluation.*", "tuning.*"),
)

# What configs of older versions meant that have no such keys yet; of those that may not change.
WHERE_MISSING = {
    "method": "sr3",
    "model.num_classes": 0,
    "model.norm": "group",
    "data.white_level": 0,
    "train.source_noise": 0.0,
    "train.label_dropout": 0.1,  # of no meaning without classes
}


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
        for key, value in _flatten(content).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key} is {value}")
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


def check_same_network(old: ConfigDict, new: ConfigDict, path: epath.PathLike) -> None:
    """Whether checkpoints that were trained under one config mean the same under another.

    Args:
      old: that they were trained under.
      new: under which they are to be used.
      path: the file of the old one, for the message.

    Raises:
      ValueError: naming the keys, with both values, and the keys that may change.
    """
    differing = []
    for key, (was, now) in changed_keys(old, new).items():
        was, now = (WHERE_MISSING.get(key) if v is None else v for v in (was, now))
        if was != now and not any(fnmatch.fnmatchcase(key, pattern) for pattern in MAY_CHANGE):
            differing.append(f"config.{key} was {was!r} and is now {now!r}")
    if differing:
        raise ValueError(
            f"the checkpoints beside {os.fspath(path)} are of another network: "
            f"{'; '.join(differing)}. Use the config they were trained with, or another --workdir; "
            f"only these keys may change: {', '.join(MAY_CHANGE)}"
        )


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    parts = (_flatten(v, f"{prefix}.{k}" if prefix else k) for k, v in tree.items())
    return {key: value for part in parts for key, value in part.items()}
