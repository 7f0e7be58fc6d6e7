"""Picture files: the one reader and writer of the project, at full depth.

`content` is a picture in memory; `reading` decodes files that `opening` has opened, with the help
of `tiff_reading`, `cmyk` and `vips`; `belongings` are read from them beside the pixels, with the
help of `containers` and `tiff`; `writing` makes files. What is outside uses the names here.
"""

from sr3_jax.data.picture.content import (
    Density,
    Metadata,
    Picture,
    Pixels,
    fill_transparent,
    rgb,
    to_8_bits,
)
from sr3_jax.data.picture.errors import BadImageError
from sr3_jax.data.picture.reading import (
    Box,
    Header,
    comment_of,
    content,
    cut,
    decode_picture,
    decode_rgb,
    decode_seen,
    header,
    read_picture,
    read_rgb,
    read_with_comment,
)
from sr3_jax.data.picture.writing import (
    FORMATS,
    check_format,
    check_writable,
    encode_image,
    not_kept,
    output_path,
    write_image,
    write_picture,
)

__all__ = [
    "FORMATS",
    "BadImageError",
    "Box",
    "Density",
    "Header",
    "Metadata",
    "Picture",
    "Pixels",
    "check_format",
    "check_writable",
    "comment_of",
    "content",
    "cut",
    "decode_picture",
    "decode_rgb",
    "decode_seen",
    "encode_image",
    "fill_transparent",
    "header",
    "not_kept",
    "output_path",
    "read_picture",
    "read_rgb",
    "read_with_comment",
    "rgb",
    "to_8_bits",
    "write_image",
    "write_picture",
]
