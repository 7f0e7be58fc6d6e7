"""Units: every scaling is increasing, has an inverse, and gives what its name says."""

import itertools
import statistics

import jax.numpy as jnp
import numpy as np
import pytest

from sr3_jax import scaling


def _images():
    """Three channels: temperatures, rain (mostly none), and a large offset with little range."""
    rng = np.random.default_rng(0)
    rain = np.maximum(rng.gamma(0.5, 4.0, (6, 20, 24)) - 1.0, 0.0)
    channels = (rng.normal(280.0, 9.0, rain.shape), rain, 1e6 + rng.random(rain.shape))
    images = np.stack(channels, axis=-1)
    images[0, :3, :5] = np.nan
    return images


def _measured(images):
    measuring = scaling.Measuring(images.shape[-1], len(images))
    for image in images:
        measuring.add(image)
    return measuring


def _made(kind, images):
    return scaling.make(kind, _measured(images).statistics())


def test_statistics_are_those_of_all_values_in_any_order():
    images = _images()
    measuring = _measured(images)
    found = measuring.statistics()
    flat = images.reshape(-1, 3)
    np.testing.assert_array_equal(found.least, np.nanmin(flat, axis=0))
    np.testing.assert_array_equal(found.greatest, np.nanmax(flat, axis=0))
    np.testing.assert_allclose(found.mean, np.nanmean(flat, axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.deviation, np.nanstd(flat, axis=0), rtol=1e-8)
    assert measuring.missing.tolist() == [15] * 3
    assert measuring.count.tolist() == [6 * 20 * 24 - 15] * 3
    backwards = _measured(images[::-1]).statistics()
    for kind in scaling.KINDS:
        one, other = (scaling.make(kind, of).to_signed(images) for of in (found, backwards))
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("kind", scaling.KINDS)
def test_it_has_an_inverse_also_outside_the_training_range(kind):
    images = _images()
    units = _made(kind, images)
    wide = np.stack(
        [
            np.linspace(m - 3 * (g - m), g + 3 * (g - m), 99)
            for m, g in zip(units.least, units.greatest, strict=True)
        ],
        axis=-1,
    )[None]
    for values in (images, wide):
        signed = units.to_signed(values)
        assert signed.dtype == np.float32
        back = units.to_values(signed)
        span = np.subtract(units.greatest, units.least)
        # float32 has 7 digits; the third channel needs them all for its offset.
        error = np.abs(back - values) / np.maximum(span, 1e-7 * np.abs(units.greatest) * 1e6)
        assert np.nanmax(error) < 1e-5
        np.testing.assert_array_equal(np.isnan(back), np.isnan(values))
    rising = units.to_signed(wide)[0]
    assert (np.diff(rising, axis=0) >= 0).all() and rising[0, 0] < -1 and rising[-1, 0] > 1


def test_each_kind_is_what_it_says():
    images = _images()
    made = {kind: _made(kind, images).to_signed(images) for kind in scaling.KINDS}
    for kind in ("range", "quantile", "log"):
        flat = made[kind].reshape(-1, 3)
        np.testing.assert_allclose(np.nanmin(flat, axis=0), -1, atol=1e-6)
        np.testing.assert_allclose(np.nanmax(flat, axis=0), 1, atol=1e-6)
    flat = made["standardise"].reshape(-1, 3)
    np.testing.assert_allclose(np.nanmean(flat, axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.nanstd(flat, axis=0), 0.5, rtol=1e-4)
    # Quantiles of a continuous channel are uniform; no rain has one place, below all rain.
    temperature, rain = made["quantile"][..., 0], made["quantile"][..., 1]
    shares = (
        np.histogram(temperature[np.isfinite(temperature)], 8, (-1, 1))[0]
        / np.isfinite(temperature).sum()
    )
    np.testing.assert_allclose(shares, 1 / 8, atol=0.01)
    dry = images[..., 1] == 0
    assert np.ptp(rain[dry]) == 0 and rain[dry].max() < rain[images[..., 1] > 0].min()
    # A doubling far above the scale is a constant step of the logarithm.
    units, mean = _made("log", images), _measured(images).statistics().mean
    scale = mean[1] - units.least[1]
    doublings = units.least[1] + scale * 1e6 * 2.0 ** np.arange(5)
    values = np.zeros((1, 5, 1, 3)) + doublings[:, None, None]
    np.testing.assert_allclose(np.diff(units.to_signed(values)[0, :, 0, 1], 2), 0, atol=1e-5)


def test_devices_convert_as_the_host_does():
    images = _images()
    for kind in scaling.KINDS:
        found = _measured(images).statistics()
        signed = scaling.make(kind, found).to_signed(images)[..., :2]
        two = scaling.make(kind, found.of(slice(2)))
        # Not the third channel, whose offset float32 cannot hold.
        np.testing.assert_allclose(two.to_signed(jnp.asarray(images[..., :2])), signed, atol=2e-5)
        back = two.to_values(jnp.asarray(signed))
        np.testing.assert_allclose(back, images[..., :2], rtol=1e-4, atol=1e-3)


def test_values_outside_the_range_are_counted_and_wrong_arrays_named():
    images = _images()
    units = _made("range", images)
    other = images.copy()
    other[1:, ..., 0] += 1000.0
    outside = units.outside(other)
    assert outside[0] == pytest.approx(5 * 480 / (6 * 480 - 15)) and outside[1:].tolist() == [0, 0]
    with pytest.raises(ValueError, match="has 2 channels; the scaling has 3"):
        units.to_signed(images[..., :2])
    images[..., 1] = 4.0
    with pytest.raises(ValueError, match="channel 1 has values from 4 to 4 in the training data"):
        _made("range", images)
    images[..., 1] = np.nan
    with pytest.raises(ValueError, match="channel 1 has values from 0 to 0"):
        _made("range", images)


def test_a_sample_of_many_images_is_no_larger_than_that_of_few():
    rng = np.random.default_rng(0)
    measuring = scaling.Measuring(1, 400)
    for _ in itertools.repeat(None, 400):
        measuring.add(rng.normal(size=(64, 64, 1)))
    assert measuring.num_sampled < 80_000
    quantiles = measuring.statistics().quantiles[0]
    expected = [statistics.NormalDist().inv_cdf(k / 64) for k in range(1, 64)]
    np.testing.assert_allclose(quantiles[1:-1], expected, atol=0.04)
