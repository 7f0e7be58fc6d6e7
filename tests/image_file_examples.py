"""Picture files for tests of data.image_files, made by Pillow, tifffile, libvips and by hand."""

import io
import struct
import tarfile
import zlib

import numpy as np
import tifffile
from PIL import ExifTags, Image, ImageCms

from sr3_jax.data import archives, folders, image_files, records
from sr3_jax.data.image_files import BadImageError, Density, Metadata, Picture, tiff
from sr3_jax.evaluation import scoring

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# Only what says of which pixels it is differs; nothing in the tests opens it.
GREY_PROFILE = SRGB[:16] + b"GRAY" + SRGB[20:]

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>'
IPTC = b"\x1c\x02x\x00\ta caption\x1c\x02\x19\x00\x03sea"  # of an odd number of bytes


def noise(channels: int, dtype: type, height: int = 9, width: int = 14) -> np.ndarray:
    rng = np.random.default_rng(channels)
    values = rng.integers(0, np.iinfo(dtype).max + 1, (height, width, channels)).astype(dtype)
    # Both ends, and neighbours that differ in the low byte alone.
    values[0, 0], values[0, 1], values[0, 2] = 0, np.iinfo(dtype).max, np.iinfo(dtype).max - 1
    return values


def make(channels: int, dtype: type, **others) -> Picture:
    values = noise(channels, dtype)
    return Picture(
        pixels=np.repeat(values[..., :1], 3, axis=2) if channels < 3 else values[..., :3],
        alpha=values[..., -1] if channels % 2 == 0 else None,
        is_grey=channels < 3,
        **others,
    )


def exif_block(little: bool = False, **tags) -> bytes:
    exif = Image.Exif()
    exif.endian = "<" if little else ">"
    for name, value in {"Make": "Cämera".encode(), "DateTime": "2024:01:02 03:04:05"}.items():
        exif[ExifTags.Base[name]] = value
    for name, value in tags.items():
        exif[ExifTags.Base[name]] = value
    exif[ExifTags.IFD.Exif] = {
        ExifTags.Base.ExposureTime: 0.25,
        ExifTags.Base.UserComment: b"ASCII\0\0\0as it was",
        ExifTags.Base.ExifImageWidth: 14,
        ExifTags.Base.ExifImageHeight: 9,
    }
    exif[ExifTags.IFD.GPSInfo] = {ExifTags.GPS.GPSLatitudeRef: "N", 2: (52.0, 30.0, 1.5)}
    return exif.tobytes()


def saved(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format=file_format, **options)
    return file.getvalue()


def png(values: np.ndarray, *chunks: tuple[bytes, bytes], depth: int = 16) -> bytes:
    """Encodes a PNG file by hand, independently of the tested code."""
    height, width, channels = values.shape
    rows = values.astype(">u2").tobytes() if depth == 16 else values.astype(np.uint8).tobytes()
    rows = np.frombuffer(rows, np.uint8).reshape(height, -1)
    colours = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    if depth < 8:
        bits = np.unpackbits(rows[..., np.newaxis], axis=-1)[..., -depth:]
        rows = np.packbits(bits.reshape(height, -1), axis=-1)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0)),
        *chunks,
        (b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))),
        (b"IEND", b""),
    ]
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in parts:
        check = struct.pack(">I", zlib.crc32(name + content))
        data += struct.pack(">I", len(content)) + name + content + check
    return data


def tiff_file(values: np.ndarray, **options) -> bytes:
    """Encodes a TIFF file by tifffile."""
    channels = values.shape[2]
    options = {"photometric": "rgb" if channels > 2 else "minisblack"} | options
    if channels % 2 == 0:
        options = {"extrasamples": ["unassalpha"], "planarconfig": "contig"} | options
    file = io.BytesIO()
    head = {key: options.pop(key) for key in ("byteorder", "bigtiff") if key in options}
    tifffile.imwrite(file, values[..., 0] if channels == 1 else values, **head, **options)
    return file.getvalue()


def levels_tiff(levels: np.ndarray, bits: int, white_is_zero: bool, order: str) -> bytes:
    """Encodes a TIFF file of grey levels of 1 to 16 bits by hand."""
    height, width = levels.shape
    if bits == 16:
        packed = levels.astype(order + "u2").tobytes()
    else:
        spread = np.unpackbits(levels.astype(np.uint8)[..., np.newaxis], axis=-1)[..., -bits:]
        packed = np.packbits(spread.reshape(height, -1), axis=-1).tobytes()
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 0 if white_is_zero else 1)]
    tags += [(273, 8 + 2 + 9 * 12 + 4), (277, 1), (278, height), (279, len(packed))]
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "IH", 8, len(tags))
    table = b"".join(struct.pack(order + "HHII", tag, 4, 1, value) for tag, value in tags)
    return head + table + bytes(4) + packed


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Turns pixels that are stored in an orientation of EXIF upright, by its specification."""
    # Which side of the picture the first row is, and which the first column.
    return {
        1: stored,
        2: stored[:, ::-1],
        3: np.rot90(stored, 2),
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).swapaxes(0, 1),
        8: np.rot90(stored, 1),
    }[orientation]


def png_values(data: bytes) -> np.ndarray:
    """Decodes a PNG of 16 bits whose rows are differences to the row above."""
    width, height, depth, colours = struct.unpack(">IIBB", data[16:26])
    assert depth == 16
    compressed, place = b"", 8
    while place < len(data):
        (size,) = struct.unpack_from(">I", data, place)
        if data[place + 4 : place + 8] == b"IDAT":
            compressed += data[place + 8 : place + 8 + size]
        place += size + 12
    rows = np.frombuffer(zlib.decompress(compressed), np.uint8).reshape(height, -1)
    assert (rows[:, 0] == 2).all()
    rows = np.cumsum(rows[:, 1:], axis=0, dtype=np.uint8)
    return rows.view(">u2").reshape(height, width, -1)


def read_by_every_path(folder, files: dict[str, bytes]) -> dict[str, dict[str, object]]:
    """Returns the pixels, or the message of an error, of each file by each reader."""
    for name, data in files.items():
        (folder / "in").mkdir(exist_ok=True)
        (folder / "in" / name).write_bytes(data)
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.add(folder / "in", ".")
    source, tar = folders.folder(folder / "in"), archives.archive(folder / "a.tar")
    assert len(source) == len(tar) == len(files)

    def attempt(read):
        try:
            return read()
        except BadImageError as error:
            return str(error)

    found = {}
    for i, (ref, member) in enumerate(zip(source, tar, strict=True)):
        record = records.serialize_example({"image": files[ref.name]})
        found[ref.name] = {
            "training, a folder": attempt(lambda r=ref: r.read().image),
            "training, a tar": attempt(lambda m=member: m.read().image),
            "training, records": attempt(lambda r=record: records.decode_example(r).image),
            "scoring": attempt(lambda i=i: scoring.Read(source)[i]),
            "upscaling": attempt(lambda r=ref: image_files.rgb(image_files.read_picture(r.path))),
        }
    return found


def metadata(**others) -> Metadata:
    geo = (
        tiff.Value(33550, "d", (10.0, 10.0, 0.0)),
        tiff.Value(33922, "d", (0.0, 0.0, 0.0, 399960.0, 5000040.0, 0.0)),
        tiff.Value(34735, "H", (1, 1, 0, 2, 1025, 0, 1, 1, 3072, 0, 1, 32632)),
        tiff.Value(42113, "s", b"-9999\0"),
    )
    parts = {
        "density": Density(300.0, 240.0, "inch"),
        "xmp": XMP % 1,
        "iptc": IPTC,
        "comments": (b"hello",),
        "png_chunks": (
            (b"tEXt", b"parameters\0a cat, steps: 20"),
            (b"iTXt", b"Title\0\0\0\0\0" + "Ünï".encode()),
            (b"zTXt", b"Log\0\0" + zlib.compress(b"long" * 99)),
            (b"gAMA", struct.pack(">I", 45455)),
        ),
        "geo": geo,
    }
    return Metadata(**parts | others)
