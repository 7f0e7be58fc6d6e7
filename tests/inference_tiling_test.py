import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sr3_jax.inference.tiling import tiled_denoise

_KERNEL = jax.random.normal(jax.random.key(0), (5, 5, 6, 3)) / 10


def local_network(x, y_t, gamma):
    """Looks two pixels far, and treats what is outside the tile as zero."""
    both = jnp.concatenate([x, y_t], axis=-1)
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(both, _KERNEL, (1, 1), "SAME", dimension_numbers=dims)


@pytest.mark.parametrize("shape", [(40, 56), (16, 100), (37, 33), (16, 16), (17, 16)])
def test_estimates_that_do_not_depend_on_the_tile_come_back_exactly(shape):
    """Weights add up to 1 everywhere, whatever the size: an estimate of x itself returns x."""
    x = jax.random.normal(jax.random.key(1), (2, *shape, 3))
    denoise = tiled_denoise(lambda x, y_t, gamma: x + 2 * y_t, x, 16, 4)
    y_t = jax.random.normal(jax.random.key(2), x.shape)
    np.testing.assert_allclose(denoise(y_t, jnp.ones(2)), x + 2 * y_t, atol=1e-5)


def test_every_pixel_is_blended_from_the_tiles_that_hold_it():
    """With one constant for each tile, values change gradually and stay between the constants."""
    x = jnp.zeros((1, 16, 64, 3))

    def network(x, y_t, gamma):
        return jnp.mean(y_t) * jnp.ones_like(y_t)

    ramp = jnp.broadcast_to(jnp.arange(64.0)[None, None, :, None], (1, 16, 64, 3))
    blended = np.asarray(tiled_denoise(network, x, 16, 8)(ramp, jnp.ones(1)))[0, 0, :, 0]
    assert np.all(np.diff(blended) >= -1e-4)
    # Neighbouring tiles differ by 8: unblended, that would be the step between two pixels.
    assert np.diff(blended).max() < 2.0
    assert np.isclose(blended[0], 7.5) and np.isclose(blended[-1], 55.5)


def test_only_the_rims_of_tiles_differ_from_the_whole():
    x = jax.random.normal(jax.random.key(1), (1, 40, 40, 3))
    y_t = jax.random.normal(jax.random.key(2), x.shape)
    whole = local_network(x, y_t, None)
    tiled = tiled_denoise(local_network, x, 16, 8)(y_t, jnp.ones(1))
    error = np.abs(np.asarray(whole - tiled)).max(axis=(0, 3))
    # Tiles begin at 0, 8, 16, 24: a pixel two or more from every tile's edge sees all it needs.
    starts = np.arange(0, 25, 8)
    near = np.zeros(40, bool)
    for start in starts:
        for rim in (start, start + 1, start + 14, start + 15):
            near[rim] |= 2 <= rim < 38
    assert error[~near][:, ~near].max() < 1e-5
    assert error.max() > 1e-3  # the test would see a difference


def test_small_images_are_not_cut():
    calls = []

    def network(x, y_t, gamma):
        calls.append(y_t.shape)
        return y_t

    x = jnp.zeros((2, 12, 16, 3))
    tiled_denoise(network, x, 16, 4)(x, jnp.ones(2))
    assert calls == [(2, 12, 16, 3)]


@pytest.mark.parametrize("overlap", [16, -1])
def test_impossible_overlap(overlap):
    with pytest.raises(ValueError, match=f"overlap = {overlap}"):
        tiled_denoise(local_network, jnp.zeros((1, 40, 40, 3)), 16, overlap)
