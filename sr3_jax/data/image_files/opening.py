"""Opening of a picture file of any format: reads its header, and refuses unusable files.

Pillow decodes what it reads at full depth (JPEG, BMP, GIF, PNG and AVIF of 8 bits), pillow-heif
HEIC, and libvips (pyvips) everything else. The last two are imported when such a file comes.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped
from PIL import AvifImagePlugin, BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin

from sr3_jax.data.image_files import containers, metadata, pillow, tiff, tiff_reading
from sr3_jax.data.image_files.errors import BadImageError, check_pixels, decoder_errors, max_pixels
from sr3_jax.data.image_files.picture import FileMetadata, Opened
from sr3_jax.data.image_files.vips import open_buffer

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

# The major and the compatible brands of files in the container of HEIF.
_AVIF_BRANDS = {b"avif", b"avis"}
_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}


def open_file(data: bytes) -> Opened:
    """Reads header and metadata of a picture file and decodes no pixels.

    Raises:
      BadImageError, ValueError: see `reading.decode_picture`. Broken pixels are not noticed.
    """
    max_pixels()  # a wrong limit in the environment is no fault of the picture
    if not data:
        raise BadImageError("empty file (0 bytes)")
    with decoder_errors():
        opened = _opener(data)(data)
        check_pixels(*opened.size)
    return opened


def _by_pillow(
    plugin: type[ImageFile], read: Callable[[ImageFile], FileMetadata], data: bytes
) -> Opened:
    # By the plugins, since Image.open has a limit of its own on pixels.
    image = plugin(io.BytesIO(data))
    check_pixels(*image.size)  # since counting frames of GIF decodes them
    _refuse_frames(getattr(image, "n_frames", 1))
    # By the mode before loading: a palette of GIF may be one of greys, and is then loaded as such.
    bands = (1 if image.mode in ("1", "L", "LA") else 3) + image.has_transparency_data
    return Opened(image.size, bands, 8, lambda: pillow.pixels(image), read(image))


def _open_png(data: bytes) -> Opened:
    for kind, begin, end in containers.png_chunks(data):
        if kind == b"acTL":
            _refuse_frames(int.from_bytes(data[begin : min(begin + 4, end)], "big"))
    without_metadata = containers.png_of_pixels(data)
    image = PngImagePlugin.PngImageFile(io.BytesIO(without_metadata))
    stored_bits, colour_type = data[24], data[25]
    has_alpha = image.has_transparency_data
    if stored_bits < 8 and image.mode == "L":
        # Pillow stretches the levels to 8 bits, but not the one that is transparent.
        if isinstance(level := image.info.get("transparency"), int):
            image.info["transparency"] = level * 255 // (2**stored_bits - 1)

    def decode() -> np.ndarray:
        if stored_bits == 16:
            return open_buffer("pngload_buffer", without_metadata).numpy()
        return pillow.pixels(image)

    bands = (1 if colour_type in (0, 4) else 3) + has_alpha
    bits = 16 if stored_bits == 16 else 8
    return Opened(image.size, bands, bits, decode, metadata.of_png(data))


def _open_webp(data: bytes) -> Opened:
    image = open_buffer("webpload_buffer", data)
    if image.get_typeof("n-pages"):
        _refuse_frames(image.get("n-pages"))
    kept = metadata.of_webp(data)
    return Opened((image.width, image.height), image.bands, 8, image.numpy, kept)


def _open_avif(data: bytes) -> Opened:
    # Pillow reduces 10 and 12 bits to 8.
    deep = open_buffer("heifload_buffer", data)
    read = functools.partial(metadata.of_avif, by_vips=deep)
    opened = _by_pillow(AvifImagePlugin.AvifImageFile, read, data)
    bits = deep.get("bits-per-sample")
    if bits == 8:
        return opened
    # libvips gives upright pixels, in the upper bits.
    opened.kept.orientation = 1
    return opened._replace(
        size=(deep.width, deep.height),
        bits=16,
        decode=lambda: _stretched(deep.numpy() >> (16 - bits), bits),
    )


def _open_heic(data: bytes) -> Opened:
    import pillow_heif

    file = pillow_heif.open_heif(
        io.BytesIO(data), convert_hdr_to_8bit=False, hdr_to_16bit=False, reload_size=True
    )
    if len(file) > 1:
        raise BadImageError(
            f"{len(file)} pictures in one file, and networks take one; save each as its own file"
        )
    if file.premultiplied_alpha:
        raise BadImageError("its colours are multiplied by alpha; save it as PNG")
    bits = file.info["bit_depth"]
    return Opened(
        file.size,
        (1 if file.mode.startswith("L") else 3) + file.has_alpha,
        8 if bits == 8 else 16,
        lambda: np.asarray(file) if bits == 8 else _stretched(np.asarray(file), bits),
        metadata.of_heic(file),
    )


# By the first bytes of a file, whatever its name.
_open_gif = functools.partial(_by_pillow, GifImagePlugin.GifImageFile, metadata.of_gif)
_OPENERS = {
    b"\xff\xd8\xff": functools.partial(_by_pillow, JpegImagePlugin.JpegImageFile, metadata.of_jpeg),
    containers.PNG_SIGNATURE: _open_png,
    b"BM": functools.partial(_by_pillow, BmpImagePlugin.BmpImageFile, metadata.of_bmp),
    b"GIF87a": _open_gif,
    b"GIF89a": _open_gif,
    **dict.fromkeys(tiff.HEADS, tiff_reading.open_tiff),
}


def _opener(data: bytes) -> Callable[[bytes], Opened]:
    for start, opener in _OPENERS.items():
        if data.startswith(start):
            return opener
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _open_webp
    if data[4:8] == b"ftyp":
        end = int.from_bytes(data[:4], "big")
        brands = {data[8:12], *(data[i : i + 4] for i in range(16, min(end, 256), 4))}
        if brands & _AVIF_BRANDS:
            return _open_avif
        if brands & _HEIC_BRANDS:
            return _open_heic
    raise BadImageError("not a JPEG, PNG, WebP, TIFF, BMP, GIF, HEIC or AVIF file")


def _stretched(values: Shaped[np.ndarray, "*shape"], bits: int) -> Shaped[np.ndarray, "*shape"]:
    """Scales integers of 9 to 16 bits to 16 bits, so that the largest becomes the largest."""
    top = 2**bits - 1
    table = (np.arange(2**bits, dtype=np.uint64) * 65535 + top // 2) // top
    return table.astype(np.uint16)[values]


def _refuse_frames(count: int) -> None:
    if count > 1:
        raise BadImageError(
            f"an animation of {count} frames, and networks take one; save one of them"
        )
