"""A packed image against the plain one: each operation gives the same."""

import dataclasses

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
    """The result, which may be shifted, and the gradients of image and kernels."""
    keys = jax.random.split(jax.random.key(1), 3)
    shapes = [(3, 3, channels, 7) for channels in (3, 5)]
    kernels = [jax.random.normal(*arguments) for arguments in zip(keys, shapes, strict=False)]
    weights = jax.random.normal(keys[2], (2, 8, 2 * WIDTH, 7))

    def run(convolve, image):
        def total(image, kernels):
            out = convolve(image, kernels)
            return jnp.sum(weights * out), out

        (_, out), (of_image, of_kernels) = jax.value_and_grad(total, (0, 1), has_aux=True)(
            image, kernels
        )
        return out, of_image.to_array(), *of_kernels

    def at_once(image, kernels):
        out = image.convolve_doubled(kernels)
        assert out.factor == factor_after and out.shifted == (factor_after > 1)
        (part,), (left, right) = out.parts, out.outside
        b, h, w, c = part.shape
        return part.reshape(b, h, w * c)[:, :, left : w * c - right].reshape(weights.shape)

    def one_by_one(image, kernels):
        return image.resample("up").convolve(kernels).to_array()

    with pytest.raises(ValueError, match="shifted"):
        dataclasses.replace(image_in_parts(1), shifted=True).convolve_doubled(kernels)
    packed = image_in_parts(factor, ((2 * WIDTH, factor_after),))
    found, expected = run(at_once, packed), run(one_by_one, image_in_parts(1))
    for a, e in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5 * np.abs(e).max())


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
