"""SR3 64 to 256 on natural images: the paper's ImageNet model, 621M parameters.

    python -m sr3_jax.main --config=configs/imagenet_64_256.py

trains on `imagenet2012` as TFDS has prepared it, and evaluates on its validation split. For other
images: --config.data.path=IMAGES --config.data.eval_path=HELD_OUT_IMAGES.

IMAGES is any tree of pictures; those whose shorter side is under 256 are left out. The paper
took about four days for 1M steps of batch 256 on 64 TPU v3 chips (2.9 steps/s), and reports
PSNR 26.4, SSIM 0.762 on ImageNet's validation split (Table 2).
"""

from ml_collections import config_dict

from sr3_jax.config import authoring


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the config (SR3, Table A.1)."""
    config = authoring.default()
    config.data.tfds_train = "imagenet2012:train"
    config.data.tfds_eval = "imagenet2012:validation"
    config.data.image_size = 256
    config.data.low_resolution = 64
    config.model.channels = 128
    config.model.multipliers = (1, 2, 4, 4, 8, 8)
    config.model.num_blocks = 3
    config.model.attention_resolutions = (16,)
    config.evaluation.paper_table = "2"
    return authoring.variant(config, variant)
