"""Training that begins with the weights of a trained network (`config.train.initial_weights`)."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
from absl import logging
from etils import epath

from sr3_jax import models, released
from sr3_jax.config import Config, networks, run_file
from sr3_jax.inference import loading
from sr3_jax.models import Params
from sr3_jax.training.state import TrainState


class InitialWeights(NamedTuple):
    """A trained network: its folder, and the config of its training."""

    folder: epath.Path
    config: Config


def find(config: Config) -> tuple[Config, InitialWeights | None]:
    """Returns the network that a training begins with, if any, without reading its weights.

    Beside it is the config, whose `sigma_data` is the network's where it was to be measured: with
    another the weights would mean something else.

    Raises:
      FileNotFoundError: there is no such network.
      ValueError: it is not the network of the config.
    """
    given = config.train.initial_weights
    if not given:
        return config, None
    folder = released.locate(given)
    path = folder / "config.json"
    config = run_file.with_measured(config, path)
    found = InitialWeights(folder, run_file.load(path))
    run_file.check_initial_weights(found.config, config, path)
    if _shapes(found.config) != _shapes(config):
        raise ValueError(
            f"config.train.initial_weights = {given} has attention at other levels: it was trained "
            f"with config.data.image_size = {found.config.data.image_size}"
        )
    return config, found


def _shapes(config: Config) -> dict[str, tuple[int, ...]]:
    shapes = models.parameter_shapes(networks.model(config), config.data.image_size)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}


def put_into(state: TrainState, network: InitialWeights) -> TrainState:
    """Returns a new training's state with the network's weights as parameters and as average.

    Raises:
      FileNotFoundError: the network has no weights.
      CheckpointError: they are damaged.
    """
    step, weights = loading.restore(network.config, network.folder / "checkpoints", None)
    logging.info("beginning with the weights of step %d of %s", step, network.folder)

    def placed(like: Params) -> Params:
        return jax.tree.map(_place, like, weights)

    return dataclasses.replace(
        state, params=placed(state.params), ema_params=placed(state.ema_params)
    )


def _place(like: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the weights with the sharding of `like`."""
    whole = np.asarray(weights)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda part: whole[part])
