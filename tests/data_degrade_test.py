"""Tests of sr3_jax.data.degrade."""

import io
import pathlib

import numpy as np
import pytest
import small_run
import tensorflow as tf
from PIL import Image

from sr3_jax.config import image_sets, read
from sr3_jax.data import degrade, image_files, sources, windows

_SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"


def _encode(image: Image.Image, file_format: str = "PNG", **kwargs) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **kwargs)
    return buffer.getvalue()


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("size", "new_size"), [(64, 16), (96, 32), (100, 37), (512, 64), ((48, 100), (12, 37))]
)
def test_bicubic_agrees_with_pillow_on_floats(size, new_size):
    image = _noise(*np.broadcast_to(size, 2))
    ours = degrade.resize_bicubic(image, new_size)
    height, width = np.broadcast_to(new_size, 2)
    for channel in range(3):
        plane = Image.fromarray(image[..., channel].astype(np.float32))
        pillow = np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC))
        np.testing.assert_allclose(ours[..., channel], pillow, atol=1e-3)


@pytest.mark.parametrize(("size", "new_size"), [(64, 16), (96, 32), (100, 37), (16, 2), (24, 48)])
def test_bicubic_as_matlabs_mirrors_the_borders(size, new_size):
    """It equals Pillow, one direction after the other, on an image padded by its mirror image.

    Rounding differs at ties in float32, in both directions.
    """
    image = _noise(size, size)
    found = degrade.resize_as_matlab(image, new_size)

    def one_direction(pixels: np.ndarray) -> np.ndarray:
        # Padded by whole images, so that sizes stay multiples, and by Pillow.
        columns = np.pad(pixels, ((size, size), (0, 0)), mode="symmetric").astype(np.float32)
        high = Image.fromarray(columns).resize(
            (columns.shape[1], 3 * new_size), Image.Resampling.BICUBIC
        )
        return np.clip(np.floor(np.asarray(high)[new_size:-new_size] + 0.5), 0, 255)

    expected = np.stack(
        [one_direction(one_direction(image[..., c]).T).T for c in range(3)], axis=-1
    )
    off = np.abs(found.astype(int) - expected)
    assert off.max() <= 1 and np.mean(off > 0) < 2e-3


def test_bicubic_as_matlabs_differs_at_borders_alone():
    image = _noise(128, 128)
    image[:, :40] = 200
    low, pillow = (
        made(image, 32).astype(int)
        for made in (
            degrade.resize_as_matlab,
            lambda *args: degrade.to_levels(degrade.resize_bicubic(*args), np.uint8),
        )
    )
    # The kernel reaches two output pixels. Within, rounding each direction makes a level or two.
    off = np.abs(low - pillow)
    assert off[2:-2, 2:-2].max() <= 2 and off.max() > 4
    np.testing.assert_array_equal(degrade.resize_as_matlab(image[:, ::-1], 32), low[:, ::-1])
    constant = np.full((8, 8, 3), 77, np.uint8)
    np.testing.assert_array_equal(degrade.resize_as_matlab(constant, 2), constant[:2, :2])
    options = degrade.DegradeOptions(128, 32, downsampling="matlab")
    ((high, made),) = degrade.make_pairs([degrade.cut(image, None, options, None)], options)
    np.testing.assert_array_equal(high, image)
    np.testing.assert_array_equal(made, low)


@pytest.mark.parametrize(("size", "factor"), [(16, 4), (64, 8), (5, 1), (21, 3)])
def test_area_is_the_mean_of_each_block(size, factor):
    image = _noise(size * factor, size * factor)
    blocks = image.reshape(size, factor, size, factor, 3).mean((1, 3), dtype=np.float64)
    np.testing.assert_allclose(degrade.resize_area(image, size), blocks, atol=1e-3)


@pytest.mark.parametrize("side", [65, 97, 200])
def test_area_keeps_the_mean_for_any_factor(side):
    image = _noise(side, side)
    resized = degrade.resize_area(image, 64)
    np.testing.assert_allclose(resized.mean((0, 1)), image.mean((0, 1)), atol=2e-2)


@pytest.mark.parametrize(("side", "size", "low"), [(375, 256, 64), (130, 128, 16), (64, 64, 8)])
def test_pairs_are_tensorflows_but_for_ties(side, size, low):
    crop = _noise(side, side)
    high = np.rint(tf.image.resize(crop, (size, size), method="area").numpy())
    expected = tf.image.resize(high, (low, low), method="bicubic", antialias=True).numpy()
    found_high, found_low = degrade.make_pair(crop, size, low)
    for found, exact in ((found_high, high), (found_low, np.clip(np.rint(expected), 0, 255))):
        different = found != exact
        assert np.mean(different) < 1e-3 and np.abs(found - exact).max() <= 1


def test_pair_is_rounded_and_clipped_bytes_of_the_resized_crop():
    crop = np.where(_noise(96, 96) < 128, 0, 255).astype(np.uint8)
    high, low = degrade.make_pair(crop, 32, 8)
    assert high.dtype == low.dtype == np.uint8
    assert high.shape == (32, 32, 3) and low.shape == (8, 8, 3)
    assert np.abs(high - degrade.resize_area(crop, 32)).max() <= 0.501
    # The low resolution is made of the 8-bit high resolution, not of the crop.
    exact = np.clip(degrade.resize_bicubic(high, 8), 0, 255)
    assert np.abs(low - exact).max() <= 0.501


def test_bicubic_overshoot_is_clipped_not_wrapped():
    step = np.zeros((32, 32, 3), np.uint8)
    step[:, 16:] = 255
    overshoot = degrade.resize_bicubic(step, 8)
    assert overshoot.min() < -1 and overshoot.max() > 256
    _, low = degrade.make_pair(step, 32, 8)
    low = low.astype(int)
    assert (np.diff(low, axis=1) >= 0).all() and low.min() == 0 and low.max() == 255


def _centroid(image: np.ndarray) -> np.ndarray:
    """Returns the centre of mass (y, x) of an image as a share of its side."""
    weight = image.astype(np.float64).sum(-1)
    axis = (np.arange(len(image)) + 0.5) / len(image)
    return np.array([weight.sum(1) @ axis, weight.sum(0) @ axis]) / weight.sum()


@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (333, 401), (64, 200)])
def test_both_sizes_cover_the_same_central_square(shape):
    height, width = shape
    y, x = np.mgrid[:height, :width]
    left, top, right, bottom = windows.central_box(height, width)
    side = min(shape)
    assert right - left == bottom - top == side
    assert abs(left - (width - right)) <= 1 and abs(top - (height - bottom)) <= 1
    # A spot whose place is known exactly and that no symmetry hides.
    spot_y, spot_x = top + 0.4 * side, left + 0.55 * side
    radius = side / 10
    spot = 255 * np.exp(-((y + 0.5 - spot_y) ** 2 + (x + 0.5 - spot_x) ** 2) / (2 * radius**2))
    image = np.repeat(np.rint(spot).astype(np.uint8)[..., None], 3, axis=-1)
    high, low = degrade.make_pair(image[top:bottom, left:right], 64, 16)
    for made in (high, low):
        # In high-resolution pixels, 64 a side.
        shift = 64 * (_centroid(made) - [0.4, 0.55])
        assert np.abs(shift).max() < 0.05, shift


def test_read_image_cuts_the_box_from_the_upright_image(tmp_path):
    upright = _noise(20, 30)
    exif = Image.Exif()
    exif[0x0112] = 3
    path = tmp_path / "a.png"
    Image.fromarray(np.ascontiguousarray(upright[::-1, ::-1])).save(path, exif=exif)
    ref = sources.FileRef("a", str(path), (2, 3, 12, 9))
    np.testing.assert_array_equal(ref.read().image, upright[3:9, 2:12])
    with pytest.raises(image_files.BadImageError, match="not inside the 30x20 image"):
        sources.FileRef("a", str(path), (0, 0, 20, 30)).read()
    with pytest.raises(image_files.BadImageError, match="no such file"):
        sources.FileRef("b", str(tmp_path / "b.png")).read()


def test_too_small_names_both_sizes():
    with pytest.raises(windows.TooSmallError, match="too small: 30x40, need at least 64"):
        windows.check_size(np.zeros((40, 30, 3), np.uint8), 64)
    windows.check_size(np.zeros((64, 64, 3), np.uint8), 64)


@pytest.mark.parametrize("crop_scale", [(0.0, 1.0), (0.5, 1.0), (0.3, 0.6), (0.0, 0.01)])
def test_random_boxes_fit_and_fill_their_range(crop_scale):
    options = degrade.DegradeOptions(16, 4, crop="random", crop_scale=crop_scale)
    height, width = 100, 140
    uniforms = np.random.default_rng(0).random((2000, 3), np.float32)
    edge = np.float32(1 - 2**-24)
    uniforms = np.concatenate([uniforms, [[0, 0, 0], [edge, edge, edge], [0, edge, edge]]])
    boxes = np.array([windows.random_box(height, width, options, u) for u in uniforms])
    left, top, right, bottom = boxes.T
    side = right - left
    np.testing.assert_array_equal(side, bottom - top)
    assert left.min() == 0 and top.min() == 0 and right.max() == width and bottom.max() == height
    smallest, largest = (max(16, round(100 * scale)) for scale in crop_scale)
    assert side.min() == smallest and side.max() == largest
    # Log-uniform: the median is the geometric mean.
    np.testing.assert_allclose(np.median(side), np.sqrt(smallest * largest), rtol=0.1)


def test_evaluation_alone_makes_inputs_as_asked():
    config = small_run.config()
    config.evaluation.num_images = 2

    def made(downsampling: str, training: bool = False) -> dict[str, np.ndarray]:
        config.evaluation.downsampling = downsampling
        if training:
            return next(image_sets.training_pipeline(read(config)).training_batches())
        return next(image_sets.evaluation_pipeline(read(config), 2).evaluation_batches())

    pillow, matlab = made("pillow"), made("matlab")
    np.testing.assert_array_equal(pillow["high_resolution"], matlab["high_resolution"])
    for high, low in zip(matlab["high_resolution"], matlab["low_resolution"], strict=True):
        np.testing.assert_array_equal(degrade.resize_as_matlab(high, len(low)), low)
    assert (pillow["low_resolution"] != matlab["low_resolution"]).any()
    low, other = (made(name, training=True)["low_resolution"] for name in ("pillow", "matlab"))
    np.testing.assert_array_equal(low, other)
    with pytest.raises(ValueError, match="evaluation.downsampling = 'octave'"):
        made("octave")
    config.data.eval_source = "folder_pairs"
    with pytest.raises(ValueError, match="folder_pairs come with their low resolutions"):
        made("matlab")


def test_shared_photographs_decode():
    paths = sorted(_SHARED.glob("bsds500/val/*.jpg"))[:5] + sorted(
        _SHARED.glob("ffhq_sample/*.png")
    )
    if not paths:
        pytest.skip(f"no shared images in {_SHARED}")
    for path in paths:
        image = sources.FileRef(path.name, str(path)).read().image
        windows.check_size(image, 256)
        assert np.ptp(image) > 100


@pytest.mark.parametrize("resize", [degrade.resize_area, degrade.resize_bicubic])
def test_missing_values_are_seen_by_no_neighbour(resize):
    """Whatever stands where values are missing, the result is the same; a constant stays one."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(24, 24, 2)).astype(np.float32)
    image[4:12, 5:9] = np.nan
    image[20, 20, 1] = np.nan
    for size in (6, 40) if resize is degrade.resize_bicubic else (6, 7):
        made = resize(image, size)
        assert made.dtype == np.float32 and 0 < np.isnan(made).sum() < made.size / 4
        constant = resize(np.where(np.isnan(image), np.nan, np.float32(3.5)), size)
        np.testing.assert_allclose(constant[np.isfinite(constant)], 3.5, rtol=1e-5)
        np.testing.assert_array_equal(np.isnan(constant), np.isnan(made))
        # Channels do not see each other's.
        alone = resize(image[..., :1], size)
        np.testing.assert_allclose(made[..., :1], alone, rtol=1e-5)
    # Where nothing is missing within reach, results are those of the whole image.
    whole = resize(np.where(np.isnan(image), 0, image), 6)[:, 4:, 0]
    np.testing.assert_allclose(resize(image, 6)[:, 4:, 0], whole, rtol=1e-4, atol=1e-6)


def test_other_numbers_are_not_rounded():
    crop = np.random.default_rng(0).normal(280, 10, (24, 24, 5)).astype(np.float32)
    high, low = degrade.make_pair(crop, 12, 3)
    assert high.dtype == low.dtype == np.float32 and low.shape == (3, 3, 5)
    np.testing.assert_allclose(high, crop.reshape(12, 2, 12, 2, 5).mean((1, 3)), rtol=1e-6)
    np.testing.assert_allclose(low.mean(), crop.mean(), rtol=1e-3)
