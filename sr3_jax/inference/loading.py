"""Weights from checkpoints onto the devices of this process."""

from __future__ import annotations

import jax
from etils import epath

from sr3_jax import factory, models, parallel
from sr3_jax.training import checkpoint
from sr3_jax.training.state import Params


def restore(
    config: factory.ConfigDict, checkpoints: epath.Path, which: checkpoint.Which | None
) -> tuple[int, Params]:
    """The averaged weights of a checkpoint, whole on each device, and its step."""
    if not checkpoints.is_dir():
        raise FileNotFoundError(f"{checkpoints} does not exist: nothing was trained there")
    model = factory.model(config)
    inputs = models.example_inputs(model, config.data.image_size)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    sharding = parallel.replicated(parallel.make_mesh(jax.local_devices()))
    like = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes["params"]
    )
    checkpointer = checkpoint.Checkpointer(checkpoints, read_only=True)
    which = factory.checkpoint(config) if which is None else which
    step, restored = checkpointer.restore_part({"ema_params": like}, which)
    checkpointer.close()
    return step, restored["ema_params"]
