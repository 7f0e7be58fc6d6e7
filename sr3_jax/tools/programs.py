"""The programs that TPUs run, on shapes alone: what `aot_report` compiles."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from sr3_jax import diffusion, images, models, parallel
from sr3_jax.config import Config, networks, schedules
from sr3_jax.training import state as training_state
from sr3_jax.training import step as training_step

# A jitted function, its abstract arguments, and bytes that each device holds of what stays.
Program = tuple[jax.stages.Wrapped, tuple[Any, ...], dict[str, int]]


def train(config: Config, layout: parallel.Layout) -> Program:
    """The jitted training step, its abstract arguments, and sizes of what it holds."""
    model, optimizer = networks.model(config), networks.optimizer(config)
    init = functools.partial(
        training_state.init_state, model, optimizer, config.seed, config.data.image_size
    )
    shapes = jax.eval_shape(init)
    lies = training_state.state_shardings(layout, shapes)
    state = jax.tree.map(_placed, shapes, lies)
    step = training_step.make_train_step(
        model,
        schedules.training_schedule(config),
        optimizer,
        config,
        layout,
    )
    batch = training_step.batch_shapes(
        layout, config.train.batch_size, config.data.image_size, config.data.low_resolution
    )
    program = training_step.jit_train_step(step, layout, shapes)
    parts = {
        "parameters": _size(state.params),
        "average of the parameters": _size(state.ema_params),
        "optimizer state": _size(state.opt_state),
        "batch": _size(batch),
    }
    return program, (state, batch), parts


def sample(config: Config, layout: parallel.Layout) -> Program:
    """One refinement step of `config.train.batch_size` images, weights in the network's type.

    Of a baseline, all there is.
    """
    model = networks.model(config)
    rows, size = config.train.batch_size, config.data.image_size
    low = config.data.low_resolution
    shapes = models.parameter_shapes(model, size)
    shapes = jax.eval_shape(lambda tree: training_step.narrow(tree, model.dtype), shapes)
    params = jax.tree.map(lambda a: _placed(a, layout.whole), shapes)
    sampler = diffusion.ancestral(diffusion.linear(1, 0.999, 0.999))
    guidance = config.sampling.guidance

    def step(params, low_resolution, labels, keys):
        x = images.upsample_source(low_resolution, (size, size)) if low else None
        if model.predicts == "y_0":
            return model.apply({"params": params}, x)

        def denoise(y_t, gamma):
            label = labels if model.num_classes else None
            source_gamma = jnp.ones_like(gamma) if model.source_noise else None
            return models.guided_eps(
                model, params, x, y_t, gamma, label, source_gamma, guidance=guidance
            )

        return diffusion.sample(denoise, sampler, keys, (size, size, 3))

    sources = _placed(jax.ShapeDtypeStruct((rows, low, low, 3), jnp.uint8), layout.rows)
    labels = _placed(jax.ShapeDtypeStruct((rows,), jnp.int32), layout.rows)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))
    program = jax.jit(step, out_shardings=layout.images)
    parts = {"parameters": _size(params), "batch": _size(sources)}
    return program, (params, sources, labels, _placed(keys, layout.rows)), parts


def _placed(shape, sharding):
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _size(tree: Any) -> int:
    """Bytes of one device's share, padding not counted."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
