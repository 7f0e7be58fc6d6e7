"""Image files to 8-bit RGB and back; needs no TensorFlow."""

import contextlib
import io
from collections.abc import Iterator

import numpy as np
from etils import epath
from jaxtyping import UInt8, UInt16
from PIL import Image, ImageOps, PngImagePlugin

from sr3_jax.data import storage

# (left, top, right, bottom) in pixels.
Box = tuple[int, int, int, int]

# A list, since some of Pillow's other readers run external programs (EPS starts Ghostscript).
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")

# In others (a phone's JPEG, TIFF) what follows the first image is a preview or another page.
_ANIMATED = ("GIF", "PNG", "WEBP")

# Why floating-point pixels are refused.
FLOATS = "floating-point pixels have no defined range; save it as 8-bit"

_COMMENT = "Comment"  # the keyword of the PNG specification

# Images of other formats come back as PNG, under their name with .png appended.
WRITERS = {
    ".jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".jpeg": {"format": "JPEG", "quality": 95, "subsampling": 0},
    ".png": {"format": "PNG"},
    ".webp": {"format": "WEBP", "quality": 95},
    ".bmp": {"format": "BMP"},
    ".tif": {"format": "TIFF"},
    ".tiff": {"format": "TIFF"},
}


class BadImageError(ValueError):
    """The image cannot be used; the message is a short reason."""


def read_file(path: str, box: Box | None = None) -> UInt8[np.ndarray, "height width 3"]:
    """Reads, decodes and cuts one image file.

    Args:
        path: local, or a URL; see `storage`.
        box: what to cut out of the upright image; None for all of it.

    Raises:
        BadImageError: missing file, see `decode`, or a box that is not inside the image.
        OSError: reading failed for another reason (permissions, network), which says nothing
            about the image.
    """
    image = decode(content(path))
    if box is None:
        return image
    left, top, right, bottom = box
    height, width = image.shape[:2]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise BadImageError(f"box {box} is not inside the {width}x{height} image")
    # A copy, so that the whole image can be freed.
    return image[top:bottom, left:right].copy()


def decode(data: bytes) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes an image file to upright 8-bit RGB.

    The EXIF orientation is applied and transparency is composited over white. 16-bit grey is scaled
    to 8 bits (65535 becomes 255). Colour profiles are ignored: CMYK is converted by Pillow's plain
    formula and everything else is taken as sRGB. An animation is refused, since which of its
    frames is meant cannot be known.

    Args:
        data: content of a JPEG, PNG, WebP, BMP, TIFF or GIF file.

    Raises:
        BadImageError: with a short reason, where the data is empty, no image, broken, truncated,
            larger than Pillow's decompression bomb limit, animated, or of a pixel type without
            a range.
    """
    with opened(data) as file:
        return _to_rgb(ImageOps.exif_transpose(file))


def content(path: str) -> bytes:
    """The content of an image file.

    Raises:
        BadImageError: there is no such file.
        OSError: see `read_file`.
    """
    try:
        return storage.read(path)
    except FileNotFoundError as e:
        raise BadImageError(f"no such file: {path}") from e


@contextlib.contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """Opens and loads an image file; what fails inside is told by `reasons`.

    Raises:
        BadImageError: see `decode`.
    """
    if not data:
        raise BadImageError("empty file (0 bytes)")
    with reasons(), Image.open(io.BytesIO(data), formats=_FORMATS) as file:
        if file.format in _ANIMATED and getattr(file, "n_frames", 1) > 1:
            raise BadImageError(f"an animation of {file.n_frames} frames; save one of them")
        file.load()
        yield file


@contextlib.contextmanager
def reasons() -> Iterator[None]:
    """Makes a BadImageError with a short reason of whatever a decoder raises."""
    try:
        yield
    except (BadImageError, MemoryError):
        raise
    except Image.UnidentifiedImageError as e:
        raise BadImageError(f"not a {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} file") from e
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        raise BadImageError(
            f"{e}: reduce the image, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from e
    except Exception as e:
        # Depending on where the data is broken, Pillow raises OSError, SyntaxError, struct.error,
        # KeyError and more; none but the bytes can be the cause.
        raise BadImageError(f"cannot be decoded: {e or type(e).__name__}") from e


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    if image.mode.startswith("I"):
        # Pillow's own conversion to 8 bits would clip.
        grey = np.rint(grey_16_bit(image) / 257).astype(np.uint8)
        return np.repeat(grey[..., np.newaxis], 3, axis=-1)
    if image.mode == "F":
        raise BadImageError(FLOATS)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def grey_16_bit(image: Image.Image) -> UInt16[np.ndarray, "height width"]:
    """The pixels of an image of 16-bit grey.

    Also of mode "I" (32-bit), as which some versions of Pillow open it.

    Raises:
        BadImageError: pixels outside of [0, 65535].
    """
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise BadImageError(
            f"integer pixels from {grey.min()} to {grey.max()}; at most 16 bits are supported"
        )
    return grey.astype(np.uint16)


def read_with_comment(path: str) -> tuple[UInt8[np.ndarray, "height width 3"], str]:
    """Reads a PNG and the comment that `write_image` gave it; empty where there is none.

    Raises:
        BadImageError: missing file, or see `decode`.
        OSError: see `read_file`.
    """
    data = content(path)
    image = decode(data)
    with Image.open(io.BytesIO(data), formats=("PNG",)) as file:
        return image, file.info.get(_COMMENT, "")


def write_image(
    image: UInt8[np.ndarray, "height width 3"], path: epath.Path, *, comment: str = ""
) -> epath.Path:
    """Writes an 8-bit RGB image in the format of its suffix, whole or not at all.

    `comment` is kept by PNG alone. Returns the path written, see `output_path`.
    """
    path = output_path(path)
    options = WRITERS[path.suffix.lower()]
    if comment:
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text(_COMMENT, comment)
        options = options | {"pnginfo": chunks}
    data = io.BytesIO()
    Image.fromarray(image).save(data, **options)
    storage.write_whole(path, data.getvalue())
    return path


def output_path(path: epath.Path) -> epath.Path:
    """Where an image of this name is written: with `.png` behind other suffixes than `WRITERS`."""
    if path.suffix.lower() in WRITERS:
        return path
    return path.with_name(path.name + ".png")
