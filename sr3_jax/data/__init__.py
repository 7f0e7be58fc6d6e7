"""Images in, batches of (high resolution, low resolution) pairs out.

`sources`, `folders`, `archives`, `records` and `tfds_source` know where images are, `picture`
decodes one, `degrade` makes its pair, `pipeline` the batches. This package is the only place that
imports TensorFlow, and only `tfds_source` does.
"""

from sr3_jax.data.folders import folder
from sr3_jax.data.sources import FileRef, ImageRef, photos

__all__ = ["FileRef", "ImageRef", "folder", "photos"]
