"""Metrics of numbers of any range, against independent libraries and closed forms."""

import numpy as np
import pytest

from sr3_jax.evaluation import evaluator
from sr3_jax.metrics import fields, registry


def _ensemble(members=5, size=(2, 12, 16, 3)):
    rng = np.random.default_rng(0)
    truth = rng.normal(280.0, 5.0, size)
    samples = truth + rng.normal(0.3, 2.0, (members, *size))
    return samples, truth


def test_crps_is_that_of_scoringrules():
    samples, truth = _ensemble()
    found = fields.crps(samples, truth)
    scoringrules = pytest.importorskip("scoringrules", reason="scoringrules is not installed")
    fair = scoringrules.crps_ensemble(truth, np.moveaxis(samples, 0, -1), estimator="fair")
    np.testing.assert_allclose(found, fair.mean(axis=(1, 2)), rtol=1e-10)
    np.testing.assert_allclose(
        fields.crps(samples[:1], truth), np.abs(samples[0] - truth).mean(axis=(1, 2)), rtol=1e-12
    )


def test_errors_are_those_of_numpy_and_leave_missing_values_out():
    samples, truth = _ensemble()
    made = samples[0].copy()
    truth[0, :4, :5, 1] = np.nan
    made[1, 3:, 2, 2] = np.nan
    known = np.isfinite(made) & np.isfinite(truth)
    for i, c in ((0, 1), (1, 2), (1, 0)):
        one, other = made[i, ..., c][known[i, ..., c]], truth[i, ..., c][known[i, ..., c]]
        assert fields.rmse(made, truth)[i, c] == pytest.approx(np.sqrt(np.mean((one - other) ** 2)))
        assert fields.bias(made, truth)[i, c] == pytest.approx(np.mean(one - other))
        found = fields.correlation(made, truth)[i, c]
        assert found == pytest.approx(np.corrcoef(one, other)[0, 1])
    # What stands where the truth is missing makes no difference.
    other = np.where(np.isfinite(truth), samples, -1e9)
    for metric in (fields.crps, fields.spread_skill):
        np.testing.assert_allclose(metric(samples, truth), metric(other, truth), rtol=1e-9)
    np.testing.assert_allclose(
        fields.spectral_distance(samples[1], truth), fields.spectral_distance(other[1], truth)
    )
    truth[1, ..., 0] = np.nan
    assert np.isnan(fields.rmse(made, truth)[1, 0]) and np.isnan(fields.crps(samples, truth)[1, 0])


def test_spread_is_skill_where_the_truth_is_another_member():
    rng = np.random.default_rng(1)
    for members in (2, 8):
        drawn = rng.normal(size=(members + 1, 4, 128, 128, 1)) * 3.0
        ratio = fields.spread_skill(drawn[1:], drawn[0])
        np.testing.assert_allclose(ratio, 1.0, atol=0.03)
        # Fair: the score of draws from the truth's distribution, 3 / sqrt(pi), for any number.
        np.testing.assert_allclose(fields.crps(drawn[1:], drawn[0]), 3 / np.sqrt(np.pi), atol=0.05)
        assert (fields.spread_skill(0.5 * drawn[1:], drawn[0]) < 0.7).all()


def test_the_spectrum_has_the_variance_and_finds_a_wave():
    rng = np.random.default_rng(0)
    size = 64
    waves = 280.0 + np.cos(2 * np.pi * 8 * np.arange(size) / size) * np.ones((1, size, 1))
    wavelength, power = fields.spectrum(waves[..., None])
    assert wavelength[np.argmax(power[0, :, 0])] == size / 8
    noise = rng.normal(0.0, 2.0, (16, size, size, 1))
    _, power = fields.spectrum(noise)
    np.testing.assert_allclose(power.mean(axis=0) * size**2, 4.0, rtol=0.25)
    assert fields.spectral_distance(noise, noise).max() == 0
    twice = fields.spectral_distance(2 * noise, noise)
    np.testing.assert_allclose(twice, 20 * np.log10(2), rtol=1e-6)


def test_interpolation_is_bicubic_where_all_is_known():
    rng = np.random.default_rng(0)
    low = (1e5 + rng.normal(size=(2, 8, 9, 3))).astype(np.float32)
    made = fields.interpolated(low, 4, 2)
    assert made.shape == (2, 32, 36, 2)
    # float32 has digits for 1e5 to a hundredth; so has the result.
    assert fields.consistency(made, low).max() < 0.5 < low.std()
    low[0, :3, :3] = np.nan
    hole = fields.interpolated(low, 4, 2)
    assert np.isnan(hole[0, :8, :8]).all() and np.isfinite(hole[0, 16:]).all()
    np.testing.assert_array_equal(hole[1], made[1])


def test_scores_are_in_units_by_channel_and_in_deviations_over_all():
    samples, truth = _ensemble()
    scoring = evaluator.Fields(("t2m (K)", "1"), (5.0, 2.0))
    given = {"reference": truth[..., :2], "low_resolution": truth[:, ::4, ::4, :2]}
    numbers = dict(zip(scoring.of_output, scoring.score(samples[0][..., :2], given), strict=True))
    np.testing.assert_allclose(
        numbers["rmse"], numbers["rmse[t2m (K)]"] / 10 + numbers["rmse[1]"] / 4, rtol=1e-12
    )
    metric = registry.find("crps[t2m (K)]")
    assert (metric.title, metric.unit, metric.heading) == ("CRPS, t2m", "K", "CRPS, t2m (K)")
    assert registry.find("correlation[t2m (K)]").unit == ""
    assert registry.label_of("rmse[t2m (K)]_std") == "t2m (K)" and not registry.label_of("rmse")
