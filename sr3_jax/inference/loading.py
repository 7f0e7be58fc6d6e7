"""Weights from checkpoints onto the devices of this process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
from etils import epath

from sr3_jax import models, parallel
from sr3_jax.checkpoints import Checkpointer, Which
from sr3_jax.config import Config, networks, run_file
from sr3_jax.training.state import Params


def restore(config: Config, checkpoints: epath.Path, which: Which | None) -> tuple[int, Params]:
    """The averaged weights of a checkpoint, whole on each device, and its step."""
    with _opened(config, checkpoints) as (checkpointer, like):
        which = config.evaluation.checkpoint if which is None else which
        step, restored = checkpointer.restore_part(like, which)
    return step, restored["ema_params"]


def find(config: Config, checkpoints: epath.Path, which: Which | None) -> int:
    """Returns the step of the checkpoint that `restore` takes, so that a job can hold on to it.

    Of the latest the weights are read, since the one before is taken where it is damaged.

    Raises:
      FileNotFoundError: there is none, or not that one.
      ValueError: it is of another network.
      CheckpointError: none can be read.
    """
    with _opened(config, checkpoints) as (checkpointer, like):
        which = config.evaluation.checkpoint if which is None else which
        if which == "latest":
            return checkpointer.restore_part(like, which)[0]
        step = checkpointer.find(which)
        checkpointer.check_shapes(like, step)
    return step


def weights_digest(config: Config, checkpoints: epath.Path, step: int) -> str:
    """Identifies the averaged weights of a checkpoint, wherever it lies.

    Equal for equal weights, so that a moved workdir is the same network, and one that was trained
    anew is not. Reads no weights but those of checkpoints of older versions.

    Raises:
      FileNotFoundError: there is no such checkpoint.
      ValueError: it is of another network.
      CheckpointError: it is damaged.
    """
    with _opened(config, checkpoints) as (checkpointer, like):
        return checkpointer.digest(like, checkpointer.find(step))


@contextlib.contextmanager
def _opened(config: Config, checkpoints: epath.Path) -> Iterator[tuple[Checkpointer, Any]]:
    """Its checkpoints, and where the averaged weights are to go: whole on each device."""
    if not checkpoints.is_dir():
        raise FileNotFoundError(f"{checkpoints} does not exist: nothing was trained there")
    trained_with = checkpoints.parent / "config.json"
    if trained_with.exists():
        run_file.check_same_network(run_file.load(trained_with), config, trained_with)
    shapes = models.parameter_shapes(networks.model(config), config.data.image_size)
    whole = parallel.replicated(parallel.make_mesh(jax.local_devices()))
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), shapes)
    checkpointer = Checkpointer(checkpoints, read_only=True)
    try:
        yield checkpointer, {"ema_params": like}
    finally:
        checkpointer.close()
