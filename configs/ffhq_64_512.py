"""SR3 64 to 512 on faces: the paper's large 8x face model, 614M parameters.

    python -m sr3_jax.main --config=configs/ffhq_64_512.py --config.data.path=FFHQ/images1024x1024

evaluates on TFDS's `celeb_a_hq/512`, or on --config.data.eval_path=CELEBA_HQ.
"""

from ml_collections import config_dict

from sr3_jax.config import authoring


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the config (SR3, Table A.1)."""
    config = authoring.default()
    config.data.tfds_eval = "celeb_a_hq/512:train"
    config.data.image_size = 512
    config.data.low_resolution = 64
    config.model.channels = 64
    config.model.multipliers = (1, 2, 4, 8, 8, 16, 16)
    config.model.num_blocks = 3
    config.model.attention_resolutions = (16,)
    return authoring.variant(config, variant)
