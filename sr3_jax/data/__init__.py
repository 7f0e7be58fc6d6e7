"""Images in, batches of (high resolution, low resolution) pairs out.

`sources`, `folders`, `archives`, `records` and `tfds_source` know where images are, `picture`
decodes one, `degrade` makes its pair, `pipeline` the batches.
"""
