"""Weights from checkpoints onto the devices of this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from sr3_jax import factory, models, parallel
from sr3_jax.training import checkpoint
from sr3_jax.training.state import Params


def restore(
    config: factory.ConfigDict, checkpoints: epath.Path, which: checkpoint.Which | None
) -> tuple[int, Params]:
    """The averaged weights of a checkpoint, whole on each device, and its step."""
    with _opened(config, checkpoints) as (checkpointer, shapes):
        sharding = parallel.replicated(parallel.make_mesh(jax.local_devices()))
        like = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), shapes
        )
        which = factory.checkpoint(config) if which is None else which
        step, restored = checkpointer.restore_part({"ema_params": like}, which)
    return step, restored["ema_params"]


def find(
    config: factory.ConfigDict, checkpoints: epath.Path, which: checkpoint.Which | None
) -> int:
    """The step of a checkpoint, which is seen to be of the config's network; reads no weights.

    Raises:
      FileNotFoundError: there is none, or not that one.
      ValueError: it is of another network.
    """
    with _opened(config, checkpoints) as (checkpointer, shapes):
        step = checkpointer.find(factory.checkpoint(config) if which is None else which)
        checkpointer.check_shapes({"ema_params": shapes}, step)
    return step


@contextlib.contextmanager
def _opened(
    config: factory.ConfigDict, checkpoints: epath.Path
) -> Iterator[tuple[checkpoint.Checkpointer, Any]]:
    """Its checkpoints, and the shapes of the network's parameters."""
    if not checkpoints.is_dir():
        raise FileNotFoundError(f"{checkpoints} does not exist: nothing was trained there")
    shapes = models.parameter_shapes(factory.model(config), config.data.image_size)
    checkpointer = checkpoint.Checkpointer(checkpoints, read_only=True)
    try:
        yield checkpointer, shapes
    finally:
        checkpointer.close()


def weights_digest(config: factory.ConfigDict, checkpoints: epath.Path, step: int) -> str:
    """Returns the digest of the averaged weights."""
    import hashlib

    import numpy as np

    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(restore(config, checkpoints, step)[1]):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()
