"""Tests of metadata in sr3_jax.data.image_files: what is kept, lost and noted."""

import dataclasses
import itertools
import struct
import zlib

import numpy as np
import pytest
from etils import epath
from image_file_examples import (
    GREY_PROFILE,
    IPTC,
    SRGB,
    XMP,
    exif_block,
    make,
    metadata,
    noise,
    png,
    saved,
    tiff_file,
    upright,
)
from PIL import ExifTags, Image

from sr3_jax.data import image_files
from sr3_jax.data.image_files import Density, Metadata, tiff

HELD = {
    "png": {"density", "xmp", "comments", "png_chunks"},
    "jpeg": {"density", "xmp", "iptc", "comments"},
    "webp": {"xmp"},
    "avif": {"xmp"},
    "tiff": {"density", "xmp", "iptc", "geo"},
}


@pytest.mark.parametrize("kind", HELD)
def test_what_belongs_to_a_picture_stays_or_is_told(tmp_path, kind):
    exif = tiff.clean_exif(exif_block())
    before = make(3, np.uint8, icc_profile=SRGB, exif=exif, metadata=metadata())
    told = " ".join(image_files.not_kept(before, epath.Path("a"), kind))
    path = image_files.write_picture(before, epath.Path(tmp_path / "a"), format=kind)
    found = image_files.read_picture(str(path))
    assert found.exif == exif and found.icc_profile == SRGB
    words = {"iptc": "IPTC", "geo": "georeference", "png_chunks": "PNG's texts 'parameters'"}
    for field in dataclasses.fields(Metadata):
        name, kept = field.name, getattr(found.metadata, field.name)
        assert (words.get(name, name) in told) == (name not in HELD[kind]), (name, told)
        if name == "density" and kind == "png":  # whole numbers for a metre
            assert kept.x == pytest.approx(300 / 2.54, abs=0.01)
        elif name == "comments" and kind == "png":  # as a text
            assert (b"tEXt", b"Comment\0hello") in found.metadata.png_chunks
        elif name in HELD[kind]:
            expected = getattr(before.metadata, name)
            assert kept[-len(expected) :] == expected
        else:
            assert not kept, name
    # A second time, nothing is lost or added.
    again = image_files.write_picture(found, epath.Path(tmp_path / "b"), format=kind)
    assert image_files.read_picture(str(again)).metadata == found.metadata
    nothing = make(3, np.uint8)
    assert image_files.not_kept(nothing, epath.Path("a"), kind) == ()
    path = image_files.write_picture(nothing, epath.Path(tmp_path / "c"), format=kind)
    assert image_files.read_picture(str(path)).metadata == Metadata()


def test_what_is_too_long_for_jpeg_is_told(tmp_path):
    long = Metadata(xmp=bytes(70000), iptc=b"\x1c" * 70000, comments=(b"c" * 70000, b"short"))
    exif = tiff.clean_exif(exif_block(ImageDescription="d" * 70000))
    before = make(3, np.uint8, exif=exif, metadata=long)
    told = image_files.not_kept(before, epath.Path("a.jpg"))
    assert told == ("its EXIF", "its XMP", "its IPTC", "its comments")
    path = image_files.write_picture(before, epath.Path(tmp_path / "a.jpg"))
    found = image_files.read_picture(str(path))
    assert found.exif is None and found.metadata == Metadata(comments=(b"short",))


def test_a_density_in_exif_is_kept_where_there_is_no_other_place():
    exif = exif_block(XResolution=72.0, YResolution=72.0, ResolutionUnit=2)
    found = image_files.decode_picture(
        saved(Image.fromarray(noise(3, np.uint8)), "WEBP", exif=exif)
    )
    assert found.metadata.density == Density(72, 72, "inch")
    assert image_files.not_kept(found, epath.Path("a.webp")) == ()


def test_what_other_programs_wrote_is_found():
    image = Image.fromarray(noise(3, np.uint8))
    iptc = b"Photoshop 3.0\0" + b"8BIM\4\4\0\0" + struct.pack(">I", len(IPTC)) + IPTC + b"\0"
    jpeg = saved(image, "JPEG", dpi=(300, 240), comment=b"hello", xmp=XMP % 1)
    segment = b"\xff\xed" + struct.pack(">H", len(iptc) + 2) + iptc
    found = image_files.decode_picture(jpeg[:20] + segment + jpeg[20:]).metadata
    assert found == Metadata(Density(300, 240, "inch"), XMP % 1, IPTC, (b"hello",))
    by_cm = bytearray(jpeg)
    by_cm[13:18] = struct.pack(">BHH", 2, 118, 118)
    assert image_files.decode_picture(bytes(by_cm)).metadata.density == Density(118, 118, "cm")
    # EXIF's, where JFIF says nothing; and TIFF's.
    exif = exif_block(XResolution=72.0, YResolution=72.0, ResolutionUnit=2)
    for data in (saved(image, "JPEG", exif=exif), saved(image, "TIFF", dpi=(72, 72))):
        assert image_files.decode_picture(data).metadata.density == Density(72, 72, "inch")
    assert image_files.decode_picture(saved(image, "GIF", comment=b"hi")).metadata.comments == (
        b"hi",
    )
    # ImageMagick's way of EXIF in PNG.
    block = exif_block(Orientation=6)
    text = f"\nexif\n{len(block)}\n{block.hex()}\n".encode()
    chunk = (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    found = image_files.decode_picture(png(noise(3, np.uint8), chunk, depth=8))
    assert found.exif == tiff.clean_exif(block) and found.pixels.shape == (14, 9, 3)
    # EXIF and places in a BigTIFF file, of both byte orders.
    for order in "<>":
        tags = [(271, 2, 7, b"Camera\0", True), (33550, 12, 3, (2.0, 2.0, 0.0), True)]
        data = tiff_file(noise(3, np.uint16), byteorder=order, bigtiff=True, extratags=tags)
        found = image_files.decode_picture(data)
        exif = Image.Exif()
        exif.load(found.exif)
        assert exif[ExifTags.Base.Make] == "Camera"
        assert found.metadata.geo == (tiff.Value(33550, "d", (2.0, 2.0, 0.0)),)


def test_what_is_left_out_is_told():
    rgb, grey = Image.fromarray(noise(3, np.uint8)), Image.fromarray(noise(1, np.uint8)[..., 0])
    unknown = (b"prVt", b"of some program")
    jpeg = saved(rgb, "JPEG")
    preview = b"\xff\xe2\0\x08MPF\0\0\0"
    cases = [
        (saved(grey, icc_profile=SRGB), "colour profile, which is for RGB pixels"),
        (saved(rgb, icc_profile=GREY_PROFILE), "colour profile, which is for GRAY pixels"),
        (png(noise(3, np.uint16), (b"eXIf", b"II*\0\1")), "EXIF, which is damaged"),
        (png(noise(3, np.uint16), (b"iCCP", b"ICC\0\0no")), "damaged PNG chunks iCCP"),
        (png(noise(3, np.uint16), unknown), "PNG chunks prVt"),
        (jpeg[:20] + preview + jpeg[20:], "other pictures in the file"),
        (jpeg[:20] + b"\xff\xeb\0\x06JUMB" + jpeg[20:], "JPEG segments APP11"),
        (tiff_file(noise(3, np.uint8), extratags=[(50844, 12, 1, 0.5, True)]), "TIFF tags 50844"),
        (
            tiff_file(
                noise(3, np.uint8),
                extratags=[(274, 3, 1, 6, True), (33550, 12, 3, (2.0, 2.0, 0.0), True)],
            ),
            "georeference, which is of the picture before it was turned",
        ),
    ]
    for data, words in cases:
        [note] = image_files.decode_picture(data).notes
        assert words in note
        assert (
            image_files.not_kept(image_files.decode_picture(data), epath.Path("a.png"))[0] == note
        )


@pytest.mark.parametrize("scale", [2, 4, 1.5])
@pytest.mark.parametrize("is_point", [False, True])
@pytest.mark.parametrize("turned", [False, True])
def test_a_georeference_keeps_the_corners_on_the_ground(scale, is_point, turned):
    keys = tiff.Value(34735, "H", (1, 1, 0, 1, 1025, 0, 1, 2 if is_point else 1))
    if turned:
        matrix = (8.0, 3.0, 0.0, 400000.0, 2.0, -9.0, 0.0, 5e6, 0.0, 0.0, 0.0, 0.0, 0.0, 0, 0, 1.0)
        geo = (tiff.Value(34264, "d", matrix), keys)
    else:
        tie = (3.0, 5.0, 0.0, 399960.0, 5000040.0, 0.0)
        geo = (tiff.Value(33550, "d", (10.0, 20.0, 0.0)), tiff.Value(33922, "d", tie), keys)
    before = make(3, np.uint8, metadata=metadata(geo=geo))
    height, width = before.pixels.shape[:2]

    def ground(picture_, column, row):
        """Returns the ground position of a place in pixels, by the specification of GeoTIFF."""
        tags = {value.tag: value.content for value in picture_.metadata.geo}
        column, row = (column - 0.5, row - 0.5) if is_point else (column, row)
        if 34264 in tags:
            return (np.reshape(tags[34264], (4, 4)) @ [column, row, 0, 1])[:2]
        (i, j, _, x, y, _), (width_, height_, _) = tags[33922], tags[33550]
        return np.array([x + (column - i) * width_, y - (row - j) * height_])

    larger = np.zeros((round(height * scale), round(width * scale), 3), np.uint8)
    after = before.scaled(larger, None, scale)
    for share in itertools.product((0, 0.3, 1), repeat=2):
        place = np.multiply(share, (width, height))
        expected = ground(before, *place)
        np.testing.assert_allclose(ground(after, *(place * scale)), expected, rtol=0, atol=1e-6)
    assert after.metadata.density == before.metadata.density


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png", "a.tif", "a.avif"])
@pytest.mark.parametrize("little", [False, True])
def test_exif_and_profile_come_back(tmp_path, name, little):
    path = epath.Path(tmp_path / name)
    Image.fromarray(noise(3, np.uint8)).save(
        path, exif=exif_block(little, Orientation=6), icc_profile=SRGB, xmp=XMP % 6
    )
    found = image_files.read_picture(str(path))
    assert found.icc_profile == SRGB and found.pixels.shape == (14, 9, 3)
    image_files.write_picture(found, path)
    with Image.open(path) as file:
        assert file.info["icc_profile"] == SRGB and file.size == (9, 14)
        exif = file.getexif()
        # To these, Pillow itself writes no other letters than those of ASCII.
        make = b"C??mera" if name in ("a.tif", "a.avif") else "Cämera".encode()
        assert exif[ExifTags.Base.Make].encode("latin-1") == make
        assert exif[ExifTags.Base.DateTime] == "2024:01:02 03:04:05"
        # Of XMP, Pillow takes it where EXIF has none.
        assert exif.get(ExifTags.Base.Orientation, 1) == 1
        inner = exif.get_ifd(ExifTags.IFD.Exif)
        assert inner[ExifTags.Base.ExposureTime] == 0.25
        assert inner[ExifTags.Base.UserComment] == b"ASCII\0\0\0as it was"
        assert ExifTags.Base.ExifImageWidth not in inner
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)[2] == (52.0, 30.0, 1.5)
    # A second time, nothing moves.
    again = image_files.read_picture(str(path))
    assert again.exif == found.exif and again.icc_profile == SRGB


def test_an_orientation_of_xmp_is_applied_where_exif_has_none():
    values = noise(3, np.uint8)
    for number in range(1, 9):
        data = saved(Image.fromarray(values), "WEBP", lossless=True, xmp=XMP % number)
        found = image_files.decode_picture(data)
        np.testing.assert_array_equal(found.pixels, upright(values, number))
        assert found.metadata.xmp == XMP % 1
