"""Decoding of picture files at full depth: the one reader of the project."""

import dataclasses

import numpy as np
from jaxtyping import Shaped, UInt

from sr3_jax.data import storage
from sr3_jax.data.image_files import containers
from sr3_jax.data.image_files.errors import BadImageError, decoder_errors
from sr3_jax.data.image_files.opening import open_file
from sr3_jax.data.image_files.picture import Opened, Picture, Pixels, rgb

Box = tuple[int, int, int, int]  # (left, top, right, bottom) in pixels


def content(path: str, offset: int = 0, size: int | None = None) -> bytes:
    """Reads a file as `storage.read` does, but a missing one raises BadImageError.

    OSError then is of a cause outside of the picture, such as permissions or the network.
    """
    try:
        return storage.read(path, offset, size)
    except FileNotFoundError as error:
        raise BadImageError(f"no such file: {path}") from error


def decode_picture(data: bytes) -> Picture:
    """Decodes a picture file with all its metadata.

    The EXIF orientation is applied. 16 bits stay 16 bits; 10 and 12 bits of HEIC and AVIF are
    scaled to 16. CMYK becomes 8-bit sRGB, by its profile or else by Pillow's plain formula.

    Args:
      data: content of a JPEG, PNG, WebP, TIFF, BMP, GIF, HEIC or AVIF file.

    Raises:
      BadImageError: the data is empty, no picture, broken or truncated; it has more pixels than
        the limit, several pages or frames, other bands than grey or RGB and alpha, or pixels
        without a range; or the package that reads it is not installed.
      ValueError: the limit on pixels in the environment is no number.
    """
    opened = open_file(data)
    kept = opened.kept
    with decoder_errors():
        values = _upright(opened)
    bands = values.shape[2]
    is_grey = bands < 3
    pixels = np.broadcast_to(values[..., :1], (*values.shape[:2], 3)) if is_grey else values
    profile, notes = kept.icc_profile or None, kept.notes
    if profile and profile[16:20] != (b"GRAY" if is_grey else b"RGB "):
        space = profile[16:20].decode("ascii", "replace").strip() or "unknown"
        notes.append(f"its colour profile, which is for {space} pixels")
        profile = None
    return Picture(
        pixels=pixels[..., :3],
        alpha=values[..., -1] if bands in (2, 4) else None,
        is_grey=is_grey,
        icc_profile=profile,
        exif=kept.exif,
        metadata=kept.metadata,
        is_lossless=kept.is_lossless,
        notes=tuple(notes),
    )


def decode_seen(data: bytes) -> tuple[Pixels, tuple[str, ...]]:
    """Decodes the pixels that networks see, and notes what they do not see of the picture's look.

    Returns:
      RGB at the depth of the file, with transparency composited over white; and notes in plain
      words, the same for all files of a kind. Errors are those of `decode_picture`.
    """
    picture = decode_picture(data)
    notes = [note for note in picture.notes if note.startswith(("its CMYK", "its colour"))]
    alpha, profile = picture.alpha, picture.icc_profile
    if alpha is not None and (alpha < np.iinfo(alpha.dtype).max).any():
        notes.append("transparency, which is composited over white")
    if profile and b"sRGB" not in profile.replace(b"\0", b""):
        notes.append("a colour profile other than sRGB, which is not applied")
    return rgb(picture), tuple(notes)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The content of a picture file that every decoder reads alike.

    It is JPEG or PNG of 8-bit RGB or grey, upright, opaque, and has no profile other than sRGB.
    """

    data: bytes
    shape: tuple[int, int, int]  # height, width and 3


def decode_unless_plain(data: bytes) -> tuple[Pixels | Encoded, tuple[str, ...]]:
    """Returns a file that every decoder reads alike as it is; decodes any other, as `decode_seen`.

    Broken pixels of the first are not noticed.
    """
    opened = open_file(data)
    kept, profile = opened.kept, opened.kept.icc_profile or b"sRGB"
    is_simple = opened.bits == 8 and opened.bands in (1, 3) and kept.orientation == 1
    is_known = data.startswith((b"\xff\xd8\xff", containers.PNG_SIGNATURE))
    if is_simple and is_known and not kept.notes and b"sRGB" in profile.replace(b"\0", b""):
        return Encoded(data, (*opened.shape[:2], 3)), ()
    return decode_seen(data)


def decode_rgb(data: bytes) -> Pixels:
    """Decodes the pixels that networks see; see `decode_seen`."""
    return rgb(decode_picture(data))


def read_picture(path: str) -> Picture:
    """Reads and decodes a picture file; see `content` and `decode_picture`."""
    return decode_picture(content(path))


def read_rgb(path: str) -> Pixels:
    """Reads a picture file and decodes the pixels that networks see; see `content`."""
    return decode_rgb(content(path))


def read_with_comment(path: str) -> tuple[Pixels, str]:
    """Reads a PNG file and its comment; see `comment_of`."""
    data = content(path)
    return decode_rgb(data), comment_of(data)


def comment_of(data: bytes) -> str:
    """Returns the comment that `write_image` gave a PNG file, or an empty one; decodes no pixels.

    Raises:
      BadImageError: the file is empty, no PNG, or ends too early, or the comment is damaged.
    """
    comment, kind = "", None
    for kind, begin, end in containers.png_chunks(data):
        chunk = (kind, data[begin:end])
        if containers.png_keyword(chunk) == containers.COMMENT:
            try:
                comment = containers.png_text_of(chunk)
            except ValueError as error:
                raise BadImageError(f"its comment cannot be read: {error}") from error
    if kind != b"IEND" or not data.startswith(containers.PNG_SIGNATURE):
        raise BadImageError(f"its {len(data)} bytes are no whole PNG file")
    return comment


def cut(image: Pixels, box: Box | None) -> UInt[np.ndarray, "new_height new_width 3"]:
    """Cuts a box out of an image, None for all; raises BadImageError if it is not inside."""
    if box is None:
        return image
    left, top, right, bottom = box
    height, width = image.shape[:2]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise BadImageError(f"box {box} is not inside the {width}x{height} image")
    # A copy, so that the whole image can be freed.
    return image[top:bottom, left:right].copy()


def _upright(opened: Opened) -> Shaped[np.ndarray, "height width bands"]:
    """Decodes the pixels and applies the orientation."""
    values, orientation = np.atleast_3d(opened.decode()), opened.kept.orientation
    if orientation in (3, 4, 6, 7):
        values = values[::-1]
    if orientation in (2, 3, 7, 8):
        values = values[:, ::-1]
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if values.shape != opened.shape:
        raise BadImageError(
            f"its header says {opened.shape}, and its pixels are {values.shape} (height, width and "
            "number of bands)"
        )
    return values
