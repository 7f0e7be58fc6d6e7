"""From a ConfigDict's section `sampling` to samplers and options."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Literal

from etils import epath
from ml_collections import config_dict

from sr3_jax import config_checks, diffusion, factory, models

# In a workdir: keys of `config.sampling` that upscaling uses instead; by --mode=tune_schedule.
INFERENCE = "inference.json"
_TUNING = config_dict.ConfigDict(
    dict(
        metric="",
        num_images=64,
        calls=(5, 10, 20, 50),
        num_trials=24,
        tolerance=0.01,
        reference_calls=0,
    )
)
# Keys that older workdirs do not have.
_SINCE = ("sampler", "eta", "consistent", "guidance", "source_noise")


@dataclasses.dataclass(frozen=True)
class Options:
    """How images are drawn; what is done with the noise comes from `sampler`.

    Attributes:
      knows_no_class: the network, told classes, was trained to do without, too.
    """

    num_steps: int
    clip: bool
    batch_size: int
    tile_size: int
    consistent: bool = False
    guidance: float = 1.0
    source_noise: float = 0.0
    knows_no_class: bool = False


@dataclasses.dataclass(frozen=True)
class StageOptions:
    """Where a stage of a cascade comes from, and how it samples.

    Attributes:
      workdir: of its training run.
      checkpoint: `latest`, `best` or a step; None for what its run's config says.
      sampling: keys of `config.sampling` in place of its run's.
    """

    workdir: str
    checkpoint: Literal["latest", "best"] | int | None
    sampling: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class TuningOptions:
    """How --mode=tune_schedule searches; see configs/default.py."""

    metric: str
    num_images: int
    calls: tuple[int, ...]
    num_trials: int
    tolerance: float
    reference_calls: int


def tuning_options(config: factory.ConfigDict) -> TuningOptions:
    """Of `config.tuning`; by FID where its weights are at hand, else by the energy score."""
    c = config.get("tuning", _TUNING)  # older workdirs have no such section
    weights = factory.feature_options(config)["weights"]["fid"]
    metric = c.metric or ("fid" if weights else "energy")
    config_checks.choice(
        "config.tuning.metric", metric, dict.fromkeys(("fid", "energy", "psnr", "ssim"))
    )
    config_checks.at_least("config.tuning.num_images", c.num_images, 1)
    config_checks.at_least("config.tuning.num_trials", c.num_trials, 1)
    for calls in c.calls:
        config_checks.at_least("config.tuning.calls", calls, 1)
    config_checks.at_least("config.tuning.reference_calls", c.reference_calls, 0)
    return TuningOptions(
        metric, c.num_images, tuple(c.calls), c.num_trials, c.tolerance, c.reference_calls
    )


def sampler(config: factory.ConfigDict, num_steps: int | None = None) -> diffusion.Sampler | None:
    """`config.sampling.sampler` in `num_steps`, or `config.sampling.num_steps`.

    None for a baseline, which takes one step and no other number of them.
    """
    noise = schedule(config, num_steps)
    if noise is None:
        return None
    c = config.sampling
    eta = c.get("eta", 0.0)  # older workdirs have no such keys
    make = {
        "ancestral": lambda: diffusion.ancestral(noise, c.variance),
        "ddim": lambda: diffusion.ddim(noise, eta),
        "dpmpp_2m": lambda: diffusion.dpmpp_2m(noise, eta),
        "heun": lambda: diffusion.heun(noise),
    }
    return config_checks.name_key(
        "config.sampling",
        config_checks.choice("config.sampling.sampler", c.get("sampler", "ancestral"), make),
    )


def name(config: factory.ConfigDict) -> str:
    """The sampler with its option, for people to read: `ancestral (variance upper)`."""
    c = config.sampling
    used = c.get("sampler", "ancestral")
    option = {
        "ancestral": f" (variance {c.variance})",
        "ddim": f" (eta {c.get('eta', 0.0):g})",
        "dpmpp_2m": f" (eta {c.get('eta', 0.0):g})",
    }
    return used + option.get(used, "")


def schedule(
    config: factory.ConfigDict, num_steps: int | None = None
) -> diffusion.NoiseSchedule | None:
    """The noise that sampling goes through, in `num_steps` or `config.sampling.num_steps`.

    None for a baseline, which takes one step and no other number of them.
    """
    if factory.predicts_image(config):
        if num_steps not in (None, 1):
            raise ValueError(
                f"{num_steps} steps of config.method = {factory.method(config)!r}, which gives its "
                "image at once; leave the number out"
            )
        return None
    c = config.sampling
    num_steps = c.num_steps if num_steps is None else num_steps
    make = {
        "respaced": lambda n: diffusion.respace(factory.training_schedule(config), n),
        "karras": lambda n: diffusion.karras(n, c.sigma_min, c.sigma_max, c.rho),
        "log_snr": lambda n: diffusion.uniform_log_snr(n, c.sigma_min, c.sigma_max),
        "noise_level": lambda n: diffusion.uniform_noise_level(n, c.sigma_max),
        "linear": lambda n: diffusion.linear(n, c.beta_start, c.beta_end),
    }
    make = config_checks.choice("config.sampling.schedule", c.schedule, make)
    return config_checks.name_key("config.sampling", make, num_steps)


def changed(config: factory.ConfigDict, sampling: Mapping[str, Any]) -> factory.ConfigDict:
    """A copy of the config with other values of `config.sampling`.

    Raises:
      ValueError: for an unknown key, or a value of another type.
    """
    config = config.copy_and_resolve_references()
    for key, value in sampling.items():
        if key not in _SINCE and key not in config.sampling:
            raise ValueError(
                f"sampling has no key {key!r}; use {', '.join(sorted({*config.sampling}))}"
            )
        with config.unlocked():
            try:
                config.sampling[key] = value
            except TypeError as error:
                wanted = config.sampling.get_type(key).__name__
                raise ValueError(f"sampling.{key} = {value!r}; give a value of {wanted}") from error
    return config


def recipe(config: factory.ConfigDict) -> dict[str, Any]:
    """All of `config.sampling` that decides what becomes of an input; JSON."""
    how = json.loads(config.to_json())["sampling"]
    how.pop("batch_size")
    return how


def options(config: factory.ConfigDict) -> Options:
    """How to sample."""
    c = config.sampling
    config_checks.choice("config.sampling.variance", c.variance, {"upper": 0, "posterior": 0})
    config_checks.at_least("config.sampling.batch_size", c.batch_size, 1)
    has_source = factory.has_source(config)
    # Without a source there is nothing to cut.
    tile_size = (has_source and c.tile_size) or config.data.image_size
    stride = models.deepest_stride(config.model.multipliers)
    if tile_size % stride:
        raise ValueError(
            f"config.sampling.tile_size = {tile_size} is not a multiple of {stride}, the deepest "
            "stride of the network; use one"
        )
    consistent = c.get("consistent", False)  # older workdirs have no such key
    if consistent and not has_source:
        raise ValueError(
            "config.sampling.consistent = True, but a network of config.data.low_resolution = 0 "
            "has no input to be consistent with; use False"
        )
    return Options(
        1 if factory.predicts_image(config) else c.num_steps,
        c.clip,
        c.batch_size,
        tile_size,
        consistent,
        _guidance(config),
        _source_noise(config),
        bool(factory.num_classes(config) and config.train.label_dropout),
    )


def _guidance(config: factory.ConfigDict) -> float:
    guidance = config.sampling.get("guidance", 1.0)  # older workdirs have no such key
    if guidance < 0:
        raise ValueError(f"config.sampling.guidance = {guidance}; it must be at least 0")
    if guidance == 1:
        return 1.0
    if not factory.num_classes(config):
        raise ValueError(
            f"config.sampling.guidance = {guidance}, but the network knows no classes "
            "(config.model.num_classes = 0); use 1"
        )
    if not config.train.label_dropout:
        raise ValueError(
            f"config.sampling.guidance = {guidance}, but the network was trained with "
            "config.train.label_dropout = 0, so that it does not know what images are like "
            "whatever their class; use 1, or train with 0.1"
        )
    return float(guidance)


def _source_noise(config: factory.ConfigDict) -> float:
    std = config.sampling.get("source_noise", 0.0)  # older workdirs have no such key
    most = factory.source_noise(config)
    if not 0 <= std <= most:
        raise ValueError(
            f"config.sampling.source_noise = {std} is not within [0, {most}], for which the "
            "network was trained (config.train.source_noise)"
        )
    return float(std)


def stages(config: factory.ConfigDict) -> list[StageOptions]:
    """The sections `stage_1`, `stage_2` and so on of a cascade's config, in their order.

    Raises:
      ValueError: there is none, or one names no workdir or no such checkpoint.
    """
    found = []
    while (name := f"stage_{len(found) + 1}") in config:
        c = config[name]
        if not c.workdir:
            raise ValueError(f"config.{name}.workdir is empty; give the workdir of its training")
        which = c.checkpoint or None
        if which is not None and which.isdigit():
            which = int(which)
        elif which is not None:
            names = dict.fromkeys(("latest", "best"))
            config_checks.choice(f"config.{name}.checkpoint", which, names)
        given = {key: value for key, value in c.sampling.items() if value is not None}
        found.append(StageOptions(c.workdir, which, given))
    if not found:
        raise ValueError(
            "the config has no section stage_1, so it is of a network and not of a cascade; use "
            "one as configs/cascade_ffhq_1024.py, or --workdir alone for a single network"
        )
    return found


def tuned(workdir: epath.PathLike, config: factory.ConfigDict) -> dict[str, Any]:
    """Keys of `config.sampling` that `--mode=tune_schedule` found to be best; empty where none.

    Args:
      workdir: of the run, where `inference.json` is if schedules were tuned.
      config: of the run.

    Raises:
      ValueError: the file is damaged, or has keys or values that cannot be.
    """
    path = epath.Path(workdir) / INFERENCE
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_bytes())
        sampling = found.get("sampling") if isinstance(found, dict) else None
        if not isinstance(sampling, dict):
            raise ValueError("it has no section sampling")
        with_it = changed(config, sampling)
        options(with_it)
        sampler(with_it)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} does not hold what --mode=tune_schedule writes ({error}); make it anew, or "
            "remove it to sample as the config says"
        ) from error
    return sampling
