"""Unconditional networks of the library diffusers: `UNet2DModel` with a scheduler of DDPM.

They are folders of a model (config.json and its weights) or of a pipeline (`unet/`, `scheduler/`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors

from sr3_jax import models
from sr3_jax.checkpoints import torch_file, weights_file
from sr3_jax.config import Config, in_words, networks, read, schedules
from sr3_jax.data import storage
from sr3_jax.models import Params
from sr3_jax.tools.import_weights import filling

_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
# Keys that networks here have one value of; it is also the library's default.
_FIXED = {
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "attn_norm_num_groups": None,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
# The library's defaults, and the values of DDPM's own weights.
_FORMS = {
    "diffusers": {
        "freq_shift": 0,
        "downsample_padding": 1,
        "norm_eps": 1e-5,
        "attention_head_dim": 8,
    },
    "diffusers_ddpm": {
        "freq_shift": 1,
        "downsample_padding": 0,
        "norm_eps": 1e-6,
        "attention_head_dim": None,
    },
}
_FIXED_OF_SCHEDULER = {
    "trained_betas": None,
    "thresholding": False,
    "rescale_betas_zero_snr": False,
    "clip_sample_range": 1.0,
}
_SCHEDULES = {"linear": "linear", "scaled_linear": "quadratic", "squaredcos_cap_v2": "cosine"}
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "y_0"}
_VARIANCES = ("fixed_small", "fixed_large")
# Older names of the parts of attention.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def read_folder(folder: str) -> tuple[Config, Params]:
    """Returns our config and the parameters of a network.

    Sampling is that of DDPM's scheduler in all its steps.

    Raises:
      FileNotFoundError: the folder has no network, or no scheduler; names the files.
      ValueError: naming everything that is not supported, or does not fit.
    """
    place = _first(folder, ("unet/config.json", "config.json")).removesuffix("config.json")
    scheduler = _first(folder, ("scheduler/scheduler_config.json", "scheduler_config.json"))
    network = _object(f"{place}config.json")
    config = read_config(network, _object(scheduler))
    path = _first(place.rstrip("/"), _WEIGHTS)
    if path.endswith(".bin"):
        arrays = torch_file.read(path)
    else:
        try:
            arrays = weights_file.read_arrays(storage.read(path))
        except (safetensors.SafetensorError, KeyError) as error:
            raise ValueError(f"{path} is damaged, or no file of weights: {error!r}") from error
    is_flipped = network.get("flip_sin_to_cos", True)
    return config, read_params(config, arrays, is_flipped=is_flipped)


def read_config(network: Mapping[str, Any], scheduler: Mapping[str, Any]) -> Config:
    """Returns our config of the configs of a `UNet2DModel` and of its scheduler.

    Raises:
      ValueError: naming every key that is missing or has a value that is not supported.
    """
    found = {
        "block_out_channels": [224, 448, 672, 896],
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "dropout": 0.0,
        "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
        "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
    } | network
    if faults := [*_faults(found), *_faults_of_scheduler(scheduler)]:
        raise ValueError(in_words(faults))
    widths, size = found["block_out_channels"], found["sample_size"]
    betas = {name: scheduler[name] for name in ("beta_start", "beta_end") if scheduler.get(name)}
    num_steps = scheduler.get("num_train_timesteps", 1000)
    config = read(
        {
            "data": {"image_size": size, "low_resolution": 0},
            "model": {
                "architecture": _form(found),
                "channels": widths[0],
                "multipliers": [width // widths[0] for width in widths],
                "num_blocks": found["layers_per_block"],
                "attention_resolutions": [
                    size // 2**i
                    for i, kind in enumerate(found["down_block_types"])
                    if kind == "AttnDownBlock2D"
                ],
                "num_groups": found["norm_num_groups"],
                "dropout": found["dropout"],
                "prediction": _PREDICTIONS[scheduler.get("prediction_type", "epsilon")],
                "dtype": "float32",
            },
            "diffusion": {
                "schedule": _SCHEDULES[scheduler.get("beta_schedule", "linear")],
                "num_steps": num_steps,
                "beta_start": 1e-4,
                "beta_end": 0.02,
            }
            | betas,
            "sampling": {
                "sampler": "ancestral",
                "variance": scheduler.get("variance_type", "fixed_small"),
                "schedule": "respaced",
                "num_steps": num_steps,
                "clip": scheduler.get("clip_sample", True),
            },
            "train": {"ema_decay": 0.0},
        }
    )
    schedules.check(config)
    return config


def read_params(config: Config, arrays: Mapping[str, Any], *, is_flipped: bool) -> Params:
    """Returns the parameters of the network of `config`.

    Args:
      config: of `read_config`.
      arrays: the weights by the library's names.
      is_flipped: whether cosines come before sines in the embedding (`flip_sin_to_cos`).

    Raises:
      ValueError: naming all arrays that are missing, unknown or of another shape.
    """
    arrays = dict(_merged(arrays))
    first = "time_embedding.linear_1.weight"
    if is_flipped and first in arrays:
        arrays[first] = np.roll(arrays[first], arrays[first].shape[1] // 2, axis=1)
    shapes = models.parameter_shapes(networks.model(config), config.data.image_size)
    return filling.fill(shapes, dict(_names(config)), arrays)


def _first(folder: str, names: tuple[str, ...]) -> str:
    for name in names:
        if storage.exists(path := f"{folder}/{name}"):
            return path
    raise FileNotFoundError(f"{folder} has no {' and no '.join(names)}: it is no whole network")


def _object(path: str) -> dict[str, Any]:
    found = json.loads(storage.read(path))
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__} and not an object")
    return found


def _form(found: Mapping[str, Any]) -> str | None:
    """Returns the architecture of a config; None if there is none of it."""
    default = _FORMS["diffusers"]
    values = {key: found.get(key, value) for key, value in default.items()}
    return next((name for name, form in _FORMS.items() if form == values), None)


def _faults(found: Mapping[str, Any]) -> Iterator[str]:
    if found.get("_class_name", "UNet2DModel") != "UNet2DModel":
        yield f"_class_name = {found['_class_name']!r}; networks of UNet2DModel alone are read"
    if not isinstance(found.get("sample_size"), int):
        yield f"sample_size = {found.get('sample_size')!r}; it must be a whole number"
    yield from _differing(found, _FIXED)
    if _form(found) is None:
        known = " or ".join(
            ", ".join(f"{key} = {value}" for key, value in form.items()) for form in _FORMS.values()
        )
        given = ", ".join(f"{key} = {found.get(key)}" for key in _FORMS["diffusers"])
        yield f"{given}, but networks here have {known}"
    widths = found["block_out_channels"]
    if any(width % widths[0] for width in widths):
        yield f"block_out_channels = {widths}; they must be multiples of the first"
    down, up = found["down_block_types"], found["up_block_types"]
    mirrored = [kind.replace("Up", "Down") for kind in reversed(up)]
    if {*down} - {"DownBlock2D", "AttnDownBlock2D"} or mirrored != list(down):
        yield (
            f"down_block_types = {down} and up_block_types = {up}; they must mirror each other, of "
            "DownBlock2D, AttnDownBlock2D, UpBlock2D and AttnUpBlock2D"
        )


def _faults_of_scheduler(scheduler: Mapping[str, Any]) -> Iterator[str]:
    yield from _differing(scheduler, _FIXED_OF_SCHEDULER)
    for key, default, known in (
        ("beta_schedule", "linear", _SCHEDULES),
        ("prediction_type", "epsilon", _PREDICTIONS),
        ("variance_type", "fixed_small", _VARIANCES),
    ):
        if (value := scheduler.get(key, default)) not in known:
            yield f"{key} = {value!r} of the scheduler is unknown here; use {', '.join(known)}"


def _differing(found: Mapping[str, Any], fixed: Mapping[str, Any]) -> Iterator[str]:
    for key, value in fixed.items():
        if found.get(key, value) != value:
            yield f"{key} = {found[key]!r}, but it is always {value} here"


def _merged(arrays: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the arrays with today's names, and query, key and value as one."""
    renamed = {}
    for name, array in arrays.items():
        module, _, part = name.rpartition(".")
        place, _, last = module.rpartition(".")
        renamed[f"{place}.{_RENAMED.get(last, last)}.{part}".lstrip(".")] = array
    for name, array in renamed.items():
        three = [name.replace(".to_q.", f".to_{letter}.") for letter in "qkv"]
        if ".to_q." in name and all(other in renamed for other in three):
            yield name.replace("to_q", "qkv"), np.concatenate([renamed[n] for n in three])
        elif not (".to_k." in name or ".to_v." in name):
            yield name, array


def _names(config: Config) -> Iterator[tuple[str, str]]:
    """Yields our name and the library's of each module."""
    yield from (
        ("conv_in", "conv_in"),
        ("embedding_0", "time_embedding.linear_1"),
        ("embedding_1", "time_embedding.linear_2"),
        ("norm_out", "conv_norm_out"),
        ("conv_out", "conv_out"),
    )
    deepest = len(config.model.multipliers) - 1
    blocks = {"middle_block_0": ("mid_block", 0), "middle_block_1": ("mid_block", 1)}
    for level in range(deepest + 1):
        down, up = f"down_blocks.{level}", f"up_blocks.{deepest - level}"
        for i in range(config.model.num_blocks + 1):
            blocks[f"down_{level}_block_{i}"] = (down, i)
            blocks[f"up_{level}_block_{i}"] = (up, i)
        yield f"down_{level}_resample", f"{down}.downsamplers.0.conv"
        yield f"up_{level}_resample", f"{up}.upsamplers.0.conv"
    for ours, (theirs, i) in blocks.items():
        for part, name in (
            ("norm_0", "resnets.{}.norm1"),
            ("conv_0", "resnets.{}.conv1"),
            ("embedding", "resnets.{}.time_emb_proj"),
            ("norm_1", "resnets.{}.norm2"),
            ("conv_1", "resnets.{}.conv2"),
            ("shortcut", "resnets.{}.conv_shortcut"),
            ("norm_attention", "attentions.{}.group_norm"),
            ("qkv", "attentions.{}.qkv"),
            ("attention_out", "attentions.{}.to_out.0"),
        ):
            yield f"{ours}/{part}", f"{theirs}.{name.format(i)}"
