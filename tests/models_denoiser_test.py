"""The denoiser: what it makes of a network's output, whatever that predicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from sr3_jax import diffusion, models

TYPES = list(diffusion.PREDICTIONS.values())
each_type = pytest.mark.parametrize("prediction", TYPES, ids=lambda prediction: prediction.name)


def inputs():
    keys = jax.random.split(jax.random.key(0), 2)
    x, y_t = (jax.random.normal(key, (3, 8, 8, 3)) for key in keys)
    return x, y_t, jnp.array([1e-3, 0.5, 0.99])


def untrained(network):
    """Parameters, with zeros where a network begins: in its last convolution."""
    return network.init(jax.random.key(1), *models.example_inputs(network, 8))["params"]


class Knows(small_run.Network):
    """Predicts for one y_0, the same for all images: half of x, and with labels a tenth of them."""

    prediction: diffusion.Prediction
    num_classes: int = 0

    def __call__(self, x, y_t, gamma, label=None):
        y_0 = 0.5 * x
        if label is not None:
            y_0 += 0.1 * label[:, None, None, None]
        eps = diffusion.PREDICTIONS["y_0"].to_eps(y_0, y_t, gamma)
        return self.prediction.target(y_0, eps, gamma)


@each_type
def test_it_says_y_0_whatever_the_network_predicts(prediction):
    x, y_t, gamma = inputs()
    denoiser = models.Denoiser(Knows(prediction), prediction)
    np.testing.assert_allclose(denoiser({}, x, y_t, gamma), 0.5 * x, atol=2e-4)
    # One gamma for all rows, as programs of sampling have it.
    np.testing.assert_allclose(denoiser({}, x, y_t, gamma[1]), 0.5 * x, atol=1e-5)


@each_type
def test_guidance_and_the_null_label(prediction):
    x, y_t, _ = inputs()
    label = jnp.array([1, 2, -1])
    for guidance in (1.0, 3.0):
        denoiser = models.Denoiser(Knows(prediction, num_classes=3), prediction, guidance=guidance)
        found = denoiser({}, x, y_t, jnp.float32(0.5), label) - 0.5 * x
        # The null label is 3, by one more than the greatest class.
        expected = jnp.array([0.3 + guidance * (0.1 - 0.3), 0.3 + guidance * (0.2 - 0.3), 0.3])
        np.testing.assert_allclose(found.mean((1, 2, 3)), expected, atol=1e-5)


@each_type
def test_an_untrained_network_with_preconditioning_takes_the_source_for_the_image(prediction):
    """However strong the noise: what keeps the colours of a short training right."""
    network = models.UNet(channels=8, multipliers=(1,), num_blocks=1, bottleneck_attention=False)
    x, y_0, _ = inputs()
    gamma = jnp.array([1e-4, 1e-3, 1e-2])
    y_t = diffusion.diffuse(y_0, gamma, jax.random.normal(jax.random.key(5), y_0.shape))
    denoiser = models.Denoiser(network, prediction, sigma_data=0.1)
    # Without it, eps = 0 puts y_0 1 / sqrt(gamma) away: 10 to 100.
    np.testing.assert_allclose(denoiser(untrained(network), x, y_t, gamma), x, atol=1e-2)


def test_without_a_source_an_untrained_network_is_the_best_linear_denoiser():
    """Images have that standard deviation about 0; the first convolution takes y_t alone."""
    network = models.UNet(channels=8, multipliers=(1,), has_source=False)
    _, y_t, gamma = inputs()
    params = untrained(network)
    assert params["conv_in"]["kernel"].shape == (3, 3, 3, 8)
    found = models.Denoiser(network, sigma_data=0.5)(params, None, y_t, gamma)
    # Covariance of y_0 and y_t over the variance of y_t.
    share = jnp.sqrt(gamma) * 0.25 / (gamma * 0.25 + 1 - gamma)
    np.testing.assert_allclose(found, share[:, None, None, None] * y_t, atol=2e-5)


def test_a_regression_is_a_denoiser_of_one_call():
    """It corrects x in units of sigma_data, and looks at no y_t."""

    class Regression(small_run.Network):
        has_y_t = False

        def __call__(self, x):
            calls.append(x.shape)
            return jnp.sin(x)

    calls = []
    denoiser = models.Denoiser(Regression(), diffusion.PREDICTIONS["y_0"], sigma_data=0.2)
    x, *_ = inputs()
    keys = jax.random.split(jax.random.key(3), len(x))
    denoise = lambda y_t, gamma: denoiser({}, x, y_t, gamma)  # noqa: E731
    made = diffusion.sample(denoise, diffusion.one_call(), keys, x.shape[1:], clip=False)
    np.testing.assert_allclose(made, x + 0.2 * jnp.sin(x), atol=1e-6)
    assert calls == [x.shape] and diffusion.one_call().nfe == 1


def test_kernels_are_computed_with_in_the_networks_type_and_vectors_in_float32():
    network = models.UNet(channels=8, multipliers=(1,), dtype=jnp.bfloat16)
    params = models.Denoiser(network).cast_params(untrained(network))
    types = {(leaf.ndim > 1, leaf.dtype.name) for leaf in jax.tree.leaves(params)}
    assert types == {(True, "bfloat16"), (False, "float32")}
