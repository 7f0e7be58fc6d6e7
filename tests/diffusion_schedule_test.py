import jax
import numpy as np
import pytest

from sr3_jax import diffusion

ALL = {
    "linear": diffusion.linear(),
    "linear_ddpm": diffusion.linear(1000, 1e-4, 2e-2),
    "quadratic": diffusion.quadratic(),
    "warm_up": diffusion.warm_up(2000, 1e-6, 1e-2, 0.5),
    "cosine": diffusion.cosine(),
    "uniform_gamma": diffusion.uniform_gamma(),
    "karras": diffusion.karras(),
    "respaced": diffusion.respace(diffusion.linear(), 100),
}


@pytest.mark.parametrize("name", ALL)
def test_forward_steps_compose_to_gamma(name):
    """Signal and variance after all steps of q(y_t | y_{t-1}) are those of gamma_t."""
    schedule = ALL[name]
    signal, variance = 1.0, 0.0
    for t in range(1, schedule.num_steps + 1):
        beta = float(schedule.beta[t])
        signal *= np.sqrt(1.0 - beta)
        variance = (1.0 - beta) * variance + beta
        assert np.isclose(signal**2, schedule.gamma[t], rtol=1e-3, atol=1e-9)
        assert np.isclose(variance, schedule.one_minus_gamma[t], rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_bounds_and_monotony(name):
    schedule = ALL[name]
    assert schedule.gamma[0] == 1.0 and schedule.beta[0] == 0.0
    assert np.all((schedule.beta[1:] > 0) & (schedule.beta[1:] < 1))
    assert np.all(np.diff(schedule.one_minus_gamma) >= 0)
    assert np.sqrt(schedule.gamma[-1]) <= diffusion.MAX_TERMINAL_NOISE_LEVEL


def test_the_papers_schedule_ends_where_the_paper_says():
    assert np.isclose(diffusion.linear().gamma[-1], 4.4e-5, rtol=0.01)
    assert diffusion.linear().num_steps == 2000


def test_low_noise_keeps_its_digits():
    """1 - gamma_1 = beta_1 = 1e-6: computed in float32 from gamma it would be off by 5 %."""
    schedule = diffusion.linear()
    assert np.isclose(schedule.one_minus_gamma[1], 1e-6, rtol=1e-5)


def test_uniform_gamma_is_uniform():
    steps = np.diff(diffusion.uniform_gamma(500).gamma.astype(np.float64))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-3)


def test_respaced_lies_on_the_schedule_it_thins_out():
    full = diffusion.cosine(1000)
    thin = diffusion.respace(full, 10)
    np.testing.assert_allclose(thin.gamma, full.gamma[::100], rtol=1e-4)
    np.testing.assert_allclose(diffusion.respace(full, 1000).beta, full.beta, rtol=1e-3)


@pytest.mark.parametrize("num_steps", [1, 2, 10, 1000])
def test_karras_ends_at_the_same_noise_for_any_number_of_steps(num_steps):
    schedule = diffusion.karras(num_steps, sigma_max=30.0)
    assert np.isclose(1 / schedule.gamma[-1] - 1, 30.0**2, rtol=1e-4)
    if num_steps > 2:
        root = (1 / schedule.gamma[1:].astype(np.float64) - 1) ** (1 / 14)
        np.testing.assert_allclose(np.diff(root), np.diff(root)[0], rtol=0.02)


def test_schedule_is_a_frozen_pytree():
    schedule = diffusion.linear()
    assert len(jax.tree.leaves(schedule)) == 3
    traced = jax.jit(lambda s: s.gamma[-1] * s.num_steps)(schedule)
    assert np.isclose(traced, schedule.gamma[-1] * 2000)
    with pytest.raises(AttributeError):
        schedule.beta = None


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.1, 1.5, np.nan, np.inf])
def test_beta_outside_its_range_is_named(beta):
    with pytest.raises(ValueError, match=r"beta_2 = .* outside \(0, 1\)"):
        diffusion.from_betas(np.array([0.5, beta, 0.99]))


def test_beta_too_small_to_lower_gamma_is_named():
    with pytest.raises(ValueError, match="gamma must fall"):
        diffusion.from_betas(np.array([0.5, 1e-20, 0.999]))


def test_empty_schedule():
    with pytest.raises(ValueError, match="at least one step"):
        diffusion.from_betas(np.array([]))
    with pytest.raises(ValueError, match="num_steps = 0"):
        diffusion.linear(0)


def test_shortened_schedule_is_refused_with_a_remedy_that_works():
    """The trap: SR3's betas over 100 steps end at sqrt(gamma_T) = 0.78."""
    with pytest.raises(ValueError, match=r"0\.778.*multiply them by about") as info:
        diffusion.linear(100)
    factor = float(str(info.value).split("by about ")[1].split(",")[0])
    remedied = diffusion.linear(100, factor * 1e-6, factor * 1e-2)
    assert np.sqrt(remedied.gamma[-1]) <= diffusion.MAX_TERMINAL_NOISE_LEVEL
    assert diffusion.linear(100, max_terminal_noise_level=1.0).num_steps == 100


def test_respace_cannot_make_steps_up():
    with pytest.raises(ValueError, match="2001 steps out of a schedule of 2000"):
        diffusion.respace(diffusion.linear(), 2001)
