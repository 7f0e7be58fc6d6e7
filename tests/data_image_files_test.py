"""Tests of reading by sr3_jax.data.image_files."""

import io
import itertools

import numpy as np
import pillow_heif
import pytest
import pyvips
import tifffile
from image_file_examples import (
    exif_block,
    levels_tiff,
    noise,
    png,
    read_by_every_path,
    saved,
    tiff_file,
    upright,
)
from PIL import Image

from sr3_jax.data import image_files

CHANNELS = (1, 2, 3, 4)
TYPES = (np.uint8, np.uint16)


def _tiffs() -> dict[str, tuple[bytes, np.ndarray]]:
    files = {}
    for channels, dtype, order, big in itertools.product(CHANNELS, TYPES, "<>", (False, True)):
        values = noise(channels, dtype, 20, 33)
        for layout in ({}, {"rowsperstrip": 4}, {"tile": (16, 16)}):
            for packed in ({}, {"compression": "zlib"}, {"compression": "zlib", "predictor": True}):
                options = layout | packed
                name = f"{channels} {dtype.__name__} {order} {big} {' '.join(map(str, options))}"
                data = tiff_file(values, byteorder=order, bigtiff=big, **options)
                files[f"{name} {layout.get('tile', '')}.tif"] = data, values
        if channels == 1:
            white = tiff_file(
                np.iinfo(dtype).max - values, byteorder=order, bigtiff=big, photometric="miniswhite"
            )
            files[f"white is 0 {dtype.__name__} {order} {big}.tif"] = white, values
        if channels == 3:
            planes = io.BytesIO()
            options = {"byteorder": order, "bigtiff": big, "photometric": "rgb"}
            tifffile.imwrite(planes, np.moveaxis(values, -1, 0), planarconfig="separate", **options)
            files[f"planes {dtype.__name__} {order} {big}.tif"] = planes.getvalue(), values
        if order == "<" and not big:
            image = pyvips.Image.new_from_array(values)
            lzw = image.tiffsave_buffer(compression="lzw", predictor="horizontal")
            files[f"lzw {channels} {dtype.__name__}.tiff"] = lzw, values
    for bits, white_is_zero, order in itertools.product((1, 2, 4, 8, 16), (False, True), "<>"):
        levels = np.random.default_rng(bits).integers(0, 2**bits, (8, 16))
        top = 255 if bits <= 8 else 65535
        shown = (2**bits - 1 - levels if white_is_zero else levels) * (top // (2**bits - 1))
        dtype = np.uint8 if bits <= 8 else np.uint16
        data = levels_tiff(levels, bits, white_is_zero, order)
        files[f"bits {bits} {white_is_zero} {order}.tif"] = data, shown[..., None].astype(dtype)
    # 32 bits and signed 16, of values that unsigned 16 bits hold.
    for kind in (np.uint32, np.int32, np.int16):
        values = np.random.default_rng(0).integers(0, 2**15, (9, 14, 1))
        files[f"{kind.__name__}.tif"] = tiff_file(values.astype(kind)), values.astype(np.uint16)
    return files


def _pngs() -> dict[str, tuple[bytes, np.ndarray]]:
    files = {}
    for channels, dtype in itertools.product(CHANNELS, TYPES):
        values, depth = noise(channels, dtype), 8 * np.dtype(dtype).itemsize
        files[f"{channels} {depth}.png"] = png(values, depth=depth), values
        image = pyvips.Image.new_from_array(values)
        grey, rgb = ("b-w", "srgb") if depth == 8 else ("grey16", "rgb16")
        image = image.copy(interpretation=rgb if channels > 2 else grey)
        files[f"interlaced {channels} {depth}.png"] = image.pngsave_buffer(interlace=True), values
    for depth in (1, 2, 4, 8, 16):
        levels = np.arange(16).reshape(2, 8, 1) % 2**depth
        dtype = np.uint8 if depth <= 8 else np.uint16
        white = np.iinfo(dtype).max
        shown = (levels * (white // (2**depth - 1))).astype(dtype)
        files[f"grey {depth}.png"] = png(levels, depth=depth), shown
        alpha = np.where(levels == 1, 0, white).astype(dtype)
        keyed = png(levels, (b"tRNS", b"\0\1"), depth=depth)
        files[f"grey with a transparent level {depth}.png"] = keyed, np.dstack([shown, alpha])
    values = noise(3, np.uint16)
    alpha = np.full(values.shape[:2], 65535, np.uint16)
    alpha[4, 5] = 0
    keyed = png(values, (b"tRNS", values[4, 5].astype(">u2").tobytes()))
    files["a transparent colour.png"] = keyed, np.dstack([values, alpha])
    return files


def _others() -> dict[str, tuple[bytes, np.ndarray]]:
    files = {}
    rgb, rgba, grey = (noise(channels, np.uint8) for channels in (3, 4, 1))
    for name, values in (("rgb", rgb), ("rgba", rgba)):
        image = Image.fromarray(values)
        files[f"{name}.webp"] = saved(image, "WEBP", lossless=True, exact=True), values
    files["rgb.bmp"] = saved(Image.fromarray(rgb), "BMP"), rgb
    files["rgb.dib"] = files["rgb.bmp"]
    files["grey.bmp"] = saved(Image.fromarray(grey[..., 0]), "BMP"), grey
    colours = np.arange(18, dtype=np.uint8).reshape(6, 3) * 9
    palette = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    palette = palette.convert("P")
    palette.putpalette(colours.tobytes())
    shown = colours.reshape(2, 3, 3)
    alpha = np.array([[0, 128, 255], [255, 255, 255]], np.uint8)
    for kind in ("PNG", "BMP", "TIFF", "GIF"):
        files[f"palette.{kind.lower()}"] = saved(palette, kind), shown
    transparent = saved(palette, "PNG", transparency=bytes([0, 128, 255]))
    files["transparent palette.png"] = transparent, np.dstack([shown, alpha])
    keyed = np.dstack([shown, np.where(np.arange(6).reshape(2, 3) == 2, 0, 255)])
    files["transparent.gif"] = saved(palette, "GIF", transparency=2), keyed.astype(np.uint8)
    black = np.where(noise(1, np.uint8) > 99, 255, 0).astype(np.uint8)
    for kind in ("PNG", "TIFF", "BMP", "GIF"):
        image = Image.fromarray(black[..., 0]).convert("1")
        files[f"black and white.{kind.lower()}"] = saved(image, kind), black
    # AVIF keeps every pixel, here, of 8, 10 and 12 bits.
    for bits in (8, 10, 12):
        values = np.random.default_rng(bits).integers(0, 2**bits, (64, 64, 3))
        dtype, interpretation = (np.uint8, "srgb") if bits == 8 else (np.uint16, "rgb16")
        image = pyvips.Image.new_from_array(np.uint16(values << (16 - bits)))
        image = (image >> 8).cast("uchar") if bits == 8 else image
        image = image.copy(interpretation=interpretation)
        data = image.heifsave_buffer(bitdepth=bits, lossless=True, compression="av1")
        # The largest value becomes the largest of 16 bits.
        shown = values if bits == 8 else np.rint(values * (65535 / (2**bits - 1)))
        files[f"{bits}.avif"] = data, shown.astype(dtype)
    return files


def _orientations() -> dict[str, tuple[bytes, np.ndarray]]:
    files = {}
    for number, channels, dtype in itertools.product(range(1, 9), CHANNELS, TYPES):
        values = noise(channels, dtype)
        exif = exif_block(Orientation=number)
        kind = f"{number} {channels} {dtype.__name__}"
        shown = upright(values, number)
        depth = 8 * np.dtype(dtype).itemsize
        files[f"{kind}.png"] = png(values, (b"eXIf", exif[6:]), depth=depth), shown
        tags = [(274, 3, 1, number, True)]
        files[f"{kind}.tif"] = tiff_file(values, extratags=tags), shown
        if dtype == np.uint8 and channels > 2:
            options = {"exif": exif, "lossless": True, "exact": True}
            files[f"{kind}.webp"] = saved(Image.fromarray(values), "WEBP", **options), shown
    return files


FILES = _tiffs() | _pngs() | _others() | _orientations()


def _over_white(values: np.ndarray) -> np.ndarray:
    """Composites 1 to 4 channels over white, in floating point."""
    colours = values[..., : 1 + 2 * (values.shape[2] > 2)].astype(np.float64)
    if values.shape[2] % 2 == 0:
        white = float(np.iinfo(values.dtype).max)
        share = values[..., -1:] / white
        colours = colours * share + white * (1 - share)
    return np.broadcast_to(np.rint(colours), (*values.shape[:2], 3))


def test_every_path_reads_the_same_pixels_which_are_those_of_the_file(tmp_path):
    assert len(FILES) > 400
    found = read_by_every_path(tmp_path, {name: data for name, (data, _) in FILES.items()})
    for name, (data, values) in FILES.items():
        expected = _over_white(values)
        for path, pixels in found[name].items():
            assert not isinstance(pixels, str), f"{name}, {path}: {pixels}"
            assert pixels.dtype == values.dtype, f"{name}, {path}"
            np.testing.assert_array_equal(pixels, expected, f"{name}, {path}")
        read = image_files.decode_picture(data)
        colours = values[..., : 1 + 2 * (values.shape[2] > 2)]
        np.testing.assert_array_equal(read.pixels, np.broadcast_to(colours, read.pixels.shape))
        assert (read.alpha is None) == (values.shape[2] % 2 == 1), name
        if read.alpha is not None:
            np.testing.assert_array_equal(read.alpha, values[..., -1], name)
        assert read.is_grey == (values.shape[2] < 3), name
        opened = image_files.open_file(data)
        assert opened.shape == values.shape and opened.bytes_decoded == values.nbytes, name


def test_what_others_read_in_tiff_files_is_what_is_read_here():
    """Pixels equal those of tifffile, which applies neither orientation nor WhiteIsZero."""
    for name, (data, _) in _tiffs().items():
        if name.startswith(("white", "lzw", "bits")):
            continue
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            stored = file.asarray()
        stored = np.moveaxis(stored, 0, -1) if name.startswith("planes") else stored
        colours = np.atleast_3d(stored)[..., : 1 + 2 * (stored.ndim == 3 and stored.shape[2] > 2)]
        pixels = image_files.decode_picture(data).pixels
        np.testing.assert_array_equal(pixels, np.broadcast_to(colours, pixels.shape), name)


@pytest.mark.parametrize("dtype", TYPES)
def test_colours_that_are_multiplied_by_alpha_are_divided_by_it(dtype):
    values = noise(4, dtype)
    values[..., 3] = np.maximum(values[..., 3], 1)
    share = values[..., 3:] / np.iinfo(dtype).max
    associated = values.copy()
    associated[..., :3] = np.rint(values[..., :3] * share)
    found = image_files.decode_picture(tiff_file(associated, extrasamples=["assocalpha"]))
    error = np.abs(found.pixels.astype(float) - values[..., :3])
    assert (error * share).max() <= 1.01
    np.testing.assert_array_equal(found.alpha, values[..., 3])


def test_lossy_files_are_as_libvips_and_pillow_heif_read_them():
    y, x = np.mgrid[:48, :64]
    smooth = np.stack([4 * y, 3 * x, 100 + y + x], axis=-1).astype(np.uint8)
    for options in ({}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}):
        for image in (Image.fromarray(smooth), Image.fromarray(smooth).convert("L")):
            data = saved(image, "JPEG", **options)
            by_vips = np.atleast_3d(pyvips.Image.jpegload_buffer(data).numpy())
            found = image_files.decode_rgb(data)
            np.testing.assert_array_equal(found, np.broadcast_to(by_vips, found.shape))
    for bits in (8, 10, 12):
        # libheif's ways from and to YUV leave what rounding makes, in levels of that depth.
        file, shift = io.BytesIO(), 16 - bits
        pillow_heif.options.SAVE_HDR_TO_12_BIT = bits == 12
        values = smooth if bits == 8 else smooth.astype(np.uint16) * 257
        heif = pillow_heif.from_bytes("RGB" if bits == 8 else "RGB;16", (64, 48), values.tobytes())
        heif.save(file, quality=-1, chroma=444)
        found = image_files.decode_picture(file.getvalue())
        assert found.pixels.dtype == values.dtype and found.alpha is None
        assert np.abs(found.pixels.astype(int) - values).max() <= (2 if bits == 8 else 4 << shift)
        opened = image_files.open_file(file.getvalue())
        assert opened.shape == (48, 64, 3) and opened.bytes_decoded == values.nbytes
    # These two store orientation in their own way beside EXIF's.
    for number in range(1, 9):
        options = {"exif": exif_block(Orientation=number)}
        file = io.BytesIO()
        pillow_heif.from_pillow(Image.fromarray(smooth)).save(
            file, quality=-1, chroma=444, **options
        )
        avif = saved(Image.fromarray(smooth), "AVIF", quality=100, subsampling="4:4:4", **options)
        for data in (file.getvalue(), avif):
            found, expected = image_files.decode_rgb(data), upright(smooth, number)
            assert found.shape == expected.shape
            assert np.abs(found.astype(int) - expected).max() <= 3


def test_cmyk_becomes_srgb_by_its_profile_on_every_path(tmp_path):
    # Smooth, since JPEG is lossy; and colours that inks have.
    y, x = np.mgrid[:64, :64]
    rgb = np.stack([80 + y, 90 + x, 120 + (x + y) // 2], axis=-1).astype(np.uint8)
    cmyk = pyvips.Image.new_from_array(rgb).icc_export(output_profile="cmyk")
    profile = cmyk.get("icc-profile-data")
    inks = cmyk.numpy()
    plain = saved(Image.frombytes("CMYK", (64, 64), inks.tobytes()), "TIFF")
    deep = io.BytesIO()
    tags = [(34675, 7, len(profile), profile, True)]
    tifffile.imwrite(deep, inks.astype(np.uint16) * 257, photometric="separated", extratags=tags)
    files = {
        "a.jpg": cmyk.jpegsave_buffer(Q=98),
        "b.tif": cmyk.tiffsave_buffer(),
        "c.tif": deep.getvalue(),
        "plain.tif": plain,
        "damaged.tif": saved(Image.open(io.BytesIO(plain)), "TIFF", icc_profile=profile[:300]),
    }
    found = read_by_every_path(tmp_path, files)
    for name, by_path in found.items():
        first, *others = by_path.values()
        for other in others:
            np.testing.assert_array_equal(first, other, name)
        error = np.abs(first.astype(int) - rgb).mean()
        by_profile = name not in ("plain.tif", "damaged.tif")
        assert error < 4 if by_profile else error > 10, name
        read = image_files.decode_picture(files[name])
        assert read.icc_profile is None and not read.is_grey and read.alpha is None
        how = "its profile" if by_profile else "a plain formula"
        assert read.notes == (f"its CMYK colours, which became 8-bit sRGB by {how}",)
    np.testing.assert_array_equal(*(found[name]["scoring"] for name in ("b.tif", "c.tif")))


def test_compositing_and_8_bits_are_exact():
    for dtype, white in ((np.uint8, 255), (np.uint16, 65535)):
        rng = np.random.default_rng(0)
        levels = np.unique([0, 1, white // 2, white - 1, white, *rng.integers(0, white, 250)])
        colour, alpha = (grid.astype(dtype) for grid in np.meshgrid(levels, levels))
        seen = image_files.rgb(image_files.Picture(np.repeat(colour[..., None], 3, axis=2), alpha))
        expected = (colour * alpha.astype(object) + white * (white - alpha.astype(object))) * 2
        expected = ((expected + white) // (2 * white)).astype(dtype)  # whole numbers of any size
        np.testing.assert_array_equal(seen[..., 1], expected)
    # As Pillow does it, which decoded 8 bits before.
    rgba = noise(4, np.uint8, 64, 64)
    paper = Image.new("RGBA", (64, 64), "white")
    pillow = np.array(Image.alpha_composite(paper, Image.fromarray(rgba)).convert("RGB"))
    np.testing.assert_array_equal(image_files.decode_rgb(saved(Image.fromarray(rgba))), pillow)
    every = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(image_files.to_8_bits(every), np.rint(every / 257))
    assert image_files.to_8_bits(rgba) is rgba
    with pytest.raises(ValueError, match="float64"):
        image_files.to_8_bits(every / 257)
