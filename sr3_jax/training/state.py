"""Everything that changes from one training step to the next."""

from __future__ import annotations

from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from sr3_jax import models, parallel

Params = Any  # a pytree of float32 arrays


@flax.struct.dataclass
class TrainState:
    """A pytree; all of it is in a checkpoint, so that a resumed run cannot differ.

    Attributes:
      step: number of updates made, an int32 scalar. The noise and the data of an update depend
        on it alone.
      params: what is trained.
      ema_params: the exponential moving average of `params`, which sampling uses.
      opt_state: the optimizer's.
    """

    step: Any
    params: Params
    ema_params: Params
    opt_state: optax.OptState


def state_shardings(layout: parallel.Layout, state: TrainState) -> TrainState:
    """How a state (of arrays or of their shapes) lies on the devices between steps."""
    return layout.kept(state)


def init_state(
    model: nn.Module, optimizer: optax.GradientTransformation, seed: int, image_size: int
) -> TrainState:
    """A fresh state; jit it or evaluate its shape to place or count it without cost."""
    variables = model.init(jax.random.key(seed), *models.example_inputs(model, image_size))
    params = variables["params"]
    # A copy: the two must not share buffers, since a step donates them both.
    ema_params = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, ema_params, optimizer.init(params))
