"""SR3 16 to 128 on faces: the paper's 8x face model, 565M parameters.

    python -m sr3_jax.main --config=configs/ffhq_16_128.py --config.data.path=FFHQ/images1024x1024

evaluates on TFDS's `celeb_a_hq/128`, or on --config.data.eval_path=CELEBA_HQ.

The paper trains on FFHQ and evaluates on CelebA-HQ: PSNR 23.04, SSIM 0.65, consistency 2.68
(Table 1).
"""

from ml_collections import config_dict

from sr3_jax.config import authoring


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the config (SR3, Table A.1)."""
    config = authoring.default()
    config.data.tfds_eval = "celeb_a_hq/128:train"
    config.data.image_size = 128
    config.data.low_resolution = 16
    config.model.channels = 128
    config.model.multipliers = (1, 2, 4, 8, 8)
    config.model.num_blocks = 3
    config.model.attention_resolutions = (16,)
    config.model.dropout = 0.2
    config.evaluation.paper_table = "1"
    return authoring.variant(config, variant)
