"""SR3 256 to 1024 on faces: the last stage of the face cascade, 150M parameters.

    python -m sr3_jax.main --config=configs/ffhq_256_1024.py --config.data.path=FFHQ/images1024x1024

evaluates on TFDS's `celeb_a_hq/1024`, or on --config.data.eval_path=CELEBA_HQ.

The paper trains it with batch 256 as the others; its first levels are 16 channels wide at 1024
pixels, so that activations, not weights, fill the memory.
"""

from ml_collections import config_dict

from sr3_jax.config import authoring


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the config (SR3, Table A.1)."""
    config = authoring.default()
    config.data.tfds_eval = "celeb_a_hq/1024:train"
    config.data.image_size = 1024
    config.data.low_resolution = 256
    config.model.channels = 16
    config.model.multipliers = (1, 2, 4, 8, 16, 32, 32, 32)
    config.model.num_blocks = 2
    config.model.attention_resolutions = (16,)
    return authoring.variant(config, variant)
