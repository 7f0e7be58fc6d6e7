"""Tests of writing by sr3_jax.data.image_files."""

import dataclasses
import itertools
import os

import numpy as np
import pytest
import pyvips
import scipy.spatial
import skimage.io
import tifffile
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
    png_values,
    saved,
)
from PIL import Image, PngImagePlugin

from sr3_jax.data import image_files
from sr3_jax.data.image_files import BadImageError, Picture, tiff

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
        exif = tiff.clean_exif(exif_block(little))
        before = make(channels, dtype, icc_profile=profile, exif=exif, is_lossless=True)
        path = epath.Path(tmp_path / f"a{suffix}")
        if suffix == ".bmp":
            before = dataclasses.replace(before, icc_profile=None, exif=None)
            if dtype == np.uint16 or channels % 2 == 0:
                with pytest.raises(ValueError, match=r"a\.bmp: BMP cannot hold .*\.png"):
                    image_files.write_picture(before, path)
                assert not list(tmp_path.iterdir())
                continue
        assert image_files.write_picture(before, path) == path
        _assert_same(image_files.read_picture(str(path)), before)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", CHANNELS.values(), ids=CHANNELS)
def test_what_is_written_is_read_alike_by_others(tmp_path, channels, dtype):
    before = make(channels, dtype, exif=exif_block(), metadata=metadata())
    values = np.squeeze(noise(channels, dtype))
    for suffix in (".png", ".tif"):
        path = image_files.write_picture(before, epath.Path(tmp_path / f"a{suffix}"))
        by_vips = pyvips.Image.new_from_file(str(path), fail_on="warning")
        np.testing.assert_array_equal(np.squeeze(by_vips.numpy()), values)
        assert by_vips.get("xmp-data") == XMP % 1
        assert (by_vips.xres * 25.4, by_vips.yres * 25.4) == pytest.approx((300, 240), abs=0.01)
        if suffix == ".png" and dtype == np.uint16:  # scikit-image makes 8 bits of RGB
            found = np.squeeze(png_values(path.read_bytes()))
        else:
            found = skimage.io.imread(str(path))
        np.testing.assert_array_equal(found, values)
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert len(file.pages) == 1
        page = file.pages[0]
        np.testing.assert_array_equal(page.asarray(), values)
        assert page.tags["ExifTag"].value["ExposureTime"] in (0.25, (1, 4))
        assert tuple(page.extrasamples) == (() if channels % 2 else (2,))
        assert page.tags[33723].value == IPTC
        assert file.geotiff_metadata["ModelPixelScale"] == [10, 10, 0]


def test_lossless_files_stay_so(tmp_path):
    pixels = noise(4, np.uint8, 20, 30)
    for options, is_lossless in (
        ({"lossless": True, "exact": True}, True),
        ({"quality": 90}, False),
    ):
        for exif in (None, exif_block()):  # with it, the pixels are one chunk of several
            data = saved(
                Image.fromarray(pixels), "WEBP", **options | ({"exif": exif} if exif else {})
            )
            found = image_files.decode_picture(data)
            assert found.is_lossless == is_lossless
            path = image_files.write_picture(found, epath.Path(tmp_path / "a.webp"))
            again = image_files.read_picture(str(path))
            assert again.is_lossless == is_lossless
            same = (again.pixels == found.pixels).all()
            assert same == is_lossless
    # So does a PNG that becomes a WebP, unless a quality is asked for.
    found = image_files.decode_picture(saved(Image.fromarray(pixels)))
    for quality, is_lossless in ((None, True), ("lossless", True), (95, False)):
        path = epath.Path(tmp_path / "b.png")
        path = image_files.write_picture(found, path, format="webp", quality=quality)
        assert path.name == "b.png.webp"
        assert image_files.read_picture(str(path)).is_lossless == is_lossless


def test_formats_and_qualities(tmp_path):
    y, x = np.mgrid[:40, :50]
    pixels = np.stack([4 * y, 5 * x, 100 + y + x], axis=-1).astype(np.uint8)
    starts = {
        "png": b"\x89PNG",
        "jpeg": b"\xff\xd8",
        "webp": b"RIFF",
        "tiff": b"II*\0",
        "avif": b"\0\0\0",
    }
    for kind, start in starts.items():
        for name in ("a.jpg", "b.heic", f"c.{kind}"):
            path = epath.Path(tmp_path / name)
            written = image_files.write_picture(Picture(pixels), path, format=kind)
            assert written == image_files.output_path(path, kind)
            assert (written == path) == (name[0] == "c" or (kind, name[0]) == ("jpeg", "a"))
            assert written.read_bytes().startswith(start)
            found = image_files.read_picture(str(written)).pixels
            assert np.abs(found.astype(int) - pixels).mean() < 3
    noisy = make(3, np.uint8)
    for kind in ("jpeg", "webp", "avif"):
        errors, sizes = [], []
        for quality in (1, 50, 100):
            path = epath.Path(tmp_path / "q.tif")
            path = image_files.write_picture(noisy, path, format=kind, quality=quality)
            found = image_files.read_picture(str(path)).pixels
            errors.append(np.abs(found.astype(int) - noisy.pixels).mean())
            sizes.append(path.stat().length)
        assert errors == sorted(errors, reverse=True) and len(set(errors)) == 3
        assert sizes == sorted(sizes)
    wrong = [
        ("gif", None, "format = 'gif'; give one of png, jpeg"),
        ("jpeg", 0, "quality = 0"),
        ("jpeg", 101, "quality = 101"),
        ("same", "best", "quality = 'best'"),
        ("jpeg", True, "quality = True"),
        ("jpeg", "lossless", "jpeg cannot be lossless"),
        ("avif", "lossless", "avif cannot be lossless"),
        ("png", 90, "png keeps every pixel"),
    ]
    for kind, quality, message in wrong:
        with pytest.raises(ValueError, match=message):
            image_files.check_format(kind, quality)
        with pytest.raises(ValueError, match=message):
            image_files.write_picture(
                noisy, epath.Path(tmp_path / "w.png"), format=kind, quality=quality
            )
    image_files.check_format(None, None)
    image_files.check_format("same", 90)
    with pytest.raises(ValueError, match="JPEG cannot hold every pixel"):
        image_files.check_writable(noisy, epath.Path("a.jpg"), quality="lossless")


def test_images_and_comments(tmp_path):
    for dtype, comment in itertools.product(TYPES, ("", '{"seconds": 1}', "ü and 漢")):
        image = noise(3, dtype)
        path = image_files.write_image(image, epath.Path(tmp_path / "a.png"), comment=comment)
        found, said = image_files.read_with_comment(str(path))
        assert found.dtype == dtype and said == comment
        np.testing.assert_array_equal(found, image)
        with Image.open(path) as file:
            file.load()
            assert file.info.get("Comment", "") == comment
        assert comment or image_files.encode_image(image) == path.read_bytes()
    # A comment that Pillow wrote, as older versions did.
    path = tmp_path / "b.png"
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("Comment", '{"a": 1}')
    Image.fromarray(noise(3, np.uint8)).save(path, pnginfo=chunks)
    assert image_files.read_with_comment(str(path))[1] == '{"a": 1}'
    path.write_bytes(png(noise(3, np.uint8), (b"zTXt", b"Comment\0\0no"), depth=8))
    with pytest.raises(BadImageError, match="comment cannot be read"):
        image_files.read_with_comment(str(path))


def test_names_of_outputs(tmp_path):
    names = {"a.gif": "a.gif.png", "b.JPEG": "b.JPEG", "c.heic": "c.heic.png", "d": "d.png"}
    for name, expected in names.items():
        path = epath.Path(tmp_path / name)
        written = image_files.write_picture(make(3, np.uint8), path)
        assert written == image_files.output_path(path) == epath.Path(tmp_path / expected)
    assert sorted(os.listdir(tmp_path)) == sorted(names.values())
    with Image.open(tmp_path / "b.JPEG") as file:
        assert file.format == "JPEG" and file.layer[0][1:3] == (1, 1)


def test_what_a_format_cannot_hold_is_not_written(tmp_path):
    rgb, grey = make(3, np.uint8), make(1, np.uint8)
    coloured = dataclasses.replace(rgb, is_grey=True)
    wide = Picture(np.zeros((1, 16384, 3), np.uint8))
    cases = [
        (make(3, np.uint16), "a.jpg", "JPEG cannot hold 16 bits a channel"),
        (make(1, np.uint16), "a.webp", "WEBP cannot hold 16 bits"),
        (make(3, np.uint16), "a.avif", "AVIF cannot hold 16 bits"),
        (make(4, np.uint8), "a.jpeg", "JPEG cannot hold transparency"),
        (dataclasses.replace(rgb, icc_profile=SRGB), "a.bmp", "BMP cannot hold a colour profile"),
        (
            dataclasses.replace(rgb, icc_profile=GREY_PROFILE),
            "a.png",
            "for b'GRAY' and does not fit",
        ),
        (
            dataclasses.replace(grey, icc_profile=GREY_PROFILE),
            "a.webp",
            "WEBP cannot hold a colour profile of grey",
        ),
        (coloured, "a.png", "channels differ"),
        (wide, "a.webp", "WEBP cannot hold 16384x1 pixels"),
    ]
    for content, name, message in cases:
        with pytest.raises(ValueError, match=message):
            image_files.write_picture(content, epath.Path(tmp_path / name))
    image_files.check_writable(rgb, epath.Path("a.webp"), scale=8)
    with pytest.raises(ValueError, match="28000x18000 pixels"):
        image_files.check_writable(rgb, epath.Path("a.webp"), scale=2000)
    with pytest.raises(ValueError, match="alpha is uint8 and pixels are uint16"):
        Picture(make(3, np.uint16).pixels, make(4, np.uint8).alpha)
    (tmp_path / "folder").write_bytes(b"a file")
    with pytest.raises(OSError):
        image_files.write_picture(rgb, epath.Path(tmp_path / "folder" / "a.png"))
    assert os.listdir(tmp_path) == ["folder"]


def test_grey_and_alpha_of_lossy_formats(tmp_path):
    y, x = np.mgrid[:40, :50]
    pixels = np.stack([4 * y, 5 * x, 100 + y + x], axis=-1).astype(np.uint8)
    grey = Picture(np.repeat(pixels[..., :1], 3, axis=2), is_grey=True)
    path = image_files.write_picture(grey, epath.Path(tmp_path / "b.jpg"))
    assert image_files.read_picture(str(path)).is_grey
    alpha = Picture(pixels, alpha=pixels[..., 2])
    path = image_files.write_picture(alpha, epath.Path(tmp_path / "b.webp"))
    np.testing.assert_array_equal(image_files.read_picture(str(path)).alpha, alpha.alpha)
    path = image_files.write_picture(alpha, epath.Path(tmp_path / "b.avif"))
    found = image_files.read_picture(str(path)).alpha
    assert np.abs(found.astype(int) - alpha.alpha).mean() < 3


@pytest.mark.parametrize("dtype", TYPES)
def test_hidden_colours_are_those_of_the_nearest_visible(dtype):
    before = make(4, dtype)
    alpha = np.where(np.random.default_rng(0).random(before.alpha.shape) < 0.8, 0, before.alpha)
    alpha[0, :3] = 1  # hardly visible
    before = dataclasses.replace(before, alpha=alpha.astype(dtype))
    filled = image_files.fill_transparent(before)
    visible = np.argwhere(alpha > 0)
    np.testing.assert_array_equal(filled[alpha > 0], before.pixels[alpha > 0])
    for place in np.argwhere(alpha == 0):
        distances = scipy.spatial.distance.cdist([place], visible)[0]
        nearest = visible[distances <= distances.min() + 1e-9]
        assert (filled[tuple(place)] == before.pixels[tuple(nearest.T)]).all(axis=1).any()
    for same in (np.zeros_like(before.alpha), np.ones_like(before.alpha), None):
        unchanged = dataclasses.replace(before, alpha=same)
        np.testing.assert_array_equal(image_files.fill_transparent(unchanged), before.pixels)
