"""What lies around the pixels in PNG, WebP and JPEG files: chunks and segments, read and added."""

import contextlib
import re
import struct
import zlib
from collections.abc import Iterable, Iterator

from sr3_jax.data.picture.content import Density

COMMENT = "Comment"  # the keyword of the PNG specification
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
BMP_INCHES = 39.3701  # in a metre, by which Pillow converts what BMP files say of a metre
JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_PNG_XMP = b"XML:com.adobe.xmp"
RAW_EXIF = ("exif", "app1")  # what ImageMagick calls EXIF
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PHOTOSHOP = b"Photoshop 3.0\0"
IPTC = 1028  # the resource of Photoshop that holds it

# Of profile and packets once they are decompressed: many times what real ones have.
_MOST_BYTES = 16 << 20
# Of a segment of JPEG, less what says which it is.
MOST_OF_SEGMENT = 65533 - 64

# In XMP, either as an attribute or as an element.
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|>)\s*)[2-8]")

PngChunk = tuple[bytes, bytes]  # type and content


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type of each chunk of a PNG file, and where its content begins and ends."""
    place = len(PNG_SIGNATURE)
    while place + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        kind = data[place + 4 : place + 8]
        yield kind, place + 8, place + 8 + size
        if kind == b"IEND":
            return
        place += 12 + size


def png_exif_and_xmp(data: bytes) -> tuple[bytes | None, bytes | None]:
    """EXIF and the XMP packet of a PNG file; None where there is none, or it is damaged."""
    exif = xmp = None
    for kind, begin, end in png_chunks(data):
        if kind == b"eXIf":
            exif = data[begin:end]
        elif kind in _PNG_TEXTS:
            chunk = (kind, data[begin:end])
            with contextlib.suppress(ValueError):  # `belongings.of_png` tells of it
                xmp = png_xmp(chunk) or xmp
                if exif is None and (raw := png_raw_profile(chunk)) and raw[0] in RAW_EXIF:
                    exif = raw[1]
    return exif, xmp


def png_of_pixels(data: bytes) -> bytes:
    """The PNG file without what is no pixel, so that no decoder unpacks texts and profiles."""
    kept = [
        data[begin - 8 : end + 4]
        for kind, begin, end in png_chunks(data)
        if kind[:1].isupper() or kind == b"tRNS"
    ]
    return PNG_SIGNATURE + b"".join(kept)


def with_png_chunks(data: bytes, chunks: Iterable[PngChunk]) -> bytes:
    """The PNG file with more chunks behind its header, which has 33 bytes."""
    packed = b""
    for kind, content in chunks:
        check = struct.pack(">I", zlib.crc32(kind + content))
        packed += struct.pack(">I", len(content)) + kind + content + check
    return data[:33] + packed + data[33:]


def png_text(keyword: str, text: str) -> PngChunk:
    """A text as a chunk."""
    try:
        return b"tEXt", keyword.encode("latin-1") + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        return b"iTXt", keyword.encode("latin-1") + bytes(5) + text.encode()


def png_keyword(chunk: PngChunk) -> str:
    """Returns the keyword of a text; empty for other chunks."""
    return chunk[1].partition(b"\0")[0].decode("latin-1") if chunk[0] in _PNG_TEXTS else ""


def png_text_of(chunk: PngChunk) -> str:
    """The text of a chunk of type tEXt, zTXt or iTXt.

    Raises:
        ValueError: damaged, or too large.
    """
    return _text_bytes(chunk).decode("utf-8" if chunk[0] == b"iTXt" else "latin-1")


def png_xmp(chunk: PngChunk) -> bytes | None:
    """The XMP packet, if it is that chunk."""
    if chunk[0] == b"iTXt" and chunk[1].startswith(_PNG_XMP + b"\0"):
        return _text_bytes(chunk)
    return None


def png_xmp_chunk(xmp: bytes) -> PngChunk:
    """The chunk of an XMP packet."""
    return b"iTXt", _PNG_XMP + bytes(5) + xmp


def png_raw_profile(chunk: PngChunk) -> tuple[str, bytes] | None:
    """ImageMagick's, from before PNG had chunks for it: `exif`, `iptc` and so on, and the content.

    It is a text of three lines, the third of which is the size, and then hexadecimal.
    """
    kind = png_keyword(chunk).removeprefix("Raw profile type ")
    if not kind or kind == png_keyword(chunk):
        return None
    lines = png_text_of(chunk).split("\n")
    return kind.lower(), bytes.fromhex("".join(lines[3:]))


def png_profile(content: bytes) -> bytes:
    """The colour profile in a chunk of type iCCP."""
    return unpacked(content.partition(b"\0")[2][1:])


def png_profile_chunk(profile: bytes) -> PngChunk:
    """The chunk of a colour profile."""
    return b"iCCP", b"ICC\0\0" + zlib.compress(profile)


def png_density(content: bytes) -> Density:
    """Returns the density that a chunk of type pHYs states."""
    x, y, unit = struct.unpack(">IIB", content)
    return Density(x / 100, y / 100, "cm") if unit else Density(x, y, "")


def png_density_chunk(density: Density) -> PngChunk:
    """The chunk of a density."""
    return b"pHYs", struct.pack(">IIB", *density.per_metre(), bool(density.unit))


def unpacked(data: bytes) -> bytes:
    """Decompresses; raises ValueError where that takes more memory than any real file."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, _MOST_BYTES)
    except zlib.error as error:
        raise ValueError(f"damaged: {error}") from error
    if stream.unconsumed_tail:
        raise ValueError(f"more than {_MOST_BYTES >> 20} MiB once it is decompressed")
    return content


def webp_chunks(data: bytes) -> Iterator[PngChunk]:
    """Type and content of each chunk of a WebP file."""
    place = 12
    while place + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, place)
        yield kind, data[place + 8 : place + 8 + size]
        place += 8 + size + size % 2


def upright_xmp(xmp: bytes) -> bytes:
    """XMP that says that the picture is upright."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)


def iptc_of_photoshop(content: bytes) -> bytes | None:
    """The records of IPTC in resources of Photoshop; see `photoshop_of_iptc`."""
    place = 0
    while content[place : place + 4] == b"8BIM":
        (number,) = struct.unpack_from(">H", content, place + 4)
        place += 6
        place += (content[place] + 2) // 2 * 2  # a name, with its length, to an even number
        (size,) = struct.unpack_from(">I", content, place)
        if number == IPTC:
            return content[place + 4 : place + 4 + size]
        place += 4 + (size + 1) // 2 * 2
    return None


def photoshop_of_iptc(iptc: bytes) -> bytes:
    """Records of IPTC as a resource of Photoshop, without which JPEG has no place for them."""
    head = b"8BIM" + struct.pack(">HHI", IPTC, 0, len(iptc))
    return head + iptc + bytes(len(iptc) % 2)


def with_jpeg_segments(
    data: bytes,
    *,
    density: Density | None,
    xmp: bytes | None,
    iptc: bytes | None,
    comments: Iterable[bytes],
) -> bytes:
    """The JPEG file with more segments behind its first one, which says that it is JFIF.

    None of them may be longer than `MOST_OF_SEGMENT`.
    """
    head = bytearray(data[:20])
    if density is not None:
        unit = ("", "inch", "cm").index(density.unit)
        numbers = (min(max(round(number), 1), 65535) for number in density[:2])
        struct.pack_into(">BHH", head, 13, unit, *numbers)
    segments = [(0xE1, JPEG_XMP + xmp)] if xmp else []
    segments += [(0xED, _PHOTOSHOP + photoshop_of_iptc(iptc))] if iptc else []
    segments += [(0xFE, comment) for comment in comments]
    packed = b""
    for marker, content in segments:
        packed += struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
    return bytes(head) + packed + data[20:]


def _text_bytes(chunk: PngChunk) -> bytes:
    kind, content = chunk
    text = content.partition(b"\0")[2]
    if kind == b"zTXt":
        return unpacked(text[1:])
    if kind == b"iTXt":
        # Whether it is compressed, how, then the language and the keyword in it.
        packed, text = text[:1] == b"\1", text[2:].partition(b"\0")[2].partition(b"\0")[2]
        return unpacked(text) if packed else text
    return text
