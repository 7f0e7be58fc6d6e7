"""What the files in `configs/` are made of: defaults, a config to start from, variants, stages.

def get_config(variant=""):
config = authoring.default()
config.data.image_size = 128
return authoring.variant(config, variant)
"""

from __future__ import annotations

from ml_collections import config_dict

from sr3_jax.config import locating, reading


def default() -> config_dict.ConfigDict:
    """Returns every option with the paper's value; locked, so that a wrong key is an error."""
    return reading.default_dict()


def based_on(name: str) -> config_dict.ConfigDict:
    """Returns the config of another file, to be changed.

    Args:
      name: of a file in `configs/`, as `quickstart`; or its path.
    """
    return locating.load(name).get_config()


def variant(
    config: config_dict.ConfigDict, names: str, learning_rate: float = 1e-5
) -> config_dict.ConfigDict:
    """The config of another method, or with what a table of the paper measures.

    Baselines are trained as the paper does: by the squared error, keeping the checkpoint of the
    highest held-out PSNR.

    Args:
      config: of SR3, which is changed.
      names: empty, or some of `regression` or `srcnn`, `table_2` or `table_3`, and `cascade` (a
        stage after the first, whose sources are blurred), with commas.
      learning_rate: of the regression baseline; the paper's is 1e-5.
    """
    for name in filter(None, names.split(",")):
        if name in ("regression", "srcnn", "cascade") and not config.data.low_resolution:
            raise ValueError(
                f"the variant {name} is of networks with a low resolution, and this config makes "
                "images from nothing"
            )
        if name in ("regression", "srcnn"):
            config.method = name
            config.train.loss = "l2"
            config.train.learning_rate = learning_rate if name == "regression" else 1e-3
            config.evaluation.checkpoint = "best"
        elif name in ("table_2", "table_3"):
            _measure_table(config, name)
        elif name == "cascade":
            config.train.blur_probability = 0.5
        elif name != "sr3":
            raise ValueError(
                f"the config has no variant {name!r}; use --config=FILE:NAME with NAME one of "
                "regression, srcnn, table_2, table_3, cascade, or several with commas"
            )
    return config


def stage(workdir: str, **sampling: object) -> config_dict.ConfigDict:
    """A stage of a cascade: where its network was trained, and how it samples here.

    Args:
      workdir: of the training run.
      **sampling: keys of `sampling` in place of the run's; each can also be set on the command
        line, as --config.stage_1.sampling.num_steps=50.
    """
    config = config_dict.ConfigDict()
    config.workdir = workdir
    config.checkpoint = ""  # `latest`, `best` or a step; empty: as the run's config says
    config.sampling = {
        key: config_dict.placeholder(type(value))
        for key, value in reading.default_dict().sampling.items()
    }
    config.sampling.update(sampling)
    return config


def cascade(output: str, *stages: config_dict.ConfigDict) -> config_dict.ConfigDict:
    """The config of a cascade, for --mode=generate: its stages in their order.

    Args:
      output: folder of the images, if --output names none.
      *stages: see `stage`.
    """
    config = config_dict.ConfigDict({"output": output})
    for number, section in enumerate(stages, 1):
        config[f"stage_{number}"] = section
    config.evaluation = evaluation = config_dict.ConfigDict()
    # Of the last stage's images: `fid`, with the Inception score.
    evaluation.feature_metrics = ()
    # `train`: the last stage's training images; or a folder, or an .npz file of statistics.
    evaluation.fid_reference = ""
    evaluation.inception_weights = ""  # empty: torch-fidelity downloads them
    evaluation.paper_tables = ()  # whose figures stand beside: `4`, `5`
    config.lock()
    return config


def _measure_table(config: config_dict.ConfigDict, name: str) -> None:
    """What Table 2 and Table 3 of the paper measure."""
    sizes = (config.data.low_resolution, config.data.image_size)
    wanted = {"table_2": [(64, 256)], "table_3": [(64, 256), (56, 224)]}[name]
    if sizes not in wanted:
        raise ValueError(
            f"{name} of the paper is of networks {' or '.join(f'{a} to {b}' for a, b in wanted)}, "
            f"and this config is {sizes[0]} to {sizes[1]}; use a config of ImageNet"
        )
    c = config.evaluation
    if name == "table_2":
        c.paper_table, c.feature_metrics, c.fid_reference = "2", ("fid",), "train"
    else:
        c.paper_table, c.feature_metrics = "3", ("resnet50",)
        c.image_size, c.num_images = 224, 1000
        c.network_input = 64 if sizes == (64, 256) else 0  # arXiv's protocol; the journal's
