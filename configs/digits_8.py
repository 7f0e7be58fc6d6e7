"""Class-conditional 8x8 digits, of scikit-learn's scans: minutes on two CPU cores.

bash launch/digits.sh
"""

from ml_collections import config_dict

from sr3_jax.config import authoring


def get_config() -> config_dict.ConfigDict:
    """Returns the config; `data.path` and `data.eval_path` are folders of a subfolder a digit."""
    config = authoring.based_on("quickstart")
    config.data.source = "folder"
    config.data.image_size, config.data.low_resolution = 8, 0
    config.data.crop = "central"
    config.model.channels = 32
    config.model.multipliers = (1, 2)
    config.model.num_blocks = 2
    config.model.bottleneck_attention = True
    config.model.sigma_data = 0.75
    config.model.num_classes = 10
    config.model.dropout = 0.1
    config.diffusion.beta_end = 1e-2
    config.sampling.num_steps = 50
    config.train.flip = False
    config.train.batch_size = 64
    config.train.num_steps = 4000
    config.train.num_decay_steps = 3000
    config.train.sample_every_steps = 0
    config.evaluation.image_size = 0  # as trained
    return config
