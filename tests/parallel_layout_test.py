"""Layouts change the sharding of a training step's arrays, and no result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_run

from sr3_jax import diffusion, models, parallel
from sr3_jax.config import layouts, read
from sr3_jax.training.state import init_state, state_shardings
from sr3_jax.training.step import jit_train_step, make_train_step

SIZE, BATCH = 16, 8
MODEL = models.UNet(
    channels=8, multipliers=(1, 2), num_blocks=1, bottleneck_attention=False, dropout=0.2
)
DENOISER = models.Denoiser(MODEL)
SCHEDULE = diffusion.linear(100, 1e-3, 0.2)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
LAYOUTS = [  # name, axes, micro-batches
    ("replicated", dict(), 2),
    ("zero1", dict(shards=2), 2),
    ("zero1", dict(model=2), 1),
    ("fsdp", dict(spatial=2), 1),
]


def batch(seed):
    rng = np.random.default_rng(seed)
    return {
        "high_resolution": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8),
        "low_resolution": rng.integers(0, 256, (BATCH, SIZE // 4, SIZE // 4, 3), dtype=np.uint8),
        "weight": np.array([1.0] * 6 + [0.0] * 2, np.float32),
        "index": np.arange(BATCH, dtype=np.int32),
    }


@functools.cache
def first_state():
    """Returns the initial state as numpy arrays, since steps donate theirs."""
    init = functools.partial(init_state, MODEL, OPTIMIZER, 0, SIZE)
    return jax.tree.map(np.array, jax.jit(init)())


def train(layout, accumulate_steps=1, num_steps=3, denoiser=DENOISER):
    """Returns the state after a few steps, and the losses."""
    state = first_state()
    options = small_run.options(seed=3, accumulate_steps=accumulate_steps)
    step = make_train_step(denoiser, SCHEDULE, OPTIMIZER, options, layout)
    if layout is None:
        step, place = jax.jit(step), dict
    else:
        state = jax.device_put(state, state_shardings(layout, state))
        step = jit_train_step(step, layout, state)
        place = functools.partial(parallel.to_global, mesh=layout.mesh)
    losses = []
    for i in range(num_steps):
        state, metrics = step(state, place(batch(i)))
        losses.append([float(metrics["loss"]), float(metrics["gradient_norm"])])
    return state, losses


@pytest.fixture(scope="module")
def alone():
    return train(None)


@pytest.mark.parametrize(("name", "axes", "accumulate_steps"), LAYOUTS)
def test_every_layout_trains_as_one_device_does(alone, name, axes, accumulate_steps):
    layout = parallel.Layout(parallel.make_mesh(**axes), name)
    state, losses = train(layout, accumulate_steps)
    expected, expected_losses = alone
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-4)
    # Adam divides by the gradient's size, so rounding shows where a gradient is nearly zero.
    for ours, theirs in zip(
        jax.tree.leaves(state.params), jax.tree.leaves(expected.params), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)


@pytest.mark.parametrize(("name", "axes"), [("zero1", dict(shards=2)), ("fsdp", dict(spatial=2))])
def test_bfloat16_trains_on_several_devices(alone, name, axes):
    """XLA for CPUs ends the process at a sum of bfloat16 over devices."""
    narrow = models.Denoiser(MODEL.clone(dtype=jnp.bfloat16, by_products=True))
    layout = parallel.Layout(parallel.make_mesh(**axes), name)
    _, losses = train(layout, num_steps=2, denoiser=narrow)
    np.testing.assert_allclose(losses, alone[1][:2], rtol=0.01)


def test_zero1_keeps_a_share_of_everything_on_each_device():
    layout = parallel.Layout(parallel.make_mesh(), "zero1")
    state, _ = train(layout, num_steps=1)
    devices = jax.device_count()
    for tree in (state.params, state.ema_params, state.opt_state):
        whole = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
        # Arrays that no axis divides (3 output channels, scalars) are replicated.
        assert held < 1.1 * whole / devices


def test_specs_avoid_the_last_axis_and_leave_whole_what_does_not_divide():
    layout = parallel.Layout(parallel.make_mesh(), "zero1")

    def spec(*shape):
        return tuple(layout.kept(jax.ShapeDtypeStruct(shape, jnp.float32)).spec)

    assert jax.device_count() == 4
    assert spec(3, 3, 8, 1024) == (None, None, "data", None)
    assert spec(3, 3, 6, 8) == (None, None, None, "data")
    assert spec(8) == ("data",)
    assert spec(3) == (None,)
    assert spec() == ()


def test_shares_are_powers_of_two():
    shapes = [parallel.make_mesh(jax.devices()[:n]).shape for n in (1, 2, 3, 4)]
    assert [(s["replica"], s["data"]) for s in shapes] == [(1, 1), (1, 2), (3, 1), (1, 4)]
    with pytest.raises(ValueError, match="shards = 3 does not divide 4 groups of devices"):
        parallel.make_mesh(shards=3)


def test_unknown_layouts_and_groups_that_cannot_be_are_named():
    config = small_run.quickstart.get_config()
    config.parallel.layout = "zero9"
    with pytest.raises(ValueError, match="config.parallel.layout = 'zero9' is unknown; use one of"):
        layouts.layout(read(config))
    config = small_run.quickstart.get_config()
    config.parallel.spatial = 3
    with pytest.raises(ValueError, match="config.parallel: 4 devices cannot.* 3 for `spatial`"):
        layouts.layout(read(config))
    config = small_run.quickstart.get_config()
    config.parallel.layout = "zero1"
    config.train.batch_size = 2  # on four devices
    assert layouts.layout(read(config)).mesh.shape == {
        "replica": 1,
        "data": 2,
        "model": 1,
        "spatial": 2,
    }
    config.train.batch_size = 8
    assert layouts.layout(read(config)).mesh.shape["data"] == 4
    config.train.batch_size = 6
    with pytest.raises(ValueError, match="cannot be split over 4 devices; 4 or 8 would do"):
        layouts.layout(read(config))


def test_fsdp_keeps_no_gathered_parameter_for_the_gradient():
    """The backward pass gathers the kernels a second time."""

    def gathers(name):
        layout = parallel.Layout(parallel.make_mesh(), name)
        state = jax.eval_shape(functools.partial(init_state, MODEL, OPTIMIZER, 0, SIZE))
        step = make_train_step(
            models.Denoiser(MODEL), SCHEDULE, OPTIMIZER, small_run.options(), layout
        )
        program = str(jax.make_jaxpr(step)(state, batch(0)))
        kernels = sum(leaf.ndim > 1 for leaf in jax.tree.leaves(state.params))
        return program.count(" all_gather["), kernels

    once, kernels = gathers("zero1")
    twice, _ = gathers("fsdp")
    assert once + kernels <= twice <= 2 * once
