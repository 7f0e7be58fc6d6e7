r"""ImageNet's classes at 256x256 from nothing: the paper's class-conditional cascade, 64 to 256.

    python -m sr3_jax.main --mode=generate --config=configs/cascade_imagenet_256.py \
        --num_images=16 --label=207 --config.stage_1.workdir=DIR --config.stage_2.workdir=DIR

The networks: configs/imagenet_64_base.py and imagenet_64_256.py:cascade. With `:fid_50k` and
--num_images=50000 it also measures what Tables 4 and 5 of the paper have.
"""

from ml_collections import config_dict

from sr3_jax.config import authoring


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the config; `fid_50k`: FID and Inception score against the training images."""
    config = authoring.cascade(
        "runs/cascade_imagenet_256",
        authoring.stage("runs/imagenet_64_base", num_steps=250, batch_size=64),
        authoring.stage("runs/imagenet_64_256", num_steps=100, batch_size=32),
    )
    if variant not in ("", "fid_50k"):
        raise ValueError(f"the config has no variant {variant!r}; use fid_50k or none")
    if variant:
        config.evaluation.feature_metrics = ("fid",)
        config.evaluation.fid_reference = "train"
        config.evaluation.paper_tables = ("4", "5")
    return config
