"""Checks of options that depend on each other."""

from __future__ import annotations

from collections.abc import Iterator

from sr3_jax import scaling
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
    yield from _data(config)
    yield from _arrays(config)
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
    if config.data.image_size < 7:
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
    if size % stride:
        near = [n for n in (size // stride * stride, -(-size // stride) * stride) if n]
        yield (
            f"config.data.image_size = {size} is not divisible by {stride}, the deepest stride of "
            f"config.model.multipliers; {' or '.join(map(str, near))} would do"
        )
    if config.sampling.tile_size % stride:
        yield (
            f"config.sampling.tile_size = {config.sampling.tile_size} is not a multiple of "
            f"{stride}, the deepest stride of config.model.multipliers; use a multiple"
        )
    sizes = [size // 2**i for i in range(len(config.model.multipliers))]
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


def _data(config: Config) -> Iterator[str]:
    data, evaluation = config.data, config.evaluation
    if config.has_source and data.image_size % data.low_resolution:
        yield (
            f"config.data.low_resolution = {data.low_resolution} does not divide "
            f"config.data.image_size = {data.image_size}; use a divisor"
        )
    elif evaluation.image_size % config.factor:
        yield (
            f"config.evaluation.image_size = {evaluation.image_size} is not a multiple of "
            f"{config.factor}, the ratio of config.data.image_size and low_resolution; use a "
            "multiple"
        )
    if evaluation.downsampling != "pillow" and (data.eval_source or data.source) == "folder_pairs":
        yield (
            f"config.evaluation.downsampling = {evaluation.downsampling!r}, but held-out images of "
            "folder_pairs come with their low resolutions; use 'pillow', which changes nothing "
            "there"
        )


def _arrays(config: Config) -> Iterator[str]:
    data, units = config.data, config.units
    if (data.dtype == "float32") != bool(units.scaling):
        yield (
            f"config.data.dtype = {data.dtype!r} and config.units.scaling = {units.scaling!r}: "
            "numbers of any range (float32) need a scaling, and levels have none; use "
            "--config.data.dtype=float32 with --config.units.scaling=range, or neither"
        )
    elif config.has_levels:
        yield from _levels(config)
    else:
        yield from _numbers(config)
    is_rgb = data.channels == config.conditioning_channels == 3
    if config.model.architecture != "sr3" and not is_rgb:
        yield (
            f"config.model.architecture = {config.model.architecture!r} has 3 channels; use "
            "config.data.channels=3 without source_channels, maps or missing"
        )


def _levels(config: Config) -> Iterator[str]:
    data = config.data
    if "arrays" in (data.source, data.eval_source):
        yield (
            "config.data.source = 'arrays' has numbers of any range; use "
            "--config.data.dtype=float32 and --config.units.scaling=range (or another)"
        )
    if data.channels not in (1, 3):
        yield f"config.data.channels = {data.channels}, but pictures have 3, or 1 if they are grey"
    for name, default in (("source_channels", 0), ("maps", 0), ("missing", False)):
        if (value := getattr(data, name)) != default:
            yield (
                f"config.data.{name} = {value}, which pictures cannot have; use "
                f"config.data.source=arrays, or {default}"
            )


def _numbers(config: Config) -> Iterator[str]:
    data, units, where = config.data, config.units, "config.data.dtype = 'float32'"
    if 0 < data.source_channels < data.channels:
        yield (
            f"config.data.source_channels = {data.source_channels} must be at least "
            f"config.data.channels = {data.channels}, since the low resolution begins with the "
            "channels of y_0"
        )
    if not config.has_source:
        yield f"config.data.low_resolution = 0, but {where} is for networks with a source; give one"
    if data.maps_path and not data.maps:
        yield f"config.data.maps_path = {data.maps_path!r}, but config.data.maps is 0"
    evaluation = config.evaluation
    for key, value, needed in (
        ("downsampling", evaluation.downsampling, "pillow"),
        ("network_input", evaluation.network_input, 0),
        ("paper_table", evaluation.paper_table, ""),
    ):
        if value != needed:
            yield (
                f"config.evaluation.{key} = {value!r} is for pictures, not for {where}; use "
                f"{needed!r}"
            )
    if config.evaluation.feature_metrics:
        yield (
            f"config.evaluation.feature_metrics = {config.evaluation.feature_metrics} are of "
            f"pictures, not of {where}; leave them out"
        )
    if units.scaling == "standardise" and config.sampling.clip:
        yield (
            "config.sampling.clip = True, but values of config.units.scaling = 'standardise' have "
            "no limits; use --config.sampling.clip=false"
        )
    count = config.source_channels + data.maps
    for name, each in (
        *((name, 1) for name in ("least", "greatest", "mean", "deviation")),
        ("quantiles", scaling.NUM_QUANTILES),
    ):
        given = getattr(units, name)
        if given and len(given) != count * each:
            yield (
                f"config.units.{name} has {len(given)} numbers; give {count * each}, for "
                f"{count} channels"
            )
    if data.missing:
        yield from _missing(config)


def _missing(config: Config) -> Iterator[str]:
    for key, value, needed in (
        ("train.blur_probability", config.train.blur_probability, 0.0),
        ("train.source_noise", config.train.source_noise, 0.0),
        ("sampling.consistent", config.sampling.consistent, False),
    ):
        if value != needed:
            yield (
                f"config.{key} = {value} needs whole images, but config.data.missing = True; use "
                f"{needed}"
            )
    if config.train.loss == "energy":
        yield (
            "config.train.loss = 'energy' compares whole images, but config.data.missing = True; "
            "use 'l1' or 'l2'"
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
