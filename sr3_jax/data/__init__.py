"""Images in, batches of (high resolution, low resolution) pairs out.

`source_kinds` lists the kinds of sources, `image_files` reads and writes files, `degrade` makes the
low resolution, and `pipeline` the batches.
"""
