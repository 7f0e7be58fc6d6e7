r"""Faces of 1024x1024 from nothing: the paper's unconditional cascade, 64 to 256 to 1024.

    python -m sr3_jax.main --mode=generate --config=configs/cascade_ffhq_1024.py --num_images=16 \
        --config.stage_1.workdir=DIR --config.stage_2.workdir=DIR --config.stage_3.workdir=DIR

The networks: configs/ffhq_64_base.py, ffhq_64_256.py:cascade and ffhq_256_1024.py:cascade.
"""

from ml_collections import config_dict

from sr3_jax.config import authoring


def get_config() -> config_dict.ConfigDict:
    """Returns the config: more steps at low resolution, fewer at high, as the paper has it."""
    return authoring.cascade(
        "runs/cascade_ffhq_1024",
        authoring.stage("runs/ffhq_64_base", num_steps=1000, batch_size=64),
        authoring.stage("runs/ffhq_64_256", num_steps=256, batch_size=32),
        authoring.stage("runs/ffhq_256_1024", num_steps=100, batch_size=8),
    )
