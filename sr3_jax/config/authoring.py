"""Building blocks of the files in `configs/`: defaults, base configs, variants, cascades.

    def get_config(variant=""):
        config = authoring.default()
        config.data.image_size = 128
        return authoring.variant(config, variant)

The command line names variants as `--config=FILE:VARIANT`.
"""

from __future__ import annotations

import dataclasses

from ml_collections import config_dict

from sr3_jax.config import cascades, fields, locating
from sr3_jax.config.sections import SECTIONS, Config


def default() -> config_dict.ConfigDict:
    """Returns all options with the paper's values, locked, so that a wrong key is an error."""
    return open_to_flags(Config()).lock()


def open_to_flags(config: Config) -> config_dict.ConfigDict:
    """Returns all options of a config, whose sizes take one number or two."""
    values = dataclasses.asdict(config)
    for section in SECTIONS:
        for name, (kind, *_) in fields.declared(type(SECTIONS[section])).items():
            if kind == fields.Size:
                # ml_collections refuses another type than a value has.
                value = values[section][name]
                values[section][name] = config_dict.FieldReference(value, field_type=object)
    return config_dict.ConfigDict(values)


def based_on(name: str) -> config_dict.ConfigDict:
    """Returns the config of another file, to be changed, by its path or name in `configs/`."""
    return locating.load(name).get_config()


def variant(
    config: config_dict.ConfigDict, names: str, learning_rate: float = 1e-5
) -> config_dict.ConfigDict:
    """Changes a config of SR3 to a baseline, a protocol of the paper, or a stage of a cascade.

    Baselines are trained as in the paper: with the squared error, and the checkpoint of the highest
    held-out PSNR is used.

    Args:
      config: a config of SR3; changed in place.
      names: empty, or names with commas: `regression` or `srcnn`; `table_2` or `table_3`, whose
        metrics are measured; `cascade`, a stage after the first, whose sources are blurred.
      learning_rate: learning rate of the regression baseline; the paper's is 1e-5.
    """
    for name in filter(None, names.split(",")):
        if name in ("regression", "srcnn", "cascade") and not config.data.low_resolution:
            raise ValueError(
                f"the variant {name} needs a low resolution, and this config makes images from "
                "nothing (config.data.low_resolution = 0); leave the variant out"
            )
        if name in ("regression", "srcnn"):
            config.method = name
            config.model.prediction = "eps"  # has no meaning without noise
            config.train.loss = "l2"
            config.train.learning_rate = learning_rate if name == "regression" else 1e-3
            config.evaluation.checkpoint = "best"
        elif name in ("table_2", "table_3"):
            _measure_table(config, name)
        elif name == "cascade":
            config.train.blur_probability = 0.5
        elif name != "sr3":
            known = ("regression", "srcnn", "table_2", "table_3", "cascade")
            near = fields.nearest_name(name, known)
            hint = f"did you mean {near}? Use" if near else "use"
            raise ValueError(
                f"the config has no variant {name!r}; {hint} --config=FILE:NAME with NAME one of "
                f"{', '.join(known)}, or several with commas"
            )
    return config


def stage(workdir: str, **sampling: object) -> config_dict.ConfigDict:
    """Returns the section of a stage of a cascade, whose network is of a training's workdir.

    `sampling` replaces keys of the run's; each can also be set on the command line, as
    --config.stage_1.sampling.num_steps=50.
    """
    config = config_dict.ConfigDict()
    config.workdir = workdir
    config.checkpoint = ""  # `latest`, `best` or a step; empty: that of the run's config
    config.sampling = {
        key: config_dict.placeholder(type(value)) for key, value in default().sampling.items()
    }
    config.sampling.update(sampling)
    return config


def cascade(output: str, *stages: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """Returns the config of a cascade of stages (`stage`) in order, for --mode=generate.

    `output` is the folder of the images; --output overrides it.
    """
    config = config_dict.ConfigDict({"output": output})
    for number, section in enumerate(stages, 1):
        config[f"stage_{number}"] = section
    config.evaluation = dataclasses.asdict(cascades.Measures())
    return config.lock()


def _measure_table(config: config_dict.ConfigDict, name: str) -> None:
    """Sets the evaluation to the protocol of Table 2 or Table 3 of the paper."""
    sizes = (config.data.low_resolution, config.data.image_size)
    wanted = {"table_2": [(64, 256)], "table_3": [(64, 256), (56, 224)]}[name]
    if sizes not in wanted:
        raise ValueError(
            f"{name} of the paper is for {' or '.join(f'{a} to {b}' for a, b in wanted)}, and this "
            f"config is {sizes[0]} to {sizes[1]}; use a config of ImageNet"
        )
    c = config.evaluation
    if name == "table_2":
        c.paper_table, c.feature_metrics, c.fid_reference = "2", ("fid",), "train"
    else:
        c.paper_table, c.feature_metrics = "3", ("resnet50",)
        c.image_size, c.num_images = 224, 1000
        # arXiv's protocol for networks of 64 to 256; the journal's for those of 56 to 224.
        c.network_input = 64 if sizes == (64, 256) else 0
