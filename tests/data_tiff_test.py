"""Tests of sr3_jax.data.image_files.tiff; round trips are in data_image_files_writing_test."""

import io
import struct

import numpy as np
import pytest
import tifffile
from image_file_examples import noise, png
from PIL import ExifTags, Image

from sr3_jax.data import image_files
from sr3_jax.data.image_files import tiff


def test_maker_notes_stay_and_the_thumbnail_goes():
    """The block is as cameras write it, with notes that hold offsets into it."""
    note, thumbnail = b"NOTE" * 9, b"\xff\xd8THUMBNAIL\xff\xd9"
    place = 8 + 2 + 2 * 12 + 4
    block = b"II*\0" + struct.pack("<I", 8)
    block += struct.pack("<HHHIIHHIII", 2, 274, 3, 1, 6, 34665, 4, 1, place, place + 60)
    block += struct.pack("<HHHIII", 1, 37500, 7, len(note), place + 18, 0) + note + bytes(6)
    second = struct.pack("<HHHIIHHIII", 2, 513, 4, 1, place + 90, 514, 4, 1, len(thumbnail), 0)
    block += second + thumbnail
    kept = tiff.clean_exif(tiff.EXIF_PREFIX + block)
    assert b"THUMB" not in kept
    assert kept.index(note) - len(tiff.EXIF_PREFIX) == block.index(note)
    exif = Image.Exif()
    exif.load(kept)
    assert exif.get_ifd(ExifTags.IFD.Exif)[37500] == note
    assert 274 not in exif and not exif.get_ifd(ExifTags.IFD.IFD1)
    assert tiff.clean_exif(kept) == kept


@pytest.mark.parametrize("pointer", [8, 9, 2**31])
def test_damaged_exif_is_left_out(pointer):
    block = b"MM\0*" + struct.pack(">IHHHIII", 8, 1, 34665, 4, 1, pointer, 0)
    for n in (*range(len(block) - 4), len(block)):
        with pytest.raises(ValueError, match="damaged EXIF"):
            tiff.clean_exif(block[:n])
    found = image_files.decode_picture(png(noise(3, np.uint16), (b"eXIf", block)))
    assert found.exif is None
    text = struct.pack("<4sIHHHIII", b"II*\0", 8, 1, 271, 2, 9, pointer + 18, 0)
    with pytest.raises(ValueError, match="damaged EXIF"):
        tiff.clean_exif(text)


def test_exif_that_would_explode_is_left_out():
    """Each of 40 directories points three times to the next: a copy would have 3**40."""
    block = b"II*\0" + struct.pack("<I", 8)
    for i in range(40):
        entries = [(tag, 4, 1, 8 + 42 * (i + 1)) for tag in (34665, 34853, 40965)]
        block += struct.pack("<H", 3) + b"".join(struct.pack("<HHII", *e) for e in entries)
        block += bytes(4)
    with pytest.raises(ValueError, match="damaged EXIF"):
        tiff.clean_exif(block + bytes(6))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_files_of_several_strips(dtype):
    values = noise(4, dtype, 601, 502)
    # EXIF with tags that say other things of the pixels.
    exif = Image.Exif()
    exif.update({258: 1, 259: 5, 271: "Make", 320: 7, 322: 16, 323: 16, 338: 0, 339: 3})
    data = tiff.encode(
        values,
        exif=exif.tobytes(),
        tags=[tiff.Value(tiff.ICC_PROFILE, "u", b"x" * 999)],
    )
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        [page] = file.pages
        ends = np.add(page.dataoffsets, page.databytecounts)
        assert len(ends) > 1 and list(ends[:-1]) == list(page.dataoffsets[1:])
        np.testing.assert_array_equal(page.asarray(), values)
        assert page.tags[271].value == "Make" and page.tags[34675].value == b"x" * 999
