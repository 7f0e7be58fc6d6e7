import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr3_jax import diffusion

SCHEDULES = {
    "linear": diffusion.linear(1000, 1e-4, 2e-2),
    "quadratic": diffusion.quadratic(1000, 1e-6, 4e-2),
    "cosine": diffusion.cosine(1000),
    "uniform_gamma": diffusion.uniform_gamma(1000),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("t", [2, 10, 400, 900, 1000])
def test_posterior_is_bayes_rule_on_a_grid(name, t):
    """q(y_{t-1} | y_0, y_t) ~ q(y_t | y_{t-1}) q(y_{t-1} | y_0), normalised numerically."""
    schedule = SCHEDULES[name]
    beta, gamma = np.float64(schedule.beta[t]), np.float64(schedule.gamma[t - 1])
    variance = np.float64(schedule.one_minus_gamma[t - 1])
    y_0 = 0.7
    y_t = np.sqrt(schedule.gamma[t]) * y_0 + 0.6 * np.sqrt(schedule.one_minus_gamma[t])
    from_y_0, from_y_t, var = (c[t] for c in diffusion.process.posterior_coefficients(schedule))
    mean = from_y_0 * y_0 + from_y_t * y_t
    # A grid about where either factor has its mass.
    width = 12 * np.sqrt(min(variance, beta / (1 - beta)))
    center = y_t / np.sqrt(1 - beta) if beta / (1 - beta) < variance else np.sqrt(gamma) * y_0
    grid = np.linspace(center - width, center + width, 200_001)
    log_density = -((y_t - np.sqrt(1 - beta) * grid) ** 2) / (2 * beta)
    log_density -= (grid - np.sqrt(gamma) * y_0) ** 2 / (2 * variance)
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    numeric_mean = (density * grid).sum()
    numeric_var = (density * (grid - numeric_mean) ** 2).sum()
    assert np.isclose(var, numeric_var, rtol=1e-3)
    assert abs(mean - numeric_mean) < 2e-3 * np.sqrt(numeric_var) + 1e-6


def test_posterior_at_the_first_step_is_y_0():
    coefficients = diffusion.process.posterior_coefficients(diffusion.linear())
    np.testing.assert_allclose([c[1] for c in coefficients], [1.0, 0.0, 0.0], atol=1e-6)


def test_forward_process_has_the_stated_mean_and_variance():
    eps = jax.random.normal(jax.random.key(1), (2, 400_000))
    gamma = jnp.array([0.8, 0.05])
    y_t = np.asarray(diffusion.diffuse(jnp.full(eps.shape, 0.5), gamma, eps), np.float64)
    np.testing.assert_allclose(y_t.mean(1), 0.5 * np.sqrt(gamma), atol=5 / np.sqrt(400_000))
    np.testing.assert_allclose(y_t.var(1), 1 - gamma, rtol=0.01)


@pytest.mark.parametrize("name", SCHEDULES)
def test_gammas_distribution(name):
    """P(gamma <= gamma_t) = (T - t) / T at every knot: uniform in t, then uniform between."""
    schedule = SCHEDULES[name]
    count = 200_000
    keys = jax.random.split(jax.random.key(2), count)
    gamma = np.sort(np.asarray(diffusion.sample_gamma(keys, schedule), np.float64))
    assert gamma[0] >= schedule.gamma[-1] and gamma[-1] <= 1.0
    knots = schedule.gamma.astype(np.float64)
    share = np.searchsorted(gamma, knots, side="right") / count
    expected = 1 - np.arange(len(knots)) / schedule.num_steps
    # Kolmogorov: P(sup |F_n - F| > 1.95 / sqrt(n)) < 0.001
    assert np.abs(share - expected).max() < 1.95 / np.sqrt(count)
    # Inside one wide interval the density is flat.
    coarse = diffusion.uniform_gamma(2, gamma_end=1e-3)
    inside = np.asarray(diffusion.sample_gamma(keys, coarse), np.float64)
    share = (inside < np.linspace(1e-3, 1, 21)[:, None]).mean(1)
    assert np.abs(share - np.linspace(0, 1, 21)).max() < 1.95 / np.sqrt(count)


def test_gamma_is_drawn_for_each_example():
    keys = jax.random.split(jax.random.key(3), 64)
    gamma = np.asarray(diffusion.sample_gamma(keys, diffusion.linear()))
    assert len(np.unique(gamma)) == 64
    half = np.asarray(diffusion.sample_gamma(keys[:32], diffusion.linear()))
    np.testing.assert_array_equal(half, gamma[:32])


def test_loss_is_the_mean_of_the_power_and_ignores_rows_without_weight():
    prediction = jnp.array([[[1.0, -1.0]], [[2.0, 4.0]], [[100.0, 100.0]]])
    eps = jnp.zeros_like(prediction)
    weight = jnp.array([1.0, 1.0, 0.0])
    assert diffusion.denoising_loss(prediction, eps, "l1", weight) == 2.0
    assert diffusion.denoising_loss(prediction, eps, "l2", weight) == 5.5
    assert diffusion.denoising_loss(prediction[:2], eps[:2], "l1") == 2.0
    assert diffusion.denoising_loss(prediction, eps, "l1", 0 * weight) == 0.0


def test_loss_in_bfloat16_is_averaged_in_float32():
    eps = jax.random.normal(jax.random.key(0), (4, 64, 64, 3))
    narrow = diffusion.denoising_loss(jnp.zeros_like(eps, jnp.bfloat16), eps, "l1")
    assert narrow.dtype == jnp.float32
    assert np.isclose(narrow, np.sqrt(2 / np.pi), rtol=0.01)
