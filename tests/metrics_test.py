import functools
import inspect
import json
import pathlib
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import skimage.color
import skimage.data
import skimage.metrics

from sr3_jax import image_ops
from sr3_jax.config import Evaluation
from sr3_jax.data import resampling
from sr3_jax.evaluation import evaluator
from sr3_jax.metrics import correctness, full_reference, registry, samples

OPENSR = "other_programs/opensr_test.json"


@pytest.fixture(scope="module")
def pair():
    """A photograph and a blurred, noisy copy, as a batch of differently bad rows."""
    photo = skimage.data.chelsea()[:96, :144]
    rng = np.random.default_rng(0)
    rows = [
        np.clip(photo + rng.normal(size=photo.shape) * level, 0, 255).astype(np.uint8)
        for level in (3, 12, 40)
    ]
    return np.stack(rows), np.stack([photo] * 3)


def test_psnr_agrees_with_skimage(pair):
    ours = full_reference.psnr(*pair)
    theirs = [skimage.metrics.peak_signal_noise_ratio(b, a) for a, b in zip(*pair, strict=True)]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_scores_do_not_depend_on_the_type_but_for_what_16_bits_add(pair):
    """8 bits and the same times 257 are one picture; other 16-bit values are seen in full."""
    low = np.asarray(
        image_ops.to_uint8(image_ops.resize_bicubic(image_ops.to_signed(pair[1]), (24, 36)))
    )
    wide = tuple(rows * np.uint16(257) for rows in (*pair, low))
    options = {"luminance": True, "border": 3}
    for score in (
        lambda a, b, _: full_reference.psnr(a, b),
        lambda a, b, _: full_reference.psnr(a, b, **options),
        lambda a, b, _: full_reference.ssim(a, b, **options),
        lambda a, _, low: full_reference.consistency(a, low),
        lambda a, b, _: full_reference.gradient_energy(a, b),
        lambda a, b, _: list(samples.energy_score(np.stack([a, a[::-1]]), b).values()),
    ):
        expected = np.asarray(score(*pair, low))
        for a, b, c in ((wide[0], pair[1], low), (pair[0], wide[1], wide[2]), wide):
            np.testing.assert_allclose(score(a, b, c), expected, rtol=1e-5)
    noise = np.random.default_rng(0).integers(0, 20, wide[1].shape, dtype=np.uint16)
    finer = wide[1] - np.minimum(noise, wide[1])  # less than a level of 8 bits
    theirs = [
        skimage.metrics.peak_signal_noise_ratio(b, a, data_range=65535)
        for a, b in zip(finer, wide[1], strict=True)
    ]
    assert min(theirs) > 70
    np.testing.assert_allclose(full_reference.psnr(finer, wide[1]), theirs, atol=1e-3)


def test_ssim_agrees_with_skimage(pair):
    theirs = [
        skimage.metrics.structural_similarity(
            a, b, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(*pair, strict=True)
    ]
    np.testing.assert_allclose(full_reference.ssim(*pair), theirs, atol=2e-5)


@pytest.mark.parametrize("border", [0, 7])
def test_luminance_without_a_border_agrees_with_skimage(pair, border):
    seen = [
        skimage.color.rgb2ycbcr(rows)[:, border : 96 - border, border : 144 - border, 0]
        for rows in pair
    ]
    options = {"luminance": True, "border": border}
    theirs = [
        skimage.metrics.peak_signal_noise_ratio(b, a, data_range=255)
        for a, b in zip(*seen, strict=True)
    ]
    np.testing.assert_allclose(full_reference.psnr(*pair, **options), theirs, atol=1e-3)
    theirs = [
        skimage.metrics.structural_similarity(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
        for a, b in zip(*seen, strict=True)
    ]
    np.testing.assert_allclose(full_reference.ssim(*pair, **options), theirs, atol=2e-5)


@pytest.mark.parametrize("luminance", [False, True])
@pytest.mark.parametrize("side", [11, 16, 31, 64, 257])
def test_psnr_of_equal_images_alone_is_infinite(side, luminance):
    """Compiled programs round otherwise for images of other sizes."""
    photo = skimage.data.astronaut()[None, :side, :side]
    other = photo.copy()
    other[0, 5, 5, 1] ^= 1  # the least difference there is
    psnr = jax.jit(functools.partial(full_reference.psnr, luminance=luminance))
    assert np.isposinf(psnr(photo, photo.copy())).all()
    assert np.isposinf(full_reference.psnr(photo, photo.copy(), luminance=luminance)).all()
    squares = side**2 if luminance else 3 * side**2
    level = (128.553 / 255 if luminance else 1) / 255
    expected = 10 * np.log10(squares / level**2)
    np.testing.assert_allclose(psnr(photo, other), expected, atol=1e-3)
    # As evaluation and scoring call it.
    found = evaluator.score(photo, photo.copy(), None, luminance)["psnr"]
    assert found == [np.inf]


def test_a_border_that_leaves_nothing_is_named(pair):
    for metric in (full_reference.psnr, full_reference.ssim):
        with pytest.raises(ValueError, match="border of 48 pixels leaves nothing"):
            metric(*pair, border=48)
    with pytest.raises(ValueError, match="found 10x58 within the border of 43"):
        full_reference.ssim(*pair, border=43)


@pytest.mark.parametrize("luminance", [False, True])
def test_what_is_done_to_an_image_moves_each_metric_the_right_way(luminance):
    """Shifted, blurred or noisy, each the more the worse; a shift hardly shows when downsampled."""
    photo = skimage.data.astronaut()[:128, :128]
    rng = np.random.default_rng(0)
    noise = rng.normal(size=photo.shape)
    low = np.asarray(
        image_ops.to_uint8(image_ops.resize_bicubic(image_ops.to_signed(photo[None]), (32, 32)))
    )
    for worsen in (
        lambda much: np.roll(photo, much, axis=1),
        lambda much: scipy.ndimage.gaussian_filter(photo, (much, much, 0)),
        lambda much: np.clip(photo + 8 * much * noise, 0, 255).astype(np.uint8),
    ):
        worse = np.stack([worsen(much) for much in (1, 2, 4)])
        several = np.stack([photo] * 3)
        assert (np.diff(full_reference.psnr(worse, several, luminance=luminance)) < -0.5).all()
        assert (np.diff(full_reference.ssim(worse, several, luminance=luminance)) < -0.01).all()
        assert (np.diff(full_reference.consistency(worse, np.concatenate([low] * 3))) > 1.0).all()


def test_the_energy_score_of_an_image_is_what_its_definition_gives():
    """Of one level, with samples that differ from the reference by a number: c, or c and -c."""
    reference = np.random.default_rng(0).integers(50, 200, (2, 16, 16, 3), dtype=np.uint8)
    deviation = [reference[i].std(dtype=np.float64) for i in range(2)]
    above, below = reference + 9, reference - 9
    np.testing.assert_allclose(
        samples.energy_scores(np.stack([above, above]), reference),
        9 / np.array(deviation),
        rtol=1e-4,
    )
    # As far from each other as from the truth, twice: 9 - 18 / 2.
    np.testing.assert_allclose(
        samples.energy_scores(np.stack([above, below]), reference), 0.0, atol=1e-5
    )


def test_the_source_loss_is_of_what_the_source_shows_alone():
    """A checkerboard vanishes in a quarter of the size; a number that is added to it does not."""
    signs = (-1.0) ** np.add(*np.indices((64, 64)))
    board = 0.25 * jnp.broadcast_to(signs[..., None], (1, 64, 64, 3))
    shift = 0.1
    alike = samples.source_loss(board + shift, board + shift, board, (16, 16))
    np.testing.assert_allclose(alike, shift / 0.25, rtol=1e-3)
    # As far from each other as from the truth, twice.
    apart = samples.source_loss(board + shift, board - shift, board, (16, 16))
    np.testing.assert_allclose(apart, 0.0, atol=1e-4)
    unseen = samples.source_loss(-board, -board, board, (16, 16))
    np.testing.assert_allclose(unseen, 0.0, atol=1e-3)
    # A source may be smaller than a patch.
    small = samples.source_loss(board + shift, board + shift, board, (4, 4))
    np.testing.assert_allclose(small, shift / 0.25, rtol=1e-3)


def test_gradient_energy_falls_with_blur_and_grows_with_noise():
    photo = skimage.data.astronaut()[:128, :128]
    assert full_reference.gradient_energy(photo[None], photo[None])[0] == pytest.approx(
        1.0, abs=1e-6
    )
    # A wave of half the contrast has a quarter of the energy.
    wave = 100 * np.sin(np.arange(64) / 3)[None, :, None] * np.ones((64, 1, 3))
    half, whole = (np.round(128 + wave * gain).astype(np.uint8)[None] for gain in (0.5, 1.0))
    assert full_reference.gradient_energy(half, whole)[0] == pytest.approx(0.25, rel=0.02)
    # Noise adds the energy of its differences, twice its variance.
    noise = np.random.default_rng(0).normal(size=photo.shape) * 10
    grey = np.full_like(photo, 128)
    noisy = (grey + noise).round().astype(np.uint8)
    noisier = (grey + 2 * noise).round().astype(np.uint8)
    assert full_reference.gradient_energy(noisier[None], noisy[None])[0] == pytest.approx(
        4.0, rel=0.01
    )
    blurred = [scipy.ndimage.gaussian_filter(photo, (s, s, 0)) for s in (0.5, 1, 2)]
    assert (
        np.diff(full_reference.gradient_energy(np.stack(blurred), np.stack([photo] * 3))) < -0.1
    ).all()
    # A flat reference gives no infinity.
    assert np.isfinite(full_reference.gradient_energy(noisy[None], grey[None]))[0]


def test_ssim_keeps_its_digits_on_a_bright_flat_image():
    flat = np.full((1, 32, 32, 3), 250, np.uint8)
    noisy = flat + np.random.default_rng(0).integers(0, 2, flat.shape).astype(np.uint8)
    theirs = skimage.metrics.structural_similarity(
        flat[0],
        noisy[0],
        channel_axis=-1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    np.testing.assert_allclose(full_reference.ssim(flat, noisy), theirs, atol=2e-5)
    np.testing.assert_allclose(full_reference.ssim(flat, flat), 1.0, atol=1e-6)


def test_equal_images_and_too_small_ones(pair):
    assert np.all(np.isposinf(full_reference.psnr(pair[1], pair[1])))
    with pytest.raises(ValueError, match="at least 11x11"):
        full_reference.ssim(pair[0][:, :10], pair[1][:, :10])


def test_consistency_is_the_error_after_downsampling(pair):
    """0 for the reference up to 8-bit rounding; a uniform offset of d levels costs (d/255)^2."""
    reference = pair[1]
    low = np.asarray(
        image_ops.to_uint8(image_ops.resize_bicubic(image_ops.to_signed(reference), (24, 36)))
    )
    # Rounding to integers has variance 1/12 of a level squared.
    rounding = 1e5 / 12 / 255**2
    np.testing.assert_allclose(full_reference.consistency(reference, low), rounding, rtol=0.1)
    darker = (reference.astype(int) - 5).clip(0).astype(np.uint8)
    expected = 1e5 * (5 / 255) ** 2 + rounding
    np.testing.assert_allclose(full_reference.consistency(darker, low), expected, rtol=0.05)


def test_value_ranges_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    signed = image_ops.to_signed(levels)
    assert signed.min() == -1.0 and signed.max() == 1.0
    np.testing.assert_array_equal(image_ops.to_uint8(signed), levels)
    np.testing.assert_array_equal(image_ops.to_uint8(signed + 0.9 / 255), levels)
    np.testing.assert_array_equal(image_ops.to_uint8(3 * signed)[0, 0, 0], [0])


@pytest.mark.parametrize("traced", [False, True])
def test_the_nearest_consistent_image_is_consistent_and_nearest(traced):
    """On the host, and in a program of jax."""
    photo = skimage.data.chelsea()[100:164, 100:196][None]
    low = np.asarray(
        image_ops.to_uint8(image_ops.resize_bicubic(image_ops.to_signed(photo), (16, 24)))
    )
    rng = np.random.default_rng(0)
    off = scipy.ndimage.gaussian_filter(rng.normal(size=photo.shape), (0, 4, 4, 0)) * 60
    worse = np.clip(photo + off + 10 * rng.normal(size=photo.shape), 0, 255).astype(np.uint8)
    kind = jnp.asarray if traced else np.asarray
    improve = lambda image: resampling.make_consistent(kind(image), kind(image_ops.to_signed(low)))  # noqa: E731
    better = improve(image_ops.to_signed(worse))
    made = np.asarray(image_ops.to_uint8(better))
    assert full_reference.consistency(worse, low)[0] > 10
    assert full_reference.consistency(made, low)[0] < 0.05
    # Nearer to every consistent image, and so to the photograph; its details stay.
    assert full_reference.psnr(made, photo)[0] > full_reference.psnr(worse, photo)[0] + 0.2
    before, after = (
        float(full_reference.gradient_energy(each, photo)[0]) for each in (worse, made)
    )
    assert after == pytest.approx(before, rel=0.1)
    # What is consistent already stays where it is.
    np.testing.assert_allclose(np.asarray(improve(better)), np.asarray(better), atol=1e-3)


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_resizing_on_the_host_is_resizing(factor):
    """As on the devices, both ways; what is larger than the resized image repeats its edge."""
    low = np.random.default_rng(factor).normal(size=(2, 13, 20, 3)).astype(np.float32)
    size = 13 * factor, 20 * factor
    up = resampling.resize(low, factor, (size[0] + 3, size[1]))
    expected = np.asarray(image_ops.resize_bicubic(low, size))
    np.testing.assert_allclose(
        up, np.pad(expected, [(0, 0), (0, 3), (0, 0), (0, 0)], "edge"), atol=1e-5
    )
    high = np.random.default_rng(0).normal(size=(2, *size, 3)).astype(np.float32)
    expected = image_ops.resize_bicubic(high, (13, 20))
    np.testing.assert_allclose(resampling.resize(high, 1 / factor, (13, 20)), expected, atol=1e-5)


def test_upsampling_does_not_shift():
    """The centre of mass of a blob stays where it was, in units of its own pixels."""
    yy, xx = np.mgrid[:16, :24]
    blob = 200 * np.exp(-((yy - 6.0) ** 2 + (xx - 13.0) ** 2) / 6)
    low = np.repeat(blob[None, :, :, None], 3, axis=-1).round().astype(np.uint8)
    high = np.asarray(jax.jit(lambda im: image_ops.upsample_source(im, (64, 96)))(low))[0, :, :, 0]
    mass = high + 1
    yy, xx = (np.mgrid[:64, :96] + 0.5) / 4 - 0.5
    assert abs((mass * yy).sum() / mass.sum() - 6.0) < 0.02
    assert abs((mass * xx).sum() / mass.sum() - 13.0) < 0.02


@pytest.mark.parametrize("metric", registry.METRICS.values(), ids=registry.METRICS)
def test_the_registry_names_what_is_there(metric):
    """The function, the arguments that it needs, and the key of its weights."""
    if metric.of == "run":
        return
    parameters = list(inspect.signature(pkgutil.resolve_name(metric.function)).parameters)
    if metric.of == "network":
        assert parameters == ["inputs", "weights"]
        assert Evaluation(**{metric.weights: "file"}).weights[metric.option] == "file"
    else:
        assert set(parameters[1:]) >= set(metric.needs)


def _detail(seed):
    """Input, output and reference, [h, w, 3]: smoothed noise, of which the output has half."""
    rng, size = np.random.default_rng(seed), 48
    high = rng.integers(0, 256, (3, size, size))
    shifts = [(i, j) for i in range(3) for j in range(3)]
    smooth = lambda a: np.mean([np.roll(a, by, (1, 2)) for by in shifts], axis=0)  # noqa: E731
    truth = smooth(high)
    made = smooth(0.5 * high + 0.5 * rng.integers(0, 256, high.shape))
    low = truth.reshape(3, size // 4, 4, size // 4, 4).mean((2, 4))
    return [np.rint(a).astype(np.uint8).transpose(1, 2, 0) for a in (low, made, truth)]


_SHARES = ("improvement", "omission", "hallucination")


def test_shares_of_detail_agree_with_opensr_test():
    """Its version 1.3.3 gave these for `_detail`, by

    Metrics(harm_apply_spectral=False, harm_apply_spatial=False, border_mask=0).correctness(
        lr=low, sr=made, hr=truth, gradient_threshold="auto")
    """
    recorded = json.loads((pathlib.Path(__file__).parent / OPENSR).read_text())
    for row in recorded:
        low, made, truth = (image[None] for image in _detail(row["seed"]))
        for name in _SHARES:
            found = getattr(correctness, name)(made, truth, low)
            np.testing.assert_allclose(found, row[f"{name[:2]}_metric"], rtol=2e-4)
    assert len(recorded) == 4


def test_what_is_right_missing_and_made_up_is_told_apart():
    low, _, truth = _detail(5)
    blurred = np.asarray(jax.image.resize(low.astype(np.float32), truth.shape, "linear"))
    made_up = 255 - truth  # detail of the same strength, and all of it wrong
    outputs = np.stack([truth, np.rint(blurred).astype(np.uint8), made_up])
    given = np.stack([truth] * 3), np.stack([low] * 3)
    shares = np.stack([getattr(correctness, name)(outputs, *given) for name in _SHARES])
    np.testing.assert_allclose(shares.sum(axis=0), 1.0, rtol=1e-5)
    assert (shares.argmax(axis=0) == [0, 1, 2]).all() and (shares.max(axis=0) > 0.8).all()
    wide = [array * np.uint16(257) for array in (outputs, *given)]
    np.testing.assert_allclose(correctness.omission(*wide), shares[1], rtol=1e-4)
