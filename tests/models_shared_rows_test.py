"""Normalisation before a convolution of images whose rows several devices share."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from sr3_jax import models, parallel
from sr3_jax.models import normalization, shared_rows
from sr3_jax.models.shared_rows import Normalised
from sr3_jax.models.width_packing import PackedImage
from sr3_jax.parallel.mesh import BATCH_AXES

HEIGHT, WIDTH, CHANNELS = 32, 8, (4, 8)


def on_mesh(function, spatial):
    """Runs a function of a batch as a training step does: each device with its images."""
    mesh = parallel.make_mesh(spatial=spatial)
    rows = PartitionSpec(BATCH_AXES)
    run = jax.shard_map(
        function,
        mesh=mesh,
        in_specs=rows,
        out_specs=rows,
        axis_names=set(BATCH_AXES),
        check_vma=False,
    )
    return lambda batch: jax.jit(run)(jax.device_put(batch, parallel.Layout(mesh).rows))


def batch():
    """Images in two parts, and what is added to them; the first rows are far from the others."""
    keys = jax.random.split(jax.random.key(0), 3)
    parts = [
        jax.random.normal(k, (8, HEIGHT, WIDTH, n)) for k, n in zip(keys[:2], CHANNELS, strict=True)
    ]
    parts = [part.at[:, :1].add(3.0) for part in parts]
    return parts, jax.random.normal(keys[2], (8, sum(CHANNELS)))


@pytest.mark.parametrize("spatial", [2, 4])
@pytest.mark.parametrize("factor", [1, 2])
def test_rows_of_other_devices_are_seen_normalised(spatial, factor):
    """Value and all gradients of two blocks in a row: parts, then (packed) a shifted image."""
    keys = jax.random.split(jax.random.key(1), 5)
    kernels = [jax.random.normal(k, (3, 3, n, 8)) for k, n in zip(keys[:2], CHANNELS, strict=True)]
    last = jax.random.normal(keys[2], (3, 3, 8, 4))
    scale, offset = jax.random.normal(keys[3], (2, sum(CHANNELS)))
    is_used = []

    def two(normalised, parameters, parts, shift):
        kernels, last, scale, offset = parameters
        b = shift.shape[0]
        scale, offset = (jnp.broadcast_to(v, (b, v.size)) for v in (scale, offset))
        image = PackedImage(tuple(parts)).packed_by(factor)
        h = normalised(image, shift, scale, offset, 4, True).convolve(kernels, shifts=True)
        h = normalised(h, shift[:, :8], scale[:, :8], offset[:, :8], 2, True)
        return h.convolve([last], shifts=True).to_array()

    def run(normalised):
        def gradients(given):
            parts, shift = given
            is_used.append(shared_rows.are_shared(PackedImage(tuple(parts))))

            def total(parameters, parts, shift):
                out = two(normalised, parameters, parts, shift)
                weights = jnp.cos(jnp.arange(out[0].size)).reshape(out.shape[1:])
                return jnp.sum(weights * out), out

            parameters = (kernels, last, scale, offset)
            find = jax.grad(total, (0, 1, 2), has_aux=True)
            (of_parameters, *others), out = find(parameters, parts, shift)
            each = jax.tree.map(lambda leaf: leaf[None], of_parameters)  # of each group of devices
            return out, each, others

        return gradients

    def summed(found):
        out, each, others = found
        return out, jax.tree.map(lambda leaf: leaf.sum(0), each), others

    ours = summed(on_mesh(run(Normalised), spatial)(batch()))
    expected = summed(on_mesh(run(lambda *a: normalization.group_norm(*a)), 1)(batch()))
    assert is_used == [True, False]
    for a, e in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=2e-5 * np.abs(e).max())


@pytest.mark.parametrize(
    "options",
    [{}, {"packed_channels": 16, "remat": True, "scale_shift": True, "learned_variance": True}],
    ids=["plain", "packed"],
)
def test_the_network_is_the_same_and_its_normalised_images_wait(options, monkeypatch):
    network = models.UNet(channels=8, multipliers=(1, 2), num_blocks=1, **options)
    keys = jax.random.split(jax.random.key(0), 2)
    images = [jax.random.normal(key, (8, HEIGHT, WIDTH, 3)) for key in keys]
    params = network.init(jax.random.key(1), images[0][:1], images[1][:1], jnp.ones(1))
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    waited = []
    convolve = Normalised.convolve
    monkeypatch.setattr(
        Normalised, "convolve", lambda self, *a, **k: waited.append(1) or convolve(self, *a, **k)
    )
    apply = lambda images: network.apply(params, *images, jnp.ones(len(images[0])))  # noqa: E731
    expected = on_mesh(apply, 1)(images)
    assert not waited
    np.testing.assert_allclose(on_mesh(apply, 4)(images), expected, atol=1e-4)
    # Two of each block of the first level, one of that which enlarges, and the last.
    assert len(waited) == 2 * 3 + 1 + 1


@pytest.mark.parametrize(
    ("height", "spatial", "shared"), [(32, 4, True), (28, 4, False), (18, 4, False), (18, 2, True)]
)
def test_few_rows_and_unequal_numbers_are_left_to_xla(height, spatial, shared):
    asked = []

    def ask(batch):
        asked.append(shared_rows.are_shared(PackedImage((batch,))))
        return batch

    on_mesh(ask, spatial)(jnp.ones((8, height, 4, 4)))
    assert asked == [shared]
