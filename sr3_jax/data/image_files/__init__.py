"""Picture files: the one reader and writer of the project, at full depth.

`picture` is a picture in memory. `reading` decodes a file that `opening` has opened, with `pillow`,
`vips` and `tiff_reading`. `metadata` reads its metadata, with `containers` and `tiff`. `writing`
makes files. Other packages use the names below.
"""
# ruff: noqa: F401

from sr3_jax.data.image_files.errors import BadImageError, decoder_errors
from sr3_jax.data.image_files.opening import open_file
from sr3_jax.data.image_files.picture import (
    GEO_TAGS,
    Density,
    Metadata,
    Picture,
    Pixels,
    fill_transparent,
    rgb,
    scaled_geo,
    to_8_bits,
)
from sr3_jax.data.image_files.reading import (
    Box,
    Encoded,
    comment_of,
    content,
    cut,
    decode_picture,
    decode_rgb,
    decode_seen,
    decode_unless_plain,
    read_picture,
    read_rgb,
    read_with_comment,
)
from sr3_jax.data.image_files.tiff import Value as TagValue
from sr3_jax.data.image_files.writing import (
    FORMATS,
    check_format,
    check_writable,
    encode_image,
    not_kept,
    output_path,
    write_image,
    write_picture,
)
