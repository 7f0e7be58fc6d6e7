"""The training state: everything that changes from step to step."""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from sr3_jax import models, parallel
from sr3_jax.models import Params
from sr3_jax.sizes import Size


@flax.struct.dataclass
class TrainState:
    """The training state, a pytree. Checkpoints hold all of it, so a resumed run cannot differ.

    Attributes:
      step: number of updates, an int32 scalar; with the seed it determines the noise and the data
        of the next update.
      params: the trained parameters.
      ema_params: the exponential moving average of `params`, used for sampling.
      opt_state: the state of the optimizer.
    """

    step: Any
    params: Params
    ema_params: Params
    opt_state: optax.OptState


def state_shardings(layout: parallel.Layout, state: TrainState) -> TrainState:
    """Returns the shardings of a state (of arrays or of their shapes) between steps."""
    return layout.kept(state)


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, seed: int, image_size: Size
) -> TrainState:
    """Initialises a training state; jit it to shard the result, `jax.eval_shape` for shapes."""
    variables = model.init(jax.random.key(seed), *models.example_inputs(model, image_size))
    params = variables["params"]
    # A copy: the two must not share buffers, since a step donates them both.
    ema_params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema_params, optimizer.init(params))
