"""Variances that a network learns: the bound, the best variance, and sampling in few steps."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
import small_run
from etils import epath
from flax import linen as nn

from sr3_jax import diffusion, models
from sr3_jax.config import run_file
from sr3_jax.diffusion import process
from sr3_jax.inference import host_images
from sr3_jax.inference.generator import Generator
from sr3_jax.training.state import TrainState
from sr3_jax.training.step import make_train_step

SCHEDULE = diffusion.linear(20, 1e-3, 0.6)
FEW = diffusion.respace(SCHEDULE, 5)
MEAN, STD = 0.1, 0.3  # of each value of the data


def _bound(y_0, estimate, share, t):
    t = jnp.full(len(y_0), t)
    reverse = diffusion.reverse_at(SCHEDULE, t)
    return diffusion.variational_bound(y_0, estimate, share, reverse)


def test_probabilities_of_all_levels_sum_to_1():
    """At t = 1 the bound is minus the logarithm of a distribution over the 256 levels."""
    levels = jnp.linspace(-1.0, 1.0, 256)[:, None]
    for share, estimate in ((0.0, 0.3), (1.0, -1.2), (0.5, 0.99)):
        bits = _bound(levels, jnp.full((256, 1), estimate), jnp.full((256, 1), share), 1)
        assert float(jnp.sum(2.0**-bits)) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_bound_is_the_divergence_of_the_two_steps(share):
    """Against an integral of log p / q over y_{t-1}, by the trapezoidal rule in float64."""
    t, y_0, y_t, estimate = 7, 0.2, -0.4, 0.5
    from_y_0, from_y_t, small = (c[t] for c in process.posterior_coefficients(SCHEDULE))
    variance = small ** (1 - share) * SCHEDULE.beta[t] ** share
    true = scipy.stats.norm(from_y_0 * y_0 + from_y_t * y_t, np.sqrt(small))
    ours = scipy.stats.norm(from_y_0 * estimate + from_y_t * y_t, np.sqrt(variance))
    y = np.linspace(true.mean() - 12 * true.std(), true.mean() + 12 * true.std(), 20001)
    integrand = true.pdf(y) * (true.logpdf(y) - ours.logpdf(y)) / np.log(2)
    found = _bound(*(jnp.full((1, 1), v) for v in (y_0, estimate, share)), t)
    assert float(found[0]) == pytest.approx(np.trapezoid(integrand, y), rel=1e-4)


class Knows(small_run.Network):
    """Predicts y_0 of Gaussian data exactly; learns the variance of each step."""

    has_source = False
    learned_variance = True

    @nn.compact
    def __call__(self, x, y_t, gamma, dropout_keys=None):
        shares = self.param("shares", nn.initializers.zeros, (SCHEDULE.num_steps,))
        gap = jnp.abs(gamma[:, None] - jnp.asarray(SCHEDULE.gamma[1:]))
        share = jnp.broadcast_to(shares[jnp.argmin(gap, 1)][:, None, None, None], y_t.shape)
        return jnp.concatenate([_best_y_0(y_t, gamma), share], axis=-1)


def _best_y_0(y_t, gamma):
    gamma = gamma.reshape(-1, 1, 1, 1)
    gain = jnp.sqrt(gamma) * STD**2 / (gamma * STD**2 + 1 - gamma)
    return MEAN + gain * (y_t - jnp.sqrt(gamma) * MEAN)


def _fixed(schedule):
    """The logarithms of the two variances, t > 1."""
    return np.log(process.posterior_coefficients(schedule)[2][2:]), np.log(schedule.beta[2:])


def _best_shares(schedule):
    """q(y_{t-1} | y_t) of Gaussian data, which is Gaussian: between the two variances, t > 1."""
    gamma, noise = np.asarray(schedule.gamma[2:]), np.asarray(schedule.one_minus_gamma[2:])
    from_y_0 = process.posterior_coefficients(schedule)[0][2:]
    of_y_0 = STD**2 * noise / (gamma * STD**2 + noise)
    small, large = _fixed(schedule)
    return (np.log(np.exp(small) + from_y_0**2 * of_y_0) - small) / (large - small)


DENOISER = models.Denoiser(Knows(), diffusion.PREDICTIONS["y_0"], gives_variance=True)


def test_the_hybrid_loss_finds_the_best_variance_of_each_step():
    config = small_run.options(seed=1, loss="l2", ema_decay=0.0)
    optimizer = optax.adam(optax.linear_schedule(0.1, 0.0, 500))
    step = jax.jit(make_train_step(DENOISER, SCHEDULE, optimizer, config))
    params = {"shares": jnp.zeros(SCHEDULE.num_steps)}
    state = TrainState(jnp.zeros((), jnp.int32), params, params, optimizer.init(params))
    rng = np.random.default_rng(0)
    for _ in range(500):
        levels = (rng.normal(MEAN, STD, (64, 8, 8, 3)) + 1) * 127.5
        batch = {
            "high_resolution": np.clip(np.round(levels), 0, 255).astype(np.uint8),
            "low_resolution": np.zeros((64, 0, 0, 3), np.uint8),
            "weight": np.ones(64, np.float32),
        }
        state, _ = step(state, batch)
    small, large = _fixed(SCHEDULE)  # they hardly differ at much noise: the variances are compared
    learnt = 0.5 * (np.asarray(state.params["shares"])[1:] + 1) * (large - small)
    np.testing.assert_allclose(learnt, _best_shares(SCHEDULE) * (large - small), atol=0.01)
    assert (large - small)[0] > 0.5


@pytest.mark.parametrize("variance", ["learned", "fixed_large", "fixed_small"])
def test_with_the_best_variances_few_steps_draw_the_distribution_of_the_data(variance):
    """The reverse process of Gaussian data is Gaussian, so 5 steps of it are exact."""
    best = jnp.concatenate([jnp.zeros(2), jnp.asarray(_best_shares(FEW), jnp.float32)])

    def denoise(y_t, gamma):
        y_0 = _best_y_0(y_t, gamma)
        t = jnp.argmin(jnp.abs(gamma[0] - jnp.asarray(FEW.gamma)))
        if variance != "learned":
            return y_0
        return jnp.concatenate([y_0, jnp.full_like(y_0, best[t])], axis=-1)

    keys = jax.random.split(jax.random.key(0), 64)
    sampler = diffusion.ancestral(FEW, variance)
    drawn = diffusion.sample(denoise, sampler, keys, (32, 32, 3), clip=False)
    # The last step returns the mean of y_0, whose deviation is less.
    last = np.sqrt(FEW.gamma[1]) * STD**2 / np.sqrt(FEW.gamma[1] * STD**2 + FEW.one_minus_gamma[1])
    error = float(jnp.std(drawn)) / last - 1
    assert abs(error) < 0.01 if variance == "learned" else abs(error) > 0.03, error


def test_a_network_generates_with_what_it_learnt(tmp_path):
    """The compiled programs of generation, against the sampling loop on the same noise."""
    small, workdir = small_run.config(), epath.Path(tmp_path)
    small.update_from_flattened_dict(
        {"data.low_resolution": 0, "model.learned_variance": True, "sampling.tile_size": 0}
        | {"model.sigma_data": 0.0, "sampling.variance": "learned", "sampling.schedule": "respaced"}
    )
    config = small_run.write_workdir(workdir, small, noise=0.3)
    generator = Generator.from_workdir(workdir)
    made = generator.generate(2, seed=3)
    fixed = dataclasses.replace(
        config, sampling=dataclasses.replace(config.sampling, variance="fixed_small")
    )
    other = Generator.from_config(fixed, workdir / "checkpoints").generate(2, seed=3)
    denoiser, params = generator.refiner.denoiser, generator.refiner.params
    assert denoiser.gives_variance
    sampler = generator.make_sampler(config.sampling.num_steps)
    keys = host_images.keys_of(3, 2)
    denoise = functools.partial(denoiser, params, None)
    loop = jax.jit(lambda keys: diffusion.sample(denoise, sampler, keys, (16, 16, 3)))(keys)
    np.testing.assert_allclose(made, host_images.to_levels(np.asarray(loop), np.uint8), atol=1)
    assert (made != other).mean() > 0.2
    assert run_file.load(workdir / "config.json").model.learned_variance
