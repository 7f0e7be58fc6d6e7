"""Tests of refused files in sr3_jax.data.image_files, and of the memory that decoding takes."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pillow_heif
import pytest
import tifffile
from image_file_examples import SRGB, exif_block, noise, png, read_by_every_path, saved, tiff_file
from PIL import Image

from sr3_jax.data import image_files
from sr3_jax.data.image_files import BadImageError


def _refused() -> dict[str, tuple[bytes, str]]:
    rgb, deep = noise(3, np.uint8), noise(4, np.uint16)
    first, second = Image.fromarray(rgb), Image.new("RGB", (14, 9))
    several = {"save_all": True, "append_images": [second, Image.new("RGB", (14, 9), "red")]}
    heic = io.BytesIO()
    file = pillow_heif.from_pillow(first)
    file.add_from_pillow(second)
    file.save(heic)
    five = np.dstack([deep, deep[..., :1]])
    unknown = {"extrasamples": ["unspecified"]}
    lab = io.BytesIO()
    tifffile.imwrite(lab, rgb, photometric="cielab")
    return {
        "pages.tif": (saved(first, "TIFF", **several), "3 pages.*one picture.*save each page"),
        "frames.gif": (saved(first, "GIF", save_all=True, append_images=[second]), "2 frames"),
        "frames.png": (saved(first, "PNG", **several), "animation of 3 frames"),
        "frames.webp": (saved(first, "WEBP", **several), "animation of 3 frames"),
        "frames.avif": (saved(first, "AVIF", **several), "animation of 3 frames"),
        "pictures.heic": (heic.getvalue(), "2 pictures in one file"),
        "infrared 8.tif": (tiff_file(noise(4, np.uint8), **unknown), "4 bands.*networks take 3"),
        "infrared 16.tif": (tiff_file(deep, **unknown), "4 bands .RGB and 1 of no stated meaning"),
        "grey and more.tif": (tiff_file(noise(2, np.uint8), **unknown), "2 bands .grey and 1"),
        "five.tif": (tiff_file(five, extrasamples=["unassalpha", "unspecified"]), "5 bands"),
        "lab.tif": (lab.getvalue(), "CIE Lab"),
        "half.tif": (tiff_file(rgb.astype(np.float16)), "floating-point"),
        "single.tif": (tiff_file(noise(1, np.uint8).astype(np.float32)), "floating-point"),
        "above.tif": (tiff_file(np.full((4, 4, 1), 70000, np.uint32)), "70000; at most 16 bits"),
        "below.tif": (tiff_file(np.full((4, 4, 1), -1, np.int16)), "from -1 to -1"),
        "signed.tif": (tiff_file(np.ones((4, 4, 1), np.int8)), "signed 8-bit"),
        "empty.png": (b"", "empty file"),
        "text.jpg": (b"Hello, I am a text file.", "not a JPEG, PNG"),
        "header.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64), "cannot be decoded"),
        "nothing.tif": (b"II*\0" + bytes(8), "no image in it"),
    }


def test_what_is_refused_is_refused_on_every_path_alike(tmp_path):
    refused = _refused()
    found = read_by_every_path(tmp_path, {name: data for name, (data, _) in refused.items()})
    for name, (_, message) in refused.items():
        reasons = set(map(str, found[name].values()))
        assert len(reasons) == 1, f"{name}: {reasons}"
        with pytest.raises(BadImageError, match=message):
            raise BadImageError(reasons.pop())
    with pytest.raises(BadImageError, match="no such file"):
        image_files.read_picture(str(tmp_path / "none.png"))
    with pytest.raises(BadImageError, match="no such file"):
        image_files.read_rgb(str(tmp_path / "none.png"))


def test_smaller_versions_of_a_picture_are_no_pages():
    file, values = io.BytesIO(), noise(3, np.uint8, 32, 32)
    with tifffile.TiffWriter(file) as writer:
        writer.write(values, photometric="rgb")
        writer.write(values[::2, ::2], photometric="rgb", subfiletype=1)
    found = image_files.decode_picture(file.getvalue())
    np.testing.assert_array_equal(found.pixels, values)
    assert found.notes == ("smaller versions or masks in the file",)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIC"])
def test_truncated_files_are_refused(kind):
    deep = noise(4, np.uint16, 40, 40)
    image = Image.fromarray(noise(3, np.uint8, 40, 40))
    if kind == "HEIC":
        file = io.BytesIO()
        pillow_heif.from_pillow(image).save(file)
        files = [file.getvalue()]
    else:
        files = [saved(image, kind, exif=exif_block(), icc_profile=SRGB)]
    files += {"PNG": [png(deep)], "TIFF": [tiff_file(deep, rowsperstrip=4)]}.get(kind, [])
    for data in files:
        image_files.decode_picture(data)
        for tenths in range(10):
            with pytest.raises(BadImageError) as info:
                image_files.decode_picture(data[: len(data) * tenths // 10])
            assert len(str(info.value)) < 250 and "\n" not in str(info.value)


def test_the_limit_on_pixels_is_of_the_environment(monkeypatch):
    files = [
        *(saved(Image.fromarray(noise(3, np.uint8)), kind) for kind in ("PNG", "JPEG", "GIF")),
        png(noise(3, np.uint16)),
        tiff_file(noise(3, np.uint16)),
    ]
    monkeypatch.setenv("SR3_MAX_MEGAPIXELS", "0.0001")
    for data in files:
        with pytest.raises(BadImageError, match="14x9 pixels .* limit is .*SR3_MAX_MEGAPIXELS"):
            image_files.decode_rgb(data)
        with pytest.raises(BadImageError, match="SR3_MAX_MEGAPIXELS"):
            image_files.open_file(data)
    monkeypatch.setenv("SR3_MAX_MEGAPIXELS", "1")
    for data in files:
        image_files.decode_rgb(data)
    for wrong in ("many", "-1", "nan", "inf"):
        monkeypatch.setenv("SR3_MAX_MEGAPIXELS", wrong)
        # No fault of the picture, so it does not count as damaged.
        with pytest.raises(ValueError, match=f"SR3_MAX_MEGAPIXELS='{wrong}'") as info:
            image_files.decode_rgb(files[0])
        assert not isinstance(info.value, BadImageError)
    monkeypatch.delenv("SR3_MAX_MEGAPIXELS")
    # Refused by the header alone: there are no pixels in it.
    huge = png(noise(1, np.uint8), depth=8)
    header = struct.pack(">II", 60000, 60000) + huge[24:29]
    huge = huge[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + huge[33:]
    with pytest.raises(BadImageError, match="3600.0 megapixels"):
        image_files.open_file(huge)
    with pytest.raises(BadImageError, match="3600.0 megapixels"):
        image_files.decode_picture(huge)


def _peak(path) -> int:
    """Returns the bytes by which a process grows when it decodes a file in two ways."""
    code = f"""
import resource
from sr3_jax.data import image_files
image_files.decode_rgb({tiff_file(noise(3, np.uint16))!r})
with open({str(path)!r}, "rb") as file:
    data = file.read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image_files.decode_picture(data)
image_files.decode_rgb(data)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    return int(subprocess.check_output([sys.executable, "-c", code], text=True))


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux alone")
@pytest.mark.parametrize("kind", ["grey.tif", "rgba.png", "rgb.jpg", "bomb.png"])
def test_decoding_takes_no_more_than_three_times_the_picture(tmp_path, kind):
    path = tmp_path / kind
    if kind == "grey.tif":
        path.write_bytes(tiff_file(np.zeros((5000, 5000, 1), np.uint16), compression="zlib"))
        most = 3 * 5000**2 * 2
    elif kind == "rgba.png":
        path.write_bytes(png(np.zeros((2500, 2500, 4), np.uint16)))
        most = 3 * 2500**2 * 8
    elif kind == "rgb.jpg":
        Image.new("RGB", (5000, 4000)).save(path)
        most = 3 * 5000 * 4000 * 3
    else:  # texts and a profile that are a gigabyte once they are decompressed
        bomb = zlib.compressobj(9)
        packed = b"".join(bomb.compress(bytes(2**24)) for _ in range(16)) + bomb.flush()
        chunks = [
            (b"zTXt", b"Raw profile type exif\0\0" + packed),
            (b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + packed),
            (b"zTXt", b"Title\0\0" + packed),
            (b"iCCP", b"ICC\0\0" + packed),
        ]
        path.write_bytes(png(noise(3, np.uint8), *chunks, depth=8))
        most = 64 << 20
        notes = image_files.read_picture(str(path)).notes
        assert len(notes) == 1 and "iCCP" in notes[0] and "XML:com.adobe.xmp" in notes[0]
    assert _peak(path) < most


def test_8_bits_need_no_pyvips():
    """In a process without it, 8 bits are read, and 16 bits say what to install."""
    code = f"""
import sys
sys.modules["pyvips"] = None
from sr3_jax.data import image_files
for data in {[saved(Image.new("RGB", (2, 2)), kind) for kind in ("PNG", "JPEG", "BMP", "GIF")]!r}:
    assert image_files.decode_picture(data).alpha is None
image_files.decode_picture({png(np.zeros((2, 2, 3)))!r})
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "BadImageError: such files need pyvips" in result.stderr
    assert "pip install 'pyvips[binary]'" in result.stderr
