"""What belongs to a picture beside its pixels, of each format of files."""

from __future__ import annotations

import dataclasses
import re
import struct
from typing import TYPE_CHECKING, Any

from sr3_jax.data.picture import cmyk, containers, tiff
from sr3_jax.data.picture.content import GEO_TAGS, Density, Metadata
from sr3_jax.data.picture.tiff_reading import Inspected, profile

if TYPE_CHECKING:
    import pyvips
    from PIL import GifImagePlugin, Image, JpegImagePlugin

_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:\s*=\s*[\"']|>)\s*([1-8])")

# Chunks of PNG that hold for a larger picture as well: its time, and its colours.
_PNG_KEPT = (b"tEXt", b"zTXt", b"iTXt", b"tIME", b"gAMA", b"cHRM", b"sRGB", b"cICP")
_WEBP_READ = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ICCP", b"EXIF", b"XMP ")

_PHOTOSHOP = 34377  # a tag of TIFF, as are the following
_TIFF_READ = frozenset(
    # How the pixels are stored, and what is read by other functions.
    [254, 255, 256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 280, 281, 282, 283, 284]
    + [292, 293, 296, 297, 317, 320, 322, 323, 324, 325, 332, 338, 339, 340, 341, 347, 512, 513]
    + [514, 515, 519, 520, 521, 529, 530, 531, 532, tiff.XMP, tiff.IPTC, tiff.ICC_PROFILE]
    + [_PHOTOSHOP, *GEO_TAGS, *tiff.DESCRIPTIVE]
)
_SRGB_LIKE = {1, 2, 6, 13}  # primaries and transfer functions of video that are sRGB's, or unknown


@dataclasses.dataclass
class Belongings:
    """See `content.Picture`; `icc_profile` may be of other pixels than the picture's."""

    icc_profile: bytes | None = None
    exif: bytes | None = None
    metadata: Metadata = Metadata()  # noqa: RUF009  (frozen)
    is_lossless: bool = False
    notes: list[str] = dataclasses.field(default_factory=list)

    def read_exif(self, data: bytes | None, keep: frozenset[int] | None = None) -> None:
        """Takes what `tiff.clean_exif` leaves."""
        try:
            self.exif = tiff.clean_exif(data, keep) if data else None
        except ValueError:
            self.notes.append("its EXIF, which is damaged")

    def convert_cmyk(self) -> None:
        """Says what became of CMYK, whose profile is no longer that of the picture."""
        by = "its profile" if cmyk.transform(self.icc_profile) else "a plain formula"
        self.notes.append(f"its CMYK colours, which became 8-bit sRGB by {by}")
        self.icc_profile = None


def orientation(exif: bytes | None, xmp: bytes | None) -> int:
    """How a picture is stored, 1 to 8 as in EXIF, by EXIF or else by XMP; 1 where none says it."""
    found = None
    if exif:
        try:
            file = tiff.Tiff(exif.removeprefix(tiff.EXIF_PREFIX))
            tags, _ = file.directory(file.first)
            found = file.numbers(tags.get(tiff.ORIENTATION), 0)[0]
        except (struct.error, LookupError, ValueError):
            pass  # the belongings tell it
    if not found and xmp and (match := _XMP_ORIENTATION.search(xmp)):
        found = int(match[1])
    return int(found) if found in range(1, 9) else 1


def of_jpeg(image: JpegImagePlugin.JpegImageFile) -> Belongings:
    """Reads what belongs to a JPEG file that was opened."""
    info = image.info
    kept = Belongings(icc_profile=info.get("icc_profile"))
    kept.read_exif(info.get("exif"))
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
    kept.metadata = Metadata(
        density=_jpeg_density(info) or exif_density(info.get("exif")),
        xmp=_xmp(info.get("xmp")),
        iptc=resources.get(containers.IPTC),
        comments=tuple(comments),
    )
    if image.mode == "CMYK":
        kept.convert_cmyk()
    return kept


def of_png(data: bytes) -> Belongings:
    """Reads what belongs to a PNG file."""
    kept = Belongings(is_lossless=True)
    exif, xmp = containers.png_exif_and_xmp(data)
    kept.read_exif(exif)
    density, iptc, chunks, others, damaged = None, None, [], set(), set()
    for kind, begin, end in containers.png_chunks(data):
        if kind[:1].isupper() or kind in (b"tRNS", b"eXIf"):
            continue
        chunk = (kind, data[begin:end])
        name = containers.png_keyword(chunk) or kind.decode("latin-1")
        try:
            raw = containers.png_raw_profile(chunk)
            if kind == b"iCCP":
                kept.icc_profile = containers.png_profile(chunk[1])
            elif kind == b"pHYs":
                density = containers.png_density(chunk[1])
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
    kept.metadata = Metadata(density=density, xmp=_xmp(xmp), iptc=iptc, png_chunks=tuple(chunks))
    return kept


def of_webp(chunks: dict[bytes, bytes]) -> Belongings:
    """Reads what belongs to a WebP file, by the type of its chunks."""
    kept = Belongings(icc_profile=chunks.get(b"ICCP"), is_lossless=b"VP8L" in chunks)
    exif = chunks.get(b"EXIF")
    kept.read_exif(exif)
    if others := sorted(kind.decode("latin-1") for kind in chunks if kind not in _WEBP_READ):
        kept.notes.append(f"WebP chunks {', '.join(others)}")
    kept.metadata = Metadata(density=exif_density(exif), xmp=_xmp(chunks.get(b"XMP ")))
    return kept


def of_tiff(data: bytes, found: Inspected) -> Belongings:
    """Reads what belongs to a TIFF file that was inspected."""
    file, tags = found.file, found.tags
    kept = Belongings(icc_profile=profile(found), is_lossless=found.is_lossless)
    kept.read_exif(data, tiff.DESCRIPTIVE)
    content = {tag: file.content(tags[tag]) for tag in (tiff.XMP, tiff.IPTC) if tag in tags}
    iptc = content.get(tiff.IPTC)
    if iptc is None and _PHOTOSHOP in tags:
        iptc = containers.iptc_of_photoshop(file.content(tags[_PHOTOSHOP]))
    geo = tuple(file.value(tags[tag]) for tag in GEO_TAGS if tag in tags)
    if geo and found.orientation != 1:
        kept.notes.append("its georeference, which is of the picture before it was turned")
        geo = ()
    if found.num_others:
        kept.notes.append("smaller versions or masks in the file")
    if others := sorted(tags.keys() - _TIFF_READ):
        kept.notes.append(f"TIFF tags {', '.join(map(str, others))}")
    kept.metadata = Metadata(
        density=_tiff_density(file, tags), xmp=_xmp(content.get(tiff.XMP)), iptc=iptc, geo=geo
    )
    if found.is_cmyk:
        kept.convert_cmyk()
    return kept


def of_bmp(image: Image.Image) -> Belongings:
    """Reads what belongs to a BMP file that was opened."""
    kept = Belongings(is_lossless=True)
    x, y = (round(dpi * containers.BMP_INCHES) for dpi in image.info.get("dpi", (0, 0)))
    if x and y:
        kept.metadata = Metadata(density=Density(x / 100, y / 100, "cm"))
    return kept


def of_gif(image: GifImagePlugin.GifImageFile) -> Belongings:
    """Reads what belongs to a GIF file that was opened."""
    comment = image.info.get("comment")
    return Belongings(is_lossless=True, metadata=Metadata(comments=(comment,) if comment else ()))


def of_avif(image: Image.Image, by_vips: pyvips.Image) -> Belongings:
    """Reads what belongs to an AVIF file that was opened by Pillow and by libvips."""
    # Pillow writes EXIF anew with the orientation of the file, and loses letters in it.
    has_exif = by_vips.get_typeof("exif-data")
    return _of_info(image.info | {"exif": by_vips.get("exif-data") if has_exif else None})


def of_heic(file: Any) -> Belongings:
    """Reads what belongs to a HEIC file: a `pillow_heif.HeifFile`."""
    info = file.info
    kept = _of_info(info)
    if info.get("depth_images") or info.get("aux"):
        kept.notes.append("the other pictures in the file, such as a depth or gain map")
    colours = info.get("nclx_profile") or {}
    codes = {colours.get("color_primaries", 2), colours.get("transfer_characteristics", 2)}
    if kept.icc_profile is None and not codes <= _SRGB_LIKE:
        kept.notes.append("its colour space, which is none of a profile and is taken as sRGB")
    return kept


def _of_info(info: dict[str, Any]) -> Belongings:
    kept = Belongings(icc_profile=info.get("icc_profile"))
    kept.read_exif(info.get("exif"))
    kept.metadata = Metadata(density=exif_density(info.get("exif")), xmp=_xmp(info.get("xmp")))
    return kept


def _xmp(packet: bytes | None) -> bytes | None:
    return containers.upright_xmp(packet) if packet else None


def _jpeg_density(info: dict[str, Any]) -> Density | None:
    """Of JFIF; 1:1 without a unit says nothing."""
    unit, numbers = info.get("jfif_unit", 0), info.get("jfif_density", (1, 1))
    if 0 in numbers or unit not in (1, 2):
        return None
    return Density(*map(float, numbers), ("inch", "cm")[unit - 1])


def exif_density(exif: bytes | None) -> Density | None:
    """What EXIF says of the density; None where it says nothing, or is damaged."""
    try:
        file = tiff.Tiff((exif or b"").removeprefix(tiff.EXIF_PREFIX))
        return _tiff_density(file, file.directory(file.first)[0])
    except (struct.error, LookupError, ValueError):
        return None


def _tiff_density(file: tiff.Tiff, tags: dict[int, tiff.Entry]) -> Density | None:
    fractions = [
        file.numbers(tags.get(tag), 0, 0) for tag in (tiff.X_RESOLUTION, tiff.Y_RESOLUTION)
    ]
    if not all(len(fraction) == 2 and all(fraction) for fraction in fractions):
        return None
    x, y = (above / below for above, below in fractions)
    unit = {1: "", 3: "cm"}.get(file.numbers(tags.get(tiff.RESOLUTION_UNIT), 2)[0], "inch")
    return None if unit == "" and x == y else Density(x, y, unit)
