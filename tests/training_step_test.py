"""Properties of one training step, with a small network that compiles fast."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.ndimage
import small_run

from sr3_jax import diffusion, models, parallel
from sr3_jax.training import tasks
from sr3_jax.training.state import init_state
from sr3_jax.training.step import (
    augment,
    blur,
    ema_decay_at,
    make_train_step,
    predict,
)

SIZE, BATCH = 16, 8
# One level: these tests are about the step, and compile a dozen of them.
MODEL = models.UNet(channels=8, multipliers=(1,), num_blocks=1, bottleneck_attention=False)
DENOISER = models.Denoiser(MODEL)
SCHEDULE = diffusion.linear(100, 1e-3, 0.2)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))


def _batch(seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {
        "high_resolution": rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8),
        "low_resolution": rng.integers(0, 256, (BATCH, SIZE // 4, SIZE // 4, 3), dtype=np.uint8),
        "weight": np.ones(BATCH, np.float32),
        "index": np.arange(BATCH, dtype=np.int32),
    }


def _state():
    """Past the first steps, where zero-initialised layers hide most gradients."""
    state = jax.jit(lambda: init_state(MODEL, OPTIMIZER, 0, SIZE))()
    noisy = jax.tree.map(
        lambda p: p + 0.05 * jax.random.normal(jax.random.key(p.size), p.shape), state.params
    )
    return state.replace(params=noisy, ema_params=noisy)


@pytest.fixture(scope="module")
def state():
    return _state()


@pytest.fixture(scope="module")
def step():
    return jax.jit(make_train_step(DENOISER, SCHEDULE, OPTIMIZER, small_run.options(seed=3)))


def _predict(denoiser, params, schedule, batch, config, train=False):
    if train:
        batch = tasks.drop_labels(batch, config.train.label_dropout)
    task = tasks.denoising(denoiser, schedule, batch, config)
    return predict(denoiser, params, task, config, train)


def _assert_close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **tolerance)


def test_a_step_depends_on_state_and_batch_alone(state, step):
    first, second = step(state, _batch()), step(state, _batch())
    _assert_close(first, second, rtol=0)
    other, _ = step(first[0], _batch())
    assert other.step == 2


def test_16_bits_train_as_8_where_they_hold_the_same(state, step):
    """And what lies between the levels of 8 bits is seen."""
    batch = _batch()
    wide = {
        key: rows * np.uint16(257) if key.endswith("resolution") else rows
        for key, rows in batch.items()
    }
    narrow, wider = step(state, batch), step(state, wide)
    _assert_close(narrow[1], wider[1], rtol=1e-5)
    _assert_close(narrow[0].params, wider[0].params, atol=2e-5)
    finer = dict(wide, high_resolution=wide["high_resolution"] ^ np.uint16(64))
    assert abs(float(step(state, finer)[1]["loss"] - wider[1]["loss"])) > 1e-6


def test_noise_changes_with_step_and_seed(state, step):
    _, metrics = step(state, _batch())
    _, later = step(state.replace(step=jnp.int32(5)), _batch())
    reseeded = jax.jit(make_train_step(DENOISER, SCHEDULE, OPTIMIZER, small_run.options(seed=4)))
    _, other = reseeded(state, _batch())
    assert len({float(m["loss"]) for m in (metrics, later, other)}) == 3


def test_accumulation_equals_the_whole_batch(state, step):
    whole, metrics = step(state, _batch())
    config = small_run.options(seed=3, accumulate_steps=4)
    parts, part_metrics = jax.jit(make_train_step(DENOISER, SCHEDULE, OPTIMIZER, config))(
        state, _batch()
    )
    _assert_close(metrics, part_metrics, rtol=1e-4)
    _assert_close(whole.params, parts.params, atol=2e-5)


def test_accumulation_weighs_rows_not_micro_batches(state, step):
    """Rows without an image gather in one micro-batch; the loss is still the mean over rows."""
    batch = _batch()
    batch["weight"][::2] = 0.0
    _, metrics = step(state, batch)
    config = small_run.options(seed=3, accumulate_steps=2)
    _, parts = jax.jit(make_train_step(DENOISER, SCHEDULE, OPTIMIZER, config))(state, batch)
    _assert_close(metrics, parts, rtol=1e-4)


def test_sharing_the_batch_among_devices_changes_nothing(state, step):
    alone, metrics = step(state, _batch())
    mesh = parallel.make_mesh()
    assert mesh.size == jax.device_count() > 1
    sharded = jax.jit(
        make_train_step(DENOISER, SCHEDULE, OPTIMIZER, small_run.options(seed=3)),
        in_shardings=(parallel.replicated(mesh), parallel.split_batch(mesh)),
        out_shardings=parallel.replicated(mesh),
    )
    together, shared_metrics = sharded(state, parallel.to_global(_batch(), mesh))
    _assert_close(metrics, shared_metrics, rtol=1e-4)
    _assert_close(alone.params, together.params, atol=2e-5)


def test_rows_without_weight_do_not_count(state, step):
    batch, other = _batch(), _batch()
    for b in (batch, other):
        b["weight"][5] = 0.0
    other["high_resolution"][5] = 0
    first, second = step(state, batch), step(state, other)
    _assert_close(first, second, rtol=1e-6)
    full, _ = step(state, _batch())
    with pytest.raises(AssertionError):
        _assert_close(first[0].params, full.params, rtol=1e-6)


def test_a_batch_without_any_image_changes_no_parameter_to_nan(state, step):
    batch = _batch()
    batch["weight"][:] = 0.0
    after, metrics = step(state, batch)
    assert metrics["loss"] == 0.0 and metrics["gradient_norm"] == 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))


def test_flips_mirror_source_and_target_together(state):
    """On mirror-symmetric pairs flipping changes nothing; on others it does."""
    never = small_run.options(seed=3, flip=False)
    plain = jax.jit(make_train_step(DENOISER, SCHEDULE, OPTIMIZER, never))
    flipping = jax.jit(make_train_step(DENOISER, SCHEDULE, OPTIMIZER, small_run.options(seed=3)))
    batch = _batch()
    assert plain(state, batch)[1]["loss"] != flipping(state, batch)[1]["loss"]
    augmented = augment(jax.device_put(batch), state.step, small_run.options(seed=3))
    _assert_close(plain(state, augmented)[1], flipping(state, batch)[1], rtol=1e-6)
    for name in ("high_resolution", "low_resolution"):
        half = batch[name][:, :, : batch[name].shape[2] // 2]
        batch[name] = np.concatenate([half, half[:, :, ::-1]], axis=2)
    _assert_close(plain(state, batch)[1], flipping(state, batch)[1], rtol=1e-6)


def _scipy_blur(image, sigma):
    exact = scipy.ndimage.gaussian_filter(
        image.astype(np.float64), sigma, axes=(0, 1), mode="nearest", radius=1
    )
    return np.rint(exact).astype(np.uint8)


def test_blurring_trains_on_low_resolutions_that_scipy_blurs(state):
    def step(**given):
        config = small_run.options(flip=False, **given)
        return jax.jit(make_train_step(DENOISER, SCHEDULE, OPTIMIZER, config))

    batch, plain = _batch(), step()
    low = [_scipy_blur(image, 0.5) for image in batch["low_resolution"]]
    expected = float(plain(state, batch | {"low_resolution": np.stack(low)})[1]["loss"])
    found = step(blur_probability=1.0, blur_sigma=(0.5, 0.5))(state, batch)[1]["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert abs(expected - float(plain(state, batch)[1]["loss"])) > 1e-4 * expected


def test_a_share_of_the_rows_is_blurred_each_by_a_width_of_its_own():
    low = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), dtype=np.uint8)
    batch = {"low_resolution": jnp.asarray(np.repeat(low, 200, axis=0))}
    config = small_run.options(blur_probability=0.25, blur_sigma=(0.4, 0.9))
    rows = np.asarray(
        blur(batch, jax.random.split(jax.random.key(1), 200), config)["low_resolution"]
    )
    changed = (rows != low).any((1, 2, 3))
    assert 25 < changed.sum() < 75  # 50 expected, standard deviation 6
    assert len({row.tobytes() for row in rows[changed]}) > 0.9 * changed.sum()
    # No stronger than the strongest, no weaker than the weakest.
    strength = np.abs(rows[changed] - low.astype(float)).mean((1, 2, 3))
    bounds = [np.abs(_scipy_blur(low[0], s) - low[0].astype(float)).mean() for s in (0.4, 0.9)]
    assert bounds[0] - 0.5 < strength.min() < strength.max() < bounds[1] + 0.5
    assert np.ptp(strength) > 0.5 * (bounds[1] - bounds[0])


def test_ema_follows_the_recurrence(state, step):
    """After n steps the average is the weighted sum of all parameters passed through."""
    expected, current = state.ema_params, state
    for n in range(3):
        current, _ = step(current, _batch(n))
        decay = min(0.9999, (1 + n) / (10 + n))
        assert np.isclose(ema_decay_at(jnp.int32(n), 0.9999), decay)
        expected = jax.tree.map(
            lambda e, p, d=decay: d * np.float64(e) + (1 - d) * np.float64(p),
            expected,
            current.params,
        )
    _assert_close(current.ema_params, expected, rtol=1e-4, atol=1e-6)
    assert ema_decay_at(jnp.int32(10**6), 0.9999) == np.float32(0.9999)


def test_clipping_bounds_the_update(state):
    """Plain gradient descent on the clipped gradient moves by at most rate times norm."""
    optimizer = optax.chain(optax.clip_by_global_norm(1e-3), optax.sgd(1.0))
    step = jax.jit(make_train_step(DENOISER, SCHEDULE, optimizer, small_run.options()))
    before = state.replace(opt_state=optimizer.init(state.params))
    after, metrics = step(before, _batch())
    moved = optax.tree.norm(jax.tree.map(jnp.subtract, after.params, before.params))
    assert metrics["gradient_norm"] > 1e-2  # reported before clipping
    np.testing.assert_allclose(moved, 1e-3, rtol=0.02)


def test_it_learns(state, step):
    """On one batch the loss falls well below that of predicting nothing, E|eps| = 0.8."""
    del state
    current, batch = _state(), _batch()
    batch["high_resolution"][:] = 128
    losses = []
    for _ in range(150):
        current, metrics = step(current, batch)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-20:]) < 0.5 * np.sqrt(2 / np.pi)


class Echo(small_run.Network):
    """Says for eps what it was told: its source, or how noisy that is."""

    says: str
    source_noise = True

    def __call__(self, x, y_t, gamma, source_gamma):
        told = {"x": x, "gamma": diffusion.process.per_example(source_gamma, x)}[self.says]
        return jnp.broadcast_to(told, y_t.shape)


def test_source_noise_is_as_much_as_was_asked_for_and_as_is_told():
    """Its standard deviation is uniform up to the greatest; closed forms of both."""
    most, rows = 0.9, 256
    batch = {
        "high_resolution": np.zeros((rows, 8, 8, 3), np.uint8),
        "low_resolution": np.full((rows, 8, 8, 3), 255, np.uint8),
        "weight": np.ones(rows, np.float32),
        "key": jax.random.split(jax.random.key(0), rows),
    }
    batch = jax.tree.map(jnp.asarray, batch)
    config = small_run.options(loss="l2", source_noise=most)
    # x is 1 as an image, with gamma of signal: E x^2 is 1. Of eps, independent, E eps^2 is 1.
    denoisers = {says: models.Denoiser(Echo(says)) for says in ("x", "gamma")}
    loss, _ = _predict(denoisers["x"], {}, SCHEDULE, batch, config)
    assert loss == pytest.approx(2.0, abs=0.05)
    # E gamma^2 = E (1 - s^2)^2, s uniform in [0, most].
    expected = 1 + 1 - 2 / 3 * most**2 + most**4 / 5
    loss, _ = _predict(denoisers["gamma"], {}, SCHEDULE, batch, config)
    assert loss == pytest.approx(expected, abs=0.05)
    little = small_run.options(loss="l2", source_noise=0.1)
    loss, _ = _predict(denoisers["gamma"], {}, SCHEDULE, batch, little)
    assert loss == pytest.approx(2.0 - 2 / 3 * 0.1**2, abs=0.03)


class Grey(small_run.Network):
    """Knows that every image is grey, but for `error`, and predicts what it is asked to."""

    prediction: diffusion.Prediction
    error: float

    def __call__(self, x, y_t, gamma):
        y_0 = jnp.full_like(y_t, self.error)
        eps = diffusion.PREDICTIONS["y_0"].to_eps(y_0, y_t, gamma)
        return self.prediction.target(y_0, eps, gamma)


@pytest.mark.parametrize("name", diffusion.PREDICTIONS)
def test_the_loss_compares_what_the_network_predicts(name):
    """None where it knows the image; with a weighting, the same error costs the same."""
    prediction, rows = diffusion.PREDICTIONS[name], 64
    schedule = diffusion.linear(100, 1e-2, 0.2)  # away from gamma = 1, where float32 is coarse
    batch = {
        "high_resolution": np.full((rows, 8, 8, 3), 65535 // 2 + 1, np.uint16),
        "low_resolution": np.zeros((rows, 2, 2, 3), np.uint16),
        "weight": np.ones(rows, np.float32),
        "key": jax.random.split(jax.random.key(0), rows),
    }
    batch = jax.tree.map(jnp.asarray, batch)

    def loss(error, **train):
        denoiser = models.Denoiser(Grey(prediction, error), prediction)
        return float(_predict(denoiser, {}, schedule, batch, small_run.options(**train))[0])

    assert loss(0.0) < 3e-4
    keys = jax.vmap(lambda key: jax.random.split(key, 3)[0])(batch["key"])
    gamma = np.asarray(diffusion.sample_gamma(keys, schedule), np.float64)
    expected = np.mean(np.minimum(gamma / (1 - gamma), 5) * 0.3**2)
    found = loss(0.3, loss="l2", loss_weight="min_snr")
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.fixture(scope="module")
def labelled():
    """A generator of three classes, and its gradient on a batch under some label dropout."""
    model = MODEL.clone(has_source=False, num_classes=3)
    denoiser = models.Denoiser(model)
    state = jax.jit(lambda: init_state(model, OPTIMIZER, 0, SIZE))()
    params = jax.tree.map(lambda p: p + 0.1, state.params)

    @functools.partial(jax.jit, static_argnums=1)
    def gradient(label, dropout):
        batch = jax.tree.map(jnp.asarray, _batch()) | {
            "low_resolution": jnp.zeros((BATCH, 0, 0, 3), jnp.uint8),
            "label": label,
            "key": jax.random.split(jax.random.key(2), BATCH),
        }
        config = small_run.options(label_dropout=dropout)
        loss = lambda params: _predict(denoiser, params, SCHEDULE, batch, config, train=True)[0]  # noqa: E731
        rows = jax.grad(loss)(params)["label_embedding"]["embedding"]
        return jnp.abs(rows).sum(axis=1) > 0

    return gradient


def test_a_label_teaches_its_own_row_and_a_dropped_one_that_of_none(labelled):
    label = np.array([0, 2] * (BATCH // 2), np.int32)
    assert labelled(label, 0.0).tolist() == [True, False, True, False]
    assert labelled(label, 0.5).tolist() == [True, False, True, True]
    # Unusable images have no label.
    assert labelled(np.where(label, -1, 0), 0.0).tolist() == [True, False, False, True]
