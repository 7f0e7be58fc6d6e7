r"""SR3 4x on the 200 training photographs of BSD500: an hour or so on two CPU cores.

    bash launch/results.sh BSDS500

The network has no attention, so it learns from 64-pixel crops and upscales photographs of any
size; held-out ones are taken from 32 to 128 pixels. What it gives, beside regression trained alike:
docs/results.md.
"""

from ml_collections import config_dict

from configs import default


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the config."""
    config = default.get_config()
    config.data.image_size = 64
    config.data.low_resolution = 16
    config.data.crop = "random"
    # Crops are made smaller about as much as held-out photographs are: 321 pixels to 128.
    config.data.crop_scale = (0.3, 0.7)
    config.model.channels = 32
    config.model.multipliers = (1, 2, 2, 4)
    config.model.num_blocks = 1
    config.model.bottleneck_attention = False
    config.model.residual_std = 0.1
    config.model.dtype = "float32"
    # More of the training at little noise, where faithful colours are learnt; it ends where
    # sampling begins.
    config.diffusion.schedule = "quadratic"
    config.diffusion.beta_end = 9e-3
    config.sampling.schedule = "karras"
    config.sampling.num_steps = 50
    config.sampling.rho = 3.0
    config.sampling.variance = "posterior"
    config.sampling.tile_size = 512
    config.parallel.layout = "replicated"
    config.train.num_steps = 6000
    config.train.batch_size = 4
    config.train.learning_rate = 1.5e-3
    config.train.num_warmup_steps = 100
    config.train.num_decay_steps = 5000
    config.train.ema_decay = 0.999
    config.train.sample_every_steps = 0
    config.checkpoint.every_steps = 500
    config.evaluation.image_size = 128
    return default.variant(config, variant, learning_rate=config.train.learning_rate)
