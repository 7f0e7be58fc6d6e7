"""Samplers: the reverse process from noise to image, each one `jax.lax.scan`.

A sampler knows no model. It takes a callable `denoise(y_t, gamma) -> eps`, `y_t` being
`[batch, ...]` and `gamma` `[batch]`, so that it can be tested with denoisers known in closed
form; the caller closes over the low-resolution source and the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from sr3_jax.diffusion import process
from sr3_jax.diffusion.schedule import NoiseSchedule

Denoise = Callable[[Float[Array, "b ..."], Float[Array, " b"]], Float[Array, "b ..."]]
Variance = Literal["upper", "posterior"]


def ancestral_sample(
    denoise: Denoise,
    schedule: NoiseSchedule,
    keys: Key[Array, " b"],
    shape: tuple[int, ...],
    *,
    variance: Variance = "upper",
    clip: bool = True,
    num_snapshots: int = 0,
) -> tuple[Float[Array, "b ..."], Float[Array, "k b ..."]]:
    """Draws y_0 by iterative refinement (Algorithm 2 of SR3).

    Args:
      denoise: estimates eps from `y_t` and gamma; any function of those shapes.
      schedule: the inference schedule; its T is the number of refinement steps.
      keys: one random key for each example. An example's result depends on its own key
        alone, so it does not change with the batch it is in.
      shape: shape of one example, such as `(height, width, channels)`.
      variance: `upper` is 1 - alpha_t, SR3's choice (section 2.3); `posterior` is that of
        q(y_{t-1} | y_0, y_t).
      clip: clip the estimate of y_0 to [-1, 1] at each step, then take the posterior mean
        given it. Without, that mean equals Eq. 11 of SR3, which is what then runs.
      num_snapshots: how many y_t to keep, evenly spaced in t from y_T to y_0; 0 or >= 2.

    Returns:
      y_0 of shape `[b, *shape]`, and the snapshots `[num_snapshots, b, *shape]`, noisiest
      first. Memory grows with `num_snapshots`, not with T.

    Raises:
      ValueError: for an unknown variance or a number of snapshots that cannot be had.
    """
    if variance not in ("upper", "posterior"):
        raise ValueError(f"variance = {variance!r} is unknown; use 'upper' or 'posterior'")
    num_steps = schedule.num_steps
    slots = _snapshot_slots(num_steps, num_snapshots)
    from_y_0, from_y_t, posterior_variance = process.posterior_coefficients(schedule)
    beta = jnp.asarray(schedule.beta)
    steps = {
        "t": np.arange(num_steps + 1),
        "gamma": jnp.asarray(schedule.gamma),
        "noise": jnp.sqrt(jnp.asarray(schedule.one_minus_gamma)),
        "beta": beta,
        "from_y_0": from_y_0,
        "from_y_t": from_y_t,
        "sigma": jnp.sqrt(beta if variance == "upper" else posterior_variance),
        "slot": slots,
    }
    steps = jax.tree.map(lambda a: jnp.asarray(a)[:0:-1], steps)  # t = T..1

    def normal(t: Array) -> Float[Array, "b ..."]:
        return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, t), shape))(keys)

    def step(carry, at):
        y_t, snapshots = carry
        eps = denoise(y_t, jnp.full((keys.shape[0],), at["gamma"])).astype(y_t.dtype)
        if clip:
            y_0 = jnp.clip((y_t - at["noise"] * eps) / jnp.sqrt(at["gamma"]), -1.0, 1.0)
            mean = at["from_y_0"] * y_0 + at["from_y_t"] * y_t
        else:
            mean = (y_t - at["beta"] / at["noise"] * eps) / jnp.sqrt(1.0 - at["beta"])
        # The last step returns the mean: z = 0 at t = 1. fold_in(t) is otherwise used for the
        # noise added on the way to t - 1; y_T takes T + 1.
        sigma = jnp.where(at["t"] > 1, at["sigma"], 0.0)
        y_t = mean + sigma * normal(at["t"])
        if num_snapshots:
            # Slot `num_snapshots` means "do not keep"; it is out of bounds and dropped.
            snapshots = snapshots.at[at["slot"]].set(y_t, mode="drop")
        return (y_t, snapshots), None

    y_t = normal(jnp.asarray(num_steps + 1))
    snapshots = jnp.zeros((num_snapshots, *y_t.shape), y_t.dtype)
    if num_snapshots:
        snapshots = snapshots.at[0].set(y_t)
    (y_0, snapshots), _ = jax.lax.scan(step, (y_t, snapshots), steps)
    return y_0, snapshots


def _snapshot_slots(num_steps: int, num_snapshots: int) -> np.ndarray:
    """For each t, where the y_{t-1} made at t is kept; `num_snapshots` where it is not."""
    if num_snapshots == 1 or num_snapshots < 0 or num_snapshots > num_steps + 1:
        raise ValueError(
            f"num_snapshots = {num_snapshots}: use 0, or 2 (first and last) to {num_steps + 1} "
            f"(all) for {num_steps} steps"
        )
    slots = np.full(num_steps + 1, num_snapshots)
    if num_snapshots:
        kept = np.round(np.linspace(num_steps, 0, num_snapshots)).astype(int)
        slots[kept[1:] + 1] = np.arange(1, num_snapshots)
    return slots
