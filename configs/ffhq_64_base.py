r"""64x64 faces from nothing: the first stage of the face cascade, a DDPM of 87M parameters.

python -m sr3_jax.main --config=configs/ffhq_64_base.py --workdir=DIR \
        --config.data.path=FFHQ/images1024x1024

SR3 says "unconditional DDPM", and no sizes: these are DDPM's for CIFAR-10 (Ho et al. 2020,
appendix B) with one more level, as DDIM has them for CelebA at 64x64. Its U-Net has 79M parameters
so; ours resamples by residual blocks, which have some of their own.
"""

from ml_collections import config_dict

from sr3_jax.config import authoring


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the config (DDPM, appendix B)."""
    config = authoring.default()
    config.data.image_size = 64
    config.data.low_resolution = 0
    config.model.channels = 128
    config.model.multipliers = (1, 2, 2, 2, 4)
    config.model.num_blocks = 2
    config.model.attention_resolutions = (16,)
    config.model.dropout = 0.1
    config.diffusion.num_steps = 1000
    config.diffusion.beta_start = 1e-4
    config.diffusion.beta_end = 2e-2
    config.sampling.num_steps = 1000  # all of them: at 64 pixels they are cheap
    config.train.loss = "l2"
    config.train.learning_rate = 2e-4
    config.train.num_warmup_steps = 5000
    config.train.batch_size = 128
    return authoring.variant(config, variant)
