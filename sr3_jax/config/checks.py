"""Checks of options that depend on each other."""

from __future__ import annotations

from collections.abc import Iterator

from sr3_jax.config import data_checks
from sr3_jax.config.sections import Config
from sr3_jax.config.training_sections import Model

# Options of the paper's network alone.
_OF_SR3 = (
    *("norm", "num_heads", "scale_shift", "embedding_scale", "bottleneck_attention"),
    "learned_variance",
)


def faults(config: Config) -> Iterator[str]:
    """Yields a message, with the fix, for each group of values that cannot work together."""
    yield from _method(config)
    if config.method != "srcnn":
        yield from _network(config)
    if config.model.architecture != "sr3":
        yield from _other_architecture(config)
    yield from data_checks.faults(config)
    yield from _training(config)
    yield from _sampling(config)
    if config.distillation.teacher_calls:
        yield from _distillation(config)
    if config.train.loss == "energy":
        yield from _energy(config)
    yield from _variance(config)


def _method(config: Config) -> Iterator[str]:
    method, noise = config.method, config.train.source_noise
    if noise and (config.predicts_image or not config.has_source):
        yield (
            f"config.train.source_noise = {noise} is for networks of method 'sr3' with a source; "
            "use 0"
        )
    if not config.predicts_image:
        return
    if not config.has_source:
        yield (
            f"config.data.low_resolution = 0, but a {method} makes its image from the low "
            "resolution; only config.method = 'sr3' works without one"
        )
    if config.model.num_classes:
        yield (
            f"config.model.num_classes = {config.model.num_classes}, but a {method} takes no "
            "class labels; use 0"
        )
    for key, value, paper in (
        ("model.prediction", config.model.prediction, "eps"),
        ("train.loss_weight", config.train.loss_weight, "none"),
    ):
        if value != paper:
            yield (
                f"config.{key} = {value!r} is for method 'sr3', and a {method} predicts y_0 "
                f"without noise; use {paper!r}"
            )


def _variance(config: Config) -> Iterator[str]:
    learns, sampling = config.model.learned_variance, config.sampling
    if learns and (config.predicts_image or config.has_source):
        yield (
            "config.model.learned_variance is for networks of method 'sr3' without a source "
            f"(config.data.low_resolution = 0, and here {config.data.low_resolution}); use False"
        )
    if sampling.variance == "learned" and not learns:
        yield (
            "config.sampling.variance = 'learned', but the network has learnt none "
            "(config.model.learned_variance = False); use 'fixed_large' or 'fixed_small'"
        )


def _energy(config: Config) -> Iterator[str]:
    sampling = config.sampling
    if config.predicts_image:
        yield f"config.train.loss = 'energy' is for method 'sr3', not {config.method}; use 'l1'"
    if not config.has_source:
        yield (
            "config.train.loss = 'energy' compares images of one source, and a network of "
            "config.data.low_resolution = 0 has no source; use 'l1' or 'l2'"
        )
    if sampling.sampler != "ddim":
        yield (
            f"config.sampling.sampler = {sampling.sampler!r}, but config.train.loss = 'energy' is "
            "for networks that make their image in one call; use 'ddim'"
        )
    if config.distillation.teacher_calls or config.train.loss_weight != "none":
        yield (
            "config.train.loss = 'energy' has no teacher and no weights of noise levels; use "
            "config.distillation.teacher_calls=0 and config.train.loss_weight=none"
        )
    if min(config.image_sides) < 7:
        yield (
            "config.train.loss = 'energy' compares patches of 7 pixels, and config.data.image_size "
            f"is {config.data.image_size}; use a greater one"
        )


def _distillation(config: Config) -> Iterator[str]:
    of, sampling = config.distillation, config.sampling
    where = f"config.distillation.teacher_calls = {of.teacher_calls}"
    if config.predicts_image:
        yield f"{where} is for method 'sr3', and a {config.method} takes one call; use 0"
        return
    if not of.teacher:
        yield f"{where}, but config.distillation.teacher names no network; give one"
    if of.truth and sampling.eta:
        yield (
            f"config.distillation.truth = {of.truth:g} needs a teacher without noise of its own; "
            "use config.sampling.eta=0"
        )
    if sampling.sampler != "ddim" or sampling.eta not in (0.0, 1.0):
        yield (
            f"config.sampling.sampler = {sampling.sampler!r} with eta = {sampling.eta:g}, but a "
            f"student ({where}) samples by 'ddim' with eta = 0 or 1; use these"
        )
    if sampling.guidance != 1.0:
        yield (
            f"config.sampling.guidance = {sampling.guidance:g}, but a student has its teacher's, "
            f"which is {of.teacher_guidance:g}; use 1"
        )
    if not of.calls:
        yield f"{where}, but config.distillation.calls = 0; give the calls of the student"
        return
    knots, calls = sampling.knots, of.calls * of.teacher_calls
    if not knots or knots % calls:
        yield (
            f"config.sampling.knots = {knots} is not a multiple of {calls}, the calls of the "
            f"teacher ({of.calls} of the student, {of.teacher_calls} for each); use a multiple"
        )


def _network(config: Config) -> Iterator[str]:
    if config.model.measure_sigma_data and config.model.sigma_data:
        yield (
            f"config.model.sigma_data = {config.model.sigma_data} is given, and "
            "config.model.measure_sigma_data asks to measure it; leave out the one, or add "
            "--config.model.measure_sigma_data=false"
        )
    size, stride = config.data.image_size, config.stride
    if any(side % stride for side in config.image_sides):
        down, up = (
            [max(way * (way * side // stride) * stride, stride) for side in config.image_sides]
            for way in (1, -1)
        )
        near = dict.fromkeys(str(tuple(n) if n[0] != n[1] else n[0]) for n in (down, up))
        yield (
            f"config.data.image_size = {size} is not divisible by {stride}, the deepest stride of "
            f"config.model.multipliers; {' or '.join(near)} would do"
        )
    if config.sampling.tile_size % stride:
        yield (
            f"config.sampling.tile_size = {config.sampling.tile_size} is not a multiple of "
            f"{stride}, the deepest stride of config.model.multipliers; use a multiple"
        )
    sizes = [min(config.image_sides) // 2**i for i in range(len(config.model.multipliers))]
    for resolution in config.model.attention_resolutions:
        if resolution not in sizes:
            yield (
                f"config.model.attention_resolutions has {resolution}, but the levels of "
                f"config.data.image_size = {size} with {len(sizes)} config.model.multipliers work "
                f"at {sizes}; use some of these"
            )


def _other_architecture(config: Config) -> Iterator[str]:
    model = config.model
    where = f"config.model.architecture = {model.architecture!r}"
    needed = {"method": (config.method, "sr3")} | {
        f"model.{name}": (getattr(model, name), getattr(Model(), name))
        for name in (*_OF_SR3, "num_classes")
    }
    needed["train.source_noise"] = (config.train.source_noise, 0.0)
    for key, (value, default) in needed.items():
        if value != default:
            yield f"config.{key} = {value!r}, but {where} has no such option; use {default!r}"
    if model.channels % 2:
        yield f"config.model.channels = {model.channels} is odd; {where} takes an even number"
    widths = [model.channels * multiplier for multiplier in model.multipliers]
    if uneven := [width for width in widths if width % model.num_groups]:
        yield (
            f"config.model.num_groups = {model.num_groups} does not divide the {uneven[0]} "
            "channels of a level; use a divisor"
        )


def _training(config: Config) -> Iterator[str]:
    train = config.train
    if train.num_decay_steps and train.num_warmup_steps + train.num_decay_steps > train.num_steps:
        yield (
            f"config.train.num_warmup_steps = {train.num_warmup_steps} and num_decay_steps = "
            f"{train.num_decay_steps} do not fit into num_steps = {train.num_steps}; lower one"
        )
    if train.batch_size % train.accumulate_steps:
        yield (
            f"config.train.accumulate_steps = {train.accumulate_steps} does not divide "
            f"config.train.batch_size = {train.batch_size}; use a divisor"
        )
    if train.blur_probability and not config.has_source:
        yield (
            f"config.train.blur_probability = {train.blur_probability}, but with "
            "config.data.low_resolution = 0 there is nothing to blur; use 0"
        )


def _sampling(config: Config) -> Iterator[str]:
    sampling, train, classes = config.sampling, config.train, config.model.num_classes
    if (calls := config.student_calls) and sampling.num_steps != calls:
        yield (
            f"config.sampling.num_steps = {sampling.num_steps}, but the network is a student, "
            f"whose number of steps is {calls}; use that, or its teacher"
        )
    if sampling.consistent and not config.has_source:
        yield (
            "config.sampling.consistent = True, but a network of config.data.low_resolution = 0 "
            "has no input to be consistent with; use False"
        )
    if sampling.guidance != 1 and not classes:
        yield (
            f"config.sampling.guidance = {sampling.guidance}, but the network is unconditional "
            "(config.model.num_classes = 0); use 1"
        )
    elif sampling.guidance != 1 and not train.label_dropout:
        yield (
            f"config.sampling.guidance = {sampling.guidance}, but the network was trained with "
            "config.train.label_dropout = 0, so that it has no unconditional prediction; use 1, or "
            "train with 0.1"
        )
    if sampling.source_noise > train.source_noise:
        yield (
            f"config.sampling.source_noise = {sampling.source_noise} is not within [0, "
            f"{train.source_noise}], for which the network was trained (config.train.source_noise)"
        )
    if sampling.sigma_min >= sampling.sigma_max:
        yield (
            f"config.sampling.sigma_min = {sampling.sigma_min} must be below sigma_max = "
            f"{sampling.sigma_max}"
        )
    schedules = {"sampling": sampling}
    if config.diffusion.schedule not in ("cosine", "uniform_gamma"):
        schedules["diffusion"] = config.diffusion
    for name, schedule in schedules.items():
        if schedule.beta_start > schedule.beta_end:
            yield (
                f"config.{name}.beta_start = {schedule.beta_start} is above beta_end = "
                f"{schedule.beta_end}; noise must not fall with time"
            )
