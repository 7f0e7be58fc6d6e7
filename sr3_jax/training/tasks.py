"""What a network is given in training, and what it should answer: `Task`.

SR3 is asked for the noise of an image (`denoising`), a student for the estimate that replaces
several of its teacher (`distillation`), and a network that samples in one call for two images of
each source (`from_noise`).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sr3_jax import diffusion, image_ops, models
from sr3_jax.config import Config, networks
from sr3_jax.diffusion import distilling
from sr3_jax.models import Batch, Params

# Numbers that are folded into a row's key. Gamma, noise and dropout take its three splits.
_LABEL, _SOURCE_NOISE, _TEACHER, _TRUTH = 3, 4, 5, 6


class Task(NamedTuple):
    """A denoising task for each row of a batch.

    Attributes:
      batch: the rows that it is of.
      x: the source, upsampled after noise was added; None for a network without one.
      source_gamma: gamma of that noise; None without.
      gamma: share of signal variance in `y_t`.
      y_t: the noisy image.
      target: what the network should predict.
      factor: factor of a row's loss; None for 1.
      reverse: the reverse step whose variance the network learns; None if it learns none.
      mask: the values of y_0 that the loss counts; None for all.
    """

    batch: Batch
    x: Float[Array, "b h w d"] | None
    source_gamma: Float[Array, " b"] | None
    gamma: Float[Array, " b"]
    y_t: Float[Array, "b h w c"]
    target: Float[Array, "b h w c"]
    factor: Float[Array, " b"] | None
    reverse: diffusion.Reverse | None = None
    mask: Bool[Array, "b h w c"] | None = None


@dataclasses.dataclass(frozen=True)
class Teacher:
    """What a student learns from, but for the weights.

    Attributes:
      denoiser: the teacher.
      segments: the rows of its sampler for each call of the student (`distilling.segments`), with
        those of the way back where `truth` is above 0 (`distilling.with_way_back`).
      truth: share of the student's last calls that have to lead to an image of the batch.
      clip: whether its estimates are clipped to [-1, 1].
    """

    denoiser: models.Denoiser
    segments: diffusion.Sampler
    truth: float = 0.0
    clip: bool = True


def denoising(
    denoiser: models.Denoiser,
    schedule: diffusion.NoiseSchedule | None,
    batch: Batch,
    config: Config,
) -> Task:
    """Returns SR3's task (Algorithm 1): the noise in an image, at a gamma of the schedule.

    Without a schedule, as of a regression, gamma is 0. Networks that learn the variance of the
    reverse step see the gammas of its steps alone, as in Improved DDPM.
    """
    x, source_gamma = _source(denoiser, batch, config)
    y_0, mask = image_ops.with_known(batch["high_resolution"], x, denoiser.known_at)
    keys, reverse = _keys(batch), None
    if denoiser.learns_variance:
        t = diffusion.sample_time(keys[:, 0], schedule)
        gamma, reverse = jnp.asarray(schedule.gamma)[t], diffusion.reverse_at(schedule, t)
    else:
        gamma = diffusion.sample_gamma(keys[:, 0], schedule)
    eps = _normal(keys[:, 1], y_0)
    how = config.train
    return Task(
        batch,
        x,
        source_gamma,
        gamma,
        diffusion.diffuse(y_0, gamma, eps),
        denoiser.prediction.target(y_0, eps, gamma),
        diffusion.weigh(how.loss_weight, denoiser.prediction, gamma, schedule, how.loss),
        reverse,
        mask,
    )


def distillation(
    denoiser: models.Denoiser, teacher: Teacher, params: Params, batch: Batch, config: Config
) -> Task:
    """Returns a student's task: the estimate that replaces those of several calls of the teacher.

    The call is one of those of the student, drawn evenly for each row. A share of the last calls
    begins where the teacher would make the row's image from, and should end there. `params` are the
    teacher's, in its type.
    """
    x, source_gamma = _source(denoiser, batch, config)
    y_0, mask = image_ops.with_known(batch["high_resolution"], x, denoiser.known_at)
    keys = _keys(batch)
    calls = teacher.segments.gamma.shape[0] - (teacher.truth > 0)
    call = jax.vmap(lambda key: jax.random.randint(key, (), 0, calls))(keys[:, 0])
    of_truth = jax.vmap(lambda key: jax.random.fold_in(key, _TRUTH))(batch["key"])
    of_truth = jax.vmap(lambda key: jax.random.bernoulli(key, teacher.truth))(of_truth)
    goes_back = of_truth & (call == calls - 1)
    segment = jnp.where(goes_back, calls, call)
    gammas = jnp.asarray(teacher.segments.gamma)[:, 0]
    noise = _normal(keys[:, 1], y_0)
    start = diffusion.diffuse(y_0, gammas[segment], noise)
    # Sampling begins with noise alone, though gamma_T is not 0.
    start = jnp.where((segment == 0)[:, None, None, None], noise, start)

    def denoise(y_t: Array, gamma: Array) -> Array:
        return teacher.denoiser(params, x, y_t, gamma, batch.get("label"), source_gamma)

    own_keys = jax.vmap(lambda key: jax.random.fold_in(key, _TEACHER))(batch["key"])
    way = distilling.follow(denoise, teacher.segments, segment, start, own_keys, clip=teacher.clip)
    gamma, back = gammas[call], goes_back[:, None, None, None]
    y_t, estimate = jnp.where(back, way.y_t, start), jnp.where(back, y_0, way.estimate)
    eps = diffusion.PREDICTIONS["y_0"].to_eps(estimate, y_t, gamma)
    return Task(
        batch,
        x,
        source_gamma,
        gamma,
        y_t,
        denoiser.prediction.target(estimate, eps, gamma),
        distilling.factor(denoiser.prediction, gamma, denoiser.sigma_data, config.train.loss),
        mask=mask,
    )


def from_noise(denoiser: models.Denoiser, gamma: float, batch: Batch, config: Config) -> Task:
    """Returns the task of loss `energy`: images, from the noise that sampling begins with.

    Each row of the batch stands in two neighbouring rows of the task, with noises of their own. The
    target is the image itself, whatever the network predicts.
    """
    batch = _twice(batch)
    y_0 = image_ops.to_signed(batch["high_resolution"])
    y_t = _normal(_keys(batch)[:, 1], y_0)
    x, source_gamma = _source(denoiser, batch, config)
    return Task(batch, x, source_gamma, jnp.full(y_0.shape[:1], gamma), y_t, y_0, None)


def _twice(batch: Batch) -> Batch:
    """Returns each row of a batch in two neighbouring rows, with keys of their own."""
    rows = {name: jnp.repeat(values, 2, axis=0) for name, values in batch.items()}
    number = jnp.arange(rows["weight"].shape[0]) % 2
    return dict(rows, key=jax.vmap(jax.random.fold_in)(rows["key"], number))


def drop_labels(batch: Batch, dropout: float) -> Batch:
    """Returns the batch with class -1 where dropped; rows without an image have -1 as well."""
    label = batch.get("label")
    if not dropout or label is None:
        return batch
    keys = jax.vmap(lambda key: jax.random.fold_in(key, _LABEL))(batch["key"])
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, dropout))(keys)
    return dict(batch, label=jnp.where(dropped, -1, label))


def dropout_keys(batch: Batch) -> Array:
    """Returns the key of each row's dropout."""
    return _keys(batch)[:, 2]


def _keys(batch: Batch) -> Array:
    """Returns the keys of each row's gamma, noise and dropout."""
    return jax.vmap(lambda key: jax.random.split(key, 3))(batch["key"])


def _normal(keys: Array, like: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    return jax.vmap(lambda key: jax.random.normal(key, like.shape[1:]))(keys)


def _source(
    denoiser: models.Denoiser, batch: Batch, config: Config
) -> tuple[Float[Array, "b h w d"] | None, Float[Array, " b"] | None]:
    """Returns the network's x, upsampled after noise was added, and the gamma of that noise."""
    if not denoiser.network.has_source:
        return None, None
    size, gamma = batch["high_resolution"].shape[1:3], None
    low = image_ops.to_signed(batch["low_resolution"])
    if denoiser.network.source_noise:
        keys = jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, _SOURCE_NOISE)))
        of_level, of_noise = jnp.moveaxis(keys(batch["key"]), 1, 0)
        std = jax.vmap(lambda key: jax.random.uniform(key, (), maxval=config.train.source_noise))
        gamma = 1.0 - jnp.square(std(of_level))
        low = diffusion.diffuse(low, gamma, _normal(of_noise, low))
    x = image_ops.network_input(
        low,
        size,
        batch.get("maps"),
        may_miss=denoiser.known_at > 0,
        resize=networks.upsampling(config),
    )
    return x, gamma
