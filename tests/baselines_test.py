"""The baselines: what SR3 is compared with, trained and scored by the same commands."""

import functools
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_run
from etils import epath

from sr3_jax import SuperResolver, jobs, models
from sr3_jax.checkpoints import Checkpointer
from sr3_jax.config import networks, read, run_file, schedules
from sr3_jax.training import state as training_state
from sr3_jax.training import step as training_step

# But for those without a source, and cascades of several networks.
NAMES = sorted(
    path.stem
    for path in (small_run.ROOT / "configs").glob("[!c]*.py")
    if path.stem not in ("default", "digits_8", "photos_stages") and "base" not in path.stem
)


def _config(name, method):
    return importlib.import_module(f"configs.{name}").get_config(method)


@functools.cache  # configs share networks
def _shapes(model, size):
    inputs = models.example_inputs(model, size)
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


@pytest.mark.parametrize("name", NAMES)
def test_every_config_has_its_regression_baseline(name):
    theirs = _config(name, "regression")
    assert (theirs.train.loss, read(theirs).evaluation.checkpoint) == ("l2", "best")
    if name not in ("quickstart", "bsds500_16_64", "photos_4x", "arrays_4x", "fields_8_32"):
        assert theirs.train.learning_rate == 1e-5  # the paper's
    assert schedules.training_schedule(read(theirs)) is None
    with pytest.raises(ValueError, match="no variant 'regresion'"):
        _config(name, "regresion")


@pytest.mark.parametrize("name", ["ffhq_16_128", "photos_4x"])
def test_the_regression_baseline_is_the_same_network_but_for_the_noise(name):
    ours, theirs = _config(name, ""), _config(name, "regression")
    size = ours.data.image_size
    shapes = [_shapes(networks.model(read(config)), size) for config in (ours, theirs)]
    flat = [
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in found}
        for found in map(lambda tree: jax.tree_util.tree_leaves_with_path(tree), shapes)
    ]
    lost, gained = ({p for p in flat[i] if p not in flat[1 - i]} for i in range(2))
    # The same network but for the noise level, whose embedding has a bias that is missed then.
    assert lost and all("embedding" in path for path in lost)
    assert all("conv_0" in path and "bias" in path for path in gained)
    changed = {path for path in flat[0].keys() & flat[1].keys() if flat[0][path] != flat[1][path]}
    assert changed == {"['conv_in']['kernel']"}
    assert flat[1]["['conv_in']['kernel']"][2] == 3


def test_srcnn_has_its_three_convolutions_and_starts_at_bicubic():
    model = models.SRCNN()
    x = jax.random.uniform(jax.random.key(0), (2, 20, 12, 3), minval=-1.0)
    params = model.init(jax.random.key(1), x)["params"]
    kernels = [params[f"conv_{i}"]["kernel"].shape for i in range(3)]
    assert kernels == [(9, 9, 3, 64), (1, 1, 64, 32), (5, 5, 32, 3)]
    np.testing.assert_array_equal(model.apply({"params": params}, x), x)


def test_a_network_is_told_what_it_lacks():
    image, gamma = jnp.zeros((1, 8, 8, 3)), jnp.zeros((1,))
    label = jnp.zeros((1,), jnp.int32)
    for options, inputs, message in (
        ({}, (image,), "takes x, y_t, gamma; it was given x"),
        ({"has_y_t": False}, (image, image, gamma), "takes x; it was given x, y_t, gamma"),
        ({"has_source": False}, (image, image, gamma), "takes y_t, gamma; it was given x"),
        ({"num_classes": 2}, (image, image, gamma), "takes x, y_t, gamma, label; it"),
        ({}, (image, image, gamma, None, label), "takes x, y_t, gamma; it .*label"),
        ({"source_noise": True}, (image, image, gamma), "takes x, y_t, gamma, source_gamma"),
    ):
        model = models.UNet(channels=8, multipliers=(1,), **options)
        with pytest.raises(ValueError, match=message):
            model.init(jax.random.key(0), *inputs)


@pytest.mark.parametrize("method", ["regression", "srcnn"])
def test_a_baseline_learns_the_mean_of_what_the_source_leaves_open(method):
    """Two targets of one source are equally likely: the squared error wants their mean."""
    config = _config("quickstart", method)
    config.data.update(image_size=16, low_resolution=4)
    config.model.update(channels=8, multipliers=(1,), sigma_data=0.0)
    denoiser = networks.denoiser(read(config))
    optimizer = optax.adam(3e-3)
    state = training_state.init_state(denoiser.network, optimizer, 0, 16)
    options = small_run.options(loss="l2", flip=False, ema_decay=0.9)
    step = jax.jit(training_step.make_train_step(denoiser, None, optimizer, options))
    low = np.full((8, 4, 4, 3), 100, np.uint8)
    low[:, 1] = 200  # so that the stripe can be found
    high = np.full((8, 16, 16, 3), 100, np.uint8)
    high[::2, 4:8], high[1::2, 4:8] = 240, 120
    batch = {
        "low_resolution": low,
        "high_resolution": high,
        "weight": np.ones(8, np.float32),
        "index": np.arange(8, dtype=np.int32),
    }
    for _ in range(400):
        state, _ = step(state, batch)
    validate = training_step.make_validation(denoiser, None, small_run.options(loss="l2"))
    found = validate(state.params, jax.device_put(batch))
    best = np.mean(np.where(np.arange(16) // 4 == 1, (60 / 127.5) ** 2, 0.0))
    before = np.mean(np.where(np.arange(16) // 4 == 1, (140**2 + 20**2) / 2 / 127.5**2, 0.0))
    assert best <= found["validation_loss"] < best + 0.2 * (before - best)
    psnr = 10 * np.log10(255**2 / (found["validation_loss"] * 127.5**2))
    np.testing.assert_allclose(found["validation_psnr"], psnr, atol=0.05)


def test_the_best_checkpoint_of_a_baseline_is_that_of_the_highest_psnr(tmp_path):
    checkpointer = Checkpointer(tmp_path, keep_last=1)
    for step, psnr in enumerate((10.0, 30.0, 20.0, 25.0)):
        numbers = {"validation_loss": 1.0 - step / 10, "validation_psnr": psnr}
        checkpointer.save(step, {"step": jnp.int32(step)}, numbers)
    checkpointer.wait()
    assert checkpointer.steps == [1, 3]
    like = {"step": jax.ShapeDtypeStruct((), jnp.int32)}
    assert checkpointer.restore_part(like, "best")[0] == 1
    checkpointer.close()


@pytest.mark.parametrize("method", ["regression", "srcnn"])
def test_it_trains_evaluates_and_upscales_by_the_same_commands(method, tmp_path):
    config = _config("quickstart", method)
    config.update_from_flattened_dict(small_run.OVERRIDES)
    workdir = epath.Path(tmp_path / "run")
    jobs.train(read(config), workdir)
    scores = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    assert list(scores) == ["bicubic", method]
    assert (workdir / "evaluation" / "samples.png").exists()
    assert not (workdir / "evaluation" / "refinement.png").exists()
    assert run_file.load(workdir / "config.json").predicts_image

    resolver = SuperResolver.from_workdir(workdir)
    image = np.random.default_rng(0).integers(0, 256, (1, 10, 13, 3), dtype=np.uint8)
    first, second = (resolver.upscale(image, seed=seed) for seed in (0, 1))
    assert first.shape == (1, 40, 52, 3)
    np.testing.assert_array_equal(first, second)
    with pytest.raises(ValueError, match=f"5 steps with config.method = '{method}'"):
        resolver.upscale(image, steps=5)
