"""Pictures to files: whole or not at all, with everything that the format can hold."""

import fractions
import io
import types
from collections.abc import Mapping

import numpy as np
from etils import epath
from jaxtyping import Shaped
from PIL import Image

from sr3_jax.data import storage
from sr3_jax.data.picture import belongings, containers, tiff
from sr3_jax.data.picture.content import Density, Picture, Pixels
from sr3_jax.data.picture.vips import vips

Quality = int | str  # 1 to 100, or "lossless"

# By suffix of a name; others get .png appended.
_KINDS = {
    ".jpg": "jpeg",
    ".jpeg": "jpeg",
    ".jpe": "jpeg",
    ".jfif": "jpeg",
    ".png": "png",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".avif": "avif",
    ".bmp": "bmp",
}
_SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tif", "avif": ".avif"}
FORMATS = (*_SUFFIXES, "same")  # "same" is that of the name

_LOSSY = ("jpeg", "webp", "avif")
_KEEPS_EVERY_PIXEL = ("png", "tiff", "bmp", "webp")  # WebP where it is asked to
_KEEPS_ALPHA = ("png", "tiff", "webp", "avif")
_KEEPS_16_BITS = ("png", "tiff")
_KEEPS_GREY = ("png", "tiff", "bmp", "jpeg")
_MAX_SIDE = {"jpeg": 65500, "webp": 16383, "avif": 65536}

# What each format has a place for beside pixels and profile.
_HOLDS = {
    "png": {"EXIF", "density", "XMP", "comments"},  # and its own texts
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
    """Where a picture is written.

    Args:
        path: of the name of its input.
        format: one of `FORMATS`; None is "same".

    Returns:
        The path, with the suffix of the format appended unless it has one; "same" appends `.png`
        where files of that name cannot be written. Appended, so that `a.jpg` and `a.tif` in one
        folder do not become one file. A name that is then too long is shortened.
    """
    kind = _KINDS.get(path.suffix.lower())
    if format in (None, "same"):
        return path if kind else path.with_name(storage.fitting_name(path.name, ".png"))
    if kind == format:
        return path
    return path.with_name(storage.fitting_name(path.name, _SUFFIXES[format]))


def check_format(format: str | None, quality: Quality | None) -> None:
    """Raises ValueError where a format and a quality do not go together, whatever the picture."""
    if format is not None and format not in FORMATS:
        raise ValueError(f"format = {format!r}; give one of {', '.join(FORMATS)}")
    is_number = isinstance(quality, int) and not isinstance(quality, bool)
    if quality not in (None, "lossless") and not (is_number and 1 <= quality <= 100):
        raise ValueError(f"quality = {quality!r}; give a whole number from 1 to 100, or lossless")
    if format in _SUFFIXES:
        if quality == "lossless" and format not in _KEEPS_EVERY_PIXEL:
            raise ValueError(f"{format} cannot be lossless here; give png, tiff or webp")
        if is_number and format not in _LOSSY:
            raise ValueError(f"{format} keeps every pixel and has no quality; give {_LOSSY}")


def check_writable(
    picture: Picture,
    path: epath.Path,
    scale: int | float = 1,
    *,
    format: str | None = None,
    quality: Quality | None = None,
) -> None:
    """Raises ValueError where the format cannot hold the pixels or the colours of a picture.

    Args:
        picture: or what it is made from.
        path: see `output_path`.
        scale: how many times wider and higher the picture is when it is written.
        format: see `output_path`.
        quality: see `write_picture`.
    """
    check_format(format, quality)
    path = output_path(path, format)
    kind = _KINDS[path.suffix.lower()]
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
    if profile and not _fits(profile, picture.is_grey):
        raise ValueError(
            f"{path}: icc_profile is for {profile[16:20]} and does not fit the pixels; remove it"
        )


def not_kept(picture: Picture, path: epath.Path, format: str | None = None) -> tuple[str, ...]:
    """What of a picture's input is lost in its output: `picture.notes`, and what has no place.

    Args:
        picture: to be written.
        path: see `output_path`.
        format: see `output_path`.

    Returns:
        Each in plain words, such as "its EXIF"; empty where all is kept.
    """
    kind = _KINDS[output_path(path, format).suffix.lower()]
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
            is_held |= belongings.exif_density(picture.exif) == metadata.density
        if any(parts) and not is_held:
            lost.append(f"its {name}")
    texts = [containers.png_keyword(chunk) for chunk in metadata.png_chunks]
    if any(texts) and kind != "png":
        lost.append(f"PNG's texts {', '.join(repr(text) for text in texts if text)}")
    colours = {chunk for chunk, _ in metadata.png_chunks} & {b"gAMA", b"cHRM", b"cICP"}
    if colours and kind != "png":
        lost.append("PNG's description of its colours")
    return (*picture.notes, *lost)


def write_picture(
    picture: Picture,
    path: epath.Path,
    *,
    format: str | None = None,
    quality: Quality | None = None,
) -> epath.Path:
    """Writes a picture, whole or not at all.

    Args:
        picture: with what belongs to it; see `not_kept`.
        path: see `output_path`.
        format: one of `FORMATS`; None is "same".
        quality: of JPEG, WebP and AVIF, 1 to 100, or "lossless" (WebP alone of these); other
            formats keep every pixel. None: 95, for AVIF 90, and lossless WebP of what came from a
            lossless file.

    Returns:
        The path written.

    Raises:
        ValueError: see `check_writable`; or a grey picture has colours.
        OSError: writing failed.
    """
    check_writable(picture, path, format=format, quality=quality)
    path = output_path(path, format)
    kind = _KINDS[path.suffix.lower()]
    if quality is None:
        is_lossless = picture.is_lossless and kind == "webp"
        quality = "lossless" if is_lossless else _DEFAULT_QUALITY.get(kind)
    storage.write_whole(path, _ENCODERS[kind](picture, quality))
    return path


def encode_image(image: Pixels, *, comment: str = "") -> bytes:
    """An RGB image of 8 or 16 bits as a PNG file, with a comment or without."""
    data = _png_pixels(Picture(image), level=6)
    return containers.with_png_chunks(
        data, [containers.png_text(containers.COMMENT, comment)] if comment else []
    )


def write_image(image: Pixels, path: epath.Path, *, comment: str = "") -> epath.Path:
    """Writes an RGB image in the format of its suffix, whole or not at all.

    Args:
        image: 8 bits; PNG and TIFF hold 16 as well.
        path: see `output_path`.
        comment: kept by PNG alone.

    Returns:
        The path written.
    """
    path = output_path(path)
    if _KINDS[path.suffix.lower()] != "png":
        return write_picture(Picture(image), path)
    storage.write_whole(path, encode_image(image, comment=comment))
    return path


def _encode_png(picture: Picture, quality: Quality | None) -> bytes:
    metadata = picture.metadata
    chunks = []
    if picture.icc_profile:
        chunks.append(containers.png_profile_chunk(picture.icc_profile))
    if metadata.density:
        chunks.append(containers.png_density_chunk(metadata.density))
    if picture.exif:
        chunks.append((b"eXIf", picture.exif.removeprefix(tiff.EXIF_PREFIX)))
    if metadata.xmp:
        chunks.append(containers.png_xmp_chunk(metadata.xmp))
    chunks += [
        containers.png_text(containers.COMMENT, c.decode("latin-1")) for c in metadata.comments
    ]
    # A file may have a profile or say that it is sRGB, not both.
    chunks += [c for c in metadata.png_chunks if c[0] != b"sRGB" or not picture.icc_profile]
    return containers.with_png_chunks(_png_pixels(picture, _PNG_LEVEL), chunks)


def _png_pixels(picture: Picture, level: int) -> bytes:
    values = _values(picture)
    if values.dtype == np.uint8:
        return _by_pillow(values, "PNG", {"compress_level": level})
    # libvips, since Pillow has no RGB of 16 bits.
    space = "grey16" if picture.is_grey else "rgb16"
    image = vips().Image.new_from_array(values, interpretation=space)
    # Of its filters the one that takes 60% of the time of all, for files 3% larger.
    data = image.pngsave_buffer(compression=level, filter="up", bitdepth=16, keep="none")
    return containers.png_of_pixels(data)  # else it would state a density


def _encode_jpeg(picture: Picture, quality: Quality | None) -> bytes:
    options = {"quality": quality, "subsampling": 0}
    if picture.icc_profile:
        options["icc_profile"] = picture.icc_profile
    if picture.exif and _fits_jpeg(picture.exif):
        options["exif"] = picture.exif
    metadata = picture.metadata
    return containers.with_jpeg_segments(
        _by_pillow(_values(picture), "JPEG", options),
        density=metadata.density,
        xmp=metadata.xmp if _fits_jpeg(metadata.xmp) else None,
        iptc=metadata.iptc if _fits_jpeg(metadata.iptc) else None,
        comments=filter(_fits_jpeg, metadata.comments),
    )


def _encode_webp(picture: Picture, quality: Quality | None) -> bytes:
    # `exact`: hidden colours stay, too.
    options = {"lossless": True, "exact": True} if quality == "lossless" else {"quality": quality}
    return _by_pillow(_values(picture), "WEBP", options | _pillow_options(picture))


def _encode_avif(picture: Picture, quality: Quality | None) -> bytes:
    options = {"quality": quality, "subsampling": "4:4:4"}
    return _by_pillow(_values(picture), "AVIF", options | _pillow_options(picture))


def _encode_bmp(picture: Picture, quality: Quality | None) -> bytes:
    density = picture.metadata.density
    per_metre = density.per_metre() if density and density.unit else (0, 0)
    dpi = tuple(number / containers.BMP_INCHES for number in per_metre)
    return _by_pillow(_values(picture), "BMP", {"dpi": dpi})


def _encode_tiff(picture: Picture, quality: Quality | None) -> bytes:
    metadata = picture.metadata
    tags = list(metadata.geo)
    for tag, kind, content in (
        (tiff.ICC_PROFILE, "u", picture.icc_profile),
        (tiff.XMP, "u", metadata.xmp),
        (tiff.IPTC, "u", metadata.iptc),
    ):
        if content:
            tags.append(tiff.Value(tag, kind, content))
    if metadata.density:
        tags += _tiff_density(metadata.density)
    return tiff.encode(
        _values(picture),
        is_grey=picture.is_grey,
        has_alpha=picture.alpha is not None,
        exif=picture.exif,
        tags=tags,
    )


_ENCODERS = types.MappingProxyType(
    {
        "png": _encode_png,
        "jpeg": _encode_jpeg,
        "webp": _encode_webp,
        "avif": _encode_avif,
        "tiff": _encode_tiff,
        "bmp": _encode_bmp,
    }
)


def _tiff_density(density: Density) -> list[tiff.Value]:
    numbers = [fractions.Fraction(x).limit_denominator(10000) for x in density[:2]]
    x, y = ((number.numerator, number.denominator) for number in numbers)
    return [
        tiff.Value(tiff.X_RESOLUTION, "II", x),
        tiff.Value(tiff.Y_RESOLUTION, "II", y),
        tiff.Value(tiff.RESOLUTION_UNIT, "H", ({"": 1, "inch": 2, "cm": 3}[density.unit],)),
    ]


def _pillow_options(picture: Picture) -> dict[str, bytes]:
    """What Pillow's writers of WebP and AVIF take beside pixels."""
    options = {
        "icc_profile": picture.icc_profile,
        "exif": picture.exif,
        "xmp": picture.metadata.xmp,
    }
    return {name: value for name, value in options.items() if value}


def _fits_jpeg(part: object) -> bool:
    """Whether it is short enough for a segment of JPEG."""
    return not isinstance(part, bytes) or len(part) <= containers.MOST_OF_SEGMENT


def _by_pillow(
    values: Shaped[np.ndarray, "height width *bands"], kind: str, options: Mapping[str, object]
) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(values)).save(file, kind, **options)
    return file.getvalue()


def _values(picture: Picture) -> Shaped[np.ndarray, "height width *channels"]:
    """What a file holds: grey or RGB, then alpha; one channel has no axis."""
    pixels = picture.pixels
    if picture.is_grey:
        if (pixels[..., :1] != pixels[..., 1:]).any():
            raise ValueError("is_grey is True, but channels differ; set it False or average them")
        pixels = pixels[..., 0]
    return pixels if picture.alpha is None else np.dstack([pixels, picture.alpha])


def _fits(profile: bytes, is_grey: bool) -> bool:
    return profile[16:20] == (b"GRAY" if is_grey else b"RGB ")
