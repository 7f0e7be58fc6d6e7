"""Images in, batches of (high resolution, low resolution) pairs out.

`sources` lists images, `image_file` reads one, `degrade` makes its pair, `pipeline` the batches.
This package is the only place that imports TensorFlow, and only `degrade` and `pipeline` do, so
`import sr3_jax.data` and `sr3_jax.data.sources` work where TensorFlow is not installed.
"""

from sr3_jax.data.sources import ImageRef, folder, photos

__all__ = ["ImageRef", "folder", "photos"]
