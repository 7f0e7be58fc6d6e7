"""Opening a picture file of any format: its header is read, and what cannot be read is refused.

Pillow decodes what it reads at full depth (JPEG, BMP, GIF, PNG and AVIF of 8 bits), pillow-heif
HEIC, and libvips (pyvips) everything else. The last two are imported when such a file comes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Shaped
from PIL import AvifImagePlugin, BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin

from sr3_jax.data.picture import belongings, cmyk, containers, tiff, tiff_reading
from sr3_jax.data.picture.errors import BadImageError, check_pixels, max_pixels, reasons
from sr3_jax.data.picture.vips import vips

if TYPE_CHECKING:  # else imported when it is needed
    import pyvips
    from PIL import Image

_FORMATS = "JPEG, PNG, WebP, TIFF, BMP, GIF, HEIC or AVIF"
_ROWS = 256  # that are taken out of Pillow's memory at once

# The major and the compatible brands of files in the container of HEIF.
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


class Opened(NamedTuple):
    """A file whose header was read.

    Attributes:
        size: width and height as stored.
        bands: see `reading.Header`.
        bits: see `reading.Header`.
        decode: gives the pixels as stored: grey or RGB, then alpha; 2 or 3 dimensions.
        belongings: reads what belongs to the picture.
        orientation: of EXIF.
    """

    size: tuple[int, int]
    bands: int
    bits: int
    decode: Callable[[], Shaped[np.ndarray, "height width *bands"]]
    belongings: Callable[[], belongings.Belongings]
    orientation: int = 1


def open_file(data: bytes) -> Opened:
    """Opens a picture file.

    Raises:
        BadImageError, ValueError: see `reading.decode_picture`.
    """
    max_pixels()  # what is wrong in the environment is no fault of the picture
    if not data:
        raise BadImageError("empty file (0 bytes)")
    with reasons():
        opened = _opener(data)(data)
        check_pixels(*opened.size)
    return opened


def _opener(data: bytes) -> Callable[[bytes], Opened]:
    """By the first bytes of a file, whatever its name."""
    if data.startswith(b"\xff\xd8\xff"):
        return _open_jpeg
    if data.startswith(containers.PNG_SIGNATURE):
        return _open_png
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _open_webp
    if tiff.is_tiff(data):
        return _open_tiff
    if data[:2] == b"BM":
        return _open_bmp
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return _open_gif
    if data[4:8] == b"ftyp":
        end = int.from_bytes(data[:4], "big")
        brands = {data[8:12], *(data[i : i + 4] for i in range(16, min(end, 256), 4))}
        if brands & _AVIF_BRANDS:
            return _open_avif
        if brands & _HEIC_BRANDS:
            return _open_heic
    raise BadImageError(f"not a {_FORMATS} file")


def _open_jpeg(data: bytes) -> Opened:
    # Without Image.open, whose limit on pixels is another; this is what it makes.
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    if image.mode == "CMYK":
        profile = image.info.get("icc_profile")
        decode = lambda: cmyk.image_to_srgb(_loaded(image), profile)  # noqa: E731
        bands = 3
    else:
        decode, bands = lambda: _values(_loaded(image)), len(image.getbands())
    orientation = belongings.orientation(image.info.get("exif"), image.info.get("xmp"))
    return Opened(image.size, bands, 8, decode, lambda: belongings.of_jpeg(image), orientation)


def _open_png(data: bytes) -> Opened:
    for kind, begin, end in containers.png_chunks(data):
        if kind == b"acTL":
            _refuse_frames(int.from_bytes(data[begin : min(begin + 4, end)], "big"))
    pixels = containers.png_of_pixels(data)
    image = PngImagePlugin.PngImageFile(io.BytesIO(pixels))
    bits = 16 if data[24] == 16 else 8
    has_alpha = image.has_transparency_data
    if bits == 16:
        decode = lambda: _by_vips("pngload_buffer", pixels).numpy()  # noqa: E731
    else:
        if data[24] < 8 and image.mode == "L":
            # Pillow stretches the levels to 8 bits, but not the one that is transparent.
            if isinstance(level := image.info.get("transparency"), int):
                image.info["transparency"] = level * 255 // (2 ** data[24] - 1)
        decode = lambda: _values(_loaded(image))  # noqa: E731
    return Opened(
        image.size,
        (1 if data[25] in (0, 4) else 3) + has_alpha,
        bits,
        decode,
        lambda: belongings.of_png(data),
        belongings.orientation(*containers.png_exif_and_xmp(data)),
    )


def _open_webp(data: bytes) -> Opened:
    image = _by_vips("webpload_buffer", data)
    if image.get_typeof("n-pages"):
        _refuse_frames(image.get("n-pages"))
    chunks = dict(containers.webp_chunks(data))
    return Opened(
        (image.width, image.height),
        image.bands,
        8,
        image.numpy,
        lambda: belongings.of_webp(chunks),
        belongings.orientation(chunks.get(b"EXIF"), chunks.get(b"XMP ")),
    )


def _open_tiff(data: bytes) -> Opened:
    found = tiff_reading.inspect(data)
    check_pixels(found.width, found.height)
    return Opened(
        (found.width, found.height),
        found.bands,
        found.bits,
        lambda: tiff_reading.decode(data, found),
        lambda: belongings.of_tiff(data, found),
        found.orientation,
    )


def _open_bmp(data: bytes) -> Opened:
    image = BmpImagePlugin.BmpImageFile(io.BytesIO(data))
    return _of_pillow(image, lambda: belongings.of_bmp(image))


def _open_gif(data: bytes) -> Opened:
    image = GifImagePlugin.GifImageFile(io.BytesIO(data))
    check_pixels(*image.size)
    _refuse_frames(image.n_frames)
    return _of_pillow(image, lambda: belongings.of_gif(image))


def _open_avif(data: bytes) -> Opened:
    image = AvifImagePlugin.AvifImageFile(io.BytesIO(data))
    _refuse_frames(image.n_frames)
    # Pillow makes 8 bits of more.
    deep = _by_vips("heifload_buffer", data)
    opened = _of_pillow(image, lambda: belongings.of_avif(image, deep))
    bits = deep.get("bits-per-sample")
    if bits == 8:
        return opened
    # Upright already, and in the upper bits.
    decode = lambda: _stretched(deep.numpy() >> (16 - bits), bits)  # noqa: E731
    size = (deep.width, deep.height)
    return opened._replace(size=size, bits=16, decode=decode, orientation=1)


def _open_heic(data: bytes) -> Opened:
    try:
        import pillow_heif
    except ImportError as error:
        raise BadImageError(
            f"HEIC files need pillow-heif ({error}); run: pip install pillow-heif"
        ) from error
    file = pillow_heif.open_heif(
        io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False, reload_size=True
    )
    if len(file) > 1:
        raise BadImageError(
            f"{len(file)} pictures in one file, and networks take one; save each as its own file"
        )
    bits = file.info["bit_depth"]
    if file.premultiplied_alpha:
        raise BadImageError("its colours are multiplied by alpha; save it as PNG")

    def decode() -> np.ndarray:
        values = np.asarray(file)
        return values if bits == 8 else _stretched(values, bits)

    bands = (1 if file.mode.startswith("L") else 3) + file.has_alpha
    return Opened(
        file.size, bands, 8 if bits == 8 else 16, decode, lambda: belongings.of_heic(file)
    )


def _of_pillow(image: Image.Image, read: Callable[[], belongings.Belongings]) -> Opened:
    # A palette of GIF may be one of greys, and is then loaded as such.
    is_grey = image.mode in ("1", "L", "LA")
    bands = (1 if is_grey else 3) + image.has_transparency_data
    orientation = belongings.orientation(image.info.get("exif"), image.info.get("xmp"))
    return Opened(image.size, bands, 8, lambda: _values(_loaded(image)), read, orientation)


def _loaded(image: Image.Image) -> Image.Image:
    image.load()
    return image


def _by_vips(loader: str, data: bytes) -> pyvips.Image:
    """An image that libvips decodes when its pixels are asked for, which is done once."""
    # Row by row: else libvips would hold the whole picture once more.
    return getattr(vips().Image, loader)(data, access="sequential", fail_on="error")


def _values(image: Image.Image) -> Shaped[np.ndarray, "height width bands"]:
    """The pixels of an image of Pillow's of any mode of 8 bits, with little memory beside them."""
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
    mode += "A" if image.has_transparency_data else ""
    made = np.empty((image.height, image.width, len(mode)), np.uint8)
    for top in range(0, image.height, _ROWS):
        strip = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
        made[top : top + _ROWS] = np.atleast_3d(np.asarray(strip.convert(mode)))
    return made


def _stretched(values: Shaped[np.ndarray, "*shape"], bits: int) -> Shaped[np.ndarray, "*shape"]:
    """Whole numbers of 9 to 16 bits to 16 bits, so that the largest becomes the largest."""
    top = 2**bits - 1
    table = (np.arange(2**bits, dtype=np.uint64) * 65535 + top // 2) // top
    return table.astype(np.uint16)[values]


def _refuse_frames(count: int) -> None:
    if count > 1:
        raise BadImageError(
            f"an animation of {count} frames, and networks take one; save one of them"
        )
