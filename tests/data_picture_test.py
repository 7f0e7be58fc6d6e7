"""Tests of sr3_jax.data.picture, and of what sr3_jax.data.tiff writes."""

import dataclasses
import io
import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import pyvips
import scipy.spatial
import skimage.io
import tifffile
from etils import epath
from picture_files import exif_block, make, noise, png, png_values, saved, tiff_file
from PIL import ExifTags, Image, ImageCms, ImageOps

from sr3_jax.data import picture
from sr3_jax.data.picture import BadImageError, Picture, tiff

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# Only what says of which pixels it is differs; nothing here opens it.
GREY_PROFILE = SRGB[:16] + b"GRAY" + SRGB[20:]

CHANNELS = {"grey": 1, "grey_alpha": 2, "rgb": 3, "rgb_alpha": 4}
TYPES = [np.uint8, np.uint16]


def _assert_same(found: Picture, expected: Picture) -> None:
    for field in dataclasses.fields(Picture):
        a, b = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(b, np.ndarray):
            assert a.dtype == b.dtype, field.name
            np.testing.assert_array_equal(a, b, field.name)
        else:
            assert a == b, field.name


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", CHANNELS.values(), ids=CHANNELS)
@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF", ".bmp"])
def test_round_trips_keep_every_bit(tmp_path, suffix, channels, dtype):
    profile = SRGB if channels > 2 else GREY_PROFILE
    for little in (False, True):
        before = make(channels, dtype, icc_profile=profile, exif=exif_block(little))
        before = dataclasses.replace(before, exif=tiff.clean_exif(before.exif))
        path = epath.Path(tmp_path / f"a{suffix}")
        if suffix == ".bmp":
            before = dataclasses.replace(before, icc_profile=None, exif=None)
            if dtype == np.uint16 or channels % 2 == 0:
                with pytest.raises(ValueError, match=r"a\.bmp: BMP cannot hold .*\.png"):
                    picture.write_picture(before, path)
                assert not list(tmp_path.iterdir())
                continue
        assert picture.write_picture(before, path) == path
        _assert_same(picture.read_picture(str(path)), before)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", CHANNELS.values(), ids=CHANNELS)
def test_what_is_written_is_read_alike_by_others(tmp_path, channels, dtype):
    before = make(channels, dtype, exif=exif_block())
    values = np.squeeze(noise(channels, dtype))
    for suffix in (".png", ".tif"):
        path = picture.write_picture(before, epath.Path(tmp_path / f"a{suffix}"))
        by_vips = pyvips.Image.new_from_file(str(path), fail_on="warning")
        np.testing.assert_array_equal(np.squeeze(by_vips.numpy()), values)
        if suffix == ".png" and dtype == np.uint16:  # scikit-image makes 8 bits of RGB
            found = np.squeeze(png_values(path.read_bytes()))
        else:
            found = skimage.io.imread(str(path))
        np.testing.assert_array_equal(found, values)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert len(file.pages) == 1
        np.testing.assert_array_equal(file.pages[0].asarray(), values)
        assert file.pages[0].tags["ExifTag"].value["ExposureTime"] in (0.25, (1, 4))
        assert tuple(file.pages[0].extrasamples) == (() if channels % 2 else (2,))


@pytest.mark.parametrize("channels", CHANNELS.values(), ids=CHANNELS)
def test_16_bit_files_of_others(channels):
    values = noise(channels, np.uint16, 40, 33)
    expected = np.repeat(values[..., :1], 3, axis=2) if channels < 3 else values[..., :3]
    files = {"png": png(values)}
    for order, tile in itertools.product("<>", (None, (16, 16))):
        files[f"tiff {order} {tile}"] = tiff_file(values, byteorder=order, tile=tile)
    files["big"] = tiff_file(values, byteorder="<", bigtiff=True)
    files["deflate"] = tiff_file(values, compression="zlib", predictor=True)
    image = pyvips.Image.new_from_array(values)
    image = image.copy(interpretation="rgb16" if channels > 2 else "grey16")
    files["interlaced"] = image.pngsave_buffer(interlace=True, bitdepth=16)
    files["lzw"] = image.tiffsave_buffer(compression="lzw", predictor="horizontal")
    if channels == 3:
        file = io.BytesIO()
        planes = np.moveaxis(values, -1, 0)
        tifffile.imwrite(file, planes, photometric="rgb", planarconfig="separate")
        files["planes"] = file.getvalue()
    if channels == 1:
        files["white is 0"] = tiff_file(65535 - values, photometric="miniswhite")
    for name, data in files.items():
        found = picture.decode_picture(data)
        np.testing.assert_array_equal(found.pixels, expected, name)
        assert found.pixels.dtype == np.uint16 and found.is_grey == (channels < 3)
        if channels % 2 == 0:
            np.testing.assert_array_equal(found.alpha, values[..., -1], name)
        else:
            assert found.alpha is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_and_gone(tmp_path, orientation):
    exif = exif_block(Orientation=orientation)
    eight = noise(3, np.uint8)
    upright = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(saved(
        Image.fromarray(eight), exif=exif
    )))))  # fmt: skip
    sixteen = eight.astype(np.uint16) * 256 + 7
    grey = np.ascontiguousarray(sixteen[..., :1])
    expected = upright.astype(np.uint16) * 256 + 7
    files = {
        "png": (saved(Image.fromarray(eight), exif=exif), upright),
        "tiff": (saved(Image.fromarray(eight), "TIFF", exif=exif), upright),
        "webp": (
            saved(Image.fromarray(eight), "WEBP", exif=exif, lossless=True),
            upright,
        ),
        "png 16": (png(sixteen, (b"eXIf", exif[6:])), expected),
        "tiff 16": (
            tiff_file(sixteen, extratags=[(274, 3, 1, orientation, True)]),
            expected,
        ),
        "grey 16": (
            tiff_file(grey, extratags=[(274, 3, 1, orientation, True)]),
            expected[..., :1],
        ),
    }
    for name, (data, pixels) in files.items():
        found = picture.decode_picture(data)
        np.testing.assert_array_equal(found.pixels, np.broadcast_to(pixels, found.pixels.shape))
        path = picture.write_picture(found, epath.Path(tmp_path / f"{name}.png"))
        with Image.open(path) as file:
            assert ExifTags.Base.Orientation not in file.getexif()
        np.testing.assert_array_equal(picture.read_picture(str(path)).pixels, found.pixels)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.png", "a.tif"])
@pytest.mark.parametrize("little", [False, True])
def test_exif_and_profile_come_back(tmp_path, name, little):
    path = epath.Path(tmp_path / name)
    Image.fromarray(noise(3, np.uint8)).save(
        path, exif=exif_block(little, Orientation=6), icc_profile=SRGB
    )
    found = picture.read_picture(str(path))
    assert found.icc_profile == SRGB and found.pixels.shape == (14, 9, 3)
    picture.write_picture(found, path)
    with Image.open(path) as file:
        assert file.info["icc_profile"] == SRGB and file.size == (9, 14)
        exif = file.getexif()
        # Pillow itself writes no other letters than those of ASCII to a TIFF file.
        make = b"C??mera" if name == "a.tif" else "Cämera".encode()
        assert exif[ExifTags.Base.Make].encode("latin-1") == make
        assert exif[ExifTags.Base.DateTime] == "2024:01:02 03:04:05"
        assert ExifTags.Base.Orientation not in exif
        inner = exif.get_ifd(ExifTags.IFD.Exif)
        assert inner[ExifTags.Base.ExposureTime] == 0.25
        assert inner[ExifTags.Base.UserComment] == b"ASCII\0\0\0as it was"
        assert ExifTags.Base.ExifImageWidth not in inner
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)[2] == (52.0, 30.0, 1.5)
    # A second time, nothing moves.
    again = picture.read_picture(str(path))
    assert again.exif == found.exif and again.icc_profile == SRGB


def test_transparency_of_palettes_and_single_colours():
    palette = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3), "P")
    colours = np.arange(18, dtype=np.uint8).reshape(6, 3) * 9
    palette.putpalette(colours.tobytes())
    found = picture.decode_picture(saved(palette, transparency=bytes([0, 128, 255])))
    np.testing.assert_array_equal(found.pixels, colours.reshape(2, 3, 3))
    np.testing.assert_array_equal(found.alpha, [[0, 128, 255], [255, 255, 255]])
    assert not found.is_grey
    assert picture.decode_picture(saved(palette)).alpha is None
    for depth in (1, 2, 4, 8, 16):
        top = 2**depth - 1
        levels = np.arange(16).reshape(2, 8, 1) % (top + 1)
        found = picture.decode_picture(png(levels, (b"tRNS", b"\0\1"), depth=depth))
        white = np.iinfo(found.pixels.dtype).max
        np.testing.assert_array_equal(found.pixels[..., 1:2], levels * (white // top))
        np.testing.assert_array_equal(found.alpha, np.where(levels[..., 0] == 1, 0, white))
        assert found.is_grey
    values = noise(3, np.uint16)
    found = picture.decode_picture(png(values, (b"tRNS", values[4, 5].astype(">u2").tobytes())))
    assert found.alpha[4, 5] == 0 and (found.alpha == 0).sum() == 1


def test_opaque_alpha_is_kept():
    values = noise(4, np.uint8)
    values[..., 3] = 255
    assert (picture.decode_picture(saved(Image.fromarray(values))).alpha == 255).all()


def test_profiles_of_other_pixels_are_left_out():
    grey = Image.fromarray(noise(1, np.uint8)[..., 0])
    assert picture.decode_picture(saved(grey, icc_profile=SRGB)).icc_profile is None
    assert picture.decode_picture(saved(grey, icc_profile=GREY_PROFILE)).icc_profile
    rgb = Image.fromarray(noise(3, np.uint8))
    assert picture.decode_picture(saved(rgb, icc_profile=GREY_PROFILE)).icc_profile is None


def test_cmyk_becomes_srgb_by_its_profile():
    # Smooth, since JPEG is lossy; and colours that inks have.
    y, x = np.mgrid[:64, :64]
    rgb = np.stack([80 + y, 90 + x, 120 + (x + y) // 2], axis=-1).astype(np.uint8)
    cmyk = pyvips.Image.new_from_array(rgb).icc_export(output_profile="cmyk")
    data = cmyk.jpegsave_buffer(Q=98)
    found = picture.decode_picture(data)
    assert found.icc_profile is None and not found.is_grey and found.alpha is None
    assert np.abs(found.pixels.astype(int) - rgb).mean() < 4
    # Without it the same inks are other colours, by the plain formula as `decode` has them.
    plain = Image.open(io.BytesIO(data))
    plain = saved(plain, "TIFF", icc_profile=None)
    found = picture.decode_picture(plain)
    np.testing.assert_array_equal(found.pixels, picture.decode_rgb(plain))
    assert np.abs(found.pixels.astype(int) - rgb).mean() > 10
    # So it is with a damaged one.
    damaged = Image.open(io.BytesIO(data))
    profile = damaged.info["icc_profile"][:300]
    damaged = picture.decode_picture(saved(damaged, "TIFF", icc_profile=profile))
    np.testing.assert_array_equal(damaged.pixels, found.pixels)


def _files() -> dict[str, bytes]:
    eight, sixteen = (
        noise(3, np.uint8, 40, 40),
        noise(4, np.uint16, 40, 40),
    )
    image = Image.fromarray(eight)
    files = {kind: saved(image, kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")}
    files |= {
        "PNG 16": png(sixteen),
        "TIFF 16": tiff_file(sixteen, rowsperstrip=4),
    }
    own = Picture(sixteen[..., :3], sixteen[..., 3])
    files["own"] = tiff.encode(
        np.dstack([own.pixels, own.alpha]),
        is_grey=False,
        has_alpha=True,
        exif=exif_block(),
        tags=[tiff.Value(tiff.ICC_PROFILE, "u", SRGB)],
    )
    return files


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize(("name", "data"), _files().items(), ids=_files())
def test_truncated_files_are_refused(tmp_path, name, data):
    picture.decode_picture(data)
    for quarter in range(4):
        path = tmp_path / "a.png"
        path.write_bytes(data[: len(data) * quarter // 4])
        with pytest.raises(BadImageError):
            picture.read_picture(str(path))


def test_what_is_refused(tmp_path, monkeypatch):
    with pytest.raises(BadImageError, match="no such file"):
        picture.read_picture(str(tmp_path / "none.png"))
    with pytest.raises(BadImageError, match="not a JPEG"):
        picture.decode_picture(b"text" * 9)
    frames = [Image.fromarray(noise(3, np.uint8)), Image.new("RGB", (14, 9))]
    for kind in ("GIF", "PNG", "WEBP"):
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        with pytest.raises(BadImageError, match="animation of 2 frames"):
            picture.decode_picture(data)
    for dtype in (np.float16, np.float32):
        for channels in (1, 3):
            data = tiff_file(noise(channels, np.uint8).astype(dtype))
            with pytest.raises(BadImageError, match="floating-point"):
                picture.decode_picture(data)
    # Of a TIFF file with several pages, the first is meant.
    pages = saved(frames[0], "TIFF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(picture.decode_picture(pages).pixels, make(3, np.uint8).pixels)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    for data in (
        png(noise(3, np.uint16)),
        tiff_file(noise(3, np.uint16)),
        saved(frames[0]),
    ):
        with pytest.raises(BadImageError, match="MAX_IMAGE_PIXELS"):
            picture.decode_picture(data)


def test_names_of_outputs(tmp_path):
    names = {"a.gif": "a.gif.png", "b.JPEG": "b.JPEG", "c.avif": "c.avif.png", "d": "d.png"}
    for name, expected in names.items():
        path = epath.Path(tmp_path / name)
        written = picture.write_picture(make(3, np.uint8), path)
        assert written == picture.output_path(path) == epath.Path(tmp_path / expected)
    assert sorted(os.listdir(tmp_path)) == sorted(names.values())
    with Image.open(tmp_path / "b.JPEG") as file:
        assert file.format == "JPEG" and file.layer[0][1:3] == (1, 1)
    single = picture.decode_picture(saved(Image.fromarray(noise(3, np.uint8)), "GIF"))
    picture.write_picture(single, epath.Path(tmp_path / "a.gif"))
    np.testing.assert_array_equal(
        picture.read_picture(str(tmp_path / "a.gif.png")).pixels, single.pixels
    )


def test_what_a_format_cannot_hold_is_not_written(tmp_path):
    rgb, grey = make(3, np.uint8), make(1, np.uint8)
    coloured = dataclasses.replace(rgb, is_grey=True)
    wide = Picture(np.zeros((1, 16384, 3), np.uint8))
    cases = [
        (make(3, np.uint16), "a.jpg", "JPEG cannot hold 16 bits a channel"),
        (make(1, np.uint16), "a.webp", "WEBP cannot hold 16 bits"),
        (make(4, np.uint8), "a.jpeg", "JPEG cannot hold transparency"),
        (dataclasses.replace(rgb, icc_profile=SRGB), "a.bmp", "BMP cannot hold a colour profile"),
        (
            dataclasses.replace(rgb, exif=exif_block()),
            "a.bmp",
            "BMP cannot hold EXIF",
        ),
        (
            dataclasses.replace(rgb, icc_profile=GREY_PROFILE),
            "a.png",
            "for b'GRAY' and does not fit",
        ),
        (
            dataclasses.replace(grey, icc_profile=GREY_PROFILE),
            "a.webp",
            "for b'GRAY' and does not fit",
        ),
        (coloured, "a.png", "channels differ"),
        (wide, "a.webp", "WEBP cannot hold 16384x1 pixels"),
    ]
    for content, name, message in cases:
        with pytest.raises(ValueError, match=message):
            picture.write_picture(content, epath.Path(tmp_path / name))
    picture.check_writable(rgb, epath.Path("a.webp"), scale=8)
    with pytest.raises(ValueError, match="28000x18000 pixels"):
        picture.check_writable(rgb, epath.Path("a.webp"), scale=2000)
    with pytest.raises(ValueError, match="alpha is uint8 and pixels are uint16"):
        Picture(make(3, np.uint16).pixels, make(4, np.uint8).alpha)
    (tmp_path / "folder").write_bytes(b"a file")
    with pytest.raises(OSError):
        picture.write_picture(rgb, epath.Path(tmp_path / "folder" / "a.png"))
    assert os.listdir(tmp_path) == ["folder"]


def test_lossy_formats_are_close(tmp_path):
    y, x = np.mgrid[:40, :50]
    pixels = np.stack([4 * y, 5 * x, 100 + y + x], axis=-1).astype(np.uint8)
    for name in ("a.jpg", "a.webp"):
        path = picture.write_picture(Picture(pixels), epath.Path(tmp_path / name))
        found = picture.read_picture(str(path))
        assert np.abs(found.pixels.astype(int) - pixels).mean() < 3 and found.alpha is None
        assert not found.is_grey
    grey = Picture(np.repeat(pixels[..., :1], 3, axis=2), is_grey=True)
    path = picture.write_picture(grey, epath.Path(tmp_path / "b.jpg"))
    assert picture.read_picture(str(path)).is_grey
    alpha = Picture(pixels, alpha=pixels[..., 2])
    path = picture.write_picture(alpha, epath.Path(tmp_path / "b.webp"))
    np.testing.assert_array_equal(picture.read_picture(str(path)).alpha, alpha.alpha)


@pytest.mark.parametrize("dtype", TYPES)
def test_hidden_colours_are_those_of_the_nearest_visible(dtype):
    before = make(4, dtype)
    alpha = np.where(np.random.default_rng(0).random(before.alpha.shape) < 0.8, 0, before.alpha)
    alpha[0, :3] = 1  # hardly visible
    before = dataclasses.replace(before, alpha=alpha.astype(dtype))
    filled = picture.fill_transparent(before)
    visible = np.argwhere(alpha > 0)
    np.testing.assert_array_equal(filled[alpha > 0], before.pixels[alpha > 0])
    for place in np.argwhere(alpha == 0):
        distances = scipy.spatial.distance.cdist([place], visible)[0]
        nearest = visible[distances <= distances.min() + 1e-9]
        assert (filled[tuple(place)] == before.pixels[tuple(nearest.T)]).all(axis=1).any()
    for same in (np.zeros_like(before.alpha), np.ones_like(before.alpha), None):
        unchanged = dataclasses.replace(before, alpha=same)
        np.testing.assert_array_equal(picture.fill_transparent(unchanged), before.pixels)


def test_8_bits_need_no_pyvips():
    """It is absent in a process of its own, where 16 bits say what to install."""
    code = f"""
import io, sys
sys.modules["pyvips"] = None
from sr3_jax.data import picture
assert picture.decode_picture({saved(Image.new("RGB", (2, 2)))!r}).alpha is None
picture.decode_picture({png(np.zeros((2, 2, 3)))!r})
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "BadImageError: 16-bit pictures need pyvips" in result.stderr
    assert "pip install 'pyvips[binary]'" in result.stderr
