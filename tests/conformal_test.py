"""Intervals hold what they promise, and no more than they have to, where the truth is known."""

import dataclasses
import math

import numpy as np
import pytest
import scipy.stats

from sr3_jax import conformal
from sr3_jax.conformal import Promise

SIDE, CHANNELS = 12, 2


def drawn(rng, count, num_samples, too_sure=1.0):
    """Errors of the samples' mean, and local deviations, of images with a known posterior.

    The truth of each pixel is normal, of a deviation that varies between and within images;
    `too_sure` times that is the deviation of the samples.
    """
    errors, deviations = [], []
    for _ in range(count):
        sigma = rng.uniform(1, 4) * np.exp(np.linspace(-0.5, 0.5, SIDE))[:, None, None]
        sigma = np.broadcast_to(sigma, (SIDE, SIDE, CHANNELS))
        truth = sigma * rng.normal(size=sigma.shape)
        samples = too_sure * sigma * rng.normal(size=(num_samples, *sigma.shape))
        errors.append(truth - conformal.center(samples))
        deviations.append(conformal.local_deviation(samples))
    return errors, deviations


def made_of(shaping, counting, shape="equal"):
    channels = conformal.fit(zip(*shaping, strict=True), shape)
    risks = [conformal.risk(*one, channels) for one in zip(*counting, strict=True)]
    return conformal.Calibration(channels, np.array(risks))


def calibrated(rng, count, num_samples=4, shape="equal", **how):
    sets = (drawn(rng, count, num_samples, **how) for _ in range(2))
    return made_of(*sets, shape)


def inside(band, errors, deviations):
    """The mean share inside."""
    pairs = zip(errors, deviations, strict=True)
    return np.mean([(np.abs(e) <= band.half_widths(d)).mean() for e, d in pairs])


@pytest.mark.parametrize("too_sure", [1.0, 0.6])
def test_half_widths_are_those_of_the_normal_distribution(too_sure):
    """With many samples z sigma, which calibration finds although the samples are too sure."""
    rng = np.random.default_rng(0)
    band = calibrated(rng, 200, num_samples=64, too_sure=too_sure).choose(Promise(0.9))
    centres, radii = np.array(band.centres), np.array(band.radii)
    expected = scipy.stats.norm.ppf(0.95) * np.sqrt(1 / too_sure**2 + 1 / 64) * centres
    # Groups have a width, are of few images, and the promise takes a little more than 90 %.
    np.testing.assert_allclose(radii, expected, rtol=0.08)


def test_the_mean_share_inside_is_promised_and_not_much_more():
    """Over many calibrations of 40 images: between 1 - alpha and 1 - alpha + 2 / 41."""
    rng = np.random.default_rng(1)
    found = []
    for _ in range(60):
        band = calibrated(rng, 40).choose(Promise(0.8))
        found.append(inside(band, *drawn(rng, 10, 4)))
    mean, error = np.mean(found), np.std(found) / math.sqrt(len(found))
    assert 0.8 - 3 * error <= mean <= 0.8 + 2 / 41 + 3 * error


def risky(rng, count, members=201):
    """Risks of `count` images, each a decreasing curve; the mean risk of member m is known."""
    levels = np.linspace(1, 0, members)
    exponents = rng.uniform(0.5, 1.5, (count, 1))
    return levels**exponents, lambda m: np.mean(levels[m] ** np.linspace(0.5, 1.5, 1001))


@pytest.mark.parametrize("delta", [0.1, 0.3])
def test_certified_fails_as_seldom_as_it_says(delta):
    rng = np.random.default_rng(2)
    channels = (conformal.Channel((1.0,), tuple((float(m),) for m in range(201))),)
    failed, member = 0, []
    for _ in range(400):
        risks, true_risk = risky(rng, 60)
        band = conformal.Calibration(channels, risks).choose(Promise(0.7, "certified", delta))
        member.append(int(band.radii[0][0]))
        failed += true_risk(member[-1]) > 0.3
    # Three standard errors of so many trials.
    assert failed / 400 <= delta + 3 * math.sqrt(delta * (1 - delta) / 400)
    needed = next(m for m in range(201) if true_risk(m) <= 0.3)
    assert needed < np.mean(member) < needed + 25  # no more than it has to


def test_each_image_holds_for_the_promised_share_of_images():
    rng = np.random.default_rng(3)
    channels = (conformal.Channel((1.0,), tuple((float(m),) for m in range(201))),)
    kept = []
    for _ in range(400):
        risks, _ = risky(rng, 39)
        band = conformal.Calibration(channels, risks).choose(Promise(0.7, "each_image", 0.2))
        new, _ = risky(rng, 50)
        kept.append((new[:, int(band.radii[0][0])] <= 0.3).mean())
    # ceil(40 * 0.8) = 32 of 40 places are at least as wide: exactly 80 %, but for the grid.
    assert 0.795 - 3 * np.std(kept) / 20 <= np.mean(kept) <= 0.83


def test_too_few_images_promise_nothing():
    rng = np.random.default_rng(4)
    made = calibrated(rng, 30)
    made.choose(Promise(0.96))
    with pytest.raises(ValueError, match="30 calibration images are too few for confidence = 0.97"):
        made.choose(Promise(0.97))  # the one more image may be wholly outside: 1 / 31 > 0.03
    with pytest.raises(ValueError, match="delta = 0.02"):
        made.choose(Promise(0.9, "each_image", 0.02))
    with pytest.raises(ValueError, match="confidence = 90"):
        made.choose(Promise(90))


@pytest.mark.parametrize("shape", conformal.SHAPES)
def test_wider_members_hold_what_narrower_ones_do(shape):
    rng = np.random.default_rng(5)
    made = calibrated(rng, 20, shape=shape)
    for channel in made.channels:
        radii = np.array(channel.radii)
        assert (np.diff(radii, axis=0) >= 0).all() and np.diff(channel.centres).min() > 0
    assert (np.diff(made.risks, axis=1) <= 1e-12).all()


def test_the_share_outside_is_that_of_the_intervals():
    """`risk`, which searches, against intervals that are drawn and counted."""
    rng = np.random.default_rng(6)
    made = calibrated(rng, 20)
    (error,), (deviation,) = drawn(rng, 1, 4)
    error[0, 0], deviation[3] = np.nan, 50.0  # missing, and far beyond all that was seen
    risks = conformal.risk(error, deviation, made.channels)
    for member in (0, 40, 100, 159):
        half = made.band(member).half_widths(deviation)
        known = np.isfinite(error)
        assert risks[member] == pytest.approx(np.mean(np.abs(error[known]) > half[known]), abs=1e-9)


def test_the_shortest_intervals_are_shorter_and_hold_as_much():
    """Heavy tails in smooth parts: there it is cheap to hold more, and dear in rough ones."""
    rng = np.random.default_rng(7)

    def images(count):
        deviations = [rng.uniform(0.5, 8, (SIDE, SIDE, 1)) for _ in range(count)]
        return [d * rng.standard_t(5, d.shape) for d in deviations], deviations

    found = {}
    shaping, counting, other = images(80), images(80), images(200)
    for shape in conformal.SHAPES:
        band = made_of(shaping, counting, shape).choose(Promise(0.85))
        held = inside(band, *other)
        found[shape] = held, np.mean([band.half_widths(d).mean() for d in other[1]])
    assert found["equal"][0] == pytest.approx(0.86, abs=0.02)
    assert found["shortest"][0] == pytest.approx(found["equal"][0], abs=0.02)
    assert found["shortest"][1] < 0.97 * found["equal"][1]


def test_deviation_is_the_samples_own_and_leaves_out_what_is_missing():
    rng = np.random.default_rng(8)
    samples = 3.0 * rng.normal(size=(200, 20, 20, 1)) + 100
    deviation = conformal.local_deviation(samples)
    np.testing.assert_allclose(deviation, 3.0, rtol=0.1)
    missing = samples.copy()
    missing[:, 5:8, 5:8] = np.nan
    found = conformal.local_deviation(missing)
    assert np.isnan(found[5:8, 5:8]).all() and np.isfinite(found[0]).all()
    np.testing.assert_allclose(found[:3], deviation[:3])  # too far away to matter
    np.testing.assert_allclose(found[4, 5], 3.0, rtol=0.1)  # not drawn towards 0
    with pytest.raises(ValueError, match="1 sample"):
        conformal.local_deviation(samples[:1])


def test_constant_samples_have_one_group():
    """A network that always gives one answer: its intervals are as wide everywhere."""
    rng = np.random.default_rng(9)
    errors = [rng.normal(size=(SIDE, SIDE, 1)) for _ in range(40)]
    images = errors, [np.zeros((SIDE, SIDE, 1))] * 40
    made = made_of(images, images)
    assert len(made.channels[0].centres) == 1
    band = made.choose(Promise(0.9))
    assert band.half_widths(np.zeros((2, 2, 1)))[0, 0, 0] == pytest.approx(1.75, abs=0.15)
    assert dataclasses.asdict(band)["centres"] == ((0.0,),)
