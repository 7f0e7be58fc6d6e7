r"""The three networks of a small cascade of photographs, 16 to 64 pixels, for two CPU cores.

    bash launch/cascade.sh [IMAGES]

trains and chains them (configs/cascade_photos_64.py). Alone:
`--config=configs/photos_stages.py:base`, `:16_32` or `:32_64`.
"""

from ml_collections import config_dict

from sr3_jax.config import authoring


def get_config(stage: str = "") -> config_dict.ConfigDict:
    """Returns the config of one stage.

    Args:
      stage: `base` or empty, which makes 16x16 from nothing; `16_32` or `32_64`, which are SR3.
    """
    config = authoring.based_on("quickstart")
    # Scenes more than details, of which 16 pixels show nothing.
    config.data.crop_scale = (0.5, 1.0)
    config.train.sample_every_steps = 0
    config.evaluation.image_size = 0  # as trained
    config.sampling.num_steps = 100
    # More of the training at little noise; it ends where sampling begins.
    config.diffusion.schedule = "quadratic"
    config.diffusion.beta_end = 9e-3
    if stage in ("", "base"):
        config.data.image_size, config.data.low_resolution = 16, 0
        config.model.channels = 48
        config.model.multipliers = (1, 2, 2)
        config.model.num_blocks = 2
        config.model.attention_resolutions = (8,)
        config.model.bottleneck_attention = True
        config.model.num_heads = 2
        config.model.dropout = 0.1
        config.model.sigma_data = 0.5  # of the photographs themselves, about 0
        config.train.num_steps = 10_000
        config.train.num_decay_steps = 7000
        config.train.batch_size = 16
        config.train.learning_rate = 5e-4
    elif stage in ("16_32", "32_64"):
        low, high = map(int, stage.split("_"))
        config.data.image_size, config.data.low_resolution = high, low
        config.model.multipliers = (1, 2, 2, 4)
        config.train.num_steps = 4000
        config.train.num_decay_steps = 3000
        config.train.batch_size = {32: 16, 64: 4}[high]
        config.train.blur_probability = 0.5
    else:
        raise ValueError(f"no stage {stage!r}; use base, 16_32 or 32_64")
    return config
