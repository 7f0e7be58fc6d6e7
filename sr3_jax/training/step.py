"""One training step of SR3 (Algorithm 1), a pure function to be jitted with donation."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.experimental import layout as layout_of_arrays
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PRNGKeyArray

from sr3_jax import diffusion, image_ops, models, parallel
from sr3_jax.config import Config, schedules
from sr3_jax.metrics import full_reference, samples
from sr3_jax.models import Batch, Params
from sr3_jax.sizes import Size, sides
from sr3_jax.training import tasks
from sr3_jax.training.state import TrainState, state_shardings
from sr3_jax.training.tasks import Task, Teacher

# Of the key of a step's blurs; noise and flips have the two that it splits into.
_BLUR = 2
_PIXELS = ("high_resolution", "low_resolution", "maps")

Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[..., tuple[TrainState, Metrics]]


def make_train_step(
    denoiser: models.Denoiser,
    schedule: diffusion.NoiseSchedule | None,
    optimizer: optax.GradientTransformation,
    config: Config,
    layout: parallel.Layout | None = None,
    teacher: Teacher | None = None,
) -> TrainStep:
    """Returns `train_step(state, batch, *taught_by) -> (state, metrics)`.

    A batch has `high_resolution` `[b, h, w, c]` and `low_resolution` `[b, h2, w2, d]` (of 0 pixels
    for a network without a source), both uint8, uint16, or float32 in the range of the network,
    `label` int32 `[b]` and `weight` float32 `[b]`, 0 for rows that hold no image; with maps also
    `maps`, float32 `[b, h, w, m]`. Metrics are `loss` and `gradient_norm` (before
    clipping), scalars. A regression, which takes no y_t, needs no schedule. The step of a student
    also takes the parameters of its teacher, in the network's type.

    Each example's noise and dropout come from (seed, step, row), so that the step does not depend
    on how many devices or micro-batches share the batch. The layout decides what devices send each
    other (`parallel.Layout`). Each device works with kernels in the network's type, and their
    gradients are summed in it.
    """
    pose = _pose(denoiser, schedule, config, teacher)

    def loss_sum(params: Params, batch: Batch, total: Array, *taught_by: Params) -> Array:
        share = jnp.sum(batch["weight"]) / total
        # Before the task is posed, so that a teacher has the class that its student is told.
        batch = tasks.drop_labels(batch, config.train.label_dropout)
        loss, _ = predict(denoiser, params, pose(batch, *taught_by), config, drops=True)
        return loss * share

    def differentiate(loss: parallel.Loss) -> parallel.Gradient:
        gradient = jax.value_and_grad(loss)
        return functools.partial(_accumulate, gradient, config.train.accumulate_steps)

    gradient = layout.share(loss_sum, differentiate) if layout else differentiate(loss_sum)

    def train_step(
        state: TrainState, batch: Batch, *taught_by: Params
    ) -> tuple[TrainState, Metrics]:
        noise_key = jax.random.split(_step_key(state.step, config))[0]
        batch = dict(batch, key=_row_keys(noise_key, batch))
        batch = augment(batch, state.step, config)
        if layout:
            pixels = {k: batch[k] for k in _PIXELS if k in batch}
            batch = batch | jax.lax.with_sharding_constraint(pixels, layout.images)
        total = jnp.maximum(jnp.sum(batch["weight"]), 1e-8)
        loss, gradients = gradient(denoiser.cast_params(state.params), batch, total, *taught_by)
        gradients = jax.tree.map(lambda g: _as_kept(g).astype(jnp.float32), gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        decay = ema_decay_at(state.step, config.train.ema_decay)
        ema_params = jax.tree.map(
            lambda average, new: average * decay + new * (1.0 - decay), state.ema_params, params
        )
        numbers = {"loss": loss, "gradient_norm": optax.tree.norm(gradients)}
        return TrainState(state.step + 1, params, ema_params, opt_state), numbers

    return train_step


def _as_kept(gradient: Array) -> Array:
    """A gradient in the order in memory in which parameters are kept, before it is float32.

    cuDNN makes those of kernels in another order. Left alone, XLA takes all of Adam's arrays to
    that order and back, in float32 (docs/gpu.md).
    """

    def in_order(gradient: Array) -> Array:
        order = layout_of_arrays.Layout(major_to_minor=tuple(range(gradient.ndim)))
        return layout_of_arrays.with_layout_constraint(gradient, order)

    return jax.lax.platform_dependent(
        gradient, cuda=in_order, rocm=in_order, default=lambda gradient: gradient
    )


def augment(batch: Batch, step: Array | int, config: Config) -> Batch:
    """The flips and blurs that the training step at `step` begins with."""
    key = _step_key(step, config)
    if config.train.flip:
        batch = _flip(batch, _row_keys(jax.random.split(key)[1], batch))
    if config.train.blur_probability:
        batch = blur(batch, _row_keys(jax.random.fold_in(key, _BLUR), batch), config)
    return batch


def _step_key(step: Array | int, config: Config) -> PRNGKeyArray:
    return jax.random.fold_in(jax.random.key(config.seed), step)


def _pose(
    denoiser: models.Denoiser,
    schedule: diffusion.NoiseSchedule | None,
    config: Config,
    teacher: Teacher | None,
) -> Callable[..., Task]:
    """Returns `pose(batch, *taught_by) -> task`."""
    if config.train.loss == "energy":
        gamma_T = float(schedules.sampler(config).gamma[0])  # noqa: N806

    def pose(batch: Batch, *taught_by: Params) -> Task:
        if config.train.loss == "energy":
            return tasks.from_noise(denoiser, gamma_T, batch, config)
        if teacher is None:
            return tasks.denoising(denoiser, schedule, batch, config)
        return tasks.distillation(denoiser, teacher, *taught_by, batch, config)

    return pose


def jit_train_step(
    train_step: TrainStep, layout: parallel.Layout, state: TrainState, *, is_taught: bool = False
) -> jax.stages.Wrapped:
    """`train_step` as one program for a state (of arrays or of shapes) and batches so laid out.

    The parameters of a teacher, if there is one, are replicated.
    """
    shardings = state_shardings(layout, state)
    return jax.jit(
        train_step,
        in_shardings=(shardings, layout.rows, *[layout.whole] * is_taught),
        out_shardings=(shardings, layout.whole),
        donate_argnums=0,
    )


def batch_shapes(
    layout: parallel.Layout,
    batch_size: int,
    image_size: Size,
    low_resolution: Size,
    dtype: DTypeLike = jnp.uint8,
    channels: tuple[int, int, int] = (3, 3, 0),
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, types and places of a training batch's arrays.

    `dtype` is that of pixels, and `channels` are those of high and low resolutions and of maps.
    """
    high, low = sides(image_size), sides(low_resolution)
    arrays = {
        "high_resolution": ((batch_size, *high, channels[0]), dtype),
        "low_resolution": ((batch_size, *low, channels[1]), dtype),
        "weight": ((batch_size,), jnp.float32),
        "index": ((batch_size,), jnp.int32),
        "label": ((batch_size,), jnp.int32),
    }
    if channels[2]:
        arrays["maps"] = ((batch_size, *high, channels[2]), jnp.float32)
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=layout.rows)
        for name, (shape, dtype) in arrays.items()
    }


def predict(
    denoiser: models.Denoiser, params: Params, task: Task, config: Config, drops: bool = False
) -> tuple[Float[Array, ""], Float[Array, "b h w c"]]:
    """Returns the loss of a task, and the prediction; `drops`: apply dropout."""
    batch, weight = task.batch, task.batch["weight"]
    keys = tasks.dropout_keys(batch) if drops else None
    prediction, variance = denoiser.output(
        params, task.x, task.y_t, task.gamma, batch.get("label"), task.source_gamma, keys
    )
    if config.train.loss == "energy":
        y_0 = denoiser.prediction.to_y_0(prediction, task.y_t, task.gamma)
        images = y_0[::2], y_0[1::2], task.target[::2]
        size = batch["low_resolution"].shape[1:3]
        each = samples.energy_loss(*images) + samples.source_loss(*images, size)
        return diffusion.mean_over_images(each, weight[::2]), prediction
    loss = diffusion.denoising_loss(
        prediction, task.target, config.train.loss, weight, task.factor, task.mask
    )
    if task.reverse is not None:
        high = batch["high_resolution"]
        estimate = denoiser.prediction.to_y_0(prediction, task.y_t, task.gamma)
        levels = jnp.iinfo(high.dtype).max
        bound = diffusion.variational_bound(
            image_ops.to_signed(high), estimate, variance, task.reverse, levels
        )
        loss += task.reverse.factor * diffusion.mean_over_images(bound, weight)
    return loss, prediction


def make_validation(
    denoiser: models.Denoiser,
    schedule: diffusion.NoiseSchedule | None,
    config: Config,
    teacher: Teacher | None = None,
) -> Callable[..., Metrics]:
    """Returns `validate(params, batch, *taught_by)`, with noise that never changes.

    It gives `validation_loss`, and of a regression also `validation_psnr`, in dB: means over the
    rows that hold an image. The noise of a row depends on the row and `batch["index"]` alone, so
    that losses of two checkpoints differ by their weights only.
    """
    pose = _pose(denoiser, schedule, config, teacher)

    def validate(params: Params, batch: Batch, *taught_by: Params) -> Metrics:
        base = jax.random.key(0)
        keys = jax.vmap(lambda i: jax.random.fold_in(base, i))(batch["index"])
        task = pose(dict(batch, key=keys), *taught_by)
        loss, prediction = predict(denoiser, params, task, config)
        found = {"validation_loss": loss}
        if not denoiser.network.has_y_t:
            psnr = _psnr(prediction, batch, task)
            is_scored = batch["weight"] * ~jnp.isnan(psnr)  # nan where no value is known
            psnr = jnp.where(is_scored > 0, psnr, 0.0)
            found["validation_psnr"] = diffusion.mean_over_images(psnr, is_scored)
        return found

    return validate


def _psnr(prediction: Array, batch: Batch, task: Task) -> Float[Array, " b"]:
    """Returns the PSNR of estimates of y_0; of numbers without levels, in the network's range."""
    high = batch["high_resolution"]
    if high.dtype != jnp.float32:
        return full_reference.psnr(image_ops.to_levels(prediction, high.dtype), high)
    error = jnp.square(prediction - task.target)
    error = jnp.mean(error, axis=(1, 2, 3), where=task.mask)
    return 10.0 * jnp.log10(4.0 / error)


def jit_validation(validate: Callable[..., Metrics], layout: parallel.Layout) -> jax.stages.Wrapped:
    """`validate` as one program that gives sums over the rows of a batch, and their number."""

    @functools.partial(jax.jit, out_shardings=layout.whole)
    def sums(params: Params, batch: Batch, *taught_by: Params) -> tuple[Metrics, Float[Array, ""]]:
        count = batch["weight"].sum()
        means = validate(params, batch, *taught_by)
        return jax.tree.map(lambda mean: mean * count, means), count

    return sums


def ema_decay_at(step: Array, decay: float) -> Float[Array, ""]:
    """The moving average's decay after `step` updates: min(decay, (1 + step) / (10 + step))."""
    step = step.astype(jnp.float32)
    return jnp.minimum(decay, (1.0 + step) / (10.0 + step))


def _row_keys(key: PRNGKeyArray, batch: Batch) -> Key[Array, " b"]:
    rows = jnp.arange(batch["weight"].shape[0])
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def _flip(batch: Batch, keys: Key[Array, " b"]) -> Batch:
    flip = jax.vmap(jax.random.bernoulli)(keys)[:, None, None, None]
    mirrored = {
        name: jnp.where(flip, batch[name][:, :, ::-1], batch[name])
        for name in _PIXELS
        if name in batch
    }
    return dict(batch, **mirrored)


def blur(batch: Batch, keys: Key[Array, " b"], config: Config) -> Batch:
    """Blurs the low resolutions of a share of the rows, each by a width of its own."""
    keys = jax.vmap(jax.random.split)(keys)
    chosen = jax.vmap(lambda k: jax.random.bernoulli(k, config.train.blur_probability))(keys[:, 0])
    least, greatest = config.train.blur_sigma
    sigma = jax.vmap(lambda k: jax.random.uniform(k, (), minval=least, maxval=greatest))(keys[:, 1])
    low = batch["low_resolution"]
    blurred = image_ops.gaussian_blur(low.astype(jnp.float32), sigma)
    if low.dtype != jnp.float32:
        blurred = jnp.round(blurred).astype(low.dtype)  # real inputs are levels
    return dict(batch, low_resolution=jnp.where(chosen[:, None, None, None], blurred, low))


def _accumulate(gradient, num_parts, params, batch, *rest):
    """Sums loss and gradient over micro-batches; rows are dealt out round-robin."""
    if num_parts == 1:
        return gradient(params, batch, *rest)
    # Row i goes to part i % num_parts: each device keeps rows of its own in every part.
    parts = jax.tree.map(
        lambda rows: jnp.moveaxis(
            rows.reshape(rows.shape[0] // num_parts, num_parts, *rows.shape[1:]), 1, 0
        ),
        batch,
    )

    def add(sums, part):
        return jax.tree.map(jnp.add, sums, gradient(params, part, *rest)), None

    zeros = (jnp.zeros(()), jax.tree.map(lambda p: jnp.zeros(p.shape), params))
    sums, _ = jax.lax.scan(add, zeros, parts)
    return sums
