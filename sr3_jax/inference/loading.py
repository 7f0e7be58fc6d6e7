"""Restores the averaged parameters of a checkpoint, and identifies them."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
from etils import epath

from sr3_jax import models, parallel, released
from sr3_jax.checkpoints import Which, weights_file
from sr3_jax.config import Config, as_recorded, migration, networks, run_file
from sr3_jax.data import resumable
from sr3_jax.models import Params

if TYPE_CHECKING:  # Orbax takes half a second to import
    from sr3_jax.checkpoints import Checkpointer


def restore(config: Config, checkpoints: epath.Path, which: Which | None) -> tuple[int, Params]:
    """Returns the step of a checkpoint and its averaged parameters, replicated on the devices.

    Raises:
      FileNotFoundError: there is no checkpoint, or not the one asked for.
      ValueError: the checkpoint is of another network.
      CheckpointError: no checkpoint can be read.
    """
    which = config.evaluation.checkpoint if which is None else which
    with _opened(config, checkpoints) as (checkpointer, like):
        step, restored = checkpointer.restore_part(like, which)
    return step, restored["ema_params"]


def find(config: Config, checkpoints: epath.Path, which: Which | None) -> int:
    """Returns the step of the checkpoint that `restore` would read; raises as it does.

    For `latest` the parameters are read, since a damaged checkpoint is skipped.
    """
    which = config.evaluation.checkpoint if which is None else which
    with _opened(config, checkpoints) as (checkpointer, like):
        if which == "latest":
            return checkpointer.restore_part(like, which)[0]
        step = checkpointer.find(which)
        checkpointer.check_shapes(like, step)
    return step


def weights_digest(config: Config, checkpoints: epath.Path, step: int) -> str:
    """Returns a digest of the averaged parameters of a checkpoint, which identifies the network.

    A moved workdir keeps its digest; a network that is trained again gets another. The parameters
    are read only of checkpoints of older versions. Raises as `restore`.
    """
    with _opened(config, checkpoints) as (checkpointer, like):
        return checkpointer.digest(like, checkpointer.find(step))


def fingerprint(config: Config, checkpoints: epath.Path, step: int) -> resumable.Fingerprint:
    """Returns everything that a network's result for an input depends on, but seed and label.

    Raises as `restore`.
    """
    return resumable.Fingerprint(
        {
            "network": weights_digest(config, checkpoints, step),
            **as_recorded(config, "sampling"),
            **({} if config.has_levels else as_recorded(config, "units")),
        },
        older={"workdir": str(checkpoints.parent), "checkpoint": step},
        defaults=as_recorded(Config(), "sampling"),
        names=migration.VALUES,
    )


@contextlib.contextmanager
def _opened(
    config: Config, checkpoints: epath.Path
) -> Iterator[tuple[Checkpointer | weights_file.WeightsFile, Any]]:
    """Yields the checkpoints, or the weights of a released network that are in their place.

    Beside them it yields shapes and shardings of the averaged parameters.
    """
    weights = checkpoints.parent / released.WEIGHTS
    is_released = weights.exists() and not checkpoints.is_dir()
    if not is_released and not checkpoints.is_dir():
        raise FileNotFoundError(f"{checkpoints} does not exist: nothing was trained there")
    trained_with = checkpoints.parent / "config.json"
    if trained_with.exists():
        run_file.check_same_network(run_file.load(trained_with), config, trained_with)
    shapes = _shapes(networks.model(config), config.data.image_size)
    whole = parallel.replicated(parallel.make_mesh(jax.local_devices()))
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), shapes)
    if is_released:
        yield weights_file.WeightsFile(weights), {"ema_params": like}
        return
    from sr3_jax.checkpoints import Checkpointer

    checkpointer = Checkpointer(checkpoints, read_only=True)
    try:
        yield checkpointer, {"ema_params": like}
    finally:
        checkpointer.close()


# Tracing takes half a second, and an upscaling opens its network three times before it starts.
_shapes = functools.lru_cache(maxsize=8)(models.parameter_shapes)
