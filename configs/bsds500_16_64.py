r"""SR3 4x on the 200 training photographs of BSD500: an hour or so on two CPU cores.

    bash launch/results.sh BSDS500

The network has no attention, so it learns from 64-pixel crops and upscales photographs of any
size; held-out ones are taken from 32 to 128 pixels. What it gives, beside regression trained alike:
docs/results.md.
"""

from ml_collections import config_dict

from sr3_jax.config import authoring


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the config: the quickstart's, of a larger network that learns for longer."""
    config = authoring.based_on("quickstart")
    config.data.source = "folder"
    config.data.image_size = 64
    config.data.low_resolution = 16
    # Crops are made smaller about as much as held-out photographs are: 321 pixels to 128.
    config.data.crop_scale = (0.3, 0.7)
    config.model.multipliers = (1, 2, 2, 4)
    # More of the training at little noise, where faithful colours are learnt; it ends where
    # sampling begins.
    config.diffusion.schedule = "quadratic"
    config.diffusion.beta_end = 9e-3
    config.train.num_steps = 6000
    config.train.batch_size = 4
    config.train.num_decay_steps = 5000
    config.train.sample_every_steps = 0
    return authoring.variant(config, variant, learning_rate=config.train.learning_rate)
