"""TIFF files of 8 and 16 bits, and EXIF, which has the structure of one.

No library does both: libvips writes no EXIF into TIFF, Pillow no RGB of 16 bits, and Exiv2 is GPL.
"""

import io
import struct
import zlib
from collections.abc import Container

import numpy as np
from absl import logging
from jaxtyping import Shaped
from PIL import TiffImagePlugin

# What EXIF begins with in files other than TIFF.
EXIF_PREFIX = b"Exif\0\0"

# Tags, by the names of the specifications of TIFF and EXIF.
WIDTH, LENGTH, BITS, COMPRESSION, PHOTOMETRIC, STRIP_OFFSETS = 256, 257, 258, 259, 262, 273
ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PREDICTOR = 274, 277, 278, 279, 317
EXTRA_SAMPLES, SAMPLE_FORMAT, ICC_PROFILE, MAKER_NOTE = 338, 339, 34675, 37500

_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_BIG = (b"II+\0",)  # of the other byte order, Pillow reads none
_NOTHING = struct.pack("<4sIHI", b"II*\0", 8, 0, 0)

_DIRECTORIES = (34665, 34853, 40965)  # of EXIF, GPS, interoperability
_NO_LONGER_TRUE = (WIDTH, LENGTH, ORIENTATION, 40962, 40963)  # the last two are EXIF's own sizes

# What a TIFF file says of the picture and not of the file: texts, resolution, ratings.
_DESCRIPTIVE = frozenset(
    (269, 270, 271, 272, 282, 283, 296, 305, 306, 315, 316, 18246, 18249, 33432)
    + (40091, 40092, 40093, 40094, 40095)
    + _DIRECTORIES
)

# Bytes of a value of each type, from type 1 on; and the types of what is written here.
_SIZES = (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4)
_TYPES = {"H": 3, "I": 4, "B": 7}

# On 6000x4000 16-bit pixels of photographs, 1 takes 4.6 s and gives 117.1 MB, 6 takes 6.7 s and
# gives 115.6 MB (measured with one of two cores of a virtual machine).
_LEVEL = 1

# Tag, type, number of values; and the values, or where they are.
_Entry = tuple[int, int, int, bytes]


def tags(data: bytes) -> TiffImagePlugin.ImageFileDirectory_v2 | None:
    """What a TIFF file says of its first image, by tag; None for other files."""
    if data[:4] not in (*_ORDERS, *_BIG):
        return None
    file = io.BytesIO(data)
    found = TiffImagePlugin.ImageFileDirectory_v2(file.read(16 if data[:4] in _BIG else 8))
    file.seek(found.next)
    found.load(file)
    return found


def exif_of_file(data: bytes) -> bytes | None:
    """The EXIF of a TIFF file, which has it among the tags of its image; see `exif_of_block`."""
    return _exif(data, _DESCRIPTIVE)


def exif_of_block(block: bytes) -> bytes | None:
    """What is still true of EXIF when the picture is upright and of another size.

    So without orientation, sizes and thumbnail. Where it is damaged it is left out, with a warning.

    Args:
        block: with `EXIF_PREFIX` or without.

    Returns:
        With `EXIF_PREFIX`; None where nothing is left.
    """
    return _exif(block.removeprefix(EXIF_PREFIX), None)


def encode(
    values: Shaped[np.ndarray, "height width *channels"],
    *,
    is_grey: bool,
    has_alpha: bool,
    icc_profile: bytes | None,
    exif: bytes | None,
) -> bytes:
    """A TIFF file: deflate with a predictor, in strips of about 1 MB.

    EXIF is a TIFF file without an image, so the image is put behind it.

    Args:
        values: 8 or 16 bits, grey or RGB, then alpha.
        is_grey: the colours are one channel.
        has_alpha: the last channel is alpha.
        icc_profile: or None.
        exif: with `EXIF_PREFIX`, or None.

    Raises:
        ValueError: more than the 4 GB that a TIFF file holds.
    """
    values = np.atleast_3d(values)
    height, width, channels = values.shape
    file = bytearray(exif.removeprefix(EXIF_PREFIX) if exif else _NOTHING)
    order, entries = _first_directory(file)
    rows = max(1, 2**20 // values[0].nbytes)
    offsets, sizes = [], []
    for top in range(0, height, rows):
        strip = values[top : top + rows].copy()
        strip[:, 1:] -= strip[:, :-1]
        strip = strip.astype(strip.dtype.newbyteorder(order), copy=False)
        offsets.append(len(file))
        file += zlib.compress(strip.tobytes(), _LEVEL)
        sizes.append(len(file) - offsets[-1])
        if len(file) > 2**32 - 2**24:
            raise ValueError(f"{width}x{height} pixels are more than TIFF's 4 GB; write a .png")
    described = [
        (WIDTH, "I", [width]),
        (LENGTH, "I", [height]),
        (BITS, "H", [8 * values.itemsize] * channels),
        (COMPRESSION, "H", [8]),
        (PHOTOMETRIC, "H", [1 if is_grey else 2]),
        (STRIP_OFFSETS, "I", offsets),
        (SAMPLES, "H", [channels]),
        (ROWS_PER_STRIP, "I", [rows]),
        (STRIP_BYTES, "I", sizes),
        (PREDICTOR, "H", [2]),
        (EXTRA_SAMPLES, "H", [2] if has_alpha else []),
        (ICC_PROFILE, "B", icc_profile or b""),
    ]
    # EXIF of another file could also have tags that describe its pixels.
    table = [entry for entry in entries if entry[0] in _DESCRIPTIVE]
    for tag, kind, content in described:
        if not content:
            continue
        data = struct.pack(f"{order}{len(content)}{kind}", *content)
        if len(data) > 4:
            file += bytes(len(file) % 2) + data
            data = struct.pack(order + "I", len(file) - len(data))
        table.append((tag, _TYPES[kind], len(content), data))
    file += bytes(len(file) % 2)
    struct.pack_into(order + "I", file, 4, len(file))
    file += _packed(order, sorted(table))
    return bytes(file)


def _exif(tiff: bytes, keep: Container[int] | None) -> bytes | None:
    """See `exif_of_block`; with the tags in `keep` of the first directory, or all."""
    try:
        order, entries = _first_directory(tiff)
        entries = [entry for entry in entries if keep is None or entry[0] in keep]
        copy = bytearray(tiff[:4] + struct.pack(order + "I", 8))
        _copy_directory(tiff, order, entries, copy)
    except (struct.error, LookupError, ValueError, RecursionError) as error:
        logging.warning("EXIF cannot be read and is left out: %r", error)
        return None
    return EXIF_PREFIX + bytes(copy) if len(copy) > len(_NOTHING) else None


def _copy_directory(tiff: bytes, order: str, entries: list[_Entry], copy: bytearray) -> None:
    """Appends a directory and what it points to; not the next one, which is the thumbnail's."""
    begin = len(copy)
    entries = [entry for entry in entries if entry[0] not in _NO_LONGER_TRUE]
    copy += _packed(order, entries)
    for i, (tag, kind, count, value) in enumerate(entries):
        size = count * _SIZES[kind - 1]
        (place,) = struct.unpack(order + "I", value)
        if tag not in _DIRECTORIES and size <= 4:
            continue
        copy += bytes(len(copy) % 2)
        if tag == MAKER_NOTE and len(copy) < place < 2**16:
            # Maker notes hold offsets of their own, so they stay where they are.
            copy += bytes(place - len(copy))
        entries[i] = (tag, kind, count, struct.pack(order + "I", len(copy)))
        if tag in _DIRECTORIES:
            _copy_directory(tiff, order, _directory(tiff, order, place), copy)
        else:
            copy += tiff[place : place + size]
        # The second where directories share what they point to, which may be made to explode.
        if place + size > len(tiff) or len(copy) > len(tiff) + 2**16:
            raise ValueError(f"tag {tag} points outside of the {len(tiff)} bytes")
    table = _packed(order, entries)
    copy[begin : begin + len(table)] = table


def _first_directory(tiff: bytes | bytearray) -> tuple[str, list[_Entry]]:
    """The byte order and the entries."""
    order = _ORDERS[bytes(tiff[:4])]
    return order, _directory(tiff, order, struct.unpack_from(order + "I", tiff, 4)[0])


def _directory(tiff: bytes | bytearray, order: str, place: int) -> list[_Entry]:
    (count,) = struct.unpack_from(order + "H", tiff, place)
    return [struct.unpack_from(order + "HHI4s", tiff, place + 2 + 12 * i) for i in range(count)]


def _packed(order: str, entries: list[_Entry]) -> bytes:
    table = b"".join(struct.pack(order + "HHI4s", *entry) for entry in entries)
    return struct.pack(order + "H", len(entries)) + table + bytes(4)
