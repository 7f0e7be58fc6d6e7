"""The optimizer of a config, its learning rate, and which parameters it leaves alone."""

from __future__ import annotations

import fnmatch
import functools

import jax
import jax.numpy as jnp
import optax

from sr3_jax import models
from sr3_jax.config.sections import Config


def learning_rate(config: Config) -> optax.Schedule:
    """Returns the learning rate by step: linear warm-up, constant, optional linear decay to 0."""
    c = config.train
    # Counted from 1, so that the rate of the first update is above 0.
    parts = [
        lambda step: c.learning_rate * jnp.minimum(1.0, (step + 1) / max(c.num_warmup_steps, 1))
    ]
    if not c.num_decay_steps:
        return parts[0]
    parts.append(optax.linear_schedule(c.learning_rate, 0.0, c.num_decay_steps))
    return optax.join_schedules(parts, [c.num_steps - c.num_decay_steps])


def optimizer(config: Config) -> optax.GradientTransformation:
    """Makes the optimizer: Adam on the clipped gradient, which is 0 for frozen parameters."""
    c = config.train
    parts = [
        optax.clip_by_global_norm(c.clip_norm),
        optax.adam(learning_rate(config), b1=c.adam_b1, b2=c.adam_b2),
    ]
    if c.frozen:
        is_frozen = functools.partial(_matches, patterns=c.frozen)
        parts.insert(0, optax.masked(optax.set_to_zero(), is_frozen))
    return optax.chain(*parts)


def check_frozen(config: Config, params: models.Params) -> None:
    """Checks `config.train.frozen` against the parameters, or their shapes.

    Raises:
      ValueError: a pattern matches no parameter, or nothing is left to train.
    """
    for pattern in config.train.frozen:
        if not any(jax.tree.leaves(_matches(params, patterns=(pattern,)))):
            names = sorted(params)
            raise ValueError(
                f"config.train.frozen has {pattern!r}, which matches no parameter; their paths "
                f"begin with {', '.join(names)}"
            )
    if config.train.frozen and all(jax.tree.leaves(_matches(params, config.train.frozen))):
        raise ValueError(f"config.train.frozen = {config.train.frozen} leaves nothing to train")


def _matches(params: models.Params, patterns: tuple[str, ...]) -> models.Params:
    """Returns whether the path of each parameter matches a pattern."""

    def matches(path: tuple, _: jax.Array | jax.ShapeDtypeStruct) -> bool:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    return jax.tree.map_with_path(matches, params)
