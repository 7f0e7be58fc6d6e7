"""64x64 ImageNet by class: the first stage of the class-conditional cascade, 277M parameters.

    python -m sr3_jax.main --config=configs/imagenet_64_base.py

trains on `imagenet2012` as TFDS has prepared it, and evaluates on its validation split. For other
images: --config.data.path=IMAGES --config.data.eval_path=HELD_OUT_IMAGES.

As Improved DDPM (Nichol and Dhariwal 2021; 270M parameters) but for its learnt variances, in place
of which sampling has one of SR3's two (`sampling.variance`), and for the attention at 8x8, which
is at the bottleneck alone. Labels are left out of a tenth of the training, which guidance needs.
"""

from ml_collections import config_dict

from sr3_jax.config import authoring


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the config (Improved DDPM)."""
    config = authoring.default()
    config.data.tfds_train = "imagenet2012:train"
    config.data.tfds_eval = "imagenet2012:validation"
    config.data.image_size = 64
    config.data.low_resolution = 0
    config.model.channels = 192
    config.model.multipliers = (1, 2, 3, 4)
    config.model.num_blocks = 3
    config.model.attention_resolutions = (16,)
    config.model.num_heads = 4
    config.model.scale_shift = True
    config.model.num_classes = 1000
    config.diffusion.schedule = "cosine"
    config.diffusion.num_steps = 4000
    config.sampling.num_steps = 250
    config.train.loss = "l2"
    config.train.num_warmup_steps = 5000
    config.train.batch_size = 2048
    config.train.num_steps = 250_000
    return authoring.variant(config, variant)
