"""Degradations: kernels and noise have the moments that are said, and seeds decide everything."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from sr3_jax.data import degradations, degrade, folders, pipeline, sources
from sr3_jax.data.degradations import Drawn, Options

EVERYTHING = Options(
    share=0.75,
    blur=(0.2, 1.5),
    blur_kernels=degradations.BLURS,
    resize_kernels=degradations.RESIZERS,
    noise=(2.0, 10.0),
    noise_kinds=degradations.NOISES,
    jpeg=(30, 90),
)


@pytest.mark.parametrize("kind", degradations.BLURS)
@pytest.mark.parametrize("angle", [0.0, 0.7, 2.0])
def test_kernels_have_the_deviation_asked_for(kind, angle):
    """Along the angle; across it the Gaussian and the disk have the same, others less."""
    kernel = degradations.kernel_of(kind, 4.0, angle, 0.5)
    reach = len(kernel) // 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    assert kernel.min() >= 0 and kernel.sum() == pytest.approx(1)
    along = x * math.cos(angle) + y * math.sin(angle)
    across = y * math.cos(angle) - x * math.sin(angle)
    mean, deviation = ((kernel * along**n).sum() for n in (1, 2))
    assert mean == pytest.approx(0, abs=0.01)
    assert math.sqrt(deviation) == pytest.approx(4.0, rel=0.03)
    across = math.sqrt((kernel * across**2).sum())
    if kind == "motion":  # a line of a pixel's width, whose weights are means over pixels
        assert across < 0.5
    else:
        assert across == pytest.approx(2.0 if kind == "anisotropic" else 4.0, rel=0.03)


def test_a_blur_is_in_pixels_of_the_low_resolution():
    """A Gaussian of known width, seen through it, is a Gaussian of the sum of variances."""
    y, x = np.mgrid[:128, :128] - 63.5
    spot = lambda variance: np.exp(-(x**2 + y**2) / 2 / variance)  # noqa: E731
    high = np.repeat(np.rint(60_000 * spot(36.0))[..., None], 3, axis=-1).astype(np.uint16)
    low = degradations.degraded(high, (32, 32), Drawn(("gaussian", 2.0), resizer="area"))
    blurred = 60_000 * 36 / (36 + 8.0**2) * spot(36 + 8.0**2)
    expected = blurred.reshape(32, 4, 32, 4).mean(axis=(1, 3))
    np.testing.assert_allclose(low[..., 0], expected, atol=60)


@pytest.mark.parametrize("kind", degradations.NOISES)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_noise_has_the_deviation_asked_for(kind, dtype):
    level = np.iinfo(dtype).max / 255
    high = np.full((256, 256, 3), round(64 * level), dtype)
    low = degradations.degraded(high, (256, 256), Drawn(noise=(kind, 8.0), seed=3))
    off = low.astype(float) / level - 64
    expected = 8.0 * (math.sqrt(64 / 255) if kind == "shot" else 1.0)
    assert off.std() == pytest.approx(expected, rel=0.02) and abs(off.mean()) < 0.1
    together = np.corrcoef(off[..., 0].ravel(), off[..., 1].ravel())[0, 1]
    assert together == pytest.approx(1 if kind == "grey" else 0, abs=0.02)


def test_resizing_and_compression_are_pillows():
    random = np.random.default_rng(0)
    high = random.normal(size=(64, 48, 3)).cumsum(axis=0) * 20 + 128
    high = high.clip(0, 255).astype(np.uint8)
    kinds = {"bilinear": Image.BILINEAR, "area": Image.BOX, "lanczos": Image.LANCZOS}
    for kind, how in kinds.items():
        low = degradations.degraded(high, (16, 12), Drawn(resizer=kind))
        expected = np.asarray(Image.fromarray(high).resize((12, 16), how))
        assert np.abs(low.astype(int) - expected).max() <= 1  # Pillow rounds twice
    content = io.BytesIO()
    Image.fromarray(high).save(content, format="JPEG", quality=40)
    expected = np.asarray(Image.open(content))
    np.testing.assert_array_equal(
        degradations.degraded(high, (64, 48), Drawn(quality=40)), expected
    )
    wide = high.astype(np.uint16) * 257
    np.testing.assert_array_equal(
        degradations.degraded(wide, (64, 48), Drawn(quality=40)), expected.astype(np.uint16) * 257
    )
    grey = degradations.degraded(high[..., :1], (64, 48), Drawn(quality=90))
    assert grey.shape == (64, 48, 1) and np.abs(grey - high[..., :1].astype(float)).mean() < 8


def test_draws_fill_their_ranges_and_the_seed_decides():
    drawn = [degradations.draw(EVERYTHING, (5, i)) for i in range(2000)]
    assert drawn == [degradations.draw(EVERYTHING, (5, i)) for i in range(2000)]
    some = [each for each in drawn if each]
    assert len(some) / len(drawn) == pytest.approx(0.75, abs=0.04)
    for of, kinds, (least, most) in (
        ([each.blur for each in some], degradations.BLURS, EVERYTHING.blur),
        ([each.noise for each in some], degradations.NOISES, EVERYTHING.noise),
        ([("", each.quality) for each in some], [""], EVERYTHING.jpeg),
    ):
        assert {kind for kind, _ in of} == set(kinds)
        values = np.array([value for _, value in of])
        assert values.min() >= least and values.max() <= most
        assert values.mean() == pytest.approx((least + most) / 2, rel=0.05)
    assert {each.resizer for each in some} == set(degradations.RESIZERS)
    # One range does not change what the others give.
    number, its = next((i, each) for i, each in enumerate(drawn) if each)
    other = degradations.draw(Options(blur=EVERYTHING.blur), (5, number))
    assert other.blur[1] == its.blur[1] and other.noise[1] == 0 == other.quality


def test_each_is_shown_alone_and_drawn_ones_say_what_they_are():
    found = degradations.alone(EVERYTHING)
    assert len(found) == 4 + 4 + 3 + 2 and "disk blur 1.5" in found and "JPEG 30" in found
    drawn = Drawn(("disk", 1.23), resizer="area", noise=("grey", 4.06), quality=63)
    assert str(drawn) == "disk blur 1.2, area, grey noise 4.1, JPEG 63"
    assert [*degradations.alone(Options())] == ["bicubic"]


def test_examples_are_degraded_anew_and_resume(tmp_path):
    """Kept pairs would be degraded alike in every epoch; held-out images are alike always."""
    random = np.random.default_rng(1)
    for i in range(4):
        pixels = random.integers(0, 256, (40, 40, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    source: sources.Source = folders.folder(str(tmp_path))
    made = {}
    for name, of in (("clean", None), ("all", Options(noise=(20.0, 20.0)))):
        options = degrade.DegradeOptions(32, 8, degradation=of)
        made[name] = pipeline.Pipeline(source, options, batch_size=4, seed=7)
    stream = made["all"].training_batches()
    first, second = next(stream), next(stream)
    clean = next(made["clean"].training_batches())
    np.testing.assert_array_equal(first["high_resolution"], clean["high_resolution"])
    off = first["low_resolution"].astype(float) - clean["low_resolution"]
    assert off.std() == pytest.approx(20, rel=0.1)
    again = {int(i): low for i, low in zip(second["index"], second["low_resolution"], strict=True)}
    for i, low in zip(first["index"], first["low_resolution"], strict=True):
        assert (low != again[int(i)]).mean() > 0.5
    resumed = next(made["all"].training_batches(1))
    np.testing.assert_array_equal(resumed["low_resolution"], second["low_resolution"])
    held_out = [next(made["all"].evaluation_batches())["low_resolution"] for _ in range(2)]
    np.testing.assert_array_equal(*held_out)
