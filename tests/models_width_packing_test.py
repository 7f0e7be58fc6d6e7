"""A packed image against the plain one: each operation gives the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr3_jax.models import width_packing
from sr3_jax.models.width_packing import PackedImage

WIDTH = 16


def image_in_parts(factor, factors=()):
    """A random image of 3 and 5 channels."""
    keys = jax.random.split(jax.random.key(0), 2)
    parts = [jax.random.normal(k, (2, 4, WIDTH, n)) for k, n in zip(keys, (3, 5), strict=True)]
    return PackedImage(tuple(parts), factors=factors).packed_by(factor)


def test_neighbours_lie_side_by_side_in_the_channels():
    plain, packed = image_in_parts(1), image_in_parts(4)
    assert packed.factor == 4 and packed.channels == (3, 5) and packed.shape == (2, 4, WIDTH, 8)
    part = packed.parts[1]
    np.testing.assert_array_equal(part[1, 2, 3, 2 * 5 : 3 * 5], plain.parts[1][1, 2, 14])
    np.testing.assert_array_equal(packed.to_array(), jnp.concatenate(plain.parts, axis=-1))


@pytest.mark.parametrize("how", ["up", "down"])
@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("factor_after", [1, 2, 4, 8])
def test_packed_images_are_resampled_like_others(how, factor, factor_after):
    width = {"up": 2 * WIDTH, "down": WIDTH // 2}[how]
    packed = image_in_parts(factor, ((width, factor_after),))
    expected, out = image_in_parts(1).resample(how), packed.resample(how)
    assert out.factor == factor_after
    np.testing.assert_allclose(out.to_array(), expected.to_array(), atol=1e-6)

    weights = jax.random.normal(jax.random.key(3), out.shape)

    def gradient(image):
        weigh = lambda image: jnp.sum(weights * image.resample(how).to_array())  # noqa: E731
        return jax.grad(weigh)(image).to_array()

    np.testing.assert_allclose(gradient(packed), gradient(image_in_parts(1)), atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("factor_after", [1, 2, 4, 8])
def test_packed_images_are_doubled_and_convolved_like_others(factor, factor_after):
    keys = jax.random.split(jax.random.key(1), 2)
    kernels = [jax.random.normal(k, (3, 3, n, 7)) for k, n in zip(keys, (3, 5), strict=True)]
    out = image_in_parts(factor, ((2 * WIDTH, factor_after),)).convolve_doubled(kernels)
    assert out.factor == factor_after and out.shifted == (factor_after > 1)
    (part,) = out.parts
    left, right = out.outside
    inside = part.reshape(*part.shape[:2], -1)[..., left : part.shape[2] * part.shape[3] - right]
    expected = image_in_parts(1).resample("up").convolve(kernels).to_array()
    np.testing.assert_allclose(inside.reshape(out.shape), expected, atol=2e-5)


@pytest.mark.parametrize("window", [(), (3, 3)])
def test_packed_images_are_convolved_like_others(window):
    keys = jax.random.split(jax.random.key(1), 2)
    kernels = [jax.random.normal(k, (*window, n, 7)) for k, n in zip(keys, (3, 5), strict=True)]
    expected, out = (image_in_parts(factor).convolve(kernels) for factor in (1, 4))
    assert out.factor == 4
    np.testing.assert_allclose(out.to_array(), expected.to_array(), atol=1e-5)


def test_numbers_for_each_channel_reach_every_pixel():
    values = jax.random.normal(jax.random.key(2), (2, 8))
    packed = image_in_parts(4)
    np.testing.assert_array_equal(
        (packed + values).to_array(), packed.to_array() + values[:, None, None]
    )
    np.testing.assert_array_equal((packed + values[0]).to_array(), packed.to_array() + values[0])
    np.testing.assert_allclose(packed.mean(), packed.to_array().mean((1, 2)), atol=1e-6)


def test_the_factor_stops_where_the_width_cannot_be_halved():
    assert width_packing.least_factor(16, 1024, 128) == 8
    assert width_packing.least_factor(128, 1024, 128) == 1
    assert width_packing.least_factor(16, 12, 128) == 4
    assert width_packing.least_factor(24, 64, 64) == 4
