"""Samplers against the one case that is known exactly.

Where (x, y_0) is jointly Gaussian, so is p(y_0 | x) = N(m, S), and E[eps | y_t, x] is linear in
y_t: with C_t = gamma S + (1 - gamma) I, it is sqrt(1 - gamma) C_t^-1 (y_t - sqrt(gamma) m).
A correct sampler with this denoiser must reproduce m and S.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr3_jax import diffusion

COUNT = 20_000
DIM = 4


def _conditional(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of y_0 given x, for a random joint Gaussian of (x, y_0)."""
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(2 + DIM, 2 + DIM)) * 0.5
    joint = factor @ factor.T + 0.02 * np.eye(2 + DIM)
    mean = rng.normal(size=2 + DIM) * 0.3
    gain = joint[2:, :2] @ np.linalg.inv(joint[:2, :2])
    return mean[2:] + gain @ (x - mean[:2]), joint[2:, 2:] - gain @ joint[:2, 2:]


MEAN, COVARIANCE = _conditional(np.array([0.4, -0.8]))


def denoise(y_t, gamma):
    gamma = gamma[0]
    spread = gamma * jnp.asarray(COVARIANCE, jnp.float32) + (1 - gamma) * jnp.eye(DIM)
    centered = y_t - jnp.sqrt(gamma) * jnp.asarray(MEAN, jnp.float32)
    return jnp.sqrt(1 - gamma) * centered @ jnp.linalg.inv(spread)


SCHEDULES = {
    "linear": diffusion.linear(500, 1e-4, 4e-2),
    "quadratic": diffusion.quadratic(500, 1e-6, 8e-2),
    "cosine": diffusion.cosine(500),
    "uniform_gamma": diffusion.uniform_gamma(1000),
    "sr3": diffusion.linear(),
}


@pytest.mark.parametrize("variance", ["upper", "posterior"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ancestral_sampling_reproduces_the_conditional_gaussian(name, variance):
    """Mean within 4 standard errors plus 2 % of the spread for T finite steps, covariance 5 %.

    20,000 samples: a covariance's standard error is about 1 % of the variances.
    """
    keys = jax.random.split(jax.random.key(7), COUNT)
    sample = jax.jit(
        lambda keys: diffusion.ancestral_sample(
            denoise, SCHEDULES[name], keys, (DIM,), variance=variance, clip=False
        )[0]
    )
    y_0 = np.asarray(sample(keys), np.float64)
    spread = np.sqrt(np.diag(COVARIANCE))
    error = np.abs(y_0.mean(0) - MEAN) / spread
    assert error.max() < 4 / np.sqrt(COUNT) + 0.02, error
    scale = np.outer(spread, spread)
    error = np.abs(np.cov(y_0.T) - COVARIANCE) / scale
    assert error.max() < 0.05, error


def test_clipped_step_equals_eq_11_where_nothing_is_clipped():
    """Posterior mean given the estimate of y_0 = Eq. 11: same key, same result."""
    keys = jax.random.split(jax.random.key(1), 50)
    small = lambda y_t, gamma: diffusion.predict_eps(y_t, gamma, 0.5 * jnp.tanh(y_t))  # noqa: E731
    schedule = diffusion.linear(200, 1e-4, 8e-2)
    results = [
        diffusion.ancestral_sample(small, schedule, keys, (3, 3), clip=clip)[0]
        for clip in (True, False)
    ]
    np.testing.assert_allclose(*results, atol=2e-4)


def test_clipping_keeps_the_estimate_in_range():
    """A denoiser that claims y_0 = 3 everywhere ends at 1 with clipping and at 3 without."""
    keys = jax.random.split(jax.random.key(1), 4)
    claim = lambda y_t, gamma: diffusion.predict_eps(y_t, gamma, jnp.full_like(y_t, 3.0))  # noqa: E731
    schedule = diffusion.linear(200, 1e-4, 8e-2)
    ends = [
        float(diffusion.ancestral_sample(claim, schedule, keys, (2,), clip=clip)[0].mean())
        for clip in (True, False)
    ]
    np.testing.assert_allclose(ends, [1.0, 3.0], atol=1e-2)


def test_a_sample_depends_on_its_own_key_alone():
    schedule = diffusion.linear(20, 1e-3, 0.5)
    keys = jax.random.split(jax.random.key(3), 6)
    together, _ = diffusion.ancestral_sample(denoise, schedule, keys, (DIM,))
    reversed_, _ = diffusion.ancestral_sample(denoise, schedule, keys[::-1], (DIM,))
    alone, _ = diffusion.ancestral_sample(denoise, schedule, keys[2:3], (DIM,))
    np.testing.assert_allclose(together, reversed_[::-1], atol=1e-5)
    np.testing.assert_allclose(together[2:3], alone, atol=1e-5)
    assert len(np.unique(np.asarray(together)[:, 0])) == 6


@pytest.mark.parametrize("count", [2, 3, 7, 21])
def test_snapshots_are_states_of_the_one_chain(count):
    """All states are recorded by the denoiser too; snapshots are an evenly spaced subset."""
    schedule = diffusion.linear(20, 1e-3, 0.5)
    keys = jax.random.split(jax.random.key(3), 2)
    seen = []

    def recording(y_t, gamma):
        jax.debug.callback(lambda y: seen.append(np.asarray(y)), y_t, ordered=True)
        return denoise(y_t, gamma)

    y_0, snapshots = diffusion.ancestral_sample(
        recording, schedule, keys, (DIM,), num_snapshots=count
    )
    jax.effects_barrier()
    states = [*seen, np.asarray(y_0)]
    kept = np.round(np.linspace(0, 20, count)).astype(int)
    assert len(states) == 21
    # Rounding halves may go either way in t = T - index.
    for snapshot, index in zip(np.asarray(snapshots), kept, strict=True):
        near = [np.abs(snapshot - states[i]).max() for i in (index - 1, index, index + 1) if i < 21]
        assert min(near) < 1e-6
    np.testing.assert_array_equal(snapshots[0], states[0])
    np.testing.assert_array_equal(snapshots[-1], y_0)
    assert len({s.tobytes() for s in np.asarray(snapshots)}) == count


def test_one_network_call_a_step():
    """The scan's body calls the denoiser once, and is run T times."""
    calls = []

    def counting(y_t, gamma):
        jax.debug.callback(lambda: calls.append(1), ordered=True)
        return y_t

    diffusion.ancestral_sample(
        counting, diffusion.linear(13, 1e-3, 0.9), jax.random.split(jax.random.key(0), 2), (3,)
    )
    jax.effects_barrier()
    assert len(calls) == 13


def test_the_sampler_is_one_scan():
    schedule = diffusion.linear(50, 1e-3, 0.3)
    keys = jax.random.split(jax.random.key(0), 2)
    sample = lambda keys: diffusion.ancestral_sample(denoise, schedule, keys, (DIM,))  # noqa: E731
    names = [equation.primitive.name for equation in jax.make_jaxpr(sample)(keys).eqns]
    assert names.count("scan") == 1 and "while" not in names


@pytest.mark.parametrize("count", [1, -1, 22])
def test_impossible_numbers_of_snapshots(count):
    with pytest.raises(ValueError, match=f"num_snapshots = {count}"):
        diffusion.ancestral_sample(
            denoise,
            diffusion.linear(20, 1e-3, 0.5),
            jax.random.split(jax.random.key(0), 1),
            (DIM,),
            num_snapshots=count,
        )
