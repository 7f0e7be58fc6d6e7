"""Writing of picture files: whole or not at all, with all metadata that the format can hold."""

import fractions
import io
import struct
import zlib
from collections.abc import Mapping

import numpy as np
from etils import epath
from jaxtyping import Shaped
from PIL import Image

from sr3_jax.data import storage
from sr3_jax.data.image_files import containers, tiff
from sr3_jax.data.image_files import metadata as metadata_lib
from sr3_jax.data.image_files.picture import Metadata, Picture, Pixels
from sr3_jax.data.image_files.vips import vips

Quality = int | str  # 1 to 100, or "lossless"

# By suffix of a name; others get .png appended.
_KINDS = dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), "jpeg")
_KINDS |= {".png": "png", ".webp": "webp", ".tif": "tiff", ".tiff": "tiff", ".avif": "avif"}
_KINDS |= {".bmp": "bmp"}
_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif", "avif": ".avif"}
FORMATS = (*_SUFFIXES, "same")  # "same": that of the name

_KEEPS_EVERY_PIXEL = ("png", "tiff", "bmp", "webp")  # WebP if it is asked to
_KEEPS_ALPHA = ("png", "tiff", "webp", "avif")
_KEEPS_16_BITS = ("png", "tiff")
_KEEPS_GREY = ("png", "tiff", "bmp", "jpeg")
_MAX_SIDE = {"jpeg": 65500, "webp": 16383, "avif": 65536}

# Metadata that each format can hold, beside the colour profile and PNG's own texts.
_HOLDS = {
    "png": {"EXIF", "density", "XMP", "comments"},
    "jpeg": {"EXIF", "density", "XMP", "IPTC", "comments"},
    "webp": {"EXIF", "XMP"},
    "avif": {"EXIF", "XMP"},
    "tiff": {"EXIF", "density", "XMP", "IPTC", "georeference"},
    "bmp": {"density"},
}

_DEFAULT_QUALITY = {"jpeg": 95, "webp": 95, "avif": 90}

# On 6000x4000 8-bit pixels of photographs, 1 takes 2.3 s and gives 41.4 MB, 4 takes 3.8 s and gives
# 37.6 MB, 6 takes 6.6 s and gives 37.1 MB (measured with one of two cores of a virtual machine).
_PNG_LEVEL = 4


def output_path(path: epath.Path, format: str | None = None) -> epath.Path:
    """Returns the path at which a picture is written.

    Suffixes are appended, so that `a.jpg` and `a.tif` in one folder do not become one file. A name
    that is then too long is shortened.

    Args:
      path: folder of the output and name of the input.
      format: one of `FORMATS`, whose suffix the path gets unless it has one. None is "same",
        which appends `.png` if files of that name cannot be written.
    """
    kind = _kind(path)
    if kind and format in (None, "same", kind):
        return path
    return path.with_name(storage.fitting_name(path.name, _SUFFIXES.get(format, ".png")))


def _kind(path: epath.Path) -> str | None:
    return _KINDS.get(path.suffix.lower())


def check_format(format: str | None, quality: Quality | None) -> None:
    """Raises ValueError if a format or a quality is unknown, or they do not go together."""
    if format is not None and format not in FORMATS:
        raise ValueError(f"format = {format!r}; give one of {', '.join(FORMATS)}")
    is_number = isinstance(quality, int) and not isinstance(quality, bool)
    if quality not in (None, "lossless") and not (is_number and 1 <= quality <= 100):
        raise ValueError(f"quality = {quality!r}; give a whole number from 1 to 100, or lossless")
    if format in _SUFFIXES:
        if quality == "lossless" and format not in _KEEPS_EVERY_PIXEL:
            raise ValueError(f"{format} cannot be lossless here; give png, tiff or webp")
        if is_number and format not in _DEFAULT_QUALITY:
            formats = ", ".join(_DEFAULT_QUALITY)
            raise ValueError(f"{format} keeps every pixel and has no quality; give {formats}")


def check_writable(
    picture: Picture,
    path: epath.Path,
    scale: int | float = 1,
    *,
    format: str | None = None,
    quality: Quality | None = None,
) -> None:
    """Raises ValueError if the format cannot hold the pixels or the colours of a picture.

    Args:
      picture: the picture, or the one that it is made from.
      path: see `output_path`.
      scale: ratio of the written width and height to those of `picture`.
      format: see `output_path`.
      quality: see `write_picture`.
    """
    check_format(format, quality)
    path = output_path(path, format)
    kind = _kind(path)
    height, width = (round(scale * size) for size in picture.pixels.shape[:2])
    profile = picture.icc_profile
    for refused, what in (
        (picture.pixels.dtype != np.uint8 and kind not in _KEEPS_16_BITS, "16 bits a channel"),
        (picture.alpha is not None and kind not in _KEEPS_ALPHA, "transparency"),
        (profile and kind == "bmp", "a colour profile"),
        (profile and picture.is_grey and kind not in _KEEPS_GREY, "a colour profile of grey"),
        (max(height, width) > _MAX_SIDE.get(kind, 2**31 - 1), f"{width}x{height} pixels"),
        (quality == "lossless" and kind not in _KEEPS_EVERY_PIXEL, "every pixel (lossless)"),
    ):
        if refused:
            raise ValueError(
                f"{path}: {kind.upper()} cannot hold {what}; write PNG (format png, or a name that "
                "ends in .png)"
            )
    if profile and profile[16:20] != (b"GRAY" if picture.is_grey else b"RGB "):
        raise ValueError(
            f"{path}: icc_profile is for {profile[16:20]} and does not fit the pixels; remove it"
        )


def not_kept(picture: Picture, path: epath.Path, format: str | None = None) -> tuple[str, ...]:
    """Returns what a written picture loses of its input, in plain words such as "its EXIF".

    That is `picture.notes`, and the metadata that the format cannot hold.
    """
    kind = _kind(output_path(path, format))
    metadata = picture.metadata
    lost = []
    for name, parts in (
        ("EXIF", [picture.exif]),
        ("density", [metadata.density]),
        ("XMP", [metadata.xmp]),
        ("IPTC", [metadata.iptc]),
        ("comments", metadata.comments),
        ("georeference", metadata.geo),
    ):
        is_held = name in _HOLDS[kind] and (kind != "jpeg" or all(map(_fits_jpeg, parts)))
        if name == "density" and "EXIF" in _HOLDS[kind]:
            is_held |= metadata_lib.exif_density(picture.exif) == metadata.density
        if any(parts) and not is_held:
            lost.append(f"its {name}")
    if kind != "png":
        texts = filter(None, map(containers.png_keyword, metadata.png_chunks))
        if named := ", ".join(map(repr, texts)):
            lost.append(f"PNG's texts {named}")
        if {chunk for chunk, _ in metadata.png_chunks} & {b"gAMA", b"cHRM", b"cICP"}:
            lost.append("PNG's description of its colours")
    return (*picture.notes, *lost)


def write_picture(
    picture: Picture,
    path: epath.Path,
    *,
    format: str | None = None,
    quality: Quality | None = None,
) -> epath.Path:
    """Writes a picture, whole or not at all, and returns its path.

    Args:
      picture: pixels and metadata; see `not_kept`.
      path: see `output_path`.
      format: one of `FORMATS`; None is "same".
      quality: 1 to 100 for JPEG, WebP and AVIF, or "lossless" for WebP; other formats keep every
        pixel. None: 95, for AVIF 90, and lossless WebP if the picture is lossless.

    Raises:
      ValueError: see `check_writable`; or a grey picture has colours.
      OSError: writing failed.
    """
    check_writable(picture, path, format=format, quality=quality)
    path = output_path(path, format)
    kind = _kind(path)
    if quality is None:
        is_lossless = picture.is_lossless and kind == "webp"
        quality = "lossless" if is_lossless else _DEFAULT_QUALITY.get(kind)
    storage.write_whole(path, _encode(picture, kind, quality))
    return path


def write_image(image: Pixels, path: epath.Path, *, comment: str = "") -> epath.Path:
    """Writes an RGB image as `write_picture` does, with a comment that PNG alone keeps."""
    chunks = (containers.png_text(containers.COMMENT, comment),) if comment else ()
    return write_picture(Picture(image, metadata=Metadata(png_chunks=chunks)), path)


def encode_image(image: Pixels) -> bytes:
    """Encodes an RGB image of 8 or 16 bits as a PNG file."""
    return _encode(Picture(image), "png", None)


def _encode(picture: Picture, kind: str, quality: Quality | None) -> bytes:
    values, metadata = _values(picture), picture.metadata
    parts = {"icc_profile": picture.icc_profile, "exif": picture.exif, "xmp": metadata.xmp}
    parts = {name: part for name, part in parts.items() if part}
    if kind == "png":
        return containers.with_png_chunks(_png_pixels(values, picture.is_grey), _chunks(picture))
    if kind == "tiff":
        return tiff.encode(values, picture.exif, _tags(picture))
    if kind == "jpeg":
        for name in [name for name in ("exif", "xmp") if not _fits_jpeg(parts.get(name))]:
            del parts[name]
        return containers.with_jpeg_segments(
            _by_pillow(values, "JPEG", {"quality": quality, "subsampling": 0} | parts),
            metadata.density,
            metadata.iptc if _fits_jpeg(metadata.iptc) else None,
            filter(_fits_jpeg, metadata.comments),
        )
    if kind == "webp":
        if quality == "lossless":  # `exact` keeps hidden colours, too
            return _by_pillow(values, "WEBP", {"lossless": True, "exact": True} | parts)
        return _by_pillow(values, "WEBP", {"quality": quality} | parts)
    if kind == "avif":
        return _by_pillow(values, "AVIF", {"quality": quality, "subsampling": "4:4:4"} | parts)
    density = metadata.density
    per_metre = density.per_metre() if density and density.unit else (0, 0)
    dpi = tuple(number / containers.BMP_INCHES for number in per_metre)
    return _by_pillow(values, "BMP", {"dpi": dpi})


def _values(picture: Picture) -> Shaped[np.ndarray, "height width *channels"]:
    """Returns the pixels of a file: grey or RGB, then alpha; one channel has no axis."""
    pixels = picture.pixels
    if picture.is_grey:
        if (pixels[..., :1] != pixels[..., 1:]).any():
            raise ValueError("is_grey is True, but channels differ; set it False or average them")
        pixels = pixels[..., 0]
    return pixels if picture.alpha is None else np.dstack([pixels, picture.alpha])


def _png_pixels(values: Shaped[np.ndarray, "height width *channels"], is_grey: bool) -> bytes:
    if values.dtype == np.uint8:
        return _by_pillow(values, "PNG", {"compress_level": _PNG_LEVEL})
    # libvips, since Pillow has no RGB of 16 bits.
    image = vips().Image.new_from_array(values, interpretation="grey16" if is_grey else "rgb16")
    # The one filter takes 60% of the time of all, for files 3% larger.
    data = image.pngsave_buffer(compression=_PNG_LEVEL, filter="up", bitdepth=16, keep="none")
    return containers.png_of_pixels(data)  # else it would state a density


def _chunks(picture: Picture) -> list[containers.PngChunk]:
    """Returns the metadata of a picture as chunks of PNG."""
    metadata = picture.metadata
    chunks = []
    if picture.icc_profile:
        chunks.append((b"iCCP", b"ICC\0\0" + zlib.compress(picture.icc_profile)))
    if metadata.density:
        x, y = metadata.density.per_metre()
        chunks.append((b"pHYs", struct.pack(">IIB", x, y, bool(metadata.density.unit))))
    if picture.exif:
        chunks.append((b"eXIf", picture.exif.removeprefix(tiff.EXIF_PREFIX)))
    if metadata.xmp:
        chunks.append((b"iTXt", containers.PNG_XMP.encode() + bytes(5) + metadata.xmp))
    chunks += [
        containers.png_text(containers.COMMENT, c.decode("latin-1")) for c in metadata.comments
    ]
    # A file may have a profile or say that it is sRGB, not both.
    chunks += [c for c in metadata.png_chunks if c[0] != b"sRGB" or not picture.icc_profile]
    return chunks


def _tags(picture: Picture) -> list[tiff.Value]:
    """Returns the metadata of a picture but EXIF as tags of TIFF."""
    metadata, density = picture.metadata, picture.metadata.density
    blocks = {tiff.ICC_PROFILE: picture.icc_profile, tiff.XMP: metadata.xmp}
    blocks[tiff.IPTC] = metadata.iptc
    tags = [*metadata.geo, *(tiff.Value(tag, "u", block) for tag, block in blocks.items() if block)]
    if density:
        for tag, number in zip((tiff.X_RESOLUTION, tiff.Y_RESOLUTION), density[:2], strict=True):
            fraction = fractions.Fraction(number).limit_denominator(10000)
            tags.append(tiff.Value(tag, "II", fraction.as_integer_ratio()))
        unit = {"": 1, "inch": 2, "cm": 3}[density.unit]
        tags.append(tiff.Value(tiff.RESOLUTION_UNIT, "H", (unit,)))
    return tags


def _fits_jpeg(part: object) -> bool:
    """Returns whether a part is short enough for a segment of JPEG."""
    return not isinstance(part, bytes) or len(part) <= containers.MOST_OF_SEGMENT


def _by_pillow(
    values: Shaped[np.ndarray, "height width *bands"], kind: str, options: Mapping[str, object]
) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values)).save(file, kind, **options)
    return file.getvalue()
