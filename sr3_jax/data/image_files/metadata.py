"""Metadata of each file format: colour profile, EXIF, XMP, IPTC, density and more."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sr3_jax.data.image_files import containers, pillow, tiff
from sr3_jax.data.image_files.picture import GEO_TAGS, Density, FileMetadata, Metadata

if TYPE_CHECKING:
    import pyvips
    from PIL import GifImagePlugin, Image, JpegImagePlugin

# In XMP, either as an attribute or as an element.
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|>)\s*)([1-8])")

# Chunks of PNG that hold for a larger picture as well: its texts, its time and its colours.
_PNG_KEPT = (*containers.PNG_TEXTS, b"tIME", b"gAMA", b"cHRM", b"sRGB", b"cICP")
_WEBP_READ = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ICCP", b"EXIF", b"XMP ")

_PHOTOSHOP = 34377  # a tag of TIFF, as are the following
_TIFF_READ = frozenset(
    # How the pixels are stored, and what other functions read.
    [254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 280, 281, 282, 283, 284]
    + [292, 293, 296, 297, 317, 320, 322, 323, 324, 325, 332, 338, 339, 340, 341, 347, 512, 513]
    + [514, 515, 519, 520, 521, 529, 530, 531, 532, tiff.XMP, tiff.IPTC, tiff.ICC_PROFILE]
    + [_PHOTOSHOP, *GEO_TAGS, *tiff.DESCRIPTIVE]
)
_SRGB_LIKE = {1, 2, 6, 13}  # primaries and transfer functions of video that are sRGB's, or unknown


def of_jpeg(image: JpegImagePlugin.JpegImageFile) -> FileMetadata:
    """Reads the metadata of an opened JPEG file."""
    info = image.info
    kept = _of_info(info)
    resources = info.get("photoshop", {})
    comments = []
    segments = set()
    for name, content in image.applist:
        if name == "COM":
            comments.append(content)
        elif content.startswith(b"MPF\0"):
            kept.notes.append("the other pictures in the file, such as a preview or a depth map")
        elif not content.startswith(
            (b"JFIF\0", b"Exif\0", containers.JPEG_XMP, b"ICC_PROFILE\0", b"Adobe", b"Photoshop ")
        ):
            segments.add(name)
    if resources.keys() - {containers.IPTC}:
        kept.notes.append("Photoshop's resources other than IPTC")
    if segments:
        kept.notes.append(f"JPEG segments {', '.join(sorted(segments))}")
    unit, numbers = info.get("jfif_unit", 0), info.get("jfif_density", (1, 1))
    if all(numbers) and unit in (1, 2):  # 1:1 without a unit says nothing
        kept.add(density=Density(*map(float, numbers), ("inch", "cm")[unit - 1]))
    kept.add(iptc=resources.get(containers.IPTC), comments=tuple(comments))
    if image.mode == "CMYK":
        convert_cmyk(kept)
    return kept


def of_png(data: bytes) -> FileMetadata:
    """Reads the metadata of a PNG file."""
    exif = raw_exif = xmp = profile = density = iptc = None
    chunks, others, damaged = [], set(), set()
    for kind, begin, end in containers.png_chunks(data):
        if kind[:1].isupper() or kind == b"tRNS":
            continue
        content = data[begin:end]
        chunk = (kind, content)
        name = containers.png_keyword(chunk) or kind.decode("latin-1")
        try:
            raw_kind, raw = containers.png_raw_profile(chunk)
            if kind == b"eXIf":
                exif = content
            elif kind == b"iCCP":
                profile = containers.unpacked(content.partition(b"\0")[2][1:])
            elif kind == b"pHYs":
                x, y, is_metre = struct.unpack(">IIB", content)
                density = Density(x / 100, y / 100, "cm") if is_metre else Density(x, y, "")
            elif raw_kind in containers.RAW_EXIF:
                raw_exif = raw_exif or raw
            elif raw_kind == "iptc":
                iptc = containers.iptc_of_photoshop(raw)
            elif raw_kind or kind not in _PNG_KEPT:
                others.add(name)
            elif kind == b"iTXt" and name == containers.PNG_XMP:
                xmp = containers.png_text_bytes(chunk) or xmp
            else:
                chunks.append(chunk)
        except (ValueError, LookupError, struct.error):
            damaged.add(name)
    kept = _of_info({"icc_profile": profile, "exif": exif or raw_exif, "xmp": xmp})
    kept.is_lossless = True
    kept.add(density=density, iptc=iptc, png_chunks=tuple(chunks))
    for what, names in (("PNG chunks", others), ("damaged PNG chunks", damaged)):
        if names:
            kept.notes.append(f"{what} {', '.join(sorted(names))}")
    return kept


def of_webp(data: bytes) -> FileMetadata:
    """Reads the metadata of a WebP file."""
    chunks, place = {}, 12
    while place + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, place)
        chunks[kind] = data[place + 8 : place + 8 + size]
        place += 8 + size + size % 2
    names = {"icc_profile": b"ICCP", "exif": b"EXIF", "xmp": b"XMP "}
    kept = _of_info({name: chunks.get(kind) for name, kind in names.items()})
    kept.is_lossless = b"VP8L" in chunks
    if others := sorted(kind.decode("latin-1") for kind in chunks if kind not in _WEBP_READ):
        kept.notes.append(f"WebP chunks {', '.join(others)}")
    return kept


def of_tiff(data: bytes, file: tiff.Tiff, tags: Mapping[int, tiff.Entry]) -> FileMetadata:
    """Reads the metadata of a TIFF file, whose own tags are EXIF's, from the tags of its image."""

    def block(tag: int) -> bytes | None:
        return file.content(tags[tag]) if tag in tags else None

    # Without XMP, which would decide on the orientation of a file that has no tag of it.
    kept = _of_info({"icc_profile": block(tiff.ICC_PROFILE), "exif": data}, tiff.DESCRIPTIVE)
    geo = tuple(file.value(tags[tag]) for tag in GEO_TAGS if tag in tags)
    if geo and kept.orientation != 1:
        kept.notes.append("its georeference, which is of the picture before it was turned")
        geo = ()
    if others := sorted(tags.keys() - _TIFF_READ):
        kept.notes.append(f"TIFF tags {', '.join(map(str, others))}")
    iptc = block(tiff.IPTC) or containers.iptc_of_photoshop(block(_PHOTOSHOP) or b"")
    kept.add(xmp=_upright_xmp(block(tiff.XMP)), iptc=iptc, geo=geo)
    return kept


def of_bmp(image: Image.Image) -> FileMetadata:
    """Reads the metadata of an opened BMP file."""
    x, y = (round(dpi * containers.BMP_INCHES) for dpi in image.info.get("dpi", (0, 0)))
    density = Density(x / 100, y / 100, "cm") if x and y else None
    return FileMetadata(is_lossless=True, metadata=Metadata(density))


def of_gif(image: GifImagePlugin.GifImageFile) -> FileMetadata:
    """Reads the metadata of an opened GIF file."""
    kept = _of_info(image.info)
    kept.is_lossless = True
    if comment := image.info.get("comment"):
        kept.add(comments=(comment,))
    return kept


def of_avif(image: Image.Image, by_vips: pyvips.Image) -> FileMetadata:
    """Reads the metadata of an AVIF file that Pillow and libvips have opened."""
    # Pillow writes EXIF anew with the orientation of the file, and loses letters in it.
    exif = by_vips.get("exif-data") if by_vips.get_typeof("exif-data") else None
    kept = _of_info(image.info | {"exif": exif})
    kept.orientation = _orientation(image.info.get("exif"), image.info.get("xmp"))
    return kept


def of_heic(file: Any) -> FileMetadata:
    """Reads the metadata of a HEIC file: a `pillow_heif.HeifFile`, whose pixels are upright."""
    info = file.info
    kept = _of_info(info)
    kept.orientation = 1
    if info.get("depth_images") or info.get("aux"):
        kept.notes.append("the other pictures in the file, such as a depth or gain map")
    colours = info.get("nclx_profile") or {}
    codes = {colours.get("color_primaries", 2), colours.get("transfer_characteristics", 2)}
    if kept.icc_profile is None and not codes <= _SRGB_LIKE:
        kept.notes.append("its colour space, which is none of a profile and is taken as sRGB")
    return kept


def convert_cmyk(kept: FileMetadata) -> None:
    """Drops the profile of CMYK, and notes how the colours were converted."""
    by = "its profile" if pillow.cmyk_transform(kept.icc_profile) else "a plain formula"
    kept.notes.append(f"its CMYK colours, which became 8-bit sRGB by {by}")
    kept.icc_profile = None


def exif_density(exif: bytes | None) -> Density | None:
    """Returns the density that EXIF states; None if it states none, or is damaged."""
    x, y, unit = _exif_numbers(exif, tiff.X_RESOLUTION, tiff.Y_RESOLUTION, tiff.RESOLUTION_UNIT)
    if not all(len(fraction) == 2 and all(fraction) for fraction in (x, y)):
        return None
    density = Density(x[0] / x[1], y[0] / y[1], {(1,): "", (3,): "cm"}.get(unit, "inch"))
    return None if density.unit == "" and density.x == density.y else density


def _of_info(info: Mapping[str, Any], keep: frozenset[int] | None = None) -> FileMetadata:
    """Reads profile, EXIF and XMP under Pillow's names; `keep` is that of `tiff.clean_exif`."""
    exif, xmp = info.get("exif"), info.get("xmp")
    kept = FileMetadata(info.get("icc_profile"), orientation=_orientation(exif, xmp))
    try:
        kept.exif = tiff.clean_exif(exif, keep) if exif else None
    except ValueError:
        kept.notes.append("its EXIF, which is damaged")
    kept.metadata = Metadata(exif_density(exif), _upright_xmp(xmp))
    return kept


def _orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """Returns the orientation in EXIF, or where it has none in XMP, or else 1."""
    (found,) = _exif_numbers(exif, tiff.ORIENTATION)
    if not any(found) and xmp and (match := _XMP_ORIENTATION.search(xmp)):
        found = (int(match[2]),)
    return int(found[0]) if found and found[0] in range(1, 9) else 1


def _upright_xmp(packet: bytes | None) -> bytes | None:
    return _XMP_ORIENTATION.sub(rb"\g<1>1", packet) if packet else None


def _exif_numbers(exif: bytes | None, *numbers: int) -> list[tuple[int | float, ...]]:
    """Returns the values of tags of EXIF; none for tags that are missing or damaged."""
    try:
        file = tiff.Tiff((exif or b"").removeprefix(tiff.EXIF_PREFIX))
        tags, _ = file.directory(file.first)
        return [file.numbers(tags.get(number)) for number in numbers]
    except (struct.error, LookupError, ValueError):
        return [()] * len(numbers)
