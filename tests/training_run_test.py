"""Whole training runs: their files, and refused configs."""

import io
import json
import math
import pathlib
import sys

import forked_run
import jax
import numpy as np
import pytest
import small_run
from etils import epath
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sr3_jax import SuperResolver, jobs
from sr3_jax.checkpoints import Checkpointer
from sr3_jax.config import image_sets, read, run_file, save
from sr3_jax.metrics import registry
from sr3_jax.training import loop

COMMAND = [sys.executable, "-m", "sr3_jax.main"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Returns the workdir of a finished run."""
    path = epath.Path(tmp_path_factory.mktemp("run"))
    jobs.train(read(small_run.config()), path)
    return path


def test_a_finished_run_is_not_trained_again(workdir, capsys):
    before = small_run.read_checkpoint(workdir, 8)
    jobs.train(read(small_run.config()), workdir)
    small_run.assert_same_arrays(before, small_run.read_checkpoint(workdir, 8))
    assert "| sr3 |" in capsys.readouterr().out


def test_what_a_run_leaves(workdir):
    assert json.loads((workdir / "config.json").read_text())["train"]["num_steps"] == 8
    scores = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    assert set(scores) == {"bicubic", "sr3"}
    for row in scores.values():
        assert set(row) == {
            *(metric.name for metric in registry.of("image")),
            "n",
            "seconds_per_image",
        }
        assert row["n"] == 8 and all(math.isfinite(value) for value in row.values())
    samples = Image.open(workdir / "evaluation" / "samples.png")
    assert samples.width > 4 * 32 and samples.height > 3 * 32
    assert Image.open(workdir / "evaluation" / "refinement.png").width > 5 * 32
    assert "sr3" in (workdir / "evaluation" / "report.html").read_text()


def test_last_checkpoints_and_the_best_are_kept(workdir):
    checkpointer = Checkpointer(workdir / "checkpoints", keep_last=2)
    losses = _scalars(workdir)["validation_loss"]
    best = min(losses, key=losses.get)
    assert set(checkpointer.steps) == {6, 8, best}
    assert checkpointer.find("best") == best
    checkpointer.close()


def _scalars(workdir) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(workdir), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_the_log_has_every_number(workdir):
    scalars = _scalars(workdir)
    events = EventAccumulator(str(workdir))
    events.Reload()
    (image,) = events.Images("samples")
    picture = Image.open(io.BytesIO(image.encoded_image_string))
    assert image.step == 8 and picture.size == (image.width, image.height)
    for tag in (
        "loss",
        "gradient_norm",
        "learning_rate",
        "images_per_second",
        "flops_per_second",
        "images_damaged",
        "images_too_small",
    ):
        assert set(scalars[tag]) == {2, 4, 6, 8}, tag
        assert all(math.isfinite(value) for value in scalars[tag].values()), tag
    config = small_run.config()
    # Warm-up over 2 steps, constant, then down over the last 2.
    rate = config.train.learning_rate
    np.testing.assert_allclose(
        [scalars["learning_rate"][n] for n in (2, 4, 6, 8)], [rate, rate, rate, rate / 2], rtol=1e-5
    )


def test_a_non_finite_loss_names_the_step_and_keeps_the_last_good_checkpoint(tmp_path):
    config = small_run.config()
    config.train.learning_rate = 1e30
    config.train.num_warmup_steps = 1
    config.train.num_decay_steps = 0
    with pytest.raises(loop.NonFiniteError, match=r"at step [1-8]; the last good checkpoint"):
        jobs.train(read(config), epath.Path(tmp_path))
    checkpoints = Checkpointer(tmp_path / "checkpoints")
    for step in checkpoints.steps:
        leaves = jax.tree.leaves(small_run.read_checkpoint(tmp_path, step))
        assert all(np.isfinite(leaf).all() for leaf in leaves)
    checkpoints.close()


def _files(folder) -> dict[str, bytes]:
    paths = pathlib.Path(folder).rglob("*")
    return {str(path): path.read_bytes() for path in paths if path.is_file()}


def test_a_refused_training_leaves_a_finished_run_as_it_was(workdir, tmp_path):
    """Configs are refused for shapes, for the meaning of equal shapes, or for later jobs."""
    before = _files(workdir)
    for key, value, message in [
        ("model.channels", 16, "channels was 8 and is now 16"),
        ("model.multipliers", (1, 2), r"multipliers was \[1\] and is now \[1, 2\]"),
        ("model.sigma_data", 0.3, "sigma_data was .* and is now 0.3"),
        ("model.embedding_scale", 1.0, "embedding_scale was .* and is now 1.0"),
        ("model.norm", "pixel", "norm was 'group' and is now 'pixel'"),
        ("model.scale_shift", True, "scale_shift was False and is now True"),
        ("data.low_resolution", 8, "low_resolution was 4 and is now 8"),
        ("data.image_size", 32, "image_size was 16 and is now 32"),
        ("diffusion.num_steps", 1999, "num_steps was 2000 and is now 1999"),
        ("diffusion.schedule", "cosine", "schedule was .* and is now 'cosine'"),
        ("train.source_noise", 0.2, "source_noise was 0.0 and is now 0.2"),
        ("train.loss", "l2", "loss was 'l1' and is now 'l2'"),
        ("method", "regression", "method was 'sr3' and is now 'regression'"),
        ("sampling.variance", "none", "'none' is unknown"),
        ("evaluation.image_size", 33, "33 is not a multiple of 4"),
        ("evaluation.paper_table", "9", "'9' is unknown"),
    ]:
        config = small_run.config()
        config.update_from_flattened_dict({key: value})
        with pytest.raises(ValueError, match=message) as refused:
            jobs.train(read(config), workdir)
        assert _files(workdir) == before, key
        if "and is now" in message:
            # Nor can it be evaluated under that config.
            assert "docs/config.md says which keys may change" in str(refused.value)
            with pytest.raises(ValueError, match=message):
                jobs.evaluate(read(config), workdir)
    flags = [*small_run.flags(), f"--workdir={workdir}", "--config.model.channels=16"]
    assert forked_run.run(flags, tmp_path / "said.txt") == 2
    error = (tmp_path / "said.txt").read_text().strip().splitlines()[-1]
    assert error.startswith("error: the checkpoints beside") and "channels was 8" in error
    assert _files(workdir) == before
    small = np.zeros((1, 4, 4, 3), np.uint8)
    assert SuperResolver.from_workdir(workdir).upscale(small).shape == (1, 16, 16, 3)


def test_a_checkpoint_of_other_shapes_is_refused(workdir, tmp_path):
    """There is no config.json beside these checkpoints."""
    alone = epath.Path(tmp_path)
    (tmp_path / "checkpoints").symlink_to(str(workdir / "checkpoints"))
    config = small_run.config()
    config.model.channels = 16
    for job in (jobs.train, jobs.evaluate):
        with pytest.raises(ValueError, match=r"another config: \w+/.* has shape .* there"):
            job(read(config), alone)
    assert not (alone / "config.json").exists()


def test_bfloat16_and_accumulation_and_a_folder_train(tmp_path):
    """Other options run, too, and the state stays float32."""
    config = small_run.config()
    images = epath.Path(tmp_path / "images")
    images.mkdir()
    rng = np.random.default_rng(0)
    for i in range(9):
        pixels = rng.integers(0, 256, (24 + i, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / f"{i}.png")
    (images / "broken.png").write_bytes(b"no image")
    config.data.update(source="folder", path=str(images), num_eval_images=3, crop="central")
    config.data.max_bad_share = 0.5
    config.model.update(dtype="bfloat16", remat=True, bottleneck_attention=True)
    config.model.update(sigma_data=0.0, measure_sigma_data=True)
    config.train.update(accumulate_steps=2, loss="l2", num_steps=2)
    config.train.num_decay_steps = 0
    config.evaluation.image_size = 16
    config.diffusion.schedule = "cosine"
    config.sampling.variance = "fixed_small"
    workdir = epath.Path(tmp_path / "run")
    # The config of a run that ended before its first checkpoint; it may change.
    save(read(small_run.config()), workdir / "config.json")
    jobs.train(read(config), workdir)
    kept = run_file.load(workdir / "config.json")
    # Evenly spread levels have the variance 1/3, less in smaller images; x keeps a part of it.
    assert 0.2 < kept.model.sigma_data < 0.6
    assert kept == run_file.with_sigma_data(read(config), kept.model.sigma_data)
    jobs.train(read(config), workdir)  # the same run
    assert run_file.load(workdir / "config.json") == kept
    scores = json.loads((workdir / "evaluation" / "metrics.json").read_text())
    assert scores["sr3"]["n"] in (2, 3)
    state = small_run.read_checkpoint(workdir, 2)
    assert {leaf.dtype for leaf in jax.tree.leaves(state["params"])} == {np.dtype("float32")}
    train, held_out = (
        image_sets.training_source(read(config)),
        image_sets.evaluation_source(read(config)),
    )
    assert len(held_out) == 3 and len(train) == 7
    assert not {i.name for i in train} & {i.name for i in held_out}


@pytest.mark.parametrize("which", ["held-out", "training"])
def test_images_that_cannot_be_used_are_found_before_the_network_is_compiled(tmp_path, which):
    for kind, side in (("held-out", 40), ("training", 40), (which, 10)):
        (tmp_path / kind).mkdir(exist_ok=True)
        Image.new("RGB", (side, side)).save(tmp_path / kind / "picture.png")
    config = small_run.config()
    paths = {"path": str(tmp_path / "training"), "eval_path": str(tmp_path / "held-out")}
    config.data.update(source="folder", num_eval_images=0, **paths)
    with pytest.raises(ValueError, match=f"the {which} images: no usable.*picture.png: .*10x10"):
        jobs.train(read(config), epath.Path(tmp_path / "run"))
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("low_resolution", [0, 4])
def test_sigma_data_is_that_of_the_images(low_resolution, tmp_path):
    """A chequerboard becomes grey when it is shrunk, so y_0 - x is the distance to that grey."""
    dark, light = 55, 200
    board = np.where(np.indices((16, 16)).sum(0) % 2, light, dark).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "board.png")
    config = small_run.config()
    config.data.update(source="folder", path=str(tmp_path), crop="central", num_eval_images=0)
    config.data.update(eval_path=str(tmp_path), low_resolution=low_resolution)
    found = image_sets.residual_rms(read(config), 3)
    levels = np.array([dark, light]) / 127.5 - 1
    expected = levels.std() if low_resolution else np.sqrt(np.mean(levels**2))
    assert found == pytest.approx(expected, rel=0.01)
