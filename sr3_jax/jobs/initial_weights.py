"""Trained networks that a training begins with, or learns from.

`config.train.initial_weights` names the one, `config.distillation.teacher` the other.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
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
    config = run_file.with_measured_sigma_data(config, path)
    found = Trained(folder, run_file.load(path))
    run_file.check_weights(found.config, config, path, key, given)
    there, here = (
        models.parameter_shapes(networks.model(of), of.data.image_size)
        for of in (found.config, config)
    )
    if key == "train.initial_weights":
        fit = functools.partial(with_channels, before=found.config, after=config)
        there = jax.eval_shape(fit, there)
    if there != here:
        raise ValueError(
            f"config.{key} = {given!r} has attention at other levels of the "
            f"network: its config.data.image_size is {found.config.data.image_size}, and here it "
            f"is {config.data.image_size}. Use the same"
        )
    loading.find(found.config, folder / "checkpoints", None)  # now, not after images were listed
    return config, found


def put_into(state: TrainState, network: Trained, config: Config) -> TrainState:
    """Returns the state with the network's weights as parameters and as average; raises as `find`.

    Args:
      state: the state of a new training, whose shardings are kept.
      network: what `find` returned.
      config: the config of the training, which may have other channels (`with_channels`).
    """
    weights = with_channels(read(network), network.config, config)
    before, after = (of_conv(of) for of in (network.config, config))
    if before != after:
        logging.info(
            "the first and the last convolution were of %s, and are now of %s: channels in common "
            "keep their weights, others begin at 0",
            *(", ".join(f"{n} {name}" for name, n in each.items()) for each in (before, after)),
        )
    params, average = (jax.tree.map(placed, p, weights) for p in (state.params, state.ema_params))
    return dataclasses.replace(state, params=params, ema_params=average)


def read(network: Trained) -> Params:
    """Returns the network's weights; raises as `find`."""
    step, weights = loading.restore(network.config, network.folder / "checkpoints", None)
    logging.info("read the weights of step %d of %s", step, network.folder)
    return weights


def of_conv(config: Config) -> dict[str, int]:
    """Returns the channels of the network's first convolution by what they are, in their order."""
    parts = {}
    if config.has_source:
        parts["low resolution"] = config.source_channels
        parts["known"] = config.source_channels if config.data.missing else 0
        parts["maps"] = config.data.maps
    if not config.predicts_image:
        parts["y_t"] = config.data.channels
    return parts


def with_channels(params: Params, before: Config, after: Config) -> Params:
    """Returns the weights of a network for other channels.

    What both networks have keeps its weights, in the order of channels; what is new begins at 0. So
    the network does at first what it did. Several channels become one as for a grey picture, whose
    channels are equal: weights of the first convolution are added, and those of the last averaged.

    Args:
      params: weights, or their shapes traced by `jax.eval_shape`.
      before: the config that they were trained with.
      after: the config of the training.
    """
    channels = before.data.channels, after.data.channels
    if of_conv(before) == of_conv(after) and channels[0] == channels[1]:
        return params
    if not {"conv_in", "conv_out"} <= params.keys() or before.model.learned_variance:
        return params  # of other architectures, whose shapes then differ
    kernel = params["conv_in"]["kernel"]
    found, parts, start = {}, [], 0
    for name, count in of_conv(before).items():
        found[name] = kernel[:, :, start : start + count]
        start += count
    for name, count in of_conv(after).items():
        of_part = found.get(name, kernel[:, :, :0])
        parts.append(_fitted(of_part, count, 2, None if name == "maps" else jnp.sum))
    last = {
        name: _fitted(values, channels[1], -1, jnp.mean)
        for name, values in params["conv_out"].items()
    }
    first = {**params["conv_in"], "kernel": jnp.concatenate(parts, axis=2)}
    return {**params, "conv_in": first, "conv_out": last}


def _fitted(values: jax.Array, count: int, axis: int, reduce: Callable | None) -> jax.Array:
    """Returns as many channels as `count`; several become one by `reduce`. See `with_channels`."""
    there = values.shape[axis]
    if reduce and count == 1 < there:
        return reduce(values, axis=axis, keepdims=True)
    kept = jax.lax.slice_in_dim(values, 0, min(there, count), axis=axis % values.ndim)
    padding = [(0, 0)] * values.ndim
    padding[axis] = (0, max(0, count - there))
    return jnp.pad(kept, padding)


def placed(like: jax.Array, weights: jax.Array) -> jax.Array:
    """Returns the weights with the sharding of `like`."""
    whole = np.asarray(weights)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda part: whole[part])
