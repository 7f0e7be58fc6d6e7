"""Chunks of PNG files and segments of JPEG files: reading and adding them."""

import struct
import zlib
from collections.abc import Iterable, Iterator

from sr3_jax.data.image_files.picture import Density

COMMENT = "Comment"  # a keyword of the PNG specification
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
BMP_INCHES = 39.3701  # in a metre, as Pillow converts the density of BMP files
JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
PNG_XMP = "XML:com.adobe.xmp"
RAW_EXIF = ("exif", "app1")  # ImageMagick's names of EXIF
_PHOTOSHOP = b"Photoshop 3.0\0"
IPTC = 1028  # the resource of Photoshop that holds it

# Largest decompressed profile, text or packet: many times the size of real ones.
_MOST_BYTES = 16 << 20
# Longest content of a JPEG segment, less the bytes that say which one it is.
MOST_OF_SEGMENT = 65533 - 64

PngChunk = tuple[bytes, bytes]  # type and content


def png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields the type of each chunk of a PNG file, and where its content begins and ends."""
    place = len(PNG_SIGNATURE)
    while place + 8 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        kind = data[place + 4 : place + 8]
        yield kind, place + 8, place + 8 + size
        if kind == b"IEND":
            return
        place += 12 + size


def png_of_pixels(data: bytes) -> bytes:
    """Removes the metadata of a PNG file, so that no decoder decompresses texts and profiles."""
    kept = [
        data[begin - 8 : end + 4]
        for kind, begin, end in png_chunks(data)
        if kind[:1].isupper() or kind == b"tRNS"
    ]
    return PNG_SIGNATURE + b"".join(kept)


def with_png_chunks(data: bytes, chunks: Iterable[PngChunk]) -> bytes:
    """Inserts chunks into a PNG file, after its header, which has 33 bytes."""
    packed = b""
    for kind, content in chunks:
        check = struct.pack(">I", zlib.crc32(kind + content))
        packed += struct.pack(">I", len(content)) + kind + content + check
    return data[:33] + packed + data[33:]


def png_text(keyword: str, text: str) -> PngChunk:
    """Makes a chunk of a text."""
    try:
        return b"tEXt", keyword.encode("latin-1") + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        return b"iTXt", keyword.encode("latin-1") + bytes(5) + text.encode()


def png_keyword(chunk: PngChunk) -> str:
    """Returns the keyword of a text; empty for other chunks."""
    return chunk[1].partition(b"\0")[0].decode("latin-1") if chunk[0] in PNG_TEXTS else ""


def png_text_of(chunk: PngChunk) -> str:
    """Returns the text of a chunk; raises ValueError if it is damaged or too large."""
    return png_text_bytes(chunk).decode("utf-8" if chunk[0] == b"iTXt" else "latin-1")


def png_text_bytes(chunk: PngChunk) -> bytes:
    """Returns the text of a chunk in its encoding; see `png_text_of`."""
    kind, content = chunk
    text = content.partition(b"\0")[2]
    if kind == b"zTXt":
        return unpacked(text[1:])
    if kind == b"iTXt":
        # A flag of compression and its method, then the language and the translated keyword.
        is_packed, text = text[:1] == b"\1", text[2:].partition(b"\0")[2].partition(b"\0")[2]
        return unpacked(text) if is_packed else text
    return text


def png_raw_profile(chunk: PngChunk) -> tuple[str, bytes]:
    """Reads a profile as ImageMagick wrote it before PNG had chunks for it.

    It is a text: an empty line, the kind, the size, and hexadecimal digits.

    Returns:
      The kind (`exif`, `iptc` ...) and the content; empty for other chunks.
    """
    before, _, kind = png_keyword(chunk).partition("Raw profile type ")
    if before or not kind:
        return "", b""
    return kind.lower(), bytes.fromhex("".join(png_text_of(chunk).split("\n")[3:]))


def unpacked(data: bytes) -> bytes:
    """Decompresses; raises ValueError if the data is damaged or larger than in any real file."""
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, _MOST_BYTES)
    except zlib.error as error:
        raise ValueError(f"damaged: {error}") from error
    if stream.unconsumed_tail:
        raise ValueError(f"more than {_MOST_BYTES >> 20} MiB once it is decompressed")
    return content


def iptc_of_photoshop(content: bytes) -> bytes | None:
    """Returns the records of IPTC among resources of Photoshop."""
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


def with_jpeg_segments(
    data: bytes, density: Density | None, iptc: bytes | None, comments: Iterable[bytes]
) -> bytes:
    """Inserts segments into a JPEG file, after the first one, which is JFIF's.

    None of them may be longer than `MOST_OF_SEGMENT`.
    """
    head = bytearray(data[:20])
    if density is not None:
        unit = ("", "inch", "cm").index(density.unit)
        numbers = (min(max(round(number), 1), 65535) for number in density[:2])
        struct.pack_into(">BHH", head, 13, unit, *numbers)
    segments = [(0xFE, comment) for comment in comments]
    if iptc:  # JPEG holds it as a resource of Photoshop
        resource = b"8BIM" + struct.pack(">HHI", IPTC, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)
        segments.append((0xED, _PHOTOSHOP + resource))
    packed = b""
    for marker, content in segments:
        packed += struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content
    return bytes(head) + packed + data[20:]
