"""Classifier-free guidance: what a network says of a class, and of none, put together."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PyTree


def guided_eps(
    model: nn.Module,
    params: PyTree,
    x: Float[Array, "b h w c"] | None,
    y_t: Float[Array, "b h w d"],
    gamma: Float[Array, " b"],
    label: Int[Array, " b"] | None = None,
    source_gamma: Float[Array, " b"] | None = None,
    *,
    guidance: float | int = 1.0,
) -> Float[Array, "b h w d"]:
    """The eps of a network that is told `label`, moved away from what it says when told none.

    eps(none) + guidance * (eps(label) - eps(none)): Eq. 6 of Ho and Salimans, "Classifier-Free
    Diffusion Guidance", whose w is `guidance - 1`.

    Args:
      model: see `UNet`, as for all but the last.
      params: its parameters.
      x: the source.
      y_t: the noisy images.
      gamma: of y_t.
      label: classes.
      source_gamma: of x.
      guidance: 1 for the network as it is; any other doubles the batch that it sees.
    """
    told = {} if source_gamma is None else {"source_gamma": source_gamma}
    if label is None:
        return model.apply({"params": params}, x, y_t, gamma, **told)
    if guidance == 1:
        return model.apply({"params": params}, x, y_t, gamma, label=label, **told)
    # An image's two rows side by side, on the device that has the image.
    labels = jnp.stack([label, jnp.full_like(label, model.num_classes)], axis=1).reshape(-1)
    x, y_t, gamma, told = jax.tree.map(
        lambda rows: jnp.repeat(rows, 2, axis=0), (x, y_t, gamma, told)
    )
    eps = model.apply({"params": params}, x, y_t, gamma, label=labels, **told)
    eps = eps.reshape(-1, 2, *eps.shape[1:])
    of_class, of_none = eps[:, 0], eps[:, 1]
    return of_none + guidance * (of_class - of_none)
