r"""SR3 4x for files of arrays: any number of channels, numbers of any range, with maps beside.

    python -m sr3_jax.main --config=configs/arrays_4x.py --workdir=DIR \
        --config.data.path=SCENES --config.data.channels=13 \
        --config.data.maps=1 --config.data.maps_path=ELEVATION

SCENES: a folder of GeoTIFF, NetCDF, npy or other files (docs/arrays.md), of 64 pixels or more. A
tenth of the channels of the paper's networks, for two CPU cores or a small GPU; more is better.
"""

from ml_collections import config_dict

from sr3_jax.config import authoring


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """Returns the config: that of `photos_4x`, for numbers of any range."""
    config = authoring.based_on("photos_4x")
    config.data.upsampling = "bicubic"  # the other takes no missing values
    config.data.source = "arrays"
    config.data.dtype = "float32"
    config.data.crop_scale = (0.0, 0.0)  # at the resolution of the files
    config.evaluation.image_size = 0  # that of training
    config.units.scaling = "standardise"
    config.sampling.clip = False
    config.model.prediction = "v"
    config.model.sigma_data = 0.0
    config.model.measure_sigma_data = True
    config.train.flip = False  # of a vector, a component would change its sign
    return authoring.variant(config, variant, learning_rate=config.train.learning_rate)
