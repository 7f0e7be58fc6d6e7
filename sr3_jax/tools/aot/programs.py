"""The programs that TPUs run, on shapes alone: what `aot_report` compiles."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from sr3_jax import models, parallel
from sr3_jax.config import Config, networks, schedules
from sr3_jax.inference import programs
from sr3_jax.training import state as training_state
from sr3_jax.training import step as training_step

# A jitted function, its abstract arguments, and bytes that each device holds of what stays.
Program = tuple[jax.stages.Wrapped, tuple[Any, ...], dict[str, int]]


def train(config: Config, layout: parallel.Layout) -> Program:
    """The jitted training step, its abstract arguments, and sizes of what it holds."""
    denoiser, optimizer = networks.denoiser(config), networks.optimizer(config)
    init = functools.partial(
        training_state.init_state, denoiser.network, optimizer, config.seed, config.data.image_size
    )
    shapes = jax.eval_shape(init)
    shardings = training_state.state_shardings(layout, shapes)
    state = jax.tree.map(_placed, shapes, shardings)
    step = training_step.make_train_step(
        denoiser,
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
    """One call of the denoiser on `config.train.batch_size` tiles, as upscaling compiles it."""
    denoiser = networks.denoiser(config)
    rows, size = config.train.batch_size, config.tile_size
    where = programs.denoiser_shardings(layout.mesh)
    shapes = models.parameter_shapes(denoiser.network, size)
    params = jax.eval_shape(denoiser.cast_params, shapes)
    image = jax.ShapeDtypeStruct((rows, size, size, 3), jnp.float32)
    arguments = [
        params,
        image if config.has_source else None,
        image,
        jax.ShapeDtypeStruct((), jnp.float32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    ]
    arguments = [
        jax.tree.map(functools.partial(_placed, sharding=sharding), argument)
        for argument, sharding in zip(arguments, where["in_shardings"], strict=True)
    ]
    program = jax.jit(denoiser.__call__, **where)
    parts = {"parameters": _size(arguments[0]), "x and y_t": _size(arguments[1:3])}
    return program, tuple(arguments), parts


def _placed(shape, sharding):
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _size(tree: Any) -> int:
    """Bytes of one device's share, padding not counted."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
