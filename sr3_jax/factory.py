"""From a ConfigDict to the things it describes; with `data_factory` the only reader of configs.

Each function reads its own section (see configs/default.py for every key) and raises a
ValueError that names the key for values that cannot work.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from ml_collections import config_dict

from sr3_jax import config_checks, diffusion, models, parallel

ConfigDict = config_dict.ConfigDict


@dataclasses.dataclass(frozen=True)
class LoopOptions:
    """How long to train, and what to do how often; all in steps."""

    num_steps: int
    batch_size: int
    log_every_steps: int
    sample_every_steps: int
    checkpoint_every_steps: int
    profile_steps: int = 0


_PREDICTS_IMAGE = {"sr3": False, "regression": True, "srcnn": True}


def method(config: ConfigDict) -> str:
    """What is trained: `sr3`, or the name of a baseline."""
    name = config.get("method", "sr3")  # older workdirs have no such key
    config_checks.choice("config.method", name, _PREDICTS_IMAGE)
    return name


def predicts_image(config: ConfigDict) -> bool:
    """Whether `config.method` is a baseline, which gives y_0 at once, without noise."""
    return _PREDICTS_IMAGE[method(config)]


def has_source(config: ConfigDict) -> bool:
    """Whether images are made from a low resolution; else from nothing, as a cascade's first."""
    config_checks.at_least("config.data.low_resolution", config.data.low_resolution, 0)
    if not config.data.low_resolution and predicts_image(config):
        raise ValueError(
            f"config.data.low_resolution = 0, but a {method(config)} makes its image of that; only "
            "config.method = 'sr3' works without"
        )
    return config.data.low_resolution > 0


def num_classes(config: ConfigDict) -> int:
    """Of labels that the network is told; 0: it is told none."""
    count = config.model.get("num_classes", 0)  # older workdirs have no such key
    config_checks.at_least("config.model.num_classes", count, 0)
    if count and predicts_image(config):
        raise ValueError(
            f"config.model.num_classes = {count}, but a {method(config)} is not told classes; use 0"
        )
    return count


def source_noise(config: ConfigDict) -> float:
    """The greatest noise in sources that the network was trained for; 0: it knows of none."""
    std = config.train.get("source_noise", 0.0)  # older workdirs have no such key
    if std and (predicts_image(config) or not has_source(config)):
        raise ValueError(
            f"config.train.source_noise = {std} is for networks of method 'sr3' with a source; "
            "use 0"
        )
    return std


def model(config: ConfigDict) -> models.UNet | models.SRCNN:
    """The network of `config.method` and `config.model`, for `config.data.image_size`."""
    dtype = config_checks.choice("config.model.dtype", config.model.dtype, _DTYPES)
    if method(config) == "srcnn":
        return models.SRCNN(dtype)
    c, image_size = config.model, config.data.image_size
    stride = models.deepest_stride(c.multipliers)
    if image_size % stride:
        near = [n for n in (image_size // stride * stride, -(-image_size // stride) * stride) if n]
        raise ValueError(
            f"config.data.image_size = {image_size} is not divisible by {stride}, the deepest "
            f"stride of {len(c.multipliers)} levels; {' or '.join(map(str, near))} would do"
        )
    lanes = c.get("lanes", 0)  # older workdirs have no such key
    config_checks.at_least("config.model.lanes", lanes, 0)
    if c.residual_std < 0:
        raise ValueError(
            f"config.model.residual_std = {c.residual_std} is negative; use the root mean square "
            "of y_0 - x in [-1, 1], as 0.1, or 0 for none"
        )
    return models.UNet(
        predicts="y_0" if predicts_image(config) else "eps",
        channels=c.channels,
        multipliers=tuple(c.multipliers),
        num_blocks=c.num_blocks,
        attention_levels=_attention_levels(config),
        bottleneck_attention=c.bottleneck_attention,
        norm=_norm(config),
        num_heads=c.num_heads,
        dropout=c.dropout,
        scale_shift=c.scale_shift,
        embedding_scale=c.embedding_scale,
        residual_std=c.residual_std,
        dtype=dtype,
        remat=c.remat,
        has_source=has_source(config),
        num_classes=num_classes(config),
        source_noise=source_noise(config) > 0,
        lanes=lanes or (TPU_LANES if jax.default_backend() == "tpu" else 1),
    )


def _norm(config: ConfigDict) -> models.Statistics:
    name = config.model.get("norm", "group")  # older workdirs have no such key
    return config_checks.choice(
        "config.model.norm", name, {n: n for n in get_args(models.Statistics)}
    )


def training_schedule(config: ConfigDict) -> diffusion.NoiseSchedule | None:
    """The noise the network is trained on; None for a baseline, which sees none."""
    if predicts_image(config):
        return None
    c = config.diffusion
    make = config_checks.choice("config.diffusion.schedule", c.schedule, _TRAINING_SCHEDULES)
    if c.schedule in ("linear", "quadratic"):
        make = functools.partial(make, beta_start=c.beta_start, beta_end=c.beta_end)
    return config_checks.name_key("config.diffusion", make, c.num_steps)


def checkpoint(config: ConfigDict) -> Literal["latest", "best"]:
    """Which checkpoint is evaluated and upscales."""
    which = config.evaluation.get("checkpoint", "latest")  # older workdirs have no such key
    return config_checks.choice(
        "config.evaluation.checkpoint", which, {n: n for n in ("latest", "best")}
    )


def metric_options(config: ConfigDict) -> dict[str, Any]:
    """What PSNR and SSIM look at: arguments of `evaluation.evaluator.evaluate`."""
    c = config.evaluation
    border = c.get("crop_border", 0)  # older workdirs have no such keys
    config_checks.at_least("config.evaluation.crop_border", border, 0)
    return {"luminance": c.get("luminance", False), "border": border}


def num_samples(config: ConfigDict) -> int:
    """Of each held-out image, with noise of its own; a baseline has but one."""
    count = config.evaluation.get("num_samples", 1)  # older workdirs have no such key
    config_checks.at_least("config.evaluation.num_samples", count, 1)
    return 1 if predicts_image(config) else count


def network_input(config: ConfigDict) -> int:
    """Size to which inputs of an evaluation are brought before the network, in pixels; 0: none."""
    size = config.evaluation.get("network_input", 0)  # older workdirs have no such key
    config_checks.at_least("config.evaluation.network_input", size, 0)
    return size


def feature_options(config: ConfigDict) -> dict[str, Any]:
    """Metrics of pretrained networks: arguments `metrics` and `weights` of `evaluation.judged`."""
    c = config.evaluation
    metrics = tuple(c.get("feature_metrics", ()))  # older workdirs have no such keys
    keys = {"fid": "inception_weights", "lpips": "lpips_weights", "resnet50": "resnet50_weights"}
    for metric in metrics:
        config_checks.choice("config.evaluation.feature_metrics", metric, keys)
    return {
        "metrics": metrics,
        "weights": {metric: c.get(key, "") or None for metric, key in keys.items()},
    }


def paper_table(config: ConfigDict) -> str:
    """The paper's table whose figures a report shows beside ours; empty for none."""
    number = config.evaluation.get("paper_table", "")  # older workdirs have no such key
    return config_checks.choice(
        "config.evaluation.paper_table", number, {n: n for n in ("", *"12345")}
    )


def learning_rate(config: ConfigDict) -> optax.Schedule:
    """Linear warm-up, then constant, then (where asked for) linear to zero."""
    c = config.train
    constant = c.num_steps - c.num_decay_steps
    if c.num_decay_steps and constant < c.num_warmup_steps:
        raise ValueError(
            f"config.train.num_warmup_steps = {c.num_warmup_steps} and num_decay_steps = "
            f"{c.num_decay_steps} do not fit into num_steps = {c.num_steps}; lower one"
        )
    # Counted from 1: the first update already moves.
    parts = [
        lambda step: c.learning_rate * jnp.minimum(1.0, (step + 1) / max(c.num_warmup_steps, 1))
    ]
    if not c.num_decay_steps:
        return parts[0]
    parts.append(optax.linear_schedule(c.learning_rate, 0.0, c.num_decay_steps))
    return optax.join_schedules(parts, [constant])


def optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam on the clipped gradient."""
    c = config.train
    config_checks.above("config.train.clip_norm", c.clip_norm, 0.0)
    config_checks.above("config.train.learning_rate", c.learning_rate, 0.0)
    return optax.chain(
        optax.clip_by_global_norm(c.clip_norm),
        optax.adam(learning_rate(config), b1=c.adam_b1, b2=c.adam_b2),
    )


def step_options(config: ConfigDict) -> dict[str, Any]:
    """Arguments of `training.step.StepOptions`."""
    c = config.train
    config_checks.choice("config.train.loss", c.loss, {"l1": 0, "l2": 0})
    config_checks.at_least("config.train.accumulate_steps", c.accumulate_steps, 1)
    if c.batch_size % c.accumulate_steps:
        raise ValueError(
            f"config.train.accumulate_steps = {c.accumulate_steps} does not divide "
            f"config.train.batch_size = {c.batch_size}; use a divisor"
        )
    if c.blur_probability and not has_source(config):
        raise ValueError(
            f"config.train.blur_probability = {c.blur_probability}, but with "
            "config.data.low_resolution = 0 there is nothing to blur; use 0"
        )
    return dict(
        seed=config.seed,
        loss=c.loss,
        ema_decay=c.ema_decay,
        flip=c.flip,
        blur_probability=c.blur_probability,
        blur_sigma=tuple(c.blur_sigma),
        # Older workdirs have no such key.
        label_dropout=c.get("label_dropout", 0.0) if num_classes(config) else 0.0,
        source_noise=source_noise(config),
        accumulate_steps=c.accumulate_steps,
    )


def loop_options(config: ConfigDict) -> LoopOptions:
    """How long to train, and how often to log and save."""
    c = config.train
    for key, value in (
        ("train.num_steps", c.num_steps),
        ("train.batch_size", c.batch_size),
        ("train.log_every_steps", c.log_every_steps),
        ("checkpoint.every_steps", config.checkpoint.every_steps),
        ("checkpoint.keep_last", config.checkpoint.keep_last),
    ):
        config_checks.at_least(f"config.{key}", value, 1)
    config_checks.at_least("config.profile_steps", config.profile_steps, 0)
    return LoopOptions(
        num_steps=c.num_steps,
        batch_size=c.batch_size,
        log_every_steps=c.log_every_steps,
        sample_every_steps=c.sample_every_steps,
        checkpoint_every_steps=config.checkpoint.every_steps,
        profile_steps=config.profile_steps,
    )


def layout(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> parallel.Layout:
    """How training lies on all devices, or on those given."""
    c = config.parallel
    devices = jax.devices() if devices is None else devices
    rows = config.train.batch_size // config.train.accumulate_steps
    spatial = c.spatial or _fewest_for_an_image(rows, len(devices) // max(c.model, 1))
    mesh = config_checks.name_key(
        "config.parallel",
        functools.partial(parallel.make_mesh, model=c.model, spatial=spatial),
        devices,
    )
    key = "low_resolution" if has_source(config) else "image_size"
    height = config.data[key]
    if height % spatial:
        raise ValueError(
            f"config.parallel.spatial = {spatial} does not divide config.data.{key} = "
            f"{height}; use a divisor, or a larger config.train.batch_size"
        )
    parallel.check_batch_size(rows, mesh, "config.train.batch_size / accumulate_steps")
    name = config_checks.choice(
        "config.parallel.layout", c.layout, {n: n for n in get_args(parallel.LayoutName)}
    )
    return parallel.Layout(mesh, name)


def _fewest_for_an_image(rows: int, devices: int) -> int:
    """1; where there are more devices than images, the fewest that can share one's height."""
    divisors = (n for n in range(1, devices + 1) if devices % n == 0)
    return 1 if rows >= devices else next(n for n in divisors if rows % (devices // n) == 0)


TPU_LANES = 128  # of a register; the channels that fill it
_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
_TRAINING_SCHEDULES = {
    "linear": diffusion.linear,
    "quadratic": diffusion.quadratic,
    "cosine": diffusion.cosine,
    "uniform_gamma": diffusion.uniform_gamma,
}


def _attention_levels(config: ConfigDict) -> tuple[int, ...]:
    sizes = [config.data.image_size // 2**i for i in range(len(config.model.multipliers))]
    levels = []
    for resolution in config.model.attention_resolutions:
        if resolution not in sizes:
            raise ValueError(
                f"config.model.attention_resolutions has {resolution}, but the levels of a "
                f"{sizes[0]}-pixel model work at {sizes}; use some of those"
            )
        levels.append(sizes.index(resolution))
    return tuple(levels)
