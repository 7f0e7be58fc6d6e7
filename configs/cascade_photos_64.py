"""Photographs of 64x64 from nothing, by the three networks of configs/photos_stages.py.

bash launch/cascade.sh [IMAGES]
"""

from ml_collections import config_dict

from sr3_jax.config import authoring


def get_config() -> config_dict.ConfigDict:
    """Returns the config."""
    return authoring.cascade(
        "runs/cascade/generated",
        authoring.stage("runs/cascade/base", batch_size=32),
        authoring.stage("runs/cascade/16_32", num_steps=50, batch_size=32),
        authoring.stage("runs/cascade/32_64", num_steps=25, batch_size=32),
    )
