"""SR3 4x for fields of weather whose distribution is known: the example of docs/science.md.

    bash launch/science.sh

Temperature and humidity from 8x8 to 32x32 pixels, with the elevation beside.
"""

from ml_collections import config_dict

from sr3_jax.config import authoring


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the config: that of `arrays_4x`, of a smaller network for two variables."""
    config = authoring.based_on("arrays_4x")
    config.data.image_size = 32
    config.data.low_resolution = 8
    config.data.channels = 2
    config.data.variables = ("t", "q")
    config.data.maps = 1
    config.data.map_variables = ("z",)
    config.data.crop = "central"  # the whole field
    config.model.multipliers = (1, 2, 2)
    config.train.batch_size = 16
    config.train.num_steps = 2000
    config.train.num_warmup_steps = 100
    config.train.num_decay_steps = 1500
    config.train.ema_decay = 0.995
    config.sampling.tile_size = 0
    config.evaluation.image_size = 32
    config.evaluation.num_samples = 16
    return authoring.variant(config, variant, learning_rate=config.train.learning_rate)
