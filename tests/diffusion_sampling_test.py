"""Samplers against a case with a closed form.

If (x, y_0) is jointly Gaussian, so is p(y_0 | x) = N(m, S), and E[y_0 | y_t, x] is linear in
y_t: with C_t = gamma S + (1 - gamma) I, it is m + sqrt(gamma) S C_t^-1 (y_t - sqrt(gamma) m).
A correct sampler with this denoiser must reproduce m and S.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from sr3_jax import diffusion
from sr3_jax.tools.benchmark import samplers as sampler_benchmark

COUNT = 20_000
DIM = 4


def _conditional(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean and covariance of y_0 given x, for a random joint Gaussian of (x, y_0)."""
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(2 + DIM, 2 + DIM)) * 0.5
    joint = factor @ factor.T + 0.02 * np.eye(2 + DIM)
    mean = rng.normal(size=2 + DIM) * 0.3
    gain = joint[2:, :2] @ np.linalg.inv(joint[:2, :2])
    return mean[2:] + gain @ (x - mean[:2]), joint[2:, 2:] - gain @ joint[:2, 2:]


MEAN, COVARIANCE = _conditional(np.array([0.4, -0.8]))


def denoise(y_t, gamma):
    gamma = gamma[0]
    mean, covariance = jnp.asarray(MEAN, jnp.float32), jnp.asarray(COVARIANCE, jnp.float32)
    gain = jnp.linalg.inv(gamma * covariance + (1 - gamma) * jnp.eye(DIM)) @ covariance
    return mean + jnp.sqrt(gamma) * (y_t - jnp.sqrt(gamma) * mean) @ gain


SCHEDULES = {
    "linear": diffusion.linear(500, 1e-4, 4e-2),
    "quadratic": diffusion.quadratic(500, 1e-6, 8e-2),
    "cosine": diffusion.cosine(500),
    "uniform_gamma": diffusion.uniform_gamma(1000),
    "sr3": diffusion.linear(),
}


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ancestral_sampling_reproduces_the_conditional_gaussian(name, variance):
    """The mean may be off by 4 standard errors plus 2 % of the spread, the covariance by 5 %.

    20,000 samples: a covariance's standard error is about 1 % of the variances.
    """
    keys = jax.random.split(jax.random.key(7), COUNT)
    sample = jax.jit(
        lambda keys: diffusion.sample(
            denoise, diffusion.ancestral(SCHEDULES[name], variance), keys, (DIM,), clip=False
        )
    )
    y_0 = np.asarray(sample(keys), np.float64)
    spread = np.sqrt(np.diag(COVARIANCE))
    error = np.abs(y_0.mean(0) - MEAN) / spread
    assert error.max() < 4 / np.sqrt(COUNT) + 0.02, error
    scale = np.outer(spread, spread)
    error = np.abs(np.cov(y_0.T) - COVARIANCE) / scale
    assert error.max() < 0.05, error


def test_ancestral_sampling_is_algorithm_2():
    """The steps are those of the paper (Eq. 11), with the same noise."""
    schedule = diffusion.linear(200, 1e-4, 8e-2)
    estimate = lambda y_t, gamma: 0.5 * jnp.tanh(y_t)  # noqa: E731
    key = jax.random.key(1)
    draw = lambda t: np.asarray(jax.random.normal(jax.random.fold_in(key, t), (3, 3)), np.float64)  # noqa: E731
    y = draw(201)
    for t in range(200, 0, -1):
        alpha, gamma = 1 - float(schedule.beta[t]), float(schedule.gamma[t])
        eps = (y - np.sqrt(gamma) * 0.5 * np.tanh(y)) / np.sqrt(1 - gamma)
        z = draw(t) if t > 1 else 0.0
        y = (y - (1 - alpha) / np.sqrt(1 - gamma) * eps) / np.sqrt(alpha) + np.sqrt(1 - alpha) * z
    y_0 = diffusion.sample(estimate, diffusion.ancestral(schedule), key[None], (3, 3), clip=False)
    np.testing.assert_allclose(y_0[0], y, atol=3e-4)


def test_clipping_keeps_the_estimate_in_range():
    """A denoiser that claims y_0 = 3 everywhere ends at 1 with clipping and at 3 without."""
    keys = jax.random.split(jax.random.key(1), 4)
    claim = lambda y_t, gamma: jnp.full_like(y_t, 3.0)  # noqa: E731
    schedule = diffusion.linear(200, 1e-4, 8e-2)
    ends = [
        float(diffusion.sample(claim, diffusion.ancestral(schedule), keys, (2,), clip=clip).mean())
        for clip in (True, False)
    ]
    np.testing.assert_allclose(ends, [1.0, 3.0], atol=1e-2)


SAMPLERS = sampler_benchmark.SAMPLERS
STEPS = sampler_benchmark.STEPS


def _rows_of_the_docs():
    """Reads the table of docs/sampling.md: (sampler, schedule) to (mean, variance) by steps."""
    text = (pathlib.Path(__file__).parent.parent / "docs" / "sampling.md").read_text()
    rows = {}
    for line in text.splitlines():
        name, noise, *cells = [cell.strip() for cell in line.split("|")[1:-1]] or ["", ""]
        if name in SAMPLERS and noise in sampler_benchmark.SCHEDULES:
            numbers = [cell.replace("*", "").split("/") for cell in cells]
            rows[name, noise] = [tuple(float(n) / 100 for n in pair) for pair in numbers]
    return rows


def test_errors_in_few_steps_are_those_of_the_docs():
    rows = _rows_of_the_docs()
    assert {name for name, _ in rows} == set(SAMPLERS)
    for (name, noise), stated in rows.items():
        for num_steps, errors in zip(STEPS, stated, strict=True):
            sampler = SAMPLERS[name](sampler_benchmark.SCHEDULES[noise](num_steps))
            # Stated to a tenth of a per cent.
            found = sampler_benchmark.gaussian_errors(sampler)
            assert found == pytest.approx(errors, abs=6e-4), (name, noise, num_steps)


@pytest.mark.parametrize("name", ["ancestral", "dpmpp_2m, eta 1", "heun"])
def test_propagated_moments_are_those_of_samples(name):
    """The tolerance is five standard errors of 40,000 samples."""
    sampler = SAMPLERS[name](sampler_benchmark.SCHEDULES["log_snr"](7))
    keys = jax.random.split(jax.random.key(0), 40_000)
    drawn = jax.jit(
        lambda keys: diffusion.sample(sampler_benchmark.denoise, sampler, keys, (4,), clip=False)
    )(keys)
    mean, variance = map(np.asarray, sampler_benchmark.moments(sampler))
    of_mean, of_variance = np.sqrt(variance / len(keys)), variance * np.sqrt(2 / len(keys))
    assert (np.abs(np.mean(drawn, 0) - mean) < 5 * of_mean).all()
    assert (np.abs(np.var(drawn, 0) - variance) < 5 * of_variance).all()


def mixture(y_t, gamma):
    """Returns E[y_0 | y_t] for y_0 = -0.6 or 0.6 plus noise, which is not linear in y_t."""
    gamma = gamma.reshape(-1, 1)
    centres = jnp.array([-0.6, 0.6])
    variance = gamma * 0.15**2 + 1 - gamma
    score = [-((y_t - jnp.sqrt(gamma) * c) ** 2) / (2 * variance) for c in centres]
    share = jax.nn.softmax(jnp.stack(score), axis=0)
    centre = sum(s * c for s, c in zip(share, centres, strict=True))
    return centre + jnp.sqrt(gamma) * 0.15**2 / variance * (y_t - jnp.sqrt(gamma) * centre)


@pytest.mark.parametrize("name, order", [("ddim", 1), ("dpmpp_2m", 2), ("heun", 2)])
def test_deterministic_samplers_solve_the_probability_flow_to_their_order(name, order):
    """SciPy solves dx/dr = (x - y_0) / r from y_T to the state before the last step.

    Halving the steps' length divides the error by 2 to the power of the order.
    """
    keys = jax.random.split(jax.random.key(0), 16)

    def slope(ratio, x):
        gamma = 1 / (1 + ratio**2)
        y = jnp.asarray(x.reshape(16, 1) * np.sqrt(gamma), jnp.float32)
        y_0 = np.asarray(mixture(y, jnp.full(16, gamma)), np.float64)
        return ((x.reshape(16, 1) - y_0) / ratio).reshape(-1)

    advance = jax.jit(functools.partial(diffusion.advance, mixture, clip=False))
    errors = []
    for num_steps in (40, 80):
        schedule = diffusion.karras(num_steps, 0.05, 10.0, 7.0, max_terminal_noise_level=0.1)
        sampler = SAMPLERS[name](schedule)
        state = first = diffusion.begin(sampler, keys, (1,))
        for row in range(sampler.nfe - 1):
            state = advance(sampler[row], state, keys)
        gamma = np.asarray(schedule.gamma, np.float64)
        begin = np.asarray(first.y_t, np.float64).reshape(-1) / np.sqrt(gamma[-1])
        ratio = np.sqrt(1 / gamma[[-1, 1]] - 1)
        exact = scipy.integrate.solve_ivp(slope, ratio, begin, rtol=1e-5, atol=1e-6).y[:, -1]
        ours = np.asarray(state.y_t, np.float64).reshape(-1) / np.sqrt(gamma[1])
        errors.append(np.sqrt(np.mean((ours - exact) ** 2)))
    measured = np.log2(errors[0] / errors[1])
    assert order - 0.35 < measured < order + 0.8, (measured, errors)


def test_ddim_with_all_noise_is_ancestral_sampling_with_the_posterior():
    schedule = diffusion.cosine(50)
    ours, theirs = diffusion.ddim(schedule, 1.0), diffusion.ancestral(schedule, "fixed_small")
    for name in ("state", "estimate", "noise"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=2e-6)


def test_samplers_of_as_many_calls_share_a_program():
    """The program of one schedule runs with another."""
    keys = jax.random.split(jax.random.key(0), 2)
    run = jax.jit(lambda sampler: diffusion.sample(denoise, sampler, keys, (DIM,)))
    for make in (diffusion.karras, diffusion.uniform_log_snr):
        for eta in (0.0, 1.0):
            run(diffusion.dpmpp_2m(make(12), eta))
    run(diffusion.ancestral(diffusion.cosine(12)))
    run(diffusion.ddim(diffusion.karras(12), 1.0))
    assert run._cache_size() == 3


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_depends_on_its_own_key_alone(name):
    sampler = SAMPLERS[name](diffusion.linear(20, 1e-3, 0.5))
    keys = jax.random.split(jax.random.key(3), 6)
    draw = lambda keys: diffusion.sample(denoise, sampler, keys, (DIM,), clip=False)  # noqa: E731
    together, reversed_, alone = draw(keys), draw(keys[::-1]), draw(keys[2:3])
    np.testing.assert_allclose(together, reversed_[::-1], atol=1e-5)
    np.testing.assert_allclose(together[2:3], alone, atol=1e-5)
    assert len(np.unique(np.asarray(together)[:, 0])) == 6


@pytest.mark.parametrize("name", ["ancestral", "dpmpp_2m", "heun"])
def test_a_loop_over_part_of_the_rows_goes_on_where_another_ended(name):
    sampler = SAMPLERS[name](diffusion.linear(20, 1e-3, 0.5))
    keys = jax.random.split(jax.random.key(3), 2)
    run = jax.jit(
        lambda first, last, state: jax.lax.fori_loop(
            first, last, lambda i, s: diffusion.advance(denoise, rows[i], s, keys), state
        )
    )
    rows = jax.tree.map(jnp.asarray, sampler)
    state = diffusion.begin(sampler, keys, (DIM,))
    for first, last in ((0, 7), (7, 8), (8, sampler.nfe)):
        state = run(first, last, state)
    whole = diffusion.sample(denoise, sampler, keys, (DIM,))
    np.testing.assert_allclose(state.y_t, whole, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_network_call_a_step(name):
    """The scan's body calls the denoiser once, and runs T times; for Heun's 2 T - 1 times."""
    calls = []

    def counting(y_t, gamma):
        jax.debug.callback(lambda g: calls.append(float(g)), gamma[0], ordered=True)
        return y_t

    schedule = diffusion.linear(13, 1e-3, 0.9)
    keys = jax.random.split(jax.random.key(0), 2)
    diffusion.sample(counting, SAMPLERS[name](schedule), keys, (3,))
    jax.effects_barrier()
    noisiest_first = schedule.gamma[:0:-1]
    expected = noisiest_first
    if name == "heun":  # T, then T - 1 as the end of one step and the start of the next, ...
        expected = np.concatenate([noisiest_first[:1], np.repeat(noisiest_first[1:], 2)])
    np.testing.assert_allclose(calls, expected, rtol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_is_one_scan(name):
    sampler = SAMPLERS[name](diffusion.linear(50, 1e-3, 0.3))
    keys = jax.random.split(jax.random.key(0), 2)
    sample = lambda keys: diffusion.sample(denoise, sampler, keys, (DIM,))  # noqa: E731
    names = [equation.primitive.name for equation in jax.make_jaxpr(sample)(keys).eqns]
    assert names.count("scan") == 1 and "while" not in names


def test_impossible_options_are_named():
    schedule = diffusion.cosine(10)
    for make in (diffusion.ddim, diffusion.dpmpp_2m):
        with pytest.raises(ValueError, match=r"eta = 1\.5 is outside"):
            make(schedule, 1.5)
    with pytest.raises(ValueError, match=r"sigma_min = 3.* need 0 < sigma_min < sigma_max"):
        diffusion.uniform_log_snr(10, 3.0, 2.0)
    with pytest.raises(ValueError, match=r"end at noise level .* = 0\.316"):
        diffusion.uniform_noise_level(10, 3.0)
