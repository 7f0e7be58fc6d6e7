"""One denoiser of y_0 for training, validation, and every way of sampling: `Denoiser`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key, PyTree

from sr3_jax import diffusion

Params = PyTree  # of float32 arrays, or of their shapes
Batch = Mapping[str, Array]  # of training: see `training.make_train_step`


class Output(NamedTuple):
    """What a network says of y_t.

    Attributes:
      prediction: of the type of its denoiser.
      variance: for networks that learn the variance of the reverse step, where it lies between the
        two of `diffusion.ancestral`: 0 `fixed_small`, 1 `fixed_large`; else None.
    """

    prediction: Float[Array, "b h w d"]
    variance: Float[Array, "b h w d"] | None


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A network F with everything that makes an estimate of y_0 of its output.

        output         F, preconditioned: compared with `prediction.target` by the loss
        __call__       y_0, with labels, guidance and source noise: called by samplers

    A network without y_t and gamma, a regression, is a denoiser too, that of gamma = 0; its
    sampler is `diffusion.one_call`.

    Attributes:
      network: `UNet`, or another module with its `has_source`, `has_y_t`, `num_classes`,
        `source_noise`, `image_channels`, `source_channels` and `dtype`.
      prediction: what the network predicts.
      sigma_data: root mean square of y_0 - x, or of y_0 without a source, for
        `diffusion.precondition`; 0: none, the output is the prediction, as in SR3. The x meant here
        is the channels that x begins with, as many as y_0 has; 0 where x has fewer.
      guidance: scale of classifier-free guidance in sampling (Ho and Salimans 2022, Eq. 6, whose w
        is `guidance - 1`): null + guidance * (class - null); 1: none.
      source_noise: standard deviation of the noise that x has in sampling, of a network that takes
        that as an input (conditioning augmentation).
      known_at: first of the channels of x that say, 1 or 0, which values of its first channels are
        known; `__call__` gives the values of x where they are not. 0: all are known.
      gives_variance: `__call__` also gives what the network learnt of the variance, as samplers
        with `learns_variance` need it.
    """

    network: nn.Module
    prediction: diffusion.Prediction = diffusion.PREDICTIONS["eps"]
    sigma_data: float = 0.0
    guidance: float = 1.0
    source_noise: float = 0.0
    known_at: int = 0
    gives_variance: bool = False

    @property
    def is_guided(self) -> bool:
        """Whether a call sees each image twice, with its class and with the null label."""
        return self.guidance != 1 and self.network.num_classes > 0

    @property
    def learns_variance(self) -> bool:
        """Whether the network's output has channels for the variance of the reverse step."""
        return getattr(self.network, "learned_variance", False)

    def cast_params(self, params: Params) -> Params:
        """Returns parameters in the network's type; vectors stay float32."""
        dtype = self.network.dtype
        return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, params)

    def output(
        self,
        params: Params,
        x: Float[Array, "b h w c"] | None,
        y_t: Float[Array, "b h w d"],
        gamma: Float[Array, " b"],
        label: Int[Array, " b"] | None = None,
        source_gamma: Float[Array, " b"] | None = None,
        dropout_keys: Key[Array, " b"] | None = None,
    ) -> Output:
        """Returns the prediction, of the type `self.prediction`, and the variance.

        The inputs are those of the network (`UNet`), and ignored if it does not take them; any
        negative number is the null label.
        """
        network, inputs = self.network, {}
        if network.has_y_t:
            inputs.update(y_t=y_t, gamma=gamma)
        else:
            y_t, gamma = jnp.zeros((*x.shape[:3], network.image_channels)), jnp.zeros(x.shape[:1])
        if network.num_classes:
            inputs["label"] = jnp.where(label < 0, network.num_classes, label)
        if network.source_noise:
            inputs["source_gamma"] = source_gamma
        if dropout_keys is not None:
            inputs["dropout_keys"] = dropout_keys
        output, variance = network.apply({"params": params}, x, **inputs), None
        if self.learns_variance:
            output, variance = jnp.split(output, 2, axis=-1)
            variance = 0.5 * (variance + 1.0)
        if self.sigma_data:
            base = None
            if x is not None and x.shape[-1] >= network.image_channels:
                base = x[..., : network.image_channels]
            output = diffusion.precondition(
                output, self.prediction, base, y_t, gamma, self.sigma_data
            )
        return Output(output, variance)

    def __call__(
        self,
        params: Params,
        x: Float[Array, "b h w c"] | None,
        y_t: Float[Array, "b h w d"],
        gamma: Float[Array, " b"] | Float[Array, ""],
        label: Int[Array, " b"] | None = None,
        source_gamma: Float[Array, " b"] | None = None,
    ) -> Float[Array, "b h w _"]:
        """Estimates y_0; see `output`. Networks with classes need `label`.

        `source_gamma` is that of `source_noise` unless it is given. With `gives_variance`, the
        channels of the estimate are followed by those of `Output.variance`.
        """
        gamma = jnp.broadcast_to(gamma, y_t.shape[:1])
        if source_gamma is None:
            source_gamma = jnp.full(y_t.shape[:1], 1.0 - self.source_noise**2)
        if not self.is_guided:
            found = self.output(params, x, y_t, gamma, label, source_gamma)
            return self._estimate(found, x, y_t, gamma)
        # An image's two rows side by side, on the device that has the image.
        labels = jnp.stack([label, jnp.full_like(label, -1)], axis=1).reshape(-1)
        rows = (x, y_t, gamma, source_gamma)
        *twice, source_gamma = jax.tree.map(lambda array: jnp.repeat(array, 2, axis=0), rows)
        found = self.output(params, *twice, labels, source_gamma)
        of_class, of_null = (
            jax.tree.map(lambda rows: rows.reshape(-1, 2, *rows.shape[1:])[:, i], found)  # noqa: B023
            for i in (0, 1)
        )
        guided = of_null.prediction + self.guidance * (of_class.prediction - of_null.prediction)
        # The variance is that of the class.
        return self._estimate(Output(guided, of_class.variance), x, y_t, gamma)

    def _estimate(
        self, found: Output, x: Array | None, y_t: Array, gamma: Array
    ) -> Float[Array, "b h w _"]:
        y_0 = self.prediction.to_y_0(found.prediction, y_t, gamma)
        if self.known_at:
            channels = y_0.shape[-1]
            is_known = x[..., self.known_at : self.known_at + channels] > 0.5
            y_0 = jnp.where(is_known, y_0, x[..., :channels])
        if not self.gives_variance:
            return y_0
        return jnp.concatenate([y_0, found.variance.astype(y_0.dtype)], axis=-1)
