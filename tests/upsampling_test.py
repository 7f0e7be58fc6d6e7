"""The network's x: sources at the size of images (`data.upsampling`)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from sr3_jax import SuperResolver, diffusion, image_ops, models
from sr3_jax.config import changed, networks, read, schedules
from sr3_jax.data import resampling
from sr3_jax.training import tasks


@pytest.mark.parametrize("factor", [1, 1.5, 2, 4])
def test_consistent_upsampling_is_the_least_change(factor):
    """Downsampled it is the source; and what it adds to bicubic is a sum of downsampling's rows."""
    low = np.random.default_rng(0).uniform(-1, 1, (1, 12, 10, 2)).astype(np.float32)
    size = round(12 * factor), round(10 * factor)
    made = resampling.upsample(low, size, factor=factor, consistent=True)
    traced = jax.jit(lambda low: resampling.upsample(low, size, factor=factor, consistent=True))
    np.testing.assert_allclose(made, traced(low), atol=1e-5)
    np.testing.assert_allclose(image_ops.resize_bicubic(made, (12, 10)), low, atol=1e-5)
    down = jax.jacobian(lambda x: image_ops.resize_bicubic(x[None, ..., None], (12, 10)).ravel())(
        jnp.zeros(size)
    ).reshape(120, -1)
    bicubic = resampling.upsample(low, size, factor=factor)
    added = (made - bicubic)[0, ..., 0].ravel()
    found = np.linalg.lstsq(np.asarray(down).T, added, rcond=None)[0]
    np.testing.assert_allclose(np.asarray(down).T @ found, added, atol=1e-4)


class _ShowsSource(small_run.Network):
    """Its estimate of y_0 is x."""

    def __call__(self, x, y_t, gamma):
        return x


@pytest.mark.parametrize("upsampling", ["bicubic", "consistent"])
def test_training_and_sampling_show_the_network_the_same(upsampling):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    config = small_run.config()
    config.data.upsampling = upsampling
    config = changed(read(config), {"data.image_size": 32, "data.low_resolution": 8})
    denoiser = models.Denoiser(_ShowsSource(), diffusion.PREDICTIONS["y_0"])
    resolver = SuperResolver(
        denoiser,
        {},
        functools.partial(schedules.sampler, config),
        config.effective_sampling,
        factor=4,
        stride=1,
        upsample=networks.upsampling(config),
    )
    there = resolver.upscale(images)
    batch = {
        "low_resolution": images,
        "high_resolution": there,
        "key": jax.random.split(jax.random.key(0), len(images)),
        "weight": np.ones(len(images)),
    }
    batch = jax.tree.map(jnp.asarray, batch)
    task = tasks.denoising(denoiser, schedules.training_schedule(config), batch, config)
    here = image_ops.to_uint8(task.x)
    np.testing.assert_allclose(np.int16(there), np.int16(here), atol=1)
    error = np.abs(image_ops.resize_bicubic(task.x, (8, 8)) - image_ops.to_signed(images)).max()
    assert error > 0.1 if upsampling == "bicubic" else error < 1e-5
