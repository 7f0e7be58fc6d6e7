import jax
import numpy as np
import pytest
import skimage.data
import skimage.metrics

from sr3_jax import images, metrics


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
    ours = metrics.psnr(*pair)
    theirs = [skimage.metrics.peak_signal_noise_ratio(b, a) for a, b in zip(*pair, strict=True)]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_ssim_agrees_with_skimage(pair):
    theirs = [
        skimage.metrics.structural_similarity(
            a, b, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(*pair, strict=True)
    ]
    np.testing.assert_allclose(metrics.ssim(*pair), theirs, atol=2e-5)


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
    np.testing.assert_allclose(metrics.ssim(flat, noisy), theirs, atol=2e-5)
    np.testing.assert_allclose(metrics.ssim(flat, flat), 1.0, atol=1e-6)


def test_equal_images_and_too_small_ones(pair):
    assert np.all(np.isposinf(metrics.psnr(pair[1], pair[1])))
    with pytest.raises(ValueError, match="at least 11x11"):
        metrics.ssim(pair[0][:, :10], pair[1][:, :10])


def test_consistency_is_the_error_after_downsampling(pair):
    """0 for the reference up to 8-bit rounding; a uniform offset of d levels costs (d/255)^2."""
    reference = pair[1]
    low = np.asarray(images.to_uint8(images.resize_bicubic(images.to_signed(reference), (24, 36))))
    # Rounding to integers has variance 1/12 of a level squared.
    rounding = 1e5 / 12 / 255**2
    np.testing.assert_allclose(metrics.consistency(reference, low), rounding, rtol=0.1)
    darker = (reference.astype(int) - 5).clip(0).astype(np.uint8)
    expected = 1e5 * (5 / 255) ** 2 + rounding
    np.testing.assert_allclose(metrics.consistency(darker, low), expected, rtol=0.05)


def test_value_ranges_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    signed = images.to_signed(levels)
    assert signed.min() == -1.0 and signed.max() == 1.0
    np.testing.assert_array_equal(images.to_uint8(signed), levels)
    np.testing.assert_array_equal(images.to_uint8(signed + 0.9 / 255), levels)
    np.testing.assert_array_equal(images.to_uint8(3 * signed)[0, 0, 0], [0])


def test_upsampling_does_not_shift():
    """The centre of mass of a blob stays where it was, in units of its own pixels."""
    yy, xx = np.mgrid[:16, :24]
    blob = 200 * np.exp(-((yy - 6.0) ** 2 + (xx - 13.0) ** 2) / 6)
    low = np.repeat(blob[None, :, :, None], 3, axis=-1).round().astype(np.uint8)
    high = np.asarray(jax.jit(lambda im: images.upsample_source(im, (64, 96)))(low))[0, :, :, 0]
    mass = high + 1
    yy, xx = (np.mgrid[:64, :96] + 0.5) / 4 - 0.5
    assert abs((mass * yy).sum() / mass.sum() - 6.0) < 0.02
    assert abs((mass * xx).sum() / mass.sum() - 13.0) < 0.02
