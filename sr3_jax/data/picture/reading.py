"""Picture files to pixels, at full depth: the one reader of the project.

A file is opened first, which reads its header and refuses what cannot be read, and decoded then.
"""

import dataclasses

import numpy as np
from jaxtyping import Shaped, UInt

from sr3_jax.data import storage
from sr3_jax.data.picture import containers
from sr3_jax.data.picture.content import Picture, Pixels, rgb
from sr3_jax.data.picture.errors import BadImageError, reasons
from sr3_jax.data.picture.opening import Opened, open_file

Box = tuple[int, int, int, int]  # (left, top, right, bottom) in pixels


@dataclasses.dataclass(frozen=True)
class Header:
    """What is known of a picture before it is decoded.

    Attributes:
        width: of the upright picture, in pixels.
        height: of it.
        bands: colours and alpha; CMYK counts as the RGB that it becomes.
        bits: of each in memory, 8 or 16.
    """

    width: int
    height: int
    bands: int
    bits: int

    @property
    def bytes_decoded(self) -> int:
        """Of the pixels in memory. Decoding takes about three times that for a moment."""
        return self.width * self.height * self.bands * self.bits // 8


def read_picture(path: str) -> Picture:
    """Reads a picture, local or a URL (see `storage`).

    Raises:
        BadImageError: missing file, or see `decode_picture`.
        OSError: reading failed for another reason (permissions, network), which says nothing about
            the picture.
    """
    return decode_picture(content(path))


def decode_picture(data: bytes) -> Picture:
    """Decodes a picture file, with everything that belongs to the picture.

    The EXIF orientation is applied. 16 bits stay so; 10 and 12 bits of HEIC and AVIF are stretched
    to 16. CMYK becomes 8-bit sRGB, by its profile or else by Pillow's plain formula.

    Args:
        data: content of a JPEG, PNG, WebP, TIFF, BMP, GIF, HEIC or AVIF file.

    Raises:
        BadImageError: with a short reason, where the data is empty, no picture, broken or
            truncated; of more pixels than the limit; of several pages or frames; of other bands
            than grey or RGB, and alpha; of pixels without a range; or where the package that reads
            it is not installed.
        ValueError: the limit on pixels in the environment is no number.
    """
    opened = open_file(data)
    values = _decoded(opened)
    with reasons():
        kept = opened.belongings()
    pixels, alpha, is_grey = _split(values)
    profile, notes = kept.icc_profile, kept.notes
    if profile and profile[16:20] != (b"GRAY" if is_grey else b"RGB "):
        notes.append(f"its colour profile, which is for {_space(profile)} pixels")
        profile = None
    return Picture(
        pixels=pixels,
        alpha=alpha,
        is_grey=is_grey,
        icc_profile=profile or None,
        exif=kept.exif,
        metadata=kept.metadata,
        is_lossless=kept.is_lossless,
        notes=tuple(notes),
    )


def read_rgb(path: str, box: Box | None = None) -> Pixels:
    """Reads what networks see of a picture file; see `decode_rgb`.

    Args:
        path: local, or a URL; see `storage`.
        box: what to cut out of the upright picture; None for all of it.

    Raises:
        BadImageError: missing file, see `decode_picture`, or a box that is not inside the picture.
        OSError: see `read_picture`.
    """
    return cut(decode_rgb(content(path)), box)


def cut(image: Pixels, box: Box | None) -> UInt[np.ndarray, "new_height new_width 3"]:
    """Cuts a box out of a picture; None is all of it.

    Raises:
        BadImageError: the box is not inside the picture.
    """
    if box is None:
        return image
    left, top, right, bottom = box
    height, width = image.shape[:2]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise BadImageError(f"box {box} is not inside the {width}x{height} image")
    # A copy, so that the whole image can be freed.
    return image[top:bottom, left:right].copy()


def decode_rgb(data: bytes) -> Pixels:
    """The RGB pixels of a picture file at its own depth, transparency composited over white.

    As `decode_picture`, but without reading what belongs to the picture.
    """
    pixels, alpha, _ = _split(_decoded(open_file(data)))
    return rgb(Picture(pixels, alpha))


def decode_seen(data: bytes) -> tuple[Pixels, tuple[str, ...]]:
    """Decodes what networks see of a picture file, and says what of its look they do not see.

    Returns:
        The pixels, see `decode_rgb`; and notes in plain words, the same for all files of a kind.

    Raises:
        BadImageError: see `decode_picture`.
    """
    opened = open_file(data)
    pixels, alpha, _ = _split(_decoded(opened))
    with reasons():
        kept = opened.belongings()
    notes = [note for note in kept.notes if note.startswith(("its CMYK", "its colour space"))]
    if alpha is not None and (alpha < np.iinfo(alpha.dtype).max).any():
        notes.append("transparency, which is composited over white")
    if kept.icc_profile and b"sRGB" not in kept.icc_profile.replace(b"\0", b""):
        notes.append("a colour profile other than sRGB, which is not applied")
    return rgb(Picture(pixels, alpha)), tuple(notes)


def read_with_comment(path: str) -> tuple[Pixels, str]:
    """Reads a PNG and the comment that `writing.write_image` gave it; empty where there is none.

    Raises:
        BadImageError: missing file, damaged comment, or see `decode_picture`.
        OSError: see `read_picture`.
    """
    data = content(path)
    return decode_rgb(data), comment_of(data)


def comment_of(data: bytes) -> str:
    """Returns the comment that `writing.write_image` gave a PNG file, whose pixels are not decoded.

    Returns:
        The comment; empty where there is none.

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


def header(data: bytes) -> Header:
    """What the header of a picture file says; nothing is decoded.

    Raises:
        BadImageError: see `decode_picture`; pixels that are broken are not noticed.
    """
    opened = open_file(data)
    size = opened.size[::-1] if opened.orientation >= 5 else opened.size
    return Header(*size, opened.bands, opened.bits)


def content(path: str) -> bytes:
    """The content of a picture file.

    Raises:
        BadImageError: there is no such file.
        OSError: see `read_picture`.
    """
    try:
        return storage.read(path)
    except FileNotFoundError as error:
        raise BadImageError(f"no such file: {path}") from error


def _decoded(opened: Opened) -> Shaped[np.ndarray, "height width *bands"]:
    """The upright pixels."""
    with reasons():
        values = np.atleast_3d(opened.decode())
    if values.shape != (*opened.size[::-1], opened.bands):
        raise BadImageError(
            f"its header says {opened.bands} bands of {opened.size[0]}x{opened.size[1]}, and what "
            f"was decoded has {values.shape[2]} of {values.shape[1]}x{values.shape[0]}"
        )
    if opened.orientation in (3, 4, 6, 7):
        values = values[::-1]
    if opened.orientation in (2, 3, 7, 8):
        values = values[:, ::-1]
    return values.swapaxes(0, 1) if opened.orientation in (5, 6, 7, 8) else values


def _split(
    values: Shaped[np.ndarray, "height width bands"],
) -> tuple[Pixels, np.ndarray | None, bool]:
    """Pixels, alpha, and whether they are grey; without a copy."""
    bands = values.shape[2]
    is_grey = bands < 3
    colours = values[..., :1] if is_grey else values[..., :3]
    pixels = np.broadcast_to(colours, (*values.shape[:2], 3)) if is_grey else colours
    return pixels, values[..., -1] if bands in (2, 4) else None, is_grey


def _space(profile: bytes) -> str:
    return profile[16:20].decode("ascii", "replace").strip() or "unknown"
