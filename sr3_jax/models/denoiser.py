"""One denoiser of y_0 for training, validation, and every way of sampling: `Denoiser`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key, PyTree

from sr3_jax import diffusion

Params = PyTree  # of float32 arrays, or of their shapes
Batch = Mapping[str, Array]  # of training: see `training.make_train_step`


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A network F with everything that makes an estimate of y_0 of its output.

        predict        F, preconditioned: compared with `prediction.target` by the loss
        __call__       y_0, with labels, guidance and source noise: called by samplers

    A network without y_t and gamma, a regression, is a denoiser too, that of gamma = 0; its
    sampler is `diffusion.one_call`.

    Attributes:
      network: `UNet`, or another module with its `has_source`, `has_y_t`, `num_classes`,
        `source_noise` and `dtype`.
      prediction: what the network predicts.
      sigma_data: root mean square of y_0 - x, or of y_0 without a source, for
        `diffusion.precondition`; 0: none, the output is the prediction, as in SR3.
      guidance: scale of classifier-free guidance in sampling (Ho and Salimans 2022, Eq. 6, whose w
        is `guidance - 1`): null + guidance * (class - null); 1: none.
      source_noise: standard deviation of the noise that x has in sampling, of a network that takes
        that as an input (conditioning augmentation).
    """

    network: nn.Module
    prediction: diffusion.Prediction = diffusion.PREDICTIONS["eps"]
    sigma_data: float = 0.0
    guidance: float = 1.0
    source_noise: float = 0.0

    @property
    def is_guided(self) -> bool:
        """Whether a call sees each image twice, with its class and with the null label."""
        return self.guidance != 1 and self.network.num_classes > 0

    def cast_params(self, params: Params) -> Params:
        """Returns parameters in the network's type; vectors stay float32."""
        dtype = self.network.dtype
        return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, params)

    def predict(
        self,
        params: Params,
        x: Float[Array, "b h w c"] | None,
        y_t: Float[Array, "b h w d"],
        gamma: Float[Array, " b"],
        label: Int[Array, " b"] | None = None,
        source_gamma: Float[Array, " b"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Float[Array, "b h w d"]:
        """Returns the prediction, of the type `self.prediction`.

        The inputs are those of the network (`UNet`), and ignored if it does not take them; any
        negative number is the null label.
        """
        network, inputs = self.network, {}
        if network.has_y_t:
            inputs.update(y_t=y_t, gamma=gamma)
        else:
            y_t, gamma = jnp.zeros_like(x), jnp.zeros(x.shape[:1])
        if network.num_classes:
            inputs["label"] = jnp.where(label < 0, network.num_classes, label)
        if network.source_noise:
            inputs["source_gamma"] = source_gamma
        if dropout_keys is not None:
            inputs["dropout_keys"] = dropout_keys
        output = network.apply({"params": params}, x, **inputs)
        if not self.sigma_data:
            return output
        return diffusion.precondition(output, self.prediction, x, y_t, gamma, self.sigma_data)

    def __call__(
        self,
        params: Params,
        x: Float[Array, "b h w c"] | None,
        y_t: Float[Array, "b h w d"],
        gamma: Float[Array, " b"] | Float[Array, ""],
        label: Int[Array, " b"] | None = None,
        source_gamma: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b h w d"]:
        """Estimates y_0; see `predict`. Networks with classes need `label`.

        `source_gamma` is that of `source_noise` unless it is given.
        """
        gamma = jnp.broadcast_to(gamma, y_t.shape[:1])
        if source_gamma is None:
            source_gamma = jnp.full(y_t.shape[:1], 1.0 - self.source_noise**2)
        if not self.is_guided:
            prediction = self.predict(params, x, y_t, gamma, label, source_gamma)
            return self.prediction.to_y_0(prediction, y_t, gamma)
        # An image's two rows side by side, on the device that has the image.
        labels = jnp.stack([label, jnp.full_like(label, -1)], axis=1).reshape(-1)
        rows = (x, y_t, gamma, source_gamma)
        *twice, source_gamma = jax.tree.map(lambda array: jnp.repeat(array, 2, axis=0), rows)
        prediction = self.predict(params, *twice, labels, source_gamma)
        of_class, of_null = jnp.moveaxis(prediction.reshape(-1, 2, *prediction.shape[1:]), 1, 0)
        prediction = of_null + self.guidance * (of_class - of_null)
        return self.prediction.to_y_0(prediction, y_t, gamma)
