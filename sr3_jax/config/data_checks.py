"""Checks of options of the data: sizes, degradations, units, and what only some sources have."""

from __future__ import annotations

import fractions
from collections.abc import Iterator

from sr3_jax import scaling, sizes
from sr3_jax.config import data_sections
from sr3_jax.config.sections import Config


def faults(config: Config) -> Iterator[str]:
    """Yields a message, with the fix, for each group of values that cannot work together."""
    yield from _data(config)
    yield from _arrays(config)
    for key in ("blur_kernels", "resize_kernels", "noise_kinds"):
        if not getattr(config.degradation, key):
            default = getattr(data_sections.Degradation(), key)
            yield f"config.degradation.{key} is empty; name one at least, such as {default[0]!r}"
    if config.degradation.is_active:
        yield from _degradation(config)


def _data(config: Config) -> Iterator[str]:
    data, evaluation = config.data, config.evaluation
    (height, width), (low_height, low_width) = config.image_sides, config.low_sides
    if not config.has_source:
        if height != width:
            yield (
                f"config.data.image_size = {data.image_size}, but a network of "
                "config.data.low_resolution = 0 makes squares; give one number"
            )
    elif height * low_width != width * low_height or height < low_height:
        yield (
            f"config.data.low_resolution = {data.low_resolution} is not of the shape of "
            f"config.data.image_size = {data.image_size}, and at most as large; change one"
        )
    else:
        yield from _sizes(config)
    if evaluation.downsampling != "pillow" and (data.eval_source or data.source) == "folder_pairs":
        yield (
            f"config.evaluation.downsampling = {evaluation.downsampling!r}, but held-out images of "
            "folder_pairs come with their low resolutions; use 'pillow', which changes nothing "
            "there"
        )


def _sizes(config: Config) -> Iterator[str]:
    """Yields faults of sizes with each other, given those of training."""
    data, evaluation = config.data, config.evaluation
    ratio = fractions.Fraction(config.image_sides[0], config.low_sides[0])
    if any(side % ratio.numerator for side in sizes.sides(evaluation.image_size)):
        yield (
            f"config.evaluation.image_size = {evaluation.image_size} is not a multiple of "
            f"{ratio.numerator}, since config.data.image_size and low_resolution are as {ratio}; "
            "use a multiple"
        )
    has_own = data.low_path or data.source == "folder_pairs"
    if ratio == 1 and not (has_own or config.degradation.is_active):
        yield (
            f"config.data.low_resolution = {data.low_resolution} is config.data.image_size, so the "
            "source would be y_0 itself; give images with low resolutions of their own "
            "(config.data.low_path), a config.degradation, or a smaller one"
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
        ("data.upsampling", config.data.upsampling, "bicubic"),
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


def _degradation(config: Config) -> Iterator[str]:
    data, where = config.data, "config.degradation is of low resolutions that are made"
    if not config.has_source:
        yield f"{where}, but a network of config.data.low_resolution = 0 has none; leave it out"
    if not config.has_levels:
        yield f"{where} of pictures, not of config.data.dtype = 'float32'; leave it out"
    for key in ("source", "eval_source"):
        if getattr(data, key) == "folder_pairs":
            yield f"{where}, but config.data.{key} = 'folder_pairs' has its own; leave it out"
    if config.evaluation.downsampling != "pillow":
        yield (
            f"config.evaluation.downsampling = {config.evaluation.downsampling!r}, but {where} by "
            "resize_kernels of its own; use 'pillow'"
        )
