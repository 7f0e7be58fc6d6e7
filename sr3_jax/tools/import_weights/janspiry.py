"""Networks of github.com/Janspiry/Image-Super-Resolution-via-Iterative-Refinement.

Its configs are JSON with comments, its weights `*_gen.pth`: the state of its `GaussianDiffusion`,
which is the U-Net under `denoise_fn.` and the arrays of the noise schedule. It keeps no average of
the parameters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from sr3_jax import models
from sr3_jax.config import Config, in_words, networks, read, schedules
from sr3_jax.models import Params
from sr3_jax.tools.import_weights import filling

_NUMBERS = "a list of whole numbers"
_NEEDED = {
    "model.which_model_G": str,
    "model.unet.in_channel": int,
    "model.unet.out_channel": int,
    "model.unet.inner_channel": int,
    "model.unet.channel_multiplier": list,
    "model.unet.attn_res": list,
    "model.unet.res_blocks": int,
    "model.unet.dropout": float,
    "model.diffusion.image_size": int,
    "model.diffusion.channels": int,
    "model.diffusion.conditional": bool,
} | {
    f"model.beta_schedule.{phase}.{name}": kind
    for phase in ("train", "val")
    for name, kind in (
        ("schedule", str),
        ("n_timestep", int),
        ("linear_start", float),
        ("linear_end", float),
    )
}
_IF_CONDITIONAL = {"datasets.train.l_resolution": int, "datasets.train.r_resolution": int}
_KINDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: _NUMBERS,
}
# Its names of schedules, and ours. `const` is a line from beta_T to beta_T. In `jsd` the last step
# leaves no signal at all, so that its own sampler divides by 0.
_SCHEDULES = {
    "linear": "linear",
    "const": "linear",
    "quad": "quadratic",
    "warmup10": "warmup10",
    "warmup50": "warmup50",
    "cosine": "cosine",
}
_BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "denoise_fn.time_mlp.0.inv_freq",
)


def read_config(text: str) -> Config:
    """Returns our config of a network whose config is `text`.

    Sampling is as there: the schedule under `val`, ancestral, with the variance of the
    posterior, clipped.

    Raises:
      ValueError: naming everything that is missing, wrong, or not supported.
    """
    # The port strips comments in this way, also within texts.
    whole = json.loads("\n".join(line.split("//")[0] for line in text.splitlines()))
    found = _values(whole)
    train, val = (
        {
            name: found[f"model.beta_schedule.{phase}.{name}"]
            for name in ("schedule", "n_timestep", "linear_start", "linear_end")
        }
        for phase in ("train", "val")
    )
    kind, is_conditional = found["model.which_model_G"], found["model.diffusion.conditional"]
    faults = [*_faults(found), *_faults_of_schedules(kind, train, val)]
    if faults:
        raise ValueError(in_words(faults))
    size = found["model.diffusion.image_size"]
    low = found.get("datasets.train.l_resolution", 0) if is_conditional else 0
    # The port's network may be used at another size than that by which its attention is placed.
    used = found["datasets.train.r_resolution"] if is_conditional else size
    multipliers = found["model.unet.channel_multiplier"]
    attention = [
        used // 2**i
        for i in range(len(multipliers))
        if size // 2**i in found["model.unet.attn_res"]
    ]
    sampling = {"schedule": "respaced"}
    if val != train:
        sampling = {
            "schedule": "linear",
            "beta_start": val["linear_end" if val["schedule"] == "const" else "linear_start"],
            "beta_end": val["linear_end"],
        }
    config = read(
        {
            "data": {"image_size": used, "low_resolution": low},
            "model": {
                "architecture": f"janspiry_{kind}",
                "channels": found["model.unet.inner_channel"],
                "multipliers": multipliers,
                "num_blocks": found["model.unet.res_blocks"],
                "attention_resolutions": attention,
                "num_groups": _at(whole, "model.unet.norm_groups") or 32,
                "dropout": found["model.unet.dropout"],
                "dtype": "float32",
            },
            "diffusion": {
                "schedule": _SCHEDULES[train["schedule"]],
                "num_steps": train["n_timestep"],
                "beta_start": train[
                    "linear_end" if train["schedule"] == "const" else "linear_start"
                ],
                "beta_end": train["linear_end"],
            },
            "sampling": sampling
            | {
                "sampler": "ancestral",
                "variance": "fixed_small",
                "num_steps": val["n_timestep"],
                "clip": True,
            },
            "train": {"ema_decay": 0.0},
        }
    )
    schedules.check(config)
    return config


def read_params(config: Config, state: Any) -> Params:
    """Returns the parameters of the network of `config` from the content of `*_gen.pth`.

    Raises:
      ValueError: the file is of the optimizer, or is not of this network or schedule; names all
        arrays that are missing, unknown or of another shape.
    """
    if isinstance(state, Mapping) and "optimizer" in state:
        raise ValueError("it is the state of the optimizer; give the file *_gen.pth beside it")
    shapes = models.parameter_shapes(networks.model(config), config.data.image_size)
    absent = [name for name, _ in _names(config) if name.endswith("/qkv")]
    params = filling.fill(shapes, dict(_names(config)), state, _BUFFERS, absent)
    betas, ours = state.get("betas"), schedules.training_schedule(config).beta[1:]
    if betas is not None and not (
        betas.shape == ours.shape and np.allclose(betas, ours, rtol=1e-4, atol=0)
    ):
        raise ValueError(
            f"the weights were trained with {betas.size} steps from beta {betas[0]:.3g} to "
            f"{betas[-1]:.3g}, and the config has {ours.size} from {ours[0]:.3g} to "
            f"{ours[-1]:.3g}; correct model.beta_schedule.train in it"
        )
    return params


def step_of(name: str) -> int:
    """Returns the step of training in a file's name, as I640000_E37_gen.pth, else 0."""
    found = re.search(r"I(\d+)_E\d+_gen", name)
    return int(found[1]) if found else 0


def _values(whole: Any) -> dict[str, Any]:
    """Returns the needed values by key; ValueError names all that are missing or wrong."""
    needed, found, faults = dict(_NEEDED), {}, []
    if _at(whole, "model.diffusion.conditional") is True:
        needed |= _IF_CONDITIONAL
    for key, kind in needed.items():
        value = _at(whole, key)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        fits = type(value) is kind
        if kind is list and fits:
            fits = all(type(item) is int for item in value)
        if not fits:
            what = "is missing" if value is None else f"is {value!r}"
            faults.append(f"{key} {what}; it must be {_KINDS[kind]}")
        found[key] = value
    if faults:
        raise ValueError(in_words(faults))
    return found


def _at(whole: Any, key: str) -> Any:
    for part in key.split("."):
        whole = whole.get(part) if isinstance(whole, dict) else None
    return whole


def _faults(found: Mapping[str, Any]) -> Iterator[str]:
    is_conditional = found["model.diffusion.conditional"]
    for key, wanted in (
        ("model.diffusion.channels", 3),
        ("model.unet.out_channel", 3),
        ("model.unet.in_channel", 6 if is_conditional else 3),
    ):
        if found[key] != wanted:
            yield (
                f"{key} = {found[key]}, but networks here take and make RGB, where it is {wanted}"
            )
    if found["model.which_model_G"] not in ("sr3", "ddpm"):
        yield f"model.which_model_G = {found['model.which_model_G']!r}; it must be sr3 or ddpm"


def _faults_of_schedules(
    kind: str, train: Mapping[str, Any], val: Mapping[str, Any]
) -> Iterator[str]:
    for phase, schedule in (("train", train), ("val", val)):
        if schedule["schedule"] not in _SCHEDULES:
            yield (
                f"model.beta_schedule.{phase}.schedule = {schedule['schedule']!r} cannot be "
                f"sampled; use one of {', '.join(_SCHEDULES)}"
            )
    if val == train:
        return
    hint = "make model.beta_schedule.val the same as train, and choose the sampling afterwards"
    if kind == "ddpm":
        # There the port tells the network a step's number in the other schedule.
        yield f"model.beta_schedule.val is not train, which a network of ddpm cannot do; {hint}"
    elif val["schedule"] not in ("linear", "const"):
        yield (
            f"model.beta_schedule.val.schedule = {val['schedule']!r} differs from train, and "
            f"sampling here has no such schedule; {hint}"
        )


def _names(config: Config) -> Iterator[tuple[str, str]]:
    """Yields our name and the port's of each module."""
    model = config.model
    is_ddpm = model.architecture == "janspiry_ddpm"
    deepest = len(model.multipliers) - 1
    embedding = "time_mlp" if is_ddpm else "noise_level_mlp"
    of_block = {
        "norm_0": "res_block.block1.block.0",
        "conv_0": "res_block.block1.block.3",
        "embedding": f"res_block.{'mlp.1' if is_ddpm else 'noise_func.noise_func.0'}",
        "norm_1": "res_block.block2.block.0",
        "conv_1": "res_block.block2.block.3",
        "shortcut": "res_block.res_conv",
        "norm_attention": "attn.norm",
        "qkv": "attn.qkv",
        "attention_out": "attn.out",
    }

    def pairs() -> Iterator[tuple[str, str]]:
        yield from (("embedding_0", f"{embedding}.1"), ("embedding_1", f"{embedding}.3"))
        downs = ["conv_in"]
        for level in range(deepest + 1):
            downs += [f"down_{level}_block_{i}" for i in range(model.num_blocks)]
            downs += [f"down_{level}_resample"] * (level < deepest)
        ups = []
        for level in reversed(range(deepest + 1)):
            ups += [f"up_{level}_block_{i}" for i in range(model.num_blocks + 1)]
            ups += [f"up_{level}_resample"] * (level > 0)
        middle = [f"middle_block_{i}" for i in range(2)]
        for list_name, modules in (("downs", downs), ("mid", middle), ("ups", ups)):
            for i, module in enumerate(modules):
                theirs = f"{list_name}.{i}"
                if "_block_" in module:
                    for ours, part in of_block.items():
                        yield f"{module}/{ours}", f"{theirs}.{part}"
                else:
                    yield module, f"{theirs}.conv" if "_resample" in module else theirs
        yield from (("norm_out", "final_conv.block.0"), ("conv_out", "final_conv.block.3"))

    for ours, theirs in pairs():
        yield ours, f"denoise_fn.{theirs}"
