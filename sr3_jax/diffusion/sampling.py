"""The reverse process from noise to image: one `jax.lax.scan` for every sampler.

It knows no model. It takes a denoiser `denoise(y_t, gamma) -> y_0`, `y_t` being `[batch, ...]` and
`gamma` `[batch]`, so that samplers can be tested with denoisers known in closed form; the caller
closes over the low-resolution source and the parameters.

For a sampler whose variance is learned, the denoiser has twice as many channels: those of y_0, and
then, in [0, 1], how far the logarithm of the variance lies from that of the posterior to that of
the forward step (`samplers.ancestral`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from sr3_jax.diffusion.samplers import Sampler

Denoise = Callable[[Float[Array, "b ..."], Float[Array, " b"]], Float[Array, "b ..."]]


class State(NamedTuple):
    """The state between two calls of the network.

    Attributes:
      y_t: the noisy images.
      previous: y_t and the estimate of y_0 of the call before; None for samplers that do not look
        back.
    """

    y_t: Float[Array, "b ..."]
    previous: tuple[Float[Array, "b ..."], Float[Array, "b ..."]] | None


def sample(
    denoise: Denoise,
    sampler: Sampler,
    keys: Key[Array, " b"],
    shape: tuple[int, ...],
    *,
    clip: bool = True,
) -> Float[Array, "b ..."]:
    """Draws y_0, calling the network `sampler.nfe` times.

    Args:
      denoise: estimates y_0 from `y_t` and gamma; any function of those shapes.
      sampler: the weights of each call; may be traced, so that samplers of as many calls share
        one compiled program.
      keys: one random key for each example, on which alone its result depends.
      shape: shape of one example, such as `(height, width, channels)`.
      clip: clip the estimate of y_0 to [-1, 1] at each call.
    """

    def step(state: State, row: Sampler) -> tuple[State, None]:
        return advance(denoise, row, state, keys, clip=clip), None

    start = begin(sampler, keys, shape)
    return jax.lax.scan(step, start, jax.tree.map(jnp.asarray, sampler))[0].y_t


def begin(sampler: Sampler, keys: Key[Array, " b"], shape: tuple[int, ...]) -> State:
    """Draws pure noise, y_T; see `sample`. Its key is folded with T + 1, that of step t with t."""
    y_t = _normal(keys, jnp.asarray(sampler.time[0] + 2), shape)  # time[0] is T - 1
    previous = (jnp.zeros_like(y_t), jnp.zeros_like(y_t)) if sampler.looks_back else None
    return State(y_t, previous)


def advance(
    denoise: Denoise, row: Sampler, state: State, keys: Key[Array, " b"], *, clip: bool = True
) -> State:
    """Calls the network once and takes the step of `row`, one of a sampler's; see `sample`.

    For loops of one's own, such as over part of the rows.
    """
    y_t = state.y_t
    y_0 = denoise(y_t, jnp.full((keys.shape[0],), row.gamma)).astype(y_t.dtype)
    noise = row.noise
    if row.learns_variance:
        y_0, share = jnp.split(y_0, 2, axis=-1)
        noise = noise * jnp.exp(share * row.spread)
    if clip:
        y_0 = jnp.clip(y_0, -1.0, 1.0)
    after = row.state * y_t + row.estimate * y_0
    previous = None
    if state.previous is not None:
        previous_state, previous_estimate = state.previous
        after += row.previous_state * previous_state + row.previous_estimate * previous_estimate
        previous = (y_t, y_0)
    if row.is_stochastic:
        after += noise * _normal(keys, row.time + 1, y_t.shape[1:])
    return State(after, previous)


def _normal(
    keys: Key[Array, " b"], t: Int[Array, ""], shape: tuple[int, ...]
) -> Float[Array, "b ..."]:
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), shape))(keys)
