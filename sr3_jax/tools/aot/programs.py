"""The programs that `aot_report` compiles, on shapes alone."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from sr3_jax import models, parallel
from sr3_jax.config import Config, networks
from sr3_jax.inference import programs
from sr3_jax.jobs import training
from sr3_jax.training import step as training_step

# A jitted function, its abstract arguments, and the bytes of them on each device by name.
Program = tuple[jax.stages.Wrapped, tuple[Any, ...], dict[str, int]]


def train(config: Config, layout: parallel.Layout) -> Program:
    """Returns the training step of a config, as training compiles it."""
    program = training.training_program(config, layout)
    data = config.data
    batch = training_step.batch_shapes(
        layout,
        config.train.batch_size,
        data.image_size,
        data.low_resolution,
        data.dtype or "uint8",
        (data.channels, config.source_channels, data.maps),
    )
    parts = {
        "parameters": _size(program.state.params),
        "average of the parameters": _size(program.state.ema_params),
        "optimizer state": _size(program.state.opt_state),
        "batch": _size(batch),
    }
    taught_by = training.teacher_shapes(program, layout)
    if taught_by:
        parts["teacher"] = _size(taught_by)
    return program.step, (program.state, batch, *taught_by), parts


def sample(config: Config, layout: parallel.Layout) -> Program:
    """Returns a denoiser's call on `config.train.batch_size` tiles, as upscaling compiles it."""
    denoiser = networks.denoiser(config)
    rows, size = config.train.batch_size, config.tile_size
    where = programs.denoiser_shardings(layout.mesh)
    shapes = models.parameter_shapes(denoiser.network, size)
    params = jax.eval_shape(denoiser.cast_params, shapes)
    x, y_t = (
        jax.ShapeDtypeStruct((rows, size, size, channels), jnp.float32)
        for channels in (config.conditioning_channels, config.data.channels)
    )
    arguments = [
        params,
        x if config.has_source else None,
        y_t,
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
    """Returns the bytes of one device's share, without padding."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
