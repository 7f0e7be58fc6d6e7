"""SR3 4x on the photographs of scikit-image: trained on small crops, in minutes on two cores.

bash launch/quickstart.sh
"""

from ml_collections import config_dict

from sr3_jax.config import authoring


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the config."""
    config = authoring.default()
    config.data.source = "photos"
    config.data.image_size = 32
    config.data.low_resolution = 8
    config.data.crop = "random"
    config.data.crop_scale = (0.05, 0.3)
    config.model.channels = 32
    config.model.multipliers = (1, 2, 2)
    config.model.num_blocks = 1
    config.model.bottleneck_attention = False
    config.model.sigma_data = 0.1  # without it minutes are too few for faithful colours
    config.model.dtype = "float32"
    config.model.prediction = "v"  # learns most in the same time (docs/choosing.md)
    # The least noise that sampling can start from: minutes of training are not spent on more.
    config.diffusion.beta_end = 6e-3
    config.sampling.schedule = "karras"
    config.sampling.num_steps = 50
    config.sampling.rho = 3.0
    config.sampling.variance = "fixed_small"
    config.sampling.tile_size = 512
    config.parallel.layout = "replicated"  # of 5 MB there is nothing to save
    config.train.num_steps = 2000
    config.train.batch_size = 8
    config.train.learning_rate = 1.5e-3
    config.train.num_warmup_steps = 100
    config.train.num_decay_steps = 1500
    config.train.ema_decay = 0.999
    config.train.sample_every_steps = 1000
    config.checkpoint.every_steps = 500
    config.evaluation.image_size = 128
    return authoring.variant(config, variant, learning_rate=config.train.learning_rate)
