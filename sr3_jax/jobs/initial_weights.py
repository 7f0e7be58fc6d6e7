"""Trained networks that a training begins with, or learns from.

`config.train.initial_weights` names the one, `config.distillation.teacher` the other.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath

from sr3_jax import models, released
from sr3_jax.config import Config, networks, run_file
from sr3_jax.inference import loading
from sr3_jax.models import Params
from sr3_jax.training.state import TrainState


class Trained(NamedTuple):
    """A trained network.

    Attributes:
      folder: its workdir, or its folder if it was released.
      config: the config that it was trained with.
    """

    folder: epath.Path
    config: Config


def find(
    config: Config, key: Literal["train.initial_weights", "distillation.teacher"]
) -> tuple[Config, Trained | None]:
    """Finds the network that an option names.

    Returns:
      The config, and the network; None if the option is empty. A config that asks to measure
      `sigma_data` gets that of the network, which its weights were trained for.

    Raises:
      FileNotFoundError: there is no such network, or it has no weights.
      ValueError: it is not the network of the config.
      CheckpointError: its weights are damaged.
    """
    section, _, name = key.partition(".")
    given = getattr(getattr(config, section), name)
    if not given:
        return config, None
    folder = released.locate(given)
    path = folder / "config.json"
    if not path.exists():
        raise FileNotFoundError(
            f"config.{key} = {given!r} is no network: {path} does not exist. Give "
            f"the workdir of a training run, hf://USER/NAME, or one of {released.names()}"
        )
    config = run_file.with_measured(config, path)
    found = Trained(folder, run_file.load(path))
    run_file.check_weights(found.config, config, path, key, given)
    there, here = (
        models.parameter_shapes(networks.model(of), of.data.image_size)
        for of in (found.config, config)
    )
    if there != here:
        raise ValueError(
            f"config.{key} = {given!r} has attention at other levels of the "
            f"network: its config.data.image_size is {found.config.data.image_size}, and here it "
            f"is {config.data.image_size}. Use the same"
        )
    loading.find(found.config, folder / "checkpoints", None)  # now, not after images were listed
    return config, found


def put_into(state: TrainState, network: Trained) -> TrainState:
    """Returns the state with the network's weights as parameters and as average; raises as `find`.

    Args:
      state: the state of a new training, whose shardings are kept.
      network: what `find` returned.
    """
    weights = read(network)
    params, average = (jax.tree.map(placed, p, weights) for p in (state.params, state.ema_params))
    return dataclasses.replace(state, params=params, ema_params=average)


def read(network: Trained) -> Params:
    """Returns the network's weights; raises as `find`."""
    step, weights = loading.restore(network.config, network.folder / "checkpoints", None)
    logging.info("read the weights of step %d of %s", step, network.folder)
    return weights


def placed(like: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the weights with the sharding of `like`."""
    whole = np.asarray(weights)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda part: whole[part])
