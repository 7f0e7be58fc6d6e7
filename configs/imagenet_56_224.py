"""SR3 56 to 224 on natural images: the journal edition's model for Table 3, 621M parameters.

    python -m sr3_jax.main --config=configs/imagenet_56_224.py

trains on `imagenet2012` as TFDS has prepared it, and evaluates on its validation split. For other
images: --config.data.path=IMAGES --config.data.eval_path=HELD_OUT_IMAGES.

As imagenet_64_256, at the size that ResNet-50 classifies, and about a quarter less work a step.
Attention is at 14x14, the level that is 16x16 at 256.
"""

from ml_collections import config_dict

from sr3_jax.config import authoring


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the config (SR3, Table A.1)."""
    config = authoring.default()
    config.data.tfds_train = "imagenet2012:train"
    config.data.tfds_eval = "imagenet2012:validation"
    config.data.image_size = 224
    config.data.low_resolution = 56
    config.model.channels = 128
    config.model.multipliers = (1, 2, 4, 4, 8, 8)
    config.model.num_blocks = 3
    config.model.attention_resolutions = (14,)
    config.evaluation.paper_table = "3"
    return authoring.variant(config, variant)
