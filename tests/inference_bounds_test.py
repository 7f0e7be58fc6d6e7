"""Bounds of upscaling for any pictures: number of programs, memory, factors."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from sr3_jax import SuperResolver, diffusion, models, parallel
from sr3_jax.config import networks, optimizers, read, schedules
from sr3_jax.data import resampling
from sr3_jax.inference import host_images, programs, refinement
from sr3_jax.training.state import init_state


def make_network():
    """One that is quick to compile and looks at more than a pixel; and what it was traced for."""
    traced = []

    class Blur(small_run.Network):
        def __call__(self, x, y_t, gamma):
            traced.append(y_t.shape)
            return 0.5 * (y_t - x) + 0.1 * jnp.roll(y_t, 1, axis=2) + x.mean((1, 2), keepdims=True)

    return models.Denoiser(Blur()), traced


def make_refiner(denoiser, params, devices=1, **sampling):
    config = small_run.config()
    config.sampling.update(dict(tile_size=16, batch_size=4, clip=False) | sampling)
    refiner = refinement.Refiner(
        denoiser,
        read(config).effective_sampling,
        factor=2,
        stride=2,
        devices=jax.local_devices()[:devices],
    )
    refiner.set_params(params)
    return refiner, schedules.sampler(read(config), 2)


def picture(height, width, dtype=np.uint8):
    rng = np.random.default_rng(height * 1000 + width)
    return rng.integers(0, np.iinfo(dtype).max, (1, height, width, 3), dtype, endpoint=True)


def refine(refiner, sampler, image, seed=0):
    (made,) = refiner.refine(image, jax.random.split(jax.random.key(seed), len(image)), sampler)
    return made()


def test_whatever_sizes_come_few_programs_are_compiled():
    """Images of any size, depth and number, strips among them, share few programs."""
    denoiser, traced = make_network()
    refiner, sampler = make_refiner(denoiser, {})
    lengths = (1, 3, 7, 20)  # of a quarter, a half and a whole tile, and to be cut
    sizes = [(height, width, n) for height in lengths for width in lengths for n in (4, 1)]
    for i, (height, width, n) in enumerate(sizes):
        image = np.repeat(picture(height, width, [np.uint8, np.uint16][i % 2]), n, axis=0)
        many = 1 if refiner.grid((height, width)).is_cut else n
        made = refine(refiner, sampler, image[:many])
        assert made.shape == (many, 2 * height, 2 * width, 3) and made.dtype == image.dtype
    assert len(traced) == len(set(traced)) <= 12
    assert refiner.programs.num_networks == len(traced)
    alone, _ = make_refiner(make_network()[0], {})
    np.testing.assert_array_equal(made, refine(alone, sampler, image))


def test_programs_used_least_are_dropped_with_their_memory(monkeypatch):
    monkeypatch.setattr(programs, "_MAX_NETWORKS", 2)
    monkeypatch.setattr(programs, "_MAX_OTHERS", 5)
    denoiser, traced = make_network()
    refiner, sampler = make_refiner(denoiser, {})
    first = refine(refiner, sampler, picture(2, 2))
    refine(refiner, sampler, picture(4, 4))
    refine(refiner, sampler, picture(2, 2))
    (two, four) = (weakref.ref(p) for p in reversed(refiner.programs._networks.values()))
    refine(refiner, sampler, picture(8, 8))
    gc.collect()
    assert two() is not None and four() is None
    assert refiner.programs.num_networks == 2 and len(refiner.programs._others) == 5
    assert len(traced) == 3
    np.testing.assert_array_equal(first, refine(refiner, sampler, picture(2, 2)))
    assert len(traced) == 3


@pytest.mark.parametrize("size", [(8, 8), (5, 8)])
def test_it_is_sampling(size):
    """As `diffusion.sample` has it, of an image filled up by its mirror image."""
    denoiser, _ = make_network()
    refiner, sampler = make_refiner(denoiser, {})
    image = picture(*size)
    large = 2 * size[0], 2 * size[1]
    x = resampling.resize(host_images.to_signed(image), 2, large)
    x = jnp.asarray(np.pad(x, [(0, 0), (0, 16 - large[0]), (0, 0), (0, 0)], "symmetric"))
    keys = jax.random.split(jax.random.key(0), 1)
    expected = diffusion.sample(
        lambda *y: denoiser({}, x, *y), sampler, keys, x.shape[1:], clip=False
    )[:, : large[0]]
    made = refine(refiner, sampler, image.astype(np.uint16) * 257)
    expected = np.clip((np.asarray(expected) + 1) * 32767.5, 0, 65535)
    assert np.abs(made - expected).max() < 1.0


def test_noise_does_not_depend_on_the_array():
    refiner, sampler = make_refiner(make_network()[0], {})
    keys = jax.random.split(jax.random.key(0), 1)
    drawn = [
        np.asarray(refiner.programs.begin(shape, sampler, keys).y_t)
        for shape in (programs.Shape(1, 1, 1, room, (16, 16), False) for room in (100, 150))
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1][:, :300])
    assert abs(drawn[0].std() - 1) < 0.15


class Broken(small_run.Network):
    def __call__(self, x, y_t, gamma):
        return y_t / (y_t - y_t)


def test_values_that_are_not_finite_are_no_picture():
    refiner, sampler = make_refiner(models.Denoiser(Broken()), {})
    with pytest.raises(ValueError, match="not finite; use config.model.dtype = float32"):
        refine(refiner, sampler, picture(5, 5))


@pytest.fixture(scope="module")
def resolver():
    config = small_run.config()
    model, optimizer = networks.model(read(config)), optimizers.optimizer(read(config))
    params = jax.jit(lambda: init_state(model, optimizer, 0, 16).params)()
    return SuperResolver.from_params(config, params)


def test_what_memory_cannot_hold_is_refused_beforehand(resolver):
    resolver.check_fits((40, 60))
    with pytest.raises(
        ValueError, match=r"60000x50000 becomes 240000x200000 and so more than 477 mega"
    ):
        resolver.check_fits((50_000, 60_000))
    with pytest.raises(
        ValueError, match=r"70x50 becomes 280x200 and needs about .* GB .* are free"
    ):
        resolver.check_fits((50, 70), num_samples=10**9)
    with pytest.raises(ValueError, match="70x50 becomes 21x15, by way of 280x200, and needs"):
        resolver.check_fits((50, 70), factor=0.3, num_samples=10**9)
    assert 0 < parallel.free_host_bytes() < 2**50


@pytest.mark.parametrize("attention", [True, False])
def test_memory_is_estimated_well(attention):
    """The estimate is compared with the compiler's figure for the network's program."""
    model = models.UNet(16, (1, 2), 1, bottleneck_attention=attention)
    params = models.parameter_shapes(model, 64)
    refiner, _ = make_refiner(
        models.Denoiser(model), jax.tree.map(lambda p: jnp.zeros(p.shape), params), tile_size=64
    )
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    program = (
        jax.jit(refiner.denoiser.__call__)
        .lower(refiner.params, images, images, 0.5, None)
        .compile()
    )
    taken = program.memory_analysis().temp_size_in_bytes
    assert 0.5 < refiner._bytes_per_pixel((64, 64)) * 64 * 64 / taken < 2


@pytest.mark.parametrize("factor", [0.0, -1, float("nan"), float("inf"), 0.06, 64.5])
def test_factors_have_limits(resolver, factor):
    with pytest.raises(ValueError, match=f"factor = {factor:g}; it must be from 1/16 to 64"):
        resolver.upscale(picture(4, 4)[0], factor=factor)
    assert host_images.output_size((3, 100), 1 / 16) == (1, 6)
