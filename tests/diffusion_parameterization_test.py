"""Prediction types, preconditioning and weightings of the loss, on single numbers as images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special

from sr3_jax import diffusion

TYPES = list(diffusion.PREDICTIONS.values())
SIGMA_DATA = 0.3
each_type = pytest.mark.parametrize("prediction", TYPES, ids=lambda prediction: prediction.name)


def draws(count, gamma):
    """y_0, eps and y_t `[count, 2]`, with one gamma for each row."""
    y_0, eps = jax.random.normal(jax.random.key(0), (2, count, 2))
    gamma = jnp.broadcast_to(jnp.asarray(gamma, jnp.float32), (count,))
    return y_0, eps, gamma, diffusion.diffuse(y_0, gamma, eps)


@each_type
def test_conversions_invert_the_target_from_almost_no_signal_to_almost_no_noise(prediction):
    """As linear algebra has it in float64, with as much of float32's rounding as its inverse."""
    gamma = jax.nn.sigmoid(jnp.linspace(-11.0, 11.0, 200))
    y_0, eps, gamma, y_t = draws(200, gamma)
    target = prediction.target(y_0, eps, gamma)
    found = [np.asarray(f(target, y_t, gamma)) for f in (prediction.to_y_0, prediction.to_eps)]
    one, zero = jnp.ones_like(y_0), jnp.zeros_like(y_0)
    rows = [  # y_t and the target as combinations of y_0 and eps
        [diffusion.diffuse(a, gamma, b)[:, 0], prediction.target(a, b, gamma)[:, 0]]
        for a, b in ((one, zero), (zero, one))
    ]
    matrix = np.moveaxis(np.array(rows, np.float64), (0, 1, 2), (2, 1, 0))
    given = np.stack([y_t, target], axis=1).astype(np.float64)
    expected = np.moveaxis(np.linalg.solve(matrix, given), 1, 0)
    tolerance = 1e-6 * np.linalg.norm(np.linalg.inv(matrix), axis=(1, 2))[:, None]
    for ours, solved, true in zip(found, expected, (y_0, eps), strict=True):
        assert (np.abs(ours - solved) < 4 * tolerance).all()
        assert (np.abs(ours - true) < 4 * tolerance).all()


def test_v_is_the_velocity_along_the_arc_from_image_to_noise():
    """dy / d phi of y = cos(phi) y_0 + sin(phi) eps, where Salimans and Ho define it."""
    phi = jnp.linspace(0.01, 1.56, 50)
    y_0, eps, gamma, _ = draws(50, jnp.square(jnp.cos(phi)))
    along = lambda phi: diffusion.diffuse(y_0, jnp.square(jnp.cos(phi)), eps)  # noqa: E731
    _, velocity = jax.jvp(along, (phi,), (jnp.ones_like(phi),))
    v = diffusion.PREDICTIONS["v"].target(y_0, eps, gamma)
    np.testing.assert_allclose(v, velocity, atol=2e-4)


@each_type
@pytest.mark.parametrize("gamma", [0.999, 0.5, 0.01, 0.0])
def test_a_preconditioned_network_has_all_that_is_linear_done_and_a_target_of_size_1(
    prediction, gamma
):
    """For y_0 = x + Gaussian noise: what is left is of size c_out, and unrelated to x and y_t."""
    count = 400_000
    x, z, eps = jax.random.normal(jax.random.key(2), (3, 1, count))
    gamma = jnp.array([gamma])
    y_0 = x + SIGMA_DATA * z
    y_t = diffusion.diffuse(y_0, gamma, eps)
    mean, above = (
        diffusion.precondition(jnp.full_like(x, output), prediction, x, y_t, gamma, SIGMA_DATA)
        for output in (0.0, 1.0)
    )
    error = np.asarray(prediction.target(y_0, eps, gamma) - mean, np.float64)
    assert np.std(error) == pytest.approx(float(jnp.mean(above - mean)), rel=0.005, abs=1e-6)
    for known in (np.asarray(x), np.asarray(y_t)):
        limit = 5 * np.std(error) * np.std(known) / np.sqrt(count) + 1e-7
        assert abs(np.mean(error * known)) < limit


def test_preconditioned_networks_of_all_types_are_one_denoiser():
    """EDM's: c_skip and c_out of its Table 1, of y_t / alpha, whose noise is sigma / alpha."""
    _, output, gamma, y_t = draws(100, jnp.linspace(0.001, 0.999, 100))
    sign = {"eps": -1.0, "v": -1.0, "y_0": 1.0}
    alpha = jnp.sqrt(gamma)[:, None]
    noise = jnp.sqrt(1 / gamma - 1)[:, None]
    c_skip = SIGMA_DATA**2 / (noise**2 + SIGMA_DATA**2)
    c_out = noise * SIGMA_DATA / jnp.sqrt(noise**2 + SIGMA_DATA**2)
    for prediction in (type_ for type_ in TYPES if type_.name in sign):
        signed = sign[prediction.name] * output
        made = diffusion.precondition(signed, prediction, None, y_t, gamma, SIGMA_DATA)
        y_0 = prediction.to_y_0(made, y_t, gamma)
        np.testing.assert_allclose(y_0, c_skip * y_t / alpha + c_out * output, atol=2e-5)


WEIGHTINGS = [name for name in diffusion.LOSS_WEIGHTS if name != "none"]


@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_weighted_loss_does_not_depend_on_what_is_predicted(weighting, loss):
    """One wrong estimate of y_0 is expressed as each type."""
    schedule = diffusion.linear()
    keys = jax.random.split(jax.random.key(1), 500)
    y_0, eps, gamma, y_t = draws(500, jnp.clip(diffusion.sample_gamma(keys, schedule), 0.0, 0.99))
    wrong = y_0 + 0.1 * jax.random.normal(jax.random.key(3), y_0.shape)
    wrong_eps = diffusion.PREDICTIONS["y_0"].to_eps(wrong, y_t, gamma)
    losses = []
    for prediction in TYPES:
        pair = (prediction.target(a, b, gamma) for a, b in ((wrong, wrong_eps), (y_0, eps)))
        factor = diffusion.weigh(weighting, prediction, gamma, schedule, loss)
        losses.append(float(diffusion.denoising_loss(*pair, loss, factor=factor)))
    assert losses[0] > 0
    np.testing.assert_allclose(losses, losses[0], rtol=1e-4)


def test_min_snr_is_as_published_for_each_type():
    gamma = np.array([1e-4, 0.1, 0.5, 0.8, 0.9, 0.9999])
    snr = gamma / (1 - gamma)
    clipped = np.minimum(snr, 5)
    published = {"eps": clipped / snr, "v": clipped / (snr + 1), "y_0": clipped}
    for prediction in (type_ for type_ in TYPES if type_.name in published):
        factor = diffusion.weigh("min_snr", prediction, jnp.asarray(gamma), None, "l2")
        np.testing.assert_allclose(factor, published[prediction.name], rtol=2e-3)


@pytest.mark.parametrize("name", ["linear", "cosine", "uniform_gamma"])
def test_the_sigmoid_weighting_is_an_integral_over_log_snr_whatever_the_schedule(name):
    """The loss integrates sigmoid(2 - lambda) |error of eps|^2; the errors are a bump in lambda."""
    schedule = getattr(diffusion, name)(500, **({"beta_end": 0.05} if name == "linear" else {}))
    gamma = diffusion.sample_gamma(jax.random.split(jax.random.key(0), 200_000), schedule)
    log_snr = scipy.special.logit(np.minimum(np.asarray(gamma, np.float64), 1 - 2**-24))
    bump = lambda x: np.exp(-((x - 1.0) ** 2) / 2)  # noqa: E731
    factor = diffusion.weigh("sigmoid", diffusion.PREDICTIONS["eps"], gamma, schedule, "l2")
    drawn = np.asarray(factor, np.float64) * bump(log_snr)
    expected, _ = scipy.integrate.quad(lambda x: scipy.special.expit(2 - x) * bump(x), -6, 8)
    assert drawn.mean() == pytest.approx(expected, abs=5 * drawn.std() / np.sqrt(len(drawn)))
    assert 5 * drawn.std() / np.sqrt(len(drawn)) < 0.05 * expected


@each_type
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_factors_are_finite_where_gamma_rounds_to_1(prediction, weighting):
    schedule = diffusion.linear()
    gamma = jnp.array([1.0, schedule.gamma[-1]], jnp.float32)
    for loss in ("l1", "l2"):
        factor = diffusion.weigh(weighting, prediction, gamma, schedule, loss)
        assert np.isfinite(factor).all() and (factor > 0).all()
