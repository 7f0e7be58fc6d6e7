"""Metadata of each file format: colour profile, EXIF, XMP, IPTC, density and more."""

from __future__ import annotations

import dataclasses
import re
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sr3_jax.data.image_files import containers, pillow, tiff, tiff_reading
from sr3_jax.data.image_files.picture import GEO_TAGS, Density, Metadata

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


@dataclasses.dataclass
class FileMetadata:
    """The metadata of a file, with the attributes of `Picture`.

    Unlike the picture's, `icc_profile` may be a profile of other pixels.
    """

    icc_profile: bytes | None = None
    exif: bytes | None = None
    metadata: Metadata = Metadata()  # noqa: RUF009  (frozen)
    is_lossless: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)

    def read_exif(self, data: bytes | None, keep: frozenset[int] | None = None) -> None:
        """Keeps what `tiff.clean_exif` leaves of EXIF."""
        try:
            self.exif = tiff.clean_exif(data, keep) if data else None
        except ValueError:
            self.notes.append("its EXIF, which is damaged")

    def convert_cmyk(self) -> None:
        """Drops the profile of CMYK, and notes how the colours were converted."""
        by = "its profile" if pillow.cmyk_transform(self.icc_profile) else "a plain formula"
        self.notes.append(f"its CMYK colours, which became 8-bit sRGB by {by}")
        self.icc_profile = None


def orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """Returns how a picture is stored, 1 to 8 as in EXIF.

    EXIF decides, or XMP where it says nothing, or else it is 1.
    """
    file, tags = _exif_tags(exif)
    try:
        found = file.numbers(tags[tiff.ORIENTATION])[0] if tags else 0
    except (struct.error, LookupError, ValueError):
        found = 0
    if not found and xmp and (match := _XMP_ORIENTATION.search(xmp)):
        found = int(match[2])
    return int(found) if found in range(1, 9) else 1


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
    kept.metadata = dataclasses.replace(
        kept.metadata,
        density=_jfif_density(info) or kept.metadata.density,
        iptc=resources.get(containers.IPTC),
        comments=tuple(comments),
    )
    if image.mode == "CMYK":
        kept.convert_cmyk()
    return kept


def of_png(data: bytes) -> FileMetadata:
    """Reads the metadata of a PNG file."""
    kept = FileMetadata(is_lossless=True)
    exif, xmp = containers.png_exif_and_xmp(data)
    kept.read_exif(exif)
    density, iptc, chunks, others, damaged = None, None, [], set(), set()
    for kind, begin, end in containers.png_chunks(data):
        if kind[:1].isupper() or kind in (b"tRNS", b"eXIf"):
            continue
        content = data[begin:end]
        chunk = (kind, content)
        name = containers.png_keyword(chunk) or kind.decode("latin-1")
        try:
            raw = containers.png_raw_profile(chunk)
            if kind == b"iCCP":
                kept.icc_profile = containers.unpacked(content.partition(b"\0")[2][1:])
            elif kind == b"pHYs":
                x, y, is_metre = struct.unpack(">IIB", content)
                density = Density(x / 100, y / 100, "cm") if is_metre else Density(x, y, "")
            elif raw and raw[0] == "iptc":
                iptc = containers.iptc_of_photoshop(raw[1])
            elif raw and raw[0] not in containers.RAW_EXIF or kind not in _PNG_KEPT:
                others.add(name)
            elif raw is None and containers.png_xmp(chunk) is None:
                chunks.append(chunk)
        except (ValueError, LookupError, struct.error):
            damaged.add(name)
    if others:
        kept.notes.append(f"PNG chunks {', '.join(sorted(others))}")
    if damaged:
        kept.notes.append(f"damaged PNG chunks {', '.join(sorted(damaged))}")
    kept.metadata = Metadata(density, _upright_xmp(xmp), iptc, png_chunks=tuple(chunks))
    return kept


def of_webp(chunks: Mapping[bytes, bytes]) -> FileMetadata:
    """Reads the metadata of a WebP file, from the content of its chunks by type."""
    names = {"icc_profile": b"ICCP", "exif": b"EXIF", "xmp": b"XMP "}
    kept = _of_info({name: chunks.get(kind) for name, kind in names.items()})
    kept.is_lossless = b"VP8L" in chunks
    if others := sorted(kind.decode("latin-1") for kind in chunks if kind not in _WEBP_READ):
        kept.notes.append(f"WebP chunks {', '.join(others)}")
    return kept


def of_tiff(data: bytes, found: tiff_reading.Inspected) -> FileMetadata:
    """Reads the metadata of an inspected TIFF file."""
    file, tags = found.file, found.tags
    kept = FileMetadata(tiff_reading.profile(found), is_lossless=found.is_lossless)
    kept.read_exif(data, tiff.DESCRIPTIVE)
    xmp, iptc, resources = (
        file.content(tags[tag]) if tag in tags else None
        for tag in (tiff.XMP, tiff.IPTC, _PHOTOSHOP)
    )
    if iptc is None and resources:
        iptc = containers.iptc_of_photoshop(resources)
    geo = tuple(file.value(tags[tag]) for tag in GEO_TAGS if tag in tags)
    if geo and found.orientation != 1:
        kept.notes.append("its georeference, which is of the picture before it was turned")
        geo = ()
    if found.num_others:
        kept.notes.append("smaller versions or masks in the file")
    if others := sorted(tags.keys() - _TIFF_READ):
        kept.notes.append(f"TIFF tags {', '.join(map(str, others))}")
    kept.metadata = Metadata(_tiff_density(file, tags), _upright_xmp(xmp), iptc, geo=geo)
    if found.is_cmyk:
        kept.convert_cmyk()
    return kept


def of_bmp(image: Image.Image) -> FileMetadata:
    """Reads the metadata of an opened BMP file."""
    x, y = (round(dpi * containers.BMP_INCHES) for dpi in image.info.get("dpi", (0, 0)))
    density = Density(x / 100, y / 100, "cm") if x and y else None
    return FileMetadata(is_lossless=True, metadata=Metadata(density))


def of_gif(image: GifImagePlugin.GifImageFile) -> FileMetadata:
    """Reads the metadata of an opened GIF file."""
    comment = image.info.get("comment")
    return FileMetadata(is_lossless=True, metadata=Metadata(comments=(comment,) if comment else ()))


def of_avif(image: Image.Image, by_vips: pyvips.Image) -> FileMetadata:
    """Reads the metadata of an AVIF file that Pillow and libvips have opened."""
    # Pillow writes EXIF anew with the orientation of the file, and loses letters in it.
    has_exif = by_vips.get_typeof("exif-data")
    return _of_info(image.info | {"exif": by_vips.get("exif-data") if has_exif else None})


def of_heic(file: Any) -> FileMetadata:
    """Reads the metadata of a HEIC file: a `pillow_heif.HeifFile`."""
    info = file.info
    kept = _of_info(info)
    if info.get("depth_images") or info.get("aux"):
        kept.notes.append("the other pictures in the file, such as a depth or gain map")
    colours = info.get("nclx_profile") or {}
    codes = {colours.get("color_primaries", 2), colours.get("transfer_characteristics", 2)}
    if kept.icc_profile is None and not codes <= _SRGB_LIKE:
        kept.notes.append("its colour space, which is none of a profile and is taken as sRGB")
    return kept


def exif_density(exif: bytes | None) -> Density | None:
    """Returns the density that EXIF states; None if it states none, or is damaged."""
    try:
        return _tiff_density(*_exif_tags(exif))
    except (struct.error, LookupError, ValueError):
        return None


def _of_info(info: Mapping[str, Any]) -> FileMetadata:
    """Reads what has a name of Pillow's."""
    exif = info.get("exif")
    kept = FileMetadata(info.get("icc_profile"))
    kept.read_exif(exif)
    kept.metadata = Metadata(exif_density(exif), _upright_xmp(info.get("xmp")))
    return kept


def _upright_xmp(packet: bytes | None) -> bytes | None:
    return _XMP_ORIENTATION.sub(rb"\g<1>1", packet) if packet else None


def _exif_tags(exif: bytes | None) -> tuple[tiff.Tiff | None, dict[int, tiff.Entry]]:
    """Returns the first directory of EXIF; empty if there is none, or it is damaged."""
    try:
        file = tiff.Tiff((exif or b"").removeprefix(tiff.EXIF_PREFIX))
        return file, file.directory(file.first)[0]
    except (struct.error, LookupError, ValueError):
        return None, {}


def _jfif_density(info: Mapping[str, Any]) -> Density | None:
    unit, numbers = info.get("jfif_unit", 0), info.get("jfif_density", (1, 1))
    if 0 in numbers or unit not in (1, 2):  # 1:1 without a unit says nothing
        return None
    return Density(*map(float, numbers), ("inch", "cm")[unit - 1])


def _tiff_density(file: tiff.Tiff | None, tags: Mapping[int, tiff.Entry]) -> Density | None:
    if not {tiff.X_RESOLUTION, tiff.Y_RESOLUTION} <= tags.keys():
        return None
    fractions = [file.numbers(tags[tag]) for tag in (tiff.X_RESOLUTION, tiff.Y_RESOLUTION)]
    if not all(len(fraction) == 2 and all(fraction) for fraction in fractions):
        return None
    x, y = (above / below for above, below in fractions)
    unit = {1: "", 3: "cm"}.get(file.numbers(tags.get(tiff.RESOLUTION_UNIT), 2)[0], "inch")
    return None if unit == "" and x == y else Density(x, y, unit)
